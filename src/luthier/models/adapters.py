r"""Low-rank adapters: the encoder's weights stay, small matrices beside them are trained.

.. math:: h = W x + \frac{\alpha}{r} B A x

Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models, equation 3. The adapters are
peft's, put into the encoder in place; saved is the plain model with the products added in.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from luthier.errors import ModelError

if TYPE_CHECKING:
    from luthier.models.task import TaskModel
    from luthier.models.text import TextModel
    from luthier.spec import AdapterSpec

#: Families for which peft chooses no modules → the queries and values of their attention, which
#: it chooses in their relatives (Hu et al. 2021, section 7.1).
_TARGETS = {
    "albert": ("query", "value"),
    "camembert": ("query", "value"),
    "distilbert": ("q_lin", "v_lin"),
    "marian": ("q_proj", "v_proj"),
    "mbart": ("q_proj", "v_proj"),
    "pegasus": ("q_proj", "v_proj"),
}

#: The name that peft gives an adapter that is not named.
_NAME = "default"


def add_lora(model: TextModel | TaskModel, spec: AdapterSpec, where: str) -> None:
    """Put adapters into the encoder; its own weights no longer train. A head still does.

    With fixed layers only those above them get adapters. A is drawn from torch's global random
    state and B is zero, so the model's vectors are what they were.

    Raises ModelError: the encoder has no modules of those names.
    """
    from peft import LoraConfig, inject_adapter_in_model

    assert spec.lora_r is not None
    fixed = model.fixed_layers
    targets = spec.target_modules or _own_choice(model.encoder)
    config = LoraConfig(
        r=spec.lora_r,
        lora_alpha=spec.lora_alpha,
        lora_dropout=spec.lora_dropout,
        target_modules=list(targets) if isinstance(targets, tuple) else targets,
        use_rslora=spec.use_rslora,
        use_dora=spec.use_dora,
        # GPT-2's kind of linear layer, which keeps its weight the other way round
        fan_in_fan_out=any(type(m).__name__ == "Conv1D" for m in model.encoder.modules()),
        layers_to_transform=list(range(fixed, model.layers)) if fixed else None,
    )
    try:
        inject_adapter_in_model(config, model.encoder)
    except ValueError as error:
        first = str(error).strip().split("\n", 1)[0]
        names = {n.rsplit(".", 1)[-1] for n, m in model.encoder.named_modules() if _fits(m)}
        hint = f"adapter.target_modules: any of {', '.join(sorted(names))}, or 'all-linear'"
        raise ModelError(f"cannot take adapters ({first})", where=where, hint=hint) from error
    model.adapter = config


def _own_choice(encoder: Any) -> tuple[str, ...] | None:
    """The modules of a family that peft does not know; None where it does."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    family = getattr(getattr(encoder, "config", None), "model_type", "")
    return None if family in KNOWN else _TARGETS.get(family)


def trainable(model: TextModel | TaskModel) -> dict[str, Tensor]:
    """What trains, by name: adapters, and a head. All that a checkpoint must bear beside the
    pretrained weights."""
    return {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}


def restore(model: TextModel | TaskModel, saved: dict[str, Tensor]) -> None:
    """The inverse of ``trainable``."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in saved.items():
            parameters[name].copy_(tensor)


def merge(model: TextModel | TaskModel) -> None:
    """Add the products into the weights, in float32, and take the adapters out: for good."""
    if model.adapter is None:
        return
    for parent, name, layer in list(_layers(model.encoder)):
        layer.merge(safe_merge=True)
        base = layer.get_base_layer()
        base.weight.requires_grad_(True)  # it has been trained, by way of its adapter
        setattr(parent, name, base)
    model.adapter = None


@contextmanager
def merged(model: TextModel | TaskModel) -> Iterator[None]:
    """The plain model for a while; afterwards each weight is what it was, bit for bit."""
    if model.adapter is None:  # the usual case, which need not wait for peft
        yield
        return
    places = list(_layers(model.encoder))
    weights = [layer.get_base_layer().weight.detach().clone() for _, _, layer in places]
    for parent, name, layer in places:
        layer.merge(safe_merge=True)
        setattr(parent, name, layer.get_base_layer())
    try:
        yield
    finally:
        for (parent, name, layer), weight in zip(places, weights, strict=True):
            setattr(parent, name, layer)
            layer.unmerge()
            with torch.no_grad():
                layer.get_base_layer().weight.copy_(weight)


def save_adapter(model: TextModel | TaskModel, folder: Path) -> None:
    """Write ``adapter_model.safetensors`` and ``adapter_config.json`` as peft lays them out:
    ``PeftModel.from_pretrained(the pretrained encoder, folder)`` opens them."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    root = getattr(model, "peft_root", model.encoder)
    inside = {id(parameter) for parameter in model.encoder.parameters()}
    heads = [
        (name, parameter)
        for name, parameter in root.named_parameters()
        if id(parameter) not in inside and parameter.requires_grad
    ]
    state = {
        f"base_model.model.{name.replace(f'.{_NAME}', '')}": parameter.detach().clone()
        for name, parameter in [
            *((n, p) for n, p in root.named_parameters() if "lora_" in n),
            *heads,
        ]
    }
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {k: v for k, v in model.adapter.to_dict().items() if k != "runtime_config"}
    if heads:  # trained whole beside the adapters
        config["modules_to_save"] = sorted({name.split(".", 1)[0] for name, _ in heads})
    config["base_model_name_or_path"] = None  # a path of this machine says nothing elsewhere
    text = json.dumps(config, default=_plain, indent=2, sort_keys=True)
    (folder / "adapter_config.json").write_text(text)


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else str(value)


def _fits(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _layers(encoder: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """Parent, name and module of each layer that has an adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for parent in encoder.modules():
        if isinstance(parent, BaseTunerLayer):
            continue
        for name, child in parent.named_children():
            if isinstance(child, BaseTunerLayer):
                yield parent, name, child
