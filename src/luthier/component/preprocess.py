"""``preprocess``: files of rows become checked, split and tokenized data.

Every row is checked before anything is written. Splits are Parquet, with the columns that the
task uses. The tokenized rows lie in the engine's own cache of features, which is found again by
the content of rows and tokenizer: finetune takes it as it is.
"""

from __future__ import annotations

import base64
import binascii
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from luthier.component.folders import (
    check_apart,
    output,
    read_marker,
    write_json,
    write_marker,
)
from luthier.data.parts import THREE_WAYS, TWO_WAYS, split_rows
from luthier.data.rows import Rows, read_rows
from luthier.doors.component import preprocess_words
from luthier.doors.component_table import TABLE
from luthier.engine.control import Control, Listener, obeying
from luthier.engine.features import Features, say_what_is_cut
from luthier.errors import DataError, Problem, SpecError
from luthier.registry import find
from luthier.spec import CSVOptions
from luthier.spec.job import JobSpec, parse_spec
from luthier.store.bundle import sha256_of
from luthier.store.urls import local_file
from luthier.tasks.examples import Examples
from luthier.tasks.task import Task

#: Split → the flag of its file.
FLAGS = {
    "train": "train_file_path",
    "validation": "validation_file_path",
    "test": "test_file_path",
}

#: The folder with the engine's cache of features.
TOKENIZED = "tokenized"


@dataclass(frozen=True)
class _Split:
    """Rows of one split, checked, and where they came from."""

    rows: Rows
    source: str


def preprocess(args: Mapping[str, Any], tell: Listener, control: Control) -> dict[str, Any]:
    """Carry out the step; what it made, as JSON data. args: as ``parse("preprocess", …)`` gave.

    Raises DataError with file, row and column; SpecError; ModelError; NotFound: there is no
    output of import; Conflict: the output holds something else.
    """
    check_apart("preprocess", args)
    selector, place = Path(args["model_selector_output"]), Path(args["preprocess_output"])
    imported, facts = read_marker(selector, "import", "model_selector_output")
    same_task(args["task_name"], imported["task_name"], "model_selector_output")
    for notice in _notices(args):
        tell("log", {"level": "warning", "message": notice})
    spec = described(args, selector)
    task: Task = find("task", spec.task).load()(spec.processing)
    tell("stage", {"name": "reading the data"})
    try:
        splits = _splits(task, args, tell)
    except DataError as error:
        error.message, error.hint = _in_flags(error.message), _in_flags(error.hint or "") or None
        raise
    with output(place, "preprocess") as new:
        made = _write(new, task, spec, splits, tell, control)
        made["model_name"] = facts.get("model_name")
        write_marker(new, "preprocess", args, made)
    for name, about in made["splits"].items():
        message = f"{name}: {about['rows']:,} rows from {about['source']}"
        tell("log", {"level": "info", "message": message})
    return {"step": "preprocess", "preprocess_output": str(place), **made}


def _in_flags(text: str) -> str:
    """What the engine says, with our flag in the place of a JobSpec's field.

    >>> _in_flags("columns={'sentence1': 'text'} names it")
    '--sentence1_key text names it'
    """
    flag = {row.leaf: row.name for row in TABLE["preprocess"] if row.leaf}

    def word(found: re.Match[str]) -> str:
        name = flag.get(f"processing.columns.{found[1]}")
        return found[0] if name is None else f"--{name} {found[2]}"

    text = re.sub(r"\bcolumns=\{'(\w+)': '([^']*)'\}", word, text)
    return re.sub(r"\bcolumns names", "a flag that ends in _key names", text)


def same_task(one: str, other: str, flag: str) -> None:
    """Raises SpecError where two steps were told different tasks."""
    if one != other:
        message = f"is {one}, but {flag} was made for {other}"
        raise SpecError([Problem("task_name", message, f"do the step that wrote {flag} again")])


def _notices(args: Mapping[str, Any]) -> list[str]:
    if args["batch_size"] == 1000:
        return []
    return ["batch_size has no effect: rows are tokenized 1,024 at a time, which uses no more"
            " memory than that"]  # fmt: skip


def described(args: Mapping[str, Any], model: Path) -> JobSpec:
    """The task and its options as a spec that has no data yet. Raises SpecError."""
    return parse_spec(
        {
            **preprocess_words(args),
            "model": {"name": str(model.resolve())},
            "data": {"train": {"uri": str(args["train_file_path"])}},
        }
    )


def _splits(task: Task, args: Mapping[str, Any], tell: Listener) -> dict[str, _Split]:
    """The rows of every split, of files or shared out, each checked with the labels of the
    training rows."""
    with tempfile.TemporaryDirectory(prefix="luthier-") as cache:
        given = {
            name: read_rows(
                local_file(str(args[flag]), Path(cache)), CSVOptions(), name=str(args[flag])
            )
            for name, flag in FLAGS.items()
            if args[flag] is not None
        }
    train = task.read(given["train"])
    found = {name: _Split(rows, rows.file) for name, rows in given.items()}
    shares = THREE_WAYS if len(given) == 1 else TWO_WAYS
    if "validation" not in given:
        for name, rows in _shared_out(task, train, shares, args["seed"]).items():
            found[name] = _Split(rows, f"{shares[name]:.0%} of {given['train'].file}")
    labels = task.read(found["train"].rows).labels or None
    for name in given:
        if name != "train":
            task.read(found[name].rows, labels)
    if "test" not in found:
        message = "no test rows: evaluate will need test_file_path"
        tell("log", {"level": "warning", "message": message})
    return {name: found[name] for name in FLAGS if name in found}


