"""Callbacks: kept, driven in order, obeyed, remembered; and those that write elsewhere."""

import json
import logging
from collections import Counter

import pytest
from lines import both, close, fit, line, log, pretrained, trainer
from transformers import EarlyStoppingCallback, TrainerCallback
from transformers.trainer_callback import ExportableState

from conftest import Watcher


def names(made) -> list[str]:
    return [type(callback).__name__ for callback in made.callback_handler.callbacks]


class Quiet(TrainerCallback):
    """Hears nothing."""


def test_the_default_ones_are_there(tmp_path) -> None:
    for words in ({}, {"disable_tqdm": False}):
        theirs, ours = (
            names(trainer(tmp_path, theirs=t, words={"callbacks": [Quiet]}, **words))
            for t in (True, False)
        )
        assert ours == theirs
        assert ours[-1] == ("ProgressCallback" if words else "PrinterCallback")
        assert {"DefaultFlowCallback", "Quiet"} <= set(ours)


def test_added_removed_and_popped_by_class_and_by_instance(tmp_path) -> None:
    made = trainer(tmp_path)
    mine = Quiet()
    made.add_callback(mine)
    assert made.callback_handler.callbacks[-1] is mine
    assert made.pop_callback(Quiet) is mine
    assert made.pop_callback(Quiet) is None
    made.add_callback(Quiet)
    assert names(made)[-1] == "Quiet"
    made.remove_callback(Quiet)
    made.add_callback(mine)
    assert made.pop_callback(mine) is mine
    made.add_callback(mine)
    made.remove_callback(mine)
    assert "Quiet" not in names(made)


def test_one_that_comes_twice_is_warned_of(tmp_path, caplog) -> None:
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        trainer(tmp_path, words={"callbacks": [Quiet, Quiet]}, log_level="warning")
    finally:
        logger.removeHandler(caplog.handler)
    assert "Quiet" in caplog.text


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"logging_steps": 5},
        {"save_strategy": "steps", "save_steps": 3},
        {"eval_strategy": "steps", "eval_steps": 3},
        {"eval_strategy": "epoch", "save_strategy": "epoch"},
        {"save_strategy": "epoch", "max_steps": 2},
        {"logging_steps": 3, "save_strategy": "steps", "save_steps": 4, "eval_steps": 2,
         "eval_strategy": "steps", "gradient_accumulation_steps": 3, "eval_delay": 1},
    ],
    ids=str,
)  # fmt: skip
def test_events_come_in_their_order(settings, tmp_path) -> None:
    theirs, ours = both(tmp_path, lambda: {"callbacks": [Watcher()]}, **settings)
    heard = [made.pop_callback(Watcher).events for made in (theirs, ours)]
    assert heard[1] == heard[0]
    count = Counter(name for name, *_ in heard[1])
    assert count["on_train_begin"] == count["on_train_end"] == 1
    assert count["on_step_end"] == count["on_optimizer_step"] == ours.state.global_step


def test_what_callbacks_are_handed(tmp_path) -> None:
    seen = {}

    class Looks(TrainerCallback):
        def on_step_end(self, args, state, control, **words):
            seen.update(words)

        def on_log(self, args, state, control, logs=None, **words):
            seen.setdefault("logs", logs)

    made = fit(trainer(tmp_path, words={"callbacks": [Looks]}))
    assert seen["model"] is made.model
    assert seen["optimizer"] is made.optimizer
    assert seen["lr_scheduler"] is made.lr_scheduler
    assert seen["train_dataloader"].dataset is made.train_dataset
    assert set(seen["logs"]) >= {"loss", "learning_rate", "grad_norm"}


