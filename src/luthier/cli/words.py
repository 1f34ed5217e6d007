"""The words of a job on the command line: one row each, and the flags made from them.

A word is one of ``luthier.fit()``; its type is that of the field of the spec that it sets,
so neither type nor default is restated here. A flag is the word with dashes; a field of
``TrainingSpec`` has a second flag under its own name when that differs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, get_args, get_origin

import typer
from pydantic import TypeAdapter, ValidationError

from luthier.cli.configuration import read_value
from luthier.errors import Problem, SpecError
from luthier.spec import JobSpec


@dataclass(frozen=True)
class Word:
    """A word of fit(), the leaf of the spec that it sets, and what it means."""

    name: str
    leaf: str
    doc: str

    @property
    def field(self) -> str:
        """The name of the leaf itself: ``per_device_train_batch_size`` for ``batch_size``."""
        return self.leaf.rpartition(".")[2]

    @property
    def annotation(self) -> Any:
        """The type of the leaf."""
        group, _, leaf = self.leaf.rpartition(".")
        model: Any = JobSpec.model_fields[group].annotation if group else JobSpec
        return model.model_fields[leaf].annotation

    @property
    def flags(self) -> tuple[str, ...]:
        """``--batch-size``, and ``--per-device-train-batch-size``."""
        names = [self.name]
        if self.leaf.startswith("training.") and self.field != self.name:
            names.append(self.field)
        return tuple(f"--{name.replace('_', '-')}" for name in names)

    def parse(self, value: Any) -> Any:
        """The value of a flag, as the leaf's type. Raises SpecError."""
        if self.kind == "options":
            return read_options(self.name, value)
        if self.kind == "list":
            return read_value(f"--{self.name}", value)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in ("none", "null") and self.optional:
            return None
        if self.kind == "source":
            return value
        try:
            return TypeAdapter(self.annotation).validate_python(value)
        except ValidationError as error:
            message = error.errors(include_url=False)[-1]["msg"]
            raise SpecError([Problem(self.name, f"{message}, not {value!r}")]) from None

    @property
    def optional(self) -> bool:
        return type(None) in get_args(self.annotation)

    @property
    def kind(self) -> str:
        """What the flag takes: switch, options, list, source, number, integer or text."""
        parts = get_args(self.annotation) or (self.annotation,)
        names = {getattr(part, "__name__", "") for part in parts}
        if self.annotation is bool:
            return "switch"
        if get_origin(self.annotation) is dict or self.leaf in ("data.csv", "search"):
            return "options"
        if get_origin(self.annotation) is tuple:
            return "list"
        if "tuple" in names:
            return "list"
        if "Source" in names:
            return "source"
        if "float" in names:
            return "number"
        return "integer" if "int" in names else "text"


