"""DeepSpeed as the means of a run: ZeRO cuts optimizer, gradients and weights over processes.

The optimizer and its schedule are the engine's own, so that the steps are those of plain
training; DeepSpeed clips, sums and shards. A checkpoint holds the whole model, and each
process's shard without pickles (``trainer/zero.py``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from luthier.component.processes import Processes
from luthier.engine.device import Device
from luthier.engine.distribute import alone
from luthier.engine.means import Piece
from luthier.engine.optim import Optimization, plain_state
from luthier.errors import OutOfMemory
from luthier.trainer import zero

if TYPE_CHECKING:
    from luthier.engine.setup import Setup


def get_ready() -> None:
    """The environment that DeepSpeed wants: a launch, and its CPU kind where there is no GPU."""
    alone()
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        zero.without_shared_memory_collectives()


class Sharded(Processes):
    """Processes under a DeepSpeed engine. config: completed, of which the optimizer and the
    schedule have been compared with the arguments and are the engine's own here."""

    halves = False  # in the middle of its collectives a process cannot begin anew

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self._config = {k: v for k, v in config.items() if k not in ("optimizer", "scheduler")}
        section = self._config.get("zero_optimization", {})
        if (section.get("offload_optimizer") or {}).get("device", "none") != "none":
            self._config["zero_force_ds_cpu_optimizer"] = False  # which would be compiled first
        kinds = (self._config.get(name) or {} for name in ("bf16", "fp16"))
        self.half = any(kind.get("enabled") for kind in kinds)
        self._engine: Any = None

    def attach(self, setup: Setup) -> None:
        import deepspeed

        super().attach(setup)
        if self._config.get("zero_optimization", {}).get("stage") == 3 and setup.model.unpadded:
            # Processes must run the same modules in the same order, padded batches or not.
            setup.model.unpadded.remove()
            setup.model.unpadded = None
        plain = setup.optimization
        self._engine, *_ = deepspeed.initialize(
            model=setup.model.model, optimizer=plain.optimizers[0], config=self._config
        )
        zero.refuse_unknown(self._engine)
        setup.model.train_through(self._engine)
        sharded: Any = ShardedOptimization(plain, self._engine)
        setup.optimization = sharded

    @contextmanager
    def whole(self, model: nn.Module) -> Iterator[None]:
        if zero.stage(self._engine) != 3:
            yield
            return
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([p for p in model.parameters() if hasattr(p, "ds_id")]):
            yield

    def _mine(self, setup: Setup) -> dict[str, Any]:
        return super()._mine(setup) | {"optimization": setup.optimization.state()}

    # --- a step ------------------------------------------------------------------------------

    def pieces(self, pieces: list[Piece]) -> Iterator[Piece]:
        """As many in each process, as their collectives meet; those for company weigh nothing."""
        most = torch.tensor(len(pieces), device=self.device)
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
        for number in range(int(most)):
            self._engine.set_gradient_accumulation_boundary(number == int(most) - 1)
            yield pieces[number] if number < len(pieces) else (pieces[-1][0], 0.0)

    def autocast(self, device: Device) -> AbstractContextManager[Any]:
        return nullcontext()  # with 16 bits the weights themselves have them

    def backward(self, device: Device, loss: Tensor) -> None:
        # It takes the mean over processes, where the shares are of the sum.
        self._engine.backward(loss * self.processes, scale_wrt_gas=False)

    def settle(
        self, parameters: Iterable[nn.Parameter], loss: float, failure: Exception | None
    ) -> float:
        if failure is not None:
            hint = "lower per_device_train_batch_size, raise gradient_accumulation_steps"
            raise OutOfMemory("a batch does not fit into memory", hint=hint) from failure
        return self._sum([loss])[0]


class ShardedOptimization:
    """The engine's optimizer and schedule, stepped by DeepSpeed."""

    def __init__(self, plain: Optimization, engine: Any) -> None:
        self._plain, self._engine = plain, engine

    @property
    def learning_rate(self) -> float:
        return self._plain.learning_rate

    def step(self, backward: Callable[[], float]) -> float:
        loss = backward()
        self._engine.step()
        return loss

    def advance(self, *, epoch_ended: bool) -> None:
        self._plain.advance(epoch_ended=epoch_ended)

    def state(self) -> dict[str, Any]:
        return {
            "schedulers": [plain_state(s.state_dict()) for s in self._plain.schedulers],
            "counters": zero.counters(self._engine),
            "shard": zero.shard(self._engine),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        zero.load_shard(self._engine, state["shard"], state["counters"])
        for scheduler, saved in zip(self._plain.schedulers, state["schedulers"], strict=True):
            scheduler.load_state_dict(saved)
