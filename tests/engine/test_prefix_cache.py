"""The fixed part's output is computed once, and training from it is training of the whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from luthier.engine import prefix
from luthier.engine.control import Interrupted, keep_going
from luthier.engine.run import run
from luthier.models.loading import load_text_model, open_text_model
from luthier.models.text import TextModel
from luthier.testing.models import tiny_text_model

pytestmark = pytest.mark.usefixtures("one_thread")

#: Losses with states rounded to fp16, against those without: the largest difference.
HALF = 2e-3


class Watched:
    """What runs of the engine tell, and how often the model was entered above or run whole."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.messages: list[str] = []
        self.models: list[TextModel] = []
        self.computed = 0
        use, output = prefix.use_prefix, prefix.fixed_output

        def using(learner, *rest):
            use(learner, *rest)
            learner.model.calls.clear()
            self.models.append(learner.model)

        def counting(*words):
            self.computed += 1
            return output(*words)

        monkeypatch.setattr("luthier.engine.setup.use_prefix", using)
        monkeypatch.setattr(prefix, "fixed_output", counting)

    def tell(self, kind, data) -> None:
        if kind == "log":
            self.messages.append(data["message"])

    @property
    def calls(self):
        return self.models[-1].calls

    def said(self, words: str) -> bool:
        return any(words in message for message in self.messages)


@pytest.fixture
def watched(monkeypatch) -> Watched:
    monkeypatch.setattr(prefix, "_TOGETHER", 40)  # so that small files have many parts too
    return Watched(monkeypatch)


def losses(folder: Path) -> list[float]:
    return json.loads((folder / "luthier" / "history.json").read_text())["losses"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.relative_to(folder)}:{name}": tensor
        for file in sorted(folder.rglob("*.safetensors"))
        if "luthier" not in file.parts[len(folder.parts) :]
        for name, tensor in load_file(file).items()
    }


def files(place) -> list[Path]:
    return sorted((place.cache / "prefix").glob("*"))


@pytest.fixture(scope="module")
def families(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    names = ("bert", "roberta", "distilbert", "modernbert", "llama", "mpnet")
    return {f: tiny_text_model(root / f, f, layers=3, dropout=0.1, seed=3) for f in names}


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "modernbert", "llama"])
def test_losses_are_those_of_the_whole_model(
    make_spec, new_place, families, family, watched, monkeypatch
) -> None:
    """With dropout in the layers above: both draw the same."""
    spec = make_spec(**{"model.name": str(families[family])}, num_fixed_layers=2)
    stored = run(spec, new_place("stored"), watched.tell)
    assert watched.calls == {"prefix": 12}
    assert watched.said("the lowest 2 layers: output is computed once for 96 texts")
    monkeypatch.setattr(prefix, "WORTH_VISITS", 99)
    for file in files(new_place("whole")):
        file.unlink()
    whole = run(spec, new_place("whole"), watched.tell)
    assert watched.calls == {"packed": 12}
    assert watched.said("each text is visited 2.0 times only")
    np.testing.assert_allclose(losses(stored.folder), losses(whole.folder), atol=HALF)
    assert len(set(losses(stored.folder))) > 6

    start = weights(families[family])
    found, expected = weights(stored.folder), weights(whole.folder)
    assert found.keys() == expected.keys() == start.keys()
    moved = {name for name in start if not torch.equal(start[name], found[name])}
    assert moved == {name for name in start if not torch.equal(start[name], expected[name])}
    assert 0 < len(moved) < len(start)
    first = open_text_model(stored.folder, device="cpu").encode(["a red boat"])
    again = open_text_model(whole.folder, device="cpu").encode(["a red boat"])
    assert float((first * again).sum()) > 0.999


def test_adapters_of_the_upper_layers_train_from_stored_states(
    make_spec, new_place, families, watched, monkeypatch
) -> None:
    words = {"model.name": str(families["bert"]), "adapter.lora_r": 4}
    spec = make_spec(**words, num_fixed_layers=2)
    stored = run(spec, new_place("stored"), watched.tell)
    assert watched.calls == {"prefix": 12}
    names = [name for name, p in watched.models[-1].named_parameters() if p.requires_grad]
    assert names
    assert all("layer.2." in name for name in names if "lora" in name)
    monkeypatch.setattr(prefix, "WORTH_VISITS", 99)
    for file in files(new_place("whole")):
        file.unlink()
    whole = run(spec, new_place("whole"), watched.tell)
    assert watched.calls == {"packed": 12}
    np.testing.assert_allclose(losses(stored.folder), losses(whole.folder), atol=HALF)
    assert len(set(losses(stored.folder))) > 6


