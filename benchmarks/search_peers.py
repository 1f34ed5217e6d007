"""Proposals beside Optuna's, Syne Tune's and Ray Tune's, on the same problems.

    python benchmarks/search_peers.py luthier optuna      here
    python benchmarks/search_peers.py syne-tune ray       where those are installed
    … --trials 20 --seeds 10

The best value after so many trials, the mean over the seeds, one trial at a time; and the seconds
that a proposal takes. Each peer by its own words, with its defaults. The problems are functions
of learning rate, weight decay, warm-up, batch size and optimizer, shaped as tunings are: a valley
in the logarithm of the rate whose bottom moves with the batch size, a step where it diverges.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

Values = dict[str, Any]
Search = Callable[[Callable[[Values], float], int, int], list[float]]

RATE, DECAY, WARMUP = (1e-6, 1e-2), (1e-5, 1e-1), (0.0, 0.3)
BATCHES, OPTIMIZERS = [16, 32, 64, 128], ["AdamW", "SGD", "Adafactor"]


def tuning(values: Values) -> float:
    """A loss, least (0.2) for AdamW, batch 64, rate 1e-4."""
    rate, batch = math.log10(values["rate"]), math.log2(values["batch"])
    best = {"AdamW": -4.0, "SGD": -2.5, "Adafactor": -3.5}[values["optimizer"]]
    worse = {"AdamW": 0.0, "SGD": 0.3, "Adafactor": 0.1}[values["optimizer"]]
    valley = 0.25 * (rate - best - 0.15 * (batch - 6)) ** 2
    diverged = 2.0 if rate > best + 1.3 else 0.0
    decay = 0.05 * (math.log10(values["decay"]) + 2) ** 2
    return (
        0.2
        + worse
        + valley
        + diverged
        + decay
        + abs(values["warmup"] - 0.1)
        + 0.02 * (batch - 6) ** 2
    )


def bowl(values: Values) -> float:
    """Smooth, least (0) in the middle of the numbers; the choices matter little."""
    return (
        0.3 * (math.log10(values["rate"]) + 4) ** 2
        + 0.3 * (math.log10(values["decay"]) + 3) ** 2
        + 10 * (values["warmup"] - 0.1) ** 2
        + 0.02 * BATCHES.index(values["batch"])
    )


def ripples(values: Values) -> float:
    """Many local minima along the rate (Rastrigin), in a valley."""
    x = math.log10(values["rate"]) + 4.2
    y = math.log10(values["decay"]) + 2.7
    waves = sum(z * z - 0.6 * math.cos(2 * math.pi * z) + 0.6 for z in (x, y))
    return 0.2 * waves + (values["optimizer"] != "AdamW") * 0.2 + abs(values["warmup"] - 0.2)


PROBLEMS = {"tuning": tuning, "bowl": bowl, "ripples": ripples}


def luthier(algorithm: str) -> Search:
    """The planner of ``fit(search=…)``."""

    def search(problem: Callable[[Values], float], trials: int, seed: int) -> list[float]:
        from luthier.search.planner import Known, Planner
        from luthier.search.space import read_space
        from luthier.spec.search import SearchSpec

        data = {
            "rate": {"type": "float", "lower": RATE[0], "upper": RATE[1], "log": True},
            "decay": {"type": "float", "lower": DECAY[0], "upper": DECAY[1], "log": True},
            "warmup": {"type": "float", "lower": WARMUP[0], "upper": WARMUP[1]},
            "batch": {"type": "ordinal", "categories": BATCHES},
            "optimizer": {"type": "categorical", "categories": OPTIMIZERS},
        }
        spec = SearchSpec.model_validate(
            {"space": data, "algorithm": algorithm, "sampling_seed": seed}
        )
        space = read_space(data)
        planner, known, found = Planner(space, spec, ["minimize"]), [], []
        for number in range(trials):
            point = planner.propose(number, known)
            value = problem(space.values(point))
            known.append(Known(number, point, "complete", (value,)))
            found.append(value)
        return found

    return search


def optuna(sampler: str) -> Search:
    """Optuna's samplers with their defaults."""

    def search(problem: Callable[[Values], float], trials: int, seed: int) -> list[float]:
        import optuna as peer

        peer.logging.set_verbosity(peer.logging.ERROR)
        study = peer.create_study(sampler=getattr(peer.samplers, sampler)(seed=seed))

        def objective(trial: Any) -> float:
            return problem(
                {
                    "rate": trial.suggest_float("rate", *RATE, log=True),
                    "decay": trial.suggest_float("decay", *DECAY, log=True),
                    "warmup": trial.suggest_float("warmup", *WARMUP),
                    "batch": trial.suggest_categorical("batch", BATCHES),
                    "optimizer": trial.suggest_categorical("optimizer", OPTIMIZERS),
                }
            )

        study.optimize(objective, n_trials=trials)
        return [float(trial.value or 0.0) for trial in study.trials]

    return search


