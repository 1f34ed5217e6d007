"""Evaluation and prediction: what is computed, from which outputs, over which rows."""

import warnings

import numpy as np
import pytest
import torch
import transformers
from lines import Line, Stream, both, close, column, fit, log, points, pretrained, trainer

from conftest import BERT, TASKS, collate, t5, train
from luthier.trainer.trainer import Seq2SeqTrainer, Seq2SeqTrainingArguments


class Batched:
    """``close`` gathered over batches."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def __call__(self, prediction, compute_result: bool):
        found = prediction.predictions
        found = found[0] if isinstance(found, tuple) else found
        labels = prediction.label_ids
        labels = labels[0] if isinstance(labels, tuple) else labels
        self.found += ((found - labels).abs() <= 0.25).float().tolist()
        if not compute_result:
            return None
        result, self.found = {"close": float(np.mean(self.found))}, []
        return result


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("count", [64, 66])
@pytest.mark.parametrize("added", [0.0, 0.2])
def test_loss_and_metrics_are_those_worked_out(added, count, batched, tmp_path) -> None:
    rows = points(count, seed=1)
    x, y = column(rows, "x"), column(rows, "labels")
    words = {
        "model": Line(1.8, 2.9), "eval_dataset": rows,
        "compute_metrics": Batched() if batched else close,
        "preprocess_logits_for_metrics": lambda logits, labels: logits + added,
    }  # fmt: skip
    found = trainer(tmp_path, words=words, batch_eval_metrics=batched).evaluate()
    expected = 1.8 * x + 2.9
    assert found["eval_loss"] == pytest.approx(np.square(expected - y).mean(), rel=1e-5)
    assert found["eval_close"] == pytest.approx((np.abs(expected + added - y) <= 0.25).mean())


def test_metrics_over_batches_need_their_flag(tmp_path) -> None:
    with pytest.raises(ValueError, match="compute_result"):
        trainer(tmp_path, words={"compute_metrics": close}, batch_eval_metrics=True)


class TwoLabels(Line):
    def forward(self, x, labels=None, labels_2=None):
        return super().forward(x, labels)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("count", [64, 66])
def test_predictions_with_several_outputs_and_labels(count, batched, tmp_path) -> None:
    names = ("labels", "labels_2")
    rows = points(count, labels=names)
    metrics = {"compute_metrics": Batched() if batched else close, "eval_dataset": rows}
    settings = {"batch_eval_metrics": batched}
    made = trainer(tmp_path, words={"model": Line(1.5, 2.5)} | metrics, **settings)
    plain = points(count)
    found = made.predict(plain)
    expected = 1.5 * column(plain, "x") + 2.5
    np.testing.assert_allclose(found.predictions, expected, rtol=1e-6)
    wanted = (np.abs(expected - column(plain, "labels")) <= 0.25).mean()
    assert found.metrics["test_close"] == pytest.approx(wanted)

    words = {"model": TwoLabels(1.5, 2.5, twice=True)} | metrics
    if not batched:
        del words["compute_metrics"]
    made = trainer(tmp_path, words=words, label_names=list(names), **settings)
    found = made.predict(rows)
    for output in found.predictions:
        np.testing.assert_allclose(output, 1.5 * column(rows, "x") + 2.5, rtol=1e-6)
    for name, labels in zip(names, found.label_ids, strict=True):
        np.testing.assert_array_equal(labels, column(rows, name))


def test_prefixes_of_metrics(tmp_path) -> None:
    made = trainer(tmp_path, words={"compute_metrics": close})
    found = made.predict(points(), metric_key_prefix="later").metrics
    assert {"later_loss", "later_close", "later_runtime"} <= found.keys()
    assert "mine_loss" in made.evaluate(metric_key_prefix="mine")
    assert "eval_loss" in made.evaluate(points(8))


def test_only_the_loss_where_that_is_asked(tmp_path) -> None:
    words = {"compute_metrics": lambda _: pytest.fail("there is nothing to compute from")}
    found = trainer(tmp_path, words=words, prediction_loss_only=True).evaluate()
    assert "eval_loss" in found
    assert "eval_close" not in found


def test_what_metrics_are_given(tmp_path) -> None:
    seen = {}

    def metrics(prediction):
        seen.update(inputs=prediction.inputs, losses=prediction.losses)
        return {}

    rows = points(20)
    words = {"compute_metrics": metrics, "model": Line(1.0), "eval_dataset": rows}
    trainer(tmp_path, words=words, include_for_metrics=["inputs", "loss"]).evaluate()
    np.testing.assert_array_equal(seen["inputs"], column(rows, "x"))
    assert len(seen["losses"]) == 20


def ragged(count: int = 24) -> list[dict]:
    """Rows of like length, eight by eight."""
    rng = np.random.default_rng(0)
    rows = []
    for length in (3, 7, 5):
        for _ in range(count // 3):
            x = rng.normal(size=length).astype(np.float32)
            rows.append({"x": x, "labels": 2 * x + 1})
    return rows


@pytest.mark.parametrize("accumulated", [None, 2])
def test_outputs_of_unlike_length_are_padded(accumulated, tmp_path) -> None:
    rows = ragged()
    words = {"model": Line(2.0, 1.0), "eval_dataset": rows, "train_dataset": None}
    made = trainer(tmp_path, words=words, eval_accumulation_steps=accumulated)
    assert made.evaluate()["eval_loss"] == 0
    found = made.predict(rows)
    for row, predicted, labels in zip(rows, found.predictions, found.label_ids, strict=True):
        size = len(row["x"])
        np.testing.assert_array_equal(labels[:size], row["labels"])
        np.testing.assert_array_equal(predicted[:size], 2 * row["x"] + 1)
        assert (labels[size:] == -100).all()
        assert (predicted[size:] == -100).all()
        assert len(labels) == 7


@pytest.mark.parametrize("count", [64, 66])
def test_streams_are_evaluated_and_predicted(count, tmp_path) -> None:
    rows = [row | {"remark": 1.0} for row in points(count)]
    made = trainer(tmp_path, words={"model": Line(1.5, 2.5), "compute_metrics": close})
    x, y = column(rows, "x"), column(rows, "labels")
    found = made.evaluate(Stream(rows))
    assert found["eval_loss"] == pytest.approx(np.square(1.5 * x + 2.5 - y).mean(), rel=1e-5)
    np.testing.assert_allclose(made.predict(Stream(rows)).predictions, 1.5 * x + 2.5, rtol=1e-6)


def test_training_and_evaluation_compute_the_same_loss(tmp_path) -> None:
    task = TASKS["llama"]
    torch.manual_seed(0)
    words = {"model": task.model(0.0), "train_dataset": task.rows, "data_collator": collate,
             "eval_dataset": None}  # fmt: skip
    made = trainer(tmp_path, words=words, execution="padded")
    batch = collate(task.rows[:4])
    items = (batch["labels"][:, 1:] != -100).sum()
    made.create_optimizer()
    while_training = made.training_step(made.model, dict(batch), items)
    loss, _, _ = made.prediction_step(made.model, dict(batch), prediction_loss_only=True)
    torch.testing.assert_close(while_training, loss)


def test_the_best_by_one_of_several_sets(tmp_path) -> None:
    def words():
        sets = {"near": points(16, seed=1), "far": points(16, seed=2)}
        return {"eval_dataset": sets, "compute_metrics": close}

    settings = {"eval_strategy": "epoch", "save_strategy": "epoch", "num_train_epochs": 4,
                "load_best_model_at_end": True, "learning_rate": 1.2,
                "metric_for_best_model": "eval_far_loss"}  # fmt: skip
    theirs, ours = both(tmp_path, words, **settings)
    assert log(ours) == log(theirs)
    assert ours.state.best_metric == theirs.state.best_metric
    losses = [entry["eval_far_loss"] for entry in log(ours) if "eval_far_loss" in entry]
    assert ours.evaluate()["eval_far_loss"] == min(losses) == ours.state.best_metric
    assert ours.evaluate(eval_dataset="near")["eval_loss"] == ours.evaluate()["eval_near_loss"]


@pytest.mark.parametrize(
    "settings",
    [
        {"eval_strategy": "steps", "eval_steps": 2, "eval_delay": 5},
        {"eval_strategy": "epoch", "eval_delay": 2, "num_train_epochs": 3},
        {"eval_strategy": "steps", "eval_steps": 3, "max_steps": 7},
        {"eval_strategy": "steps", "eval_steps": 0.25, "logging_steps": 0.5},
        {"eval_strategy": "steps", "logging_steps": 3},
        {"eval_on_start": True, "eval_strategy": "epoch"},
        {"eval_strategy": "epoch", "eval_use_gather_object": True},
        {"eval_strategy": "epoch", "bf16_full_eval": True},
        {"eval_strategy": "epoch", "per_device_eval_batch_size": 3, "dataloader_drop_last": True},
    ],
    ids=str,
)
def test_evaluated_when_and_as_theirs(settings, tmp_path) -> None:
    theirs, ours = both(tmp_path, lambda: {"compute_metrics": close}, **settings)
    assert log(ours) == log(theirs)
    assert any("eval_loss" in entry for entry in log(ours))


def test_evaluation_needs_rows(tmp_path) -> None:
    with pytest.raises(ValueError, match="eval_dataset"):
        trainer(tmp_path, words={"eval_dataset": None}, eval_strategy="epoch")


def test_models_that_answer_with_a_mapping(tmp_path) -> None:
    class Answers(Line):
        def forward(self, x, labels=None):
            loss, y = super().forward(x, labels)
            return {"loss": loss, "output": y}

    theirs, ours = both(tmp_path, lambda: {"model": Answers()}, eval_strategy="epoch")
    assert log(ours) == log(theirs)
    assert ours.predict(points(5)).predictions.shape == (5,)


# --- generation ----------------------------------------------------------------------------------


def test_several_sequences_for_each_row(tmp_path) -> None:
    rows = TASKS["summarization"].rows[:7]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        args = Seq2SeqTrainingArguments(
            output_dir=str(tmp_path), predict_with_generate=True, report_to="none", use_cpu=True
        )
    torch.manual_seed(0)
    made = Seq2SeqTrainer(
        model=t5(0.0), args=args, data_collator=collate,
        compute_metrics=lambda found: {"samples": len(found[0])},
    )  # fmt: skip
    for count in (3, 1):
        config = transformers.GenerationConfig(
            max_new_tokens=4, num_beams=3, num_return_sequences=count, decoder_start_token_id=0,
            pad_token_id=0, eos_token_id=1,
        )  # fmt: skip
        found = made.evaluate(eval_dataset=rows, generation_config=config)
        assert found["eval_samples"] == 7 * count


def test_a_generation_config_that_contradicts_itself_fails_early(tmp_path) -> None:
    config = transformers.GenerationConfig(do_sample=False, top_p=0.9)
    args = Seq2SeqTrainingArguments(
        output_dir=str(tmp_path), predict_with_generate=True, generation_config=config,
        report_to="none", use_cpu=True,
    )  # fmt: skip
    with pytest.raises(ValueError, match="GenerationConfig is invalid"):
        Seq2SeqTrainer(model=t5(0.0), args=args, data_collator=collate)


def test_an_encoder_with_a_decoder_is_tuned(tmp_path) -> None:
    def bert2bert(_):
        config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(
            transformers.BertConfig(**BERT),
            transformers.BertConfig(**BERT, is_decoder=True, add_cross_attention=True),
        )
        config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, 0, 2
        return transformers.EncoderDecoderModel(config)

    task = type(TASKS["summarization"])(bert2bert, TASKS["summarization"].rows, seq2seq=True)
    words = {"eval_dataset": task.rows[:3]}
    settings = {"predict_with_generate": True, "generation_max_length": 5, "max_steps": 2,
                "eval_strategy": "steps", "eval_steps": 2}  # fmt: skip
    theirs, ours = (
        train(task, tmp_path / str(t), theirs=t, words=words, **settings) for t in (True, False)
    )
    assert ours.log == theirs.log


def test_bare_evaluation_needs_no_training(tmp_path) -> None:
    made = trainer(tmp_path, words={"model": pretrained(2.0, 3.0), "train_dataset": None})
    assert made.evaluate()["eval_loss"] < 0.05
    with pytest.raises(ValueError, match="train_dataset"):
        fit(made)
