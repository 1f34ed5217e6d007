"""The optimizers and learning-rate schedules that a spec can name. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.errors import LuthierError, Problem
from luthier.registry import Card, Option, find
from luthier.spec import TrainingSpec

_BETAS, _EPS, _DECAY = ("betas", (0.9, 0.999)), ("eps", 1e-8), ("weight_decay", 0)
_SHARED = ("maximize", False), ("foreach", None)

#: torch.optim class → its options and their defaults, without those that the engine sets.
_OPTIMIZERS: dict[str, tuple[tuple[str, Any], ...]] = {
    "Adadelta": (("rho", 0.9), ("eps", 1e-6), _DECAY, *_SHARED),
    "Adagrad": (
        ("lr_decay", 0),
        _DECAY,
        ("initial_accumulator_value", 0),
        ("eps", 1e-10),
        *_SHARED,
    ),
    "Adam": (_BETAS, _EPS, _DECAY, ("amsgrad", False), ("decoupled_weight_decay", False), *_SHARED),
    "AdamW": (_BETAS, _EPS, ("weight_decay", 1e-2), ("amsgrad", False), *_SHARED),
    "SparseAdam": (_BETAS, _EPS, ("maximize", False)),
    "Adamax": (_BETAS, _EPS, _DECAY, *_SHARED),
    "ASGD": (("lambd", 1e-4), ("alpha", 0.75), ("t0", 1e6), _DECAY, *_SHARED),
    "LBFGS": (
        ("max_iter", 20),
        ("max_eval", None),
        ("tolerance_grad", 1e-7),
        ("tolerance_change", 1e-9),
        ("history_size", 100),
        ("line_search_fn", None),
    ),
    "NAdam": (
        _BETAS,
        _EPS,
        _DECAY,
        ("momentum_decay", 4e-3),
        ("decoupled_weight_decay", False),
        *_SHARED,
    ),
    "RAdam": (_BETAS, _EPS, _DECAY, ("decoupled_weight_decay", False), *_SHARED),
    "RMSprop": (
        ("alpha", 0.99),
        _EPS,
        _DECAY,
        ("momentum", 0),
        ("centered", False),
        *_SHARED,
    ),
    "Rprop": (("etas", (0.5, 1.2)), ("step_sizes", (1e-6, 50)), *_SHARED),
    "Adafactor": (
        ("eps", (1e-30, 1e-3)),
        ("clip_threshold", 1.0),
        ("decay_rate", -0.8),
        ("beta1", None),
        _DECAY,
        ("scale_parameter", False),
        ("relative_step", False),
        ("warmup_init", False),
    ),
    "SGD": (("momentum", 0), ("dampening", 0), _DECAY, ("nesterov", False), *_SHARED),
}

#: Optimizers that are not torch's.
_ELSEWHERE = {"Adafactor": "transformers.optimization:Adafactor"}

_SUMMARIES = {
    "Adafactor": "transformers' Adafactor, with the learning rate of the schedule",
    "SparseAdam": "lazy Adam for the rows of the token embedding; Adam for all else",
    "LBFGS": "quasi-Newton; evaluates a batch several times a step",
}

#: Schedule → the options it takes beside warm-up and length (transformers' names and defaults).
_SCHEDULES: dict[str, tuple[tuple[str, Any], ...]] = {
    "constant": (),
    "constant_with_warmup": (),
    "linear": (),
    "cosine": (("num_cycles", 0.5),),
    "cosine_with_restarts": (("num_cycles", 1),),
    "polynomial": (("lr_end", 1e-7), ("power", 1.0)),
    "inverse_sqrt": (("timescale", None),),
    "cosine_with_min_lr": (("num_cycles", 0.5), ("min_lr", None), ("min_lr_rate", None)),
}

#: torch's, beside transformers': it has neither warm-up nor end.
_STEP = Card(
    "scheduler",
    "step",
    "torch.optim.lr_scheduler:StepLR",
    "times gamma after every step_size steps",
    (Option("step_size", required=True), Option("gamma", 0.1)),
)

_LAYER_WISE = Option("layer_wise_lr_decay", None, "factor in (0, 1] a layer towards the bottom")

CARDS: tuple[Card, ...] = (
    *(
        Card(
            "optimizer",
            name,
            _ELSEWHERE.get(name, f"torch.optim:{name}"),
            _SUMMARIES.get(name, f"torch.optim.{name}"),
            (*(Option(option, default) for option, default in options), _LAYER_WISE),
        )
        for name, options in _OPTIMIZERS.items()
    ),
    *(
        Card(
            "scheduler",
            name,
            "transformers.optimization:get_scheduler",
            f"transformers' '{name}' schedule",
            tuple(Option(option, default) for option, default in options),
        )
        for name, options in _SCHEDULES.items()
    ),
    _STEP,
)


def problems(training: TrainingSpec) -> list[Problem]:
    """What is wrong with the optimizer and the schedule, from the cards alone."""
    found: list[Problem] = []
    found += optimizer_problems(training.optim, training.optim_args, "optim", "optim_args")
    try:
        card = find("scheduler", training.lr_scheduler_type)
    except LuthierError as error:
        found.append(Problem("lr_scheduler_type", error.message, error.hint))
    else:
        found += card.unknown_options(training.lr_scheduler_kwargs, "lr_scheduler_kwargs")
    if training.lr_scheduler_type == "cosine_with_min_lr" and not (
        {"min_lr", "min_lr_rate"} & set(training.lr_scheduler_kwargs)
    ):
        found.append(
            Problem("lr_scheduler_kwargs", "cosine_with_min_lr needs min_lr or min_lr_rate")
        )
    if training.lr_scheduler_type == "step":
        found += _step_problems(training.lr_scheduler_kwargs)
    found += _unused_schedule_words(training)
    if isinstance(training.num_training_steps, int) and training.num_training_steps < 1:
        found.append(Problem("num_training_steps", "is at least 1, or 'auto'"))
    if training.optim == "SparseAdam" and training.max_grad_norm:
        found.append(
            Problem("max_grad_norm", "SparseAdam's sparse gradients cannot be clipped", "use Adam")
        )
    if training.optim == "LBFGS" and training.precision == "fp16":
        found.append(Problem("precision", "LBFGS cannot scale an fp16 loss", "use fp32 or bf16"))
    if training.optim == "LBFGS" and "layer_wise_lr_decay" in training.optim_args:
        found.append(
            Problem("optim_args", "LBFGS has one learning rate for all parameters", "use Adam")
        )
    return found


#: Schedules that have no warm-up, and schedules that have no end: transformers ignores what
#: does not apply to them; we do not.
_NO_WARMUP = ("constant", "step")
_NO_END = ("constant", "constant_with_warmup", "inverse_sqrt", "step")


def _step_problems(options: Mapping[str, Any]) -> list[Problem]:
    found = []
    size, gamma = options.get("step_size", 1), options.get("gamma", 0.1)
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        message = f"is a whole number from 1 on, not {size!r}"
        found.append(Problem("lr_scheduler_kwargs.step_size", message))
    if isinstance(gamma, bool) or not isinstance(gamma, int | float) or not gamma > 0:
        found.append(Problem("lr_scheduler_kwargs.gamma", f"is above 0, not {gamma!r}"))
    return found


def _unused_schedule_words(training: TrainingSpec) -> list[Problem]:
    name, found = training.lr_scheduler_type, []
    if (training.num_warmup_steps or training.warmup_ratio) and name in _NO_WARMUP:
        message = f"the '{name}' schedule has no warm-up"
        found.append(Problem("num_warmup_steps", message, "use 'constant_with_warmup'"))
    if training.num_training_steps != "auto" and name in _NO_END:
        message = f"the '{name}' schedule has no end"
        found.append(Problem("num_training_steps", message, "use 'linear' or 'cosine'"))
    return found


def optimizer_problems(
    name: str, options: Mapping[str, Any], field: str, options_field: str
) -> list[Problem]:
    """What is wrong with one optimizer's name and options."""
    try:
        card = find("optimizer", name)
    except LuthierError as error:
        return [Problem(field, error.message, error.hint)]
    found = []
    if "lr" in options:
        found.append(Problem(f"{options_field}.lr", "is set by learning_rate"))
    rest = {key: value for key, value in options.items() if key != "lr"}
    found += card.unknown_options(rest, options_field)
    decay = options.get("layer_wise_lr_decay")
    if decay is not None and not (isinstance(decay, int | float) and 0 < decay <= 1):
        found.append(
            Problem(f"{options_field}.layer_wise_lr_decay", f"lies in (0, 1], not {decay!r}")
        )
    weight_decay = options.get("weight_decay", 0)
    if not (isinstance(weight_decay, int | float) and weight_decay >= 0):
        found.append(
            Problem(f"{options_field}.weight_decay", f"is at least 0, not {weight_decay!r}")
        )
    return found
