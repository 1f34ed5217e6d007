"""Summarization and translation: texts, languages, generation, scores, and what is refused."""

import math

import numpy as np
import pytest
import torch

from luthier.errors import DataError, ModelError, SpecError
from luthier.spec import ProcessingSpec
from luthier.tasks import overlap
from luthier.tasks.scores import Predictions
from luthier.tasks.sequence_to_sequence import Summarization, Translation

NEWS = [
    {"article": "The cat sat on the mat.", "highlights": "cat sat"},
    {"article": "Dogs bark at night.", "highlights": "dogs bark"},
]
TALK = [{"en": "good day", "de": "guten tag"}, {"en": "yes", "de": "ja"}]


def test_features_have_prefix_and_both_limits(rows, plain_t5):
    ours = Summarization(
        ProcessingSpec(source_prefix="summarize: ", max_seq_length=20, max_target_length=6)
    )
    examples = ours.read(rows(NEWS))
    assert examples.columns == {"document": "article", "summary": "highlights"}
    model, tokenizer = ours.load(plain_t5)
    features = ours.features(examples, np.array([1, 0]), tokenizer)
    assert tokenizer.decode(features[1]["input_ids"]) == "summarize: The cat </s>"
    assert tokenizer.decode(features[1]["labels"]) == "cat s</s>"
    batch = ours.collator(tokenizer, model)(features)
    assert batch["decoder_input_ids"][1].tolist()[:2] == [
        tokenizer.pad_token_id, features[1]["labels"][0],
    ]  # fmt: skip
    assert batch["labels"].shape == (2, 6)


def test_it_learns_to_write(rows, plain_t5, learn):
    ours = Summarization(ProcessingSpec(generation={"max_new_tokens": 12}))
    examples = ours.read(rows([{"document": "a b", "summary": "ab"},
                               {"document": "zzz q", "summary": "no"}]))  # fmt: skip
    torch.manual_seed(0)
    model, tokenizer = ours.load(plain_t5)
    learn(ours, model, tokenizer, examples, 250)
    one = ours.predict(model, examples, tokenizer, batch_size=1)
    beams = ours.predict(model, examples, tokenizer, generation={"num_beams": 2})
    assert one.values == beams.values == ["ab", "no"]
    assert ours.score(one, examples).metrics == {
        "rougeL": 1, "rouge1": 1, "rouge2": 0, "rougeLsum": 1,
    }  # fmt: skip
    bare = ours.read(rows([{"document": "a b"}]), supervised=False)
    assert ours.predict(model, bare, tokenizer).values == ["ab"]
    with pytest.raises(DataError, match="no summary to score against"):
        ours.score(one, bare)


def test_rouge_has_hand_computed_values():
    """Given: the cat sat; wanted: the cat on the mat. rouge1: 2 of 3 and 2 of 5; rouge2: 1 of 2
    and 1 of 4; the longest common subsequence has 2 words."""
    found = overlap.rouge(["the cat sat"], ["The cat, on the mat!"]).metrics
    assert found["rouge1"] == pytest.approx(2 * (2 / 3) * (2 / 5) / (2 / 3 + 2 / 5))
    assert found["rouge2"] == pytest.approx(2 * (1 / 2) * (1 / 4) / (3 / 4))
    assert found["rougeL"] == pytest.approx(found["rouge1"])
    assert overlap.rouge(["кот спит"], ["Кот спит."]).metrics["rouge2"] == 1
    split = overlap.rouge(["b c. a d."], ["a d. b c."]).metrics
    assert split["rougeLsum"] == 1
    assert split["rougeL"] == 0.5


def test_rouge_is_the_librarys_on_english():
    from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    given = "Running dogs don't stop, the 3 barking dogs."
    wanted = "The running dog didn't stop. 3 dogs barked!"
    theirs = scorer.score(wanted, given)
    ours = overlap.rouge([given], [wanted]).metrics
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value.fmeasure)


def test_bleu_and_chrf_are_sacrebleus_and_have_hand_computed_values():
    """Given: a b c d e; wanted: a b c d f. Precisions 4/5, 3/4, 2/3, 1/2; no brevity penalty."""
    found = overlap.translation(["a b c d e"], ["a b c d f"]).metrics
    product = (4 / 5) * (3 / 4) * (2 / 3) * (1 / 2)
    assert found["bleu"] == pytest.approx(100 * product**0.25)
    import sacrebleu

    random = np.random.default_rng(0)
    words = list("abcdefgh")
    given = [" ".join(random.choice(words, 8)) for _ in range(30)]
    wanted = [" ".join(random.choice(words, 9)) for _ in range(30)]
    ours = overlap.translation(given, wanted)
    assert ours.metrics["bleu"] == pytest.approx(sacrebleu.corpus_bleu(given, [wanted]).score)
    assert ours.metrics["chrf"] == pytest.approx(sacrebleu.corpus_chrf(given, [wanted]).score)
    drawn = random.integers(0, 30, (3, 30))
    counts = np.stack([np.bincount(d, minlength=30) for d in drawn]).astype(float)
    many = overlap.resampled_translation(ours, counts)
    for b, places in enumerate(drawn):
        again = overlap.translation([given[i] for i in places], [wanted[i] for i in places])
        for name, value in again.metrics.items():
            assert many[name][b] == pytest.approx(value)


