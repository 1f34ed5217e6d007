"""Optimizers and schedules as the spec words them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from luthier.engine.device import Device
from luthier.engine.optim import build_optimization
from luthier.errors import SpecError
from luthier.models.loading import load_text_model
from luthier.registry import cards
from luthier.spec import ModelSpec, TrainingSpec

CPU = Device("cpu", "fp32")


def quadratic(optim: str, **words):
    """Steps on sum((x - 1)²) until it should be near its end."""
    torch.manual_seed(0)
    table = nn.Embedding(1, 4)
    other = nn.Parameter(torch.zeros(2))
    parameters = [("table", table.weight, 0), ("other", other, 1)]
    spec = TrainingSpec(optim=optim, learning_rate=words.pop("learning_rate", 0.1), **words)
    optimization = build_optimization(
        spec, parameters, device=CPU, total_steps=100, embedding=table
    )

    def backward() -> float:
        loss = ((table(torch.tensor([0])) - 1) ** 2).sum() + ((other - 1) ** 2).sum()
        loss.backward()
        return loss.item()

    return [optimization.step(backward) for _ in range(60)], optimization


@pytest.mark.parametrize("card", cards("optimizer"), ids=lambda c: c.name)
def test_every_optimizer_descends(card) -> None:
    rate = {"Adadelta": 100.0, "Adagrad": 0.5}.get(card.name, 0.1)
    losses, _ = quadratic(card.name, learning_rate=rate)
    assert losses[-1] < 0.2 * losses[0]


def test_sparse_adam_steps_only_the_rows_that_occur() -> None:
    table = nn.Embedding(3, 2)
    before = table.weight.detach().clone()
    spec = TrainingSpec(optim="SparseAdam", learning_rate=0.1)
    optimization = build_optimization(
        spec, [("table", table.weight, 0)], device=CPU, total_steps=1, embedding=table
    )

    def backward() -> float:
        loss = table(torch.tensor([1])).sum()
        loss.backward()
        return loss.item()

    optimization.step(backward)
    changed = (table.weight.detach() != before).any(dim=1).tolist()
    assert changed == [False, True, False]


def test_sparse_adam_without_an_embedding_is_refused() -> None:
    with pytest.raises(SpecError, match="use Adam"):
        build_optimization(
            TrainingSpec(optim="SparseAdam"),
            [("x", nn.Parameter(torch.zeros(1)), 0)],
            device=CPU,
            total_steps=1,
        )


def test_a_value_that_torch_refuses_is_a_spec_error() -> None:
    with pytest.raises(SpecError, match="momentum"):
        quadratic("SGD", optim_args={"momentum": -1})


@pytest.mark.parametrize("output_dim", [None, 8])
def test_layer_wise_decay_falls_from_the_top_layer_down(tiny_model, output_dim) -> None:
    """Top layer and head at the full rate, times the decay once a layer towards the bottom."""
    model = load_text_model(
        ModelSpec(name=str(tiny_model), output_dim=output_dim), artifact=None, device="cpu"
    )
    spec = TrainingSpec(learning_rate=1.0, optim_args={"layer_wise_lr_decay": 0.5})
    optimization = build_optimization(
        spec, model.depths(), device=CPU, total_steps=1, layers=model.layers
    )
    rates = {
        id(p): group["lr"]
        for group in optimization.optimizers[0].param_groups
        for p in group["params"]
    }
    layers = model.layers
    for name, parameter, depth in model.depths():
        if parameter.requires_grad:  # an unused pooler does not
            assert rates[id(parameter)] == 0.5 ** max(layers - depth, 0), name
    assert optimization.learning_rate == 1.0
    assert min(rates.values()) == 0.5**layers


def test_the_schedule_goes_by_batch_or_by_epoch() -> None:
    def rates(**words):
        _, optimization = quadratic("SGD", lr_scheduler_type="linear", **words)
        found = []
        for step in range(4):
            found.append(optimization.learning_rate)
            optimization.advance(epoch_ended=False)
            if step % 2:
                optimization.advance(epoch_ended=True)
        return found

    by_batch = rates(num_training_steps=4)
    assert by_batch == pytest.approx([0.1, 0.075, 0.05, 0.025])
    by_epoch = rates(num_training_steps=2, scheduler_step="epoch")
    assert by_epoch == pytest.approx([0.1, 0.1, 0.05, 0.05])
    warm = rates(num_training_steps=4, num_warmup_steps=2)
    assert warm == pytest.approx([0, 0.05, 0.1, 0.05])


def test_a_warm_up_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(SpecError, match="leaves nothing"):
        quadratic("SGD", lr_scheduler_type="polynomial", num_warmup_steps=100)


def test_clipping_bounds_the_gradient() -> None:
    weight = nn.Parameter(torch.zeros(4))
    spec = TrainingSpec(optim="SGD", learning_rate=1.0, max_grad_norm=0.5)
    optimization = build_optimization(spec, [("w", weight, 0)], device=CPU, total_steps=1)

    def backward() -> float:
        loss = (100 * weight).sum()
        loss.backward()
        return loss.item()

    optimization.step(backward)
    assert math.isclose(weight.detach().norm().item(), 0.5, rel_tol=1e-4)


@pytest.mark.parametrize("factor", [1e-3, 0.1249, 0.125, 0.1251, 100.0, math.nan, math.inf])
def test_clipping_is_torchs_bit_for_bit(factor: float) -> None:
    """Below the norm, where nothing is multiplied; at it, above it; and what is no number."""
    ours = [nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4)), nn.Parameter(torch.ones(2))]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    for parameters in (ours, theirs):
        for number, parameter in enumerate(parameters[:2]):  # the third has no gradient
            parameter.grad = torch.arange(4.0) * 0.1 * number + factor
    CPU.clip(ours, 0.5)
    nn.utils.clip_grad_norm_(theirs, 0.5)
    for one, other in zip(ours, theirs, strict=True):
        if other.grad is None:
            assert one.grad is None
        else:
            assert torch.equal(one.grad.isnan(), other.grad.isnan())
            assert torch.equal(one.grad.nan_to_num(7), other.grad.nan_to_num(7))


def test_the_loss_has_an_optimizer_of_its_own() -> None:
    model, centre = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimization = build_optimization(
        TrainingSpec(optim="Adam", learning_rate=0.1),
        [("m", model, 0)],
        device=CPU,
        total_steps=1,
        loss_parameters=[centre],
        loss_optimizer="SGD",
        loss_optimizer_options={"momentum": 0.9},
    )
    kinds = [type(o).__name__ for o in optimization.optimizers]
    assert kinds == ["Adam", "SGD"]
    assert optimization.optimizers[1].defaults["momentum"] == 0.9