def test_one_may_stop_training(tmp_path) -> None:
    class Stops(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = state.global_step == 3
            return control

    theirs, ours = both(tmp_path, lambda: {"callbacks": [Stops]})
    assert ours.state.global_step == theirs.state.global_step == 3
    assert log(ours) == log(theirs)


def test_one_may_ask_for_log_evaluation_and_checkpoint(tmp_path) -> None:
    class Asks(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == 4:
                control.should_log = control.should_evaluate = control.should_save = True

    theirs, ours = both(tmp_path, lambda: {"callbacks": [Asks]}, logging_strategy="no")
    assert log(ours) == log(theirs)
    assert [entry["step"] for entry in log(ours) if "eval_loss" in entry] == [4]
    assert (tmp_path / "theirs-False" / "checkpoint-4").is_dir()


# --- what they remember --------------------------------------------------------------------------


class Remembers(TrainerCallback, ExportableState):
    def __init__(self, word: str = "nothing") -> None:
        self.word = word

    def state(self):
        return {"args": {"word": self.word}, "attributes": {}}


STOPS = {
    "eval_strategy": "steps", "save_strategy": "steps", "save_steps": 2, "eval_steps": 2,
    "max_steps": 2, "load_best_model_at_end": True,
    "restore_callback_states_from_checkpoint": True,
}  # fmt: skip


def resumed(tmp_path, before: list, after: list, **more):
    fit(trainer(tmp_path, words={"callbacks": before}, **STOPS))
    made = trainer(tmp_path, words={"callbacks": after}, **(STOPS | more))
    return fit(made, resume=str(tmp_path / "checkpoint-2")), made.callback_handler.callbacks


def test_what_they_remember_comes_back(tmp_path) -> None:
    before = [EarlyStoppingCallback(5, 0.2), Remembers("one"), Quiet(), Remembers("two")]
    after = [Remembers(), EarlyStoppingCallback(), Quiet(), Remembers()]
    _, found = resumed(tmp_path, before, after)
    stopping = next(c for c in found if isinstance(c, EarlyStoppingCallback))
    assert (stopping.early_stopping_patience, stopping.early_stopping_threshold) == (5, 0.2)
    assert [c.word for c in found if isinstance(c, Remembers)] == ["one", "two"]
    assert any(isinstance(c, Quiet) for c in found)
    # Nothing was left to do, so nothing was written anew.
    state = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["TrainerControl"]["args"]["should_training_stop"]
    assert len(state["stateful_callbacks"]["Remembers"]) == 2


def test_one_that_is_gone_is_warned_of(tmp_path, caplog) -> None:
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        resumed(tmp_path, [Remembers("one")], [], log_level="warning")
    finally:
        logger.removeHandler(caplog.handler)
    assert "Remembers" in caplog.text


def test_early_stopping(tmp_path) -> None:
    settings = {"num_train_epochs": 20, "eval_strategy": "epoch", "save_strategy": "epoch",
                "per_device_train_batch_size": 16, "metric_for_best_model": "close"}  # fmt: skip

    def words():
        return {"callbacks": [EarlyStoppingCallback(1, 1e-4)], "compute_metrics": close}

    theirs, ours = both(tmp_path, words, load_best_model_at_end=True, **settings)
    assert log(ours) == log(theirs)
    assert line(ours) == line(theirs)
    assert ours.state.global_step < 80
    # The best is known also where it is not loaded.
    found = fit(trainer(tmp_path / "unloaded", words=words(), **settings))
    assert found.state.best_model_checkpoint.endswith(f"checkpoint-{found.state.best_global_step}")
    # It needs a metric to look at.
    with pytest.raises(AssertionError, match="metric_for_best_model"):
        fit(trainer(tmp_path / "none", words=words()))


# --- those that show and write -------------------------------------------------------------------


def test_progress_is_shown(tmp_path, capsys) -> None:
    fit(trainer(tmp_path, disable_tqdm=False, eval_strategy="epoch", max_steps=8))
    shown = capsys.readouterr()
    assert "8/8" in shown.err
    assert "'loss'" in shown.out + shown.err
    fit(trainer(tmp_path, max_steps=1))
    assert "'train_loss'" in capsys.readouterr().out


def test_tensorboard_is_written(tmp_path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = {"report_to": "tensorboard", "logging_dir": str(tmp_path / "board")}
    words = {"model": pretrained()}
    made = fit(trainer(tmp_path / "out", words=words, eval_strategy="epoch", **settings))
    board = EventAccumulator(str(tmp_path / "board")).Reload()
    written = [(event.step, event.value) for event in board.Scalars("train/loss")]
    wanted = [(e["step"], e["loss"]) for e in log(made) if "loss" in e]
    assert [step for step, _ in written] == [step for step, _ in wanted]
    assert [v for _, v in written] == pytest.approx([v for _, v in wanted], rel=1e-6)
    assert len(board.Scalars("eval/loss")) == 2
    (arguments,) = board.Tensors("args/text_summary")[0].tensor_proto.string_val
    assert b"learning_rate" in arguments


def test_mlflow_is_written(tmp_path, monkeypatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "runs").as_uri())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "lines")
    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    mlflow.set_tracking_uri((tmp_path / "runs").as_uri())
    try:
        words = {"model": pretrained()}
        made = fit(trainer(tmp_path / "out", words=words, report_to="mlflow", run_name="first"))
        mlflow.flush_async_logging()
        client = mlflow.MlflowClient()
        experiment = client.get_experiment_by_name("lines")
        (run,) = client.search_runs([experiment.experiment_id])
        assert run.info.run_name == "first"
        assert run.info.status == "FINISHED"
        assert run.data.params["learning_rate"] == "0.1"
        losses = client.get_metric_history(run.info.run_id, "loss")
        wanted = [(e["step"], e["loss"]) for e in log(made) if "loss" in e]
        assert sorted((m.step, m.value) for m in losses) == wanted  # it writes in the background
    finally:
        mlflow.set_tracking_uri(before)
