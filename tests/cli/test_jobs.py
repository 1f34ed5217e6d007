"""``luthier fit`` and ``luthier validate``, up to the queue. No worker is started."""

import json

import pytest
import yaml

from luthier.runs.connection import Home


def _spec(luthier, *words):
    said = luthier("validate", *words, "--json")
    assert said.code == 0, said
    return said.document["spec"]


def test_words_as_flags(luthier, job):
    spec = _spec(luthier, *job, "--learning-rate", "1e-4", "--num-train-epochs", "2", "--freeze",
                 "--output-dim", "16", "--optimizer-options", "weight_decay=0.01")  # fmt: skip
    assert spec["training"]["learning_rate"] == 1e-4
    assert spec["training"]["num_train_epochs"] == 2
    assert spec["training"]["max_steps"] == 3
    assert spec["training"]["optim_args"] == {"weight_decay": 0.01}
    assert spec["model"]["freeze"] is True
    assert spec["model"]["output_dim"] == 16
    assert spec["data"]["train"]["sha256"] is not None


def test_flags_go_over_the_file(luthier, tmp_path, tiny, pairs):
    file = tmp_path / "job.yaml"
    file.write_text(
        f"model: {tiny}\ntrain_data: {pairs}\nloss: MultipleNegativesRankingLoss\n"
        "epochs: 3\nper_device_train_batch_size: 8\nseed: 1\nrun_name: from-the-file\n"
    )
    spec = _spec(luthier, file, "--seed", "2")
    assert spec["training"]["num_train_epochs"] == 3
    assert spec["training"]["per_device_train_batch_size"] == 8
    assert spec["training"]["seed"] == 2


def test_both_forms_of_a_file_describe_the_same_job(luthier, tmp_path, job):
    flat = luthier("validate", *job, "--json").document
    file = tmp_path / "nested.yaml"
    file.write_text(yaml.safe_dump(flat["spec"]))
    nested = luthier("validate", file, "--json").document
    assert nested["spec_id"] == flat["spec_id"]
    changed = luthier("validate", file, "--learning-rate", "0.5", "--json").document
    assert changed["spec"]["training"]["learning_rate"] == 0.5
    assert changed["spec_id"] != flat["spec_id"]


def test_all_problems_are_told_together_with_the_nearest_word(luthier, tmp_path, tiny, pairs):
    file = tmp_path / "job.yaml"
    file.write_text(f"model: {tiny}\ntrain_data: {pairs}\nlerning_rate: 1\nepoch: 2\n")
    said = luthier("fit", file, "--json")
    assert said.code == 2
    hints = {p["field"]: p["hint"] for p in said.document["problems"]}
    assert hints["lerning_rate"] == "did you mean 'learning_rate'?"
    assert hints["epoch"] == "did you mean 'epochs'?"
    assert said.document["code"] == "spec_invalid"


def test_an_unknown_flag_suggests_the_nearest(luthier):
    said = luthier("fit", "--learning-rte", "1")
    assert said.code == 2
    assert "--learning-rate" in said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("train_data: x.csv\n", "model"),
        ("model: m\n", "train_data"),
        ("model: m\ntrain_data: x\nloss_options: 5\n", "loss_options"),
        ("model: m\ntrain_data: x\nepochs: 1\nnum_train_epochs: 2\n", "num_train_epochs"),
        ("model: m\ntrain_data: x\nrun_name: 5\n", "run_name"),
        ("model: m\ntrain_data: x.csv\nmodel_artifact: 5\n", "artifact"),
        ("model: {name: m, artifact: true}\n", "artifact"),
        ("model: m\ntrain_data: x\ntask: dancing\n", "task"),
        ("model: {name: m}\ndata: {train: 5}\n", "train"),
        ("model: {name: m}\n", "data"),
    ],
)
def test_what_is_missing_or_of_the_wrong_kind_is_named(luthier, tmp_path, text, field):
    file = tmp_path / "job.yaml"
    (tmp_path / "x.csv").write_text("anchor,positive\na,b\n")
    file.write_text(text)
    said = luthier("validate", file, "--json")
    assert said.code == 2, said
    assert field in json.dumps(said.document["problems"])


def test_data_that_is_not_there_is_a_data_error(luthier, tiny, pairs):
    said = luthier("validate", "--model", tiny, "--train-data", pairs.with_name("pears.csv"))
    assert said.code == 3
    assert "did you mean 'pairs.csv'?" in said.err


def test_callbacks_from_a_file_are_checked_and_their_data_located(luthier, tmp_path, job, pairs):
    file = tmp_path / "job.yaml"
    file.write_text(
        f"eval_data: {pairs}\ncallbacks:\n"
        f"  - {{kind: evaluation, query_data: {pairs}, limit: 5}}\n"
        "  - {kind: early_stopping, patience: 3}\n"
    )
    evaluation, stopping = _spec(luthier, file, *job)["callbacks"]
    assert evaluation["query_data"]["sha256"]
    assert evaluation["limit"] == 5
    assert stopping["patience"] == 3
    file.write_text("callbacks: {kind: early_stopping}\n")
    assert luthier("validate", file, *job).code == 2


def test_validate_queues_nothing_and_fit_does(luthier, job, tmp_path):
    home = Home(tmp_path / "home")
    assert luthier("validate", *job).code == 0
    assert home.ledger.runs() == []
    said = luthier("fit", *job, "--run-name", "first-try", "--description", "why not", "--json")
    assert said.code == 0
    assert said.document["status"] == "CREATED"
    [record] = home.ledger.runs()
    assert (record.id, record.name) == (said.document["id"], "first-try")
    assert record.description == "why not"
    home.close()


def test_the_same_key_gives_the_same_run_and_another_job_a_conflict(luthier, job):
    first = luthier("fit", *job, "--idempotency-key", "k", "--json").document
    again = luthier("fit", *job, "--idempotency-key", "k", "--json").document
    assert again["id"] == first["id"]
    other = luthier("fit", *job, "--seed", "9", "--idempotency-key", "k", "--json")
    assert other.code == 7
    assert other.document["code"] == "conflict"


def test_a_device_that_is_not_there_is_refused(luthier, job):
    said = luthier("fit", *job, "--device", "mps", "--json")
    assert said.code == 2
    assert said.document["problems"][0]["field"] == "device"
