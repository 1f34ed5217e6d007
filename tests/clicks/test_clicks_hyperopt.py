"""``fmin`` as Hyperopt has it."""

import math

import pytest

from luthier.clicks import Trials, fmin, hp, tpe
from luthier.errors import SpecError, TrainingError


def _bowl(params):
    return (params["x"] - 3) ** 2 + params["y"]


SPACE = {"x": hp.uniform("x", -10, 10), "y": hp.choice("y", [5, 0, 2])}


def test_it_finds_the_least_and_goes_on_with_what_is_known():
    trials = Trials()
    fmin(_bowl, SPACE, algo=tpe.suggest, max_evals=5, trials=trials)
    assert len(trials) == 5
    best = fmin(_bowl, SPACE, algo=tpe.suggest, max_evals=40, trials=trials, verbose=False)
    assert len(trials) == 40
    assert best["y"] == 0
    assert abs(best["x"] - 3) < 1
    assert min(trials.losses()) == trials.best_trial["loss"] == _bowl(best)
    again = fmin(_bowl, SPACE, max_evals=40)
    assert again == best  # a function of the seed, whether it was interrupted or not


def test_a_failed_trial_has_no_score():
    def fails(params):
        if params["y"] == 0:
            raise TrainingError("no memory")
        return {"loss": math.nan if params["y"] == 5 else params["y"], "status": "ok"}

    trials = Trials()
    best = fmin(fails, {"y": hp.choice("y", [0, 2, 5])}, max_evals=12, trials=trials)
    assert best == {"y": 2}
    assert {t["status"] for t in trials.trials if t["params"]["y"] != 2} == {"fail"}
    with pytest.raises(TrainingError, match=r"no trial came to its end(?s:.*)no memory"):
        fmin(fails, {"y": hp.choice("y", [0])}, max_evals=2)


def test_an_algorithm_that_is_not_there():
    with pytest.raises(SpecError, match="algo"):
        fmin(_bowl, SPACE, algo="anneal")
