"""The engine is sentence-transformers' trainer: same model, order and arguments, same loss
each step and the same weights at the end; what differs is the time."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer import losses

from luthier.batches import make_plan
from luthier.data import load_dataset
from luthier.engine.run import run
from luthier.objectives import needs


class InOrder(torch.utils.data.Sampler):
    def __init__(self, batches) -> None:
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def write_csv(path, header, rows) -> None:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def data_for(loss, pairs_csv):
    """Rows in the form that the loss takes, as a file and as columns."""
    with open(pairs_csv, newline="") as file:
        rows = list(csv.reader(file))[1:]
    if loss == "MultipleNegativesRankingLoss":
        return ["anchor", "positive"], rows
    scores = [round((i * 7 % 11) / 10, 1) for i in range(len(rows))]
    return ["sentence1", "sentence2", "score"], [
        [a, b, s] for (a, b), s in zip(rows, scores, strict=True)
    ]


@pytest.mark.parametrize(
    "loss", ["MultipleNegativesRankingLoss", "CosineSimilarityLoss", "CoSENTLoss", "AnglELoss"]
)
def test_every_step_is_the_trainers(
    tmp_path, pairs_csv, make_spec, place, tiny_model, loss, one_thread
) -> None:
    header, rows = data_for(loss, pairs_csv)
    write_csv(pairs_csv, header, rows)
    spec = make_spec(
        loss=loss,
        optim="AdamW",
        optim_args={"weight_decay": 0.0},
        lr_scheduler_type="linear",
        num_warmup_steps=3,
        max_grad_norm=1.0,
        num_train_epochs=1,
    )
    outcome = run(spec, place)
    history = json.loads((outcome.folder / "luthier" / "history.json").read_text())

    dataset = load_dataset(pairs_csv, spec.data.csv, place.cache)
    plan = make_plan(
        dataset,
        batch_size=8,
        num_items_per_class=4,
        sampler="auto",
        seed=spec.training.seed,
        objective=needs(spec.objective),
    )
    order = [plan.rows(0, step).tolist() for step in range(plan.steps_per_epoch)]

    class OrderedTrainer(SentenceTransformerTrainer):
        def get_batch_sampler(self, *args, **kwargs):
            return InOrder(order)

    model = SentenceTransformer(str(tiny_model), device="cpu")
    columns = {name: [row[i] for row in rows] for i, name in enumerate(header)}
    if "score" in columns:
        columns["score"] = [float(s) for s in columns["score"]]
    trainer = OrderedTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            str(tmp_path / "theirs"),
            num_train_epochs=1,
            per_device_train_batch_size=8,
            learning_rate=1e-3,
            optim="adamw_torch",
            lr_scheduler_type="linear",
            warmup_steps=3,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=Dataset.from_dict(columns),
        loss=getattr(losses, loss)(model),
    )
    exact = []
    compute = trainer.compute_loss

    def recorded(*args, **kwargs):
        found = compute(*args, **kwargs)
        exact.append((found[0] if isinstance(found, tuple) else found).item())
        return found

    trainer.compute_loss = recorded
    trainer.train()
    np.testing.assert_allclose(history["losses"], exact, atol=1e-5, rtol=0)
    theirs = dict(model[0].model.named_parameters())
    for name, tensor in load_file(outcome.folder / "model.safetensors").items():
        torch.testing.assert_close(tensor, theirs[name].detach(), atol=1e-5, rtol=0)
