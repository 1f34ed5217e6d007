"""luthier's engine, as a worker runs it, on a case's job."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

from luthier.benchmark.steering import Gate
from luthier.benchmark.work import Job


def main(job: Job, gate: Gate) -> None:
    """Train until the gate says that it was all."""
    import torch

    torch.set_num_threads(job.threads)
    from luthier.engine.control import Cancelled
    from luthier.engine.run import Place, run
    from luthier.models.allocator import bound_primitives, keep_freed_memory
    from luthier.spec import parse_spec

    keep_freed_memory()  # as a worker does
    bound_primitives()

    def tell(kind: str, data: dict[str, Any]) -> None:
        # The clock starts before the model is loaded, here and at the peers: what luthier
        # prepares between that and the first step is part of the time of a whole training.
        if kind == "stage" and data["name"] == "loading the model":
            gate.open()
        elif kind == "step":
            gate.note(data["loss"])

    def control() -> Literal["cancel"] | None:
        gate.begin()
        return None if gate.go_on() else "cancel"

    scratch = Path(job.scratch)
    (scratch / "run").mkdir()
    place = Place(scratch / "run", scratch / "cache", Path, Path)
    try:
        run(parse_spec(Path(job.spec).read_text()), place, tell, control)
    except Cancelled:
        return
    raise SystemExit("the training ended before it was told to")


if __name__ == "__main__":
    main(Job.read(sys.argv[1]), Gate(int(sys.argv[2])))
