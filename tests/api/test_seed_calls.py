"""The calls of Finetuner's "Run Job" page, with luthier for finetuner and a text model, on a
real worker process; and what else the public functions promise."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import luthier
from luthier import DocumentArray  # noqa: F401  (the page imports it)
from luthier.data import CSVOptions
from luthier.errors import Conflict, DataError, SpecError
from luthier.runs.process import Process, kill

LABELLED = [
    (f"{adjective} {noun}", kind)
    for kind, nouns in {"fruit": "apple pear plum fig", "vehicle": "car train bike bus"}.items()
    for noun in nouns.split()
    for adjective in ("red", "old", "small", "new")
]
PAIRS = [(f"a {text}", f"{text}, which is a {kind}") for text, kind in LABELLED]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[luthier.runs.connection.Home]:
    found = luthier.connect(tmp_path_factory.mktemp("home"))
    yield found
    for worker in found.ledger.workers():
        kill(Process.parse(worker.process))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    for name, rows in {"train_data": PAIRS, "eval_data": PAIRS[::2], "labelled": LABELLED}.items():
        with open(path / f"{name}.csv", "w", newline="") as file:
            csv.writer(file).writerows(rows)
    return path


def test_submit_and_continue(home, folder, tiny_model) -> None:
    train_data = str(folder / "train_data.csv")
    run = luthier.fit(
        model=str(tiny_model),
        train_data=train_data,
        epochs=1,
    )
    assert run.name.count("-") >= 1
    assert run.status()["status"] in ("CREATED", "STARTED")
    run.wait(progress=False)
    assert run.status()["status"] == "FINISHED"

    run2 = luthier.fit(
        model=str(tiny_model),
        train_data=train_data,
        model_artifact=run.artifact_id,
        epochs=1,
    )
    assert run2.name != run.name
    run2.wait(progress=False)
    assert run2.config["model"]["artifact"] == run.artifact_id
    assert luthier.get_run(run2.name) == run2
    assert {run, run2} <= set(luthier.list_runs())


def test_the_page_s_advanced_configuration(home, folder, tiny_model, tmp_path) -> None:
    """All words of the page; only epochs and sizes are smaller, and the device is left to auto."""
    luthier.create_experiment(name="finetune-flickr-dataset")
    run = luthier.fit(
        model=str(tiny_model),
        train_data=str(folder / "train_data.csv"),
        eval_data=str(folder / "eval_data.csv"),
        run_name="finetune-flickr-dataset-efficientnet-1",
        description="this is a trial run",
        experiment_name="finetune-flickr-dataset",
        model_options={},
        loss="TripletMarginLoss",
        miner="TripletMarginMiner",
        miner_options={"margin": 0.2},
        scheduler="linear",
        scheduler_options={},
        optimizer="Adam",
        optimizer_options={"weight_decay": 0.01},
        learning_rate=1e-4,
        epochs=2,
        batch_size=8,
        scheduler_step="batch",
        freeze=False,
        output_dim=16,
        device="auto",
        num_workers=4,
        to_onnx=False,
        csv_options=CSVOptions(),
        public=False,
        num_items_per_class=4,
        wait=True,
    )
    assert run.status()["status"] == "FINISHED"
    assert run.experiment_name == "finetune-flickr-dataset"
    assert set(run.metrics()) >= {"before", "after", "verdict", "bm25"}
    assert run.example_results()
    saved = Path(run.save_artifact(str(tmp_path / "artifacts")))
    assert json.loads((saved / "luthier" / "metrics.json").read_text()) == run.metrics()
    model = luthier.get_model(run.artifact_id)
    vectors = luthier.encode(model, ["a red apple", "an old train"])
    assert vectors.shape == (2, 16)
    assert -1.001 <= float(luthier.cos_sim(vectors[0], vectors[1])) <= 1.001
    with pytest.raises(Conflict):
        luthier.fit(
            str(tiny_model),
            str(folder / "train_data.csv"),
            run_name="finetune-flickr-dataset-efficientnet-1",
            experiment_name="finetune-flickr-dataset",
        )


def test_data_in_memory_is_as_good_as_a_file(home, folder, tiny_model) -> None:
    rows = [{"anchor": a, "positive": b} for a, b in PAIRS]
    run = luthier.fit(
        str(tiny_model),
        rows,
        loss="MultipleNegativesRankingLoss",
        batch_size=8,
        max_steps=2,
        public=True,
        wait=True,
    )
    assert run.config["data"]["train"]["uri"].startswith("blob:")
    artifact = home.store.artifact(run.artifact_id)
    assert artifact.stat().st_mode & 0o777 == 0o755
    private = run.clone(public=False, seed=7).wait(progress=False)
    assert home.store.artifact(private.artifact_id).stat().st_mode & 0o777 == 0o700


def test_a_key_is_one_run(home, folder, tiny_model) -> None:
    words = {"train_data": str(folder / "train_data.csv"), "max_steps": 0, "batch_size": 8}
    first = luthier.fit(str(tiny_model), **words, idempotency_key="k")
    assert luthier.fit(str(tiny_model), **words, idempotency_key="k") == first
    with pytest.raises(Conflict):
        luthier.fit(str(tiny_model), **words | {"max_steps": 1}, idempotency_key="k")


def test_everything_wrong_is_told_at_once(home, folder, tiny_model) -> None:
    with pytest.raises(SpecError) as caught:
        luthier.fit(
            str(tiny_model),
            str(folder / "labelled.csv"),
            csv_options={"is_labeled": True},
            loss="MultipleNegativesRankingLoss",
            epochs=-1,
            optimizer="Adm",
            device="tpu",
            epoch=3,
        )
    fields = {problem.field.split(".")[-1] for problem in caught.value.problems}
    assert fields == {"num_train_epochs", "epoch", "optim", "device", "loss"}


@pytest.mark.skipif(os.path.exists("/dev/nvidia0"), reason="this machine has a GPU")
def test_a_device_that_no_worker_has_is_refused(home, folder, tiny_model) -> None:
    with pytest.raises(SpecError, match="no worker has it"):
        luthier.fit(str(tiny_model), str(folder / "train_data.csv"), device="cuda")


def test_a_mistyped_path_is_no_data_set(home, folder, tiny_model) -> None:
    with pytest.raises(DataError, match=r"did you mean 'train_data\.csv'"):
        luthier.fit(str(tiny_model), str(folder / "train_dat.csv"))


def test_evaluation_callbacks_take_data_of_any_kind(home, folder, tiny_model) -> None:
    from luthier.callback import BestModelCheckpoint, EarlyStopping, EvaluationCallback

    run = luthier.fit(
        str(tiny_model),
        str(folder / "train_data.csv"),
        loss="MultipleNegativesRankingLoss",
        batch_size=8,
        epochs=2,
        callbacks=[
            EvaluationCallback([{"anchor": a, "positive": b} for a, b in PAIRS], limit=5),
            BestModelCheckpoint(monitor="ndcg_at_k"),
            EarlyStopping(monitor="train_loss"),
        ],
        wait=True,
    )
    assert run.metrics()["after"]["hit_at_k"] >= 0
    assert len([e for e in run.events() if e.kind == "evaluation"]) == 2


def test_paths_mean_to_the_worker_what_they_mean_here(
    home, folder, tiny_model, monkeypatch
) -> None:
    monkeypatch.chdir(tiny_model.parent)
    run = luthier.fit(
        f"./{tiny_model.name}",
        os.path.relpath(folder / "train_data.csv"),
        loss="MultipleNegativesRankingLoss",
        batch_size=8,
        max_steps=1,
        wait=True,
    )
    assert run.config["model"]["name"] == str(tiny_model)
    monkeypatch.chdir(folder)
    spec = luthier.JobSpec.model_validate(
        {
            "model": {"name": str(tiny_model)},
            "data": {"train": {"uri": "train_data.csv"}},
            "objective": {"loss": "MultipleNegativesRankingLoss"},
            "training": {"max_steps": 0, "per_device_train_batch_size": 8},
        }
    )
    submitted = luthier.submit(spec).wait(progress=False)
    assert submitted.config["data"]["train"]["uri"] == str(folder / "train_data.csv")
