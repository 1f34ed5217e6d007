"""The peer: sentence-transformers' trainer with its own loss."""

from __future__ import annotations

import sys
from typing import Any

from luthier.benchmark.sides.peers import (
    InOrder,
    Paused,
    arguments,
    load_model,
    load_pairs,
    settle,
)
from luthier.benchmark.steering import Gate
from luthier.benchmark.work import Job


def main(job: Job, gate: Gate) -> None:
    """Train until the gate says that it was all."""
    from sentence_transformers import (
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer import losses

    settle(job)
    pairs, order, paused = load_pairs(job), job.rows(), Paused(gate)

    class Trainer(SentenceTransformerTrainer):  # type: ignore[misc]
        """In luthier's order, and with the loss of each step kept."""

        def get_batch_sampler(self, *given: Any, **more: Any) -> InOrder:
            return InOrder(order)

        def compute_loss(self, *given: Any, **more: Any) -> Any:
            found = super().compute_loss(*given, **more)
            paused.loss = (found[0] if isinstance(found, tuple) else found).detach()
            return found

    gate.open()
    model = load_model(job)
    small = job.case.mini_batch_size
    Trainer(
        model=model,
        args=SentenceTransformerTrainingArguments(**arguments(job)),
        train_dataset=pairs,
        loss=losses.CachedMultipleNegativesRankingLoss(model, mini_batch_size=small)
        if small
        else losses.MultipleNegativesRankingLoss(model),
        callbacks=[paused],
    ).train()


if __name__ == "__main__":
    main(Job.read(sys.argv[1]), Gate(int(sys.argv[2])))
