"""What each of several processes remembers for itself, brought into one checkpoint.

Random states, the losses since the last log and, with ZeRO, its shard of the optimizer. Rank 0
keeps its own in the checkpoint's ``state``; those of the others are in files beside it, sent to
the process that writes: no two processes need to see the same disk. Nothing is pickled, on the
way or on the disk.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save

from luthier.engine.state import flatten, unflatten
from luthier.errors import CorruptBundle

_CHUNK_BYTES = 64 << 20  # of a memory that a process must have to spare
_TREE = "tree"


def bring_together(mine: dict[str, Any], folder: Path | None, device: torch.device) -> None:
    """Write what all ranks but the first remember into ``folder``; every rank calls this.

    folder: None in the processes that do not write. device: through which they talk."""
    payload = b"" if dist.get_rank() == 0 else _bytes(mine)
    for rank in range(1, dist.get_world_size()):
        with open(_file(folder, rank), "wb") if folder else nullcontext() as sink:
            _send(payload, rank, sink, device)


def read_rank(folder: Path, rank: int) -> dict[str, Any]:
    """What a rank above 0 remembered. Raises CorruptBundle where there is no such file."""
    path = _file(folder, rank)
    if not path.exists():
        raise CorruptBundle("the state of this process is missing", where=str(path))
    with safe_open(path, framework="pt") as file:
        tree = json.loads(file.metadata()[_TREE])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    found: dict[str, Any] = unflatten(tree, tensors)
    return found


def _file(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.safetensors"


def _bytes(tree: dict[str, Any]) -> bytes:
    tensors: dict[str, torch.Tensor] = {}
    text = json.dumps(flatten(tree, tensors, "rank"))
    return save(tensors, metadata={_TREE: text})


def _send(payload: bytes, sender: int, sink: BinaryIO | None, device: torch.device) -> None:
    """A broadcast: with ``save_on_each_node`` several write."""
    mine = dist.get_rank() == sender
    count = torch.tensor([len(payload) if mine else 0], device=device)
    dist.broadcast(count, sender)
    for start in range(0, int(count), _CHUNK_BYTES):
        size = min(_CHUNK_BYTES, int(count) - start)
        if mine:
            # A copy that can be written to: torch warns of bytes that cannot.
            part = bytearray(payload[start : start + size])
            chunk = torch.frombuffer(part, dtype=torch.uint8).to(device)
        else:
            chunk = torch.empty(size, dtype=torch.uint8, device=device)
        dist.broadcast(chunk, sender)
        if sink is not None:
            sink.write(chunk.cpu().numpy().tobytes())
