"""The parameters of the finetune component's four steps: one option on one line.

Reading a command line, its help, the checks and the component's YAML all come from this table.
``leaf`` is where the value goes in a JobSpec (``training.seed``) when it goes there as it is;
the others are in ``component.BY_HAND`` or ``component.BY_CALLER``. Names, types and defaults
are those of the Azure ML finetune components.
"""

# ruff: noqa: E501 (one option on one line, however long)
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

Step = Literal["import", "preprocess", "finetune", "evaluate"]
Kind = Literal["integer", "number", "string", "boolean", "uri_file", "uri_folder", "mlflow_model"]

#: Kinds whose value is a path.
PATHS = ("uri_file", "uri_folder", "mlflow_model")

#: What a step is for, as the first line of its help and the description of its component.
STEPS: Mapping[Step, str] = MappingProxyType(
    {
        "import": "Take a pretrained model, or one tuned before, into the pipeline.",
        "preprocess": "Read, check, split and tokenize the data.",
        "finetune": "Fine-tune the model on the preprocessed data.",
        "evaluate": "Measure a fine-tuned model on the test data.",
    }
)

#: Task of the components → ours.
TASKS: Mapping[str, str] = MappingProxyType(
    {
        "SingleLabelClassification": "text-classification",
        "MultiLabelClassification": "text-classification",
        "NamedEntityRecognition": "token-classification",
        "QuestionAnswering": "question-answering",
        "Summarization": "summarization",
        "Translation": "translation",
        "TextGeneration": "text-generation",
        "ChatCompletion": "chat-completion",
        "ImageClassification": "image-classification",
    }
)

_CLASSES = ("accuracy", "f1_macro", "mcc", "precision_macro", "recall_macro")

#: Task → the metrics that can choose its best model; ``loss`` always can.
METRICS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "SingleLabelClassification": _CLASSES,
        "MultiLabelClassification": ("accuracy", "f1_micro", "f1_macro"),
        "NamedEntityRecognition": ("f1", "accuracy", "precision", "recall"),
        "QuestionAnswering": ("f1", "exact"),
        "Summarization": ("rouge1", "rouge2", "rougeL", "rougeLsum"),
        "Translation": ("bleu",),
        "TextGeneration": (),
        "ChatCompletion": (),
        "ImageClassification": ("accuracy", "f1_macro"),
    }
)
_BEST = ("loss", *dict.fromkeys(name for names in METRICS.values() for name in names))


