"""Which kinds of device this machine has: guessed without torch, or told by torch."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path


def guessed_devices() -> tuple[str, ...]:
    """Kinds of device, by a look at the machine; used until torch is loaded."""
    found = ["cpu"]
    if any(Path("/dev").glob("nvidia[0-9]*")):
        found.append("cuda")
    if sys.platform == "darwin" and platform.machine() == "arm64":
        found.append("mps")
    return tuple(found)


def torch_devices() -> tuple[str, ...]:
    """Kinds of device that torch can use. Does not initialise CUDA, so a fork stays possible."""
    # Asks the driver's management library instead of making a context.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    import torch

    found = ["cpu"]
    if torch.cuda.is_available():
        found.append("cuda")
    if torch.backends.mps.is_available():
        found.append("mps")
    return tuple(found)
