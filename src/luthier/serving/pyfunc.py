"""The loader of MLflow's python_function flavor: ``loader_module: luthier.serving.pyfunc``.

A table of text columns goes in and one comes out; see ``models.mlflow_signature.SERVED``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.errors import DataError
from luthier.models.mlflow_signature import checked, served
from luthier.serving.models import REQUEST, Answers, open_model


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> ServedModel:
    """Called by MLflow with the folder of the model's files and what the MLmodel file says."""
    options = dict(model_config or {})
    task = str(options.pop("task", ""))
    return ServedModel(Path(path), task, options)


class ServedModel:
    """A model with its tokenizer or processor, for one task."""

    def __init__(self, folder: Path, task: str, options: Mapping[str, Any]) -> None:
        self.task = task
        self.columns = served(task)
        self.options = checked(task, options)
        self.model: Answers = open_model(folder, task, self.options)

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> Any:
        """A row of answers for each row, in a pandas DataFrame with the same index.

        model_input: a DataFrame, or rows as dicts. params: those of the signature. Raises
        DataError that names the row and column.
        """
        import pandas

        frame = model_input
        if not isinstance(frame, pandas.DataFrame):
            frame = pandas.DataFrame(list(model_input))
        rows = [self._row(row, number) for number, row in enumerate(frame.to_dict("records"), 1)]
        asked = {"batch_size": self.options["batch_size"], **self.options.get("generation", {})}
        answers = self.model.answer(rows, asked | dict(params or {})) if rows else []
        return pandas.DataFrame(
            {name: [answer[name] for answer in answers] for name in self.columns.outputs},
            index=frame.index,
        )

    def _row(self, row: Mapping[Any, Any], number: int) -> dict[str, Any]:
        taken: dict[str, Any] = {}
        for name in self.columns.inputs:
            value = row.get(name)
            if isinstance(value, str | bytes | bytearray):
                taken[name] = value
            elif name not in self.columns.optional:
                missing = value is None or (isinstance(value, float) and math.isnan(value))
                what = "is missing" if missing else f"is no text: {value!r:.40}"
                raise DataError(what, file=REQUEST, row=number, column=name)
        return taken
