"""The Azure ML command component of each step, made from the table.

The schema is https://azuremlschemas.azureedge.net/latest/commandComponent.schema.json.
"""

from __future__ import annotations

from typing import Any

import yaml

from luthier.doors.component_table import STEPS, TABLE, Parameter, Step

SCHEMA = "https://azuremlschemas.azureedge.net/latest/commandComponent.schema.json"

#: Changes whenever a parameter does: a component of one version is one for ever.
VERSION = "1.0.0"

#: Where the steps run unless told otherwise; it must hold luthier, see the docs.
ENVIRONMENT = "azureml:luthier@latest"

#: Steps that use every process of a node; each process is started with the same command.
_DISTRIBUTED = ("finetune",)

_NUMBERS = ("integer", "number")


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
    component["inputs"] = {row.name: input_of(row) for row in rows if not row.output}
    component["outputs"] = {row.name: output_of(row) for row in rows if row.output}
    # written by hand, folded: a flag on a line, though the command is one line
    command = "".join(
        f"\n  {part}" for part in [f"luthier component {step}", *map(_argument, rows)]
    )
    return yaml.safe_dump(component, sort_keys=False, allow_unicode=True, width=100) + (
        f"command: >-{command}\n"
    )


def input_of(row: Parameter) -> dict[str, Any]:
    """A parameter as an input of a component."""
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


def output_of(row: Parameter) -> dict[str, Any]:
    """A parameter as an output of a component."""
    return {"type": row.kind, "mode": "rw_mount", "description": row.help}


def _argument(row: Parameter) -> str:
    side = "outputs" if row.output else "inputs"
    words = f"--{row.name} '${{{{{side}.{row.name}}}}}'"
    return words if row.required else f"$[[{words}]]"
