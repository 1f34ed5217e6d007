"""The training loop.

for each epoch
    epoch_began
    for each step of the epoch's plan
        stop, if asked to                 (interrupt: save first)
        fetch the batch                   (ahead of time, with dataloader_num_workers)
        backward, clip, step              (in smaller chunks when memory runs out)
        move the schedule, record, tell
        step_ended: evaluate, when due; save, when due
    epoch_ended: evaluate, decide whether to stop, save
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from luthier.batches import Plan
from luthier.engine.control import Cancelled, Control, Interrupted, Listener
from luthier.engine.learner import Learner
from luthier.engine.memory import is_out_of_memory
from luthier.engine.state import History, Position, random_states, restore_random_states
from luthier.errors import OutOfMemory, TrainingError

#: Seconds of training between checkpoints, where no number of steps was asked for: what a
#: crash costs at most. Saving takes well under a second for the models that we tune on CPUs.
SAVE_EVERY_S = 30.0


class Moments:
    """What happens between steps: nothing, but in subclasses. The two that end something
    return whether training should stop."""

    def epoch_began(self) -> None:
        """Before the first step of an epoch, or the first after a resume."""

    def step_began(self) -> None:
        """Before a step."""

    def step_ended(self) -> bool:
        return False

    def epoch_ended(self) -> bool:
        return False

    @property
    def epoch_is_over(self) -> bool:
        """Asked after a step: whether the rest of the epoch's plan is to be left out."""
        return False


class Stepper(Protocol):
    """What turns gradients into steps; ``Optimization`` is one."""

    @property
    def learning_rate(self) -> float: ...

    def step(self, backward: Callable[[], float]) -> float:
        """Fill the gradients by ``backward``, step, and return the loss."""

    def advance(self, *, epoch_ended: bool) -> None:
        """Move the schedule on, after a step or after an epoch."""


