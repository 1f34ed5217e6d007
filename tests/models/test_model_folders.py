"""Broken files are named, when the job is submitted and when the model is loaded."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.errors import ModelError
from luthier.models.catalog import problems
from luthier.models.folder import read_folder
from luthier.models.loading import load_text_model, open_text_model
from luthier.spec import ModelSpec
from luthier.testing.models import tiny_text_model


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def edit(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text())
    content.update(changes)
    file.write_text(json.dumps(content))


def cut(file: Path, share: float) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])


def lengthen(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0")


def with_module(folder: Path, kind: str, path: str = "2_X") -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 2, "name": "2", "path": path, "type": kind})
    (folder / "modules.json").write_text(json.dumps(modules))


#: What is done to a good folder → the file that the error must name.
BREAK: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), ""),
    "config not json": (lambda f: (f / "config.json").write_text("{"), "config.json"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "config.json"),
    "config without a type": (lambda f: (f / "config.json").write_text("{}"), "config.json"),
    "config not text": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe{}"), "config.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), ""),
    "weights cut": (lambda f: cut(f / "model.safetensors", 0.9), "model.safetensors"),
    "weights cut to the bone": (
        lambda f: cut(f / "model.safetensors", 0.0001),
        "model.safetensors",
    ),
    "weights empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors"),
    "weights are text": (
        lambda f: (f / "model.safetensors").write_bytes(b"version https://git-lfs" * 9),
        "model.safetensors",
    ),
    "weights too long": (
        lambda f: lengthen(f / "model.safetensors"),
        "model.safetensors",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), ""),
    "tokenizer cut": (lambda f: cut(f / "tokenizer.json", 0.5), "tokenizer.json"),
    "modules not json": (lambda f: (f / "modules.json").write_text("[,"), "modules.json"),
    "modules empty": (lambda f: (f / "modules.json").write_text("[]"), "modules.json"),
    "modules of numbers": (lambda f: (f / "modules.json").write_text("[1]"), "modules.json"),
    "no pooling": (lambda f: (f / "1_Pooling/config.json").unlink(), "1_Pooling/config.json"),
    "module outside": (
        lambda f: with_module(f, "sentence_transformers.models.Dense", "../../etc"),
        "modules.json",
    ),
    "adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), "adapter_config.json"),
}


@pytest.mark.parametrize("how", BREAK)
def test_the_broken_file_is_named_at_submit_and_at_loading(folder: Path, how: str) -> None:
    breaking, name = BREAK[how]
    breaking(folder)
    spec = ModelSpec(name=str(folder))
    found = problems(spec)
    assert [p.field for p in found] == ["model.name"]
    assert str(folder / name) in found[0].message
    with pytest.raises(ModelError) as raised:
        open_text_model(folder, device="cpu")
    assert raised.value.where == str(folder / name)


def test_a_file_is_not_a_folder(folder: Path) -> None:
    file = folder / "config.json"
    with pytest.raises(ModelError, match="is a file"):
        open_text_model(file, device="cpu")


def test_facts_of_a_folder(folder: Path) -> None:
    found = read_folder(folder)
    assert found.kind == "sentence-transformers"
    assert found.modules == ("Transformer", "Pooling")
    assert (found.positions, found.model_type, found.head) == (64, "bert", False)
    assert set(found.dropout_fields) == {"hidden_dropout_prob", "attention_probs_dropout_prob"}


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    edit(folder / "config.json", intermediate_size=48)
    with pytest.raises(ModelError, match="another shape") as raised:
        open_text_model(folder, device="cpu")
    assert raised.value.where == str(folder)


def test_weights_that_are_not_there_are_not_made_up(folder: Path) -> None:
    edit(folder / "config.json", num_hidden_layers=3)
    with pytest.raises(ModelError, match=r"lacks the weights of encoder\.layer\.2"):
        open_text_model(folder, device="cpu")


def test_a_pooler_that_is_not_used_may_be_missing(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    kept = {k: v for k, v in weights.items() if not k.startswith("pooler.")}
    assert len(kept) == len(weights) - 2
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    before = torch.get_rng_state()
    first = open_text_model(folder, device="cpu").state_dict()
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(5)
    second = open_text_model(folder, device="cpu").state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_a_plain_transformers_folder_gets_mean_pooling(tmp_path: Path) -> None:
    plain = tiny_text_model(tmp_path / "plain", pooling=None)
    same = tiny_text_model(tmp_path / "pooled")
    assert not (plain / "modules.json").exists()
    texts = ["a banana", "to be a lemon, or not"]
    left = open_text_model(plain, device="cpu").encode(texts)
    right = open_text_model(same, device="cpu").encode(texts)
    assert (left == right).all()


def test_old_weights_are_read_without_running_code(folder: Path) -> None:
    from safetensors.torch import load_file

    before = open_text_model(folder, device="cpu").encode(["banana"])
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert (open_text_model(folder, device="cpu").encode(["banana"]) == before).all()


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def test_a_pickle_with_code_is_refused_and_not_run(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Evil(mark)}, protocol=2))
    with pytest.raises(ModelError):
        open_text_model(folder, device="cpu")
    assert not mark.exists()
    pickle.loads((folder / "pytorch_model.bin").read_bytes())  # it would have worked
    assert mark.exists()


def test_code_that_comes_with_a_model_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "mark"
    (folder / "modeling_own.py").write_text(
        f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
        "from sentence_transformers.sentence_transformer.modules import Normalize\n"
        "class Own(Normalize):\n    pass\n"
    )
    with_module(folder, "modeling_own.Own", "")
    with pytest.raises(ModelError, match=r"modeling_own\.Own") as refused:
        open_text_model(folder, device="cpu")
    assert "LUTHIER_TRUST_REMOTE_CODE" in str(refused.value.hint)
    assert not mark.exists()
    monkeypatch.setenv("LUTHIER_TRUST_REMOTE_CODE", "1")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "cache"))
    vectors = open_text_model(folder, device="cpu").encode(["banana"], normalize=False)
    assert abs((vectors**2).sum() - 1) < 1e-5
    assert mark.exists()


def test_an_architecture_of_the_model_itself_is_refused(folder: Path) -> None:
    edit(folder / "config.json", model_type="own", auto_map={"AutoModel": "modeling_own.Own"})
    with pytest.raises(ModelError, match=r"modeling_own\.Own"):
        open_text_model(folder, device="cpu")


def test_an_unknown_architecture_says_so(folder: Path) -> None:
    edit(folder / "config.json", model_type="unheard-of")
    with pytest.raises(ModelError, match="unheard-of") as raised:
        open_text_model(folder, device="cpu")
    assert raised.value.where == str(folder)


def test_the_hub_without_a_network_says_what_to_do() -> None:
    with pytest.raises(ModelError, match="model hub") as raised:
        load_text_model(ModelSpec(name="owner/no-such-model"), artifact=None, device="cpu")
    assert raised.value.where == "owner/no-such-model"
    assert "network" in str(raised.value.hint)


def cached(cache: Path, revision: str, commit: str, source: Path) -> None:
    """Put a folder where a download from the hub would have put it."""
    root = cache / "models--owner--tiny"
    shutil.copytree(source, root / "snapshots" / commit)
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / revision).write_text(commit)


def test_hub_ids_and_revisions(tmp_path: Path) -> None:
    """The real path of a hub id, with what a download leaves in the cache."""
    cache = tmp_path / "hub"
    main, other = (tiny_text_model(tmp_path / str(seed), seed=seed) for seed in (1, 2))
    own = Path(shutil.copytree(main, tmp_path / "own"))
    with_module(own, "modeling_own.Own", "")
    cached(cache, "main", "a" * 40, main)
    cached(cache, "v2", "b" * 40, other)
    cached(cache, "own", "c" * 40, own)
    script = (
        "import torch\n"
        "from pathlib import Path\n"
        "from luthier.errors import ModelError\n"
        "from luthier.models.loading import load_text_model, open_text_model\n"
        "from luthier.spec import ModelSpec\n"
        "def load(**options):\n"
        "    spec = ModelSpec(name='owner/tiny', options=options)\n"
        "    return load_text_model(spec, artifact=None, device='cpu').encode(['banana'])\n"
        f"main, other = (open_text_model(Path(p), device='cpu').encode(['banana'])\n"
        f"               for p in ({str(main)!r}, {str(other)!r}))\n"
        "assert (load() == main).all()\n"
        "assert (load(revision='v2') == other).all()\n"
        "assert (main != other).any()\n"
        "for revision, word in (('own', 'LUTHIER_TRUST'), ('v3', 'network')):\n"
        "    try:\n"
        "        load(revision=revision)\n"
        "    except ModelError as error:\n"
        "        assert word in error.hint, error\n"
        "    else:\n"
        "        raise AssertionError(revision)\n"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
