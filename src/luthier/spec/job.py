"""JobSpec: one frozen, versioned description of a run. Its sha256 is its id.

Field names are those of Hugging Face ``TrainingArguments`` where those have one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from luthier.errors import Problem, SpecError, nearest
from luthier.spec.callbacks import CallbackSpec
from luthier.spec.options import Options
from luthier.spec.processing import ProcessingSpec
from luthier.spec.search import SearchSpec
from luthier.spec.source import CSVOptions, Frozen, Source
from luthier.spec.update import ProgramSpec, UpdateSpec


class ModelSpec(Frozen):
    """What is tuned. ``name``: a catalog name, a hub id, or a folder.

    options: for the model's constructor (``pooler``, ``pooler_options``, ``max_seq_length``,
    ``revision``, …). output_dim: attach a projection head of that width. freeze: train only
    the head. num_fixed_layers: the embeddings and so many of the lowest encoder layers do not
    train. artifact: start from this artifact instead of the pretrained weights. towers: whether
    queries and items of rankings go through the same weights ("shared"), or through two copies
    that train apart ("two").
    """

    name: str
    options: Options = Field(default_factory=dict)
    output_dim: int | None = Field(default=None, ge=1)
    freeze: bool = False
    num_fixed_layers: int = Field(default=0, ge=0)
    artifact: str | None = None
    towers: Literal["shared", "two"] = "shared"


class AdapterSpec(Frozen):
    """LoRA instead of full fine-tuning, where ``lora_r`` is given. The names are peft's.

    target_modules: names of linear layers, "all-linear", or None for peft's own choice.
    """

    lora_r: int | None = Field(default=None, ge=1)
    lora_alpha: int = Field(default=8, ge=1)
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: tuple[str, ...] | str | None = None
    use_rslora: bool = False
    use_dora: bool = False

    @model_validator(mode="after")
    def _nothing_without_a_rank(self) -> AdapterSpec:
        given = sorted(
            n
            for n in type(self).model_fields
            if getattr(self, n) != type(self).model_fields[n].default
        )
        if self.lora_r is None and given:
            raise ValueError(f"{', '.join(given)} mean nothing without lora_r")
        return self


class DataSpec(Frozen):
    """What it learns from. val_split: share of the training rows kept for evaluation. probe: of
    an update: rows that are scored before and after it, and neither trained on nor remembered."""

    train: Source
    eval: Source | None = None
    probe: Source | None = None
    val_split: float = Field(default=0.0, ge=0, lt=1)
    csv: CSVOptions = CSVOptions()

    @model_validator(mode="after")
    def _one_evaluation_set(self) -> DataSpec:
        if self.eval is not None and self.val_split:
            raise ValueError("give eval or val_split, not both")
        return self


class ObjectiveSpec(Frozen):
    """Loss and miner by name; ``loss_optimizer`` trains the loss's own parameters, if any."""

    loss: str = "TripletMarginLoss"
    loss_options: Options = Field(default_factory=dict)
    miner: str | None = None
    miner_options: Options = Field(default_factory=dict)
    loss_optimizer: str | None = None
    loss_optimizer_options: Options = Field(default_factory=dict)


class TrainingSpec(Frozen):
    """How it learns.

    per_device_train_batch_size: rows (or items, for class-balanced batches) per device and
    micro-step; None finds the largest that fits. gradient_accumulation_steps multiplies it:
    an accumulated step equals the large batch, negatives included. scheduler_step: whether
    the schedule advances each optimizer step or each epoch; num_training_steps counts in
    that unit. max_grad_norm 0 does not clip. save_steps: optimizer steps between checkpoints;
    None saves about twice a minute. dataloader_num_workers: threads that read ahead.
    precision: of the forward and backward pass; "auto" is bf16 where that is measured to be
    faster on the device, else fp32.
    execution: how texts go through the encoder, "auto" takes the fastest that proves itself;
    "padded" is the plain path of other trainers.
    warmup_ratio: share of the steps that warm up, where num_warmup_steps says nothing.
    label_smoothing_factor: of the targets of a task; Szegedy et al. 2016, section 7.
    query_learning_rate, query_weight_decay: of the queries of rankings; None: as the items',
    which are learning_rate and optim_args' weight_decay.
    examples_order: the phases of training on rankings, by number as in
    ``luthier.clicks.curriculum.ExamplesType``; the epochs are divided evenly among them.
    """

    optim: str = "Adam"
    optim_args: Options = Field(default_factory=dict)
    learning_rate: float = Field(default=2e-5, gt=0, allow_inf_nan=False)
    lr_scheduler_type: str = "constant"
    lr_scheduler_kwargs: Options = Field(default_factory=dict)
    num_warmup_steps: int = Field(default=0, ge=0)
    warmup_ratio: float = Field(default=0.0, ge=0, le=1)
    num_training_steps: int | Literal["auto"] = "auto"
    scheduler_step: Literal["batch", "epoch"] = "batch"
    num_train_epochs: float = Field(default=5, ge=0, allow_inf_nan=False)
    max_steps: int = Field(default=-1, ge=-1)
    per_device_train_batch_size: int | None = Field(default=None, ge=1)
    per_device_eval_batch_size: int = Field(default=32, ge=1)
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    max_grad_norm: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    label_smoothing_factor: float = Field(default=0.0, ge=0, lt=1)
    sampler: Literal["auto", "class", "random"] = "auto"
    num_items_per_class: int = Field(default=4, ge=1)
    seed: int = Field(default=42, ge=0, lt=2**32)
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    execution: Literal["auto", "packed", "chunked", "padded"] = "auto"
    dataloader_num_workers: int = Field(default=0, ge=0)
    query_learning_rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    query_weight_decay: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    examples_order: tuple[Annotated[int, Field(ge=1, le=11)], ...] = ()
    save_steps: int | None = Field(default=None, ge=1)
    eval_steps: int | None = Field(default=None, ge=1)


