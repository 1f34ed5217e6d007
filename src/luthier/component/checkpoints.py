"""The checkpoints of a finetune as users see them, and how a stopped one goes on.

The engine keeps what it needs in its own folder and drops it when it is done. Here its
checkpoints get a second name, ``checkpoint-N``, and are kept as long as was asked for: at the end
of every epoch, and with evaluation_strategy "steps" after every evaluation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.component.folders import link_or_copy
from luthier.engine.control import Listener
from luthier.errors import CorruptBundle, NotFound, Problem, SpecError
from luthier.spec.job import JobSpec
from luthier.store import atomic
from luthier.store.bundle import candidates, newest_bundle, open_bundle

_NAME = re.compile(r"checkpoint-(\d+)\Z")
_NOTE = "finetune.json"

#: What may be other when a run goes on: how long it goes, when it is looked at, how it is kept.
_MAY_CHANGE = (
    *("training.num_train_epochs", "training.max_steps", "training.save_steps"),
    *("training.eval_steps", "training.per_device_eval_batch_size"),
    *("training.dataloader_num_workers", "callbacks"),
    # paths: what is there is known by its sha256
    *("model.name", "data.train.uri", "data.eval.uri"),
)


class Keeper:
    """A listener that names the engine's checkpoints ``checkpoint-N``. limit: how many; -1 all."""

    def __init__(self, place: Path, state: Path, spec: JobSpec, limit: int) -> None:
        self._place, self._state, self._limit = place, state, limit
        self._every = spec.training.eval_steps

    def __call__(self, kind: str, data: dict[str, Any]) -> None:
        if kind in ("checkpoint", "stage", "report"):
            self._keep()

    def end(self) -> None:
        """After the last event."""
        self._keep()

    def _keep(self) -> None:
        for path in reversed(self._due()):
            target = self._place / f"checkpoint-{_step(path)}"
            if not target.exists():
                copy_tree(path, target)
        if self._limit > 0:
            for path in numbered(self._place)[self._limit :]:
                atomic.remove(path)

    def _due(self) -> list[Path]:
        """The engine's checkpoints that users are to have, the newest first."""
        ends = candidates(self._state / "epochs")
        if self._every is None:
            return ends
        between = [p for p in candidates(self._state / "checkpoints") if not _step(p) % self._every]
        known = {_step(path) for path in between}
        return sorted(between + [p for p in ends[:1] if _step(p) not in known], key=_step)[::-1]


def _step(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def numbered(place: Path) -> list[Path]:
    """The folders ``checkpoint-N`` of an output, the newest first."""
    return [path for path in candidates(place) if _NAME.match(path.name)]


def copy_tree(source: Path, target: Path) -> None:
    """A folder under a second name, whole or not there; its files are not stored twice."""
    with atomic.new_folder(target) as aside:
        for path in source.rglob("*"):
            inner = aside / path.relative_to(source)
            if path.is_dir():
                inner.mkdir(parents=True, exist_ok=True)
            else:
                inner.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(path, inner)


def start_anew(place: Path, state: Path) -> None:
    """Forget an earlier run in this output."""
    for path in (state, *numbered(place)):
        atomic.remove(path)


def note(state: Path, spec: JobSpec, files: Mapping[str, str], words: Mapping[str, Any]) -> None:
    """Write down which job this is, for one that is to go on from it. words: with what it is
    computed."""
    state.mkdir(parents=True, exist_ok=True)
    for path in [state, *(p for p in state.iterdir() if p.is_dir())]:
        atomic.sweep(path)
    document = {
        "spec": spec.model_dump(mode="json"), "model_files": dict(files), "means": dict(words),
    }  # fmt: skip
    atomic.write_bytes(state / _NOTE, json.dumps(document, indent=1).encode())


def take_up(
    place: Path, state: Path, spec: JobSpec, files: Mapping[str, str], words: Mapping[str, Any],
    tell: Listener,
) -> None:  # fmt: skip
    """Make the state ready to go on from its newest good checkpoint.

    Raises SpecError where the run was started with other words, data or model: what went on
    would be neither that run nor another.
    """
    atomic.sweep(place)
    before = _noted(state)
    if before is None and not numbered(place):
        message = "there is nothing to resume: training starts at the beginning"
        tell("log", {"level": "warning", "message": message})
        start_anew(place, state)
        return
    if before is not None:
        _check_same(before, spec, files, words)
        if before["spec"] != spec.model_dump(mode="json"):
            _reopen(state)
    if not _has_result(state) and not candidates(state / "checkpoints"):
        _restore(place, state, tell)


def _noted(state: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads((state / _NOTE).read_text(encoding="utf-8"))
        return found if {"spec", "model_files"} <= found.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _check_same(
    before: Mapping[str, Any], spec: JobSpec, files: Mapping[str, str], words: Mapping[str, Any]
) -> None:
    old, new = _flat(before["spec"]), _flat(spec.model_dump(mode="json"))
    old |= _flat(before.get("means", {}), "means")
    new |= _flat(dict(words), "means")
    problems = [
        Problem(
            name.rpartition(".")[2],
            f"is {new.get(name)!r}, but the run to be resumed had {old.get(name)!r}",
            "give the same, or start anew with resume_from_checkpoint=false",
        )
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not name.startswith(_MAY_CHANGE)
    ]
    if dict(before["model_files"]) != dict(files):
        message = "is another model than the run to be resumed had"
        problems.append(Problem("model_selector_output", message))
    if problems:
        raise SpecError(problems)


def _flat(tree: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict) or not tree:
        return {path: tree}
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= _flat(value, f"{path}.{name}" if path else name)
    return found


def _has_result(state: Path) -> bool:
    try:
        open_bundle(state / "result")
    except (NotFound, CorruptBundle):
        return False
    return True


def _reopen(state: Path) -> None:
    """The words changed in what may change: a result that is there is not this job's."""
    atomic.remove(state / "result")


def _restore(place: Path, state: Path, tell: Listener) -> None:
    """Go on from the newest good ``checkpoint-N`` where the engine has none of its own."""

    def say(path: Path, error: CorruptBundle) -> None:
        message = f"{path.name} is damaged and is passed over: {error.message}"
        tell("log", {"level": "warning", "message": message})

    found = newest_bundle(place, say)
    if found is None or not _NAME.match(found.path.name):
        return
    target = state / "checkpoints" / f"step-{_step(found.path):08d}"
    target.parent.mkdir(parents=True, exist_ok=True)
    copy_tree(found.path, target)
