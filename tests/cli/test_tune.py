"""``luthier tune``: flags of the verb, of the updater, and of the functions in the file."""

import os
import signal
import subprocess
import sys

import pytest

from luthier.cli.tune import read_space
from luthier.doors.config_file import ConfigFile, arguments_of
from luthier.errors import SpecError

CONFIG = """
import torch
from luthier.tuning.arrays import TensorDataModule


def data_module_fn(chunk_id: int, rows: int = 60, name: str = "a"):
    generator = torch.Generator().manual_seed(chunk_id)
    labels = 2 * chunk_id + torch.arange(rows) % 2
    inputs = torch.nn.functional.one_hot(labels, 4).float()
    inputs += 0.1 * torch.randn(rows, 4, generator=generator)
    return TensorDataModule(inputs, labels, test_size=0.0, val_size=0.3)


def model_fn(model_state_url=None, width: int = 8):
    layers = torch.nn.Linear(4, width), torch.nn.Tanh(), torch.nn.Linear(width, 4)
    return torch.nn.Sequential(*layers)
"""
FILE = ConfigFile("/config.py", "ab" * 32, arguments_of(CONFIG, "config.py"))


def test_values_have_the_types_that_the_file_says() -> None:
    words = ["--width", "16", "--name", "1e3", "--learning-rate=0.05", "--asymmetric", "true"]
    assert read_space(words, FILE) == {
        "width": 16, "name": "1e3", "learning_rate": 0.05, "asymmetric": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["width", "3"], "is no flag"),
        (["--width"], "has no value"),
        (["--width", "3", "--width", "4"], "given twice"),
    ],
)
def test_what_is_no_flag_is_told(words, message) -> None:
    with pytest.raises(SpecError, match=message):
        read_space(words, FILE)


def test_a_misspelt_flag_names_the_right_one(luthier, tmp_path) -> None:
    (tmp_path / "config.py").write_text(CONFIG)
    said = luthier(
        "tune", "--config-file", tmp_path / "config.py", "--widht", "3", "--chunk-id", "0"
    )
    assert said.code == 2
    assert "did you mean 'width'" in said.err


def test_two_updates_from_the_command_line(luthier, tmp_path) -> None:
    (tmp_path / "config.py").write_text(CONFIG)
    worker = subprocess.Popen(
        [sys.executable, "-m", "luthier", "worker"],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    words = ["--config-file", tmp_path / "config.py", "--updater", "DER", "--max-epochs", 10]
    words += ["--optimizer", "SGD", "--learning-rate", 0.5, "--memory-size", 20]
    words += ["--accelerator", "cpu", "--output-state-url", tmp_path / "state"]
    try:
        first = luthier("tune", *words, "--chunk-id", 0)
        assert first.code == 0, first.err
        assert "accuracy after update" in first.out.lower()
        assert "nothing to compare: there are no rows of earlier chunks" in first.out
        second = luthier(
            "tune", *words, "--chunk-id", 1, "--input-state-url", tmp_path / "state",
            "--forgetting-budget", 0.9, "--stability-steps", 2, "--json",
        )  # fmt: skip
        assert second.code == 0, second.err
        assert [len(row) for row in second.document["update"]["matrix"]] == [1, 2]
        assert second.document["update"]["average"] > 0.8
        assert second.document["update"]["promoted"] is True
        assert second.document["update"]["stability"]["curve"][0]["step"] == 2
    finally:
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(timeout=60) == 0
