"""What a search costs around its trainings.

    python benchmarks/search_overhead.py luthier          here
    python benchmarks/search_overhead.py syne-tune        where it is installed
    … --trials 20
    python benchmarks/search_overhead.py --wall luthier optuna syne-tune ray --peers PYTHON

The first way: of trials that do nothing, the CPU seconds of the second half (the start of the
system is not among them), random search, one trial at a time. luthier: durable runs in processes of
their own, with the stand-in engine of the tests, which trains a tiny network for one step and
publishes its bundle. Syne Tune: its local backend, a Python process a trial. Ray Tune: a function
in an actor. Both report one number. Ray's processes are not its children: of them only the wall
time is known.

``--wall``: the wall seconds of a whole search of trials that train, one at a time: the same tiny
network, on the same rows, by the same function on all sides (about 0.2 s of one core), its weights
written; from the start of the first process to the end of the last. ``--rounds`` of them in turn;
the least of each side is told: on a busy machine an upper bound. luthier is a cold ``luthier worker
--once``, with all that it loads for other jobs, whose engine is that function; Optuna a loop in one
process; Ray and Syne Tune as above. PYTHON: that of an environment with torch and the others.
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
from typing import Any

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

#: What every side trains with ``--wall``: a network of two layers, 600 steps.
_OBJECTIVE = """
import os, time
import torch
from torch import nn
torch.set_num_threads(1)
def train(rate, momentum):
    draw = torch.Generator().manual_seed(1)
    rows = torch.randn(640, 32, generator=draw)
    labels = (rows @ torch.randn(32, 10, generator=draw)).argmax(1)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=momentum)
    for step in range(600):
        at = 64 * (step % 8)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(rows[at:at + 64]), labels[at:at + 64]).backward()
        optimizer.step()
    with torch.no_grad():
        loss = float(nn.functional.cross_entropy(model(rows[512:]), labels[512:]))
    return loss, model.state_dict()
def trained(rate, momentum):
    loss, weights = train(rate, momentum)
    torch.save(weights, os.path.join(os.environ["WEIGHTS"], f"{time.time_ns()}.pt"))
    return loss
"""
_ENGINE = """
from objective import train
from safetensors.torch import save_file
from luthier.store.bundle import write_bundle
from luthier.testing.toy_engine import Outcome, Place
def run(spec, place, tell, control):
    loss, weights = train(spec.training.learning_rate, spec.model.options["momentum"])
    def fill(folder):
        (folder / "luthier").mkdir()
        save_file(weights, folder / "model.safetensors")
    return Outcome(write_bundle(place.folder / "outcome", fill, {}).path, {"loss": loss})
"""
_OPTUNA_WALL = """
import sys, optuna
from objective import trained
optuna.logging.set_verbosity(optuna.logging.ERROR)
study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
study.optimize(lambda trial: trained(trial.suggest_float("rate", 1e-4, 1, log=True),
                                     trial.suggest_float("momentum", 0, 0.95)), int(sys.argv[1]))
print(study.best_value)
"""
_SYNE_TRIAL_WALL = """
import argparse
from syne_tune import Reporter
from objective import trained
parser = argparse.ArgumentParser()
parser.add_argument("--rate", type=float)
parser.add_argument("--momentum", type=float)
given, _ = parser.parse_known_args()
Reporter()(loss=trained(given.rate, given.momentum))
"""
_SYNE_WALL = _SYNE.replace('{"x": uniform(0, 1)}',
    '{"rate": loguniform(1e-4, 1), "momentum": uniform(0, 0.95)}'
).replace("import uniform", "import loguniform, uniform")  # fmt: skip
_RAY_WALL = _RAY.replace('lambda config: {"loss": (config["x"] - 0.3) ** 2}', "search").replace(
    'param_space={"x": tune.uniform(0, 1)}',
    'param_space={"rate": tune.loguniform(1e-4, 1), "momentum": tune.uniform(0, 0.95)}',
).replace("ray.init", """
def search(config):
    from objective import trained
    return {"loss": trained(config["rate"], config["momentum"])}
