"""Who of several processes this one is, from what the launcher left in the environment.

torchrun says it in RANK, WORLD_SIZE and LOCAL_RANK, which torch, accelerate and DeepSpeed read.
Open MPI's ``mpirun`` says the same in names of its own; pip's torch has no MPI backend, so its
processes are made known by torch's names, and talk over gloo or NCCL.
"""

from __future__ import annotations

import os
import socket
import zlib
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from luthier.errors import Problem, SpecError

#: Open MPI's names, and those of torch.
_MPI = {
    "OMPI_COMM_WORLD_RANK": "RANK",
    "OMPI_COMM_WORLD_SIZE": "WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_RANK": "LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "LOCAL_WORLD_SIZE",
}

#: What Open MPI 4 and 5 call the launch as a whole: the same text in each of its processes.
_LAUNCH = ("OMPI_MCA_ess_base_jobid", "PMIX_NAMESPACE", "OMPI_MCA_orte_hnp_uri")

_LOOPBACK, _PORT = "127.0.0.1", 29500  # torchrun's own
_PORTS = range(20_000, 30_000)  # below those that Linux hands out by itself, from 32768 on


@dataclass(frozen=True)
class Distribution:
    """Processes that train one model. ``rank`` counts all, ``local_rank`` those of an instance."""

    rank: int = 0
    processes: int = 1
    local_rank: int = 0
    per_instance: int = 1

    @property
    def instances(self) -> int:
        """Machines, each with ``per_instance`` processes."""
        return self.processes // self.per_instance


def distribution(environment: Mapping[str, str] | None = None) -> Distribution:
    """What torch's names say; one process where they are not set.

    Raises SpecError for numbers that do not fit together."""
    given = os.environ if environment is None else environment
    processes, rank = _number(given, "WORLD_SIZE", 1), _number(given, "RANK", 0)
    per_instance = _number(given, "LOCAL_WORLD_SIZE", processes)
    local = _number(given, "LOCAL_RANK", rank % max(1, per_instance))
    problems = []
    if not 0 <= rank < processes:
        problems.append(Problem("RANK", f"lies in [0, {processes}), not {rank}"))
    if not 1 <= per_instance <= processes or processes % per_instance:
        message = f"{processes} processes are not so many instances of {per_instance}"
        problems.append(Problem("LOCAL_WORLD_SIZE", message))
    elif not 0 <= local < per_instance:
        problems.append(Problem("LOCAL_RANK", f"lies in [0, {per_instance}), not {local}"))
    if problems:
        raise SpecError(problems)
    return Distribution(rank, processes, local, per_instance)


def adopt_mpi(environment: MutableMapping[str, str] | None = None) -> bool:
    """Say in torch's names what Open MPI said in its own; whether there was anything to say.

    What torchrun said stays. Where MASTER_ADDR is open, the processes meet on the loopback
    address. Raises SpecError for several instances without MASTER_ADDR."""
    given = os.environ if environment is None else environment
    if "RANK" in given or "OMPI_COMM_WORLD_RANK" not in given:
        return False
    words = {torch: given[mpi] for mpi, torch in _MPI.items() if mpi in given}
    found = distribution(words)
    if found.instances > 1 and "MASTER_ADDR" not in given:
        message = f"{found.instances} instances do not know where to meet"
        hint = "mpirun -x MASTER_ADDR=<the address of rank 0>"
        raise SpecError([Problem("MASTER_ADDR", message, hint)])
    given.update(words)
    given.setdefault("MASTER_ADDR", _LOOPBACK)
    given.setdefault("MASTER_PORT", str(_meeting_port(given)))
    return True


def alone(environment: MutableMapping[str, str] | None = None) -> bool:
    """For engines that want to be launched, as DeepSpeed does: one process as a group of one.
    Whether that was needed."""
    given = os.environ if environment is None else environment
    if "RANK" in given:
        return False
    with socket.socket() as free:
        free.bind((_LOOPBACK, 0))
        port = free.getsockname()[1]
    given.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")
    given.setdefault("MASTER_ADDR", _LOOPBACK)
    given.setdefault("MASTER_PORT", str(port))
    return True


def _meeting_port(given: Mapping[str, str]) -> int:
    """One that all processes of a launch know, and two launches on a machine hardly share."""
    launch = next((given[name] for name in _LAUNCH if name in given), None)
    return _PORT if launch is None else _PORTS[zlib.crc32(launch.encode()) % len(_PORTS)]


def _number(given: Mapping[str, str], name: str, default: int) -> int:
    text = given.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise SpecError([Problem(name, f"is a number, not {text!r}")]) from None
