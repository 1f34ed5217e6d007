"""The Azure ML command component of each step, made from the table; and a lint for any.

The schema is https://azuremlschemas.azureedge.net/latest/commandComponent.schema.json. The lint
finds what ``azure.ai.ml.load_component`` does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from luthier.doors.component_table import PATHS, STEPS, TABLE, Parameter, Step
from luthier.errors import nearest

SCHEMA = "https://azuremlschemas.azureedge.net/latest/commandComponent.schema.json"

#: Changes whenever a parameter does: a component of one version is one for ever.
VERSION = "1.0.0"

#: Where the steps run unless told otherwise; it must hold luthier, see the docs.
ENVIRONMENT = "azureml:luthier@latest"

#: Steps that use every process of a node; each process is started with the same command.
_DISTRIBUTED = ("finetune",)

_NUMBERS: Mapping[str, tuple[type, ...]] = {"integer": (int,), "number": (int, float)}


def component_yaml(step: Step, *, environment: str = ENVIRONMENT, version: str = VERSION) -> str:
    """The component of a step: name, inputs, outputs, and the command that gives them all."""
    rows = TABLE[step]
    component: dict[str, Any] = {
        "$schema": SCHEMA,
        "type": "command",
        "name": f"luthier_{step}",
        "version": version,
        "display_name": f"luthier {step}",
        "description": STEPS[step],
        "is_deterministic": True,
        "environment": environment,
    }
    if step in _DISTRIBUTED:
        component["distribution"] = {"type": "pytorch", "process_count_per_instance": 1}
        component["resources"] = {"instance_count": 1}
    component["inputs"] = {row.name: _input(row) for row in rows if not row.output}
    component["outputs"] = {row.name: _output(row) for row in rows if row.output}
    # written by hand, folded: a flag on a line, though the command is one line
    command = "".join(
        f"\n  {part}" for part in [f"luthier component {step}", *map(_argument, rows)]
    )
    return yaml.safe_dump(component, sort_keys=False, allow_unicode=True, width=100) + (
        f"command: >-{command}\n"
    )


def help_text(step: Step) -> str:
    """The help of a step: a line or two for each parameter."""
    lines = [f"luthier component {step}: {STEPS[step]}", ""]
    for row in TABLE[step]:
        facts = [row.takes()]
        if row.required:
            facts.append("required")
        elif row.default is not None:
            facts.append(f"default {row.text}")
        if row.tasks:
            facts.append(f"for {', '.join(row.tasks)}")
        lines += [f"  --{row.name}  {row.help}", f"      {'; '.join(facts)}"]
    return "\n".join(lines)


def _input(row: Parameter) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "string" if row.kind == "boolean" else row.kind}
    if row.kind == "boolean":
        made["enum"] = ["true", "false"]
    elif row.choices and row.kind == "string":
        made["enum"] = list(row.choices)
    # Azure ML's limits are inclusive, and it knows an enum of strings only; parse() is exact
    one = 1 if row.kind == "integer" else 0
    above = None if row.above is None else row.above + one
    below = None if row.below is None else row.below - one
    least = [n for n in (row.minimum, above, *_ends(row)) if n is not None]
    most = [n for n in (row.maximum, below, *_ends(row)) if n is not None]
    if row.kind in _NUMBERS:
        made |= {"min": min(least)} if least else {}
        made |= {"max": max(most)} if most else {}
    if row.default is not None:
        made["default"] = row.text if row.kind == "boolean" else row.default
    made["optional"] = not row.required
    made["description"] = f"{row.help} ({', '.join(row.tasks)})" if row.tasks else row.help
    return made


def _ends(row: Parameter) -> tuple[Any, ...]:
    return (min(row.choices), max(row.choices)) if row.choices and row.kind == "integer" else ()


def _output(row: Parameter) -> dict[str, Any]:
    return {"type": row.kind, "mode": "rw_mount", "description": row.help}


def _argument(row: Parameter) -> str:
    side = "outputs" if row.output else "inputs"
    words = f"--{row.name} '${{{{{side}.{row.name}}}}}'"
    return words if row.required else f"$[[{words}]]"


_USE = re.compile(r"\$\{\{\s*(inputs|outputs)\.([\w.-]+?)\s*\}\}")
_OPTIONAL = re.compile(r"(?<!\$)\$\[\[(.*?)\]\]", re.DOTALL)


def lint_component(text: str) -> list[str]:
    """What is wrong with a component, a sentence each; [] when nothing is."""
    try:
        component = yaml.safe_load(text)
    except yaml.YAMLError as error:
        return [f"is no YAML: {error}"]
    if not isinstance(component, dict):
        return [f"is a YAML {type(component).__name__}, not a mapping"]
    return list(_faults(component))


def _faults(component: Mapping[str, Any]) -> Iterator[str]:
    for key in ("name", "version", "command"):
        if not str(component.get(key) or "").strip():
            yield f"{key} is missing"
    inputs = component.get("inputs") or {}
    outputs = component.get("outputs") or {}
    for name, about in inputs.items():
        yield from _input_faults(name, about if isinstance(about, dict) else {})
    yield from _command_faults(str(component.get("command") or ""), inputs, outputs)


def _input_faults(name: str, about: Mapping[str, Any]) -> Iterator[str]:
    kind, default = about.get("type"), about.get("default")
    if kind in PATHS and default is not None:
        yield f"inputs.{name}: a {kind} has no default"
    enum = about.get("enum")
    if enum is not None and not all(isinstance(value, str) for value in enum):
        yield f"inputs.{name}: an enum value is no text: quote it"
    if default is None:
        return
    if enum is not None and default not in enum:
        yield f"inputs.{name}: the default {default!r} is not in its enum {enum}"
    numbers = _NUMBERS.get(str(kind))
    if numbers is None:
        if kind == "string" and not isinstance(default, str):
            yield f"inputs.{name}: the default {default!r} is no text: quote it"
        return
    if not isinstance(default, numbers) or isinstance(default, bool):
        yield f"inputs.{name}: the default {default!r} is no {kind}"
        return
    if about.get("min") is not None and default < about["min"]:
        yield f"inputs.{name}: the default {default!r} is below its min {about['min']}"
    if about.get("max") is not None and default > about["max"]:
        yield f"inputs.{name}: the default {default!r} is above its max {about['max']}"


def _command_faults(
    command: str, inputs: Mapping[str, Any], outputs: Mapping[str, Any]
) -> Iterator[str]:
    if "$$[[" in command:
        yield "command: '$$[[' is a typo of '$[['"
    if command.count("[[") != command.count("]]"):
        yield "command: '$[[' and ']]' do not pair up"
    known = {"inputs": inputs, "outputs": outputs}
    used = {side: {n for s, n in _USE.findall(command) if s == side} for side in known}
    outside = _OPTIONAL.sub(" ", command)
    bare = {name for side, name in _USE.findall(outside) if side == "inputs"}
    for side, names in used.items():
        for name in sorted(names - set(known[side])):
            hint = nearest(name, known[side])
            yield f"command: there is no {side}.{name}" + (f" ({hint})" if hint else "")
        for name in known[side]:
            if name not in names:
                yield f"{side}.{name} is not used in the command"
    for name, about in inputs.items():
        if name in bare and isinstance(about, dict) and about.get("optional"):
            yield f"inputs.{name} is optional, but stands outside $[[ ]] in the command"
    for part in _OPTIONAL.findall(command):
        within = [name for side, name in _USE.findall(part) if side == "inputs"]
        if within and not any((inputs.get(name) or {}).get("optional") for name in within):
            yield f"command: $[[ ]] around {within[0]}, which is not optional"
