"""MLflow: parameters, metrics by step, and the report, to a server or a local store."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib import import_module
from itertools import islice
from typing import Any

from luthier.errors import MissingExtra
from luthier.spec import MLFlowLogger
from luthier.trackers.tracker import flat, numbers

#: MLflow's own limits: parameters in one call, and the length of a value.
_PARAMETERS, _VALUE_LENGTH = 100, 6000


class MLflowTracker:
    """Reports one run to MLflow.

    Speaks through ``MlflowClient``, so neither the process's active run nor its tracking URI
    is touched: two runs in one process do not mix.
    """

    def __init__(
        self, spec: MLFlowLogger, run_name: str, config: Mapping[str, Any] | None = None
    ) -> None:
        try:
            mlflow = import_module("mlflow")
            entities = import_module("mlflow.entities")
        except ImportError as error:
            raise MissingExtra("MLFlowLogger", "mlflow") from error
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        self._metric, self._param = entities.Metric, entities.Param
        self._client = mlflow.MlflowClient(tracking_uri=spec.tracking_uri)
        run = self._client.create_run(
            self._experiment_id(spec.experiment or "luthier"), run_name=run_name
        )
        self.run_id: str = run.info.run_id
        self._step = 0
        self._parameters(flat(config or {}))

    def __call__(self, kind: str, data: dict[str, Any]) -> None:
        """``step`` and ``evaluation`` become metrics, ``report`` metrics and an artifact."""
        if kind == "step":
            self._step = int(data.get("step", self._step))
            self._log(numbers(data), "train.")
        elif kind == "evaluation":
            self._step = int(data.get("step", self._step))
            self._log(numbers(data), "eval.")
        elif kind == "report":
            self._log(numbers(data), "report.")
            self._client.log_dict(self.run_id, data, "report.json")

    def close(self, succeeded: bool = True) -> None:
        """Mark the run as FINISHED or FAILED."""
        self._client.set_terminated(self.run_id, "FINISHED" if succeeded else "FAILED")

    def _experiment_id(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        return str(self._client.create_experiment(name))

    def _log(self, values: Mapping[str, float], prefix: str) -> None:
        import time

        now_ms = int(time.time() * 1000)
        metrics = [
            self._metric(prefix + name, value, now_ms, self._step)
            for name, value in values.items()
            if name != "step"
        ]
        if metrics:
            self._client.log_batch(self.run_id, metrics=metrics)

    def _parameters(self, config: Mapping[str, Any]) -> None:
        left = iter(config.items())
        while some := list(islice(left, _PARAMETERS)):
            params = [self._param(name, str(value)[:_VALUE_LENGTH]) for name, value in some]
            self._client.log_batch(self.run_id, params=params)
