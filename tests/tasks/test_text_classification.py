"""Text classification: columns, labels, features, answers, scores, and what is refused."""

import math

import numpy as np
import pyarrow as pa
import pytest
import torch

from luthier.data.rows import Rows
from luthier.errors import DataError, ModelError, SpecError
from luthier.spec import ProcessingSpec
from luthier.tasks.examples import Examples
from luthier.tasks.loading import labels_of
from luthier.tasks.scores import Predictions
from luthier.tasks.text_classification import TextClassification

ROWS = [
    {"text": "good food", "label": "pos"}, {"text": "bad", "label": "neg"},
    {"text": "a really very good soup", "label": "pos"}, {"text": "no", "label": "neg"},
    {"text": "odd", "label": "mixed"},
]  # fmt: skip


def task(**options):
    return TextClassification(ProcessingSpec(**options))


def refused(rows, content, labels=None, name="data.jsonl", **options):
    with pytest.raises(DataError) as caught:
        task(**options).read(rows(content, name), labels)
    return str(caught.value)


def test_columns_and_labels_are_found(rows):
    examples = task().read(rows(ROWS))
    assert examples.columns == {"sentence1": "text", "label": "label"}
    assert examples.labels == ("mixed", "neg", "pos")
    assert examples.codes.tolist() == [2, 1, 2, 1, 0]
    pair = [{"Premise": "a b", "hypothesis": "c", "gold": "x", "n": 1},
            {"Premise": "d", "hypothesis": "e", "gold": "y", "n": 2}]  # fmt: skip
    found = task(columns={"label": "gold"}).read(rows(pair))
    assert found.columns == {"sentence1": "Premise", "sentence2": "hypothesis", "label": "gold"}
    assert found.take([1]).values("sentence2") == ["e"]


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        ([10, 9, 0], ("0", "9", "10")),
        (["10", "9", "-1"], ("-1", "9", "10")),
        ([1.0, 0.0, 1.0], ("0", "1")),
        ([True, False, True], ("false", "true")),
        (["b", "a", 3], ("3", "a", "b")),
    ],
)
def test_labels_are_text_in_their_natural_order(rows, given, labels):
    content = [{"text": "t", "label": label} for label in given]
    assert task().read(rows(content)).labels == labels


def test_validation_rows_use_the_training_labels(rows):
    examples = task().read(rows([{"text": "a", "label": "pos"}]), ("mixed", "neg", "pos"))
    assert examples.codes.tolist() == [2]
    message = refused(rows, [{"text": "a", "label": "poss"}], ("mixed", "neg", "pos"))
    assert "data.jsonl, row 1, column label: the label 'poss' is not among the 3" in message
    assert "did you mean 'pos'?" in message


def test_what_is_wrong_with_rows_is_listed_together(rows):
    content = 'text,label\ngood,pos\n"  ",neg\n"two\nlines",\nbad,neg\n'
    message = refused(rows, content, name="data.csv")
    assert message.startswith("data.csv, row 3, column text: the text is empty")
    assert "also row 4, column label: the label is empty" in message
    mixed = [{"text": "a", "label": 1.5}, {"text": "b", "label": 2.0}]
    assert "row 1, column label: 1.5 is not a label" in refused(rows, mixed)
    assert "nothing to tell apart: only 'x' in 2 rows" in refused(
        rows, [{"text": "a", "label": "x"}, {"text": "b", "label": "x"}]
    )


def test_a_missing_column_names_what_there_is(rows):
    message = refused(rows, [{"text": "a", "lable": "x"}])
    assert "data.jsonl: no column for 'label'" in message
    assert "there are text, lable" in message
    assert "columns={'label': 'lable'} names it" in message
    message = refused(rows, ROWS, columns={"sentence1": "txt"})
    assert "data.jsonl, column txt: there is no such column, wanted as 'sentence1'" in message
    assert "did you mean 'text'?" in message


def test_options_that_mean_nothing_are_refused():
    with pytest.raises(SpecError, match=r"processing.doc_stride: means nothing for text-cl"):
        task(doc_stride=5)
    with pytest.raises(SpecError, match=r"columns.lable: text-classification has no role 'lable'"):
        task(columns={"lable": "x"})


