"""Tiny models of real families with rows for each task, and both trainers side by side."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from luthier.trainer.trainer import (
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)

VOCAB, WIDTH = 60, 16
BERT = {
    "vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 64, "initializer_range": 0.4,
}  # fmt: skip


def bert(kind: str, dropout: float, **more: Any) -> nn.Module:
    config = transformers.BertConfig(
        **BERT, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, **more
    )
    return getattr(transformers, f"BertFor{kind}")(config)


def gpt2(dropout: float) -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=VOCAB, n_embd=WIDTH, n_layer=2, n_head=2, n_positions=64, bos_token_id=1,
        eos_token_id=2, initializer_range=0.4, resid_pdrop=dropout, embd_pdrop=dropout,
        attn_pdrop=dropout,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def llama(kind: str) -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=64, pad_token_id=0, num_labels=3,
        initializer_range=0.4,
    )  # fmt: skip
    return getattr(transformers, f"LlamaFor{kind}")(config)


def t5(dropout: float) -> nn.Module:
    config = transformers.T5Config(
        vocab_size=VOCAB, d_model=WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
        dropout_rate=dropout, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)


def marian(dropout: float) -> nn.Module:
    config = transformers.MarianConfig(
        vocab_size=VOCAB, d_model=WIDTH, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, max_position_embeddings=64, dropout=dropout, pad_token_id=0,
        eos_token_id=1, decoder_start_token_id=0, forced_eos_token_id=1,
    )  # fmt: skip
    return transformers.MarianMTModel(config)


def vit(dropout: float) -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        image_size=16, patch_size=8, num_labels=3, hidden_dropout_prob=dropout,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


def texts(
    count: int, labels: Callable[[np.random.Generator, int], Any], seed: int = 0
) -> list[dict]:
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        length = int(rng.integers(4, 30))
        row = {"input_ids": rng.integers(3, VOCAB, size=length).tolist()}
        found = labels(rng, length)
        rows.append(row | (found if isinstance(found, dict) else {"labels": found}))
    return rows


def images(count: int) -> list[dict]:
    rng = np.random.default_rng(0)
    return [
        {
            "pixel_values": torch.from_numpy(rng.normal(size=(3, 16, 16)).astype(np.float32)),
            "labels": int(rng.integers(3)),
        }
        for _ in range(count)
    ]


def collate(rows: list[dict]) -> dict[str, torch.Tensor]:
    """Padded on the right; labels that are lists with -100."""
    batch = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if isinstance(values[0], list):
            fill = -100 if name == "labels" else 0
            longest = max(map(len, values))
            padded = [v + [fill] * (longest - len(v)) for v in values]
            batch[name] = torch.tensor(padded)
            if name == "input_ids":
                mask = [[1] * len(v) + [0] * (longest - len(v)) for v in values]
                batch["attention_mask"] = torch.tensor(mask)
        elif isinstance(values[0], torch.Tensor):
            batch[name] = torch.stack(values)
        else:
            batch[name] = torch.tensor(values)
    return batch


def _one_class(rng: np.random.Generator, _: int) -> int:
    return int(rng.integers(3))


def _tags(rng: np.random.Generator, length: int) -> list[int]:
    return rng.integers(3, size=length).tolist()


def _span(rng: np.random.Generator, length: int) -> dict[str, int]:
    start = int(rng.integers(length))
    return {"start_positions": start, "end_positions": min(start + 1, length - 1)}


def _target(rng: np.random.Generator, _: int) -> list[int]:
    return [*rng.integers(3, VOCAB, size=int(rng.integers(3, 9))).tolist(), 1]


def _words(rng: np.random.Generator, length: int) -> list[int]:
    return rng.integers(3, VOCAB, size=length).tolist()


@dataclass(frozen=True)
class Task:
    """A model (from a dropout probability) and 22 rows."""

    model: Callable[[float], nn.Module]
    rows: list[dict[str, Any]]
    seq2seq: bool = False


TASKS = {
    "classification": Task(
        lambda p: bert("SequenceClassification", p, num_labels=3), texts(22, _one_class)
    ),
    "token classification": Task(
        lambda p: bert("TokenClassification", p, num_labels=3), texts(22, _tags)
    ),
    "question answering": Task(lambda p: bert("QuestionAnswering", p), texts(22, _span)),
    "summarization": Task(t5, texts(22, _target), seq2seq=True),
    "translation": Task(marian, texts(22, _target), seq2seq=True),
    "causal language modelling": Task(gpt2, texts(22, _words)),
    "image classification": Task(vit, images(22)),
    "llama": Task(lambda p: llama("ForCausalLM".removeprefix("For")), texts(22, _words)),
}


@dataclass
class Watcher(transformers.TrainerCallback):
    """Every event, with the state's step and epoch, and what the control says."""

    events: list[Any] = field(default_factory=list)

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("on_"):
            return super().__getattribute__(name)

        def heard(args: Any, state: Any, control: Any, **_: Any) -> None:
            self.events.append((name, state.global_step, state.epoch, vars(control).copy()))

        return heard


@dataclass
class Trained:
    trainer: Any
    output: Any
    events: list[Any]

    @property
    def log(self) -> list[dict[str, Any]]:
        """The log without what a clock says."""
        clock = ("runtime", "per_second", "preparation")
        return [
            {k: v for k, v in entry.items() if not any(word in k for word in clock)}
            for entry in self.trainer.state.log_history
        ]

    @property
    def losses(self) -> list[float]:
        return [entry["loss"] for entry in self.log if "loss" in entry]

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return {n: p.detach().clone() for n, p in self.trainer.model.named_parameters()}


def train(
    task: Task,
    folder: Any,
    *,
    theirs: bool = False,
    dropout: float = 0.1,
    trainer: type | None = None,
    resume: Any = None,
    callbacks: Any = (),
    words: dict[str, Any] | None = None,
    **arguments: Any,
) -> Trained:
    """One training run in ``folder``."""
    if task.seq2seq:
        kinds = (transformers.Seq2SeqTrainer, transformers.Seq2SeqTrainingArguments)
        kinds = kinds if theirs else (Seq2SeqTrainer, Seq2SeqTrainingArguments)
    else:
        kinds = (transformers.Trainer, transformers.TrainingArguments)
        kinds = kinds if theirs else (Trainer, TrainingArguments)
    defaults = {
        "num_train_epochs": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-2,
        "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True, "use_cpu": True,
        "report_to": "none", "log_level": "error",
    }  # fmt: skip
    torch.manual_seed(1)
    model = task.model(dropout)
    watcher = Watcher()
    given = {"train_dataset": task.rows, "data_collator": collate} | (words or {})
    if "model_init" not in given:
        given["model"] = model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own, of its own fields
        made = (trainer or kinds[0])(
            args=kinds[1](output_dir=str(folder), **(defaults | arguments)),
            callbacks=[watcher, *callbacks],
            **given,
        )
        output = made.train(resume_from_checkpoint=resume)
    return Trained(made, output, watcher.events)


def accuracy(prediction: transformers.EvalPrediction) -> dict[str, float]:
    logits = prediction.predictions
    logits = logits[0] if isinstance(logits, tuple) else logits
    return {"mean": float(np.asarray(logits, dtype=np.float64).mean())}


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    pass


@pytest.fixture
def folder() -> Any:
    with tempfile.TemporaryDirectory() as path:
        yield path
