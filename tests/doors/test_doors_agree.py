"""One job through every door that can say it: one spec id, and the same bytes of weights."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import luthier
from luthier import TrainingArguments
from luthier.callback import BestModelCheckpoint, TrainingCheckpoint
from luthier.component.finetune import finetune_spec, read_folders
from luthier.doors.component import flags, parse
from luthier.runs.connection import Home
from luthier.runs.process import Process, kill
from luthier.testing.models import tiny_text_model

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
LABELS = {"sea": ("boat", "lake", "tide", "sand"), "land": ("rain", "tree", "hill", "road")}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)  # the worker's too
    found = luthier.connect(tmp_path_factory.mktemp("home"))
    yield found
    for worker in found.ledger.workers():
        kill(Process.parse(worker.process))
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


def command(*words: Any) -> dict[str, Any]:
    """What ``luthier … --json`` says."""
    done = subprocess.run(
        [sys.executable, "-m", "luthier", *map(str, words)],
        capture_output=True, text=True, check=False, env=os.environ | ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def sha256_of_weights(folder: Path) -> str:
    file = folder / "model.safetensors"
    if not file.exists():  # an artifact in a folder of its name
        (file,) = folder.rglob("model.safetensors")
    return hashlib.sha256(file.read_bytes()).hexdigest()


def outcome(run: Any, folder: Path) -> tuple[str, str]:
    """Spec id and weights of a queued run."""
    run.wait(progress=False)
    assert run.status()["status"] == "FINISHED"
    return run.spec.id, sha256_of_weights(Path(run.save_artifact(folder)))


def test_a_classification_through_four_doors(home: Home, tmp_path: Path) -> None:
    model = tiny_text_model(tmp_path / "tiny", pooling=None, dropout=0.1)
    rows = tmp_path / "rows.jsonl"
    with open(rows, "w") as file:
        for i in range(40):
            label = ("sea", "land")[i % 2]
            text = " ".join(LABELS[label][(i + j) % 4] for j in range(3 + i % 5))
            file.write(json.dumps({"text": f"{text} {i}", "label": label}) + "\n")
    selected, prepared = tmp_path / "selected", tmp_path / "prepared"
    task = ("--task_name", "SingleLabelClassification")
    command("component", "import", *task, "--model_path", model,
            "--model_selector_output", selected, "--json")  # fmt: skip
    command("component", "preprocess", *task, "--train_file_path", rows,
            "--model_selector_output", selected, "--preprocess_output", prepared,
            "--json")  # fmt: skip

    words = [
        "--preprocess_output", prepared, "--model_selector_output", selected,
        "--pytorch_model_folder", tmp_path / "tuned", "--mlflow_model_folder", tmp_path / "mlflow",
        "--learning_rate", "1e-3", "--num_train_epochs", "2", "--lr_scheduler_type", "linear",
        "--per_device_train_batch_size", "4", "--per_device_eval_batch_size", "4",
        "--weight_decay", "0.1", "--warmup_steps", "3", "--save_total_limit", "2",
    ]  # fmt: skip
    args = parse("finetune", flags([str(word) for word in words]))
    spec = finetune_spec(args, read_folders(args))
    command("component", "finetune", *words, "--json")
    found = {"component": (spec.id, sha256_of_weights(tmp_path / "tuned"))}

    # what the component's user need not say: heads of another size are drawn anew
    options = {"ignore_mismatched_sizes": True}
    data: dict[str, Any] = {"train_data": str(prepared / "train.parquet"),
                            "eval_data": str(prepared / "validation.parquet"),
                            "model_options": options}  # fmt: skip
    name = spec.model.name
    run = luthier.fit(
        name, **data, task="text-classification", run_name="by-fit", optimizer="AdamW",
        optimizer_options={"betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.1},
        learning_rate=1e-3, epochs=2, batch_size=4, per_device_eval_batch_size=4, num_workers=0,
        scheduler="linear", scheduler_options={"num_warmup_steps": 3}, max_grad_norm=1.0,
        callbacks=[BestModelCheckpoint(), TrainingCheckpoint(last_k_epochs=2)],
    )  # fmt: skip
    found["fit"] = outcome(run, tmp_path / "by-fit")

    training_args = TrainingArguments(
        output_dir=str(tmp_path / "out"), learning_rate=1e-3, num_train_epochs=2,
        per_device_train_batch_size=4, per_device_eval_batch_size=4, weight_decay=0.1,
        warmup_steps=3, save_total_limit=2, eval_strategy="epoch", save_strategy="epoch",
        load_best_model_at_end=True,
    )  # fmt: skip
    run = luthier.fit(name, **data, task="text-classification", args=training_args,
                      run_name="by-arguments")  # fmt: skip
    found["TrainingArguments"] = outcome(run, tmp_path / "by-arguments")

    config = tmp_path / "job.yaml"
    config.write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    said = command("fit", config, "--home", home.path, "--run-name", "by-yaml", "--json")
    found["YAML"] = outcome(luthier.get_run(said["name"]), tmp_path / "by-yaml")

    assert len(found) == 4
    assert len(set(found.values())) == 1, found


def test_an_embedding_job_through_three_doors(home: Home, tmp_path: Path, tiny_model: Path) -> None:
    pairs = [(f"a {word} {i}", f"{word} {i} it is") for i in range(12) for word in ("boat", "tree")]
    rows = tmp_path / "pairs.csv"
    rows.write_text("".join(f"{one},{other}\n" for one, other in pairs))
    job = {"loss": "MultipleNegativesRankingLoss"}
    run = luthier.fit(
        str(tiny_model), str(rows), **job, run_name="vectors-by-fit", optimizer="SGD",
        optimizer_options={"weight_decay": 0.0}, learning_rate=1e-2, epochs=2, batch_size=8,
        per_device_eval_batch_size=8, scheduler="linear", max_grad_norm=1.0, num_workers=0,
    )  # fmt: skip
    found = [outcome(run, tmp_path / "by-fit")]
    training_args = TrainingArguments(
        output_dir=str(tmp_path / "out"), learning_rate=1e-2, num_train_epochs=2, optim="sgd",
        per_device_train_batch_size=8, save_strategy="no",
    )  # fmt: skip
    run = luthier.fit(str(tiny_model), str(rows), **job, args=training_args,
                      run_name="vectors-by-arguments")  # fmt: skip
    spec = run.spec
    found.append(outcome(run, tmp_path / "by-arguments"))
    config = tmp_path / "job.yaml"
    config.write_text(yaml.safe_dump(spec.model_dump(mode="json")))
    said = command("fit", config, "--home", home.path, "--run-name", "vectors-by-yaml", "--json")
    found.append(outcome(luthier.get_run(said["name"]), tmp_path / "by-yaml"))
    assert len(set(found)) == 1, found
