"""Two processes over gloo: the numbers of transformers, checkpoints that are whole, Open MPI."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from launching import Rank, mpi, torchrun

from conftest import TASKS
from luthier.store.bundle import open_bundle

ROWS = len(TASKS["classification"].rows)
SETTINGS = {
    "evaluates": True, "gradient_accumulation_steps": 2, "num_train_epochs": 2,
    "max_grad_norm": 0.5, "warmup_steps": 2, "weight_decay": 0.01,
}  # fmt: skip
SAVING = SETTINGS | {"save_strategy": "steps", "save_steps": 1}
#: What a checkpoint of several processes has to remember more than the seed for.
RESUMED = {
    "plain": {"logging_steps": 3},
    "jittered": {"jitter": True, "logging_steps": 3},
    "by length": {"group_by_length": True},
    "a stream": {
        "stream": True,
        "max_steps": 4,
        # accelerate cannot cut batches that are padded to different lengths in one process
        "accelerator_config": {"dispatch_batches": False},
    },
}


def resumed(name: str, settings: dict, here: Path, steps: list[int]) -> dict[str, dict]:
    """The training, and one that goes on from each of its checkpoints but the last."""
    work = {name: SAVING | settings}
    for step in steps:
        checkpoint = str(here / f"{name}-of-0" / f"checkpoint-{step}")
        work[f"{name} from {step}"] = SAVING | settings | {"resume": checkpoint}
    return work


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("torchrun")


@pytest.fixture(scope="module")
def done(here) -> dict[str, list[Rank]]:
    """All of this file's trainings in one launch: most of its time goes into imports."""
    work = {"theirs": SETTINGS | {"theirs": True}, "ours": SETTINGS | {"save_model": "saved"}}
    for name, settings in RESUMED.items():
        work |= resumed(name, settings, here, [1, 2, 3])
    return torchrun(here, 2, work)


def same(one: Rank, other: Rank) -> None:
    """Bit for bit."""
    assert one.steps == other.steps
    assert one.weights.keys() == other.weights.keys()
    for name, weight in one.weights.items():
        assert torch.equal(weight, other.weights[name]), name


@pytest.mark.parametrize("rank", [0, 1])
def test_the_numbers_of_transformers(done, rank) -> None:
    ours, theirs = done["ours"][rank], done["theirs"][rank]
    assert ours.report["wrapped"] == theirs.report["wrapped"] == "DistributedDataParallel"
    assert ours.report["processes"] == 2
    assert ours.report["rank"] == rank
    assert ours.report["asked"] == theirs.report["asked"]
    assert len(ours.losses) == 4
    same(ours, theirs)


def test_each_process_sees_rows_of_its_own(done) -> None:
    epoch = ROWS // 2 + 1  # 22 rows in batches of 4: the last ones are filled up with the first
    first, second = (rank.report["asked"][:epoch] for rank in done["ours"])
    assert first != second
    assert {*first, *second} == set(range(ROWS))
    assert len({*first} & {*second}) <= 2


@pytest.mark.parametrize("name", RESUMED)
def test_resumed_is_the_uninterrupted(done, name) -> None:
    for step in (1, 2, 3):
        for rank in (0, 1):
            same(done[f"{name} from {step}"][rank], done[name][rank])


def test_jitter_is_drawn_anew_by_each(done) -> None:
    """Else the test above would not need the random states of each process."""
    assert done["jittered"][0].losses != done["plain"][0].losses


def test_only_the_first_writes(done, here) -> None:
    assert not [p for p in here.glob("*-of-1/*") if p.is_file() or any(p.iterdir())]
    steps = sorted(p.name for p in (here / "plain-of-0").iterdir())
    assert steps == [f"checkpoint-{n}" for n in (1, 2, 3, 4)]


def test_checkpoints_are_whole_and_hold_no_pickle(done, here) -> None:
    for checkpoint in (here / "plain-of-0").iterdir():
        open_bundle(checkpoint)
        files = [p for p in checkpoint.rglob("*") if p.is_file()]
        assert {p.suffix for p in files} == {".json", ".safetensors"}
        parts = json.loads((checkpoint / "luthier" / "state.json").read_text())["parts"]
        assert parts["processes"] == 2
    model = transformers.BertForSequenceClassification.from_pretrained(here / "saved")
    for name, weight in model.named_parameters():
        assert torch.equal(weight, done["ours"][0].weights[name])


def test_open_mpi_starts_the_same(done, tmp_path) -> None:
    launched = mpi(tmp_path / "mpi", 2, {"ours": SETTINGS})
    for rank in (0, 1):
        same(launched["ours"][rank], done["ours"][rank])
        assert launched["ours"][rank].report["rank"] == rank
