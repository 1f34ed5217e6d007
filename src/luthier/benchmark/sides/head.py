"""Write a model with a new head, once for all sides, so that they start from the same weights.

``python -m luthier.benchmark.sides.head MODEL FOLDER``
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from luthier.models.loading import load_text_model
from luthier.spec import ModelSpec


def main(model: str, folder: Path) -> None:
    """A head as wide as the model, between its pooling and its normalisation."""
    plain = load_text_model(ModelSpec(name=model), artifact=None, device="cpu")
    torch.manual_seed(0)
    spec = ModelSpec(name=model, output_dim=plain.dim)
    load_text_model(spec, artifact=None, device="cpu").save(folder)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
