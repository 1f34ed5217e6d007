"""How deep each parameter of an encoder lies: for layer-wise rates, and for fixed layers."""

from __future__ import annotations

from torch import nn

#: Parameters that feed all layers, wherever they are registered: T5 keeps the bias that its
#: layers share in the first of them, MPNet behind the last.
_BOTTOM = ("embed", "relative_attention_bias")


def depths_of(model: nn.Module, encoder: nn.Module) -> list[tuple[str, nn.Parameter, int]]:
    """Name, parameter and layer depth of every parameter of ``model``, whose ``encoder`` has the
    layers.

    0 is the embeddings, 1 to L the encoder's layers, L + 1 whatever follows them (final norm,
    pooler, heads). Layers are the longest outermost ``ModuleList`` of the encoder; one that
    shares its layers (ALBERT) has as many as it stores.
    """
    prefix, top = _layers_of(encoder), layers_of(encoder) + 1
    below = True  # what is registered before the first layer feeds it
    of_parameter: dict[int, int] = {}
    for name, parameter in encoder.named_parameters():
        inside = bool(prefix) and name.startswith(prefix)
        below = below and not inside
        if below or any(word in name for word in _BOTTOM):
            depth = 0
        else:
            depth = _index_after(name, prefix) + 1 if inside else top
        of_parameter[id(parameter)] = depth
    return [(n, p, of_parameter.get(id(p), top)) for n, p in model.named_parameters()]


def layers_of(encoder: nn.Module) -> int:
    """Depth of the encoder's last layer."""
    prefix = _layers_of(encoder)
    inside = (n for n, _ in encoder.named_parameters() if prefix and n.startswith(prefix))
    return max((_index_after(name, prefix) + 1 for name in inside), default=0)


def layer_list(encoder: nn.Module) -> str:
    """Name of an encoder's list of layers; empty where it has none."""
    return _layers_of(encoder).removesuffix(".")


def _layers_of(encoder: nn.Module) -> str:
    """Name, with a dot, of the longest ModuleList that lies in no other."""
    lists = {n: m for n, m in encoder.named_modules() if isinstance(m, nn.ModuleList) and len(m)}
    outermost = {
        n: len(m)
        for n, m in lists.items()
        if not any(n.startswith(f"{o}.") for o in lists if o != n)
    }
    return f"{max(outermost, key=lambda n: outermost[n])}." if outermost else ""


def _index_after(name: str, prefix: str) -> int:
    return int(name[len(prefix) :].split(".", 1)[0])
