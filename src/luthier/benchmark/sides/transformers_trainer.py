"""transformers.Trainer on the same loss, as one would write it without sentence-transformers'
trainer: a module that returns its loss, and a collator that tokenizes."""

from __future__ import annotations

import sys
from typing import Any

from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from luthier.benchmark.sides.peers import (
    InOrder,
    Objective,
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
    from sentence_transformers.sentence_transformer import losses

    settle(job)
    pairs, order, paused = load_pairs(job), job.rows(), Paused(gate)
    gate.open()
    model = load_model(job)

    def collate(rows: list[dict[str, str]]) -> dict[str, Any]:
        return {
            f"{column}_{name}": value
            for column in ("anchor", "positive")
            for name, value in model.tokenize([row[column] for row in rows]).items()
        }

    class Ordered(Trainer):
        """In luthier's order, and with the loss of each step kept."""

        def get_train_dataloader(self) -> DataLoader[Any]:
            return DataLoader(pairs, batch_sampler=InOrder(order), collate_fn=collate)

        def compute_loss(self, *given: Any, **more: Any) -> Any:
            found: Any = super().compute_loss(*given, **more)
            paused.loss = found.detach()
            return found

    Ordered(
        model=Objective(model, losses.MultipleNegativesRankingLoss(model)),
        args=TrainingArguments(**arguments(job), remove_unused_columns=False),
        train_dataset=pairs,
        callbacks=[paused],
    ).train()


if __name__ == "__main__":
    main(Job.read(sys.argv[1]), Gate(int(sys.argv[2])))
