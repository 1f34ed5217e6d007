"""Training itself: accumulation, precision, what is logged and counted, and what is refused."""

import logging
import math
import sys
import warnings

import numpy as np
import pytest
import torch
from lines import Line, both, fit, line, log, points, pretrained, trainer
from torch import nn
from transformers import TrainerCallback

from conftest import TASKS, collate, train
from luthier.errors import LuthierError, OutOfMemory
from luthier.search import loguniform
from luthier.trainer.trainer import Trainer

TASK, WORDS = TASKS["classification"], TASKS["causal language modelling"]


def heard(caplog, run, **settings) -> str:
    """What transformers and the trainer log meanwhile."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.addHandler(caplog.handler)
    caplog.set_level(1)
    try:
        run(**settings)
    finally:
        logger.removeHandler(caplog.handler)
        logger.setLevel(level)
    text = caplog.text
    caplog.clear()
    return text


# --- accumulation --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("how", ["counted", "uncounted", "of one's own"])
def test_accumulated_is_as_one_batch(how, size, tmp_path) -> None:
    """Losses are divided by the items of the whole step, whose batches have unlike lengths."""

    def mine(outputs, labels, num_items_in_batch=None):
        logits = outputs.logits[:, :-1].flatten(0, 1)
        total = nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum")
        return total / num_items_in_batch

    class Uncounted(Trainer):
        def __init__(self, **words):
            super().__init__(**words)
            self.model_accepts_loss_kwargs = False

    words = {"train_dataset": WORDS.rows[:16]}
    words |= {"compute_loss_func": mine} if how == "of one's own" else {}
    runs = [
        train(
            WORDS, tmp_path, dropout=0.0, words=words, max_steps=3, max_grad_norm=0.0,
            trainer=Uncounted if how == "uncounted" else None, learning_rate=1e-4,
            per_device_train_batch_size=each, gradient_accumulation_steps=8 // each,
            execution="padded",
        )
        for each in (8, size)
    ]  # fmt: skip
    tolerance = 0.1 if how == "uncounted" else 1e-4
    np.testing.assert_allclose(runs[1].losses, runs[0].losses, rtol=tolerance)
    norms = [[e["grad_norm"] for e in run.log if "grad_norm" in e] for run in runs]
    np.testing.assert_allclose(norms[1], norms[0], rtol=0.3 if how == "uncounted" else 1e-3)


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("count", [61, 60])
def test_each_step_gets_its_batches(count, epochs, tmp_path) -> None:
    """And a subclass may have a word in it, as in transformers."""
    asked = []

    class Asks(Trainer):
        def get_batch_samples(self, epoch_iterator, num_batches, device):
            found, items = super().get_batch_samples(epoch_iterator, num_batches, device)
            asked.append((num_batches, len(found)))
            return found, items

    words = {"train_dataset": points(count)}
    made = fit(trainer(tmp_path, kind=Asks, words=words, per_device_train_batch_size=4,
                       gradient_accumulation_steps=5, num_train_epochs=epochs))  # fmt: skip
    assert all(wanted == got for wanted, got in asked)
    assert sum(got for _, got in asked) == len(made.get_train_dataloader()) * epochs
    assert len(asked) == made.state.global_step


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"num_train_epochs": 3}, 12),
        ({"num_train_epochs": 1.5}, 6),
        ({"max_steps": 10}, 10),
        ({"max_steps": 3, "gradient_accumulation_steps": 5}, 3),
        ({"num_train_epochs": 3, "gradient_accumulation_steps": 5}, 3),
    ],
    ids=str,
)
def test_numbers_of_steps(settings, steps, tmp_path) -> None:
    theirs, ours = both(tmp_path, **settings)
    assert ours.state.global_step == theirs.state.global_step == steps
    assert log(ours) == log(theirs)
    assert ours.state.epoch == theirs.state.epoch
    assert ours.state.max_steps == theirs.state.max_steps


# --- what is logged ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [{"logging_steps": 3}, {"logging_steps": 3, "logging_first_step": True},
     {"logging_strategy": "epoch"}, {"logging_strategy": "no"}, {"logging_steps": 0.3}],
    ids=str,
)  # fmt: skip
def test_the_log(settings, tmp_path) -> None:
    theirs, ours = both(tmp_path, **settings)
    every = fit(trainer(tmp_path / "every"))
    assert log(ours) == log(theirs)
    assert log(ours)[-1]["train_loss"] == pytest.approx(log(every)[-1]["train_loss"])
    assert set(ours.state.log_history[-1]) >= {"train_runtime", "train_steps_per_second"}


def test_losses_that_are_no_numbers(tmp_path) -> None:
    def words():
        return {"model": Line(), "train_dataset": points()}

    for filtered in (True, False):
        settings = {"learning_rate": 1e30, "optim": "sgd", "max_grad_norm": 0.0,
                    "logging_nan_inf_filter": filtered}  # fmt: skip
        theirs, ours = both(tmp_path / str(filtered), words, **settings)
        losses = [entry["loss"] for entry in log(ours) if "loss" in entry]
        assert str(log(ours)) == str(log(theirs))
        assert all(map(math.isfinite, losses)) == filtered


def test_how_much_is_told(tmp_path, caplog) -> None:
    def run(**settings):
        fit(trainer(tmp_path, max_steps=1, **settings))

    assert "Running training" in heard(caplog, run, log_level="debug")
    assert "Running training" in heard(caplog, run, log_level="info")
    assert "Running training" not in heard(caplog, run, log_level="error")


@pytest.mark.parametrize("skipped", [True, False])
def test_memory(skipped, tmp_path) -> None:
    made = trainer(tmp_path, skip_memory_metrics=skipped, max_steps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = made.train().metrics
    assert ("train_mem_cpu_alloc_delta" in found) != skipped
    assert ("init_mem_cpu_alloc_delta" in found) != skipped
    assert ("eval_mem_cpu_alloc_delta" in made.evaluate()) != skipped
    assert ("test_mem_cpu_alloc_delta" in made.predict(points(4)).metrics) != skipped


@pytest.mark.parametrize("counted", ["all", True, "non_padding", "no"])
def test_tokens_are_counted(counted, tmp_path) -> None:
    settings = {"include_num_input_tokens_seen": counted, "num_train_epochs": 1}
    theirs, ours = (
        train(TASK, tmp_path / str(t), theirs=t, **settings).trainer.state for t in (True, False)
    )
    assert ours.num_input_tokens_seen == theirs.num_input_tokens_seen
    lengths = sum(len(row["input_ids"]) for row in TASK.rows)
    if counted == "non_padding":
        assert ours.num_input_tokens_seen == lengths
    else:
        assert (ours.num_input_tokens_seen > lengths) == (counted != "no")


def test_operations_are_counted(tmp_path) -> None:
    theirs, ours = (train(TASK, tmp_path / str(t), theirs=t).trainer for t in (True, False))
    assert ours.state.total_flos == theirs.state.total_flos > 0
    assert isinstance(fit(trainer(tmp_path)).state.total_flos, float)


# --- seeds, models and arguments -----------------------------------------------------------------


def test_a_seed_makes_it_the_same_again(tmp_path) -> None:
    def words():
        return {"model_init": lambda: Line(torch.randn(()).item())}

    found = [line(fit(trainer(tmp_path, words=words(), seed=seed))) for seed in (42, 42, 314)]
    assert found[0] == found[1] != found[2]
    made = fit(trainer(tmp_path, words=words()))
    made.args.seed = 314
    assert line(fit(made)) == found[2]


def test_a_way_to_make_models_may_be_given_the_trial(tmp_path) -> None:
    made = fit(trainer(tmp_path, words={"model_init": lambda trial: Line(1.0)}, max_steps=1))
    assert isinstance(made.model, Line)
    with pytest.raises(RuntimeError, match="0 or 1 argument"):
        trainer(tmp_path, words={"model_init": lambda one, two: Line()})
    with pytest.raises(RuntimeError, match="not return None"):
        trainer(tmp_path, words={"model_init": lambda: None})


def test_trained_twice_it_is_wrapped_once_and_its_arguments_are_as_they_were(tmp_path) -> None:
    made = trainer(tmp_path)
    before = made.args.to_dict()
    fit(made)
    wrapped = made.model_wrapped
    fit(made)
    assert made.model_wrapped is wrapped
    assert made.args.to_dict() == before


def test_precision(tmp_path) -> None:
    theirs, ours = both(tmp_path, bf16=True)
    assert log(ours) == log(theirs)
    assert line(ours) == line(theirs)
    plain, half = (train(TASK, tmp_path, dropout=0.0, bf16=b, max_steps=4) for b in (False, True))
    assert plain.losses != half.losses
    np.testing.assert_allclose(half.losses, plain.losses, rtol=0.05)
    assert next(half.trainer.model.parameters()).dtype == torch.float32


def test_noisy_embeddings_are_quiet_again_afterwards(tmp_path) -> None:
    made = train(WORDS, tmp_path, neftune_noise_alpha=5.0, max_steps=2).trainer
    embeddings = made.model.get_input_embeddings()
    assert not embeddings._forward_hooks
    plain = train(WORDS, tmp_path, max_steps=2)
    noisy = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    assert noisy != plain.losses


def test_compiled(tmp_path) -> None:
    settings = {"torch_compile": True, "torch_compile_backend": "eager", "eval_strategy": "epoch"}
    theirs, ours = both(tmp_path, **settings)
    assert log(ours) == log(theirs)
    assert ours.model_wrapped is not ours.model
    assert ours.execution_calls == {}


@pytest.mark.slow
@pytest.mark.parametrize("task", [TASK, TASKS["llama"]], ids=["encoder", "decoder"])
def test_compiled_and_packed(task, tmp_path) -> None:
    settings = {"max_steps": 2, "torch_compile": True, "torch_compile_backend": "eager"}
    plain = train(task, tmp_path, dropout=0.0, max_steps=2)
    compiled = train(task, tmp_path, dropout=0.0, **settings)
    np.testing.assert_allclose(compiled.losses, plain.losses, rtol=1e-4)


def test_checkpointed_activations(tmp_path) -> None:
    plain, saving = (
        train(TASK, tmp_path / str(g), gradient_checkpointing=g, max_steps=3) for g in (False, True)
    )
    assert saving.losses == plain.losses


def test_special_tokens_are_aligned_when_training_begins(tmp_path) -> None:
    from luthier.testing.models import wordpiece_tokenizer

    tokenizer = wordpiece_tokenizer(120, 32)
    tokenizer.eos_token = tokenizer.bos_token = "[SEP]"
    made = [
        train(WORDS, tmp_path / str(t), theirs=t, words={"processing_class": tokenizer},
              max_steps=1).trainer.model.config
        for t in (True, False)
    ]  # fmt: skip
    assert made[1].eos_token_id == tokenizer.eos_token_id == made[0].eos_token_id
    assert made[1].pad_token_id == tokenizer.pad_token_id


def test_overflows_are_watched_where_that_is_asked(tmp_path) -> None:
    class Breaks(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(1, 1)

        def forward(self, x, labels=None):
            return {"loss": self.linear(x[:, None] * float("inf")).sum()}

    words = {"model": Breaks()}
    with pytest.raises(ValueError, match="inf/nan"):
        fit(trainer(tmp_path, words=words, debug="underflow_overflow"))


def test_memory_is_returned_every_so_many_steps(tmp_path) -> None:
    theirs, ours = both(tmp_path, torch_empty_cache_steps=2)
    assert log(ours) == log(theirs)


def test_a_batch_that_does_not_fit_goes_in_pieces(tmp_path) -> None:
    """Theirs starts anew with nine tenths of the batch; ours keeps the batch, and the place."""

    class Tight(Line):
        def forward(self, x, labels=None):
            if self.training and len(x) > 5:
                raise RuntimeError("CUDA out of memory.")
            return super().forward(x, labels)

    roomy = fit(trainer(tmp_path))
    words = {"model": Tight()}
    made = fit(trainer(tmp_path, words=words, auto_find_batch_size=True, save_strategy="epoch"))
    assert line(made) == pytest.approx(line(roomy), rel=1e-5)
    assert made.state.global_step == roomy.state.global_step
    again = trainer(tmp_path, words={"model": Tight()}, auto_find_batch_size=True)
    fit(again, resume=str(tmp_path / "checkpoint-4"))
    assert line(again) == line(made)


class Greedy(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        raise RuntimeError("CUDA out of memory.")


def test_a_lack_of_memory_outside_of_a_step_is_told_at_once(tmp_path) -> None:
    calls = []

    class Tight(Line):
        def forward(self, x, labels=None):
            calls.append(self.training)
            if not self.training:
                raise RuntimeError("CUDA out of memory.")
            return super().forward(x, labels)

    settings = {"auto_find_batch_size": True, "eval_strategy": "epoch"}
    with pytest.raises(RuntimeError, match="reduce `per_device_eval_batch_size`"):
        fit(trainer(tmp_path, words={"model": Tight()}, **settings))
    assert calls == [True] * 4 + [False]  # nothing was begun anew
    words = {"model": Tight(), "callbacks": [Greedy()]}
    with pytest.raises(OutOfMemory, match="in a callback"):
        fit(trainer(tmp_path, words=words, **settings))
    assert len(calls) == 6


# --- what is refused -----------------------------------------------------------------------------


def test_a_hub_that_cannot_be_reached(tmp_path) -> None:
    with pytest.raises(LuthierError, match="push_to_hub"):
        trainer(tmp_path, words={"model": pretrained()}, push_to_hub=True)
    made = trainer(tmp_path, words={"model": pretrained()})
    with pytest.raises(LuthierError, match="push_to_hub"):
        made.push_to_hub()


def fresh():
    return Line()


def space(trial):
    return {"learning_rate": trial.suggest_float("learning_rate", 0.01, 1.0, log=True)}


def test_a_search_needs_its_package(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.setattr("transformers.hyperparameter_search.is_optuna_available", lambda: False)
    made = trainer(tmp_path, words={"model_init": fresh}, eval_strategy="epoch")
    with pytest.raises(RuntimeError, match="optuna"):
        made.hyperparameter_search(space, n_trials=2, backend="optuna")


def test_a_search_finds_the_better_rate(tmp_path) -> None:
    settings = {"eval_strategy": "steps", "eval_steps": 4, "save_strategy": "steps"}
    made = trainer(tmp_path, words={"model_init": fresh}, max_steps=4, save_steps=4, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        best = made.hyperparameter_search(
            space, lambda metrics: metrics["eval_loss"], n_trials=3, direction="minimize"
        )
    assert set(best.hyperparameters) == {"learning_rate"}
    assert {p.name for p in tmp_path.glob("run-*")} == {"run-0", "run-1", "run-2"}
    assert (tmp_path / f"run-{best.run_id}" / "checkpoint-4").is_dir()


def test_ranges_are_searched_and_the_seed_says_which_values(tmp_path) -> None:
    """The categories of a choice come back as they were given, and never their places."""
    ranges = {"learning_rate": loguniform(0.01, 1.0), "lr_scheduler_type": ["linear", "cosine"]}

    def found(name: str, seed: int) -> list[float]:
        tried: list[float] = []

        def objective(metrics: dict[str, float]) -> float:
            tried.append(made.args.learning_rate)
            assert made.args.lr_scheduler_type in ("linear", "cosine")
            return metrics["eval_loss"]

        settings = {"eval_strategy": "steps", "eval_steps": 2, "seed": seed}
        made = trainer(tmp_path / name, words={"model_init": fresh}, max_steps=2, **settings)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            best = made.hyperparameter_search(ranges, objective, n_trials=2)
        assert best.hyperparameters["learning_rate"] in tried
        assert best.hyperparameters["lr_scheduler_type"] in ("linear", "cosine")
        return tried

    first = found("first", 1)
    assert found("again", 1) == first
    assert found("other", 2) != first
    with pytest.raises(LuthierError, match="did you mean 'learning_rate'"):
        trainer(tmp_path, words={"model_init": fresh}).hyperparameter_search({"learning_rat": [1]})


def test_words_that_a_trainer_does_not_know(tmp_path) -> None:
    with pytest.raises(TypeError, match="data_collater"):
        trainer(tmp_path, words={"data_collater": collate})
    with pytest.raises(TypeError, match="resume_from"):
        trainer(tmp_path).train(resume_from="checkpoint-1")
    unlabelled = [{"input_ids": row["input_ids"]} for row in TASK.rows]
    with pytest.raises(ValueError, match="did not return a loss"):
        train(TASK, tmp_path, words={"train_dataset": unlabelled})
