"""The log of a finetune: the mean loss, as often as was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.engine.control import Listener


class Log:
    """Hears the steps and tells their mean loss at the end of each epoch, or every
    ``logging_steps``; and after the last step what was left."""

    def __init__(self, args: Mapping[str, Any], steps_per_epoch: int, tell: Listener) -> None:
        by_steps = args["logging_strategy"] == "steps"
        self._every = args["logging_steps"] if by_steps else steps_per_epoch
        self._tell = tell
        self._losses: list[float] = []

    def __call__(self, kind: str, data: dict[str, Any]) -> None:
        if kind != "step":
            return
        self._losses.append(float(data["loss"]))
        if data["step"] % self._every == 0 or data["step"] == data["steps"]:
            self._say(data)

    def _say(self, data: Mapping[str, Any]) -> None:
        mean = sum(self._losses) / len(self._losses)
        self._losses.clear()
        message = (
            f"step {data['step']} of {data['steps']}, epoch {data['epoch']}: "
            f"loss {mean:.4f}, learning rate {data['learning_rate']:.3g}"
        )
        self._tell("log", {"level": "info", "message": message})
