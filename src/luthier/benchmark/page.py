"""``docs/benchmarks.md`` and ``docs/benchmarks.json``: all that was measured, newest last known.

A result replaces the older one of its case and precision. What stands below ``MARK`` in the
page is written by hand, and stays.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from luthier.benchmark.cases import CASES
from luthier.benchmark.machine import machine_id
from luthier.benchmark.race import OURS

MARK = "\n<!-- Written by hand from here on; the program keeps it. -->\n"

_HEAD = """\
# Benchmarks

Written by `luthier bench --write`; the same data for programs: [benchmarks.json](benchmarks.json).
`make bench` measures everything again.

luthier, and sentence-transformers' own `SentenceTransformerTrainer` with its
`MultipleNegativesRankingLoss`, on the same rows in the same order, with the same model, cut,
precision, threads, learning rate, AdamW without weight decay, and clipping at norm 1. Each side
is a process of its own; while one runs its steps the others stand still, round after round, in
an order that is turned round each time. Warm-up steps are not counted. Everything between two
steps is: reading, tokenizing, forward, backward, clipping, optimizer, bookkeeping. What a side
does once, before its first step, is in **start s**, with caches that are empty.

- **samples/s**: pairs (or documents) a second. **tokens/s**: tokens that are no padding, counted
  once for all sides.
- **peak MB**: the most resident memory after warm-up, of that side's process.
- **of the peak**: operations that the model needs for these tokens (6 a parameter and token,
  embeddings left out, and attention), a second, as a share of the fastest matrix product
  measured on the machine in that precision, by MKL or oneDNN.
- **time ÷ luthier's**: for the same rows; median [least, greatest] over the rounds.
- **start s**: from the start of the process to its first step; in `start`, to the end of that.
- **loss**: the mean over the counted steps. With dropout the sides draw other masks, so it
  agrees roughly; with `--dropout 0` it must agree (`tests/benchmark`).

`sentence-transformers, tuned` has what its user can switch on by hand without changing the
work; see the table at the end. Frozen layers: all of the training, from the loading of the model,
with whatever luthier computes ahead.
"""

_BY_HAND = """
## What can be had there by hand

| gain | in sentence-transformers' trainer | in the tuned column |
|---|---|---|
| oneDNN's matmul | `torch.set_float32_matmul_precision("medium")` | where it is faster |
| bf16 | `bf16=True` | in the bf16 rows, as everywhere |
| fused AdamW | `optim="adamw_torch_fused"`, the default since torch 2.8 | yes |
| freed memory is kept | `MALLOC_TRIM_THRESHOLD_`, `MALLOC_MMAP_THRESHOLD_` | yes |
| threads that spin for a while only | `GOMP_SPINCOUNT=10000`: gains where cores are shared | no |
| batches of like length | other negatives, so another training | no |
| large contrastive batches | `CachedMultipleNegativesRankingLoss`, the size chosen by hand | yes |
| frozen layers | `requires_grad_(False)`: no gradients, but every forward pass again | yes |
| documents sorted by length | `encode` does so | yes |
| no padding at all | not for these models on CPUs | no |
| frozen layers computed once | by one's own program | no |
| texts tokenized once | by one's own collator | no |
"""

_COLUMNS = (
    *("case", "precision", "side", "samples/s", "tokens/s", "peak MB", "of the peak"),
    *("start s", "time ÷ luthier's", "loss"),
)
_RIGHT = _COLUMNS[3:]


def write(results: Iterable[Mapping[str, Any]], machine: dict[str, str], commit: str,
          page: Path) -> None:  # fmt: skip
    """Merge results into the page and its neighbour ``.json``."""
    data = page.with_suffix(".json")
    known = json.loads(data.read_text()) if data.exists() else {"machines": {}, "results": {}}
    here = machine_id(machine)
    stamp = {"date": datetime.now(UTC).strftime("%Y-%m-%d"), "commit": commit, "machine": here}
    for result in results:
        known["machines"][here] = machine
        known["results"][f"{result['case']}/{result['precision']}"] = {**result, **stamp}
    used = {result["machine"] for result in known["results"].values()}
    known["machines"] = {name: known["machines"][name] for name in sorted(used)}
    data.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    by_hand = page.read_text(encoding="utf-8").partition(MARK)[2] if page.exists() else ""
    page.write_text(text(known) + MARK + by_hand, encoding="utf-8")


def text(known: Mapping[str, Any]) -> str:
    """The page, but for what is written by hand."""
    results = sorted(known["results"].values(), key=_place)
    parts = [_HEAD]
    if not results:
        parts.append("\nNothing has been measured yet.\n")
    for name, facts in known["machines"].items():
        described = ", ".join(f"{key} {value}" for key, value in sorted(facts.items()))
        parts.append(f"\nMachine `{name}`: {described}.\n")
    for group in dict.fromkeys(result["group"] for result in results):
        parts.append(_group(group, [r for r in results if r["group"] == group]))
    return "".join(parts) + _BY_HAND


def _place(result: Mapping[str, Any]) -> tuple[int, str]:
    names = [case.name for case in CASES]
    name = result["case"]
    return names.index(name) if name in names else len(names), result["precision"]


def _group(name: str, results: Sequence[Mapping[str, Any]]) -> str:
    lines = [f"\n## {name}\n\n"]
    for title in dict.fromkeys(f"- `{r['case']}`: {r['title']}; {_settings(r)}" for r in results):
        lines.append(f"{title}\n")
    lines.append(f"\n| {' | '.join(_COLUMNS)} |\n")
    lines.append("|" + "".join("---:|" if c in _RIGHT else "---|" for c in _COLUMNS) + "\n")
    for result in results:
        lines += [f"| {' | '.join(row)} |\n" for row in rows(result)]
    where: dict[tuple[str, str, str], list[str]] = {}
    for r in results:
        stamp = r["machine"], r["date"], r["commit"]
        where.setdefault(stamp, []).append(f"{r['case']} {r['precision']}")
    said = "; ".join(
        f"machine `{at}`, {date}, commit {commit}: {', '.join(cases)}"
        for (at, date, commit), cases in sorted(where.items())
    )
    return "".join(lines) + f"\n{said}.\n"


def _settings(result: Mapping[str, Any]) -> str:
    load = result["load"]
    words = [result["model"], f"at most {result['max_seq_length']} tokens"]
    words.append(f"{result['threads']} threads")
    if result["kind"] in ("steps", "whole"):
        words.append(f"{1 - load['tokens'] / load['padded_tokens']:.0%} padding")
    return ", ".join(words)


def rows(result: Mapping[str, Any]) -> list[list[str]]:
    """One row a side, as text; the columns are those of ``HEADINGS``."""
    found = []
    for name, side in result["sides"].items():
        ratio = result["ratios"].get(name)
        shown = "1" if name == OURS else ""
        if ratio:
            shown = f"**{ratio['median']:.2f}** [{ratio['least']:.2f}, {ratio['greatest']:.2f}]"
        found.append(
            [
                result["case"],
                result["precision"],
                name,
                _number(side.get("samples_per_s"), ",.1f"),
                _number(side.get("tokens_per_s"), ",.0f"),
                _number(side["peak_mb"], ",.0f"),
                _number(side.get("mfu"), ".0%"),
                _number(side.get("first_step_s", side["start_s"]), ".2f"),
                shown,
                _number(side["loss"], ".4f"),
            ]
        )
    return found


HEADINGS = _COLUMNS


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
