"""What each process of a launch runs: ``luthier component finetune`` with the flags of a JSON file.

``python finetunes.py WORK.json``: a list of [name, flags], in order. Each rank writes
NAME.RANK.json: the exit code, what it wrote under the output, and what it held.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

#: Python's own words for what changes a disk.
_CHANGES = ("os.mkdir", "os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir")


class Writes:
    """Paths below a folder that this process has written."""

    def __init__(self) -> None:
        self.folder, self.paths = "", []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.folder:
            return
        if event == "open" and isinstance(args[1], str) and not set(args[1]) & set("wax+"):
            return
        if event == "open" and args[1] is None and not args[2] & (os.O_WRONLY | os.O_RDWR):
            return
        if event == "open" or event in _CHANGES:
            path = str(args[1] if event in ("os.rename", "os.link", "os.symlink") else args[0])
            if path.startswith(self.folder):
                self.paths.append(path)


def _engines() -> list[Any]:
    """Every DeepSpeed engine that is made."""
    made: list[Any] = []
    if os.environ.get("WATCH_DEEPSPEED"):
        import deepspeed

        initialize = deepspeed.initialize

        def watched(**given: Any) -> Any:
            found = initialize(**given)
            made.append((found[0], given["config"]))
            return found

        deepspeed.initialize = watched
    return made


def main() -> None:
    import torch

    from luthier.cli.main import run

    torch.set_num_threads(1)
    work = Path(sys.argv[1])
    writes, rank = Writes(), int(os.environ.get("RANK", "0"))
    if os.environ.get("WATCH_DEEPSPEED"):
        from luthier.component.sharded import get_ready

        get_ready()
    engines = _engines()
    for name, flags in json.loads(work.read_text()):
        engines.clear()
        writes.paths, writes.folder = [], flags["pytorch_model_folder"]
        words = [word for n, v in flags.items() for word in (f"--{n}", v)]
        code = run(["component", "finetune", *words])
        report: dict[str, Any] = {"code": code, "wrote": writes.paths}
        for engine, config in engines:
            report |= {
                "stage": engine.zero_optimization_stage(), "clipping": engine.gradient_clipping(),
                "config": config, "processes": engine.world_size,
                "held": sum(getattr(p, "ds_tensor", p).numel() for p in engine.parameters()),
                "all": sum(getattr(p, "ds_numel", p.numel()) for p in engine.parameters()),
            }  # fmt: skip
        (work.parent / f"{name}.{rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
