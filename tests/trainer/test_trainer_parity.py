"""Beside transformers' trainer: the same losses, rates, metrics, events and weights."""

import numpy as np
import pytest
import torch

from conftest import TASKS, accuracy, train
from luthier.trainer.arguments import ArgumentsError

SETTINGS = {
    "num_train_epochs": 2.5,
    "gradient_accumulation_steps": 2,
    "eval_strategy": "epoch",
    "warmup_steps": 2,
    "weight_decay": 0.1,
}


def beside(task, tmp_path, words=None, **settings):
    return [
        train(task, tmp_path / str(theirs), theirs=theirs, words=words, **settings)
        for theirs in (True, False)
    ]


def assert_same(peer, ours) -> None:
    assert len(peer.log) > 3
    assert ours.log == peer.log
    assert ours.events == peer.events
    assert ours.output.training_loss == peer.output.training_loss
    for name, weight in peer.weights.items():
        assert torch.equal(ours.weights[name], weight), name


@pytest.mark.parametrize("name", TASKS)
def test_bit_for_bit_by_default(name, tmp_path) -> None:
    """With dropout, accumulation, a part of an epoch and evaluations in between."""
    task = TASKS[name]
    words = {"eval_dataset": task.rows[:6], "compute_metrics": accuracy}
    dropout = 0.1
    peer, ours = beside(task, tmp_path, words, dropout=dropout, **SETTINGS)
    if name == "llama":  # no dropout: packed, so equal up to rounding
        assert ours.trainer.execution_calls["packed"] > 0
        np.testing.assert_allclose(ours.losses, peer.losses, rtol=2e-5)
    else:
        assert_same(peer, ours)


@pytest.mark.parametrize(
    "settings",
    [
        {"lr_scheduler_type": kind, "lr_scheduler_kwargs": words}
        for kind, words in {
            "cosine": {},
            "cosine_with_restarts": {"num_cycles": 2},
            "polynomial": {"power": 2.0},
            "constant": {},
            "constant_with_warmup": {},
            "inverse_sqrt": {},
            "cosine_with_min_lr": {"min_lr": 1e-4},
        }.items()
    ]
    + [
        {"lr_scheduler_type": "reduce_lr_on_plateau", "lr_scheduler_kwargs": {"patience": 0}},
        {"optim": "sgd"},
        {"optim": "adafactor"},
        {"optim": "adamw_torch", "adam_beta1": 0.8, "adam_beta2": 0.9, "adam_epsilon": 1e-6},
        {"label_smoothing_factor": 0.2},
        {"neftune_noise_alpha": 5.0},
        {"max_grad_norm": 0.1},
        {"max_steps": 7},
        {"dataloader_drop_last": True},
        {"train_sampling_strategy": "sequential"},
        {"data_seed": 7},
        {"logging_strategy": "epoch"},
        {"eval_strategy": "steps", "eval_steps": 0.4},
        {"eval_accumulation_steps": 1, "eval_delay": 1},
        {"eval_on_start": True},
        {"gradient_checkpointing": True},
        {"bf16": True},
        {"logging_first_step": True, "logging_steps": 3},
        {"include_num_input_tokens_seen": "all"},
        {"full_determinism": False, "seed": 3},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_settings_act_as_theirs(settings, tmp_path) -> None:
    task = TASKS["classification"]
    words = {"eval_dataset": task.rows[:6], "compute_metrics": accuracy}
    assert_same(*beside(task, tmp_path, words, **(SETTINGS | settings)))


@pytest.mark.parametrize(
    "name", ["classification", "token classification", "causal language modelling", "llama"]
)
def test_packed_gives_the_same_losses(name, tmp_path) -> None:
    peer, ours = beside(TASKS[name], tmp_path, dropout=0.0, **SETTINGS | {"eval_strategy": "no"})
    calls = ours.trainer.execution_calls
    assert sum(calls.values()) == 16  # batches, some of which happen to need no padding
    assert calls["packed"] > 12
    np.testing.assert_allclose(ours.losses, peer.losses, rtol=5e-5)
    assert [e["learning_rate"] for e in ours.log if "learning_rate" in e] == [
        e["learning_rate"] for e in peer.log if "learning_rate" in e
    ]


def test_packed_with_dropout_is_asked_for_by_name(tmp_path) -> None:
    task = TASKS["classification"]
    ours = train(task, tmp_path, execution="packed")
    assert ours.trainer.execution_calls["packed"] > len(ours.losses) / 2
    assert np.isfinite(ours.losses).all()


def test_a_loss_that_reads_padding_runs_plainly(tmp_path) -> None:
    task = TASKS["question answering"]
    peer, ours = beside(task, tmp_path, dropout=0.0)
    assert ours.trainer.execution_calls == {}
    assert_same(peer, ours)
    with pytest.raises(ArgumentsError, match="execution: cannot be packed: the loss of a packed"):
        train(task, tmp_path, dropout=0.0, execution="packed")


def test_generates_where_it_evaluates(tmp_path) -> None:
    task = TASKS["translation"]
    words = {"eval_dataset": task.rows[:6], "compute_metrics": accuracy}
    settings = {"predict_with_generate": True, "generation_max_length": 8} | SETTINGS
    peer, ours = beside(task, tmp_path, words, **settings)
    assert_same(peer, ours)
    found = [run.trainer.predict(task.rows[:4]).predictions for run in (peer, ours)]
    np.testing.assert_array_equal(*found)
