"""Token classification: alignment, windows, entities, and what is refused."""

import numpy as np
import pytest
import torch

from luthier.errors import DataError
from luthier.spec import ProcessingSpec
from luthier.tasks.token_classification import TokenClassification

ROWS = [
    {"tokens": ["Barack", "Obama", "met", "Tom"], "ner_tags": ["B-PER", "I-PER", "O", "B-PER"]},
    {"tokens": ["Rome", "is", "old"], "ner_tags": ["B-LOC", "O", "O"]},
    {"tokens": ["no", "names", "at", "all"], "ner_tags": ["O", "O", "O", "O"]},
]


def task(**options):
    return TokenClassification(ProcessingSpec(**options))


def refused(rows, content, labels=None, **options):
    with pytest.raises(DataError) as caught:
        task(**options).read(rows(content), labels)
    return str(caught.value)


def test_labels_stand_at_first_sub_tokens_only(rows, plain_bert):
    """The oracle tokenizes word by word."""
    ours = task(max_seq_length=12)
    examples = ours.read(rows(ROWS))
    assert examples.labels == ("B-LOC", "B-PER", "I-PER", "O")
    _, tokenizer = ours.load(plain_bert, examples.labels)
    features = ours.features(examples, np.arange(3), tokenizer)
    for row, feature in zip(ROWS, features, strict=True):
        ids, labels = [tokenizer.cls_token_id], [-100]
        for word, tag in zip(row["tokens"], row["ner_tags"], strict=True):
            pieces = tokenizer(word, add_special_tokens=False)["input_ids"]
            assert pieces
            ids += pieces
            labels += [examples.labels.index(tag)] + [-100] * (len(pieces) - 1)
        ids, labels = [*ids[:11], tokenizer.sep_token_id], [*labels[:11], -100]
        assert feature["input_ids"] == ids
        assert feature["labels"] == labels
    assert len(features[0]["input_ids"]) == 12, "a long row is cut"
    batch = ours.collator(tokenizer)(features)
    assert batch["labels"].shape == batch["input_ids"].shape
    assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()


def test_long_rows_are_predicted_whole_and_short_ones_as_the_model_says(rows, plain_bert):
    ours = task(max_seq_length=16)
    words = [f"{a}{b}{c}" for a in "bdgk" for b in "aeo" for c in ("n", "tis", "rabo")]
    tags = ["B-X" if i % 3 else "O" for i in range(len(words))]
    content = [{"tokens": words, "tags": tags}, {"tokens": words[:3], "tags": tags[:3]}]
    examples = ours.read(rows(content))
    torch.manual_seed(0)
    model, tokenizer = ours.load(plain_bert, examples.labels)
    found = ours.predict(model, examples, tokenizer, batch_size=2)
    assert [len(row) for row in found.values] == [36, 3]
    assert found.arrays["words"].tolist() == [36, 3]
    batch = ours.collator(tokenizer)(ours.features(examples, np.array([1]), tokenizer))
    with torch.no_grad():
        out = model.eval()(**batch)
    kept = batch["labels"][0] != -100
    expected = [examples.labels[c] for c in out.logits[0][kept].argmax(-1).tolist()]
    assert found.values[1] == expected
    assert found.arrays["nll"][1] / 3 == pytest.approx(out.loss.item(), abs=1e-6)


def test_each_word_is_decided_far_from_the_edges(rows, plain_bert):
    from luthier.tasks.token_classification import _best_windows

    ours = task(max_seq_length=16)
    words = [["ba"] * 40]
    examples = ours.read(rows([{"tokens": words[0], "tags": ["a", "b"] * 20}]))
    _, tokenizer = ours.load(plain_bert, examples.labels)
    features, owners, ids = ours._windows(words, tokenizer)
    best = _best_windows(words, owners, ids)
    assert sorted(word for first in best for word in first) == list(range(40))
    for number, first in enumerate(best):
        for word, token in first.items():
            assert ids[number][token] == word
            at_edge = token < 2 or token > len(ids[number]) - 3
            assert not at_edge or word < 2 or word > 37
    assert len(features) > 2


def test_it_learns(rows, plain_bert, learn):
    ours = task()
    examples = ours.read(rows(ROWS))
    torch.manual_seed(0)
    model, tokenizer = ours.load(plain_bert, examples.labels)
    learn(ours, model, tokenizer, examples, 60)
    found = ours.predict(model, examples, tokenizer)
    assert found.values == [row["ner_tags"] for row in ROWS]
    metrics = ours.score(found, examples).metrics
    assert metrics["f1"] == metrics["accuracy"] == 1


def test_metrics_are_of_whole_entities(rows):
    """True: PER(0-1), PER(3), LOC(0): 3. Given: PER(0) PER(3) | LOC(0) LOC(2): 4. Right: 2."""
    ours = task()
    examples = ours.read(rows(ROWS))
    from luthier.tasks.scores import Predictions

    given = [["B-PER", "O", "O", "B-PER"], ["B-LOC", "O", "B-LOC"], ["O"] * 4]
    scores = ours.score(Predictions(given), examples)
    assert scores.metrics == pytest.approx(
        {"f1": 2 * 2 / 7, "accuracy": 9 / 11, "precision": 2 / 4, "recall": 2 / 3}
    )
    drawn = [[0, 0, 2], [2, 2, 2], [1, 1, 0]]
    counts = np.stack([np.bincount(d, minlength=3) for d in drawn]).astype(float)
    found = ours.resampled(scores, counts)
    for b, places in enumerate(drawn):
        again = ours.score(Predictions([given[i] for i in places]), examples.take(places))
        assert {k: v[b] for k, v in found.items()} == pytest.approx(again.metrics)


def test_plain_tags_count_word_by_word(rows):
    from luthier.tasks.scores import Predictions

    ours = task()
    examples = ours.read(rows([{"tokens": ["a", "b", "c"], "tags": ["DET", "NOUN", "NOUN"]}]))
    found = ours.score(Predictions([["DET", "NOUN", "DET"]]), examples).metrics
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["f1"] == pytest.approx(2 / 3)


def test_tables_write_lists_as_text(rows):
    text = 'tokens,tags\n"[\'a\', \'b\']","[\'X\', \'O\']"\nc d,O X\n"[""e""]",X\n'
    examples = task().read(rows(text, "d.csv"))
    assert examples.values("tokens") == [["a", "b"], ["c", "d"], ["e"]]
    assert examples.values("tags") == [["X", "O"], ["O", "X"], ["X"]]


def test_what_is_wrong_is_named(rows):
    content = [ROWS[0], {"tokens": ["a", "b"], "ner_tags": ["O"]}, {"tokens": [], "ner_tags": []},
               {"tokens": ["a", ""], "ner_tags": ["O", "O"]}]  # fmt: skip
    message = refused(rows, content)
    assert "data.jsonl, row 2, column ner_tags: 1 tags for 2 words" in message
    assert "also row 3, column tokens: there are no words" in message
    assert "also row 4, column tokens: word 2 is '', not a text" in message
    message = refused(rows, ROWS, ("B-ORG", "B-PER", "I-PER", "O"))
    assert "row 2, column ner_tags: the label 'B-LOC' is not among the 4" in message
    assert "did you mean 'B-ORG'?" in message


def test_byte_level_words_are_read_with_a_space_before(rows, plain_gpt2):
    ours = task()
    examples = ours.read(rows(ROWS))
    _, tokenizer = ours.load(plain_gpt2, examples.labels)
    feature = ours.features(examples, np.array([1]), tokenizer)[0]
    assert tokenizer.decode(feature["input_ids"]) == " Rome is old"
