"""``Trainer``: transformers' interface over our loop.

What a user calls, overrides or reads is inherited. Ours is the training: batches known by their
number, a loop that lives through a lack of memory, checkpoints that are complete or not there
and resume bit for bit, and encoders that compute no padding.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import transformers
from torch import nn
from transformers import EvalPrediction
from transformers.integrations.integration_utils import TensorBoardCallback
from transformers.optimization import GreedyLR
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import TrainOutput, has_length
from transformers.utils import logging

from luthier.engine.control import ignore, keep_going
from luthier.engine.loop import Loop
from luthier.engine.memory import is_out_of_memory
from luthier.engine.state import Position, random_states, restore_random_states
from luthier.errors import OutOfMemory, Problem
from luthier.models.unpadded import Unpadded, drops, unfit
from luthier.trainer.arguments import (
    ArgumentsError,
    Seq2SeqTrainingArguments,
    TrainingArguments,
)
from luthier.trainer.checkpoints import Checkpoints, Resumption
from luthier.trainer.collate import collator_for
from luthier.trainer.deal import dealt, streamed
from luthier.trainer.order import Order, order_of, seeded
from luthier.trainer.searching import Searching
from luthier.trainer.steps import TrainerLearner, TrainerMoments, TrainerStepper

logger = logging.get_logger("transformers.luthier")  # there, `log_level` sets what is heard

__all__ = [
    "EvalPrediction",
    "Seq2SeqTrainer",
    "Seq2SeqTrainingArguments",
    "Trainer",
    "TrainingArguments",
]


class Trainer(Searching, Checkpoints, transformers.Trainer):
    """Trains, evaluates and predicts with a live model.

    Takes what ``transformers.Trainer`` takes, and ``tokenizer`` as another name of
    ``processing_class``. Its losses, learning rates and metrics are those of
    ``transformers.Trainer`` for the same seed.

    Raises:
        ArgumentsError: an argument that cannot be had.
        OutOfMemory: with ``auto_find_batch_size``, when not even one row fits.
    """

    def __init__(
        self,
        model: Any = None,
        args: transformers.TrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        model_init: Callable[..., Any] | None = None,
        compute_loss_func: Any = None,
        compute_metrics: Any = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: Any = None,
        preprocess_logits_for_metrics: Any = None,
        *,
        tokenizer: Any = None,
    ) -> None:
        args = args if args is not None else TrainingArguments(output_dir="tmp_trainer")
        self._unpadded: Unpadded | None = None
        if isinstance(model, str):
            message = f"is the name '{model}': a Trainer trains a live model, in this process"
            hint = "queue it: luthier.fit(model, rows, task=…, args=…)"
            raise ArgumentsError([Problem("model", message, hint)])
        processing_class = processing_class if processing_class is not None else tokenizer
        more = {}
        if optimizer_cls_and_kwargs is not None:  # transformers' Seq2SeqTrainer does not take it
            more["optimizer_cls_and_kwargs"] = optimizer_cls_and_kwargs
        super().__init__(
            model=model,
            args=args,
            data_collator=collator_for(data_collator, train_dataset, args),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            model_init=model_init,
            compute_loss_func=compute_loss_func,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
            **more,
        )
        logs = getattr(args, "logging_dir", None)
        for callback in self.callback_handler.callbacks:
            if logs and isinstance(callback, TensorBoardCallback):
                callback.logging_dir = logs

    # --- what the steps ask ------------------------------------------------------------------

    def tell(self, event: str) -> None:
        """Tell the callbacks; what they decide is in ``control`` afterwards."""
        handler: Any = self.callback_handler
        self.control = getattr(handler, event)(self.args, self.state, self.control)

    @property
    def logged_loss(self) -> torch.Tensor:
        """Sum of the losses since the last log."""
        return self._tr_loss

    @logged_loss.setter
    def logged_loss(self, value: torch.Tensor) -> None:
        self._tr_loss = value

    def counted(self, loss: torch.Tensor, logged: torch.Tensor) -> torch.Tensor:
        """The loss as it goes into the log: without infinities and NaN, if so asked."""
        if self.args.logging_nan_inf_filter and not torch.isfinite(loss):
            return logged / (1 + self.state.global_step - self._globalstep_last_logged)
        return loss

    @property
    def waits_for_metrics(self) -> bool:
        """Whether the schedule moves on after an evaluation, not after a step."""
        return isinstance(self.lr_scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau | GreedyLR)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """As inherited. Raises ArgumentsError where the hub does not answer, or not to you."""
        inherited: Any = super()
        try:
            inherited.init_hf_repo(token, private)
        except Exception as error:  # of the hub's library, of HTTP's and of the network's
            hint = "log in and be online; or save_model() here, and upload that folder later"
            raise ArgumentsError([Problem("push_to_hub", str(error), hint)]) from error

    # --- training ----------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, LengthGroupedSampler):
            sampler.generator = seeded(self._data_seed)
        return sampler

    @property
    def _data_seed(self) -> int:
        seed = self.args.data_seed
        return int(self.args.seed if seed is None else seed)

    def _inner_training_loop(
        self,
        batch_size: int | None = None,
        args: Any = None,
        resume_from_checkpoint: str | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Called by the inherited ``train``, with the model in its place."""
        self.accelerator.free_memory()
        self._leave_out_padding()
        loader = self.get_train_dataloader()
        accumulation = args.gradient_accumulation_steps
        values: Any = self.set_initial_training_values(args, loader)
        epochs, per_epoch, _, samples, _, batches_per_epoch, max_steps = values
        order = order_of(loader, accumulation)
        self._init_training_state(max_steps, per_epoch, epochs, resume_from_checkpoint, trial)
        prepare: Any = self._prepare_for_training
        model, loader = prepare(max_steps, loader, resume_from_checkpoint)
        resumption = self._resumption(resume_from_checkpoint, per_epoch)
        logger.info(
            "***** Running training ***** %s rows, %d steps to an epoch, %d to step %d",
            f"{values[3]:,}", per_epoch, max_steps - self.state.global_step, max_steps,
        )  # fmt: skip
        start = time.time()
        self._begin(resumption)
        model.zero_grad()
        self.tell("on_train_begin")
        if args.eval_on_start:
            self._evaluate(trial, ignore_keys_for_eval, skip_scheduler=True)

        def act(norm: Any, rate: float | None) -> None:
            self._maybe_log_save_evaluate(
                self._tr_loss, norm, model, trial, self._position.epoch,
                ignore_keys_for_eval, start, learning_rate=rate,
            )  # fmt: skip

        learner = TrainerLearner(self, model)
        stepper = TrainerStepper(self, model)
        moments = TrainerMoments(
            self, learner, stepper, self._position,
            epochs=epochs, batches_per_epoch=batches_per_epoch,
            draws=order is not None, act=act,
        )  # fmt: skip
        moments.on_resuming = resumption.restore
        if self._position.step == per_epoch:  # what ends the epoch comes first
            moments.restore()
        loop = Loop(
            learner,
            _Length(per_epoch),
            stepper,
            max_steps,
            self._position,
            self._history,
            moments,
            lambda: self._save_checkpoint(model, trial),
            ignore,
            keep_going,
            save_steps=0,
            batches=self._source(loader, order, per_epoch, batches_per_epoch, moments),
            halve=args.auto_find_batch_size,
            finite=False,
        )
        with _told_once(args.auto_find_batch_size):
            loop.train()
        if self._position.step:  # stopped inside an epoch, which ends here
            moments.epoch_ended()
        inherited: Any = self
        output: TrainOutput = inherited._finalize_training(trial, samples, start)
        return output

    def _leave_out_padding(self) -> None:
        """Let the encoder compute no padding, where that is wanted and shown to be the same.

        With dropout the packed model draws other masks, equal in distribution only: then it is
        packed where it was asked for by name.
        """
        args, model = cast(Any, self.args), cast(nn.Module, self.model)
        wanted = getattr(args, "execution", "padded")
        plugin = self.accelerator.state.deepspeed_plugin if self.is_deepspeed_enabled else None
        if plugin is not None and plugin.zero_stage == 3:
            if wanted == "packed":
                message = "with ZeRO-3 no process holds the weights to show that it is the same"
                raise ArgumentsError([Problem("execution", message, "use execution='auto'")])
            wanted = "padded"
        if self._unpadded is not None:
            self._unpadded.remove()
        self._unpadded = None
        if wanted == "packed" or (wanted == "auto" and not drops(model)):
            self._unpadded = Unpadded(model)
            self._refuse_unless_packed()
        elif wanted == "auto" and not unfit(model):
            logger.info(
                "execution='packed' leaves out the padding: faster, with other draws of dropout"
            )

    def _refuse_unless_packed(self) -> None:
        reason = self._unpadded.reason if self._unpadded is not None else ""
        if not reason:
            return
        if cast(Any, self.args).execution == "packed":
            message = f"cannot be packed: {reason}"
            raise ArgumentsError([Problem("execution", message, "use execution='auto'")])
        logger.info("texts run padded: %s", reason)
        self._unpadded = None

    @property
    def execution_calls(self) -> Mapping[str, int]:
        """How often the encoder ran "packed" and "padded"; empty where it always runs plainly."""
        return {} if self._unpadded is None else dict(self._unpadded.calls)

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        """As inherited; the first batch also shows whether it may be packed."""
        if self._unpadded is not None and not self._unpadded.checked:
            self._unpadded.check(self._prepare_inputs(inputs))
            self._refuse_unless_packed()
        return super().training_step(model, inputs, num_items_in_batch)

    def _begin(self, resumption: Resumption) -> None:
        self._position, self._history = resumption.position, resumption.history
        self._initial_num_input_tokens_seen = self.state.num_input_tokens_seen
        self._initial_global_step = self.state.global_step
        self._tr_loss = resumption.logged_loss.to(self.args.device)
        self._total_loss_scalar = 0.0
        self._globalstep_last_logged = resumption.last_logged
        self._epoch_random: dict[str, Any] | None = resumption.epoch_random
        cast(Any, self.control)._new_step()  # what it asked for when it was saved has been done

    def _source(
        self,
        loader: Any,
        order: Order | None,
        per_epoch: int,
        batches: int,
        moments: TrainerMoments,
    ) -> Callable[[Position], Generator[Any]]:
        if order is not None:
            return dealt(loader, order, self._data_seed, self._prepare_inputs)
        rest = streamed(
            loader,
            self.args.gradient_accumulation_steps,
            per_epoch,
            count=batches if has_length(loader) else None,
            enter=lambda epoch, inside: self._enter_epoch(inside, moments),
        )

        def batches_then_random(position: Position) -> Generator[Any]:
            for group in rest(position):
                moments.restore()  # on resuming, once the loader stands where it stood
                yield None if group is None else [self._prepare_inputs(b) for b in group]

        return batches_then_random

    def _enter_epoch(self, inside: bool, moments: TrainerMoments) -> None:
        """Before a loader draws its order from the global random state: on resuming, the state
        that it was drawn from."""
        if inside and self._epoch_random is not None:
            restore_random_states(self._epoch_random)
        else:
            moments.restore()
        self._epoch_random = random_states()


class Seq2SeqTrainer(Trainer, transformers.Seq2SeqTrainer):
    """A ``Trainer`` that generates where it evaluates, with ``predict_with_generate``."""


@contextmanager
def _told_once(halving: bool) -> Iterator[None]:
    """With ``auto_find_batch_size`` a lack of memory outside of a step would begin the training
    anew, again and again: the inherited ``train`` takes it for one in a step."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not halving or not is_out_of_memory(error):
            raise
        hint = "auto_find_batch_size helps in a training step only"
        raise OutOfMemory(f"in a callback, or in saving: {error}", hint=hint) from error


@dataclass
class _Length:
    """A plan of which only the length is known."""

    steps_per_epoch: int
    batch_size: int = 0
    notes: tuple[str, ...] = ()

    def rows(self, epoch: int, step: int) -> Any:
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        return {}
