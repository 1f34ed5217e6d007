"""CONFIG.yaml: the words of ``fit()``, or a nested JobSpec, and the flags laid over it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from luthier.errors import DataError, Problem, SpecError


class _Loader(yaml.SafeLoader):
    """Safe YAML in which ``1e-4`` is a number and a key stands only once.

    PyYAML follows YAML 1.1, where a float needs a dot: ``learning_rate: 1e-4`` would be text.
    """


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _mapping_without_doubles(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.MarkedYAMLError(None, None, f"{key!r} is no name", key_node.start_mark)
        if key in seen:
            raise yaml.MarkedYAMLError(None, None, f"'{key}' is given twice", key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping_without_doubles)


def read_value(where: str, text: str) -> Any:
    """One value as YAML reads it: ``0.2``, ``true``, ``[1, 2]``, ``{k: v}``. Raises SpecError."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise SpecError([Problem(where, f"is no YAML: {_reason(error)}")]) from None


def read_configuration(path: Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file, its paths made absolute.

    Paths in the file are meant from the file's own folder, wherever the command is called.
    Raises DataError that names the file and the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", file=str(path)) from None
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8: {error.reason}", file=str(path)) from None
    try:
        data = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        raise DataError(
            f"is no YAML: {_reason(error)}",
            file=str(path),
            row=mark.line + 1 if mark else None,
            column=mark.column + 1 if mark else None,
        ) from None
    if not isinstance(data, dict):
        raise DataError(
            "holds no mapping of words to values", file=str(path), hint="model: …, train_data: …"
        )
    return _from_folder(data, path.resolve().parent)


def is_nested(data: Mapping[str, Any]) -> bool:
    """Whether this is a JobSpec (``model: {name: …}``) rather than the words of fit()."""
    return isinstance(data.get("model"), Mapping) or isinstance(data.get("data"), Mapping)


def lay_over(data: dict[str, Any], path: str, value: Any) -> None:
    """Set a leaf of a nested mapping; options given one by one are merged into what is there."""
    *groups, leaf = path.split(".")
    for group in groups:
        inner = data.get(group)
        if not isinstance(inner, dict):
            inner = data[group] = {}
        data = inner
    old = data.get(leaf)
    data[leaf] = old | value if isinstance(old, dict) and isinstance(value, dict) else value


def _from_folder(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The mapping with each path that it holds made absolute."""
    data = dict(data)
    for word in ("train_data", "eval_data", "probe_data"):
        data[word] = _absolute(data.get(word), folder)
    if isinstance(data.get("data"), Mapping):
        inner = data["data"] = dict(data["data"])
        for word in ("train", "eval", "probe"):
            inner[word] = _source(inner.get(word), folder)
        data["data"] = {k: v for k, v in inner.items() if v is not None}
    if isinstance(data.get("callbacks"), list):
        data["callbacks"] = [_callback(item, folder) for item in data["callbacks"]]
    model = data.get("model")
    if isinstance(model, str):
        data["model"] = _model(model, folder)
    elif isinstance(model, Mapping) and isinstance(model.get("name"), str):
        data["model"] = {**model, "name": _model(model["name"], folder)}
    return {k: v for k, v in data.items() if v is not None}


def _callback(item: Any, folder: Path) -> Any:
    if not isinstance(item, Mapping):
        return item
    places = {
        word: _source(item[word], folder) for word in ("query_data", "index_data") if word in item
    }
    return {**item, **places}


def _source(value: Any, folder: Path) -> Any:
    """A Source as a mapping: a bare path or URL is its ``uri``."""
    if isinstance(value, str):
        return {"uri": _absolute(value, folder)}
    if isinstance(value, Mapping) and isinstance(value.get("uri"), str):
        return {**value, "uri": _absolute(value["uri"], folder)}
    return value


def _absolute(value: Any, folder: Path) -> Any:
    if not isinstance(value, str) or "://" in value or value.startswith("blob:"):
        return value
    return str(folder / Path(value).expanduser())


def _model(name: str, folder: Path) -> str:
    """A folder beside the file, or whatever else the name stands for."""
    is_path = name.startswith((".", "/", "~")) or (folder / name).is_dir()
    return str(_absolute(name, folder)) if is_path else name


def _reason(error: Exception) -> str:
    problem = getattr(error, "problem", None)
    return str(problem or error).strip().splitlines()[0]
