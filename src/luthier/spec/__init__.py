"""What a job is: frozen, typed data. Imports nothing else of ours but errors."""

from luthier.spec.callbacks import (
    BestModelCheckpoint,
    CalculatorCallback,
    CalculatorSpec,
    CallbackSpec,
    EarlyStopping,
    EvaluationCallback,
    MLFlowLogger,
    TrainingCheckpoint,
    WandBLogger,
    WiSEFTCallback,
)
from luthier.spec.job import (
    AdapterSpec,
    DataSpec,
    JobSpec,
    ModelSpec,
    ObjectiveSpec,
    OutputSpec,
    TrainingSpec,
    leaves,
    parse_spec,
)
from luthier.spec.processing import ProcessingSpec
from luthier.spec.search import SearchSpec
from luthier.spec.source import CSVOptions, Form, Source
from luthier.spec.update import ProgramSpec, UpdateSpec

__all__ = [
    "AdapterSpec",
    "BestModelCheckpoint",
    "CSVOptions",
    "CalculatorCallback",
    "CalculatorSpec",
    "CallbackSpec",
    "DataSpec",
    "EarlyStopping",
    "EvaluationCallback",
    "Form",
    "JobSpec",
    "MLFlowLogger",
    "ModelSpec",
    "ObjectiveSpec",
    "OutputSpec",
    "ProcessingSpec",
    "ProgramSpec",
    "SearchSpec",
    "Source",
    "TrainingCheckpoint",
    "TrainingSpec",
    "UpdateSpec",
    "WandBLogger",
    "WiSEFTCallback",
    "leaves",
    "parse_spec",
]
