"""A lint for component YAML: it finds what ``azure.ai.ml.load_component`` does not.

``pipeline_lint`` has the one for pipelines.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from luthier.doors.component_command import OPTIONAL, uses
from luthier.errors import nearest

#: Types of Azure ML whose value is a path.
PATH_TYPES = ("uri_file", "uri_folder", "mltable", "mlflow_model", "custom_model", "triton_model")

_NUMBERS: Mapping[str, tuple[type, ...]] = {"integer": (int,), "number": (int, float)}


def loaded(text: str) -> dict[str, Any]:
    """A YAML text that is a mapping. Raises ValueError that says what it is instead."""
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"is no YAML: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"is a YAML {type(found).__name__}, not a mapping")
    return found


def lint_component(text: str) -> list[str]:
    """What is wrong with a component, a sentence each; [] when nothing is."""
    try:
        component = loaded(text)
    except ValueError as error:
        return [str(error)]
    for side in ("inputs", "outputs"):
        if not isinstance(component.get(side) or {}, dict):
            return [f"{side} is no mapping"]
    return [*_missing(component), *component_faults(component)]


def _missing(component: Mapping[str, Any]) -> Iterator[str]:
    for key in ("name", "version"):
        if not str(component.get(key) or "").strip():
            yield f"{key} is missing"


def component_faults(component: Mapping[str, Any]) -> Iterator[str]:
    """Those of inputs and command, which a job without a name can have as well."""
    inputs = component.get("inputs") or {}
    outputs = component.get("outputs") or {}
    for name, about in inputs.items():
        yield from input_faults(name, about if isinstance(about, dict) else {})
    command = str(component.get("command") or "")
    if not command.strip():
        yield "command is missing"
        return
    yield from _command_faults(command, inputs, outputs)


def input_faults(name: str, about: Mapping[str, Any]) -> Iterator[str]:
    """Those of one declared input."""
    kind, default = about.get("type"), about.get("default")
    if kind in PATH_TYPES and default is not None:
        yield f"inputs.{name}: a {kind} has no default"
    enum = about.get("enum")
    if enum is not None and not all(isinstance(value, str) for value in enum):
        yield f"inputs.{name}: an enum value is no text: quote it"
    if default is None or kind in PATH_TYPES:
        return
    if enum is not None and default not in enum:
        yield f"inputs.{name}: the default {default!r} is not in its enum {enum}"
        return
    fault = _misfit(about, default)
    if fault:
        yield f"inputs.{name}: the default {default!r} {fault}"


def _misfit(about: Mapping[str, Any], value: Any) -> str | None:
    """What is wrong with a value that YAML has read."""
    kind = str(about.get("type"))
    numbers = _NUMBERS.get(kind)
    if numbers is None:
        return "is no text: quote it" if kind == "string" and not isinstance(value, str) else None
    if not isinstance(value, numbers) or isinstance(value, bool):
        return f"is no {kind}"
    if about.get("min") is not None and value < about["min"]:
        return f"is below its min {about['min']}"
    if about.get("max") is not None and value > about["max"]:
        return f"is above its max {about['max']}"
    return None


def value_fault(about: Mapping[str, Any], text: str) -> str | None:
    """What is wrong with a value that was written as text, or None.

    about: the input as it is declared.
    """
    kind, enum = about.get("type"), about.get("enum")
    value: Any = text
    if kind in _NUMBERS:
        try:
            value = int(text) if kind == "integer" else float(text)
        except ValueError:
            return f"is no {kind}"
        if not math.isfinite(value):
            return f"is no finite {kind}"
    if kind == "boolean" and text.lower() not in ("true", "false"):
        return "is neither true nor false"
    # luthier's own steps take a boolean however it is written
    known = [str(one).lower() for one in enum or ()]
    if enum is not None and text not in map(str, enum) and not (
        set(known) == {"true", "false"} and text.lower() in known
    ):  # fmt: skip
        hint = nearest(text, map(str, enum))
        return f"is none of {', '.join(map(str, enum))}" + (f"; {hint}" if hint else "")
    return _misfit(about, value)


def _command_faults(
    command: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any]
) -> Iterator[str]:
    if "$$[[" in command:
        yield "command: '$$[[' is a typo of '$[['"
    if command.count("[[") != command.count("]]"):
        yield "command: '$[[' and ']]' do not pair up"
    known = {"inputs": inputs, "outputs": outputs}
    spoken = set(uses(command))
    bare = {use.name for use in uses(OPTIONAL.sub(" ", command)) if use.side == "inputs"}
    for side, declared in known.items():
        names = {use.name for use in spoken if use.side == side}
        for name in sorted(names - set(declared)):
            hint = nearest(name, declared)
            yield f"command: there is no {side}.{name}" + (f" ({hint})" if hint else "")
        for name in declared:
            if name not in names:
                yield f"{side}.{name} is not used in the command"
    for name, about in inputs.items():
        if name in bare and isinstance(about, dict) and about.get("optional"):
            yield f"inputs.{name} is optional, but stands outside $[[ ]] in the command"
    for part in OPTIONAL.findall(command):
        within = [use.name for use in uses(part) if use.side == "inputs"]
        if within and not any((inputs.get(name) or {}).get("optional") for name in within):
            yield f"command: $[[ ]] around {within[0]}, which is not optional"
