"""Packed texts under an unmodified classification head: the logits and gradients are those of
the padded batch, and training is transformers.Trainer's."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from luthier.engine.classification import ClassificationLearner
from luthier.engine.control import ignore, keep_going
from luthier.engine.device import Device
from luthier.engine.loop import Loop, Moments
from luthier.engine.optim import build_optimization
from luthier.engine.state import History, Position
from luthier.models.classifier import SequenceClassifier
from luthier.models.execution import choose
from luthier.spec import TrainingSpec
from luthier.testing.models import tiny_text_model

WORDS = ["lemon", "banana", "a", "river", "stone", "quick", "brown", "fox", "over", "the"]
TEXTS = [" ".join(WORDS[: 1 + (i * 7) % 10]) for i in range(24)]
LABELS = np.arange(len(TEXTS)) % 3


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def classifier(tmp_path):
    def make(family: str = "bert") -> SequenceClassifier:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        path = tiny_text_model(tmp_path / family, family)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=3)
        model.config.pad_token_id = 0
        return SequenceClassifier(model, AutoTokenizer.from_pretrained(path))

    return make


#: A llama finds the last token by the padding in its input, MPNet and T5 do not pack.
@pytest.mark.parametrize(
    ("family", "execution"),
    [
        ("bert", "packed"),
        ("roberta", "packed"),
        ("distilbert", "packed"),
        ("electra", "packed"),
        ("albert", "chunked"),
        ("mpnet", "chunked"),
        ("llama", "chunked"),
    ],
)
def test_logits_and_gradients_are_the_padded_ones(classifier, family, execution) -> None:
    model = classifier(family)
    tokens = model.tokens(TEXTS)
    chosen, reason = choose(model, tokens)
    assert chosen == execution, reason

    def step(execution):
        model.execution = execution
        model.zero_grad(set_to_none=True)
        logits = model.logits(tokens)
        torch.nn.functional.cross_entropy(logits, torch.from_numpy(LABELS)).backward()
        found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        return logits.detach(), found

    plain, expected = step("padded")
    logits, gradients = step(chosen)
    assert model.calls[chosen] == 1
    torch.testing.assert_close(logits, plain, atol=2e-6, rtol=1e-5)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-3, msg=name)


class InOrder:
    batch_size, steps_per_epoch, notes = 8, len(TEXTS) // 8, ()

    def rows(self, epoch, step) -> np.ndarray:
        return np.arange(step * 8, (step + 1) * 8)


@pytest.mark.parametrize("micro", [None, 3])
def test_training_packed_is_the_trainers(classifier, tmp_path, micro) -> None:
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    model = classifier()
    twin = copy.deepcopy(model.model)
    rows = [
        {"input_ids": ids, "labels": int(label)}
        for ids, label in zip(model.tokenizer(TEXTS)["input_ids"], LABELS, strict=True)
    ]

    class Ordered(Trainer):
        losses: list[float] = []  # noqa: RUF012

        def _get_train_sampler(self, dataset=None):
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def training_step(self, *args, **kwargs):
            loss = super().training_step(*args, **kwargs)
            self.losses.append(loss.item())
            return loss

    trainer = Ordered(
        twin,
        TrainingArguments(
            str(tmp_path / "theirs"), num_train_epochs=2, per_device_train_batch_size=8,
            learning_rate=1e-3, optim="adamw_torch", lr_scheduler_type="constant",
            max_grad_norm=1.0, report_to=[], save_strategy="no", use_cpu=True,
            disable_tqdm=True, dataloader_pin_memory=False,
        ),
        train_dataset=rows,
        data_collator=DataCollatorWithPadding(model.tokenizer),
    )  # fmt: skip
    trainer.train()

    tokens, device = model.tokens(TEXTS), Device("cpu", "fp32")
    model.execution = "packed"
    history = History()
    spec = TrainingSpec(
        optim="AdamW", optim_args={"weight_decay": 0.0}, learning_rate=1e-3, max_grad_norm=1.0
    )
    depths = [(n, p, 0) for n, p in model.named_parameters()]
    Loop(
        ClassificationLearner(model, tokens.take, LABELS, device),
        InOrder(),
        build_optimization(spec, depths, device=device, total_steps=6),
        6,
        Position(micro=micro),
        history,
        Moments(),
        lambda: None,
        ignore,
        keep_going,
    ).train()
    assert model.calls["packed"] == 6 * (3 if micro else 1)
    np.testing.assert_allclose(history.losses, trainer.losses, atol=1e-5)