def test_a_head_trains_from_pooled_vectors(make_spec, new_place, families, watched) -> None:
    """Also where texts cannot be packed. float32, so the losses are the same."""
    for family in ("bert", "mpnet"):
        spec = make_spec(**{"model.name": str(families[family])}, freeze=True, output_dim=8)
        stored = run(spec, new_place(family), watched.tell)
        assert watched.calls == {"prefix": 12}
        assert watched.said("the encoder: output is computed once for 96 texts")
        (file,) = [f for f in files(new_place(family)) if f.suffix == ".backbone"]
        assert file.stat().st_size == 96 * 32 * 4
        file.unlink()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(prefix, "WORTH_VISITS", 99)
            whole = run(spec, new_place(f"{family}-whole"), watched.tell)
        assert "prefix" not in watched.calls
        np.testing.assert_allclose(losses(stored.folder), losses(whole.folder), atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_evaluation_reads_vectors_too(make_spec, new_place, families, family, watched) -> None:
    """Before, after each epoch, and of the best at the end; losses on held-out rows too."""
    changes = {"freeze": True, "output_dim": 8, "val_split": 0.25}
    spec = make_spec(**{"model.name": str(families[family])}, **changes)
    best = {"kind": "best_model", "monitor": "val_loss"}
    spec = spec.changed(callbacks=[best])
    stored = run(spec, new_place("stored"), watched.tell)
    once = watched.computed
    assert len(measured(stored.folder)) == 4
    assert "val_loss" in measured(stored.folder)[0]
    assert watched.calls.keys() == {"prefix"}
    run(spec.changed(num_train_epochs=4), new_place("longer"), watched.tell)
    assert watched.computed - once < once  # only looks whether they are still right
    for file in files(new_place("whole")):
        file.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix, "WORTH_VISITS", 99)
        whole = run(spec, new_place("whole"), watched.tell)
    assert "prefix" not in watched.calls
    for found, expected in zip(measured(stored.folder), measured(whole.folder), strict=True):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, abs=1e-5), name


def measured(folder: Path) -> list[dict[str, float]]:
    """Every evaluation of a run, and those before and after it."""
    metrics = json.loads((folder / "luthier" / "metrics.json").read_text())
    history = json.loads((folder / "luthier" / "history.json").read_text())
    return [*history["evaluations"], metrics["before"], metrics["after"]]


def test_a_second_run_only_reads(make_spec, new_place, families, watched) -> None:
    spec = make_spec(**{"model.name": str(families["bert"])}, num_fixed_layers=2)
    first = run(spec, new_place("first"), watched.tell)
    (file,) = files(new_place("first"))
    written, computed = file.stat().st_ino, watched.computed
    assert computed > 2
    second = run(spec.changed(seed=7, num_train_epochs=1), new_place("second"), watched.tell)
    assert watched.calls == {"prefix": 6}  # although one epoch alone would not pay
    assert watched.computed == computed + 2  # its width, and the comparison of a few texts
    assert file.stat().st_ino == written
    assert losses(first.folder)[0] != losses(second.folder)[0]


def test_vectors_that_are_there_were_compared_when_they_were_made(
    make_spec, new_place, families, watched, monkeypatch
) -> None:
    compared, difference = [], prefix._difference

    def counting(model, texts, part, device):
        compared.append(part)
        return difference(model, texts, part, device)

    monkeypatch.setattr(prefix, "_difference", counting)
    spec = make_spec(**{"model.name": str(families["bert"])}, freeze=True, output_dim=8)
    first, second = (losses(run(spec, new_place(n), watched.tell).folder) for n in ("1", "2"))
    assert first == second
    assert compared == ["backbone"]


def test_other_weights_or_texts_have_a_file_of_their_own(
    make_spec, new_place, families, watched, tmp_path
) -> None:
    place = new_place("run")
    other = tiny_text_model(tmp_path / "other", layers=3, seed=4)
    for number, changes in enumerate(
        (
            {"model.name": str(families["bert"]), "num_fixed_layers": 2},
            {"model.name": str(families["bert"]), "num_fixed_layers": 1},
            {"model.name": str(other), "num_fixed_layers": 2},
            {"model.name": str(families["bert"]), "num_fixed_layers": 2, "max_steps": 2},
            {
                "model.name": str(families["bert"]),
                "num_fixed_layers": 2,
                "model.options": {"max_seq_length": 6},
            },
        ),
        start=1,
    ):
        run(make_spec(**changes), new_place(f"run{number}"), watched.tell)
        assert len(files(place)) == (number if number < 4 else number - 1)


