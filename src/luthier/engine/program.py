"""A configuration file in Python: the model and the data of a job, as functions of fixed names.

``model_fn`` and ``data_module_fn`` are needed; ``loss_fn``, ``optimizer_fn``, ``lr_scheduler_fn``,
``metrics_fn``, ``train_transform``, ``train_target_transform``, ``test_transform``,
``test_target_transform``, ``buffer_transform``, ``buffer_target_transform`` and ``probe_data_fn``
are not. They are called with those of the job's arguments that they name (after Renate's
configuration files).
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from luthier.errors import LuthierError, Problem, SpecError
from luthier.spec.update import PROGRAM_FUNCTIONS
from luthier.store.bundle import sha256_of

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class ProgramError(LuthierError):
    """A function of a configuration file raised, or gave something else than it must."""

    code = "program_failed"


class Program:
    """The functions of a configuration file, with the arguments of a job.

    Raises SpecError where a function is missing, ProgramError where the file itself raises.
    """

    def __init__(self, file: Path, arguments: Mapping[str, Any]) -> None:
        self.file, self.arguments = file, dict(arguments)
        self._module: ModuleType | SimpleNamespace = _imported(file)
        missing = [
            name
            for name in PROGRAM_FUNCTIONS[:2]
            if not callable(getattr(self._module, name, None))
        ]
        if missing:
            hint = f"define {' and '.join(missing)} in it"
            raise SpecError(
                [Problem("config_file", f"{file.name} has no {', '.join(missing)}", hint)]
            )

    @classmethod
    def of(cls, functions: Mapping[str, Any], name: str) -> Program:
        """One whose functions are at hand, without a file."""
        made = cls.__new__(cls)
        made.file, made.arguments = Path(name), {}
        made._module = SimpleNamespace(**functions)
        return made

    def model(self) -> nn.Module:
        """A fresh model. Its state is loaded by us, so it is never asked to read a file."""
        model = self._call("model_fn", model_state_url=None)
        if not isinstance(model, nn.Module):
            raise ProgramError(
                f"model_fn returned {type(model).__name__}, not a torch.nn.Module",
                where=str(self.file),
            )
        return model

    def data(self) -> Any:
        """The data module, prepared and set up."""
        found = self._call("data_module_fn")
        with self._told("prepare_data()"):
            found.prepare_data()
        with self._told("setup()"):
            found.setup()
        return found

    def loss(self, model: nn.Module) -> Callable[[Any, Any], Tensor]:
        """From scores and targets to the loss of each row, or of the batch: that of the file, of
        the model, or the cross entropy."""
        if self.has("loss_fn"):
            loss: Callable[[Any, Any], Tensor] = self._call("loss_fn")
            return loss
        own = getattr(model, "loss_fn", None)
        return own if callable(own) else nn.CrossEntropyLoss(reduction="none")

    def transform(self, name: str) -> Callable[[Any], Any] | None:
        """A function of one item's inputs or target, where the file has it."""
        return self._call(name) if self.has(name) else None

    def optimizer(self) -> Callable[..., Any] | None:
        """From parameters to an optimizer, where the file has one."""
        return self._call("optimizer_fn") if self.has("optimizer_fn") else None

    def schedule(self) -> tuple[Callable[..., Any], str] | None:
        """From an optimizer to a schedule, and "epoch" or "step"; where the file has one."""
        if not self.has("lr_scheduler_fn"):
            return None
        make, interval = self._call("lr_scheduler_fn")
        return make, interval

    def probe(self) -> Any:
        """Rows that are scored before and after an update, and never learnt; None without."""
        return self._call("probe_data_fn") if self.has("probe_data_fn") else None

    def metrics(self) -> dict[str, Any]:
        """Further metrics by name, each with ``update(scores, targets)`` and ``compute()``."""
        return dict(self._call("metrics_fn")) if self.has("metrics_fn") else {}

    def has(self, name: str) -> bool:
        """Whether the file defines a function."""
        return callable(getattr(self._module, name, None))

    def _call(self, name: str, **more: Any) -> Any:
        function = getattr(self._module, name)
        taken = inspect.signature(function).parameters
        given = self.arguments | more
        if any(p.kind is p.VAR_KEYWORD for p in taken.values()):
            words = given
        else:
            words = {key: value for key, value in given.items() if key in taken}
        lacking = [
            key
            for key, p in taken.items()
            if p.default is p.empty and key not in words and p.kind in _NAMED
        ]
        if lacking:
            hint = f"give {lacking[0]}=… in config_space, or give it a default"
            raise SpecError(
                [Problem("config_space", f"{name} of {self.file.name} needs '{lacking[0]}'", hint)]
            )
        with self._told(f"{name}()"):
            return function(**words)

    def _told(self, what: str) -> _Told:
        return _Told(self.file, what)


class _Told:
    """Names the function of the file in which something was raised."""

    def __init__(self, file: Path, what: str) -> None:
        self.file, self.what = file, what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, Exception) or isinstance(error, LuthierError):
            return
        last = trace
        while last.tb_next is not None:
            last = last.tb_next
        line = f"{last.tb_frame.f_code.co_filename}:{last.tb_lineno}"
        raise ProgramError(
            f"{self.what} raised {type(error).__name__}: {error}", where=line
        ) from error


def _imported(file: Path) -> ModuleType:
    """The module that a file holds, under a name of its content: two files of one name, or two
    versions of one, are two modules. Its folder can be imported from while it is read."""
    name = f"luthier_config_{sha256_of(file)[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ProgramError("this is no Python file", where=str(file))
    module = importlib.util.module_from_spec(spec)
    folder = str(file.parent)
    sys.path.insert(0, folder)
    sys.modules[name] = module
    try:
        with _Told(file, "the file"):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(folder)
    return module


def moved(value: Any, device: torch.device) -> Any:
    """Tensors in tuples and mappings, on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: moved(inner, device) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(moved(inner, device) for inner in value)
    return value
