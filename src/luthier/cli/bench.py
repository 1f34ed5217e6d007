"""``luthier bench``: luthier beside its peers, on this machine."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from luthier.cli.bench_continual import continual
from luthier.cli.output import Json, note, print_json, print_table
from luthier.errors import LuthierError, NotFound, Problem, SpecError

if TYPE_CHECKING:
    from luthier.benchmark.cases import Case
    from luthier.benchmark.work import Settings


class _Bench(TyperGroup):
    """``luthier bench [CASE]…`` means ``luthier bench peers [CASE]…``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        asks = "--help" in args[:1]
        if not asks and (not args or args[0] not in self.commands):
            args = ["peers", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(rich_markup_mode=None, cls=_Bench)
app.command("continual")(continual)


@app.command("peers")
def bench(
    cases: Annotated[
        list[str] | None, typer.Argument(metavar="[CASE]…", help="All when none is given.")
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="Say which cases there are.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="One round of few steps: shows that it runs.")
    ] = False,
    precision: Annotated[
        Literal["fp32", "bf16", "both"], typer.Option("--precision", help="Of all sides.")
    ] = "fp32",
    rounds: Annotated[int | None, typer.Option("--rounds", min=1)] = None,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, show_default="all cores")
    ] = None,
    model: Annotated[
        str, typer.Option("--model", help="A folder, or a model that is installed.")
    ] = "all-minilm-l6-v2",
    dropout: Annotated[
        float | None,
        typer.Option("--dropout", min=0, max=0.99, help="0 makes the losses comparable."),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Change a field of luthier's job."),
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Merge the results into docs/ of the clone.")
    ] = False,
    as_json: Json = False,
) -> None:
    """luthier beside sentence-transformers' trainer, on the same rows, in turn.

    Full cases take minutes each, and want an idle machine.
    """
    from luthier.benchmark.cases import find_cases
    from luthier.benchmark.machine import cores
    from luthier.benchmark.places import clone, data_folder, model_folder
    from luthier.benchmark.race import peak as matmul_peak
    from luthier.benchmark.work import Settings

    chosen = find_cases(cases or [])
    if listed:
        _list(chosen, as_json)
        return
    changed = dict(_change(word) for word in changes or [])
    if write and (quick or changed or dropout is not None):
        message = "what is quick or changed is no result for the documentation"
        raise SpecError([Problem("--write", message, "leave out --quick, --set and --dropout")])
    root = clone()
    if write and root is None:
        message = "the documentation is in a clone of luthier, and this is none"
        raise NotFound(message, hint="luthier bench --json > results.json")
    used, folder = threads or cores(), model_folder(model)
    note(f"the peak of a matrix product on {used} threads")
    peak = matmul_peak(used, 0.05 if quick else 0.8)
    with tempfile.TemporaryDirectory(prefix="luthier-bench-") as scratch:

        def settings(word: str, number: int) -> Settings:
            return Settings(
                model=folder,
                name=Path(model).name,
                data=data_folder(),
                work=Path(scratch) / str(number),
                precision=word,
                threads=used,
                onednn=peak["fp32_by"] == "oneDNN",
                quick=quick,
                rounds=rounds,
                dropout=dropout,
                changed=changed,
            )

        words: list[str] = ["fp32", "bf16"] if precision == "both" else [precision]
        done = _run(chosen, words, settings, peak, root if write else None)
    if as_json:
        print_json(done)
    else:
        _print(done)
    if done["failed"] or not done["results"]:
        raise typer.Exit(1)


def _run(
    chosen: list[Case],
    precisions: list[str],
    settings: Callable[[str, int], Settings],
    peak: dict[str, float | str],
    write_to: Path | None,
) -> dict[str, Any]:
    """Measure case after case. What cannot be measured here is skipped, and said; a case that
    fails does not take the others with it, and results are written as they come."""
    from luthier.benchmark import page, race
    from luthier.benchmark.machine import commit, machine
    from luthier.benchmark.places import clone
    from luthier.benchmark.steering import SideFailed
    from luthier.benchmark.summary import summarize
    from luthier.benchmark.unavailable import Unavailable

    facts, at = machine(), commit(clone())
    results: list[dict[str, Any]] = []
    skipped: list[dict[str, str]] = []
    failed: list[dict[str, str]] = []
    for number, (case, word) in enumerate((c, w) for c in chosen for w in precisions):
        asked = settings(word, number)
        try:
            raced = race.race(case, asked, note)
        except Unavailable as error:
            note(f"skipped {case.name}: {error}")
            skipped.append({"case": case.name, "precision": word, "reason": str(error)})
            continue
        except SideFailed as error:
            note(f"failed {case.name}: {error}")
            failed.append({"case": case.name, "precision": word, "reason": str(error)})
            continue
        result = summarize(raced, asked, peak)
        results.append(result)
        if write_to is not None:
            page.write([result], facts, at, write_to / "docs" / "benchmarks.md")
            note(f"{case.name} {word}: written to docs/benchmarks.md")
    return {
        "machine": facts,
        "commit": at,
        "peak": peak,
        "results": results,
        "skipped": skipped,
        "failed": failed,
    }


def _print(done: dict[str, Any]) -> None:
    from luthier.benchmark.page import HEADINGS, rows

    cells = [row for result in done["results"] for row in rows(result)]
    print_table(list(HEADINGS), [[cell.replace("**", "") for cell in row] for row in cells])
    for result in done["results"]:
        difference, cosine = result["loss_difference"], result["least_cosine"]
        if difference is not None:
            print(f"{result['case']}: losses differ by at most {difference:.1e} in a step")
        if cosine is not None:
            print(f"{result['case']}: least cosine between the vectors {cosine:.6f}")
    for what in ("skipped", "failed"):
        for entry in done[what]:
            print(f"{what} {entry['case']} ({entry['precision']}): {entry['reason']}")
    sys.stdout.flush()


def _list(chosen: list[Case], as_json: bool) -> None:
    found = [
        {"name": c.name, "group": c.group, "what": c.title, "peers": list(c.peers)} for c in chosen
    ]
    if as_json:
        print_json(found)
        return
    print_table(["case", "group", "what"], [[c.name, c.group, c.title] for c in chosen])


def _change(word: str) -> tuple[str, Any]:
    import yaml

    name, equals, value = word.partition("=")
    if not equals or not name:
        raise LuthierError("is no FIELD=VALUE", where=f"--set {word}")
    return name, yaml.safe_load(value)
