"""What one update leaves for the next.

It lies in ``luthier/update`` of a bundle: ``update.json`` (numbers, names, the history),
``update.safetensors`` (averages, Fisher information, scores that were noted), and the rows that
are remembered to train on (``memory``) and to measure on (``validation``), as their kind of data
is kept.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from luthier.engine.control import Listener
from luthier.engine.read import Place
from luthier.engine.resolved import RESOLVED, Resolved
from luthier.engine.state import aligned, unflatten
from luthier.spec import JobSpec
from luthier.store.bundle import Bundle, open_bundle

FOLDER = "update"

#: What a run notes when it begins: the generation that its own will follow.
PARENT = "output_generation"


class Remembered(Protocol):
    """Raw rows that are kept for the next update."""

    def save(self, folder: Path, name: str) -> None:
        """Write them into a folder, in a file of that name; nothing for none."""


@dataclass
class Past:
    """What former updates left. seen: rows in all of them. chunks: the update that each
    remembered validation item came with. history: one entry an update. merge: what merging of
    weights left, and its kind."""

    updates: int = 0
    seen: int = 0
    classes: list[int] = field(default_factory=list)
    chunks: list[int] = field(default_factory=list)
    updater: str = ""
    memory: dict[str, Any] | None = None
    state: list[dict[str, Any]] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    merge: dict[str, Any] = field(default_factory=dict)


def read_past(bundle: Path) -> Past:
    """The past in the folder ``luthier`` of a bundle; nothing where there is none."""
    folder = bundle / FOLDER
    if not (folder / "update.json").exists():
        return Past()
    saved = json.loads((folder / "update.json").read_text())
    tensors = aligned(folder / "update.safetensors")
    parts = unflatten(saved.pop("parts"), tensors)
    return Past(**saved, memory=parts["memory"], state=parts["state"],
                merge=parts.get("merge", {}))  # fmt: skip


def commit(url: str, bundle: Bundle, place: Place, tell: Listener) -> None:
    """Make a result the next generation of a state. Done again after a crash it changes nothing.

    Raises StateConflict where another update was committed meanwhile.
    """
    from luthier.store.states import commit_state

    parent = Resolved(place.folder / RESOLVED).once(PARENT, lambda: 0)
    generation = commit_state(bundle, url, parent=parent, meta={"spec_id": bundle.meta["spec_id"]})
    tell("log", {"level": "info", "message": f"{url}: generation {generation} is committed"})


def start_of(spec: JobSpec, place: Place, resolved: Resolved, tell: Listener) -> Path | None:
    """The folder of the bundle that an update starts from; a later attempt starts from the same.
    None: from the pretrained model. Raises NotFound where a state that is named is not there."""
    from luthier.store.states import head, read_state

    given, made = spec.update.input_state_url, spec.update.output_state_url
    if made is not None:  # what is committed later must follow what is there now
        resolved.once(PARENT, lambda: head(made))
    if spec.model.artifact:
        return open_bundle(place.artifacts(spec.model.artifact)).path
    if given is None:
        return None
    number = resolved.once("input_generation", lambda: read_state(given, place.cache).generation)
    state = read_state(given, place.cache, generation=number)
    tell("log", {"level": "info", "message": f"{given}: generation {state.generation}"})
    return state.bundle.path