#: Group of the spec, then a row each: the word of fit(), the leaf in that group, what it means.
_ROWS = """
[model]
model                       name                        of `luthier models`, a hub id, a folder
model_artifact              artifact                    go on from this artifact of a run
model_options               options                     pooler, max_seq_length, …
freeze                      freeze                      train only the new head
num_fixed_layers            num_fixed_layers            layers, from the lowest, that do not train
output_dim                  output_dim                  attach a projection head of this width
towers                      towers                      queries and items: the same weights, or two
[adapter]
lora_r                      lora_r                      LoRA: rank of the matrices that are trained
lora_alpha                  lora_alpha                  their weight, divided by the rank
lora_dropout                lora_dropout                dropout before them
target_modules              target_modules              [query, value], all-linear; none: peft's
use_rslora                  use_rslora                  divide by the root of the rank
use_dora                    use_dora                    train directions and lengths apart
[data]
train_data                  train                       CSV, JSONL or Parquet to learn from
eval_data                   eval                        what to measure on, in the same form
probe_data                  probe                       of an update: scored before and after it
val_split                   val_split                   share of the rows kept aside to measure on
csv_options                 csv                         is_labeled, dialect, header, …
[objective]
loss                        loss                        a loss by name
loss_options                loss_options                for the loss
miner                       miner                       a miner by name
miner_options               miner_options               for the miner
loss_optimizer              loss_optimizer              trains the loss's own parameters
loss_optimizer_options      loss_optimizer_options      for the loss optimizer
[training]
optimizer                   optim                       an optimizer by name
optimizer_options           optim_args                  layer_wise_lr_decay and its own
learning_rate               learning_rate               the highest rate of the schedule
query_learning_rate         query_learning_rate         of rankings' queries; none: as the items'
query_weight_decay          query_weight_decay          of rankings' queries; none: as the items'
examples_order              examples_order              [7, 4, 11]: phases of training on rankings
scheduler                   lr_scheduler_type           a learning rate schedule by name
scheduler_options           lr_scheduler_kwargs         for the schedule
scheduler_step              scheduler_step              when the schedule moves
num_warmup_steps            num_warmup_steps            steps until the full learning rate
warmup_ratio                warmup_ratio                or that share of the steps
num_training_steps          num_training_steps          steps until the end of the schedule
epochs                      num_train_epochs            times through the data
max_steps                   max_steps                   stop after this many steps; -1: no limit
batch_size                  per_device_train_batch_size items a batch; none: what fits
per_device_eval_batch_size  per_device_eval_batch_size  items a batch while evaluating
gradient_accumulation_steps gradient_accumulation_steps batches counted as one large one
max_grad_norm               max_grad_norm               clip gradients to this norm; 0: never
label_smoothing_factor      label_smoothing_factor      of a task's targets; 0: none
sampler                     sampler                     how batches are drawn
num_items_per_class         num_items_per_class         items of a class in a batch
seed                        seed                        of everything drawn at random
device                      device                      auto, cpu, cuda, cuda:1, …
precision                   precision                   of the forward and backward pass
execution                   execution                   auto, packed, chunked or padded
num_workers                 dataloader_num_workers      readers that fetch ahead
save_steps                  save_steps                  steps between checkpoints; none: by time
eval_steps                  eval_steps                  steps between; none: each epoch
[]
callbacks                   callbacks                   a list, each with its kind
task                        task                        embedding, text-classification, …
search                      search                      learning_rate='loguniform(1e-5, 1e-3)', …
[update]
updater                     updater                     learn without forgetting: ER, …, or default
updater_options             updater_options             for the updater
memory                      memory                      which rows are remembered
memory_size                 memory_size                 how many
memory_batch_size           memory_batch_size           of them in a step; none: as many as new ones
replay_ratio                replay_ratio                or that many for each new row
memory_bytes                memory_bytes                the most bytes of what is remembered
input_state_url             input_state_url             a state to go on from: folder or s3://
output_state_url            output_state_url            where the next state is committed
forgetting_budget           forgetting_budget           share that earlier chunks may lose, in mean
forgetting_budget_each      forgetting_budget_each      share that any of them may lose
probe_budget                probe_budget                share that the general probe may lose
on_forgetting               on_forgetting               what becomes of a result that lost more
stability_steps             stability_steps             look at earlier chunks every so many steps
drift                       drift                       compare new rows with those before
merge                       merge                       of weights, once they are trained
merge_options               merge_options               for the merge
[processing]
columns                     columns                     role=column, where names do not tell
max_seq_length              max_seq_length              tokens of a row; none: what the model takes
max_target_length           max_target_length           tokens of a text to generate
pad_to_max_length           pad_to_max_length           pad every row to the limit
multi_label                 multi_label                 a text may have any number of labels
doc_stride                  doc_stride                  tokens that two windows share
n_best_size                 n_best_size                 answers that are looked at
max_answer_length           max_answer_length           tokens of an answer
source_prefix               source_prefix               goes before every source text
source_lang                 source_lang                 code that the model knows
target_lang                 target_lang                 code that the model knows
generation                  generation                  max_new_tokens, num_beams, …
[output]
to_onnx                     to_onnx                     an ONNX model beside the tuned one
public                      public                      others may read the artifact
"""


