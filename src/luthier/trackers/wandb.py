"""Weights & Biases: configuration, metrics by step, and the report's figures."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from luthier.errors import MissingExtra
from luthier.spec import WandBLogger
from luthier.trackers.tracker import flat, numbers


class WandBTracker:
    """Reports one run to Weights & Biases; with ``mode='offline'`` to a local folder."""

    def __init__(
        self, spec: WandBLogger, run_name: str, config: Mapping[str, Any] | None = None
    ) -> None:
        try:
            wandb = import_module("wandb")
        except ImportError as error:
            raise MissingExtra("WandBLogger", "wandb") from error
        self._run = wandb.init(
            project=spec.project or "luthier",
            name=run_name,
            mode=spec.mode,
            config=flat(config or {}),
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
        )
        self._step = 0

    def __call__(self, kind: str, data: dict[str, Any]) -> None:
        """``step`` and ``evaluation`` become history, ``report`` the run's summary."""
        if kind in ("step", "evaluation"):
            self._step = int(data.get("step", self._step))
            prefix = "train/" if kind == "step" else "eval/"
            values = {prefix + k: v for k, v in numbers(data).items() if k != "step"}
            self._run.log(values, step=self._step)
        elif kind == "report":
            self._run.summary.update({f"report/{k}": v for k, v in numbers(data).items()})

    def close(self, succeeded: bool = True) -> None:
        """Finish the run; its exit code says whether it succeeded."""
        self._run.finish(exit_code=0 if succeeded else 1)
