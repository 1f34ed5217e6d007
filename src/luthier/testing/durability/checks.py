"""What must hold; each check returns what is wrong. They are what a deleted guard must trip."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from luthier.environment import FAILPOINT, WORKER
from luthier.errors import Conflict, CorruptBundle, LeaseLost, LuthierError, StoreError

ARTIFACT = "a" * 64


def power_cuts(folder: Path) -> list[str]:
    """After every operation of the disk, and whatever it forgets: the bundle before or the new
    one is found; and once its writing has returned, the new one."""
    from luthier.store.bundle import newest_bundle, write_bundle
    from luthier.testing.crashfs import lay_out, watched

    root = folder / "root"
    root.mkdir()

    def fill(step: int) -> Callable[[Path], None]:
        def into(aside: Path) -> None:
            (aside / "luthier").mkdir()
            (aside / "model.safetensors").write_bytes(bytes([step]) * 5000)
            (aside / "luthier" / "state.json").write_text(json.dumps({"step": step}))

        return into

    write_bundle(root / "step-1", fill(1), {"step": 1})
    with watched(root) as disk:
        write_bundle(root / "step-2", fill(2), {"step": 2})
    wrong = []
    for number, views in enumerate(disk.states):
        for kind, state in views.items():
            place = folder / f"{number}-{kind}"
            place.mkdir()
            lay_out(state, place)
            found = newest_bundle(place, lambda path, error: None)
            step = found.meta["step"] if found else None
            is_last = number == len(disk.states) - 1
            if step not in ((2,) if is_last else (1, 2)):
                wrong.append(f"after operation {number}, {kind}: found {step}")
    return wrong if disk.states else ["no operation was seen"]


def whole_or_absent(folder: Path) -> list[str]:
    """A writer that is killed leaves nothing under the name that it was writing."""
    code = (
        "from pathlib import Path; from luthier.store.bundle import write_bundle; import sys; "
        "write_bundle(Path(sys.argv[1]), lambda f: (f / 'x').write_text('1'), {})"
    )
    wrong = []
    for point in ("bundle.filled", "bundle.sealed", "folder.filled", "folder.synced"):
        target = folder / point / "step-1"
        done = subprocess.run(
            [sys.executable, "-c", code, str(target)],
            env=environment() | {FAILPOINT: f"{point}=kill"},
            check=False,
        )
        if done.returncode != -9 or target.exists():
            wrong.append(f"{point}: exit code {done.returncode}, there: {target.exists()}")
    return wrong


def bit_flips(folder: Path) -> list[str]:
    """Every flipped bit of a bundle is noticed."""
    from luthier.store.bundle import open_bundle, write_bundle

    def fill(aside: Path) -> None:
        (aside / "model.safetensors").write_bytes(b"weights")

    bundle = write_bundle(folder / "step-1", fill, {"step": 1})
    wrong = []
    for file in sorted(p for p in bundle.path.rglob("*") if p.is_file()):
        data = file.read_bytes()
        for bit in range(8 * len(data)):
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            file.write_bytes(changed)
            try:
                open_bundle(bundle.path)
            except CorruptBundle:
                continue
            except Exception as error:  # noticed, but not said
                wrong.append(f"{file.name}, bit {bit}: {error!r}")
            else:
                wrong.append(f"{file.name}, bit {bit}: not noticed")
        file.write_bytes(data)
    return wrong[:5]


def falls_back(folder: Path) -> list[str]:
    """A damaged newest bundle gives way to the one before."""
    from luthier.store.bundle import newest_bundle, write_bundle

    for step in (1, 2):
        write_bundle(
            folder / f"step-{step}", lambda aside: _write(aside / "x", "1"), {"step": step}
        )
    (folder / "step-2" / "x").write_text("2")
    found = newest_bundle(folder, lambda path, error: None)
    return [] if found and found.meta["step"] == 1 else [f"found {found}"]


def late_words(folder: Path) -> list[str]:
    """A worker whose lease was taken over can neither finish the run nor speak for it."""
    ledger, run_id = _claimed(folder)
    ledger.release(run_id, 1)
    claim = ledger.claim(_me())
    assert claim is not None
    wrong = []
    for name, verb in {
        "finish": lambda: ledger.finish(run_id, 1, ARTIFACT),
        "append": lambda: ledger.append(run_id, 1, [("log", {})]),
        "progress": lambda: ledger.progress(run_id, 1, checkpoint_step=1),
    }.items():
        try:
            verb()  # type: ignore[no-untyped-call]
        except LeaseLost:
            continue
        wrong.append(f"{name} was accepted from an old epoch")
    if ledger.heartbeat(run_id, 1).mine:
        wrong.append("a heartbeat was accepted from an old epoch")
    return wrong


def late_trials(folder: Path) -> list[str]:
    """Who has lost the lease of a search can make no trial of it."""
    ledger, search_id = _claimed(folder)
    ledger.release(search_id, 1)
    assert ledger.claim(_me()) is not None
    try:
        ledger.submit(_spec(), parent_id=search_id, parent_epoch=1)
    except LeaseLost:
        return []
    return ["a trial was made from an old epoch"]


def no_orphans(folder: Path) -> list[str]:
    """A search that was cancelled leaves no trial behind, and makes none any more."""
    ledger, search_id = _claimed(folder)
    trial = ledger.submit(_spec(), parent_id=search_id, parent_epoch=1)
    ledger.cancel(search_id)
    wrong = []
    if ledger.get(trial.id).status != "CANCELLED":
        wrong.append("the trial of a cancelled search waits to be run")
    try:
        ledger.submit(_spec(), parent_id=search_id, parent_epoch=1)
    except Conflict:
        return wrong
    return [*wrong, "a cancelled search made another trial"]


def one_run_a_key(folder: Path) -> list[str]:
    """The same key, from many at once and again later, is one run."""
    from luthier.runs.ledger import Ledger

    url = f"sqlite:///{folder}/luthier.db"
    Ledger(url).close()
    barrier = threading.Barrier(8)

    def submit(_: int) -> str:
        ledger = Ledger(url)
        barrier.wait()
        return ledger.submit(_spec(), idempotency_key="k").id

    with ThreadPoolExecutor(8) as threads:
        ids = set(threads.map(submit, range(8)))
    return [] if len(ids) == 1 else [f"one key gave {len(ids)} runs"]


def legal_only(folder: Path) -> list[str]:
    """The database refuses to let a finished run rise again, whoever asks."""
    import sqlalchemy as sa

    ledger, run_id = _claimed(folder)
    ledger.finish(run_id, 1, ARTIFACT)
    try:
        with ledger.database.write() as connection:
            connection.execute(
                sa.text("UPDATE runs SET status='CREATED', finished_at=NULL, artifact_id=NULL")
            )
    except (LuthierError, sa.exc.IntegrityError):
        return []
    return ["raw SQL made a finished run CREATED"]


def cancel_is_final(folder: Path) -> list[str]:
    """A run that was cancelled while at work does not finish."""
    import sqlalchemy as sa

    ledger, run_id = _claimed(folder)
    ledger.cancel(run_id)
    try:
        status = ledger.finish(run_id, 1, ARTIFACT).status
    except (LuthierError, sa.exc.IntegrityError) as error:
        return [f"finishing a cancelled run broke: {error}"]
    return [] if status == "CANCELLED" else [f"a cancelled run became {status}"]


def full_synchronous(folder: Path) -> list[str]:
    """The ledger's commits reach the disk before they are acknowledged."""
    from luthier.runs.ledger import Ledger

    try:
        ledger = Ledger(f"sqlite:///{folder}/luthier.db")
    except StoreError as error:
        return [str(error)]
    with ledger.database.read() as connection:
        level = connection.exec_driver_sql("PRAGMA synchronous").scalar()
    return [] if level == 2 else [f"synchronous is {level}"]


