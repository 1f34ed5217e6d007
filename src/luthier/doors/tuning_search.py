"""Ranges in the ``config_space`` of ``run_training_job``: the job becomes a search.

Which fields of a job a key stands for, nobody says twice: the door itself is asked, with one
value of the range after the other, and the jobs are compared. A key that stands for several
fields together, as ``batch_size`` does where part of a batch is remembered rows, must be a choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from luthier.errors import Problem, SpecError, nearest
from luthier.spec import JobSpec, parse_spec
from luthier.spec.search import PRUNER_OPTIONS
from luthier.tuning.config_spaces import Categorical, Domain, Integer, as_domain, to_json

#: Words for a search, with the value that asks for none.
WORDS: dict[str, Any] = {
    "n_workers": 1,
    "scheduler": None,
    "scheduler_kwargs": None,
    "max_time": None,
    "max_num_trials_started": None,
    "max_num_trials_completed": None,
    "max_num_trials_finished": None,
    "max_cost": None,
}
#: Renate's schedulers (Syne Tune's) → who asks for values, and who stops trials early.
SCHEDULERS: dict[str, dict[str, Any]] = {
    "random": {"algorithm": "random"},
    "bo": {"algorithm": "gp"},
    "tpe": {"algorithm": "tpe"},
    "cmaes": {"algorithm": "cmaes"},
    "grid": {"algorithm": "grid"},
    "asha": {"algorithm": "random", "pruner": "asha"},
    "mobster": {"algorithm": "gp", "pruner": "asha"},
    "hyperband": {"algorithm": "random", "pruner": "hyperband"},
    "median": {"algorithm": "random", "pruner": "median"},
    # RUSH: what was best in earlier updates is tried first, with asha.
    "rush": {
        "algorithm": "random",
        "pruner": "asha",
        "warm_start": ["of the state"],
        "warm_start_top": 3,
    },
}
_SCHEDULER_WORDS = {"grace_period": "min_resource", "points_to_evaluate": "initial"}
_SETTINGS = ("cost_per_hour", "warm_start", "warm_start_top", "constraints", "initial",
             "sampling_seed", "keep_best")  # fmt: skip

#: Keys that decide together how a batch is parted; beside one another they are not apart.
_TOGETHER = ("batch_size", "batch_memory_frac", "memory_size")
_FEW = 64
_WITH_MOMENTUM = ("SGD", "RMSprop")


def ranges_of(space: Mapping[str, Any]) -> dict[str, Domain]:
    """The keys of a configuration that are ranges."""
    found = {key: as_domain(value) for key, value in space.items()}
    return {key: domain for key, domain in found.items() if domain is not None}


def searched(
    space: Mapping[str, Any],
    one: Callable[[Mapping[str, Any]], JobSpec],
    *,
    metric: str | None,
    mode: str | None,
    seed: int,
    words: Mapping[str, Any],
) -> JobSpec:
    """The search that a configuration with ranges is. one: the door for a configuration without.

    Raises SpecError with every problem.
    """
    ranges = ranges_of(space)
    fixed = {key: value for key, value in space.items() if key not in ranges}
    problems: list[Problem] = []
    base = _asked(one, fixed, {}, problems)
    if base is None:
        raise SpecError(problems)
    nodes: dict[str, Any] = {}
    left = dict(ranges)
    if "updater" in left:
        message = "each updater has options of its own"
        problems.append(Problem("updater", message, "make a search for each, and compare"))
        del left["updater"]
    if "optimizer" in left and ("momentum" in left or fixed.get("momentum")):
        nodes |= _optimizers(left.pop("optimizer"), left.pop("momentum", fixed.get("momentum")),
                             one, fixed, problems)  # fmt: skip
    group = [key for key in _TOGETHER if key in left]
    if "batch_size" in group and len(group) > 1 and fixed.get("memory_batch_size") is None:
        nodes |= _group(group, left, one, fixed, problems)
        left = {key: domain for key, domain in left.items() if key not in group}
    for key, domain in left.items():
        nodes |= _node(key, domain, one, fixed, problems)
    settings = _settings(words, metric, mode, seed, problems)
    data = base.model_dump(mode="json") | {"search": {"space": nodes, **settings}}
    try:
        spec = parse_spec(data) if nodes else base
    except SpecError as error:
        raise SpecError([*problems, *error.problems]) from None
    if problems:
        raise SpecError(problems)
    return spec


def _asked(
    one: Callable[[Mapping[str, Any]], JobSpec],
    fixed: Mapping[str, Any],
    values: Mapping[str, Any],
    problems: list[Problem],
) -> JobSpec | None:
    try:
        return one({**fixed, **values})
    except SpecError as error:
        known = {str(p) for p in problems}
        problems += [p for p in error.problems if str(p) not in known]
        return None


def _node(
    key: str,
    domain: Domain,
    one: Callable[[Mapping[str, Any]], JobSpec],
    fixed: Mapping[str, Any],
    problems: list[Problem],
) -> dict[str, Any]:
    """What a key is in the space of a search."""
    values = _values(domain)
    tried = values or [domain.lower, domain.upper]  # type: ignore[union-attr]
    jobs = [_asked(one, fixed, {key: value}, problems) for value in tried]
    if None in jobs:
        return {}
    leaves = [_flat(job.model_dump(mode="json")) for job in jobs if job is not None]
    changed = _differing(leaves)
    if len(changed) == 1:
        path = changed[0]
        if all(leaf.get(path) == value for leaf, value in zip(leaves, tried, strict=True)):
            return {path: to_json(domain)}
    if values is None:
        message = f"stands for {', '.join(changed) or 'nothing'} together"
        problems.append(Problem(key, message, "give a choice([…]) of values"))
        return {}
    cases = [{path: _fixed(leaf[path]) for path in changed if path in leaf} for leaf in leaves]
    return {key: {"type": "branches", "cases": cases}}


def _group(
    keys: list[str],
    ranges: Mapping[str, Domain],
    one: Callable[[Mapping[str, Any]], JobSpec],
    fixed: Mapping[str, Any],
    problems: list[Problem],
) -> dict[str, Any]:
    """Keys that depend on one another: a choice below a choice."""
    key, *others = keys
    values = _values(ranges[key])
    if values is None:
        message = f"depends on {', '.join(others) or 'others'}, which is a range as well"
        problems.append(Problem(key, message, "give a choice([…]), or memory_batch_size"))
        return {}
    cases: list[dict[str, Any]] = []
    for value in values:
        held = {**fixed, key: value}
        if others:
            inner = _group(others, ranges, one, held, problems)
            mine = _asked(one, fixed, {key: value}, problems)
            path = "training.per_device_train_batch_size"
            leaf = {} if mine is None else _flat(mine.model_dump(mode="json"))
            cases.append({path: _fixed(leaf.get(path)), **inner})
        else:
            job = _asked(one, fixed, {key: value}, problems)
            leaf = {} if job is None else _flat(job.model_dump(mode="json"))
            paths = ("training.per_device_train_batch_size", "update.memory_batch_size",
                     "update.memory_size")  # fmt: skip
            cases.append({path: _fixed(leaf.get(path)) for path in paths})
    return {key: {"type": "branches", "cases": cases}}


def _optimizers(
    optimizers: Domain,
    momentum: Any,
    one: Callable[[Mapping[str, Any]], JobSpec],
    fixed: Mapping[str, Any],
    problems: list[Problem],
) -> dict[str, Any]:
    """A momentum is searched below the optimizers that have one."""
    rest = {key: value for key, value in fixed.items() if key not in ("optimizer", "momentum")}
    cases = []
    for name in _values(optimizers) or []:
        if _asked(one, rest, {"optimizer": name}, problems) is None:
            continue
        case: dict[str, Any] = {"training.optim": _fixed(name)}
        if name in _WITH_MOMENTUM:
            domain = as_domain(momentum)
            node = _fixed(momentum) if domain is None else to_json(domain)
            case["training.optim_args.momentum"] = node
        cases.append(case)
    return {"optimizer": {"type": "branches", "cases": cases}} if cases else {}


def _settings(
    words: Mapping[str, Any],
    metric: str | None,
    mode: str | None,
    seed: int,
    problems: list[Problem],
) -> dict[str, Any]:
    found: dict[str, Any] = {"sampling_seed": seed, "n_workers": words.get("n_workers") or 1}
    if metric is not None:
        found |= {"metrics": [metric], "modes": [mode or "auto"]}
    scheduler = words.get("scheduler")
    if scheduler is not None:
        if not isinstance(scheduler, str) or scheduler not in SCHEDULERS:
            called = str(getattr(scheduler, "__name__", scheduler))
            like = nearest(called.lower(), SCHEDULERS) or f"known: {', '.join(SCHEDULERS)}"
            problems.append(Problem("scheduler", f"'{called}' is no scheduler here", like))
        else:
            found |= SCHEDULERS[scheduler]
    options: dict[str, Any] = {}
    taken = {name for known in PRUNER_OPTIONS.values() for name in known}
    for word, value in dict(words.get("scheduler_kwargs") or {}).items():
        name = _SCHEDULER_WORDS.get(word, word)
        if name in taken:
            options[name] = value
        elif name in _SETTINGS:
            found[name] = value
        else:
            known = [*taken, *_SCHEDULER_WORDS, *_SETTINGS]
            hint = nearest(word, known) or f"known: {', '.join(sorted(known))}"
            problems.append(Problem(f"scheduler_kwargs.{word}", "no such word", hint))
    if options:
        found["pruner_options"] = options
    limits = {
        "max_time": "max_time_s",
        "max_num_trials_started": "max_trials",
        "max_num_trials_completed": "max_trials_completed",
        "max_num_trials_finished": "max_trials_finished",
        "max_cost": "max_cost",
    }
    return found | {
        setting: words[word] for word, setting in limits.items() if words.get(word) is not None
    }


def _values(domain: Domain) -> list[Any] | None:
    """All values of a range, where they are few."""
    if isinstance(domain, Categorical):
        return list(domain.categories)
    if isinstance(domain, Integer) and (domain.upper - domain.lower) // domain.step < _FEW:
        return list(range(domain.lower, domain.upper + 1, domain.step))
    return None


def _fixed(value: Any) -> dict[str, Any]:
    return {"type": "fixed", "value": value}


def _flat(data: Mapping[str, Any], way: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{way}{key}.")
        else:
            found[way + key] = value
    return found


def _differing(leaves: list[dict[str, Any]]) -> list[str]:
    paths = dict.fromkeys(path for leaf in leaves for path in leaf)
    missing = object()
    return [p for p in paths if any(leaf.get(p, missing) != leaves[0].get(p, missing)
                                    for leaf in leaves)]  # fmt: skip