def test_features_are_those_of_the_tokenizer(rows, plain_bert):
    ours = task(max_seq_length=8)
    examples = ours.read(rows(ROWS))
    model, tokenizer = ours.load(plain_bert, examples.labels)
    features = ours.features(examples, np.array([2, 1]), tokenizer)
    texts = ["a really very good soup", "bad"]
    expected = tokenizer(texts, truncation=True, max_length=8)
    assert [f["input_ids"] for f in features] == expected["input_ids"]
    assert [f["labels"] for f in features] == [2, 1]
    assert len(features[0]["input_ids"]) == 8
    batch = ours.collator(tokenizer, model)(features)
    assert batch["input_ids"].shape == (2, 8)
    assert batch["labels"].tolist() == [2, 1]
    padded = task(pad_to_max_length=True)
    wide = padded.collator(tokenizer)(padded.features(examples, np.array([1]), tokenizer))
    assert wide["input_ids"].shape == (1, 64)
    assert model.config.id2label == {0: "mixed", 1: "neg", 2: "pos"}
    assert model.config.label2id["pos"] == 2


def test_answers_do_not_depend_on_batches_and_losses_are_the_models(rows, plain_bert):
    ours = task()
    examples = ours.read(rows(ROWS))
    torch.manual_seed(0)
    model, tokenizer = ours.load(plain_bert, examples.labels)
    one = ours.predict(model, examples, tokenizer, batch_size=1)
    many = ours.predict(model, examples, tokenizer, batch_size=3)
    np.testing.assert_allclose(one.arrays["probabilities"], many.arrays["probabilities"], atol=1e-6)
    batch = ours.collator(tokenizer)(ours.features(examples, np.arange(5), tokenizer))
    with torch.no_grad():
        loss = model.eval()(**batch).loss.item()
    scores = ours.score(one, examples)
    assert scores.metrics["loss"] == pytest.approx(loss, abs=1e-6)
    bare = ours.read(rows([{"text": "good"}]), examples.labels, supervised=False)
    assert ours.predict(model, bare, tokenizer).values[0] in examples.labels
    with pytest.raises(DataError, match="no labels to score against"):
        ours.score(ours.predict(model, bare, tokenizer), bare)


def test_predicting_leaves_every_module_in_its_mode(rows, plain_bert):
    ours = task()
    examples = ours.read(rows(ROWS))
    model, tokenizer = ours.load(plain_bert, examples.labels)
    model.train()
    model.bert.embeddings.eval()  # as for a frozen part
    before = {name: module.training for name, module in model.named_modules()}
    stops = iter([None, KeyboardInterrupt()])

    def obey():
        if error := next(stops):
            raise error

    with pytest.raises(KeyboardInterrupt):
        ours.predict(model, examples, tokenizer, batch_size=2, obey=obey)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert before["bert.encoder"]
    assert not before["bert.embeddings"]


def test_it_learns(rows, plain_bert, learn):
    ours = task()
    examples = ours.read(rows(ROWS))
    torch.manual_seed(0)
    model, tokenizer = ours.load(plain_bert, examples.labels)
    learn(ours, model, tokenizer, examples, 80)
    assert ours.predict(model, examples, tokenizer).values == [row["label"] for row in ROWS]


def scored(target, guess, labels=("a", "b", "c")):
    rows = Rows("f", pa.table({"x": range(len(target))}))
    codes = np.array([labels.index(t) for t in target])
    examples = Examples(rows, {}, {}, labels, codes)
    return task().score(Predictions(list(guess)), examples)


def test_metrics_have_hand_computed_values():
    """Targets a a a b b c, guesses a a b b c c: 4 of 6 right.

    Precision: a 2/2, b 1/2, c 1/2. Recall: a 2/3, b 1/2, c 1/1. F1: 4/5, 1/2, 2/3.
    MCC: (4·6 − (2·3 + 2·2 + 2·1)) / √((36 − 12)(36 − 14)) = 12 / √528.
    """
    found = scored("aaabbc", "aabbcc").metrics
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["precision_macro"] == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert found["recall_macro"] == pytest.approx((2 / 3 + 0.5 + 1) / 3)
    assert found["f1_macro"] == pytest.approx((0.8 + 0.5 + 2 / 3) / 3)
    assert found["mcc"] == pytest.approx(12 / math.sqrt(528))


