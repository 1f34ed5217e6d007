"""Continual learning: models that are updated when new data arrives.

The names are loaded when first used, and those that need torch load it then.
"""

from __future__ import annotations

from luthier.lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
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
    },
)
