"""Each task through all four steps, on tiny random models."""

import json

import pytest
from component_world import ROWS

CLASSES = {"SingleLabelClassification", "MultiLabelClassification", "NamedEntityRecognition",
           "ImageClassification"}  # fmt: skip


@pytest.mark.parametrize("task_name", sorted(ROWS))
def test_a_task_goes_through_all_steps(steps, task_name):
    import transformers

    step = steps(task_name)
    selected = step.select()
    made = step.prepare()
    rows = {name: split["rows"] for name, split in made["splits"].items()}
    assert sum(rows.values()) == 40
    assert rows["train"] >= 28
    features = {p.name: p.stat().st_mtime_ns for p in step.prepared.glob("tokenized/features/*")}
    tuned = step.tune()
    cache = step.tuned / ".luthier" / "cache" / "features"
    if task_name != "ImageClassification":
        # nothing was tokenized again: what finetune has are preprocess's own files
        assert {p.name for p in cache.iterdir()} <= set(features)
        assert all(p.resolve().parent.parent.parent == step.prepared for p in cache.iterdir())
    steps_made = -(-made["splits"]["train"]["features"] // 4)
    assert tuned["metrics"]["steps"] == steps_made
    assert (step.tuned / f"checkpoint-{steps_made}" / "luthier" / "state.safetensors").is_file()
    model = getattr(transformers, selected["auto_class"]).from_pretrained(step.tuned)
    if task_name in CLASSES:
        assert list(model.config.label2id) == made["labels"]
    measured = step.measure()
    assert measured["rows"] == rows["test"] > 0
    assert json.loads((step.measured / "metrics.json").read_text())["metrics"]
    same = step.measure(pytorch_model_folder=step.mlflow)
    assert same["metrics"] == measured["metrics"]
