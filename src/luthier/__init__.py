"""luthier fine-tunes pretrained models and proves that they got better.

The public names are loaded when first used: ``import luthier`` loads no torch.
"""

from __future__ import annotations

from luthier.lazy import lazy_names

__version__ = "0.1.0"

__all__, __getattr__, __dir__ = lazy_names(
    __name__,
    {
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
    },
    "__version__",
)
