"""Straight lines to fit, so small that what a trainer ought to find can be worked out beside it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

from luthier.trainer.trainer import Trainer, TrainingArguments

DEFAULTS = {
    "learning_rate": 0.1, "logging_steps": 1, "save_strategy": "no", "use_cpu": True,
    "report_to": "none", "log_level": "error", "disable_tqdm": True, "num_train_epochs": 2,
    "per_device_train_batch_size": 16,
}  # fmt: skip


def points(count: int = 64, *, seed: int = 0, labels: tuple[str, ...] = ("labels",)) -> list[dict]:
    """Rows near y = 2x + 3."""
    rng = np.random.default_rng(seed)
    xs = rng.normal(size=count).astype(np.float32)
    return [
        {"x": x} | {name: np.float32(2 * x + 3 + rng.normal(scale=0.1)) for name in labels}
        for x in xs
    ]


def column(rows: list[dict], name: str) -> np.ndarray:
    return np.array([row[name] for row in rows], dtype=np.float32)


class Stream(torch.utils.data.IterableDataset):
    """Rows without a length; ``once``: those who iterate again find nothing left."""

    def __init__(self, rows: list[dict], once: bool = False) -> None:
        self.rows, self.left = rows, iter(rows) if once else None

    def __iter__(self) -> Iterator[dict]:
        return iter(self.rows) if self.left is None else self.left


class Line(nn.Module):
    """y = slope x + offset, with mean squared error; no model of transformers."""

    main_input_name = "x"

    def __init__(self, slope: float = 0.0, offset: float = 0.0, *, twice: bool = False) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))
        self.offset = nn.Parameter(torch.tensor(offset))
        self.twice = twice

    def forward(self, x, labels=None):
        y = x * self.slope + self.offset
        outputs = (y, y) if self.twice else (y,)
        return outputs if labels is None else (nn.functional.mse_loss(y, labels), *outputs)


class LineConfig(transformers.PreTrainedConfig):
    model_type = "line"

    def __init__(self, slope: float = 0.0, offset: float = 0.0, **more: Any) -> None:
        super().__init__(**more)
        self.slope, self.offset = slope, offset


class PreTrainedLine(transformers.PreTrainedModel):
    """The same as a model of transformers, which can be saved and opened."""

    config_class = LineConfig
    base_model_prefix = "line"
    main_input_name = "x"

    def __init__(self, config: LineConfig) -> None:
        super().__init__(config)
        self.slope = nn.Parameter(torch.tensor(float(config.slope)))
        self.offset = nn.Parameter(torch.tensor(float(config.offset)))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: the configuration says what they are."""

    forward = Line.forward
    twice = False


def pretrained(slope: float = 0.0, offset: float = 0.0) -> PreTrainedLine:
    return PreTrainedLine(LineConfig(slope, offset))


def close(prediction: transformers.EvalPrediction) -> dict[str, float]:
    """The share of predictions within 0.25 of the label."""
    found = prediction.predictions
    found = found[0] if isinstance(found, tuple) else found
    return {"close": float((np.abs(found - prediction.label_ids) <= 0.25).mean())}


def trainer(
    folder: Any,
    *,
    theirs: bool = False,
    kind: Any = None,
    words: dict[str, Any] | None = None,
    **arguments: Any,
) -> Any:
    """A trainer of ``kind`` for a line, or for what ``words`` say."""
    kinds = (transformers.Trainer, transformers.TrainingArguments)
    kinds = kinds if theirs else (Trainer, TrainingArguments)
    given = {"train_dataset": points(), "eval_dataset": points(seed=1)} | (words or {})
    if "model_init" not in given:
        given.setdefault("model", Line())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own, of its own fields
        args = kinds[1](output_dir=str(folder), **(DEFAULTS | arguments))
        return (kind or kinds[0])(args=args, **given)


def fit(made: Any, resume: Any = None) -> Any:
    """Train, without transformers' and torch's warnings of each other; the trainer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.train(resume_from_checkpoint=resume)
    return made


def both(folder: Any, words: Any = None, **arguments: Any) -> list[Any]:
    """Theirs and ours, trained; ``words``: what makes them, anew for each."""
    return [
        fit(trainer(folder / f"theirs-{t}", theirs=t, words=words() if words else None,
                    **arguments))
        for t in (True, False)
    ]  # fmt: skip


def log(made: Any) -> list[dict[str, Any]]:
    """The log without what a clock says."""
    clock = ("runtime", "per_second", "preparation")
    return [
        {key: v for key, v in entry.items() if not any(word in key for word in clock)}
        for entry in made.state.log_history
    ]


def line(made: Any) -> tuple[float, float]:
    return made.model.slope.item(), made.model.offset.item()
