"""An MLflow model of a tuned one: a folder that ``mlflow.pyfunc.load_model`` opens.

MLflow writes the folder itself, with the python_function flavor. What loads the weights is the
module ``luthier.serving.pyfunc``, by name: nothing is pickled.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from luthier.errors import MissingExtra, ModelError, Problem, SpecError, nearest
from luthier.models.mlflow_signature import checked, generation_defaults, served
from luthier.store.atomic import new_folder

#: Loads the model; see there.
LOADER = "luthier.serving.pyfunc"

#: What every task needs to be served, and what some need besides. MLflow adds itself.
_PACKAGES = ("luthier", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pandas")
_MORE = {"embedding": ("sentence-transformers",), "image-classification": ("pillow",)}
_SENTENCEPIECE = ("spiece.model", "sentencepiece.bpe.model", "tokenizer.model", "source.spm")

#: Left behind: states of the training, and every format that is a pickle.
_LEFT = (
    *("checkpoint-*", "state.safetensors", "optimizer.safetensors", "__pycache__"),
    *("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt"),
)


def write_mlflow_model(
    folder: Path,
    model_folder: Path,
    task: str,
    *,
    options: Mapping[str, Any],
    example: list[dict[str, Any]] | None = None,
) -> Path:
    """Write the MLflow model of a transformers (or sentence-transformers) folder.

    folder: what is written; it may be there and empty, or hold an older MLflow model, which
    is replaced. task: a name of ``mlflow_signature.SERVED``. options: see ``options_of`` there;
    they are kept in the MLmodel file, and ``load_model(…, model_config=…)`` overrides them.
    example: rows as the signature has them; None is a row that fits the task.

    Raises ModelError: no weights in safetensors, an adapter that is not merged, or ``folder``
    holds something else. SpecError: an unknown task or option, or an example that does not
    fit. MissingExtra: MLflow is not installed.
    """
    folder, model_folder = Path(folder), Path(model_folder)
    words = checked(task, options)
    columns = served(task)
    rows = _frame(example, task)
    _check_model(model_folder)
    if columns.generates:
        words["generation"] = generation_defaults(model_folder, words)
    mlflow = _mlflow()
    with _staged(model_folder) as data, _destination(folder) as place:
        mlflow.save_model(
            path=str(place),
            loader_module=LOADER,
            data_path=str(data),
            signature=_signature(task, words),
            input_example=rows,
            pip_requirements=requirements(task, model_folder),
            model_config={"task": task, **words},
            metadata={"task": task},
        )
    return folder


def _mlflow() -> Any:
    """``mlflow.pyfunc``, without what it warns of when it meets type hints of its own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*Any type hint is inferred as AnyType", UserWarning)
        try:
            mlflow = import_module("mlflow.pyfunc")
        except ImportError as error:
            raise MissingExtra("an MLflow model", "mlflow") from error
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    return mlflow


def requirements(task: str, model_folder: Path) -> list[str]:
    """The packages that serving the model needs, at the versions that are installed."""
    names = [*_PACKAGES, *_MORE.get(task, ())]
    if any((model_folder / name).is_file() for name in _SENTENCEPIECE):
        names.append("sentencepiece")
    found = []
    for name in names:
        try:
            # a local version (+cpu) cannot be installed elsewhere
            found.append(f"{name}=={version(name).partition('+')[0]}")
        except PackageNotFoundError:
            found.append(name)
    return found


def _check_model(folder: Path) -> None:
    if not (folder / "config.json").is_file() and not (folder / "modules.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise ModelError(
                "holds an adapter without its model",
                where=str(folder),
                hint="merge_lora_weights=true writes a model that stands by itself",
            )
        raise ModelError("holds no model: there is no config.json", where=str(folder))
    if not any(folder.rglob("*.safetensors")):
        raise ModelError(
            "holds no weights in safetensors; pickled ones are not published",
            where=str(folder),
            hint="save_pretrained() of transformers 5 writes safetensors",
        )


@contextmanager
def _staged(model_folder: Path) -> Iterator[Path]:
    """The model's folder without what is left behind: links, so that nothing is copied twice."""
    with tempfile.TemporaryDirectory(prefix="luthier-mlflow-") as aside:
        data = Path(aside) / "model"
        shutil.copytree(
            model_folder.resolve(),
            data,
            ignore=shutil.ignore_patterns(*_LEFT),
            copy_function=_link,
        )
        yield data


def _link(source: str, destination: str) -> None:
    os.symlink(os.path.realpath(source), destination)


@contextmanager
def _destination(folder: Path) -> Iterator[Path]:
    """Where MLflow is to write, so that ``folder`` is whole or as it was.

    An empty folder is filled in place: it may be a mount, which nothing can be renamed onto.
    """
    there = folder.is_dir() and any(folder.iterdir())
    if there and not (folder / "MLmodel").is_file():
        raise ModelError("is not empty, and holds no MLflow model", where=str(folder))
    if there or not folder.exists():
        with new_folder(folder) as place:
            yield place
        return
    try:
        yield folder
    except BaseException:
        for part in folder.iterdir():
            shutil.rmtree(part) if part.is_dir() else part.unlink()
        raise


def _signature(task: str, words: Mapping[str, Any]) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array

    columns = served(task)
    takes = [
        ColSpec(DataType.string, n, required=n not in columns.optional) for n in columns.inputs
    ]
    gives = [
        ColSpec(Array(DataType.float) if name == "embedding" else DataType.string, name)
        for name in columns.outputs
    ]
    kinds = {bool: "boolean", int: "long", float: "double"}
    values = {"batch_size": words["batch_size"]}
    if columns.generates:
        values |= words["generation"]
    params = [ParamSpec(name, kinds[type(value)], value) for name, value in values.items()]
    return ModelSignature(Schema(takes), Schema(gives), ParamSchema(params))


def _frame(example: list[dict[str, Any]] | None, task: str) -> Any:
    """The example as MLflow keeps it. Raises SpecError for rows that do not fit the task."""
    import pandas

    columns = served(task)
    rows = example or [columns.sample]
    names = [n for n in columns.inputs if n not in columns.optional or n in rows[0]]
    problems = [
        Problem(f"example.{number}.{name}", "is missing" if name not in row else "is no text")
        for number, row in enumerate(rows)
        for name in names
        if not isinstance(row.get(name), str)
    ]
    problems += [
        Problem(f"example.{number}.{name}", f"{task} has no such column", nearest(name, names))
        for number, row in enumerate(rows)
        for name in row
        if name not in names
    ]
    if problems:
        raise SpecError(problems)
    # of objects, as MLflow compares the names with a range, which pandas' own text type dislikes
    return pandas.DataFrame(rows, columns=pandas.Index(names, dtype=object), dtype=object)
