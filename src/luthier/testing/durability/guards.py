"""Each guard is deleted in turn, in a copy of the source; a check must then fail.

A test that passes with the guard and without it proves nothing. ``MUTANTS`` names, for each
guard, the text that is replaced and the check that must notice.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from luthier.testing.durability import checks
from luthier.testing.durability.checks import (
    bit_flips,
    cancel_is_final,
    engine_resumes_exactly,
    environment,
    falls_back,
    full_synchronous,
    late_trials,
    late_words,
    legal_only,
    no_orphans,
    one_embedded_worker,
    one_run_a_key,
    power_cuts,
    resumes_exactly,
    whole_or_absent,
)
from luthier.testing.durability.scoreboard import Score


@dataclass(frozen=True)
class Mutant:
    """A guard, where it stands, what is left when it is deleted, and who must notice."""

    guard: str
    file: str
    old: str
    new: str
    check: Callable[[Path], list[str]]
    needs_torch: bool = False


MUTANTS = (
    Mutant(
        "fsync of files and folders", "store/atomic.py", "        os.fsync(descriptor)\n",
        "        pass\n", power_cuts,
    ),
    Mutant(
        "fsync of what was written", "store/atomic.py", "            sync_tree(aside)\n", "",
        power_cuts,
    ),
    Mutant(
        "fsync of the folder that holds the name", "store/atomic.py",
        "        _sync_folder(destination.parent)\n", "", power_cuts,
    ),
    Mutant(
        "writing aside, then rename", "store/atomic.py", "    aside = _aside(destination)\n",
        "    aside = destination\n", whole_or_absent,
    ),
    Mutant(
        "sha256 of every file", "store/bundle.py", 'or sha256_of(file) != expected["sha256"]', "",
        bit_flips,
    ),
    Mutant(
        "seal of the manifest", "store/bundle.py", "if _seal(manifest) != data or", "if False and",
        bit_flips,
    ),
    Mutant(
        "fallback to the bundle before", "store/bundle.py", "            on_bad(path, error)\n",
        "            return None\n", falls_back,
    ),
    Mutant(
        "epoch of the lease", "runs/leases.py", " runs.c.epoch == epoch,", "", late_words,
    ),
    Mutant(
        "epoch of the lease, for events", "runs/journal.py", " runs.c.epoch == epoch,", "",
        late_words,
    ),
    Mutant(
        "UNIQUE idempotency key", "runs/migrations/versions/v0001_first.py",
        'sa.Column("key", sa.String(200), unique=True)', 'sa.Column("key", sa.String(200))',
        one_run_a_key,
    ),
    Mutant(
        "triggers on transitions", "runs/migrations/versions/v0001_first.py",
        '    guard("runs_update", "runs", "UPDATE", UPDATE_RULES)\n', "", legal_only,
    ),
    Mutant(
        "cancellation before the finish", "runs/leases.py",
        "        if run.cancel_requested_at is not None:\n            details",
        "        if False:\n            details", cancel_is_final,
    ),
    Mutant(
        "epoch of a search's lease, for its trials", "runs/trials.py",
        "runs.c.epoch == epoch, ", "", late_trials,
    ),
    Mutant(
        "cancellation of a search with its trials", "runs/ledger.py",
        "            for trial_id in self._open_trials(connection, run_id):\n"
        "                self._cancel(connection, _locked(connection, trial_id), WITH_SEARCH)\n",
        "", no_orphans,
    ),
    Mutant(
        "no trial of a search that was asked to stop", "runs/trials.py",
        "    if row.cancel_requested_at is not None:\n", "    if False:\n", no_orphans,
    ),
    Mutant(
        "synchronous=FULL", "runs/database.py", "PRAGMA synchronous = FULL",
        "PRAGMA synchronous = NORMAL", full_synchronous,
    ),
    Mutant(
        "lock of the embedded worker", "backends/local.py", "fcntl.LOCK_EX | fcntl.LOCK_NB",
        "fcntl.LOCK_SH | fcntl.LOCK_NB", one_embedded_worker,
    ),
    Mutant(
        "random states in a checkpoint, stand-in engine", "testing/toy_engine.py",
        '    torch.set_rng_state(tensors.pop("rng"))\n', '    tensors.pop("rng")\n',
        resumes_exactly, needs_torch=True,
    ),
    Mutant(
        "random states in a checkpoint", "engine/state.py",
        '    torch.set_rng_state(states["torch"])\n', "", engine_resumes_exactly, needs_torch=True,
    ),
)  # fmt: skip


def delete_guards(folder: Path, mutants: tuple[Mutant, ...] = MUTANTS) -> tuple[Score, list[str]]:
    """Every check passes on the source as it is, and fails without its guard."""
    begun = time.monotonic()
    wrong = []
    for check in dict.fromkeys(mutant.check for mutant in mutants):
        code, said = _run_check(check, None)
        if code != 0:
            wrong.append(f"{check.__name__} fails with all guards in place: {said}")
    for mutant in mutants:
        source = folder / mutant.guard.replace(" ", "-").replace("=", "-")
        shutil.copytree(
            Path(__file__).parents[2],
            source / "luthier",
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        file = source / "luthier" / mutant.file
        text = file.read_text()
        if text.count(mutant.old) == 0:
            wrong.append(f"the guard '{mutant.guard}' is not where it was: bring this up to date")
            continue
        file.write_text(text.replace(mutant.old, mutant.new))
        code, said = _run_check(mutant.check, source)
        if code != 1:  # 1: the check ran and found something; anything else is a broken mutant
            wrong.append(f"nobody noticed that '{mutant.guard}' is gone (exit code {code}): {said}")
        shutil.rmtree(source)
    names = ", ".join(mutant.guard for mutant in mutants)
    promise = "each guard deleted in turn: at least one check fails"
    return Score(promise, len(mutants), len(wrong), time.monotonic() - begun, names), wrong


def _run_check(check: Callable[[Path], list[str]], source: Path | None) -> tuple[int, str]:
    env = environment() | ({} if source is None else {"PYTHONPATH": str(source)})
    done = subprocess.run(
        [sys.executable, "-m", "luthier.testing.durability.guards", check.__name__],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return done.returncode, (done.stdout + done.stderr)[-2000:]


if __name__ == "__main__":
    try:
        with tempfile.TemporaryDirectory() as place:
            found = getattr(checks, sys.argv[1])(Path(place))
    except Exception:
        import traceback

        traceback.print_exc()
        sys.exit(2)
    print("\n".join(found))
    sys.exit(1 if found else 0)