def one_embedded_worker(folder: Path) -> list[str]:
    """Two that look for a worker at the same time do not both get the lock."""
    from luthier.backends.local import locked

    with locked(folder / "lock") as first, locked(folder / "lock") as second:
        return [] if first is not None and second is None else ["two hold the lock"]


def resumes_exactly(folder: Path) -> list[str]:
    """The stand-in engine, interrupted in the middle, ends as the undisturbed one."""
    from luthier.testing import toy_engine

    return _resumes_exactly(folder, toy_engine.toy_spec(8), "luthier.testing.toy_engine")


def engine_resumes_exactly(folder: Path) -> list[str]:
    """The engine, interrupted in the middle, ends as the undisturbed one (with dropout)."""
    from luthier.testing.durability.jobs import real_jobs

    return _resumes_exactly(folder, real_jobs(folder, 8).specs[2], "luthier.engine.run")


def _resumes_exactly(folder: Path, spec: Any, engine_name: str) -> list[str]:
    from importlib import import_module

    from luthier.engine.control import Interrupted
    from luthier.testing.durability.jobs import fingerprint

    engine = import_module(engine_name)

    def go(name: str, stop_after: int | None) -> tuple[str, list[float]]:
        place = engine.Place(
            folder=folder / name, cache=folder / "cache", blobs=Path, artifacts=Path
        )
        place.folder.mkdir(exist_ok=True)
        seen: list[int] = []

        def tell(kind: str, data: dict[str, Any]) -> None:
            if kind == "step":
                seen.append(data["step"])

        def control() -> Any:
            return "interrupt" if stop_after is not None and len(seen) >= stop_after else None

        try:
            outcome = engine.run(spec, place, tell, control)
        except Interrupted:
            return go(name, None)
        return fingerprint(outcome.folder)

    whole, stopped = go("whole", None), go("stopped", 3)
    return [] if whole == stopped else ["the resumed run differs"]


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def _me() -> Any:
    from luthier.runs.process import this_process

    return this_process()


def _spec() -> Any:
    from luthier.spec import parse_spec

    return parse_spec({"model": {"name": "m"}, "data": {"train": {"uri": "x"}}})


def _claimed(folder: Path) -> tuple[Any, str]:
    from luthier.runs.ledger import Ledger

    ledger = Ledger(f"sqlite:///{folder}/luthier.db")
    run_id = ledger.submit(_spec()).id
    assert ledger.claim(_me()) is not None
    return ledger, run_id


def environment() -> dict[str, str]:
    """The environment of a process of the harness: one thread, and no worker by itself."""
    return dict(os.environ) | {"OMP_NUM_THREADS": "1", WORKER: "none"}
