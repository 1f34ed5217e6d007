"""Models that know how to be made again: their arguments travel with their weights."""

from __future__ import annotations

import abc
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Self

import torch
from torch import Tensor, nn

from luthier.errors import ModelError, Problem, SpecError, nearest

Loss = Callable[[Tensor, Tensor], Tensor]


class _Seen(list[Any]):
    """What hooks caught. A copy of a model begins without: tensors of a graph cannot be copied."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Seen:
        return _Seen()


class _Catch:
    """A forward hook. An object and no closure, so that a copy of a model has hooks of its own."""

    def __init__(self, seen: _Seen) -> None:
        self._seen = seen

    def __call__(self, module: nn.Module, given: Any, output: Any) -> None:
        if module.training:
            self._seen.append(output)


class Module(nn.Module, abc.ABC):
    """A torch module that can be made again from its state dict alone.

    constructor_arguments: what the class was made with, as JSON data (numbers, texts, truth
    values, lists, dicts): it is kept in the state dict as bytes of JSON, never as code.
    loss_fn: the loss of (outputs, targets) that this model is trained with, where it has one.

        class Classifier(Module):
            def __init__(self, width: int):
                super().__init__(constructor_arguments={"width": width})
                self.layers = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

            def forward(self, x, task_id=None):
                return self.layers(x)

        again = Classifier.from_state_dict(model.state_dict())
    """

    def __init__(
        self, constructor_arguments: Mapping[str, Any], loss_fn: Loss | None = None
    ) -> None:
        super().__init__()
        self._constructor_arguments = _as_json(constructor_arguments)
        self.loss_fn = loss_fn
        self._task_ids: list[str] = []
        self._intermediate = _Seen()
        self._hooks: list[Any] = []

    @property
    def constructor_arguments(self) -> dict[str, Any]:
        """What the class was made with; lists where there were tuples."""
        return dict(json.loads(self._constructor_arguments))

    @abc.abstractmethod
    def forward(self, x: Any, task_id: str | None = None) -> Any:
        """Outputs for inputs: a tensor, or a tuple or dict of tensors."""

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Any]) -> Self:
        """The model of a state dict. Raises ModelError for that of another class or version."""
        extra = state_dict.get("_extra_state")
        if extra is None:
            raise ModelError(
                f"this state dict does not say what a {cls.__name__} was made with",
                hint="make the model yourself, then call load_state_dict",
            )
        kept = _decoded(extra)
        try:
            model = cls(**kept["constructor_arguments"])
        except TypeError as error:
            raise ModelError(f"{cls.__name__} cannot be made again: {error}") from error
        for task_id in kept["task_ids"]:
            model.add_task_params(task_id)
        try:
            model.load_state_dict(dict(state_dict))
        except RuntimeError as error:
            raise ModelError(
                f"the weights are not those of a {cls.__name__}: {error}",
                hint="was its code changed since?",
            ) from error
        return model

    def get_extra_state(self) -> Tensor:
        """Arguments and tasks, as bytes of JSON."""
        kept = {
            "constructor_arguments": self.constructor_arguments,
            "task_ids": self._task_ids,
        }
        return torch.tensor(list(json.dumps(kept).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        """The inverse of ``get_extra_state``."""
        kept = _decoded(state)
        self._constructor_arguments = json.dumps(kept["constructor_arguments"])
        self._task_ids = list(kept["task_ids"])

    def get_params(self, task_id: str | None = None) -> list[nn.Parameter]:
        """The parameters to train; override it where a task has some of its own."""
        return list(self.parameters())

    def add_task_params(self, task_id: str | None = None) -> None:
        """Make the parameters of a task, once; override ``_add_task_params``, not this."""
        if task_id is not None and task_id not in self._task_ids:
            self._add_task_params(task_id)
            self._task_ids.append(task_id)

    def _add_task_params(self, task_id: str) -> None:
        """Make what a new task needs, in the same way in whatever order tasks come."""

    def get_logits(self, x: Any, task_id: str | None = None) -> Any:
        """Outputs before any activation; those of ``forward`` unless overridden."""
        return self(x) if task_id is None else self(x, task_id)

    def intermediate_layers(self) -> Sequence[nn.Module]:
        """The layers whose outputs are the model's features, from the bottom up; none here."""
        return ()

    def register_intermediate_representation_caching_hook(self, module: nn.Module) -> None:
        """Catch what a layer gives from now on, while the model is in training mode."""
        self._hooks.append(module.register_forward_hook(_Catch(self._intermediate)))

    def get_intermediate_representation(self) -> list[Any]:
        """What was caught since the last reset, in order."""
        return list(self._intermediate)

    def reset_intermediate_representation_cache(self) -> None:
        """Forget what was caught."""
        self._intermediate.clear()

    def deregister_hooks(self) -> None:
        """Catch nothing any more, and forget what was."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._intermediate.clear()


RenateModule = Module


class RenateWrapper(Module):
    """Any torch model as a ``Module``. Tuples are given to it as arguments, dicts by name.

    Its arguments are not known, so ``from_state_dict`` refuses: make the model, wrap it, and
    call ``load_state_dict``.
    """

    def __init__(self, model: nn.Module, loss_fn: Loss | None = None) -> None:
        super().__init__(constructor_arguments={}, loss_fn=loss_fn)
        self._model = model

    def forward(self, x: Any, task_id: str | None = None) -> Any:
        if isinstance(x, dict):
            outputs = self._model(**x)
        elif isinstance(x, tuple | list):
            outputs = self._model(*x)
        else:
            outputs = self._model(x)
        return outputs[0] if isinstance(outputs, tuple) and len(outputs) == 1 else outputs

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Any]) -> Self:
        raise ModelError(
            "a wrapped model cannot be made from its state dict alone",
            hint="make it, wrap it, and call load_state_dict",
        )


class MultiLayerPerceptron(Module):
    """Linear layers with an activation between: inputs (n, …) flattened, outputs (n, num_outputs).

    num_hidden_layers + 1 layers of hidden_size (or of the sizes in a list of that length), each
    followed by the activation, and by batch normalization where asked for; then the last layer.
    activation: the name of a module of torch.nn. add_icarl_class_means: either way the updater
    iCaRL can be used; its means need no parameters of their own.

    >>> model = MultiLayerPerceptron(64, 10, 1, 200)
    >>> [tuple(p.shape) for p in model.parameters() if p.dim() == 2]
    [(200, 64), (200, 200), (10, 200)]
    """

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        num_hidden_layers: int,
        hidden_size: int | Sequence[int],
        activation: str = "ReLU",
        batch_normalization: bool = False,
        prediction_strategy: None = None,
        add_icarl_class_means: bool = True,
        *,
        loss_fn: Loss | None = None,
    ) -> None:
        if prediction_strategy is not None:
            message = "how a model predicts is the updater's business here"
            hint = "leave it out; the updater iCaRL sets the last layer to the class means"
            raise SpecError([Problem("prediction_strategy", message, hint)])
        super().__init__(
            {
                "num_inputs": num_inputs,
                "num_outputs": num_outputs,
                "num_hidden_layers": num_hidden_layers,
                "hidden_size": hidden_size,
                "activation": activation,
                "batch_normalization": batch_normalization,
            },
            loss_fn,
        )
        sizes = _sizes(num_inputs, num_outputs, num_hidden_layers, hidden_size)
        make = _activation(activation)
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise(sizes[:-1]):
            layers += [nn.Linear(before, after), make()]
            if batch_normalization:
                layers.append(nn.BatchNorm1d(after))
        self._activations = [i for i, layer in enumerate(layers) if isinstance(layer, make)]
        self._backbone = nn.Sequential(*layers)
        self._head = nn.Linear(sizes[-2], sizes[-1])

    def forward(self, x: Tensor, task_id: str | None = None) -> Tensor:
        outputs: Tensor = self._head(self._backbone(x))
        return outputs

    def intermediate_layers(self) -> Sequence[nn.Module]:
        """The activations of the hidden layers."""
        return [self._backbone[i] for i in self._activations]


def _sizes(inputs: int, outputs: int, hidden_layers: int, hidden: int | Sequence[int]) -> list[int]:
    fields = {"num_inputs": inputs, "num_outputs": outputs}
    if isinstance(hidden_layers, bool) or not isinstance(hidden_layers, int) or hidden_layers < 0:
        message = f"{hidden_layers!r} is not a whole number from 0 on"
        raise SpecError([Problem("num_hidden_layers", message)])
    sizes = [hidden] * (hidden_layers + 1) if isinstance(hidden, int) else list(hidden)
    if len(sizes) != hidden_layers + 1:
        message = f"{len(sizes)} sizes for {hidden_layers + 1} layers"
        hint = "num_hidden_layers + 1 layers lie before the last one"
        raise SpecError([Problem("hidden_size", message, hint)])
    fields |= {f"hidden_size[{i}]": size for i, size in enumerate(sizes)}
    problems = [
        Problem(name, f"{value!r} is not a whole number from 1 on")
        for name, value in fields.items()
        if isinstance(value, bool) or not isinstance(value, int) or value < 1
    ]
    if problems:
        raise SpecError(problems)
    return [inputs, *sizes, outputs]


def _activation(name: str) -> type[nn.Module]:
    from torch.nn.modules import activation

    known = [each for each in activation.__all__ if each != "MultiheadAttention"]
    if name not in known:
        hint = nearest(name, known) or "a module of torch.nn, such as ReLU, GELU, Tanh"
        raise SpecError([Problem("activation", f"there is no activation '{name}'", hint)])
    found: type[nn.Module] = getattr(nn, name)
    return found


def _as_json(arguments: Mapping[str, Any]) -> str:
    problems = []
    for name, value in arguments.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError):
            message = f"a {type(value).__name__} cannot be kept with the weights"
            hint = "give numbers, texts, truth values, lists or dicts, and make objects of them"
            problems.append(Problem(f"constructor_arguments.{name}", message, hint))
    if problems:
        raise SpecError(problems)
    return json.dumps(dict(arguments))


def _decoded(state: Any) -> dict[str, Any]:
    try:
        kept = json.loads(bytes(state.to("cpu", torch.uint8).tolist()))
        return {
            "constructor_arguments": dict(kept["constructor_arguments"]),
            "task_ids": list(kept["task_ids"]),
        }
    except (AttributeError, TypeError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"what a model was made with cannot be read from its state ({error})",
            hint="was it written by luthier.tuning's Module?",
        ) from None