ray.init""")  # fmt: skip


def luthier(trials: int, folder: Path) -> list[str]:
    """A queue with the search in it, and the worker that empties it."""
    from luthier.testing.toy_engine import toy_spec

    engine = ["--engine", "luthier.testing.toy_engine", "--lean"]
    return _queued(trials, folder, toy_spec(1).model_dump(mode="json"), {}, engine)


def _queued(
    trials: int, folder: Path, job: dict[str, Any], space: dict[str, Any], engine: list[str]
) -> list[str]:
    from luthier.runs.connection import Home
    from luthier.spec import parse_spec

    home = Home(folder / f"home-{time.time_ns()}")
    rate = {"type": "float", "lower": 1e-4, "upper": 1.0, "log": True}
    search = {
        "space": {"training.learning_rate": rate} | space,
        "metrics": ["loss"],
        "algorithm": "random",
        "max_trials": trials,
    }
    home.submit(parse_spec(job | {"search": search}))
    home.close()
    return [sys.executable, "-m", "luthier.worker", "--home", home.place, "--once", *engine]


def syne_tune(trials: int, folder: Path) -> list[str]:
    """A script a trial, and the tuner."""
    (folder / "trial.py").write_text(_SYNE_TRIAL)
    return [sys.executable, "-c", _SYNE, str(folder / "trial.py"), str(trials)]


def ray(trials: int, folder: Path) -> list[str]:
    """A function a trial."""
    return [sys.executable, "-c", _RAY, str(trials)]


def luthier_wall(trials: int, folder: Path, python: str) -> list[str]:
    """The same as any search of luthier's, but for its engine."""
    from luthier.testing.toy_engine import toy_spec

    (folder / "objective_engine.py").write_text(_ENGINE)
    momentum = {"model.options.momentum": {"type": "float", "lower": 0.0, "upper": 0.95}}
    job = toy_spec(600, optim="SGD", momentum=0.0).model_dump(mode="json")
    return _queued(trials, folder, job, momentum, ["--engine", "objective_engine"])


def optuna_wall(trials: int, folder: Path, python: str) -> list[str]:
    """A loop."""
    return [python, "-c", _OPTUNA_WALL, str(trials)]


def syne_tune_wall(trials: int, folder: Path, python: str) -> list[str]:
    """A script a trial, and the tuner."""
    (folder / "trial.py").write_text(_SYNE_TRIAL_WALL)
    return [python, "-c", _SYNE_WALL, str(folder / "trial.py"), str(trials)]


def ray_wall(trials: int, folder: Path, python: str) -> list[str]:
    """A function a trial."""
    return [python, "-c", _RAY_WALL, str(trials)]


WALL: dict[str, Callable[[int, Path, str], list[str]]] = {
    "luthier": luthier_wall,
    "optuna": optuna_wall,
    "syne-tune": syne_tune_wall,
    "ray": ray_wall,
}
SIDES: dict[str, Callable[[int, Path], list[str]]] = {
    "luthier": luthier,
    "syne-tune": syne_tune,
    "ray": ray,
}


def spent(command: list[str], folder: Path) -> tuple[float, float]:
    """CPU and wall seconds of a command and all that it waited for."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1", "LUTHIER_WORKER": "none", "SYNETUNE_FOLDER": str(folder),
        "RAY_AIR_NEW_OUTPUT": "0", "PYTHONPATH": str(folder), "WEIGHTS": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
    }  # fmt: skip
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return cpu, time.monotonic() - begun


def measured(side: str, trials: int) -> dict[str, Any]:
    """A side's CPU and wall seconds of a trial that does nothing."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        few = spent(SIDES[side](trials, folder), folder)
        many = spent(SIDES[side](2 * trials, folder), folder)
    cpu, wall = ((b - a) / trials for a, b in zip(few, many, strict=True))
    return {"side": side, "CPU s a trial": round(cpu, 3), "s a trial": round(wall, 3)}


def whole(side: str, trials: int, python: str) -> float:
    """The wall seconds of a search that trains."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "objective.py").write_text(_OBJECTIVE)
        wall = spent(WALL[side](trials, folder, python), folder)[1]
        found = len({*folder.glob("*.pt"), *folder.glob("home-*/artifacts/*/model.safetensors")})
    if found < trials:  # Syne Tune may have begun one more before it looks whether it may stop
        sys.exit(f"{side}: {found} models were written in {trials} trials")
    return wall


def main() -> None:
    """Print a line of JSON for each side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sides", nargs="+", choices=list(WALL))
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--wall", action="store_true", help="whole searches that train")
    parser.add_argument("--rounds", type=int, default=3, help="searches of each side, in turn")
    parser.add_argument("--peers", default=sys.executable, metavar="PYTHON")
    given = parser.parse_args()
    os.environ["LUTHIER_WORKER"] = "none"
    if not given.wall:
        for side in given.sides:
            if side not in SIDES:
                parser.error(f"{side} is measured with --wall only")
            print(json.dumps(measured(side, given.trials)), flush=True)
        return
    seconds: dict[str, list[float]] = {side: [] for side in given.sides}
    for _ in range(given.rounds):
        for side in given.sides:
            seconds[side].append(whole(side, given.trials, given.peers))
            print(f"{side}: {seconds[side][-1]:.1f} s", file=sys.stderr, flush=True)
    for side, found in seconds.items():
        row = {
            "side": side,
            "s a search": round(min(found), 1),
            "all": [round(s, 1) for s in found],
        }
        if side != "luthier" and "luthier" in seconds:
            row["times luthier's"] = round(min(found) / min(seconds["luthier"]), 2)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
