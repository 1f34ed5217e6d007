"""A finetune in two processes over gloo: the losses of one with all the rows, one that writes, one
that is killed."""

import os
import signal
import subprocess
import sys

import psutil
import pytest
import torch
from launching_steps import TORCHRUN, World, environment, launch

from luthier.errors import SpecError

#: Two processes with rows of 4, and one with rows of 8; 35 rows, so that batches are uneven.
TWO = {"num_train_epochs": 2, "weight_decay": 0.01, "evaluation_strategy": "steps", "eval_steps": 4}
ONE = TWO | {"per_device_train_batch_size": 8}
LORA = {"apply_lora": "true", "lora_r": 2}
#: The gradient of a key's bias is zero but for rounding, and Adam makes whole steps of it.
NOISE = "attention.self.key.bias"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = World(tmp_path_factory.mktemp("processes"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made.here("one", **ONE)
    made.here("one lora", **ONE, **LORA)
    torch.set_num_threads(threads)
    return made


#: 35 rows by 2 processes of 2 rows, twice: the last step has 3 rows, for 2 processes.
PARTS = TWO | {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}


@pytest.fixture(scope="module")
def drops(tmp_path_factory):
    """With dropout, so that each process's random states matter."""
    return World(tmp_path_factory.mktemp("drops"), dropout=0.1)


RESUMED = {"lr_scheduler_type": "constant", "evaluation_strategy": "steps", "eval_steps": 3}


@pytest.fixture(scope="module")
def done(world, drops):
    """All in one launch: most of its time goes into imports."""
    return launch(
        world.folder,
        2,
        [
            ("two", world.flags("two", **TWO)),
            ("two lora", world.flags("two lora", **TWO, **LORA)),
            ("parts", world.flags("parts", **PARTS)),
            ("whole", drops.flags("whole", max_steps=7, **RESUMED)),
            ("cut", drops.flags("cut", max_steps=3, **RESUMED)),
            ("again", drops.flags("cut", max_steps=7, resume_from_checkpoint="true", **RESUMED)),
        ],
    )


@pytest.mark.parametrize(
    ("name", "one"), [("two", "one"), ("two lora", "one lora"), ("parts", "one")]
)
def test_the_losses_of_one_process_with_twice_the_rows(done, world, name, one) -> None:
    assert len(world.losses(one)) == 10
    assert world.losses(name) == pytest.approx(world.losses(one), rel=1e-5)
    expected = world.weights(one)
    for key, weight in world.weights(name).items():
        if not key.endswith(NOISE):
            torch.testing.assert_close(weight, expected[key], rtol=1e-4, atol=1e-5)


def test_only_the_first_writes(done) -> None:
    for first, second in done.values():
        assert first["wrote"]
        assert not second["wrote"]


def test_resumed_is_the_uninterrupted(done, drops) -> None:
    assert drops.losses("cut") == drops.losses("whole")
    again = drops.weights("cut")
    assert all(torch.equal(again[name], weight) for name, weight in drops.weights("whole").items())


def test_another_number_of_processes_is_another_run(done, drops) -> None:
    with pytest.raises(SpecError) as caught:
        drops.here("cut", max_steps=9, resume_from_checkpoint="true", **RESUMED)
    (problem,) = caught.value.problems
    assert str(problem).startswith("processes: is 1, but the run to be resumed had 2")


def _command(world, name, **given):
    words = [word for n, v in world.flags(name, **given).items() for word in (f"--{n}", v)]
    return [sys.executable, *TORCHRUN, "2", "-m", "luthier", "component", "finetune", *words]


def _start(command):
    return subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _rank(launcher, rank):
    ranks = psutil.Process(launcher.pid).children()
    return next(p for p in ranks if p.environ().get("RANK") == str(rank))


def _until(world, name, text, act, **given):
    """A launch that is acted on when it says something. Its code, and all that it said."""
    with _start(_command(world, name, **given)) as started:
        said = []
        for line in started.stdout:
            said.append(line)
            if text in line:
                act(started)
        return started.wait(120), "".join(said)


def _to_the_end(world, name, **given):
    with _start(_command(world, name, **given)) as started:
        said, _ = started.communicate(timeout=200)
    assert started.returncode == 0, said
    return said


LONG = RESUMED | {"num_train_epochs": 4}


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_run_and_it_goes_on(drops, rank) -> None:
    name, straight = f"killed {rank}", f"straight {rank}"
    code, said = _until(
        drops, name, "checkpoint after step 6",
        lambda started: os.kill(_rank(started, rank).pid, signal.SIGKILL), **LONG,
    )  # fmt: skip
    assert code == 1, said
    assert f"another of the 2 processes is gone; this was process {1 - rank}" in said
    assert "--resume_from_checkpoint true goes on" in said
    assert not (drops.folder / name / "model.safetensors").exists()
    assert "resuming after step" in _to_the_end(drops, name, resume_from_checkpoint="true", **LONG)
    _to_the_end(drops, straight, **LONG)
    # Bit for bit but for the matrix products, which each launch measures and chooses for itself.
    assert drops.losses(name) == pytest.approx(drops.losses(straight), rel=1e-5)


@pytest.mark.slow
def test_a_stopped_launch_goes_on(drops) -> None:
    """torchrun hands SIGTERM on: all stop after the same batch, with a checkpoint."""
    _, said = _until(
        drops, "stopped", "checkpoint after step 6",
        lambda started: started.send_signal(signal.SIGTERM), **LONG,
    )  # fmt: skip
    assert "the same command with --resume_from_checkpoint true goes on" in said
    assert "processes is gone" not in said
    told = _to_the_end(drops, "stopped", resume_from_checkpoint="true", **LONG)
    assert "resuming after step" in told
    assert len(drops.losses("stopped")) == 20


@pytest.mark.slow
def test_open_mpi_starts_the_same(done, world) -> None:
    """By its variables, and none of torch's."""
    words = [word for n, v in world.flags("mpi", **TWO).items() for word in (f"--{n}", v)]
    shared = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
              "PMIX_NAMESPACE": f"prterun-{os.getpid()}@1"}  # fmt: skip
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "luthier", "component", "finetune", *words],
            env=environment() | shared
            | {"OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    told = []
    for process in started:
        with process:
            told.append(process.communicate(timeout=200)[0])
    assert [process.returncode for process in started] == [0, 0], told
    assert world.losses("mpi") == world.losses("two")
