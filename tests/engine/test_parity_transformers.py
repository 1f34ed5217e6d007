"""The loop is transformers.Trainer's: same model, order and arguments, same loss each step."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.utils.data import SequentialSampler
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from luthier.engine.control import ignore, keep_going
from luthier.engine.device import Device
from luthier.engine.loop import Loop, Moments
from luthier.engine.optim import build_optimization
from luthier.engine.state import History, Position
from luthier.spec import TrainingSpec

ROWS, BATCH, LENGTH = 40, 8, 12


class Classifier:
    """A task that is none of ours, behind the seam that the loop knows."""

    def __init__(self, model, rows) -> None:
        self.model, self.rows = model, rows

    def fetch(self, rows):
        return {k: torch.stack([self.rows[i][k] for i in rows]) for k in self.rows[0]}

    def size(self, batch) -> int:
        return len(batch["labels"])

    def backward(self, batch, micro) -> float:
        loss = self.model(**batch).loss
        loss.backward()
        return loss.item()

    def mode(self, training) -> None:
        self.model.train(training)

    def modules(self):
        return (self.model,)


class InOrder:
    batch_size, steps_per_epoch, notes = BATCH, ROWS // BATCH, ()

    def rows(self, epoch, step) -> np.ndarray:
        return np.arange(step * BATCH, (step + 1) * BATCH)


class Seeding(Moments):
    """Seeds the dropout of each step. Trainer's data loader draws a number an epoch, so the
    random stream as a whole is not comparable; each step's is."""

    def __init__(self) -> None:
        self.done = 0
        torch.manual_seed(0)

    def step_ended(self) -> bool:
        self.done += 1
        torch.manual_seed(self.done)
        return False

    def epoch_ended(self) -> bool:
        return False


class OrderedTrainer(Trainer):
    """Trainer in order, with the dropout of each step seeded, and losses not rounded."""

    losses: list[float]

    def _get_train_sampler(self, dataset=None):
        return SequentialSampler(self.train_dataset)

    def training_step(self, *args, **kwargs):
        torch.manual_seed(self.state.global_step)
        loss = super().training_step(*args, **kwargs)
        self.losses.append(loss.item())
        return loss


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        num_labels=3,
    )
    return BertForSequenceClassification(config)


@pytest.fixture
def rows():
    random = torch.Generator().manual_seed(1)
    return [
        {
            "input_ids": torch.randint(0, 50, (LENGTH,), generator=random),
            "attention_mask": torch.ones(LENGTH, dtype=torch.long),
            "labels": torch.randint(0, 3, (), generator=random),
        }
        for _ in range(ROWS)
    ]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant_with_warmup", "polynomial"])
@pytest.mark.parametrize(("theirs", "ours"), [("adamw_torch", "AdamW"), ("sgd", "SGD")])
def test_every_step_is_the_trainers(tmp_path, model, rows, schedule, theirs, ours, one_thread):
    twin = copy.deepcopy(model)
    arguments = TrainingArguments(
        str(tmp_path),
        num_train_epochs=2,
        per_device_train_batch_size=BATCH,
        learning_rate=1e-3,
        optim=theirs,
        lr_scheduler_type=schedule,
        warmup_steps=3,
        max_grad_norm=0.5,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = OrderedTrainer(twin, arguments, train_dataset=rows)
    trainer.losses = []
    trainer.train()
    expected = [entry for entry in trainer.state.log_history if "loss" in entry]

    spec = TrainingSpec(
        optim=ours,
        optim_args={"weight_decay": 0.0},
        learning_rate=1e-3,
        lr_scheduler_type=schedule,
        num_warmup_steps=3,
        max_grad_norm=0.5,
    )
    history = History()
    total = 2 * ROWS // BATCH
    optimization = build_optimization(
        spec,
        [(n, p, 0) for n, p in model.named_parameters()],
        device=Device("cpu", "fp32"),
        total_steps=total,
    )
    loop = Loop(
        Classifier(model, rows),
        InOrder(),
        optimization,
        total,
        Position(),
        history,
        Seeding(),
        lambda: None,
        ignore,
        keep_going,
    )
    loop.train()

    assert len(history.losses) == len(trainer.losses) == total
    np.testing.assert_allclose(history.losses, trainer.losses, atol=1e-6, rtol=0)
    np.testing.assert_allclose(
        history.learning_rates, [e["learning_rate"] for e in expected], atol=1e-7
    )
    for name, parameter in twin.named_parameters():
        torch.testing.assert_close(
            dict(model.named_parameters())[name], parameter, atol=1e-6, rtol=0
        )
