"""Launches ``launched.py`` in real processes, and reads what they wrote."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import torch as tensors

HERE = Path(__file__).parent
_TIMEOUT_S = 240
#: What a launch of ours must find by itself.
_LAUNCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
           "DS_ACCELERATOR", "ACCELERATE_USE_DEEPSPEED")  # fmt: skip


@dataclass
class Rank:
    """What one process reported of one training."""

    report: dict[str, Any]
    weights: dict[str, Any]

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The log without its last entry, which is of one call alone."""
        return self.report["log"][:-1]

    @property
    def losses(self) -> list[float]:
        return [entry["loss"] for entry in self.report["log"] if "loss" in entry]

    @property
    def norms(self) -> list[float | None]:
        return [entry.get("grad_norm") for entry in self.report["log"] if "loss" in entry]


def torchrun(here: Path, processes: int, work: dict[str, Any]) -> dict[str, list[Rank]]:
    command = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--standalone"]
    _finish([_start([*command, *_script(here, work)], {})])
    return _read(here, processes, work)


def mpi(here: Path, processes: int, work: dict[str, Any]) -> dict[str, list[Rank]]:
    """As Open MPI starts them: its variables, and none of torch's."""
    script = _script(here, work)
    shared = {
        "OMPI_COMM_WORLD_SIZE": str(processes),
        "OMPI_COMM_WORLD_LOCAL_SIZE": str(processes),
        "PMIX_NAMESPACE": f"prterun-{socket.gethostname()}-{os.getpid()}@1",
    }
    _finish(
        [
            _start(
                script,
                shared
                | {"OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_LOCAL_RANK": str(rank)},
            )
            for rank in range(processes)
        ]
    )
    return _read(here, processes, work)


def plainly(here: Path, work: dict[str, Any]) -> dict[str, list[Rank]]:
    """One process, without a launcher."""
    _finish([_start(_script(here, work), {})])
    return _read(here, 1, work)


def _script(here: Path, work: dict[str, Any]) -> list[str]:
    here.mkdir(exist_ok=True)
    (here / "work.json").write_text(json.dumps(work))
    return [str(HERE / "launched.py"), str(here / "work.json")]


def _start(command: list[str], more: dict[str, str]) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k not in _LAUNCH}
    environment |= {"PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(
        [sys.executable, *command],
        env=environment | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _finish(started: list[subprocess.Popen[str]]) -> None:
    try:
        for process in started:
            said = process.communicate(timeout=_TIMEOUT_S)[0]
            assert process.returncode == 0, said[-8000:]
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
                process.communicate()


def _read(here: Path, processes: int, work: dict[str, Any]) -> dict[str, list[Rank]]:
    return {
        name: [
            Rank(
                json.loads((here / f"{name}.{rank}.json").read_text()),
                tensors.load_file(here / f"{name}.{rank}.safetensors"),
            )
            for rank in range(processes)
        ]
        for name in work
    }
