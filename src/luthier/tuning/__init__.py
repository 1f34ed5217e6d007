"""Continual learning: models that are updated when new data arrives.

The names are loaded when first used, and those that need torch load it then.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

#: Public name → the module that holds it.
_HOME = {
    name: module
    for module, names in {
        "luthier.updates": "run_training_job execute_tuning_job execute_experiment_job",
        "luthier.tuning.model_updater": "ModelUpdater",
        "luthier.tuning.config_spaces": "config_space uniform loguniform randint choice",
        "luthier.tuning.data_modules": (
            "DataModule RenateDataModule CSVDataModule TensorDataModule NPZDataModule "
            "DigitsDataModule"
        ),
        "luthier.tuning.modules": "Module RenateModule RenateWrapper MultiLayerPerceptron",
        "luthier.updaters.prompted": "LearningToPromptTransformer SPromptTransformer",
        "luthier.updaters.projected": "RandomProjectionHead",
        "luthier.tuning.scenarios": (
            "Scenario ClassIncrementalScenario TransformScenario ImageRotationScenario "
            "PermutationScenario IIDScenario FeatureSortingScenario HueShiftScenario "
            "DataIncrementalScenario BenchmarkScenario"
        ),
    }.items()
    for name in names.split()
}

__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'luthier.tuning' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