def test_metrics_of_resamples_are_those_of_the_rows_drawn():
    random = np.random.default_rng(0)
    target, guess = random.choice(list("abc"), 40), random.choice(list("abc"), 40)
    scores = scored(target, guess)
    drawn = random.integers(0, 40, (5, 40))
    right = np.flatnonzero((target == "a") & (guess == "a"))[0]
    wrong = np.flatnonzero((target == "a") & (guess == "b"))[0]
    drawn[3] = right  # one class alone
    drawn[4] = [right, wrong] * 20  # a class that is called, but never true
    counts = np.stack([np.bincount(d, minlength=40) for d in drawn]).astype(float)
    found = task().resampled(scores, counts)
    for b, places in enumerate(drawn):
        again = scored(target[places], guess[places]).metrics
        for name, value in again.items():
            assert found[name][b] == pytest.approx(value), name
    whole = task().resampled(scores, np.ones((1, 40)))
    assert {k: v[0] for k, v in whole.items()} == pytest.approx(scores.metrics)


def test_several_labels(rows, plain_bert, learn):
    ours = task(multi_label=True)
    content = [{"text": "good food", "labels": ["b", "a"]}, {"text": "so bad", "labels": []},
               {"text": "no", "labels": ["c"]}]  # fmt: skip
    examples = ours.read(rows(content))
    assert examples.labels == ("a", "b", "c")
    assert examples.codes.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    text = 'text,labels\nx,"a, b"\ny,\nz,"[\'c\']"\n'
    assert ours.read(rows(text, "m.csv")).codes.tolist() == examples.codes.tolist()
    torch.manual_seed(0)
    model, tokenizer = ours.load(plain_bert, examples.labels)
    assert model.config.problem_type == "multi_label_classification"
    batch = ours.collator(tokenizer)(ours.features(examples, np.arange(3), tokenizer))
    with torch.no_grad():
        loss = model.eval()(**batch).loss.item()
    before = ours.score(ours.predict(model, examples, tokenizer), examples)
    assert before.metrics["loss"] == pytest.approx(loss, abs=1e-6)
    learn(ours, model, tokenizer, examples, 80)
    after = ours.predict(model, examples, tokenizer)
    assert after.values == [["a", "b"], [], ["c"]]
    for scores in (before, ours.score(after, examples)):
        whole = ours.resampled(scores, np.ones((1, 3)))
        assert {k: v[0] for k, v in whole.items()} == pytest.approx(scores.metrics)
    half = ours.score(type(after)([["a"], ["b"], ["c"]]), examples)
    assert half.metrics["f1_micro"] == pytest.approx(2 * 2 / (3 + 3))
    assert half.metrics["accuracy"] == pytest.approx(1 / 3)
    assert half.metrics["f1_macro"] == pytest.approx((1 + 0 + 1) / 3)


def test_models_that_do_not_fit_are_refused(rows, plain_bert, tmp_path):
    ours = task()
    examples = ours.read(rows(ROWS))
    with pytest.raises(ModelError, match=r"has no weights for .*classifier") as caught:
        ours.load(plain_bert, examples.labels, random_head_ok=False)
    assert str(plain_bert) in str(caught.value)
    with pytest.raises(SpecError, match="max_seq_length: 65 tokens, where the model takes 64"):
        task(max_seq_length=65).load(plain_bert, examples.labels)
    with pytest.raises(SpecError, match=r"model.options.revison: no such option"):
        ours.load(plain_bert, examples.labels, options={"revison": "x"})
    model, tokenizer = ours.load(plain_bert, examples.labels)
    model.save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    again, _ = ours.load(tmp_path / "m", examples.labels, random_head_ok=False)
    assert torch.equal(again.classifier.weight, model.classifier.weight)
    assert labels_of(str(tmp_path / "m")) == examples.labels
    assert labels_of(str(plain_bert)) == ()
    with pytest.raises(ModelError, match="ignore_mismatched_sizes=true"):
        ours.load(tmp_path / "m", ("a", "b"))
    wider, _ = ours.load(tmp_path / "m", ("a", "b"), options={"ignore_mismatched_sizes": True})
    assert wider.classifier.weight.shape == (2, 32)
    with pytest.raises(ModelError, match="numbers its classes in another order: mixed, neg, pos"):
        ours.load(tmp_path / "m", ("pos", "neg", "mixed"))
