"""From search logs to training data: sessions, what biases them, and what can be learned of them.

A log holds what was shown, in which order, and what people did with it. ``importing`` reads one
into ``sessions.Sessions``; ``cleaning`` drops bots; ``propensity`` and ``click_models`` say how
much of a click is the position's and how much the item's; ``conversion`` makes training inputs
of it; ``off_policy`` says what another ranking would have earned; ``simulate`` makes logs whose
bias is known; ``tuning`` goes the whole way. Nothing here loads torch in this process.

The names of Embedding Studio are loaded when first used.
"""

from __future__ import annotations

from luthier.lazy import lazy_names

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
        "luthier.clicks.parameters": "FineTuningParams",
        "luthier.clicks.curriculum": "ExamplesType",
        "luthier.clicks.settings": (
            "FineTuningSettings EarlyStopping RankingLossInterface RankingLoss "
            "ProbMarginRankingLoss CosineProbMarginRankingLoss "
            "COSINE_SIMILARITY DOT_PRODUCT EUCLIDEAN_DISTANCE"
        ),
        "luthier.clicks.confidence": "dummy_confidences calculate_confidences",
        "luthier.clicks.calculators": "MetricCalculator MetricValue DistanceShift ScoredInputs",
        "luthier.clicks.accumulators": "MetricsAccumulator",
        "luthier.clicks.sessions": "Sessions",
        "luthier.clicks.preprocessing": "DatasetFieldsNormalizer",
        "luthier.clicks.splitters": (
            "NoSplitter SeparatorSplitter DummySentenceSplitter TokenGroupTextSplitter"
        ),
        "luthier.clicks.items_sets": (
            "ItemsSet ItemsSetSplitter ItemsSetAugmentationApplier TextItemSetManager "
            "TextPreprocessor"
        ),
        "luthier.clicks.images": "ImagePreprocessor",
        "luthier.clicks.loaders": (
            "DataLoader InMemoryDataLoader FileDataLoader JSONLDataLoader CSVDataLoader "
            "ParquetDataLoader AwsS3DataLoader ItemMeta"
        ),
        "luthier.clicks.converters": (
            "ClickstreamSessionConverter SessionWithEvents TrainTestSplitter TextQueryItem "
            "QueryRetriever TextQueryRetriever"
        ),
        "luthier.clicks.builder": "FineTuningBuilder RankingData prepare_data",
        "luthier.clicks.methods": "FineTuningMethod PluginMeta find_method find_methods",
        "luthier.clicks.fitting": (
            "FineTuner RankingDataLoader Trainer _finetune_embedding_model_one_step "
            "_finetune_embedding_model_one_step_hyperopt"
        ),
        "luthier.clicks.experiments": (
            "ExperimentsManager FineTuningIteration MLflowClientWrapper"
        ),
        "luthier.clicks.tasks": "FineTuningTasks FineTuningTaskRunRequest",
        "luthier.clicks.hyperopt": "fmin hp tpe rand Trials",
        "luthier.clicks.augmentation": "ChangeCases Misspellings AugmentationsComposition",
    },
)
