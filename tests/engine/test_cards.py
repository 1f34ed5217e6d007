"""The cards of optimizers and schedules say what torch and transformers say."""

from __future__ import annotations

import inspect

import pytest
import torch
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

from luthier.engine import cards
from luthier.registry import cards as all_cards
from luthier.spec import TrainingSpec

#: Set by the engine, or meant for captured graphs and fused kernels, which it does not use.
NOT_OFFERED = {"self", "params", "lr", "capturable", "differentiable", "fused"}
SEED_OPTIMIZERS = (
    "Adadelta Adagrad Adam AdamW SparseAdam Adamax ASGD LBFGS NAdam RAdam RMSprop Rprop SGD"
)


def test_all_thirteen_optimizers_have_a_card() -> None:
    others = {"Adafactor"}  # the finetune component's, of transformers
    names = [c.name for c in all_cards("optimizer")]
    assert [name for name in names if name not in others] == SEED_OPTIMIZERS.split()
    assert others < set(names)


@pytest.mark.parametrize("card", all_cards("optimizer"), ids=lambda c: c.name)
def test_optimizer_options_are_those_of_their_library(card) -> None:
    signature = inspect.signature(card.load().__init__)
    theirs = {n: p.default for n, p in signature.parameters.items() if n not in NOT_OFFERED}
    if card.name == "Adafactor":  # its own rate would pass over the schedule
        theirs |= {"scale_parameter": False, "relative_step": False}
    ours = {o.name: o.default for o in card.options if o.name != "layer_wise_lr_decay"}
    assert ours == theirs


@pytest.mark.parametrize("card", all_cards("scheduler"), ids=lambda c: c.name)
def test_schedule_options_are_those_of_transformers(card) -> None:
    function = torch.optim.lr_scheduler.StepLR  # of torch, where transformers has none
    if card.name != "step":
        function = TYPE_TO_SCHEDULER_FUNCTION[card.name]
    ours_to_set = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
    signature = inspect.signature(function)
    theirs = {n: p.default for n, p in signature.parameters.items() if n not in ours_to_set}
    ours = {o.name: inspect.Parameter.empty if o.required else o.default for o in card.options}
    assert ours == theirs


@pytest.mark.parametrize(
    ("words", "field"),
    [
        ({"optim": "Adm"}, "optim"),
        ({"optim_args": {"weight_decy": 1}}, "optim_args.weight_decy"),
        ({"optim_args": {"lr": 1}}, "optim_args.lr"),
        ({"optim_args": {"weight_decay": -1}}, "optim_args.weight_decay"),
        ({"optim_args": {"layer_wise_lr_decay": 1.5}}, "optim_args.layer_wise_lr_decay"),
        ({"lr_scheduler_type": "liner"}, "lr_scheduler_type"),
        ({"num_warmup_steps": 3}, "num_warmup_steps"),
        ({"num_training_steps": 3}, "num_training_steps"),
        ({"lr_scheduler_type": "linear", "num_training_steps": 0}, "num_training_steps"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_kwargs"),
        ({"optim": "SparseAdam", "max_grad_norm": 1}, "max_grad_norm"),
        ({"optim": "LBFGS", "optim_args": {"layer_wise_lr_decay": 0.9}}, "optim_args"),
    ],
)
def test_what_cannot_act_is_refused(words, field) -> None:
    assert [p.field for p in cards.problems(TrainingSpec(**words))] == [field]


def test_a_sound_schedule_has_no_problems() -> None:
    words = {"lr_scheduler_type": "linear", "num_warmup_steps": 3, "num_training_steps": 10}
    assert cards.problems(TrainingSpec(**words)) == []
