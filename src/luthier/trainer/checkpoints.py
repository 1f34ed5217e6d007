"""Checkpoints of a ``Trainer``: folders ``checkpoint-N`` as transformers lays them out, each a
bundle: complete and verified, or not there; without pickles; resumed bit for bit.

At the root is the model as ``save_pretrained`` writes it, with the tokenizer and
``trainer_state.json``; the optimizer, the schedule and the random states are under ``luthier/``,
those of each process by themselves. Checkpoints that transformers wrote are resumed too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import SaveStrategy, rotate_checkpoints
from transformers.utils import logging

from luthier.engine.optim import plain_state
from luthier.engine.state import (
    OURS,
    History,
    Position,
    random_states,
    read_state,
    restore_random_states,
    write_state,
)
from luthier.errors import CorruptBundle, NotFound, Problem
from luthier.store.bundle import MANIFEST, candidates, open_bundle, write_bundle
from luthier.trainer import zero
from luthier.trainer.arguments import ArgumentsError
from luthier.trainer.ranks import bring_together, read_rank

logger = logging.get_logger("transformers.luthier")

_STATE = "trainer_state.json"
_ARGUMENTS = "training_args.json"


@dataclass
class Resumption:
    """Where a run begins, or goes on."""

    position: Position = field(default_factory=Position)
    history: History = field(default_factory=History)
    restore: Callable[[], None] | None = None  # of the random states, just before a step
    epoch_random: dict[str, Any] | None = None
    logged_loss: torch.Tensor = field(default_factory=lambda: torch.tensor(0.0))
    last_logged: int = 0


class Checkpoints:
    """The part of ``Trainer`` that writes and reads checkpoints."""

    if TYPE_CHECKING:  # what the trainer has

        def __getattr__(self, name: str) -> Any: ...

    # --- writing -----------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Every process calls this: one writes, the others tell it what they remember."""
        if self.is_fsdp_enabled:  # its state is spread by torch, which saves it itself
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
            return
        if self.hp_search_backend is None and trial is None:
            self.store_flos()
        folder = Path(self._get_output_dir(trial=trial))
        destination = folder / f"checkpoint-{self.state.global_step}"
        self._name_the_best(folder)
        if self.args.should_save:
            meta = {"kind": "trainer", "step": self.state.global_step}
            write_bundle(destination, self._fill, meta)
        else:
            self._contribute(destination)
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(destination))
        if self.args.should_save:
            rotate_checkpoints(
                output_dir=str(folder),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=False,
            )

    def _contribute(self, destination: Path) -> None:
        """In a process that does not write: its part in what ``_fill`` does, in that order."""
        if self.is_deepspeed_enabled:
            self.save_model(str(destination), _internal_call=True)  # gathers the weights
        if not self.args.save_only_model:
            bring_together(self._own_parts(), None, self.args.device)

    def _name_the_best(self, folder: Path) -> None:
        best, strategy = self.state.best_global_step, self.args.save_strategy
        if not best or strategy == SaveStrategy.NO:
            return
        path = folder / f"checkpoint-{best}"
        if best == self.state.global_step or path.exists():
            self.state.best_model_checkpoint = str(path)

    def _fill(self, folder: Path) -> None:
        self.save_model(str(folder), _internal_call=True)
        self.state.stateful_callbacks |= self._what_callbacks_remember()
        self.state.save_to_json(str(folder / _STATE))
        if self.args.save_only_model:
            return
        ours = folder / OURS
        ours.mkdir(exist_ok=True)
        own = self._own_parts()
        parts = self._shared_parts() | own
        del parts["random"]  # which is written with every state
        write_state(ours, self._position, self._history, parts)
        if self.args.world_size > 1:
            bring_together(own, ours, self.args.device)

    def _what_callbacks_remember(self) -> dict[str, Any]:
        """By the name of the class; a list where there are several of it."""
        found: dict[str, list[Any]] = {}
        for callback in [*self.callback_handler.callbacks, self.control]:
            if isinstance(callback, ExportableState):
                found.setdefault(type(callback).__name__, []).append(callback.state())
        return {name: all_[0] if len(all_) == 1 else all_ for name, all_ in found.items()}

    def _shared_parts(self) -> dict[str, Any]:
        """What is the same in every process."""
        scaler = getattr(self.accelerator, "scaler", None)
        engine = self.model_wrapped if self.is_deepspeed_enabled else None
        return {
            "processes": self.args.world_size,
            "steps_per_epoch": self._steps_per_epoch,
            "zero": None if engine is None else zero.counters(engine),
            "optimizer": None if engine is not None else self.optimizer.state_dict(),
            "scheduler": plain_state(self.lr_scheduler.state_dict()),
            "scaler": None if scaler is None else scaler.state_dict(),
        }

    def _own_parts(self) -> dict[str, Any]:
        """What each process remembers for itself."""
        engine = self.model_wrapped if self.is_deepspeed_enabled else None
        return {
            "random": random_states(),
            "log": {"loss": self._tr_loss, "last": self._globalstep_last_logged},
            "epoch_random": self._epoch_random,
            "shard": None if engine is None else zero.shard(engine),
        }

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """The model with its tokenizer, and the arguments as JSON rather than as a pickle."""
        super()._save(output_dir, state_dict=state_dict)  # type: ignore[misc]
        if not self.args.should_save:
            return
        folder = Path(output_dir if output_dir is not None else self.args.output_dir)
        pickle = folder / "training_args.bin"
        if pickle.exists():
            pickle.unlink()
            (folder / _ARGUMENTS).write_text(self.args.to_json_string())

    # --- reading -----------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train. ``resume_from_checkpoint``: True goes on from the newest whole checkpoint of
        ``output_dir``; a path from that one.

        Raises NotFound where there is none, CorruptBundle where the bytes of the one that was
        named are not those that were written."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = self._newest()
        elif resume_from_checkpoint:
            resume_from_checkpoint = str(_verified(Path(resume_from_checkpoint)))
        return super().train(resume_from_checkpoint or None, *args, **kwargs)  # type: ignore[misc]

    def _newest(self) -> str:
        folder = Path(self.args.output_dir)
        for path in candidates(folder):
            if not path.name.startswith("checkpoint-") or not (path / _STATE).exists():
                continue
            try:
                return str(_verified(path))
            except CorruptBundle as error:
                logger.warning("%s is damaged and is passed over: %s", path.name, error.message)
        raise NoCheckpoint(
            "there is no checkpoint to resume from",
            where=str(folder),
            hint="train without resume_from_checkpoint first",
        )

    def _resumption(self, checkpoint: str | None, steps_per_epoch: int) -> Resumption:
        """Optimizer and schedule are restored already; what is left."""
        self._steps_per_epoch = steps_per_epoch
        if checkpoint is None:
            return Resumption()
        done, skip = self.state.global_step, not self.args.ignore_data_skip
        epoch, step = divmod(done, steps_per_epoch)
        position = Position(epoch=epoch, step=step if skip else 0, done=done)
        if not _is_ours(checkpoint):
            theirs = partial(self._load_rng_state, checkpoint)
            return Resumption(position, restore=theirs, last_logged=done)
        folder = Path(checkpoint) / OURS
        saved, history, parts, _ = read_state(folder)
        saved.finished = False
        rank, before = self.args.process_index, _processes(parts)
        if before != self.args.world_size:
            logger.warning(
                "saved by %d processes, resumed by %d: other batches, other random numbers",
                before, self.args.world_size,
            )  # fmt: skip
            return Resumption(position, last_logged=done)
        if parts.get("steps_per_epoch", steps_per_epoch) != steps_per_epoch:
            skip = False  # other batches, or other rows: the place is that of the number of steps
        own = _own(folder, parts, rank)
        return Resumption(
            saved if skip else position,
            history,
            partial(restore_random_states, own["random"]),
            own["epoch_random"],
            own["log"]["loss"],
            own["log"]["last"],
        )

    def _prepare_for_training(self, max_steps: int, loader: Any, checkpoint: str | None) -> Any:
        """As inherited, which knows DeepSpeed's own checkpoints only."""
        ours = checkpoint is not None and self.is_deepspeed_enabled and _is_ours(checkpoint)
        inherited: Any = super()
        found = inherited._prepare_for_training(max_steps, loader, None if ours else checkpoint)
        if self.is_deepspeed_enabled:
            zero.refuse_unknown(self.model_wrapped)
        if ours:
            self._load_optimizer_and_scheduler(checkpoint)
        return found

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not _is_ours(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
            return
        folder = Path(checkpoint) / OURS
        parts = read_state(folder)[2]
        if self.is_deepspeed_enabled:
            self._load_engine(Path(checkpoint), parts)
        elif parts["optimizer"] is None:
            message = "was saved by DeepSpeed, whose optimizer is in shards"
            raise ArgumentsError([Problem("resume_from_checkpoint", message, "resume with it")])
        else:
            self.optimizer.load_state_dict(parts["optimizer"])
        self.lr_scheduler.load_state_dict(parts["scheduler"])

    def _load_engine(self, checkpoint: Path, parts: dict[str, Any]) -> None:
        stage, before = zero.stage(self.model_wrapped), _processes(parts)
        if parts.get("zero") is None:
            message, hint = "was saved without DeepSpeed", "resume without it"
        elif (parts["zero"]["stage"], before) != (stage, self.args.world_size):
            message = f"is in shards of ZeRO-{parts['zero']['stage']} for {before} processes"
            hint = f"not of ZeRO-{stage} for {self.args.world_size}: resume as it was saved"
        else:
            zero.load_weights(self.model_wrapped, checkpoint)
            own = _own(checkpoint / OURS, parts, self.args.process_index)
            zero.load_shard(self.model_wrapped, own["shard"], parts["zero"])
            return
        raise ArgumentsError([Problem("resume_from_checkpoint", message, hint)])

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if not self.is_deepspeed_enabled or not _is_ours(best):
            super()._load_best_model()  # type: ignore[misc]
            return
        logger.info("Loading best model from %s (score: %s).", best, self.state.best_metric)
        self._load_engine(Path(best), read_state(Path(best) / OURS)[2])

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not _is_ours(checkpoint):
            super()._load_scaler(checkpoint)  # type: ignore[misc]
            return
        state = read_state(Path(checkpoint) / OURS)[2]["scaler"]
        if state is not None and getattr(self.accelerator, "scaler", None) is not None:
            self.accelerator.scaler.load_state_dict(state)


class NoCheckpoint(NotFound, ValueError):
    """Nothing to resume from; a ValueError too, which callers of transformers catch."""


def _verified(path: Path) -> Path:
    if not path.is_dir():
        raise NoCheckpoint("there is no such checkpoint", where=str(path))
    if (path / MANIFEST).exists():
        open_bundle(path)
    elif not (path / _STATE).exists():
        raise NoCheckpoint(f"is no checkpoint: it has no {_STATE}", where=str(path))
    return path


def _processes(parts: dict[str, Any]) -> int:
    return int(parts.get("processes", 1))


def _own(folder: Path, parts: dict[str, Any], rank: int) -> dict[str, Any]:
    """What the process of that rank remembered."""
    return parts | {"random": read_state(folder)[3]} if rank == 0 else read_rank(folder, rank)


def _is_ours(checkpoint: str) -> bool:
    return (Path(checkpoint) / OURS / "state.json").exists()
