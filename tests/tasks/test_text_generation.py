"""Text generation: what is learnt, perplexity, generation, and what is refused."""

import math

import numpy as np
import pytest
import torch

from luthier.errors import DataError, ModelError, SpecError
from luthier.spec import ProcessingSpec
from luthier.tasks.text_generation import TextGeneration

PAIRS = [
    {"prompt": "2+2=", "completion": "4"},
    {"prompt": "Name a cat: ", "completion": "Tom é"},
    {"prompt": "say nothing", "completion": " ok"},
]


def task(**options):
    return TextGeneration(ProcessingSpec(**options))


def test_prompts_are_masked_and_the_end_is_learnt(rows, plain_gpt2):
    ours = task()
    examples = ours.read(rows(PAIRS))
    assert examples.columns == {"text": "prompt", "ground_truth": "completion"}
    model, tokenizer = ours.load(plain_gpt2)
    features = ours.features(examples, np.arange(3), tokenizer)
    for row, feature in zip(PAIRS, features, strict=True):
        learnt = [i for i in feature["labels"] if i != -100]
        assert tokenizer.decode(learnt) == row["completion"] + "<|end|>"
        masked = feature["labels"].count(-100)
        assert tokenizer.decode(feature["input_ids"][:masked]) == row["prompt"]
        assert feature["labels"][masked:] == feature["input_ids"][masked:]
    assert tokenizer.pad_token == "<|end|>"
    assert model.config.pad_token_id == tokenizer.eos_token_id
    batch = ours.collator(tokenizer, model)(features)
    learnt = (batch["labels"] == tokenizer.eos_token_id).sum(dim=1)
    assert learnt.tolist() == [1, 1, 1], "the end is learnt once, and never as padding"


def test_a_long_prompt_loses_its_beginning(rows, plain_gpt2):
    ours = task(max_seq_length=12)
    examples = ours.read(rows([{"prompt": "abcdefghijklmnop", "completion": "xyz"},
                               {"prompt": "abc", "completion": "0123456789012345"}]))  # fmt: skip
    _, tokenizer = ours.load(plain_gpt2)
    one, two = ours.features(examples, np.arange(2), tokenizer)
    assert tokenizer.decode(one["input_ids"]) == "ijklmnopxyz<|end|>"
    assert one["labels"][:8] == [-100] * 8
    assert tokenizer.decode(two["input_ids"]) == "c01234567890"


def test_long_texts_are_learnt_whole_each_token_once(rows, plain_gpt2):
    ours = task(max_seq_length=10)
    text = "The quick brown fox jumps over the lazy dog."
    examples = ours.read(rows([{"text": text}, {"text": "short"}]))
    _, tokenizer = ours.load(plain_gpt2)
    features = ours.features(examples, np.arange(2), tokenizer)
    assert all(len(f["input_ids"]) <= 10 for f in features)
    predicted = [i for f in features[:-1] for i in f["labels"][1:]]
    assert tokenizer.decode([features[0]["input_ids"][0], *predicted]) == text + "<|end|>"
    assert tokenizer.decode(features[-1]["input_ids"]) == "short<|end|>"


def test_perplexity_is_exact_over_all_tokens(rows, plain_gpt2):
    ours = task()
    examples = ours.read(rows(PAIRS))
    model, tokenizer = ours.load(plain_gpt2)
    total, count = 0.0, 0
    for feature in ours.features(examples, np.arange(3), tokenizer):
        logits = model.eval()(input_ids=torch.tensor([feature["input_ids"]])).logits[0]
        log = torch.log_softmax(logits.double(), -1)
        for place, label in enumerate(feature["labels"][1:]):
            if label != -100:
                total -= log[place, label].item()
                count += 1
    found = ours.predict(model, examples, tokenizer, batch_size=2)
    scores = ours.score(found, examples)
    assert scores.metrics["loss"] == pytest.approx(total / count, abs=1e-5)
    assert scores.metrics["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)
    assert found.arrays["tokens"].tolist() == [2, 7, 4]
    again = ours.predict(model, examples.take([2, 2, 0]), tokenizer)
    counts = np.array([[1.0, 0, 2], [1, 1, 1]])
    drawn = ours.resampled(scores, counts)
    assert drawn["loss"][0] == pytest.approx(ours.score(again, examples).metrics["loss"], abs=1e-5)
    assert drawn["perplexity"][1] == pytest.approx(scores.metrics["perplexity"])


def test_it_learns_to_complete(rows, plain_gpt2, learn):
    ours = task(generation={"max_new_tokens": 8})
    examples = ours.read(rows(PAIRS[:2]))
    torch.manual_seed(0)
    model, tokenizer = ours.load(plain_gpt2)
    before = ours.score(ours.predict(model, examples, tokenizer), examples).metrics["loss"]
    learn(ours, model, tokenizer, examples, 60)
    found = ours.predict(model, examples, tokenizer, generation={})
    assert found.values == ["4", "Tom é"]
    assert ours.score(found, examples).metrics["loss"] < before / 10
    bare = ours.read(rows([{"text": "2+2="}]), supervised=False)
    assert ours.predict(model, bare, tokenizer).values == ["4"]


def test_what_is_wrong_is_named(rows, plain_gpt2, plain_bert):
    with pytest.raises(DataError, match="row 2, column completion: the text is empty"):
        task().read(rows([PAIRS[0], {"prompt": "a", "completion": ""}]))
    examples = task().read(rows(PAIRS))
    model, tokenizer = task().load(plain_gpt2)
    with pytest.raises(SpecError, match=r"generation.num_beams must be at least 1"):
        task().predict(model, examples, tokenizer, generation={"num_beams": 0})
    with pytest.raises(ModelError, match=r"has no weights for .* of BertLMHeadModel"):
        task().load(plain_bert)
