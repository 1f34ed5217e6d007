"""Names of models: which there are, where their files are, what is wrong with a spec's.

Imports no torch.

A model is a catalog name, a folder, or a hub id. What looks like a path is a path: a mistyped
folder is never taken for the name of something on the hub.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import LuthierError, ModelError, NotFound, Problem, nearest
from luthier.models.cards import CARDS, MODELS, POOLER_NAMES, REFUSED, TEXT_OPTIONS
from luthier.models.folder import ModelFolder, read_folder
from luthier.registry import Card
from luthier.spec import ModelSpec

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "CARDS",
    "Located",
    "describe_models",
    "list_model_options",
    "list_models",
    "models_table",
    "problems",
    "resolve",
]

_HUB_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_HUB_ID = re.compile(rf"(?:{_HUB_PART}/)?{_HUB_PART}\Z")


@dataclass(frozen=True)
class Located:
    """Where a model's files are: in a folder, or on the hub."""

    name: str
    path: Path | None = None
    hub_id: str | None = None
    revision: str | None = None
    card: Card | None = None

    def __str__(self) -> str:
        return str(self.path or self.hub_id)


def list_models(task: str | None = None) -> list[str]:
    """Names of the models that can be tuned, for one task or all.

    Raises NotFound for a task that nothing here is for.
    """
    return [card.name for card in _for_task(task)]


def list_model_options(name: str) -> dict[str, list[dict[str, Any]]]:
    """The options of a model: ``{name: [{"name", "default", "description"}, …]}``.

    A folder or a hub id takes what every text model takes. Raises NotFound or ModelError.
    """
    card = _card(name)
    if card is None:
        resolve(name)
    elif card.facts.get("available") is False:
        raise _unavailable(card)
    options = card.options if card is not None else TEXT_OPTIONS
    rows = [{"name": o.name, "default": o.default, "description": o.doc} for o in options]
    return {name: rows}


def describe_models(task: str | None = None) -> None:
    """Print the table of models."""
    from rich.console import Console

    Console().print(models_table(task))


