"""Updates where two things meet: several classes a row, merging on a head that grew, a bucket."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from safetensors.torch import load_file

from luthier.engine.control import Interrupted
from luthier.registry import cards
from luthier.spec import JobSpec, parse_spec
from luthier.store.bundle import open_bundle
from luthier.store.states import head
from luthier.testing import s3
from luthier.testing.models import tiny_text_model

WORDS = ("great", "awful", "sea", "rose")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_text_model(tmp_path_factory.mktemp("models") / "head", pooling=None, dropout=0.1)


@pytest.fixture
def job(tmp_path: Path, model: Path):
    """A job of texts with labels: the second chunk has classes that the first does not."""

    def make(chunk: int, updater: str, start: Any = None, several: bool = False, **update: Any):
        rows = []
        for i in range(36):
            names = np.random.default_rng(100 * chunk + i).choice(
                WORDS[2 * chunk : 2 * chunk + 2], size=1 + several * (i % 2), replace=False
            )
            label = names.tolist() if several else names[0]
            rows.append(json.dumps({"text": f"a {' '.join(names)} thing {i}", "label": label}))
        train, held_out = tmp_path / f"train-{chunk}.jsonl", tmp_path / f"eval-{chunk}.jsonl"
        train.write_text("\n".join(rows[:24]))
        held_out.write_text("\n".join(rows[24:]))
        remembers = next(c for c in cards("updater") if c.name == updater).facts["memory"]
        return parse_spec({
            "task": "text-classification",
            "model": {"name": str(model), "artifact": start and str(start)},
            "data": {"train": {"uri": str(train)}, "eval": {"uri": str(held_out)}},
            "processing": {"multi_label": several},
            "update": {"updater": updater, **({"memory_size": 12} if remembers else {}), **update},
            "training": {
                "per_device_train_batch_size": 8, "num_train_epochs": 2, "learning_rate": 1e-3,
                "device": "cpu",
            },
        })  # fmt: skip

    return make


@pytest.mark.parametrize("updater", ["ER", "Robust-DER", "LwF"])
def test_rows_of_several_classes_learn_on(updater, job, trained, files_of) -> None:
    start = None
    for chunk in (0, 1):
        spec = job(chunk, updater, start, several=True)
        whole = trained(spec, f"whole-{chunk}")
        with pytest.raises(Interrupted):
            trained(spec, f"parts-{chunk}", stop=4)
        found = trained(spec, f"parts-{chunk}")
        assert files_of(found.folder) == files_of(whole.folder)
        start = open_bundle(whole.folder).path
    config = transformers.AutoConfig.from_pretrained(start)
    assert config.problem_type == "multi_label_classification"
    assert sorted(config.id2label.values()) == sorted(WORDS)
    assert len(whole.metrics["update"]["by_chunk"]) == 2


@pytest.mark.parametrize("merge", ["ties", "wise-ft", "ema", "soup"])
def test_weights_are_merged_where_the_head_grew(merge, job, trained, files_of) -> None:
    """Rows of new classes have nothing to be merged with; those of old ones have."""
    start = None
    for chunk in (0, 1):
        spec = job(chunk, "ER", start, merge=merge)
        whole = trained(spec, f"whole-{chunk}")
        with pytest.raises(Interrupted):
            trained(spec, f"parts-{chunk}", stop=3)
        again = trained(spec, f"parts-{chunk}")
        assert files_of(again.folder) == files_of(whole.folder)
        start = open_bundle(whole.folder).path
    outputs = load_file(start / "model.safetensors")["classifier.weight"]
    assert outputs.shape[0] == 4
    assert bool(outputs.isfinite().all())


def test_an_encoder_s_state_is_the_same_in_a_bucket(
    tmp_path, tiny_dropout_model, pairs_csv, trained, files_of, monkeypatch
) -> None:
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setenv("HOME", str(tmp_path))

    def spec(state: str, first: bool) -> JobSpec:
        update = {"updater": "ER", "memory_size": 12, "output_state_url": state}
        return parse_spec({
            "model": {"name": str(tiny_dropout_model)},
            "data": {"train": {"uri": str(pairs_csv)}, "val_split": 0.25},
            "objective": {"loss": "MultipleNegativesRankingLoss"},
            "update": update | ({} if first else {"input_state_url": state}),
            "training": {"per_device_train_batch_size": 8, "max_steps": 3, "device": "cpu"},
        })  # fmt: skip

    with s3.server(tmp_path / "s3") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        server.client().create_bucket(Bucket="states")
        found = {}
        for kind, state in (("bucket", "s3://states/encoder"), ("folder", str(tmp_path / "st"))):
            for number in (0, 1):
                outcome = trained(spec(state, number == 0), f"{kind}-{number}")
            found[kind] = files_of(outcome.folder)
            assert head(state) == 2
    assert found["bucket"] == found["folder"]
