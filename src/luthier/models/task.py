"""A transformers model with a task's head, as the engine sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from luthier.errors import ModelError
from luthier.models.adapters import merged
from luthier.models.depths import depths_of, layers_of
from luthier.models.unpadded import Unpadded


class TaskModel(nn.Module):
    """The model, and what prepares its input.

    Attributes:
        model: of transformers. processor: its tokenizer or image processor.
        adapter: peft's configuration of the adapters in it, or None.
        unpadded: leaves out the padding of its encoder, where that was shown to be the same.
        fixed_layers: how many of the lowest layers, with the embeddings, do not train.
    """

    def __init__(self, model: Any, processor: Any, *, new_head: bool) -> None:
        super().__init__()
        self.model, self.processor, self.new_head = model, processor, new_head
        self.adapter: Any = None
        self.unpadded: Unpadded | None = None
        self.fixed_layers = 0
        self._fixed: list[nn.Module] = []
        self._engine: list[Any] = []  # in a list: its parameters are the model's own

    def forward(self, **features: Any) -> Any:
        """The model's output; in training through what wraps it, if anything does."""
        through = self._engine[0] if self._engine and self.training else self.model
        return through(**features)

    def train_through(self, engine: Any) -> None:
        """Let what wraps the model (DeepSpeed, a compiler) compute its outputs in training."""
        self._engine = [engine]

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def encoder(self) -> nn.Module:
        """What takes adapters: the model without its head, where the head is a new one."""
        return cast(nn.Module, self.model.base_model if self.new_head else self.model)

    @property
    def peft_root(self) -> nn.Module:
        """What peft's files name parameters from."""
        return cast(nn.Module, self.model)

    @property
    def execution(self) -> str:
        return "packed" if self.unpadded is not None else "padded"

    @property
    def layers(self) -> int:
        """Depth of the encoder's last layer; what lies above it is L + 1."""
        return layers_of(self.encoder)

    def depths(self) -> list[tuple[str, nn.Parameter, int]]:
        """Name, parameter and layer depth of every parameter, as those of ``TextModel``."""
        return depths_of(self, self.encoder)

    def fix(self, layers: int, *, everything: bool, where: str) -> None:
        """Take the embeddings and so many of the lowest layers out of training, or the whole
        encoder. What is out runs without dropout. Raises ModelError for layers that are not."""
        if layers > self.layers:
            message = f"num_fixed_layers is {layers}, and the model has {self.layers} layers"
            raise ModelError(message, where=where, hint=f"at most {self.layers}")
        highest = self.layers + 1 if everything else layers
        inside = {id(p) for p in self.encoder.parameters()}
        for _, parameter, depth in self.depths():
            if id(parameter) in inside and depth <= highest and (everything or layers):
                parameter.requires_grad_(False)
        self.fixed_layers = layers
        if everything or layers:
            self._fixed = [m for m in self.encoder.modules() if _is_fixed(m)]
            self.train(self.training)

    def train(self, mode: bool = True) -> TaskModel:
        super().train(mode)
        for module in self._fixed:
            module.training = False
            for inner in module.modules():
                inner.training = False
        return self

    def save(self, folder: Path) -> None:
        """Write a folder that ``from_pretrained`` opens. Adapters are merged, in float32."""
        from luthier.models.loading import quietly

        folder.mkdir(parents=True, exist_ok=True)
        with quietly(), merged(self):
            self.model.save_pretrained(str(folder))
            self.save_processor(folder)

    def save_processor(self, folder: Path) -> None:
        """Write the tokenizer or image processor alone, without what it remembers of its last
        batch: the same weights write the same bytes."""
        backend = getattr(self.processor, "backend_tokenizer", None)
        if backend is not None:
            backend.no_truncation()
            backend.no_padding()
        self.processor.save_pretrained(str(folder))


def _is_fixed(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(p.requires_grad for p in parameters)
