"""A state machine walks through the ledger at random, beside a model of a few lines."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from luthier.errors import IllegalTransition, LeaseLost
from luthier.runs.ledger import Ledger
from luthier.runs.process import this_process
from luthier.spec import parse_spec
from luthier.testing.durability.jobs import illegal_history

ME = this_process()
SPEC = parse_spec({"model": {"name": "m"}, "data": {"train": {"uri": "x"}}})
MAX_CRASHES = 3


@dataclass
class Model:
    """What a run is, said in as few words as can be."""

    status: str = "CREATED"
    epoch: int = 0
    crashes: int = 0
    step: int = -1
    asked: bool = False  # to stop
    paused: bool = False

    def end(self, status: str) -> None:
        self.status = "CANCELLED" if self.asked else status

    def crash(self) -> None:
        self.crashes += 1
        self.end("FAILED" if self.crashes >= MAX_CRASHES else "CREATED")


class LedgerMachine(RuleBasedStateMachine):
    """Two runs, users and workers; workers also speak with old epochs."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.ledger = Ledger(f"sqlite:///{self.folder.name}/luthier.db")
        with self.ledger.database.read() as connection:
            connection.exec_driver_sql("SELECT 1")
        self.models = {self.ledger.submit(SPEC).id: Model() for _ in range(2)}

    def teardown(self) -> None:
        self.ledger.close()
        self.folder.cleanup()

    def pick(self, index: int) -> tuple[str, Model]:
        return list(self.models.items())[index]

    which = st.integers(0, 1)
    late = st.integers(0, 2)  # how many epochs ago the worker claimed

    @rule(index=which)
    def claim(self, index: int) -> None:
        run_id, model = self.pick(index)
        claim = self.ledger.claim(ME, run_id=run_id)
        assert (claim is not None) == (model.status == "CREATED" and not model.paused)
        if claim is not None:
            model.status, model.epoch = "STARTED", model.epoch + 1
            assert claim.epoch == model.epoch

    @rule(
        index=which,
        late=late,
        verb=st.sampled_from(["finish", "fail", "release", "crashed", "pause"]),
    )
    def end(self, index: int, late: int, verb: str) -> None:
        run_id, model = self.pick(index)
        words = {"finish": ("a" * 64,), "fail": ("r", "d"), "crashed": ("d", MAX_CRASHES)}
        mine = model.status == "STARTED" and late == 0
        try:
            getattr(self.ledger, verb)(run_id, model.epoch - late, *words.get(verb, ()))
        except LeaseLost:
            assert not mine
            return
        assert mine
        if verb == "crashed":
            model.crash()
        else:
            ends = {"finish": "FINISHED", "fail": "FAILED"}
            model.end(ends.get(verb, "CREATED"))
        model.paused = verb == "pause" and model.status == "CREATED"
        if model.status == "CREATED":
            model.asked = False

    @rule(index=which, late=late, step=st.integers(0, 3))
    def checkpoint(self, index: int, late: int, step: int) -> None:
        run_id, model = self.pick(index)
        try:
            self.ledger.progress(run_id, model.epoch - late, checkpoint_step=step)
        except LeaseLost:
            assert model.status != "STARTED" or late
            return
        assert model.status == "STARTED"
        assert late == 0
        if step > model.step:
            model.step, model.crashes = step, 0

    @rule(index=which)
    def let_go(self, index: int) -> None:
        run_id, model = self.pick(index)
        assert self.ledger.let_go(run_id, 2) == model.paused
        model.paused = False

    @rule(index=which)
    def cancel(self, index: int) -> None:
        run_id, model = self.pick(index)
        try:
            self.ledger.cancel(run_id)
        except IllegalTransition:
            assert model.status in ("FINISHED", "FAILED")
            return
        if model.status == "STARTED":
            model.asked = True
        else:
            assert model.status in ("CREATED", "CANCELLED")
            model.status, model.paused = "CANCELLED", False

    @precondition(lambda self: self.models)
    @rule(index=which, verb=st.sampled_from(["resume", "retry"]))
    def again(self, index: int, verb: str) -> None:
        run_id, model = self.pick(index)
        try:
            getattr(self.ledger, verb)(run_id)
        except IllegalTransition:
            assert model.status not in ("FAILED", "CANCELLED")
            return
        assert model.status in ("FAILED", "CANCELLED")
        model.status, model.crashes, model.asked = "CREATED", 0, False
        if verb == "retry":
            model.step = -1

    @invariant()
    def the_ledger_agrees(self) -> None:
        for run_id, model in self.models.items():
            record = self.ledger.get(run_id)
            found = (record.status, record.epoch, record.crashes, record.checkpoint_step)
            step = None if model.step < 0 else model.step
            assert found == (model.status, model.epoch, model.crashes, step)
            assert illegal_history(self.ledger.events(run_id)) == []


def _walk(examples: int, steps: int) -> None:
    machine = LedgerMachine.TestCase()
    machine.settings = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    machine.runTest()


def test_the_ledger_follows_its_model() -> None:
    _walk(15, 20)


@pytest.mark.slow
def test_the_ledger_follows_its_model_for_long() -> None:
    """100,000 steps, or as many as ``LUTHIER_STEPS`` says."""
    _walk(int(os.environ.get("LUTHIER_STEPS", "100000")) // 50, 50)
