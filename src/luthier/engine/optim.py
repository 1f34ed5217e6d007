"""Optimizers and schedules: from a spec's words to torch objects that step together."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, StepLR
from transformers.optimization import get_scheduler

from luthier.engine.device import Device
from luthier.errors import Problem, SpecError
from luthier.models.towers import QUERY
from luthier.registry import find
from luthier.spec import TrainingSpec

#: Optimizers that torch also has as one pass over each parameter: the same arithmetic, five
#: times as fast on a CPU.
_FUSED = ("Adam", "AdamW", "SGD", "Adagrad")

#: A parameter, and how far it is from the bottom of the model: 0 is the token embedding.
Depths = Iterable[tuple[str, nn.Parameter, int]]


@dataclass
class Optimization:
    """One optimizer (two with SparseAdam, one more for the loss's own parameters), each with
    its schedule, stepped as one."""

    optimizers: list[Optimizer]
    schedulers: list[LRScheduler]
    per_epoch: bool
    max_grad_norm: float
    parameters: list[nn.Parameter]
    device: Device

    def __post_init__(self) -> None:
        # accelerate's wrapper unscales fp16 gradients and skips a step that overflowed. Elsewhere
        # it only looks, in each step, for a package that would need more.
        self._steppers = self.optimizers
        if not self.device.plain:
            prepare = self.device.accelerator.prepare_optimizer
            self._steppers = [prepare(optimizer) for optimizer in self.optimizers]

    def step(self, backward: Callable[[], float]) -> float:
        """Zero the gradients, call ``backward`` (which fills them and returns the loss), clip,
        step. LBFGS calls it several times; the loss returned is the first."""

        def closure() -> Tensor:
            for optimizer in self.optimizers:
                optimizer.zero_grad(set_to_none=True)
            loss = backward()
            if self.max_grad_norm:
                self.device.clip(self.parameters, self.max_grad_norm)
            losses.append(loss)
            return torch.tensor(loss)

        losses: list[float] = []
        first, *others = self._steppers
        if isinstance(self.optimizers[0], torch.optim.LBFGS):
            first.step(cast(Any, closure))  # a tensor, as torch's own examples give it
        else:
            closure()
            first.step()
        for optimizer in others:
            optimizer.step()
        return losses[0]

    def advance(self, *, epoch_ended: bool) -> None:
        """Move the schedules on, after an optimizer step or after an epoch."""
        if self.per_epoch == epoch_ended:
            for scheduler in self.schedulers:
                scheduler.step()

    @property
    def learning_rate(self) -> float:
        """The top layer's learning rate now."""
        return max(float(group["lr"]) for group in self.optimizers[0].param_groups)

    def state(self) -> dict[str, Any]:
        """Everything that must survive a crash."""
        return {
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedulers": [plain_state(scheduler.state_dict()) for scheduler in self.schedulers],
            "scaler": self._scaler.state_dict() if self._scaler else None,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of ``state``."""
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
            _lay_out_as_parameters(optimizer)
        for scheduler, saved in zip(self.schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(saved)
        if self._scaler:
            self._scaler.load_state_dict(state["scaler"])

    @property
    def _scaler(self) -> torch.amp.GradScaler | None:
        scaler: torch.amp.GradScaler | None = self.device.accelerator.scaler
        return scaler


def _lay_out_as_parameters(optimizer: Optimizer) -> None:
    """Give restored states the strides that they were made with, those of their parameters: sums
    over another layout are rounded otherwise, and files know no strides."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            like = torch.is_tensor(value) and value.shape == parameter.shape
            if like and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def plain_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """A schedule's position, without the functions that torch puts beside it."""
    return {
        key: value
        for key, value in state.items()
        if key == "lr_lambdas" or isinstance(value, int | float | list | bool | None)
    }


def build_optimization(
    training: TrainingSpec,
    depths: Depths,
    *,
    device: Device,
    total_steps: int,
    layers: int = 0,
    loss_parameters: Iterable[nn.Parameter] = (),
    loss_optimizer: str | None = None,
    loss_optimizer_options: Mapping[str, Any] | None = None,
    embedding: nn.Embedding | None = None,
    spared: Collection[str] = (),
) -> Optimization:
    """Build what a run's parameters are stepped with.

    Args:
        depths: the model's parameters; those that need no gradient are left out.
        total_steps: optimizer steps of the whole run.
        layers: the depth of the top layer; what lies above it is the head.
        loss_parameters: the loss's own, trained by ``loss_optimizer`` (default: as the model).
        embedding: the token embedding, which SparseAdam steps row by row.
        spared: names of parameters without weight decay.

    Raises:
        SpecError: nothing is trainable, or torch refuses an option's value.
    """
    trainable = [(n, p, d) for n, p, d in depths if p.requires_grad]
    own = [p for p in loss_parameters if p.requires_grad]
    if not trainable:
        raise SpecError(
            [Problem("model", "no parameter is left to train", "unfreeze, or add a head")]
        )
    groups = _of_both_sides(trainable, training, layers)
    if spared and training.optim_args.get("weight_decay"):
        groups = _without_decay(groups, {id(p) for n, p, _ in trainable if n in spared})
    optimizers = _build(
        training.optim, groups, training.learning_rate, training.optim_args, embedding
    )
    if own:
        name = loss_optimizer or ("Adam" if training.optim == "SparseAdam" else training.optim)
        options = dict(loss_optimizer_options or {})
        if loss_optimizer is None and not options:
            options = {k: v for k, v in training.optim_args.items() if k != "layer_wise_lr_decay"}
        rate = options.pop("lr", training.learning_rate)
        options.pop("layer_wise_lr_decay", None)
        optimizers += _build(name, [{"params": own, "lr": rate}], rate, options, None)
    per_epoch = training.scheduler_step == "epoch"
    schedulers = [_schedule(o, training, total_steps) for o in optimizers]
    return Optimization(
        optimizers,
        schedulers,
        per_epoch,
        training.max_grad_norm,
        [p for _, p, _ in trainable] + own,
        device,
    )


def given_optimization(
    built: Optimization,
    make: Callable[[list[nn.Parameter]], Optimizer] | None,
    schedule: tuple[Callable[[Optimizer], LRScheduler], str] | None,
) -> Optimization:
    """The same with an optimizer or a schedule of the user's own. schedule: what makes it, and
    whether it moves on each "epoch" or each "step"."""
    optimizers = built.optimizers if make is None else [make(built.parameters)]
    schedulers = built.schedulers
    per_epoch = built.per_epoch
    if schedule is not None:
        per_epoch = schedule[1] == "epoch"
        schedulers = [schedule[0](optimizer) for optimizer in optimizers]
    elif make is not None:
        schedulers = []
    return Optimization(
        optimizers, schedulers, per_epoch, built.max_grad_norm, built.parameters, built.device
    )


def _of_both_sides(
    trainable: list[tuple[str, nn.Parameter, int]], training: TrainingSpec, top: int
) -> list[dict[str, Any]]:
    """Groups of all parameters; those of the queries' tower, where there are two, with their own
    rate and decay."""
    queries = [t for t in trainable if t[0].startswith(QUERY)]
    others = [t for t in trainable if not t[0].startswith(QUERY)]
    options, rate = training.optim_args, training.query_learning_rate
    found = _groups(others, training.learning_rate, options, top)
    if not queries:
        return found
    theirs = _groups(queries, training.learning_rate if rate is None else rate, options, top)
    if training.query_weight_decay is not None:
        theirs = [{**group, "weight_decay": training.query_weight_decay} for group in theirs]
    return found + theirs


def _groups(
    trainable: list[tuple[str, nn.Parameter, int]],
    rate: float,
    options: Mapping[str, Any],
    top: int,
) -> list[dict[str, Any]]:
    """Parameter groups: one, or one a layer with ``layer_wise_lr_decay``.

    The top layer (and the head above it) has the full rate, multiplied by the decay once for
    each layer towards the bottom (Howard & Ruder 2018, section 3.1, discriminative tuning).
    """
    decay = options.get("layer_wise_lr_decay")
    if decay is None:
        return [{"params": [p for _, p, _ in trainable], "lr": rate}]
    return [
        {
            "params": [p for _, p, d in trainable if d == depth],
            "lr": rate * decay ** max(top - depth, 0),
        }
        for depth in sorted({d for _, _, d in trainable})
    ]


def _without_decay(groups: list[dict[str, Any]], spared: set[int]) -> list[dict[str, Any]]:
    """Each group in two: with the decay, and without."""
    found = []
    for group in groups:
        with_decay = [p for p in group["params"] if id(p) not in spared]
        without = [p for p in group["params"] if id(p) in spared]
        found += [{**group, "params": with_decay}] if with_decay else []
        found += [{**group, "params": without, "weight_decay": 0.0}] if without else []
    return found


def _build(
    name: str,
    groups: list[dict[str, Any]],
    rate: float,
    options: Mapping[str, Any],
    embedding: nn.Embedding | None,
) -> list[Optimizer]:
    keywords = {k: v for k, v in options.items() if k != "layer_wise_lr_decay"}
    for pair in ("betas", "etas", "step_sizes"):
        if pair in keywords:
            keywords[pair] = tuple(keywords[pair])
    try:
        if name == "SparseAdam":
            return _sparse(groups, rate, keywords, embedding)
        make = find("optimizer", name).load()
        if name in _FUSED and not keywords.keys() & {"fused", "foreach", "differentiable"}:
            keywords["fused"] = True
        if name == "Adafactor":  # its own default takes the rate for none
            keywords = {"scale_parameter": False, "relative_step": False, **keywords}
        if name == "LBFGS":
            return [make([p for g in groups for p in g["params"]], lr=rate, **keywords)]
        return [make(groups, lr=rate, **keywords)]
    except (ValueError, TypeError, RuntimeError) as error:
        raise SpecError([Problem("optim_args", f"{name} refuses: {error}")]) from error


def _sparse(
    groups: list[dict[str, Any]],
    rate: float,
    keywords: dict[str, Any],
    embedding: nn.Embedding | None,
) -> list[Optimizer]:
    """SparseAdam takes sparse gradients only, and only an embedding has those."""
    if embedding is None or not embedding.weight.requires_grad:
        message = "SparseAdam steps the rows of a token embedding; none is being trained"
        raise SpecError([Problem("optim", message, "use Adam")])
    embedding.sparse = True
    rows = [{**g, "params": [p for p in g["params"] if p is embedding.weight]} for g in groups]
    rest = [{**g, "params": [p for p in g["params"] if p is not embedding.weight]} for g in groups]
    first = torch.optim.SparseAdam([g for g in rows if g["params"]], lr=rate, **keywords)
    rest = [g for g in rest if g["params"]]
    return [first, torch.optim.Adam(rest, lr=rate, **keywords)] if rest else [first]


def _schedule(optimizer: Optimizer, training: TrainingSpec, total_steps: int) -> LRScheduler:
    if training.lr_scheduler_type == "step":
        return StepLR(optimizer, **training.lr_scheduler_kwargs)
    if training.num_training_steps != "auto":
        length = training.num_training_steps
    elif training.scheduler_step == "epoch":
        length = max(1, math.ceil(training.num_train_epochs))
    else:
        length = max(1, total_steps)
    warmup = training.num_warmup_steps or math.ceil(training.warmup_ratio * length)
    if training.lr_scheduler_type == "polynomial" and warmup >= length:
        message = f"a warm-up of {warmup} leaves nothing of {length} to decay in"
        raise SpecError([Problem("num_warmup_steps", message)])
    scheduler: LRScheduler = get_scheduler(
        training.lr_scheduler_type,
        optimizer=optimizer,
        num_warmup_steps=warmup,
        num_training_steps=length,
        scheduler_specific_kwargs=dict(training.lr_scheduler_kwargs),
    )
    return scheduler