@dataclass(frozen=True)
class Parameter:
    """One option of one step.

    default: of the value's own type; None where there is none. minimum, maximum: inclusive;
    above, below: exclusive. refusal: the message that users know for a value out of range.
    tasks: the only ones that it is for; () is all. output: a folder that the step writes.
    """

    name: str
    kind: Kind
    default: Any
    help: str
    leaf: str = ""
    choices: tuple[Any, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    refusal: str = ""
    required: bool = False
    tasks: tuple[str, ...] = ()
    output: bool = False
    step: Step = "finetune"

    @property
    def text(self) -> str | None:
        """The default as it would be written on a command line."""
        if self.default is None:
            return None
        return str(self.default).lower() if self.kind == "boolean" else str(self.default)

    def takes(self) -> str:
        """Kind and limits in a few words, for help and hints.

        >>> Parameter("seed", "integer", 42, "", minimum=0, below=2**32).takes()
        'integer, at least 0, below 4294967296'
        """
        if self.kind == "boolean":
            return "true or false"
        if self.choices:
            return "one of " + ", ".join(map(str, self.choices))
        limits = (
            ("at least", self.minimum),
            ("above", self.above),
            ("at most", self.maximum),
            ("below", self.below),
        )
        return ", ".join([self.kind, *(f"{word} {n}" for word, n in limits if n is not None)])


def _int(name: str, default: int, leaf: str, help: str, **more: Any) -> Parameter:
    return Parameter(name, "integer", default, help, leaf, **more)


def _num(name: str, default: float, leaf: str, help: str, **more: Any) -> Parameter:
    return Parameter(name, "number", default, help, leaf, **more)


def _flag(name: str, default: bool, leaf: str, help: str) -> Parameter:
    return Parameter(name, "boolean", default, help, leaf)


def _text(name: str, default: str | None, leaf: str, help: str, **more: Any) -> Parameter:
    return Parameter(name, "string", default, help, leaf, **more)


def _path(name: str, kind: Kind, help: str, **more: Any) -> Parameter:
    return Parameter(name, kind, None, help, **more)


def _column(name: str, role: str, tasks: str, help: str) -> Parameter:
    return _text(name, None, f"processing.columns.{role}", help, tasks=tuple(tasks.split()))


_IN: dict[str, Any] = {"required": True}
_OUT: dict[str, Any] = {"required": True, "output": True}
_CLASSIFY, _QA = "SingleLabelClassification MultiLabelClassification", "QuestionAnswering"
_ASKS, _TRANSLATES = {"tasks": (_QA,)}, {"tasks": ("Translation",)}
_TASK = _text("task_name", None, "", "what the model is to learn", required=True, choices=tuple(TASKS))  # fmt: skip
_SEED = _int("seed", 42, "training.seed", "of everything drawn at random", minimum=0, below=2**32)

_IMPORT = (
    _TASK,
    _text("huggingface_id", None, "model.name", "a model of the Hugging Face hub"),
    _path("model_path", "uri_folder", "a folder that transformers can open", leaf="model.name"),
    _path("pytorch_model_path", "uri_folder", "pytorch_model_folder of an earlier finetune", leaf="model.name"),
    _path("mlflow_model_path", "mlflow_model", "mlflow_model_folder of an earlier finetune"),
    _path("model_selector_output", "uri_folder", "the model's files and its arguments", **_OUT),
)  # fmt: skip

_PREPROCESS = (
    _TASK,
    _path("model_selector_output", "uri_folder", "output of the step import", **_IN),
    _path("train_file_path", "uri_file", "rows to learn from: jsonl, json, csv, tsv, parquet", **_IN),
    _path("validation_file_path", "uri_file", "rows to choose the best model by"),
    _path("test_file_path", "uri_file", "rows that only the last measurement sees"),
    _int("batch_size", 1000, "", "rows that are tokenized at a time", minimum=1),
    _flag("pad_to_max_length", False, "processing.pad_to_max_length", "all rows of one length"),
    _int("max_seq_length", -1, "", "tokens of a row; -1: what the model can take", minimum=-1),
    _int("seed", 42, "", "of the split", minimum=0, below=2**32),
    _column("sentence1_key", "sentence1", _CLASSIFY, "column with the text"),
    _column("sentence2_key", "sentence2", _CLASSIFY, "column with a second text, if there is one"),
    _column("label_key", "label", f"{_CLASSIFY} ImageClassification", "column with the label"),
    _column("token_key", "tokens", "NamedEntityRecognition", "column with the list of words"),
    _column("tag_key", "tags", "NamedEntityRecognition", "column with a tag for each word"),
    _column("question_key", "question", _QA, "column with the question"),
    _column("context_key", "context", _QA, "column with the text that holds the answer"),
    _column("answers_key", "answers", _QA, "column with the answers: their texts and starts"),
    _column("answer_start_key", "answer_start", _QA, "where each starts, in characters: inside answers, or a column"),
    _column("answer_text_key", "answer_text", _QA, "the text of each: inside answers, or a column"),
    _int("doc_stride", 128, "processing.doc_stride", "tokens that windows share", minimum=0, **_ASKS),
    _int("n_best_size", 20, "processing.n_best_size", "answers weighed a question", minimum=1, **_ASKS),
    _int("max_answer_length_in_tokens", 30, "processing.max_answer_length", "of an answer", minimum=1, **_ASKS),
    _column("document_key", "document", "Summarization", "column with the text"),
    _column("summary_key", "summary", "Summarization", "column with its summary"),
    _text("source_lang", None, "processing.source_lang", "column and code of the language to translate from", **_TRANSLATES),
    _text("target_lang", None, "processing.target_lang", "column and code of the language to translate into", **_TRANSLATES),
    _column("text_key", "text", "TextGeneration", "column with the text, or with the prompt"),
    _column("ground_truth_key", "ground_truth", "TextGeneration", "column with what follows the prompt"),
    _column("messages_key", "messages", "ChatCompletion", "column with the list of messages"),
    _column("image_key", "image", "ImageClassification", "column with the image: bytes, base64 or path"),
    _path("preprocess_output", "uri_folder", "tokenized splits, tokenizer and labels", **_OUT),
)  # fmt: skip

_FINETUNE = (
    _path("preprocess_output", "uri_folder", "output of the step preprocess", **_IN),
    _path("model_selector_output", "uri_folder", "output of the step import", **_IN),
    _path("deepspeed", "uri_file", "DeepSpeed's JSON; used only with apply_deepspeed"),
    # LoRA
    _flag("apply_lora", False, "", "train low-rank matrices beside the model's own weights"),
    _flag("merge_lora_weights", True, "", "add them into the weights; else save an adapter"),
    _int("lora_alpha", 128, "adapter.lora_alpha", "their weight, divided by the rank", minimum=1),
    _int("lora_r", 8, "adapter.lora_r", "rank of the matrices", minimum=1),
    _num("lora_dropout", 0.0, "adapter.lora_dropout", "dropout before them", minimum=0, below=1),
    _text("lora_target_modules", None, "", "names with commas, or all-linear; none: peft's choice"),
    _flag("use_rslora", False, "adapter.use_rslora", "divide by the root of the rank"),
    _flag("use_dora", False, "adapter.use_dora", "train directions and lengths apart"),
    # training
    _int("num_train_epochs", 5, "training.num_train_epochs", "times through the data", minimum=1),
    _int("max_steps", -1, "", "if positive, the number of steps, whatever num_train_epochs says", minimum=-1),
    _num("learning_rate", 2e-5, "training.learning_rate", "at the start of the schedule", above=0, refusal="Invalid learning rate. Learning rate should be greater than 0."),
    _int("per_device_train_batch_size", 4, "training.per_device_train_batch_size", "rows a device and step", minimum=1),
    _int("per_device_eval_batch_size", 4, "training.per_device_eval_batch_size", "rows a device while evaluating", minimum=1),
    _flag("auto_find_batch_size", False, "", "halve the training batch until it fits into memory"),
    # accelerators
    _flag("apply_ort", False, "", "ONNX Runtime training, which has ended: refused"),
    _flag("apply_deepspeed", False, "", "train with DeepSpeed, ZeRO-2 unless deepspeed says else"),
    _flag("apply_compile", False, "", "compile the model with torch.compile"),
    # optimizer and schedule
    _text("optim", "adamw_hf", "", "the optimizer", choices=("adamw_hf", "adamw_torch", "adafactor")),
    _int("warmup_steps", 0, "training.num_warmup_steps", "steps to the full learning rate", minimum=0),
    _num("weight_decay", 0.0, "", "of all weights but biases and LayerNorm", minimum=0),
    _num("adam_beta1", 0.9, "", "decay of the mean of gradients", minimum=0, below=1),
    _num("adam_beta2", 0.999, "", "decay of the mean of their squares", minimum=0, below=1),
    _num("adam_epsilon", 1e-8, "", "added to the root of that mean", minimum=0),
    _int("gradient_accumulation_steps", 1, "training.gradient_accumulation_steps", "batches counted as one", minimum=1),
    _text("lr_scheduler_type", "linear", "training.lr_scheduler_type", "how the learning rate moves", choices=("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")),
    # the rest
    _int("precision", 32, "", "bits: 16 is bf16, else fp16; 8 and 4 are QLoRA", choices=(32, 16, 8, 4)),
    _SEED,
    _int("dataloader_num_workers", 0, "training.dataloader_num_workers", "readers that fetch ahead", minimum=0),
    _flag("ignore_mismatched_sizes", True, "", "draw anew weights whose size is not the model's"),
    _num("max_grad_norm", 1.0, "training.max_grad_norm", "clip gradients to it; 0: never", minimum=0),
    _text("evaluation_strategy", "epoch", "", "when to evaluate", choices=("epoch", "steps", "no")),
    _num("evaluation_steps_interval", 0.0, "", "share of an epoch between evaluations; 0: eval_steps", minimum=0, maximum=1),
    _int("eval_steps", 500, "", "steps between, for evaluation_strategy steps", minimum=1),
    _text("logging_strategy", "epoch", "", "when to log", choices=("epoch", "steps")),
    _int("logging_steps", 100, "", "steps between, for logging_strategy steps", minimum=1),
    _text("metric_for_best_model", "loss", "", "what the best model has most of; least of loss", choices=_BEST),
    _int("save_total_limit", -1, "", "checkpoints that are kept; -1: all", minimum=-1),
    _flag("apply_early_stopping", False, "", "stop when the metric has not improved for a while"),
    # no default in the contract: those of transformers' EarlyStoppingCallback
    _int("early_stopping_patience", 1, "", "evaluations without improvement", minimum=1),
    _num("early_stopping_threshold", 0.0, "", "what counts as an improvement", minimum=0),
    _flag("resume_from_checkpoint", False, "", "go on from the last checkpoint in the output"),
    _path("pytorch_model_folder", "uri_folder", "the best model, and checkpoints", **_OUT),
    _path("mlflow_model_folder", "mlflow_model", "the best model in MLflow's format", **_OUT),
)  # fmt: skip

_EVALUATE = (
    _path("pytorch_model_folder", "uri_folder", "output of the step finetune", **_IN),
    _path("preprocess_output", "uri_folder", "output of the step preprocess: its test rows", **_IN),
    _path("test_file_path", "uri_file", "other rows to measure on, of the same columns"),
    _int("per_device_eval_batch_size", 4, "training.per_device_eval_batch_size", "rows at a time", minimum=1),
    _SEED,
    _path("evaluation_output", "uri_folder", "metrics, intervals and the report", **_OUT),
)  # fmt: skip


def _of(step: Step, rows: tuple[Parameter, ...]) -> tuple[Parameter, ...]:
    return tuple(replace(row, step=step) for row in rows)


#: Step → its parameters, in the order in which they are shown.
TABLE: Mapping[Step, tuple[Parameter, ...]] = MappingProxyType(
    {
        "import": _of("import", _IMPORT),
        "preprocess": _of("preprocess", _PREPROCESS),
        "finetune": _of("finetune", _FINETUNE),
        "evaluate": _of("evaluate", _EVALUATE),
    }
)
