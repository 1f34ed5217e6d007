"""What the sides with a Hugging Face trainer share: model, data, arguments, and the gate.

``tuned`` is what a user of these trainers can switch on by hand and keep the same work:
oneDNN's matmul where it is faster, the fused optimizer, an allocator that keeps what it has
(``race``).
Batches of like length are not among it: they are other negatives, which is other work.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Sampler
from transformers import TrainerCallback

from luthier.benchmark.steering import Gate
from luthier.benchmark.work import LEARNING_RATE, MAX_GRAD_NORM, SEED, Job


def settle(job: Job) -> None:
    """Threads, and the matmul of the tuned peer."""
    torch.set_num_threads(job.threads)
    torch.manual_seed(SEED)
    if job.tuned and job.onednn:
        torch.set_float32_matmul_precision("medium")


def load_model(job: Job) -> Any:
    """The SentenceTransformer, cut and frozen as the case says."""
    from sentence_transformers import SentenceTransformer

    options: dict[str, Any] = {}
    if job.dropout is not None:
        from luthier.models.folder import dropout_fields

        config = json.loads((Path(job.model) / "config.json").read_text())
        options["config_kwargs"] = dict.fromkeys(dropout_fields(config), job.dropout)
    model = SentenceTransformer(job.model, device="cpu", **options)
    model.max_seq_length = job.max_seq_length
    _freeze(model, job)
    return model


def _freeze(model: Any, job: Job) -> None:
    """What depths of the model luthier leaves alone, is left alone here."""
    from luthier.models.text import TextModel

    found = TextModel(model)
    for _, parameter, depth in found.depths():
        if job.case.frozen_layers and depth <= job.case.frozen_layers:
            parameter.requires_grad_(False)
    if job.case.head_only:
        model[0].requires_grad_(False)
    if job.case.lora_r:
        from peft import LoraConfig

        model.add_adapter(LoraConfig(r=job.case.lora_r))


def load_pairs(job: Job) -> Any:
    """The case's file as ``datasets`` reads it."""
    from datasets import Dataset

    return Dataset.from_json(job.data, cache_dir=f"{job.scratch}/datasets")


def arguments(job: Job) -> dict[str, Any]:
    """Of TrainingArguments and its kin: as luthier's job, and nothing written or reported."""
    found = {
        "output_dir": f"{job.scratch}/out",
        "max_steps": len(job.rows()),
        "per_device_train_batch_size": job.case.batch_size,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": MAX_GRAD_NORM,
        "bf16": job.precision == "bf16",
        "seed": SEED,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "report_to": [],
        "logging_steps": 10**9,
        "disable_tqdm": True,
    }
    return found | ({"optim": "adamw_torch_fused"} if job.tuned else {})


class InOrder(Sampler[list[int]]):
    """The batches of luthier's plan, in its order."""

    def __init__(self, batches: list[list[int]]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)


class Paused(TrainerCallback):
    """Lets the trainer run as the gate says. ``loss`` is the last step's, still a tensor."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.loss = torch.zeros(())

    def on_step_begin(self, *given: Any, **more: Any) -> None:
        self._gate.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> Any:
        self._gate.note(self.loss.item())
        if not self._gate.go_on():
            control.should_training_stop = True
        return control


class Objective(nn.Module):
    """A sentence-transformers loss as a module that ``transformers.Trainer`` can train: the
    features of both columns in, ``{"loss": …}`` out."""

    def __init__(self, model: Any, loss: nn.Module) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, **features: Any) -> dict[str, torch.Tensor]:
        columns = [
            {k.removeprefix(c): v for k, v in features.items() if k.startswith(c)}
            for c in ("anchor_", "positive_")
        ]
        return {"loss": self.loss(columns, None)}
