"""An updater for a model and data sets that are at hand, in this process: no configuration file.

After Renate's ``ModelUpdater``, whose subclasses are names here: ``updater="DER"``.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from luthier.doors.config_file import ConfigFile
from luthier.doors.tuning import tuning_spec
from luthier.engine.control import Listener, ignore
from luthier.engine.program import Program
from luthier.engine.run import Place, run
from luthier.spec import JobSpec

_TRANSFORMS = (
    "train_transform", "train_target_transform", "test_transform", "test_target_transform",
    "buffer_transform", "buffer_target_transform",
)  # fmt: skip


class ModelUpdater:
    """Updates a model with data set after data set.

        updater = ModelUpdater(model, updater="DER", memory_size=200, max_epochs=10)
        for train, validation in chunks:
            model = updater.update(train, validation)

    Args:
        model: any ``nn.Module``; ``update`` returns it with new weights.
        loss_fn: from scores and targets to the loss of each row, or of the batch; default the
            model's own ``loss_fn``, or the cross entropy.
        optimizer: from parameters to an optimizer, e.g. ``partial(SGD, lr=0.05)``; default
            Adam, or what ``settings`` name.
        learning_rate_scheduler: from an optimizer to a schedule that advances each "epoch" or
            "step" (``learning_rate_scheduler_interval``).
        input_state_folder, output_state_folder: states, folders or s3://; without them the first
            update starts from the model's own weights, and each from the one before.
        metrics: further ones by name, each with ``update(scores, targets)``, ``compute()`` and
            ``reset()``.
        settings: keys of ``config_space``: ``batch_size``, ``memory_size``, ``learning_rate``,
            the updater's own, ``merge``, ``forgetting_budget``, …; and train_transform,
            test_transform, buffer_transform and their ``_target_`` kin.

    Raises SpecError with every problem, before anything is trained.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[Any, Any], Tensor] | None = None,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        learning_rate_scheduler: Callable[..., Any] | None = None,
        learning_rate_scheduler_interval: str = "epoch",
        *,
        updater: str = "ER",
        max_epochs: int = 50,
        input_state_folder: str | Path | None = None,
        output_state_folder: str | Path | None = None,
        metrics: Mapping[str, Any] | None = None,
        metric: str | None = None,
        mode: str | None = None,
        seed: int = 0,
        accelerator: str = "auto",
        precision: str | int = "32",
        tell: Listener = ignore,
        **settings: Any,
    ) -> None:
        self.model, self.updater, self.tell = model, updater, tell
        #: Of the last update: ``metrics["update"]`` has what is known of every chunk.
        self.metrics: dict[str, Any] = {}
        self._start = copy.deepcopy(model)
        self._input, self._output = input_state_folder, output_state_folder
        self._here = Path(tempfile.mkdtemp(prefix="luthier-updater-"))
        weakref.finalize(self, shutil.rmtree, self._here, ignore_errors=True)
        self._updates = 0
        self._functions: dict[str, Any] = {
            name: _gives(settings.pop(name)) for name in _TRANSFORMS if name in settings
        }
        if loss_fn is not None:
            self._functions["loss_fn"] = _gives(loss_fn)
        if optimizer is not None:
            self._functions["optimizer_fn"] = _gives(optimizer)
        if learning_rate_scheduler is not None:
            pair = (learning_rate_scheduler, learning_rate_scheduler_interval)
            self._functions["lr_scheduler_fn"] = _gives(pair)
        if metrics is not None:
            self._functions["metrics_fn"] = _gives(metrics)
        words: dict[str, Any] = {
            "updater": updater, "max_epochs": max_epochs, "metric": metric, "mode": mode,
            "seed": seed, "accelerator": accelerator, "precision": precision,
        }  # fmt: skip
        self._spec: Callable[..., JobSpec] = partial(
            tuning_spec, settings, config_file=_FILE, **words
        )
        self._spec()  # what is wrong is said now

    def update(
        self, train_dataset: Dataset[Any], val_dataset: Dataset[Any] | None = None
    ) -> nn.Module:
        """Learn the rows of a data set of pairs (inputs, target). Returns the model.

        val_dataset: measured before and after, and remembered for the updates to come. Raises
        LuthierError; then the model and the state are as they were.
        """
        here = self._here
        own = here / "state"
        start = self._input if self._updates == 0 else self._output or own
        spec = self._spec(
            input_state_url=None if start is None else str(start),
            output_state_url=str(self._output or own),
        )
        data = SimpleNamespace(
            prepare_data=lambda: None, setup=lambda: None,
            train_data=lambda: train_dataset, val_data=lambda: val_dataset,
        )  # fmt: skip
        functions = {
            "model_fn": lambda model_state_url=None: copy.deepcopy(self._start),
            "data_module_fn": lambda: data,
        }
        program = Program.of(functions | self._functions, _FILE.name)
        folder, cache = here / f"update-{self._updates}", here / "cache"
        folder.mkdir(exist_ok=True)
        cache.mkdir(exist_ok=True)
        found = run(spec, Place(folder, cache, Path, Path), self.tell, program=program)
        self.metrics = found.metrics
        if found.metrics["update"]["promoted"]:
            self._updates += 1
            program_model = _with_weights(self._start, found.folder)
            self.model.load_state_dict(program_model.state_dict())
        return self.model


#: What stands for a file where there is none.
_FILE = ConfigFile("model_updater.py", "", {})


def _gives(value: Any) -> Callable[[], Any]:
    return lambda: value


def _with_weights(model: nn.Module, folder: Path) -> nn.Module:
    from luthier.engine.program_learner import ProgramModel

    wrapped = ProgramModel(copy.deepcopy(model))
    wrapped.restore(folder)
    return wrapped.module
