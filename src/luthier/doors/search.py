"""The door of searches: ranges in anybody's words become the ``search`` of a JobSpec.

A mapping of words to ranges, and beside them the settings of the search by their own names,
which no word of a job has: ``{"learning_rate": loguniform(1e-5, 1e-3), "max_trials": 20}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.errors import Problem, SpecError, nearest
from luthier.search.spaces import default_space
from luthier.search.spellings import normal
from luthier.spec import SearchSpec, leaves

#: Words of fit() that are not the names of the fields that they set.
FIT_WORDS = {
    "model": "model.name",
    "model_artifact": "model.artifact",
    "model_options": "model.options",
    "train_data": "data.train",
    "eval_data": "data.eval",
    "probe_data": "data.probe",
    "optimizer": "training.optim",
    "optimizer_options": "training.optim_args",
    "scheduler": "training.lr_scheduler_type",
    "scheduler_options": "training.lr_scheduler_kwargs",
    "epochs": "training.num_train_epochs",
    "batch_size": "training.per_device_train_batch_size",
    "num_workers": "training.dataloader_num_workers",
}

#: Instead of ranges: those that ``luthier.search.config_space`` has for the job.
DEFAULT = "default"

#: Other names of settings.
RENAMED = {
    "metric": "metrics",
    "mode": "modes",
    "max_time": "max_time_s",
    "max_num_trials_started": "max_trials",
    "max_num_trials_completed": "max_trials_completed",
    "max_num_trials_finished": "max_trials_finished",
    "max_evals": "max_trials",
    "points_to_evaluate": "initial",
}
SETTINGS = (*(n for n in SearchSpec.model_fields if n != "space"), *RENAMED)


def path_of(name: str, words: Mapping[str, str] | None = None) -> str:
    """The dotted path of what somebody calls ``name``: a word of a door, the name of a field, a
    path, or one of those and what lies below it (``loss_options.margin``). Raises SpecError.

    >>> path_of("loss_options.margin"), path_of("batch_size")
    ('objective.loss_options.margin', 'training.per_device_train_batch_size')
    """
    words = FIT_WORDS if words is None else words
    known = leaves()
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        head, rest = ".".join(parts[:count]), parts[count:]
        path = words.get(head) or known.get(head)
        if path is not None and path != "search":
            return ".".join([path, *rest])
    hint = nearest(name, [*words, *known]) or "a word of fit(), or the path of a field"
    raise SpecError([Problem(f"search.{name}", "no such field of a job", hint)])


def search_data(
    given: Any,
    found: list[Problem],
    job: Mapping[str, Any],
    words: Mapping[str, str] | None = None,
) -> dict[str, Any] | None:
    """The ``search`` of a spec, as data. found: where problems go. job: the spec's data without
    it, which default ranges depend on. words: names of a door → paths."""
    if given == DEFAULT:
        given = {"space": DEFAULT}
    if not isinstance(given, Mapping):
        hint = "{'learning_rate': loguniform(1e-5, 1e-3), 'max_trials': 20}, or 'default'"
        found.append(Problem("search", f"is a mapping, not {given!r:.60}", hint))
        return None
    data: dict[str, Any] = {}
    ranges = dict(given)
    inner = ranges.pop("space", {})
    if inner == DEFAULT:
        inner = default_space(job)
    if not isinstance(inner, Mapping):
        found.append(Problem("search.space", f"is a mapping, not {inner!r:.60}"))
        return None
    for name in [n for n in ranges if n in SETTINGS]:
        setting = RENAMED.get(name, name)
        if setting in data:
            found.append(Problem(f"search.{name}", f"given twice: it is '{setting}'"))
        data[setting] = ranges.pop(name)
    space: dict[str, Any] = {}
    for name, value in {**inner, **ranges}.items():
        try:
            path = path_of(name, words)
            if path in space:
                found.append(Problem(f"search.{name}", f"given twice: it is '{path}'"))
            space[path] = normal(value, path, lambda each: path_of(each, words))
        except SpecError as error:
            found += _with_settings(error, name)
    data["space"] = space
    if isinstance(data.get("initial"), list | tuple):
        data["initial"] = [_point(each, words, found) for each in data["initial"]]
    return data


def _point(values: Any, words: Mapping[str, str] | None, problems: list[Problem]) -> Any:
    if not isinstance(values, Mapping):
        return values  # the spec says what is wrong
    found = {}
    for name, value in values.items():
        try:
            found[path_of(name, words)] = value
        except SpecError as error:
            problems += error.problems
    return found


def _with_settings(error: SpecError, name: str) -> list[Problem]:
    """A misspelt setting is one of those that no field is like."""
    hint = nearest(name, SETTINGS)
    return [
        Problem(p.field, p.message, hint if hint and p.message.startswith("no such") else p.hint)
        for p in error.problems
    ]


def searched(in_file: Any, in_flags: Any, settings: Mapping[str, Any]) -> Any:
    """The search of a file with flags over it; of the default ranges where neither has any."""
    base = {"space": DEFAULT} if in_file == DEFAULT else in_file
    if base is not None and not isinstance(base, Mapping):
        return base  # the door says what is wrong
    found = {**(base or {}), **in_flags, **settings}
    ranges = [name for name in found if name not in SETTINGS]
    return found if ranges else {"space": DEFAULT, **found}