def test_equal_texts_are_stored_once(make_spec, new_place, families, watched, tmp_path) -> None:
    rows = tmp_path / "twice.csv"
    lines = [f"a boat number {n},the {'red' if n % 2 else 'blue'} boat {n // 2}" for n in range(32)]
    lines += [f"one more boat {n},the red boat {n // 2}" for n in range(1, 33, 2)]
    rows.write_text("\n".join(["anchor,positive", *lines]))
    spec = make_spec(
        **{"model.name": str(families["bert"]), "data.train": {"uri": str(rows)}},
        num_fixed_layers=2,
    )
    run(spec, new_place("run"), watched.tell)
    assert watched.said("output is computed once for 80 texts")  # 48 rows of two
    assert watched.calls["prefix"] > 0


def test_a_resumed_run_equals_the_straight_one(make_spec, new_place, families, watched) -> None:
    """Also when the cache was emptied meanwhile, and though by then it would not pay."""
    spec = make_spec(
        **{"model.name": str(families["bert"])},
        num_fixed_layers=2,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=4,
    )
    straight = run(spec, new_place("straight"), watched.tell)
    assert watched.calls["prefix"] > 12  # the chunks of the gradient cache
    place, seen = new_place("stopped"), [0]

    def tell(kind, data) -> None:
        seen[0] = data["step"] if kind == "step" else seen[0]

    with pytest.raises(Interrupted):
        run(spec, place, tell, lambda: "interrupt" if seen[0] == 5 else None)
    for file in files(place):
        file.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix, "WORTH_VISITS", 99)
        patch.setattr(prefix, "MOST_BYTES", 1)
        resumed = run(spec, place, watched.tell, keep_going)
    assert watched.calls["prefix"] > 0
    assert losses(resumed.folder) == losses(straight.folder)
    found, expected = weights(resumed.folder), weights(straight.folder)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_without_room_it_trains_the_plain_way(
    make_spec, new_place, families, watched, monkeypatch
) -> None:
    monkeypatch.setattr(prefix, "MOST_BYTES", 1000)
    spec = make_spec(**{"model.name": str(families["bert"])}, num_fixed_layers=2)
    run(spec, new_place("run"), watched.tell)
    assert watched.calls == {"packed": 12}
    assert watched.said("it would take 0.0 GB of the 0.0 allowed")
    assert files(new_place("run")) == []


def test_a_wrong_prefix_is_not_used(make_spec, new_place, families, watched, monkeypatch) -> None:
    """The comparison on a few texts: here the states are those of other texts."""
    output = prefix.fixed_output
    monkeypatch.setattr(
        prefix, "fixed_output", lambda *words: (output(*words)[0].flip(0), output(*words)[1])
    )
    spec = make_spec(**{"model.name": str(families["bert"])}, num_fixed_layers=2)
    run(spec, new_place("run"), watched.tell)
    assert watched.calls == {"packed": 12}
    assert watched.said("vectors differ by")


def test_states_in_another_order_are_not_used(
    make_spec, new_place, families, watched, monkeypatch
) -> None:
    """The file itself is compared, not only the path: here its parts lie the wrong way round."""
    spec = make_spec(**{"model.name": str(families["bert"])}, num_fixed_layers=2)
    chunks = prefix.Store._chunks
    monkeypatch.setattr(prefix.Store, "_chunks", lambda *words: reversed(list(chunks(*words))))
    run(spec, new_place("run"), watched.tell)
    assert watched.calls == {"packed": 12}
    assert watched.said("what was stored differs by")
    assert files(new_place("run")) == []


def test_states_beyond_fp16_are_not_stored(
    make_spec, new_place, families, watched, monkeypatch
) -> None:
    output = prefix.fixed_output
    monkeypatch.setattr(
        prefix, "fixed_output", lambda *words: (output(*words)[0] * 1e6, output(*words)[1])
    )
    spec = make_spec(**{"model.name": str(families["bert"])}, num_fixed_layers=2)
    run(spec, new_place("run"), watched.tell)
    assert watched.calls == {"packed": 12}
    assert watched.said("beyond the range of fp16")