def test_columns_are_called_by_their_languages(rows):
    spec = {"source_lang": "en_XX", "target_lang": "de_DE"}
    ours = Translation(ProcessingSpec(**spec))
    examples = ours.read(rows(TALK))
    assert examples.columns == {"source": "en", "target": "de"}
    nested = ours.read(rows([{"translation": pair} for pair in TALK]))
    assert nested.columns == {"translation": "translation"}
    assert ours.sources(nested) == ours.sources(examples) == ["good day", "yes"]
    assert ours.targets(nested, np.array([1])) == ours.targets(examples, np.array([1])) == ["ja"]
    bare = ours.read(rows([{"en": "x"}]), supervised=False)
    assert bare.columns == {"source": "en"}
    with pytest.raises(DataError, match=r"row 1, column translation: there is no text in 'de_DE'"):
        ours.read(rows([{"translation": {"en": "a", "fr": "b"}}]))
    with pytest.raises(SpecError, match=r"processing.source_lang: is needed"):
        Translation().read(rows([{"translation": TALK[0]}]))
    with pytest.raises(DataError, match="no column for 'target'"):
        ours.read(rows([{"en": "a", "fr": "b"}]))


def test_multilingual_models_are_told_the_languages(rows, plain_mbart):
    spec = {"source_lang": "en", "target_lang": "de_DE"}
    ours = Translation(ProcessingSpec(**spec, generation={"max_new_tokens": 4}))
    examples = ours.read(rows(TALK))
    model, tokenizer = ours.load(plain_mbart)
    feature = ours.features(examples, np.array([1]), tokenizer)[0]
    read = tokenizer.convert_ids_to_tokens(feature["input_ids"])
    written = tokenizer.convert_ids_to_tokens(feature["labels"])
    assert (read[0], read[-1]) == ("en_XX", "</s>")
    assert (written[0], written[-1]) == ("de_DE", "</s>")
    inputs = {"input_ids": torch.tensor([feature["input_ids"]])}
    out = model.generate(**inputs, max_new_tokens=4)[0].tolist()
    assert tokenizer.convert_ids_to_tokens(out)[1] == "de_DE"
    french = Translation(ProcessingSpec(source_lang="en", target_lang="fr"))
    other, tokenizer = french.load(plain_mbart)
    out = other.generate(**inputs, max_new_tokens=4)[0].tolist()
    assert tokenizer.convert_ids_to_tokens(out)[1] == "fr_XX"
    assert len(ours.predict(model, examples, tokenizer).values) == 2


def test_languages_that_a_model_does_not_know_are_refused(plain_mbart):
    with pytest.raises(SpecError) as caught:
        Translation(ProcessingSpec(target_lang="de_XX")).load(plain_mbart)
    message = str(caught.value)
    assert "processing.source_lang: the model has to be told the language" in message
    assert "processing.target_lang: the model knows no language 'de_XX'" in message
    assert "did you mean" in message


def test_what_does_not_fit_is_refused(plain_t5, plain_bert):
    spec = ProcessingSpec(max_target_length=65)
    with pytest.raises(SpecError, match=r"max_target_length: 65 tokens, where the model takes 64"):
        Summarization(spec).load(plain_t5)
    spec = ProcessingSpec(max_seq_length=8, max_target_length=16, pad_to_max_length=True)
    with pytest.raises(SpecError, match=r"16 tokens, where pad_to_max_length pads to 8"):
        Summarization(spec).load(plain_t5)
    with pytest.raises(ModelError, match="cannot be loaded"):
        Summarization().load(plain_bert)
    with pytest.raises(SpecError, match=r"generation.max_new_tokens must be at least 1"):
        Summarization().predict(None, None, None, generation={"max_new_tokens": 0})


def test_a_missing_package_is_named(monkeypatch):
    import sys

    from luthier.errors import MissingExtra

    monkeypatch.setitem(sys.modules, "rouge_score", None)
    with pytest.raises(MissingExtra, match=r"pip install 'luthier\[tasks\]'"):
        overlap.rouge(["a"], ["a"])
    assert math.isclose(overlap.translation(["a b c d"], ["a b c d"]).metrics["bleu"], 100)


def test_predictions_of_empty_texts_score_nothing():
    assert overlap.rouge([""], ["a b"]).metrics["rouge1"] == 0
    assert overlap.translation([""], ["a b"]).metrics["bleu"] == 0
    assert Predictions([""]).values == [""]
