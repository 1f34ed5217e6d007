"""Parts of a model that do not train, and training that starts above them.

Fixed are the embeddings and the lowest layers (``num_fixed_layers``), or all below the head
(``freeze``). A fixed part always runs in evaluation mode: its dropout would only be noise on
features that never change, and without it a text has the same features in every epoch. So they
can be computed once (``engine/prefix.py``) and the model can be entered above the fixed part.

The encoder stays the unmodified one of transformers: while it is entered at layer k, the layers
below it give the stored hidden states instead of computing them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn

from luthier.errors import ModelError
from luthier.models.packed import Packing, first_position, packed
from luthier.models.tokens import Ints, Tokens

if TYPE_CHECKING:
    from luthier.models.text import TextModel

#: What is fixed: the lowest layers of the encoder, or everything below the trained head.
Part = Literal["layers", "backbone"]


class NotResumable(Exception):
    """This encoder cannot be entered at a layer."""


class Prefix(Protocol):
    """The stored output of a model's fixed part, by the numbers in ``Tokens.stored``."""

    part: Part

    def states(self, texts: Ints) -> Tensor:
        """Of the texts, one after another, float32 on the CPU: hidden states [tokens, d] for
        ``layers``, pooled vectors [texts, d] for ``backbone``."""


def fix_layers(model: TextModel, count: int, where: str) -> None:
    """Take the embeddings and the ``count`` lowest layers out of training.

    Raises ModelError: the encoder has fewer layers, or shares one between all depths.
    """
    config: Any = model.encoder.config
    depth = getattr(config, "num_hidden_layers", model.layers)
    if model.layers and depth > model.layers:
        raise ModelError(
            f"num_fixed_layers is {count}, and its {depth} layers share their weights: "
            "the lowest cannot be fixed alone",
            where=where,
            hint="leave out num_fixed_layers",
        )
    if count > model.layers:
        raise ModelError(
            f"num_fixed_layers is {count}, and the model has {model.layers} layers",
            where=where,
            hint=f"at most {model.layers}",
        )
    for _, parameter, depth in model.depths():
        if depth <= count:
            parameter.requires_grad_(False)
    model.fixed_layers = count
    for module in fixed_modules(model):
        module.eval()


def fixed_part(model: TextModel) -> Part | None:
    """What of the model is fixed, if anything is."""
    if _head(model):
        return "backbone"
    return "layers" if model.fixed_layers else None


def fixed_modules(model: TextModel) -> Iterator[nn.Module]:
    """The fixed part, as modules: what runs in evaluation mode while the rest trains."""
    if head := _head(model):
        yield from list(model.sentence_transformer.children())[:head]
    elif model.fixed_layers:
        yield from _below(model.encoder, model.layer_list)
        yield from _layers(model)[: model.fixed_layers]


def fixed_parameters(model: TextModel) -> Iterator[tuple[str, Tensor]]:
    """Name and weights of all that the output of the fixed part depends on."""
    if head := _head(model):
        for index, module in enumerate(list(model.sentence_transformer.children())[:head]):
            yield from ((f"{index}.{name}", p) for name, p in module.named_parameters())
    elif model.fixed_layers:
        yield from ((n, p) for n, p, depth in model.depths() if depth <= model.fixed_layers)


def fixed_output(model: TextModel, tokens: Tokens) -> tuple[Tensor, Ints]:
    """What the fixed part makes of texts, and their order in it.

    Hidden states [tokens, d], texts sorted by length, for ``layers``; vectors [texts, d] for
    ``backbone``. Raises NotResumable, NotPackable.
    """
    if fixed_part(model) == "backbone":
        return _pooled(model, tokens)
    layers, found = _layers(model), []
    packing = Packing.of(tokens, model.device)

    def note(_: nn.Module, __: Any, output: Any) -> None:
        found.append(output)

    hook = layers[model.fixed_layers - 1].register_forward_hook(note)
    try:
        # What lies above need not compute anything, only let its input through.
        with _giving(layers[model.fixed_layers :], lambda: found[-1]):
            _run_packed(model, packing)
    finally:
        hook.remove()
    if len(found) != 1 or not isinstance(found[0], Tensor):
        raise NotResumable(f"the layers of {type(model.encoder).__name__} give more than a tensor")
    return found[0][0], packing.order


def embed_above(model: TextModel, tokens: Tokens, prefix: Prefix) -> Tensor:
    """Vectors [n, dim] of texts, in their order, from the stored output of the fixed part."""
    assert tokens.stored is not None
    if prefix.part == "backbone":
        return _head_of(model, prefix.states(tokens.stored).to(model.device))
    packing = Packing.of(tokens, model.device)
    hidden = prefix.states(tokens.stored[packing.order]).to(model.device)[None]
    with _giving(_layers(model)[: model.fixed_layers], lambda: hidden):
        return packing.restore(_run_packed(model, packing))


def _run_packed(model: TextModel, packing: Packing) -> Tensor:
    encoder = model.encoder
    features = packing.features(first_position(encoder), model.device)
    if model.prompt_length:
        features["prompt_length"] = torch.tensor([model.prompt_length])
    with packed(encoder, packing):
        vectors: Tensor = model(features)
    return vectors


def _pooled(model: TextModel, tokens: Tokens) -> tuple[Tensor, Ints]:
    """The vectors that go into the head: noted where they enter it."""
    first = list(model.sentence_transformer.children())[_head(model)]
    found: list[Tensor] = []

    def note(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        found.append(inputs[0]["sentence_embedding"])

    hook = first.register_forward_pre_hook(note)
    try:
        packing = Packing.of(tokens, model.device)
        if model.execution == "packed":
            _run_packed(model, packing)
        else:
            model({k: v.to(model.device) for k, v in model.pad(tokens.take(packing.order)).items()})
    finally:
        hook.remove()
    if len(found) != 1:
        raise NotResumable("the head is not called once a batch")
    return found[0], packing.order


def _head_of(model: TextModel, vectors: Tensor) -> Tensor:
    features: dict[str, Any] = {"sentence_embedding": vectors}
    for module in list(model.sentence_transformer.children())[_head(model) :]:
        features = module(features)
    embeddings: Tensor = features["sentence_embedding"]
    truncated = model.sentence_transformer.truncate_dim
    return embeddings[:, :truncated] if truncated else embeddings


def _head(model: TextModel) -> int:
    """The first of the model's modules that trains, where the encoder does not; else 0."""
    for index, module in enumerate(model.sentence_transformer.children()):
        if any(p.requires_grad for p in module.parameters()):
            return index
    return 0


def _layers(model: TextModel) -> list[nn.Module]:
    return list(cast(nn.ModuleList, model.encoder.get_submodule(model.layer_list)))


def _below(encoder: nn.Module, layers: str) -> Iterator[nn.Module]:
    """The modules that are registered before the first layer, which feed it."""
    for name, module in encoder.named_modules():
        if name == layers:
            return
        if name and not layers.startswith(f"{name}."):
            yield module


@contextmanager
def _giving(layers: list[nn.Module], give: Callable[[], Any]) -> Iterator[None]:
    """While it lasts, these layers give something instead of computing. Their class, attributes
    and weights stay as they are, so that the encoder, and whoever saves it, sees no difference."""

    def forward(*_: Any, **__: Any) -> Any:
        return give()

    for layer in layers:
        layer.forward = forward
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
