"""The callbacks of ``fit``, under the name that Finetuner's users know."""

from luthier.spec.callbacks import (
    BestModelCheckpoint,
    EarlyStopping,
    EvaluationCallback,
    MLFlowLogger,
    TrainingCheckpoint,
    WandBLogger,
    WiSEFTCallback,
)

__all__ = [
    "BestModelCheckpoint",
    "EarlyStopping",
    "EvaluationCallback",
    "MLFlowLogger",
    "TrainingCheckpoint",
    "WandBLogger",
    "WiSEFTCallback",
]
