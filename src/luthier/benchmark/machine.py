"""On what machine and with what code something was measured."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

#: Instructions that decide how fast a CPU multiplies matrices.
_FLAGS = (
    *("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_bf16", "amx_tile", "asimd", "bf16", "i8mm", "sve"),
)
_PACKAGES = ("torch", "transformers", "sentence-transformers", "accelerate", "tokenizers")


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine() -> dict[str, str]:
    """CPU, cores, flags, memory, system and versions, each as it is printed."""
    import psutil

    facts = _cpu()
    found = {
        "CPU": facts.get("model name") or platform.processor() or platform.machine(),
        "cores": str(cores()),
        "flags": " ".join(f for f in _FLAGS if f in facts.get("flags", "").split()) or "unknown",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }
    return found | {name: version(name) for name in _PACKAGES}


def machine_id(facts: dict[str, str]) -> str:
    """A short name for a machine with these facts: the same facts have the same."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]


def commit(root: Path | None) -> str:
    """The commit of the source, with a + when something was changed since."""
    if root is None:
        return f"luthier {version('luthier')}"
    head = _git(root, "rev-parse", "--short", "HEAD")
    changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", "src")
    return f"{head or 'unknown'}{'+' if changed else ''}"


def _git(root: Path, *words: str) -> str:
    try:
        asked = subprocess.run(
            ["git", *words], capture_output=True, text=True, check=False, cwd=root
        )
    except FileNotFoundError:
        return ""
    return asked.stdout.strip()


def _cpu() -> dict[str, str]:
    """The first processor's facts in /proc/cpuinfo, where there is one."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text().split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip().replace("Features", "flags"): value.strip() for key, _, value in pairs}