def _shared_out(
    task: Task, train: Examples, shares: Mapping[str, float], seed: int
) -> dict[str, Rows]:
    """Disjoint splits; those of one label a row alike in their labels. Every label that there
    is, is in the training rows: nothing can be learnt of one that is not."""
    stratify = train.columns.get("label") if train.codes is not None else None
    targets = {role.name for role in task.roles if role.target}
    # what a model is asked must not be met in training, whatever its answer there
    asked = [column for role, column in train.columns.items() if role not in targets]
    parts = split_rows(train.rows, shares, seed, stratify_by=stratify, together_by=asked)
    if task.card.facts["learns"] != "classes":
        return parts
    target = next(role.name for role in task.roles if role.target)
    known = _labels_of(task, parts["train"], target)
    seen = set().union(*known)
    moved: list[Rows] = []
    for name in [name for name in parts if name != "train"]:
        rows = parts[name]
        here = _labels_of(task, rows, target)
        lacking = np.array([not labels <= seen for labels in here], dtype=bool)
        if lacking.any() and not lacking.all():
            moved.append(rows.take(np.flatnonzero(lacking)))
            parts[name] = rows.take(np.flatnonzero(~lacking))
    if moved:
        tables = [parts["train"].table, *(rows.table for rows in moved)]
        parts["train"] = Rows(train.rows.file, pa.concat_tables(tables), folder=train.rows.folder)
    return parts


def _labels_of(task: Task, rows: Rows, target: str) -> list[set[str]]:
    """The labels of each row."""
    column = task.columns(rows, True)[target]
    parse = task.parser(target, rows, True)
    values = [parse(value) for value in rows.column(column).to_pylist()]
    return [set(v) if isinstance(v, list | tuple | set | frozenset) else {v} for v in values]


def _write(
    new: Path, task: Task, spec: JobSpec, splits: Mapping[str, _Split], tell: Listener,
    control: Control,
) -> dict[str, Any]:  # fmt: skip
    """Write splits, tokenizer, labels and features; what is known of them."""
    written: dict[str, Rows] = {}
    for name, split in splits.items():
        file = new / f"{name}.parquet"
        pq.write_table(_own_columns(task, split.rows), file)
        written[name] = read_rows(file, CSVOptions(), name=file.name)
    labels = task.read(written["train"]).labels
    tell("stage", {"name": "loading the model"})
    # weights of another size are drawn anew or refused by finetune, which is told what to do
    options = {"ignore_mismatched_sizes": True}
    _, processor = task.load(spec.model.name, labels, options=options)
    processor.save_pretrained(str(new / "tokenizer"))
    tell("stage", {"name": "preparing the rows"})
    about: dict[str, Any] = {}
    columns: dict[str, str] = {}
    for name, rows in written.items():
        examples = task.read(rows, labels or None)
        features = Features(task, examples, processor, new / TOKENIZED, obeying(control))
        if name == "train":
            columns = dict(examples.columns)
            if not task.of_images:
                say_what_is_cut(features, task.limit(processor), tell)
        about[name] = {
            "rows": len(rows),
            "features": len(features),
            "sha256": sha256_of(new / f"{name}.parquet"),
            "source": splits[name].source,
        }
    if labels:
        ids = {label: code for code, label in enumerate(labels)}
        names = {str(code): label for label, code in ids.items()}
        write_json(new / "label_maps.json", {"label2id": ids, "id2label": names})
    limit = None if task.of_images else task.limit(processor)
    return {
        "task": task.name, "columns": columns, "splits": about, "labels": list(labels),
        "max_seq_length": limit,
    }  # fmt: skip


def _own_columns(task: Task, rows: Rows) -> pa.Table:
    """The columns that the task uses; images as bytes, for their paths lead away from here."""
    columns = task.columns(rows, True)
    table = rows.table.select(list(dict.fromkeys(columns.values())))
    if not task.of_images:
        return table
    name = columns["image"]
    content = [_image_bytes(value, rows.folder) for value in rows.column(name).to_pylist()]
    place = table.schema.get_field_index(name)
    return table.set_column(place, name, pa.array(content, pa.binary()))


def _image_bytes(value: Any, folder: Path | None) -> bytes:
    """The file's bytes of an image that was read once already."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    text = str(value)
    if not text.startswith("data:") and len(text) < 1024:
        path = Path(text) if folder is None else folder / text
        if path.is_file():
            return path.read_bytes()
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text)
    except (binascii.Error, ValueError) as error:  # it was read a moment ago
        raise SpecError([Problem("image", f"an image cannot be read again: {error}")]) from error
