"""How commands speak: to a person in lines, to a program in JSON.

With ``--json`` stdout holds JSON and nothing else, errors included (RFC 9457 problem
documents); everything meant for a person goes to stderr.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from luthier.environment import HOME

Json = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]
Home = Annotated[
    str | None,
    typer.Option(
        "--home",
        metavar="FOLDER|URL",
        envvar=HOME,
        help="Where runs and artifacts live; ~/.luthier when not given.",
    ),
]


def show(document: Any, as_json: bool, human: Callable[[], object]) -> None:
    """One result: the document for a program, or ``human()`` for a person."""
    if as_json:
        print_json(document)
    else:
        human()


def print_json(document: Any, *, indent: int | None = 2) -> None:
    """JSON on stdout. What JSON lacks becomes text (times, paths) or null (NaN, infinity)."""
    text = json.dumps(_plain(document), indent=indent, ensure_ascii=False, allow_nan=False)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def print_problem(problem: Mapping[str, Any], text: str, as_json: bool) -> None:
    """An error: a problem document on stdout, or ``error: …`` on stderr."""
    if as_json:
        print_json(problem)
    else:
        red, plain = ("\033[31m", "\033[0m") if _coloured(sys.stderr) else ("", "")
        print(f"{red}error:{plain} {text}", file=sys.stderr)


def note(text: str) -> None:
    """A line for the person, which no program should read."""
    print(text, file=sys.stderr)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Aligned columns on stdout, nothing cut off: what is printed can be copied and piped."""
    cells = [[_cell(value) for value in row] for row in rows]
    numeric = [
        all(_is_number(row[i]) or row[i] is None for row in rows) for i in range(len(columns))
    ]
    widths = [max(len(line[i]) for line in [list(columns), *cells]) for i in range(len(columns))]
    for line in [[c.upper() for c in columns], *cells]:
        padded = [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        ]
        print("  ".join(padded).rstrip())


def print_facts(facts: Mapping[str, Any]) -> None:
    """One fact a line, the names aligned; what is None or empty is left out."""
    shown = {name: value for name, value in facts.items() if value not in (None, "", {}, [])}
    width = max((len(name) for name in shown), default=0)
    for name, value in shown.items():
        first, *more = _cell(value).splitlines() or [""]
        print(f"{name.ljust(width)}  {first}")
        for line in more:
            print(f"{' ' * width}  {line}")


def when(value: Any) -> str:
    """A time as a person reads it: local, to the second."""
    if isinstance(value, str):
        value = datetime.datetime.fromisoformat(value)
    if isinstance(value, int | float):
        value = datetime.datetime.fromtimestamp(value, tz=datetime.UTC)
    if isinstance(value, datetime.datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return ""


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, datetime.datetime | datetime.date):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if hasattr(value, "item"):  # a NumPy scalar
        return _plain(value.item())
    return str(value)


def _coloured(stream: Any) -> bool:
    return bool(stream.isatty()) and "NO_COLOR" not in os.environ