def models_table(task: str | None = None) -> Table:
    """The table that ``describe_models`` prints."""
    from rich.table import Table

    found = _for_task(task)
    tasks = sorted({str(card.facts["task"]) for card in found})
    table = Table(title=f"models for {', '.join(tasks) or task}")
    table.add_column("name", no_wrap=True)
    table.add_column("width", justify="right", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("licence", no_wrap=True)
    table.add_column("description")
    for card in found:
        facts = card.facts
        table.add_row(
            card.name,
            str(facts["dim"]),
            f"{facts['params_millions']:g} M",
            facts["license"],
            f"{card.summary} ({facts['languages']})",
        )
    return table


def resolve(name: str) -> Located:
    """Where the model of that name is.

    Raises ModelError for a folder that is not there, a name that could be neither a folder nor
    a hub id, and a model that this version cannot tune.
    """
    if is_path(name):
        path = Path(name).expanduser()
        if not path.is_dir():
            siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
            raise ModelError(
                "is a file, not the folder of a model" if path.exists() else "no such folder",
                where=str(path),
                hint=nearest(path.name, siblings) or "a folder, a catalog name or a hub id",
            )
        return Located(name, path=path.resolve())
    card = _card(name)
    if card is not None:
        if card.facts.get("available") is False:
            raise _unavailable(card)
        package = card.facts.get("package")
        folder = _in_package(package) if package else None
        if folder is not None:
            return Located(name, path=folder, card=card)
        return Located(name, hub_id=card.facts["hub_id"], card=card)
    if "/" not in name:
        raise ModelError(
            f"no model is called '{name}'",
            hint=nearest(name, [c.name for c in MODELS])
            or "luthier.list_models() names the known ones; a hub id has the form owner/name; "
            "a folder starts with ./ or /",
        )
    if not _HUB_ID.match(name) or ".." in name or "--" in name:
        raise ModelError(
            f"'{name}' is neither a folder that exists nor a hub id",
            hint="a hub id has the form owner/name; a folder starts with ./ or /",
        )
    return Located(name, hub_id=name)


def problems(spec: ModelSpec) -> list[Problem]:
    """Everything that is wrong with a spec's model, found without loading it."""
    found: list[Problem] = []
    folder: ModelFolder | None = None
    located: Located | None = None
    try:
        located = resolve(spec.name)
        if located.path is not None and spec.artifact is None:
            folder = read_folder(located.path)
    except LuthierError as error:
        message = f"{error.where}: {error.message}" if error.where else error.message
        found.append(Problem("model.name", message, error.hint))
    found += _option_problems(spec.options)
    if spec.options.get("revision") is not None:
        if spec.artifact is not None:
            found.append(
                Problem(
                    "model.options.revision",
                    "the artifact's weights are used, not those of the hub",
                    "leave it out",
                )
            )
        elif located is not None and located.path is not None:
            found.append(
                Problem(
                    "model.options.revision",
                    "only models from the hub have revisions",
                    f"{spec.name} is a folder",
                )
            )
    length = spec.options.get("max_seq_length")
    positions = folder.positions if folder is not None else None
    if positions and isinstance(length, int) and length > positions:
        found.append(
            Problem(
                "model.options.max_seq_length",
                f"the model has positions for {positions} tokens, not {length}",
                f"at most {positions}",
            )
        )
    if spec.freeze and spec.num_fixed_layers:
        found.append(
            Problem(
                "model.num_fixed_layers",
                "freeze already fixes the whole encoder",
                "give one of the two",
            )
        )
    headless = spec.output_dim is None and not (folder is not None and folder.head)
    if spec.freeze and headless and spec.artifact is None:
        found.append(
            Problem(
                "model.freeze",
                "leaves nothing to train without a head",
                "give output_dim to attach one",
            )
        )
    return found


def _option_problems(options: Mapping[str, Any]) -> list[Problem]:
    known = {option.name: option for option in TEXT_OPTIONS}
    found = []
    for name, value in options.items():
        field = f"model.options.{name}"
        if name in REFUSED:
            found.append(Problem(field, f"'{name}' is not an option of a model", REFUSED[name]))
        elif name not in known:
            hint = nearest(name, known) or f"it takes: {', '.join(known)}"
            found.append(Problem(field, f"a text model takes no option '{name}'", hint))
        elif value is not None and name != "pooler_options":
            found += _value_problems(name, field, value)
    if options.get("pooler_options") is not None:
        found += _pooler_problems(options.get("pooler"), options["pooler_options"])
    return found


def _value_problems(name: str, field: str, value: Any) -> list[Problem]:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if name == "pooler" and value not in POOLER_NAMES:
        hint = nearest(str(value), POOLER_NAMES) or f"known: {', '.join(POOLER_NAMES)}"
        return [Problem(field, f"no pooler is called {value!r}", hint)]
    if name == "max_seq_length" and (not isinstance(value, int) or not number or value < 3):
        # Two special tokens and one of the text.
        return [Problem(field, f"must be a whole number of at least 3, not {value!r}")]
    if name == "dropout" and not (number and 0 <= value < 1):
        return [Problem(field, f"must be at least 0 and below 1, not {value!r}")]
    if name == "revision" and (not isinstance(value, str) or not value):
        return [Problem(field, f"must be a branch, tag or commit, not {value!r}")]
    if name == "attn_implementation" and value not in ("eager", "sdpa"):
        return [Problem(field, f"must be eager or sdpa, not {value!r}")]
    return []


def _pooler_problems(pooler: Any, options: Any) -> list[Problem]:
    field = "model.options.pooler_options"
    if not isinstance(options, Mapping):
        return [Problem(field, f"must be a mapping, not {options!r}")]
    if pooler is None:
        return [Problem(field, "needs a pooler", "pooler='GeM' takes p and eps")] if options else []
    card = next((c for c in CARDS if c.kind == "pooler" and c.name == pooler), None)
    if card is None:
        return []  # the pooler's own name is reported
    found = card.unknown_options(options, field)
    for option in card.options:
        value = options.get(option.name, 1.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
            found.append(Problem(f"{field}.{option.name}", f"must be above 0, not {value!r}"))
    return found


def _for_task(task: str | None) -> list[Card]:
    from luthier.registry import cards

    available = [c for c in cards("model") if c.facts.get("available") is not False]
    if task is None:
        return available
    known = {str(c.facts.get("task")) for c in MODELS}
    if task not in known:
        raise NotFound(
            f"no task is called '{task}'",
            hint=nearest(task, known) or f"known: {', '.join(sorted(known))}",
        )
    return [c for c in available if c.facts.get("task") == task]


def _card(name: str) -> Card | None:
    from luthier.registry import cards

    return next((card for card in cards("model") if card.name == name), None)


def _unavailable(card: Card) -> ModelError:
    task = card.facts["task"]
    kind = "over vectors" if task == "any" else f"for {task}"
    return ModelError(
        f"'{card.name}' is a model {kind}; this version tunes text models",
        hint="for text, all-minilm-l6-v2 is a good start",
    )


def is_path(name: str) -> bool:
    """Whether a name means a folder rather than a catalog name or a hub id."""
    if name.startswith((".", "/", "~")) or "\\" in name:
        return True
    if name.count("/") > 1:
        return True
    return Path(name).is_dir() and _card(name) is None


def _in_package(package: str) -> Path | None:
    """The model that a Python package carries, found without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "model"
    return folder if (folder / "config.json").is_file() else None
