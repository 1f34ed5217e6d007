"""What is wrong with the spec of a task, as far as it shows without torch and without data."""

from __future__ import annotations

from luthier.errors import Problem, nearest
from luthier.registry import find
from luthier.spec import (
    BestModelCheckpoint,
    EarlyStopping,
    EvaluationCallback,
    JobSpec,
    ObjectiveSpec,
    WiSEFTCallback,
)
from luthier.tasks.cards import job_problems

#: What a model's options may say for a task; as ``loading.LOAD_OPTIONS``, without torch.
MODEL_OPTIONS = ("revision", "attn_implementation", "ignore_mismatched_sizes")

#: Fields of training that belong to vectors.
_OF_VECTORS = {"sampler": "auto", "num_items_per_class": 4}


def problems(spec: JobSpec) -> list[Problem]:
    """Everything that does not fit the task; empty for a spec that can be queued."""
    return [
        *job_problems(spec.task, spec.processing),
        *_objective(spec),
        *_model(spec),
        *_callbacks(spec),
        *_training(spec),
    ]


def _objective(spec: JobSpec) -> list[Problem]:
    defaults = ObjectiveSpec()
    return [
        Problem(name, f"is for vectors; {spec.task} has the loss of its head", "leave it out")
        for name in ObjectiveSpec.model_fields
        if getattr(spec.objective, name) != getattr(defaults, name)
    ]


def _model(spec: JobSpec) -> list[Problem]:
    found = [
        Problem(
            f"model_options.{name}",
            f"{spec.task} knows no such option",
            nearest(name, MODEL_OPTIONS) or f"there are: {', '.join(MODEL_OPTIONS)}",
        )
        for name in spec.model.options
        if name not in MODEL_OPTIONS
    ]
    if spec.model.output_dim is not None:
        found.append(Problem("output_dim", f"is for vectors; {spec.task} has a head of its own"))
    if spec.output.to_onnx:
        found.append(Problem("to_onnx", "exports encoders of vectors only", "leave it out"))
    if spec.model.freeze and find("task", spec.task).facts["learns"] == "texts":
        message = f"freeze leaves nothing of a {spec.task} model to train: it has no new head"
        found.append(Problem("freeze", message, "use num_fixed_layers, or lora_r"))
    return found


def _callbacks(spec: JobSpec) -> list[Problem]:
    facts = find("task", spec.task).facts
    metrics = facts["multi_label_metrics"] if spec.processing.multi_label else facts["metrics"]
    known = ("train_loss", "val_loss", *(metric.name for metric in metrics))
    found = []
    for number, callback in enumerate(spec.callbacks):
        field = f"callbacks.{number}"
        if isinstance(callback, EvaluationCallback | WiSEFTCallback):
            name = type(callback).__name__
            found.append(Problem(field, f"{name} is for vectors; give eval_data or val_split"))
        if isinstance(callback, EarlyStopping | BestModelCheckpoint):
            monitor = callback.monitor
            if monitor not in known:
                hint = nearest(monitor, known) or f"it measures: {', '.join(known)}"
                message = f"{spec.task} does not measure '{monitor}'"
                found.append(Problem(f"{field}.monitor", message, hint))
    return found


def _training(spec: JobSpec) -> list[Problem]:
    found = [
        Problem(name, f"is for vectors; {spec.task} takes rows at random", "leave it out")
        for name, default in _OF_VECTORS.items()
        if getattr(spec.training, name) != default
    ]
    if spec.training.execution == "chunked":
        message = "tasks run packed or padded"
        found.append(Problem("execution", message, "use execution='auto'"))
    if spec.training.optim == "SparseAdam":
        found.append(Problem("optim", "SparseAdam steps the tables of encoders of vectors only"))
    if spec.training.label_smoothing_factor and spec.processing.multi_label:
        message = "smooths one right label a text; with multi_label there may be many"
        found.append(Problem("label_smoothing_factor", message))
    return found