@dataclass
class Loop:
    """Trains ``learner`` along ``plan`` from ``position`` to ``total_steps``.

    batches: from a position to the batches after it; None fetches along the plan. A None among
    them ends the epoch early, for data whose length nobody knew. save_steps: 0 never saves.
    halve: go on with smaller pieces of the batch when memory runs out. finite: end the run when
    the loss is not.
    """

    learner: Learner
    plan: Plan
    optimization: Stepper
    total_steps: int
    position: Position
    history: History
    moments: Moments
    save: Callable[[], None]
    tell: Listener
    control: Control
    save_steps: int | None = None
    read_ahead: int = 0
    batches: Callable[[Position], Generator[Any]] | None = None
    halve: bool = True
    finite: bool = True

    def train(self) -> None:
        """Run to the end, or raise Cancelled, Interrupted, OutOfMemory or TrainingError."""
        self._saved_at = time.monotonic()
        self._pace = Pace()
        position = self.position
        batches, begun = self._batches(), False
        if position.step == self.plan.steps_per_epoch:  # saved before its epoch was ended
            position.finished = self._end_epoch()
        try:
            while not position.finished and position.done < self.total_steps:
                self._obey()
                if not begun:
                    self.moments.epoch_began()
                    begun = True
                batch = next(batches)
                stop = batch is not None and self._one_step(batch)
                cut = self.moments.epoch_is_over
                if batch is None or cut or position.step == self.plan.steps_per_epoch:
                    stop, begun = self._end_epoch() or stop, False
                if cut:
                    batches.close()
                    batches = self._batches()
                position.finished = stop or position.done >= self.total_steps
                if not position.finished and self._save_is_due():
                    self._save()
        finally:
            batches.close()

    def _one_step(self, batch: Any) -> bool:
        self.moments.step_began()
        loss = self._step(batch)
        self._record(loss, self.learner.size(batch))
        return self.moments.step_ended()

    def _end_epoch(self) -> bool:
        self.optimization.advance(epoch_ended=True)
        self.position.epoch += 1
        self.position.step = 0
        return self.moments.epoch_ended()

    def _obey(self) -> None:
        wish = self.control()
        if wish == "cancel":
            raise Cancelled
        if wish == "interrupt":
            self._save()
            raise Interrupted

    def _step(self, batch: Any) -> float:
        started = time.monotonic()
        loss = self._step_that_fits(batch)
        self.position.seconds += time.monotonic() - started
        return loss

    def _step_that_fits(self, batch: Any) -> float:
        self.learner.mode(training=True)
        while True:
            before = random_states()
            try:
                return self.optimization.step(
                    lambda: self.learner.backward(batch, self.position.micro)
                )
            except (RuntimeError, MemoryError) as error:
                if not self.halve or not is_out_of_memory(error):
                    raise
            # Outside the except block: its traceback would keep the failed graph alive.
            self._halve(batch)
            restore_random_states(before)

    def _halve(self, batch: Any) -> None:
        rows = self.position.micro or self.learner.size(batch)
        if rows <= 1:
            raise OutOfMemory(
                "one row at a time does not fit in memory",
                hint="shorten the texts with model_options={'max_seq_length': …}",
            )
        self.position.micro = rows // 2
        message = f"out of memory: going on with {rows // 2} rows at a time, same effective batch"
        self.tell("log", {"level": "warning", "message": message})

    def _record(self, loss: float, rows: int) -> None:
        position, optimization = self.position, self.optimization
        if self.finite and not math.isfinite(loss):
            raise TrainingError(
                f"the loss became {loss} at step {position.done + 1}",
                hint="lower the learning rate, or use precision='fp32'",
            )
        rate = optimization.learning_rate
        optimization.advance(epoch_ended=False)
        position.step += 1
        position.done += 1
        self.history.losses.append(loss)
        self.history.learning_rates.append(rate)
        speed = self._pace.tick(rows)
        left = self.total_steps - position.done
        self.tell(
            "step",
            {
                "step": position.done,
                "steps": self.total_steps,
                "epoch": position.epoch + 1,
                "loss": loss,
                "learning_rate": rate,
                "samples_per_s": speed.rows_per_s,
                "eta_s": left * speed.seconds_per_step,
            },
        )

    def _save_is_due(self) -> bool:
        if self.save_steps is not None:
            return self.save_steps > 0 and self.position.done % self.save_steps == 0
        return time.monotonic() - self._saved_at >= SAVE_EVERY_S

    def _save(self) -> None:
        self.save()
        self.tell("checkpoint", {"step": self.position.done})
        self._saved_at = time.monotonic()

    def _batches(self) -> Generator[Any]:
        """The batches from here to the end, fetched ahead by threads where asked for.

        Threads are enough: tokenizers and Arrow release the interpreter's lock.
        """
        if self.batches is not None:
            yield from self.batches(self.position)
            return
        rows = (
            self.plan.rows(*divmod(done, self.plan.steps_per_epoch))
            for done in range(
                self.position.epoch * self.plan.steps_per_epoch + self.position.step,
                10**18,
            )
        )
        if not self.read_ahead:
            yield from map(self.learner.fetch, rows)
            return
        with ThreadPoolExecutor(self.read_ahead) as threads:
            waiting: deque[Future[Any]] = deque()
            while True:
                while len(waiting) <= self.read_ahead:
                    waiting.append(threads.submit(self.learner.fetch, next(rows)))
                yield waiting.popleft().result()


@dataclass(frozen=True)
class Speed:
    """How fast it went lately."""

    rows_per_s: float
    seconds_per_step: float


class Pace:
    """Speed over the last steps, so that the estimate follows what really happens."""

    def __init__(self, window: int = 50) -> None:
        self._ticks: deque[tuple[float, int]] = deque([(time.monotonic(), 0)], maxlen=window + 1)

    def tick(self, rows: int) -> Speed:
        """One step of so many rows has ended."""
        self._ticks.append((time.monotonic(), rows))
        seconds = max(self._ticks[-1][0] - self._ticks[0][0], 1e-9)
        count = sum(rows for _, rows in list(self._ticks)[1:])
        return Speed(count / seconds, seconds / (len(self._ticks) - 1))
