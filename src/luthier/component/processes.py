"""Several processes that train one model: what torchrun or Open MPI started.

Each takes its share of a step's rows; gradients and losses are summed, weighted by targets, so
that a step is that of one process with all the rows. All evaluate the same; the first writes.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from luthier.engine.control import Control
from luthier.engine.distribute import adopt_mpi, distribution
from luthier.engine.means import Means
from luthier.engine.state import random_states
from luthier.errors import TrainingError
from luthier.trainer.ranks import bring_together, read_rank

if TYPE_CHECKING:
    from luthier.engine.setup import Setup

#: Bytes of gradients that are summed at once: few calls, and a bounded second copy.
_BUCKET_BYTES = 32 << 20

#: A process that comes this late is not waited for: evaluations and checkpoints lie between.
_TIMEOUT = timedelta(hours=2)

_WISHES = (None, "interrupt", "cancel")

#: What gloo, NCCL and torch's store say when the process at the other end is gone.
_GONE = ("closed by peer", "reset by peer", "gloo", "NCCL", "Broken pipe", "TCPStore", "store->get")


def launched() -> int:
    """How many processes a launcher started. Raises SpecError for numbers that do not fit."""
    adopt_mpi()
    return distribution().processes


@contextmanager
def joined() -> Iterator[None]:
    """This process as one of its launch's, until it ends: a launch has one meeting place, where a
    second group would find the addresses of the first.

    Raises TrainingError where another process is lost on the way.
    """
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    here = distribution()
    if backend == "nccl":
        torch.cuda.set_device(here.local_rank)
    if "OMP_NUM_THREADS" not in os.environ:  # else accelerate does it, with a warning
        threads = max(1, torch.get_num_threads() // here.per_instance)
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)
    with naming_the_lost():
        if not dist.is_initialized():
            dist.init_process_group(backend, timeout=_TIMEOUT)
            atexit.register(_leave)
        yield


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def naming_the_lost() -> Iterator[None]:
    """Says plainly that another process was lost."""
    try:
        yield
    except RuntimeError as error:
        if not any(word in str(error) for word in _GONE):
            raise
        rank, count = (os.environ.get(name, "?") for name in ("RANK", "WORLD_SIZE"))
        raise TrainingError(
            f"another of the {count} processes is gone; this was process {rank}",
            hint="its own message says why; the same command with --resume_from_checkpoint true "
            "goes on from the last checkpoint",
        ) from error


class Processes(Means):
    """One of several processes, each with the whole model."""

    def __init__(self, *, compiles: bool = False) -> None:
        self.rank, self.processes = dist.get_rank(), dist.get_world_size()
        self.compiles = compiles
        self.device = torch.device("cpu")
        if dist.get_backend() == "nccl":
            self.device = torch.device("cuda", torch.cuda.current_device())

    @contextmanager
    def first(self) -> Iterator[None]:
        if not self.writes:
            self.barrier()
        yield
        if self.writes:
            self.barrier()
        self.barrier()

    def barrier(self) -> None:
        dist.all_reduce(torch.zeros(1, device=self.device))  # a barrier that all backends have

    def agreed(self, control: Control) -> Control:
        def ask() -> Any:
            wish = torch.tensor(_WISHES.index(control()), device=self.device)
            dist.all_reduce(wish, dist.ReduceOp.MAX)
            return _WISHES[int(wish)]

        return ask

    def attach(self, setup: Setup) -> None:
        with torch.no_grad():
            for parameter in setup.model.parameters():
                dist.broadcast(parameter.data, 0)

    def remember(self, setup: Setup, folder: Path | None) -> None:
        bring_together(self._mine(setup), folder, self.device)

    def _mine(self, setup: Setup) -> dict[str, Any]:
        return {"random": random_states()}

    def recall(self, folder: Path) -> dict[str, Any]:
        return {} if self.writes else read_rank(folder, self.rank)

    # --- a step ------------------------------------------------------------------------------

    def share(self, rows: np.ndarray) -> np.ndarray:
        return np.array_split(rows, self.processes)[self.rank]

    def total(self, count: int) -> int:
        return int(self._sum([float(count)])[0])

    def settle(
        self, parameters: Iterable[nn.Parameter], loss: float, failure: Exception | None
    ) -> float:
        failed, whole = self._sum([float(failure is not None), loss])
        if failure is not None:
            raise failure
        if failed:
            raise torch.OutOfMemoryError("another process ran out of memory")
        self._sum_gradients([p for p in parameters if p.requires_grad])
        return whole

    def _sum(self, values: list[float]) -> list[float]:
        told = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(told)
        found: list[float] = told.tolist()
        return found

    def _sum_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Those that have one anywhere: an optimizer leaves out what has none."""
        there = torch.tensor([p.grad is not None for p in parameters], device=self.device).int()
        dist.all_reduce(there, dist.ReduceOp.MAX)
        with torch.no_grad():
            for bucket in _buckets([p for p, t in zip(parameters, there, strict=True) if t]):
                flat = torch.cat([_gradient(p).flatten() for p in bucket])
                dist.all_reduce(flat)
                parts = torch.split(flat, [p.numel() for p in bucket])
                for parameter, part in zip(bucket, parts, strict=True):
                    parameter.grad = part.view_as(parameter).clone()


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _buckets(parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    bucket: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        bytes_ = parameter.numel() * parameter.element_size()
        if bucket and (size + bytes_ > _BUCKET_BYTES or parameter.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += bytes_
    if bucket:
        yield bucket