def syne_tune(name: str) -> Search:
    """Syne Tune's schedulers by ask and tell."""

    def search(problem: Callable[[Values], float], trials: int, seed: int) -> list[float]:
        import datetime

        from syne_tune.backend.trial_status import Trial
        from syne_tune.config_space import choice, loguniform, ordinal, uniform
        from syne_tune.optimizer import baselines

        space = {
            "rate": loguniform(*RATE),
            "decay": loguniform(*DECAY),
            "warmup": uniform(*WARMUP),
            "batch": ordinal(BATCHES, kind="equal"),
            "optimizer": choice(OPTIMIZERS),
        }
        words = {"metrics": ["loss"]} if name == "RandomSearch" else {"metric": "loss"}
        scheduler = getattr(baselines, name)(
            config_space=space, do_minimize=True, random_seed=seed, **words
        )
        found = []
        for number in range(trials):
            asked = scheduler.suggest()
            trial = Trial(number, asked.config, datetime.datetime.now())
            scheduler.on_trial_add(trial)
            value = problem(asked.config)
            scheduler.on_trial_complete(trial, {"loss": value})
            found.append(value)
        return found

    return search


def ray(name: str) -> Search:
    """Ray Tune's search algorithms by their ``suggest``."""

    def search(problem: Callable[[Values], float], trials: int, seed: int) -> list[float]:
        from ray import tune
        from ray.tune.search.optuna import OptunaSearch

        space = {
            "rate": tune.loguniform(*RATE),
            "decay": tune.loguniform(*DECAY),
            "warmup": tune.uniform(*WARMUP),
            "batch": tune.choice(BATCHES),
            "optimizer": tune.choice(OPTIMIZERS),
        }
        algorithm = OptunaSearch(space, metric="loss", mode="min", seed=seed)
        found = []
        for number in range(trials):
            values = algorithm.suggest(str(number))
            value = problem(values)
            algorithm.on_trial_complete(str(number), {"loss": value})
            found.append(value)
        return found

    return search


SIDES: dict[str, dict[str, Search]] = {
    "luthier": {a: luthier(a) for a in ("random", "tpe", "gp", "cmaes")},
    "optuna": {s: optuna(s) for s in ("RandomSampler", "TPESampler", "GPSampler")},
    "syne-tune": {s: syne_tune(s) for s in ("RandomSearch", "TPE", "BORE")},
    "ray": {"OptunaSearch": ray("OptunaSearch")},
}


def main() -> None:
    """Print a line of JSON for each algorithm."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sides", nargs="+", choices=list(SIDES))
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=10)
    given = parser.parse_args()
    for side in given.sides:
        for name, search in SIDES[side].items():
            row: dict[str, Any] = {"side": side, "algorithm": name, "trials": given.trials}
            spent = 0.0
            for problem, function in PROBLEMS.items():
                begun = time.process_time()
                bests = [min(search(function, given.trials, seed)) for seed in range(given.seeds)]
                spent += time.process_time() - begun
                row[problem] = round(statistics.fmean(bests), 4)
            count = len(PROBLEMS) * given.seeds * given.trials
            row["ms a proposal"] = round(1000 * spent / count, 2)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
