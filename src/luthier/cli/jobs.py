"""``luthier fit`` and ``luthier validate``: a file, flags over it, one JobSpec."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from luthier.cli import configuration
from luthier.cli.following import wait_for
from luthier.cli.output import Home, Json, print_facts, show
from luthier.cli.words import BY_NAME, RUN_WORDS, WORDS, given_words, with_job_flags
from luthier.doors.search import search_data, searched
from luthier.errors import Problem, SpecError
from luthier.spec import JobSpec, Source, parse_spec

if TYPE_CHECKING:
    from luthier.runs.connection import Home as Place
    from luthier.runs.records import RunRecord

app = typer.Typer(rich_markup_mode=None)

#: What is said of every run that was submitted.
_SAID = ("id", "name", "experiment", "spec_id", "status", "reason", "artifact_id")

Config = Annotated[
    Path | None,
    typer.Argument(
        metavar="[CONFIG.yaml]", help="Words of fit(), or a nested JobSpec; flags go over it."
    ),
]


@app.command("fit")
@with_job_flags
def fit(
    config: Config = None,
    home: Home = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Stay and show the progress until the run ends.")
    ] = False,
    as_json: Json = False,
    **flags: Any,
) -> None:
    """Submit a fine-tuning run. Returns at once, unless --wait is given.

    The run goes on in a process of its own, whatever becomes of this terminal.
    """
    from luthier import api

    place = api.connect(home)
    spec, naming = read_job(config, flags, place)
    hand_in(spec, naming, wait, as_json, lambda r: {"metrics": r.metrics}, _say_submitted)


@app.command("validate")
@with_job_flags
def validate(config: Config = None, home: Home = None, as_json: Json = False, **flags: Any) -> None:
    """Check a job, and say everything that is wrong with it. Nothing is queued.

    Reads the first rows of the data; loads no model.
    """
    from luthier import api

    place = api.connect(home)
    spec, _ = read_job(config, flags, place)
    problems = api.preflight(spec)
    if problems:
        raise SpecError(problems)
    document = {"valid": True, "spec_id": spec.id, "spec": spec.model_dump(mode="json")}
    show(document, as_json, lambda: _say_valid(spec))


def hand_in(
    spec: JobSpec,
    naming: Mapping[str, Any],
    wait: bool,
    as_json: bool,
    more: Callable[[RunRecord], dict[str, Any]],
    say: Callable[[Mapping[str, Any]], None],
) -> NoReturn:
    """Submit a job, stay with it where that is asked for, and say how its run stands: as JSON
    with ``more`` of its record, or as ``say`` does."""
    from luthier import api

    run = api.submit(spec, **naming)
    code = wait_for(run, as_json) if wait else 0
    record = run.record()
    document = {name: getattr(record, name) for name in _SAID} | more(record)
    show(document, as_json, lambda: say(document))
    raise typer.Exit(code)


def read_job(
    config: Path | None,
    flags: Mapping[str, Any],
    place: Place,
    search: Mapping[str, Any] | None = None,
) -> tuple[JobSpec, dict[str, Any]]:
    """The spec that a file and flags describe, and the words that name the run. search: settings
    of a search, which the job then is, of the default ranges where it names none.

    Raises SpecError or DataError.
    """
    words = given_words(flags)
    data = configuration.read_configuration(config) if config is not None else {}
    if search is not None:
        data["search"] = searched(data.get("search"), words.pop("search", {}), search)
    naming = {word: data.pop(word) for word in RUN_WORDS if word in data}
    naming |= {word: words.pop(word) for word in RUN_WORDS if word in words}
    problems = [
        Problem(word, f"is a text, not {value!r}")
        for word, value in naming.items()
        if not isinstance(value, str)
    ]
    if problems:
        raise SpecError(problems)
    from luthier import api

    read = _nested if configuration.is_nested(data) else _flat
    with api.all_problems():
        spec = read(data, words, place)
    return spec, naming


def _nested(data: dict[str, Any], words: Mapping[str, Any], place: Place) -> JobSpec:
    """A JobSpec file; each flag is laid over the leaf that its word stands for."""
    for name, value in words.items():
        configuration.lay_over(data, BY_NAME[name].leaf, value)
    if isinstance(data.get("data"), dict):
        for word in ("train", "eval", "probe"):
            if word in data["data"]:
                data["data"][word] = _located(data["data"][word], place)
    model = data.get("model")
    if isinstance(model, dict):
        data["model"] = model | {"artifact": _artifact(model.get("artifact"), place)}
    data["callbacks"] = _callbacks(data.get("callbacks"), place)
    if data.get("search") is not None:
        problems: list[Problem] = []
        data["search"] = search_data(data["search"], problems, data)
        if problems:
            raise SpecError(problems)
    return parse_spec(data)


def _flat(data: dict[str, Any], flags: Mapping[str, Any], place: Place) -> JobSpec:
    """The words of fit(), a field of the spec under its own name included."""
    from luthier.doors.fit import fit_spec

    words: dict[str, Any] = {}
    problems: list[Problem] = []
    by_field = {word.field: word.name for word in WORDS if word.leaf.startswith("training.")}
    for given, value in data.items():
        name = given if given in BY_NAME else by_field.get(given, given)
        if name in words:
            problems.append(Problem(given, f"given twice: it is another name of '{name}'"))
        words[name] = value
    for name, value in flags.items():
        configuration.lay_over(words, name, value)
    for name, value in words.items():
        word = BY_NAME.get(name)
        if word and word.kind == "options" and not isinstance(value, dict):
            problems.append(Problem(name, f"takes a mapping of options, not {value!r}"))
    for name in ("model", "train_data"):
        if words.get(name) is None:
            problems.append(Problem(name, "is required", f"--{name.replace('_', '-')} …"))
    if words.pop("task", "embedding") != "embedding":
        problems.append(Problem("task", "can only be 'embedding'"))
    if problems:
        raise SpecError(problems)
    for name in ("train_data", "eval_data", "probe_data"):
        if words.get(name) is not None:
            words[name] = _located(words[name], place)
    words["callbacks"] = _callbacks(words.get("callbacks"), place)
    words["model_artifact"] = _artifact(words.get("model_artifact"), place)
    return fit_spec(**words)


def _located(value: Any, place: Place) -> Any:
    """A source with the hash of its content, when the content is a file of this machine."""
    from luthier.admission import to_source

    if isinstance(value, Mapping) and set(value) == {"uri"}:
        value = value["uri"]
    if isinstance(value, Source | Mapping):
        return value
    if not isinstance(value, str):
        raise SpecError([Problem("train_data", f"is a path or a URL, not {value!r}")])
    return to_source(value, place)


def _artifact(value: Any, place: Place) -> str | None:
    """The whole id of an artifact named by its first digits or an alias. Raises NotFound."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise SpecError([Problem("model_artifact", f"is the id of an artifact, not {value!r}")])
    return place.find_artifact(value)


def _callbacks(items: Any, place: Place) -> list[Any]:
    """Callbacks as mappings, the data that they name located."""
    if items is None:
        return []
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
        hint = "for example [{kind: early_stopping, patience: 3}]"
        raise SpecError([Problem("callbacks", "is a list of mappings, each with its kind", hint)])
    return [
        {
            key: _located(value, place) if key in ("query_data", "index_data") else value
            for key, value in item.items()
        }
        for item in items
    ]


def _say_submitted(document: Mapping[str, Any]) -> None:
    name = document["name"]
    print_facts({"run": name, "status": document["status"], "artifact": document["artifact_id"]})
    if document["status"] in ("CREATED", "STARTED"):
        print(f"\nfollow  luthier runs logs -f {name}")
        print(f"cancel  luthier runs cancel {name}")
    elif document["status"] == "FINISHED":
        print(f"\nlook    luthier runs show {name}")
        print(f"encode  luthier encode {name} --text '…'")


def _say_valid(spec: JobSpec) -> None:
    import yaml

    changed = spec.model_dump(mode="json", exclude_defaults=True)
    print(yaml.safe_dump(changed, sort_keys=False, allow_unicode=True).rstrip())
    print(f"\nvalid: this job can run (spec {spec.id[:12]})")