def _read_rows() -> Iterator[Word]:
    group = ""
    for row in _ROWS.strip().splitlines():
        if row.startswith("["):
            group = row.strip("[]")
            continue
        name, field, doc = row.split(maxsplit=2)
        yield Word(name, f"{group}.{field}" if group else field, doc)


WORDS = tuple(_read_rows())
BY_NAME = {word.name: word for word in WORDS}

#: Words that name the run rather than describe the job.
RUN_WORDS = {
    "run_name": "its name; one like vigilant-tereshkova when not given",
    "experiment_name": "the experiment it belongs to, made when it is not there",
    "description": "what it is for",
    "idempotency_key": "submitting again with the same key gives the same run",
}


def read_options(name: str, given: list[str] | None) -> dict[str, Any]:
    """``margin=0.2`` as often as wanted, or one YAML mapping. Raises SpecError.

    >>> read_options("loss_options", ["margin=0.2", "type_of_triplets=hard"])
    {'margin': 0.2, 'type_of_triplets': 'hard'}
    """
    options: dict[str, Any] = {}
    for text in given or ():
        if text.lstrip().startswith("{"):
            value = read_value(f"--{name}", text)
            if not isinstance(value, dict):
                raise SpecError([Problem(name, f"is no mapping: {text!r}")])
            options |= value
            continue
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            hint = f"for example --{name.replace('_', '-')} key=value"
            raise SpecError([Problem(name, f"takes key=value, not {text!r}", hint)])
        options[key.strip()] = read_value(f"--{name} {key.strip()}", value)
    return options


def given_words(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The words that were given as flags, parsed. Raises SpecError with every problem."""
    words: dict[str, Any] = {}
    problems: list[Problem] = []
    for name, value in flags.items():
        if value is None or (isinstance(value, list) and not value):
            continue
        try:
            words[name] = BY_NAME[name].parse(value) if name in BY_NAME else value
        except SpecError as error:
            problems += error.problems
    if problems:
        raise SpecError(problems)
    return words


def with_job_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command with a flag for every word, in place of its ``**flags``.

    Typer makes options from a function's signature, so the words are put there.
    """
    own = [p for p in inspect.signature(command).parameters.values() if p.kind != p.VAR_KEYWORD]
    hints = inspect.get_annotations(command, eval_str=True)
    parameters = [p.replace(annotation=hints[p.name]) for p in own] + _flag_parameters()

    def called(**given: Any) -> Any:
        return command(**given)

    called.__doc__ = command.__doc__
    called.__name__ = command.__name__
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {p.name: p.annotation for p in parameters}
    return called


@cache
def _flag_parameters() -> list[inspect.Parameter]:
    return [_parameter(word) for word in WORDS] + [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[str | None, typer.Option(f"--{name.replace('_', '-')}", help=doc)],
        )
        for name, doc in RUN_WORDS.items()
    ]


def _parameter(word: Word) -> inspect.Parameter:
    annotation: Any
    if word.kind == "switch":
        off = f"--no-{word.name.replace('_', '-')}"
        option = typer.Option(f"{word.flags[0]}/{off}", help=word.doc, show_default=False)
        annotation = Annotated[bool | None, option]
    elif word.kind == "options":
        option = typer.Option(*word.flags, help=word.doc, metavar="KEY=VALUE")
        annotation = Annotated[list[str] | None, option]
    else:
        option = typer.Option(*word.flags, help=word.doc, metavar=_metavar(word))
        annotation = Annotated[str | None, option]
    return inspect.Parameter(
        word.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def _metavar(word: Word) -> str:
    choices = [v for part in (word.annotation, *get_args(word.annotation)) for v in _choices(part)]
    if choices and word.kind == "text":
        return "|".join(choices)
    return {"list": "YAML", "source": "FILE|URL"}.get(word.kind, word.kind.upper())


def _choices(annotation: Any) -> list[str]:
    return [v for v in get_args(annotation) if isinstance(v, str)]
