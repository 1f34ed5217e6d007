"""Events as lines, a live progress bar, and tables of metrics and examples."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from luthier.runs.records import Event

if TYPE_CHECKING:
    from rich.console import Console


def line(event: Event) -> str | None:
    """An event as a line of a log; None for those that are too many to be read."""
    text = _text(event)
    if text is None:
        return None
    at = datetime.fromtimestamp(event.at).strftime("%Y-%m-%d %H:%M:%S")
    level = str(event.data.get("level", "info")).upper() if event.kind == "log" else "INFO"
    return f"{at} {level:<7} {text}"


def _text(event: Event) -> str | None:
    data = event.data
    if event.kind == "log":
        hint = f"\n  hint: {data['hint']}" if data.get("hint") else ""
        trace = f"\n{data['traceback']}" if data.get("traceback") else ""
        return f"{data.get('message', '')}{hint}{trace}"
    if event.kind == "status":
        why = ": ".join(str(data[key]) for key in ("reason", "details") if data.get(key))
        return f"{data['status']}{f' ({why})' if why else ''}"
    if event.kind == "preflight":
        return "\n".join(preflight_lines(data))
    if event.kind == "stage":
        return str(data.get("name"))
    if event.kind == "checkpoint":
        return f"checkpoint after step {data.get('step')}"
    if event.kind == "evaluation":
        return f"evaluation: {_figures(data)}"
    if event.kind == "trial":
        return _trial(data)
    return None


def _trial(data: Mapping[str, Any]) -> str:
    """A trial of a search, begun or ended."""
    said = _figures(data.get("scores") or {}) if data["state"] != "begun" else ""
    said = said or _figures(data.get("values") or {})
    error = f": {data['error']}" if data.get("error") else ""
    return f"trial {data['number']} {data['state']}: {said}{error}"


def preflight_lines(report: Mapping[str, Any]) -> list[str]:
    """The pre-flight report for people: data, texts, batches, what it will take."""
    data, held_out, batch = report["data"], report["evaluation"], report["batch"]
    columns = ", ".join(f"{role} ← {name}" for role, name in data["mapping"].items())
    shared = f", {report['overlap']:,} texts shared with training" if held_out else ""
    evaluated = f"{held_out['rows']:,} rows{shared}" if held_out else "none: nothing can be proved"
    per_class = (
        f": {batch['classes_per_batch']} classes x {batch['num_items_per_class']} items, "
        f"of {batch['classes']:,} classes"
        if "classes_per_batch" in batch
        else ""
    )
    return [
        "pre-flight",
        f"  training    {data['rows']:,} rows, {data['form']} ({columns}); "
        f"{data['distinct_texts']:,} distinct texts, {data['duplicate_rows']:,} duplicate rows",
        f"  evaluation  {evaluated}",
        f"  texts       {report['tokens_a_text']:.0f} tokens on average, "
        f"{report['cut_share']:.1%} longer than {report['max_length']} and cut",
        f"  batches     {batch['batch_size']} rows ({batch['sampler']}{per_class})",
        f"  steps       {report['steps_per_epoch']:,} an epoch, {report['steps']:,} in all; "
        f"about {_duration(report['estimated_s'])} on {report['device']} in {report['precision']}",
        f"  parameters  {report['trainable_parameters']:,} of {report['parameters']:,} trained",
    ]


def _figures(data: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in data.items()
        if isinstance(value, int | float | str)
    )


@contextmanager
def follower(
    name: str, progress: bool, *, before: str = "waiting for a worker"
) -> Iterator[Callable[[Event], None]]:
    """What shows events while a run is waited for: a live bar on a terminal, lines elsewhere.

    before: what the bar says until the first event.
    """
    if not progress:
        yield lambda event: None
        return
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal and not console.is_jupyter:
        yield _print_line
        return
    with _bar(name, console, before) as show:
        yield show


def _print_line(event: Event) -> None:
    text = line(event)
    if text is not None:
        print(text, file=sys.stderr, flush=True)


@contextmanager
def _bar(name: str, console: Console, before: str) -> Iterator[Callable[[Event], None]]:
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[facts]}"),
    )
    with Progress(*columns, console=console, transient=False) as bar:
        task = bar.add_task(escape(name), total=1, completed=0, facts=before)

        def show(event: Event) -> None:
            data = event.data
            if event.kind == "step":
                facts = (
                    f"loss {float(data['loss']):.4f} · "
                    f"{float(data.get('samples_per_s') or 0):.0f}/s · "
                    f"{_duration(float(data.get('eta_s') or 0))} left"
                )
                bar.update(task, total=max(data["steps"], 1), completed=data["step"], facts=facts)
            elif event.kind == "stage":
                bar.update(task, facts=escape(str(data.get("name"))))
            elif event.kind == "status" and data["status"] != "CREATED":
                bar.update(task, facts=data["status"].lower())
            elif event.kind in ("log", "evaluation", "preflight", "trial"):
                style = {"warning": "yellow", "error": "red"}.get(str(data.get("level")), "dim")
                text = data.get("message") if event.kind == "log" else _text(event)
                bar.console.print(f"[{style}]{escape(str(text))}[/]", highlight=False)

        yield show


def _duration(seconds: float) -> str:
    minutes, left = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"


def print_metrics(metrics: Mapping[str, Any]) -> None:
    """Print metrics: before and after side by side where there are both."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not metrics:
        console.print("no metrics yet")
        return
    groups = {k: v for k, v in metrics.items() if isinstance(v, Mapping) and _is_flat(v)}
    rest = {k: v for k, v in metrics.items() if k not in groups and not isinstance(v, Mapping)}
    if groups:
        table = Table("metric", *groups)
        for name in dict.fromkeys(name for group in groups.values() for name in group):
            table.add_row(name, *(_cell(group.get(name)) for group in groups.values()))
        console.print(table)
    if rest:
        table = Table("", "")
        for name, value in rest.items():
            table.add_row(name, _cell(value))
        console.print(table)


def _is_flat(group: Mapping[str, Any]) -> bool:
    return all(isinstance(value, int | float | str | None) for value in group.values())


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


def print_examples(examples: Mapping[str, Any], k: int) -> None:
    """Print the top ``k`` results of each query, before and after, side by side."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    found = examples.get("examples", examples)
    rows = found if isinstance(found, list) else [{"query": q, **v} for q, v in found.items()]
    if not rows:
        console.print("no examples were gathered")
    for row in rows:
        table = Table("", "before", "after", title=escape(str(row.get("query"))))
        before, after = list(row.get("before", []))[:k], list(row.get("after", []))[:k]
        for rank in range(max(len(before), len(after))):
            cells = [
                escape(_result(side[rank])) if rank < len(side) else "" for side in (before, after)
            ]
            table.add_row(str(rank + 1), *cells)
        console.print(table)


def _result(result: Any) -> str:
    if isinstance(result, Mapping):
        mark = "✓ " if result.get("relevant") else ""
        return f"{mark}{result.get('text', result)}"
    return str(result)
