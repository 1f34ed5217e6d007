"""A task's own pipeline runs from the YAML that was written, by real processes too."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from component_command import command
from component_world import MORE, ROWS, write_rows

from luthier.doors.component_pipeline import pipeline_files


@pytest.fixture
def luthier(capfd, monkeypatch):
    return command(capfd, monkeypatch)


def ran(done):
    """Step → whether it ran."""
    return {step["step"]: step["ran"] for step in json.loads(done.stdout)["steps"]}


def written(folder, task_name, count=40, **settings):
    """The files of a task's pipeline in a folder; ``--set`` for tiny rows and what is given."""
    folder.mkdir(parents=True)
    for name, text in pipeline_files(task_name).items():
        (folder / name).write_text(text, encoding="utf-8")
    rows = write_rows(folder / "rows.jsonl", task_name, count)
    settings = {"train_file_path": rows, "learning_rate": "1e-3", **settings}
    return [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]


@pytest.mark.parametrize(
    "task_name",
    [n if n == "Translation" else pytest.param(n, marks=pytest.mark.slow) for n in ROWS],
)
def test_the_commands_of_every_task_do_their_work(luthier, tmp_path, tiny, task_name):
    """Those that a run would start, one after the other, in this process."""
    settings = written(
        tmp_path / "files", task_name, model_path=tiny(task_name), num_train_epochs=1,
        **MORE.get(task_name, {}),
    )  # fmt: skip
    shown = luthier(tmp_path, "run", "files/pipeline.yaml", "--dry-run", "--json", *settings)
    assert shown.returncode == 0, shown.stderr
    (tmp_path / "pipeline-work").mkdir()
    for step, argv in json.loads(shown.stdout).items():
        assert argv[:4] == [sys.executable, "-m", "luthier", "component"]
        (tmp_path / "pipeline-work" / step).mkdir()
        done = luthier(tmp_path, *argv[4:])
        assert done.returncode == 0, done.stderr
    found = tmp_path / "pipeline-work" / "evaluate" / "evaluation_output" / "metrics.json"
    assert json.loads(found.read_text())["metrics"]


def test_what_a_step_will_not_take_is_said_before_the_first_runs(luthier, tmp_path):
    wrong = {"warmup_steps": 3, "lr_scheduler_type": "constant", "save_total_limit": 0}
    same = {"source_lang": "en", "target_lang": "en"}
    settings = written(tmp_path / "files", "Translation", **same, **wrong)
    done = luthier(tmp_path, "run", "files/pipeline.yaml", *settings)
    assert done.returncode == 2
    for part in (
        "jobs.import: huggingface_id: exactly one of",
        "jobs.preprocess: target_lang: is the source language too",
        "jobs.finetune: warmup_steps: the 'constant' schedule has no warm-up",
        "jobs.finetune: save_total_limit",
    ):
        assert part in done.stderr
    assert not (tmp_path / "pipeline-work").exists()


@pytest.mark.slow
def test_a_finetune_within_a_pipeline_is_stopped_and_goes_on(luthier, tmp_path, tiny):
    """Ctrl-C in the third of four real processes; then it is the same as if never stopped."""
    import torch
    from safetensors.torch import load_file

    settings = written(
        tmp_path / "files", "SingleLabelClassification", 80, num_train_epochs=3,
        model_path=tiny("SingleLabelClassification"), evaluation_strategy="steps", eval_steps=10,
    )  # fmt: skip
    words = ["run", "files/pipeline.yaml", *settings]
    process = subprocess.Popen(
        [sys.executable, "-m", "luthier", "component", *words],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if "checkpoint after step 20" in line:
            process.send_signal(signal.SIGINT)
            break
    rest = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 130, "".join(seen) + rest
    assert "stopped in the step finetune" in rest
    assert "--set resume_from_checkpoint=true" in rest
    done = luthier(tmp_path, *words, "--set", "resume_from_checkpoint=true", "--json")
    assert done.returncode == 0, done.stderr
    assert ran(done) == {"import": False, "preprocess": False, "finetune": True, "evaluate": True}
    assert "resuming after step" in done.stderr
    weights = Path(json.loads(done.stdout)["outputs"]["pytorch_model_folder"], "model.safetensors")
    resumed = load_file(weights)
    straight = luthier(tmp_path, *words)
    assert straight.returncode == 0, straight.stderr
    assert "resuming" not in straight.stderr
    # a new run measures anew which matrix product is the faster: test_component_resume has the bits
    for name, value in load_file(weights).items():
        torch.testing.assert_close(value, resumed[name], rtol=1e-4, atol=1e-6)


def test_the_first_step_of_a_task_is_a_process_of_luthier(luthier, tmp_path, tiny):
    """The quick form of what follows: a pipeline that ends after the import."""
    settings = written(tmp_path / "files", "Summarization", model_path=tiny("Summarization"))
    file = tmp_path / "files" / "pipeline.yaml"
    pipeline = yaml.safe_load(file.read_text())
    pipeline["jobs"] = {"import": pipeline["jobs"]["import"]}
    used = str(pipeline["jobs"])
    pipeline["inputs"] = {n: a for n, a in pipeline["inputs"].items() if f"inputs.{n}}}" in used}
    pipeline["outputs"] = {}
    file.write_text(yaml.safe_dump(pipeline))
    words = [*settings[-2:], "--json"]
    done = luthier(tmp_path, "run", file, *words)
    assert ran(done) == {"import": True}, done.stderr
    made = tmp_path / "pipeline-work" / "import" / "model_selector_output"
    assert (made / "model_selector_args.json").is_file()
    assert ran(luthier(tmp_path, "run", file, *words)) == {"import": False}


@pytest.mark.slow
def test_a_task_runs_from_its_own_yaml(tmp_path, tiny, luthier):
    """Import, preprocess, finetune, evaluate: four processes, from the files that were written."""
    import transformers

    files = tmp_path / "a folder's files"
    files.mkdir()
    for name, text in pipeline_files("SingleLabelClassification").items():
        (files / name).write_text(text, encoding="utf-8")
    rows = write_rows(tmp_path / "the 'rows'.jsonl", "SingleLabelClassification", 40)
    model = tiny("SingleLabelClassification")
    settings = {"train_file_path": rows.name, "model_path": model, "num_train_epochs": 1,
                "learning_rate": "1e-3", "apply_lora": "true"}  # fmt: skip
    words = [w for name, value in settings.items() for w in ("--set", f"{name}={value}")]
    done = luthier(tmp_path, "run", files / "pipeline.yaml", "--json", *words)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert ran(done) == dict.fromkeys(("import", "preprocess", "finetune", "evaluate"), True)
    found = json.loads(Path(made["outputs"]["evaluation_output"], "metrics.json").read_text())
    assert found["rows"] == 4
    folder = made["outputs"]["pytorch_model_folder"]
    transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    assert Path(made["outputs"]["mlflow_model_folder"], "MLmodel").is_file()
    # a second run finds all of it as it was: what reads a folder leaves it alone
    assert not any(
        ran(luthier(tmp_path, "run", files / "pipeline.yaml", "--json", *words)).values()
    )
