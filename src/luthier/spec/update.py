"""How a model learns on from what it is, without forgetting; and a model of one's own."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from luthier.spec.options import Options
from luthier.spec.source import Frozen

#: The functions that a configuration file can have; the first two it must.
PROGRAM_FUNCTIONS = (
    "model_fn",
    "data_module_fn",
    "loss_fn",
    "optimizer_fn",
    "lr_scheduler_fn",
    "metrics_fn",
    "train_transform",
    "train_target_transform",
    "test_transform",
    "test_target_transform",
    "buffer_transform",
    "buffer_target_transform",
    "probe_data_fn",
)

MemoryName = Literal["reservoir", "sliding_window", "greedy_balanced", "herding", "infinite"]


class UpdateSpec(Frozen):
    """An update instead of a plain training, where ``updater`` is given.

    updater, updater_options: what is done against forgetting, by name. memory: which rows are
    remembered; None takes the updater's own policy. memory_size: how many rows. memory_batch_size:
    remembered rows that go along with a step; None: ``replay_ratio`` for each new one (1 where
    nobody said). memory_bytes: the most bytes that the rows may have, beside their number.
    input_state_url: where the update starts from; None starts afresh. output_state_url: where
    its state is committed.
    forgetting_budget: the most that earlier chunks may lose in this update, their mean, as a share
    (of a loss: its relative rise); forgetting_budget_each: the most that any of them may.
    probe_budget: the most that the general probe may lose. on_forgetting: whether a result that
    lost more is not committed, or only told. stability_steps: score earlier chunks every so many
    steps; None: at the evaluations that there are. drift: compare the new rows with those before;
    "gate" ends the run without training where nothing changed.
    merge: what is made of the weights once they are trained: the best mix with those of before
    ("wise-ft"), their average over the steps ("ema") or over epochs ("soup"), or the task vectors
    of all updates ("ties"). merge_options: by name; see ``luthier.updaters.merging``.
    """

    updater: str | None = None
    updater_options: Options = Field(default_factory=dict)
    memory: MemoryName | None = None
    memory_size: int = Field(default=500, ge=0)
    memory_batch_size: int | None = Field(default=None, ge=0)
    replay_ratio: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    memory_bytes: int | None = Field(default=None, ge=1)
    input_state_url: str | None = None
    output_state_url: str | None = None
    forgetting_budget: float | None = Field(default=None, ge=0, le=1)
    forgetting_budget_each: float | None = Field(default=None, ge=0, le=1)
    probe_budget: float | None = Field(default=None, ge=0, le=1)
    on_forgetting: Literal["stop", "warn"] = "stop"
    stability_steps: int | None = Field(default=None, ge=1)
    drift: Literal["off", "report", "gate"] = "off"
    merge: Literal["none", "wise-ft", "ema", "soup", "ties"] = "none"
    merge_options: Options = Field(default_factory=dict)

    @model_validator(mode="after")
    def _nothing_without_an_updater(self) -> UpdateSpec:
        fields = type(self).model_fields
        given = sorted(
            n
            for n in fields
            if getattr(self, n) != fields[n].get_default(call_default_factory=True)
        )
        if self.updater is None and given:
            raise ValueError(f"{', '.join(given)} mean nothing without an updater")
        if self.replay_ratio is not None and self.memory_batch_size is not None:
            raise ValueError("give memory_batch_size or replay_ratio, not both")
        return self


class ProgramSpec(Frozen):
    """Model and data as the functions of a Python file; see ``luthier.engine.program``.

    arguments: for those functions, by the names of their parameters.
    """

    config_file: str | None = None
    sha256: str | None = None
    arguments: Options = Field(default_factory=dict)