@pytest.mark.parametrize("execution", ["padded", "chunked"])
def test_texts_that_are_not_packed_have_no_states(
    make_spec, new_place, families, watched, execution
) -> None:
    spec = make_spec(
        **{"model.name": str(families["bert"])}, num_fixed_layers=2, execution=execution
    )
    run(spec, new_place("run"), watched.tell)
    assert watched.calls.keys() == {execution}
    assert watched.said(f"texts run {execution}")


def test_the_oldest_files_make_room(tmp_path, monkeypatch) -> None:
    now = time.time()
    for age, name in enumerate(("new.layers", "old.layers", "older.backbone", ".killed.aside")):
        (tmp_path / name).write_bytes(bytes(10))
        os.utime(tmp_path / name, (now - age, now - age))
    prefix._make_room(tmp_path, 20)
    assert {f.name for f in tmp_path.iterdir()} == {"new.layers", "old.layers", ".killed.aside"}
    os.utime(tmp_path / ".killed.aside", (now - 1e5, now - 1e5))
    prefix._make_room(tmp_path, 5)
    assert {f.name for f in tmp_path.iterdir()} == set()


def test_a_file_cut_short_is_made_again(make_spec, new_place, families, watched) -> None:
    spec = make_spec(**{"model.name": str(families["bert"])}, num_fixed_layers=2)
    first = run(spec, new_place("first"), watched.tell)
    (file,) = files(new_place("first"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    second = run(spec, new_place("second"), watched.tell)
    assert file.read_bytes() == whole
    assert losses(first.folder) == losses(second.folder)


def test_a_killed_write_leaves_nothing_that_is_used(
    make_spec, new_place, families, watched, tmp_path
) -> None:
    """A process is killed while it writes; the next run computes anew."""
    spec = make_spec(**{"model.name": str(families["bert"])}, num_fixed_layers=2)
    place = new_place("run")
    (tmp_path / "spec.json").write_text(spec.canonical())
    program = textwrap.dedent(
        f"""
        import os, signal, torch
        from pathlib import Path
        from luthier.engine import prefix
        from luthier.engine.run import Place, run
        from luthier.spec import parse_spec
        torch.set_num_threads(1)
        prefix._TOGETHER = 64
        inner = prefix.Store._chunks
        def chunks(self, tell):
            for number, chunk in enumerate(inner(self, tell)):
                yield chunk
                if number == 3:
                    os.kill(os.getpid(), signal.SIGKILL)
        prefix.Store._chunks = chunks
        place = Place(Path({str(place.folder)!r}), Path({str(place.cache)!r}), Path, Path)
        run(parse_spec(Path({str(tmp_path / "spec.json")!r}).read_text()), place)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, timeout=120, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    (half,) = files(place)
    assert half.name.startswith(".")
    run(spec, place, watched.tell)
    assert watched.calls == {"prefix": 12}
    assert [f.name.startswith(".") for f in files(place)] == [True, False]


def test_a_saved_model_has_the_key_it_was_loaded_with(families, tmp_path) -> None:
    """So that a resumed run finds the file."""
    from luthier.engine.device import Device
    from luthier.spec import ModelSpec

    spec = ModelSpec(name=str(families["bert"]), num_fixed_layers=2)
    model = load_text_model(spec, artifact=None, device="cpu")
    model.save(tmp_path / "saved")
    again = load_text_model(spec, artifact=tmp_path / "saved", device="cpu")
    texts = prefix.DistinctTexts.of(
        lambda _, rows: model.tokens([f"a text {row}" for row in rows]), ("text",), np.arange(5)
    )
    device = Device("cpu", "fp32")
    assert prefix._key(model, texts, device) == prefix._key(again, texts, device)


@pytest.mark.real
def test_minilm_trains_from_stored_states(make_spec, new_place, watched, monkeypatch) -> None:
    changes = {"model.name": "all-minilm-l6-v2", "num_fixed_layers": 3, "learning_rate": 2e-5}
    spec = make_spec(**changes)
    stored = run(spec, new_place("stored"), watched.tell)
    assert watched.calls == {"prefix": 12}
    for file in files(new_place("stored")):
        file.unlink()
    monkeypatch.setattr(prefix, "WORTH_VISITS", 99)
    whole = run(spec, new_place("whole"), watched.tell)
    np.testing.assert_allclose(losses(stored.folder), losses(whole.folder), atol=HALF)
