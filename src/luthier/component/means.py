"""Which means a finetune computes with: its processes, DeepSpeed, a compiler."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from luthier.component.processes import Processes, joined, launched
from luthier.doors.deepspeed_config import filled_deepspeed, read_deepspeed
from luthier.engine.means import Means
from luthier.errors import Problem, SpecError


@dataclass(frozen=True)
class Choice:
    """processes: that a launcher started. deepspeed: its config, completed; None without it."""

    processes: int
    compiles: bool
    deepspeed: Mapping[str, Any] | None

    def words(self) -> dict[str, Any]:
        """What of it a run that goes on must have again: its numbers hang on it."""
        return {
            "processes": self.processes, "apply_compile": self.compiles,
            "deepspeed": dict(self.deepspeed) if self.deepspeed is not None else None,
        }  # fmt: skip


def chosen(args: Mapping[str, Any], half: Literal["bf16", "fp16"]) -> tuple[Choice, list[str]]:
    """What the arguments and the launcher say, and what the user should be told of it.

    Raises SpecError with every contradiction.
    """
    processes = launched()
    if not args["apply_deepspeed"]:
        return Choice(processes, args["apply_compile"], None), []
    given = None
    if args["deepspeed"]:
        try:
            given = read_deepspeed(Path(args["deepspeed"]).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            message = "Invalid deepspeed config file. Unable to load json file."
            raise SpecError([Problem("deepspeed", message, str(error))]) from None
    config, notices = filled_deepspeed(given, args, half=half, world_size=processes)
    if given and "scheduler" in given:
        kind = args["lr_scheduler_type"]
        notices.append(f"deepspeed.scheduler: luthier's own '{kind}' is stepped, of the same rates")
    return Choice(processes, args["apply_compile"], config), notices


@contextmanager
def means_of(choice: Choice) -> Iterator[Means]:
    """The means while they last. Raises TrainingError where another process is lost."""
    if choice.deepspeed is not None:
        from luthier.component.sharded import Sharded, get_ready

        get_ready()
        with joined():
            yield Sharded(choice.deepspeed)
    elif choice.processes > 1:
        with joined():
            yield Processes(compiles=choice.compiles)
    else:
        means = Means()
        means.compiles = choice.compiles
        yield means