class OutputSpec(Frozen):
    """What is made of the result. public: other users of this store may read the artifact."""

    to_onnx: bool = False
    public: bool = False


#: What a model is tuned for: vectors of texts, a task with a head of its own, or what the
#: program of a configuration file says.
TaskName = Literal[
    "embedding",
    "text-classification",
    "token-classification",
    "question-answering",
    "summarization",
    "translation",
    "text-generation",
    "chat-completion",
    "image-classification",
    "program",
]


class JobSpec(Frozen):
    """One job. Equal specs have equal ids, whichever door they came through."""

    version: Literal[1] = 1
    task: TaskName = "embedding"
    model: ModelSpec
    adapter: AdapterSpec = AdapterSpec()
    data: DataSpec
    processing: ProcessingSpec = ProcessingSpec()
    objective: ObjectiveSpec = ObjectiveSpec()
    training: TrainingSpec = TrainingSpec()
    update: UpdateSpec = UpdateSpec()
    program: ProgramSpec = ProgramSpec()
    callbacks: tuple[CallbackSpec, ...] = ()
    search: SearchSpec | None = None
    output: OutputSpec = OutputSpec()

    @model_validator(mode="after")
    def _adapters_train_the_encoder(self) -> JobSpec:
        if self.adapter.lora_r is not None and self.model.freeze:
            raise ValueError("freeze leaves nothing of the encoder to adapt: give lora_r or freeze")
        return self

    def canonical(self) -> str:
        """Canonical JSON: sorted keys, no spaces, defaults left out, so that a field added
        later with a default does not change the id of an older spec."""
        data = self.model_dump(mode="json", exclude_defaults=True)
        if self.callbacks:  # the discriminator is a default, and is what tells them apart
            data["callbacks"] = [
                {"kind": callback.kind} | callback.model_dump(mode="json", exclude_defaults=True)
                for callback in self.callbacks
            ]
        return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)

    @property
    def id(self) -> str:
        """sha256 of the canonical JSON, in hex."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    def changed(self, **changes: Any) -> JobSpec:
        """A spec with some leaf fields changed, by leaf name (``learning_rate=…``) or by
        dotted path (``model.options=…``). Raises SpecError for an unknown name."""
        data = self.model_dump(mode="json")
        paths = leaves()
        problems = []
        for name, value in changes.items():
            path = paths.get(name)
            if path is None:
                problems.append(Problem(name, "no such field of a job", nearest(name, paths)))
                continue
            *groups, leaf = path.split(".")
            target = data
            for group in groups:
                target = target[group]
            target[leaf] = value
        if problems:
            raise SpecError(problems)
        return parse_spec(data)


def leaves() -> dict[str, str]:
    """Leaf names and dotted paths of a spec, each to its dotted path.

    >>> leaves()["learning_rate"]
    'training.learning_rate'
    """
    found: dict[str, str] = {}
    clashes: set[str] = set()
    for group, info in JobSpec.model_fields.items():
        annotation = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, Frozen):
            for leaf in annotation.model_fields:
                path = f"{group}.{leaf}"
                found[path] = path
                if leaf in found:
                    clashes.add(leaf)
                found[leaf] = path
        elif group not in ("version",):
            found[group] = group
    for leaf in clashes:
        del found[leaf]
    return found


def parse_spec(data: Mapping[str, Any] | str | bytes) -> JobSpec:
    """A spec from JSON or a mapping. Raises SpecError that lists every problem."""
    try:
        if isinstance(data, str | bytes):
            return JobSpec.model_validate_json(data)
        return JobSpec.model_validate(data)
    except ValidationError as error:
        problems = [_problem(item) for item in error.errors(include_url=False)]
        raise SpecError(problems, _without_wrong(data, error)) from None


def _without_wrong(data: Any, error: ValidationError) -> JobSpec | None:
    """The spec with the defaults where something is wrong, if that makes a spec."""
    if not isinstance(data, Mapping):
        return None
    rest = {k: dict(v) if isinstance(v, Mapping) else v for k, v in data.items()}
    for item in error.errors(include_url=False):
        group, *inner = item["loc"] or ("",)
        holder = rest.get(group)
        if inner and isinstance(holder, dict):
            holder.pop(inner[0], None)
        else:
            rest.pop(str(group), None)
    try:
        return JobSpec.model_validate(rest)
    except ValidationError:
        return None


def _problem(item: Any) -> Problem:
    path = ".".join(str(part) for part in item["loc"]) or "job"
    if item["type"] == "extra_forbidden":
        return Problem(path, "unknown field", nearest(str(item["loc"][-1]), leaves()))
    if item["type"] == "missing":
        return Problem(path, "is required")
    given = item.get("input")
    shown = "" if isinstance(given, dict | list) else f", not {given!r:.80}"
    message = str(item["msg"]).removeprefix("Value error, ")
    return Problem(path, f"{message[0].lower()}{message[1:]}{shown}")
