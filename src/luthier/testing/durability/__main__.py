"""``python -m luthier.testing.durability``: the full form of the durability tests.

Exit code 1 when anything was lost, done twice, or differs. ``--scoreboard docs/scoreboard.md``
writes what was found into the documentation.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from luthier.testing.durability import failures, guards, kills, searches
from luthier.testing.durability.jobs import real_jobs, toy_jobs, update_jobs
from luthier.testing.durability.scoreboard import Score, current_commit, write
from luthier.testing.forkserver import ForkServer

PRELOAD = (
    *("luthier.worker.supervisor", "luthier.testing.durability.actors"),
    *("luthier.testing.toy_engine", "torch._dynamo"),
    *("luthier.search.conductor", "optuna"),
)
REAL = ("transformers", "sentence_transformers", "luthier.engine.run")


def main() -> int:
    """Run the asked parts one after the other, and print what each found."""
    parser = argparse.ArgumentParser(prog="python -m luthier.testing.durability")
    add = parser.add_argument
    add("--kills", type=int, default=1000, help="kill -9, with the stand-in engine")
    add("--real-kills", type=int, default=200, help="kill -9, with the real engine")
    add("--search-kills", type=int, default=200, help="kill -9, while searches go on")
    add("--thefts", type=int, default=50, help="stolen leases")
    add("--cancels", type=int, default=200, help="cancellations")
    add("--clients", type=int, default=64, help="clients that submit the same keys")
    add("--no-points", action="store_true", help="leave out the failures at named points")
    add("--no-mutants", action="store_true", help="leave out the deletion of guards")
    add("--seed", type=int, default=0)
    add("--scoreboard", type=Path, help="a Markdown file to write the scores into")
    given = parser.parse_args()
    scores: list[Score] = []
    commit = current_commit()
    failed = False
    with tempfile.TemporaryDirectory() as name, ForkServer((*PRELOAD, *REAL)) as forks:
        for part in _parts(given, Path(name), forks):
            score, wrong = part()
            scores.append(score)
            failed |= bool(wrong)
            print(f"{score.promise}: {score.trials} trials, {score.failures} failures, ", end="")
            print(f"{score.seconds:.0f} s. {score.facts}", flush=True)
            print("".join(f"  {line}\n" for line in wrong), end="", flush=True)
    if given.scoreboard:
        write(scores, given.scoreboard, commit)
    return int(failed)


def _parts(
    given: argparse.Namespace, folder: Path, forks: ForkServer
) -> list[Callable[[], tuple[Score, list[str]]]]:
    def place(name: str) -> Path:
        (folder / name).mkdir()
        return folder / name

    toy, seed = toy_jobs(), given.seed
    parts: list[Callable[[], tuple[Score, list[str]]]] = []
    if given.clients:
        parts.append(
            lambda: failures.submit_together(place("keys"), toy.specs[0], forks, given.clients)
        )
    if not given.no_points:
        parts.append(lambda: failures.fail_at_points(place("points"), toy_jobs(6, 0), forks))
    if given.thefts:
        parts.append(
            lambda: failures.steal_leases(place("thefts"), toy_jobs(20, 15), forks, given.thefts)
        )
    if given.cancels:
        parts.append(
            lambda: failures.cancel_at_random(place("cancels"), toy, forks, given.cancels, seed)
        )
    if given.kills:
        parts.append(
            lambda: kills.kill_at_random(
                place("kills"), toy_jobs(30, 8), forks, given.kills, pause_s=0.5, seed=seed
            )
        )
    if given.search_kills:
        parts.append(
            lambda: searches.kill_searches(
                place("searches"), forks, given.search_kills, pause_s=0.6, seed=seed
            )
        )
    if given.real_kills:
        parts.append(
            lambda: failures.kill_each(place("each"), real_jobs(place("each-data")), forks, seed)
        )
        parts.append(
            lambda: failures.kill_each(
                place("updates"), update_jobs(place("updates-data")), forks, seed, "updater"
            )
        )
        parts.append(
            lambda: kills.kill_at_random(
                place("real"),
                real_jobs(place("real-data")),
                forks,
                given.real_kills,
                pause_s=1.5,
                seed=seed,
            )
        )
    if not given.no_mutants:
        parts.append(lambda: guards.delete_guards(place("mutants")))
    return parts


if __name__ == "__main__":
    sys.exit(main())
