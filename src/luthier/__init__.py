"""luthier fine-tunes pretrained models and proves that they got better.

The public names are loaded when first used: ``import luthier`` loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

#: Public name → the module that holds it.
_HOME = {
    name: module
    for module, names in {
        "luthier.api": (
            "fit connect create_experiment get_experiment list_experiments delete_experiment "
            "delete_experiments get_run list_runs delete_run delete_runs submit preflight"
        ),
        "luthier.runs.client": "Run Experiment",
        "luthier.inference": "get_model build_model encode cos_sim",
        "luthier.corpus.encoding": "encode_corpus",
        "luthier.models.catalog": "list_models list_model_options describe_models",
        "luthier.data.documents": "Document DocumentArray",
        "luthier.spec": "CSVOptions JobSpec",
        "luthier.trainer.trainer": (
            "Trainer TrainingArguments Seq2SeqTrainer Seq2SeqTrainingArguments EvalPrediction"
        ),
    }.items()
    for name in names.split()
}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'luthier' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
