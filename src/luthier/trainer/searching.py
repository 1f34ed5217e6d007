"""``Trainer.hyperparameter_search``: transformers' own, seeded, with our ranges as well."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

from luthier.errors import Problem, SpecError, nearest
from luthier.search.planner import suggested
from luthier.search.space import Space, read_space
from luthier.search.spellings import normal


class Searching:
    """A mixin of trainers."""

    args: Any

    def hyperparameter_search(
        self,
        hp_space: Callable[[Any], dict[str, Any]] | Mapping[str, Any] | None = None,
        compute_objective: Callable[[dict[str, float]], Any] | None = None,
        n_trials: int = 20,
        direction: str | list[str] = "minimize",
        backend: Any = None,
        hp_name: Callable[[Any], str] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Train again and again, here and now, with other arguments each time; the best of them.

        As inherited, but for two things. ``hp_space`` can also be a mapping of arguments to
        ranges: ``{"learning_rate": loguniform(1e-5, 1e-3)}``. And the search is seeded by
        ``args.seed``: the same call tries the same values, unless a ``sampler`` is given.

        Raises SpecError for a range that cannot be searched, or an argument that there is not.
        """
        space = _space(hp_space, self.args) if isinstance(hp_space, Mapping) else None
        if backend in (None, "optuna") and "sampler" not in kwargs and find_spec("optuna"):
            from optuna.samplers import TPESampler

            kwargs["sampler"] = TPESampler(seed=self.args.seed)
        inherited: Any = super()
        words = (compute_objective, n_trials, direction, backend, hp_name)
        if space is None:
            return inherited.hyperparameter_search(hp_space, *words, **kwargs)
        found = inherited.hyperparameter_search(_drawn(space), *words, **kwargs)
        return [_told(b, space) for b in found] if isinstance(found, list) else _told(found, space)


def _space(ranges: Mapping[str, Any], args: Any) -> Space:
    known = list(args.__dataclass_fields__)
    problems = [
        Problem(f"hp_space.{name}", "TrainingArguments has no such word", nearest(name, known))
        for name in ranges
        if name not in known
    ]
    if problems:
        raise SpecError(problems)
    return read_space({name: normal(value, name, str) for name, value in ranges.items()})


def _drawn(space: Space) -> Callable[[Any], dict[str, Any]]:
    return lambda trial: space.draw(lambda parameter: suggested(trial, parameter))[1]


def _told(best: Any, space: Space) -> Any:
    """The best run with values, not with the places of categories."""
    return best._replace(hyperparameters=space.values(best.hyperparameters))
