"""What our loop asks of a ``Trainer``: a learner, a stepper, and the moments between steps.

The events and what the trainer's state holds at each are those of transformers:

epoch_begin, then for each optimizer step: step_begin; substep_end after each accumulated batch
but the last; pre_optimizer_step with the clipped gradients; optimizer_step; step_end; then log,
evaluate and save where the control asks for it; epoch_end, and again log, evaluate, save.

The trainer is typed ``Any`` here: transformers' own attributes have no types to rely on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import nn
from transformers.utils import logging

from luthier.engine.loop import Moments
from luthier.engine.state import Position
from luthier.trainer.pieces import halves, rows_of

logger = logging.get_logger("transformers.luthier")


class TrainerLearner:
    """Gradients of one optimizer step's batches, by the trainer's own ``training_step``."""

    def __init__(self, trainer: Any, model: nn.Module) -> None:
        self._trainer, self._model = trainer, model
        self._begun = -1  # the step whose beginning the callbacks have been told
        self._told = 0  # batches of it that the callbacks have been told of
        self.logged = trainer.logged_loss  # losses since the last log, with those of this step

    def fetch(self, rows: Any) -> Any:
        raise NotImplementedError("a trainer's batches come from its own source")

    def size(self, batch: list[Any]) -> int:
        """Rows in a step's batches."""
        return sum(rows_of(part) for part in batch)

    def modules(self) -> Iterable[nn.Module]:
        return (self._model,)

    def mode(self, training: bool) -> None:
        self._model.train(training)

    def loss(self, batch: list[Any]) -> float:
        trainer = self._trainer
        with torch.no_grad():
            found = [trainer.compute_loss(self._model, part) for part in batch]
        return float(torch.stack(found).mean())

    def backward(self, batch: list[Any], micro: int | None) -> float:
        trainer = self._trainer
        if self._begun == trainer.state.global_step:
            self._model.zero_grad()  # what a step that ran out of memory left
        else:
            self._begun, self._told = trainer.state.global_step, 0
            trainer.tell("on_step_begin")
        # A subclass may count, or choose, in its own way.
        batch, items = trainer.get_batch_samples(iter(batch), len(batch), trainer.args.device)
        total, logged = 0.0, trainer.logged_loss.clone()
        for number, part in enumerate(batch):
            last = number == len(batch) - 1
            trainer.current_gradient_accumulation_steps = len(batch)
            trainer.accelerator.gradient_state._set_sync_gradients(last)
            with self._synchronized(last):
                loss = self._part(part, items, micro, len(batch))
            total += loss.item()
            logged += trainer.counted(loss, logged)
            if number == self._told:  # once, also when the step is done again
                self._told += 1
                trainer.current_flos += float(trainer.floating_point_ops(part))
                trainer._track_num_input_tokens(part)
                if not last:
                    trainer.tell("on_substep_end")
        self.logged = logged
        return total

    def _part(self, part: Any, items: Any, micro: int | None, count: int) -> torch.Tensor:
        trainer = self._trainer
        if micro is None or rows_of(part) <= micro:
            whole: torch.Tensor = trainer.training_step(self._model, part, items)
            return whole
        loss = torch.zeros((), device=trainer.args.device)
        for piece, share in halves(part, micro):
            # Divides a mean loss; one that is divided by the items of the whole step is not.
            trainer.current_gradient_accumulation_steps = count / share
            loss = loss + trainer.training_step(self._model, piece, items)
        return loss

    def _synchronized(self, last: bool) -> AbstractContextManager[Any]:
        accelerator = self._trainer.accelerator
        each = accelerator.gradient_state.plugin_kwargs.get("sync_each_batch", False)
        if last or each or accelerator.distributed_type == DistributedType.DEEPSPEED:
            return nullcontext()
        context: AbstractContextManager[Any] = accelerator.no_sync(model=self._model)
        return context


class TrainerStepper:
    """Clips, steps, moves the schedule on, in the order that callbacks know."""

    def __init__(self, trainer: Any, model: nn.Module) -> None:
        self._trainer, self._model = trainer, model
        self.learning_rate: float = trainer._get_learning_rate()
        self.grad_norm: Any = None

    def step(self, backward: Callable[[], float]) -> float:
        trainer = self._trainer
        loss = backward()
        norm = None
        if trainer.args.max_grad_norm > 0:
            norm = trainer._clip_grad_norm(self._model)
        self.grad_norm = trainer._get_grad_norm(self._model, grad_norm=norm)
        trainer.tell("on_pre_optimizer_step")
        trainer.optimizer.step()
        trainer.tell("on_optimizer_step")
        self.learning_rate = trainer._get_learning_rate()
        if not trainer.accelerator.optimizer_step_was_skipped and not trainer.waits_for_metrics:
            trainer.lr_scheduler.step()
        self._model.zero_grad()
        return loss

    def advance(self, *, epoch_ended: bool) -> None:
        """The schedule has moved already: callbacks of step_end may look at it."""


class TrainerMoments(Moments):
    """Tells the callbacks, and does what the control says."""

    def __init__(
        self,
        trainer: Any,
        learner: TrainerLearner,
        stepper: TrainerStepper,
        position: Position,
        *,
        epochs: int,
        batches_per_epoch: int,
        draws: bool,
        act: Callable[[Any, float | None], None],
    ) -> None:
        self._trainer, self._learner, self._stepper = trainer, learner, stepper
        self._position, self._epochs = position, epochs
        self._batches, self._draws, self._act = batches_per_epoch, draws, act
        self.on_resuming: Callable[[], None] | None = None  # restores the random states
        self._empty = False  # whether the epoch has had no row yet

    def epoch_began(self) -> None:
        trainer, position = self._trainer, self._position
        self._empty = position.step == 0
        trainer.tell("on_epoch_begin")
        if self._draws:
            if position.step == 0:
                self.restore()
            # An iterator over a loader takes a number from the global generator. Ours is none,
            # and takes it too: dropout then draws what it draws in transformers.
            torch.empty((), dtype=torch.int64).random_()
            self.restore()

    def restore(self) -> None:
        """On resuming, once: the random states of the run that goes on."""
        if self.on_resuming is not None:
            self.on_resuming()
            self.on_resuming = None

    def step_ended(self) -> bool:
        trainer, position = self._trainer, self._position
        self._empty = False
        done = min(position.step * trainer.args.gradient_accumulation_steps, self._batches)
        trainer.state.global_step += 1
        trainer.state.epoch = position.epoch + done / self._batches
        trainer.logged_loss = self._learner.logged
        trainer.tell("on_step_end")
        self._act(self._stepper.grad_norm, self._stepper.learning_rate)
        return bool(trainer.control.should_training_stop)

    @property
    def epoch_is_over(self) -> bool:
        return bool(self._trainer.control.should_epoch_stop)

    def epoch_ended(self) -> bool:
        trainer = self._trainer
        if self._empty:  # a stream that cannot be read again would be asked for ever
            step, steps = trainer.state.global_step, trainer.state.max_steps
            logger.warning("the data ended at step %d of %d: an epoch had no rows", step, steps)
            trainer.control.should_training_stop = True
        trainer.tell("on_epoch_end")
        self._act(self._stepper.grad_norm, self._stepper.learning_rate)
        return bool(trainer.control.should_training_stop) or self._position.epoch >= self._epochs
