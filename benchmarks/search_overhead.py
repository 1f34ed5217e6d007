"""What a trial costs that does nothing: the system around it.

    python benchmarks/search_overhead.py luthier          here
    python benchmarks/search_overhead.py syne-tune ray    where those are installed
    … --trials 20

CPU seconds of the second half of the trials (the start of the system is not among them), random
search, one trial at a time. luthier: durable runs in processes of their own, with the stand-in
engine of the tests, which trains a tiny network for one step and publishes its bundle. Syne Tune:
its local backend, a Python process a trial. Ray Tune: a function in an actor. Both report one
number. Ray's processes are not its children: of them only the wall time is known.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

_SYNE_TRIAL = """
import argparse
from syne_tune import Reporter
parser = argparse.ArgumentParser()
parser.add_argument("--x", type=float)
given, _ = parser.parse_known_args()
Reporter()(loss=(given.x - 0.3) ** 2)
"""
_SYNE = """
import sys, logging
logging.getLogger().setLevel(logging.ERROR)
from syne_tune import StoppingCriterion, Tuner
from syne_tune.backend import LocalBackend
from syne_tune.config_space import uniform
from syne_tune.optimizer.baselines import RandomSearch
Tuner(
    trial_backend=LocalBackend(entry_point=sys.argv[1]),
    scheduler=RandomSearch({"x": uniform(0, 1)}, metrics=["loss"], random_seed=1),
    stop_criterion=StoppingCriterion(max_num_trials_completed=int(sys.argv[2])),
    n_workers=1, print_update_interval=1e6, sleep_time=0.1,
).run()
"""
_RAY = """
import sys, ray
from ray import tune
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
tune.Tuner(
    lambda config: {"loss": (config["x"] - 0.3) ** 2},
    param_space={"x": tune.uniform(0, 1)},
    tune_config=tune.TuneConfig(
        num_samples=int(sys.argv[1]), max_concurrent_trials=1, metric="loss", mode="min"),
    run_config=tune.RunConfig(verbose=0),
).fit()
ray.shutdown()
"""


def luthier(trials: int, folder: Path) -> list[str]:
    """A queue with the search in it, and the worker that empties it."""
    from luthier.runs.connection import Home
    from luthier.spec import parse_spec
    from luthier.testing.toy_engine import toy_spec

    home = Home(folder / f"home-{trials}")
    rate = {"type": "float", "lower": 1e-4, "upper": 1.0, "log": True}
    search = {
        "space": {"training.learning_rate": rate},
        "metrics": ["loss"],
        "algorithm": "random",
        "max_trials": trials,
    }
    home.submit(parse_spec(toy_spec(1).model_dump(mode="json") | {"search": search}))
    home.close()
    engine = ["--engine", "luthier.testing.toy_engine", "--lean"]
    return [sys.executable, "-m", "luthier.worker", "--home", home.place, "--once", *engine]


def syne_tune(trials: int, folder: Path) -> list[str]:
    """A script a trial, and the tuner."""
    (folder / "trial.py").write_text(_SYNE_TRIAL)
    return [sys.executable, "-c", _SYNE, str(folder / "trial.py"), str(trials)]


def ray(trials: int, folder: Path) -> list[str]:
    """A function a trial."""
    return [sys.executable, "-c", _RAY, str(trials)]


SIDES: dict[str, Callable[[int, Path], list[str]]] = {
    "luthier": luthier,
    "syne-tune": syne_tune,
    "ray": ray,
}


def spent(command: list[str], folder: Path) -> tuple[float, float]:
    """CPU and wall seconds of a command and all that it waited for."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1", "LUTHIER_WORKER": "none", "SYNETUNE_FOLDER": str(folder),
        "RAY_AIR_NEW_OUTPUT": "0",
    }  # fmt: skip
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return cpu, time.monotonic() - begun


def main() -> None:
    """Print a line of JSON for each side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sides", nargs="+", choices=list(SIDES))
    parser.add_argument("--trials", type=int, default=20)
    given = parser.parse_args()
    os.environ["LUTHIER_WORKER"] = "none"
    for side in given.sides:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            few = spent(SIDES[side](given.trials, folder), folder)
            many = spent(SIDES[side](2 * given.trials, folder), folder)
        cpu, wall = ((b - a) / given.trials for a, b in zip(few, many, strict=True))
        row = {"side": side, "CPU s a trial": round(cpu, 3), "s a trial": round(wall, 3)}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
