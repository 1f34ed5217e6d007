"""Updates that prompt a frozen transformer, and weights that are merged: through the engine."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from luthier.engine.control import Interrupted
from luthier.errors import LuthierError, ModelError, SpecError
from luthier.registry import cards
from luthier.spec import parse_spec
from luthier.updaters.prompted import LearningToPromptTransformer, SPromptTransformer

WORDS = '''
import torch
from torch.utils.data import TensorDataset


class Data:
    """Sequences of words. A class has a word of its own, and a chunk two classes and a dialect:
    words that surround them, and that none of the others uses."""

    def __init__(self, chunk, rows, val):
        self.chunk, self.rows, self.val = chunk, rows, val

    def prepare_data(self):
        pass

    def setup(self):
        generator = torch.Generator().manual_seed(self.chunk)
        count = self.rows + self.val
        labels = 2 * self.chunk + torch.arange(count) % 2
        words = torch.randint(0, 12, (count, 6), generator=generator) + 10 + 12 * self.chunk
        words[:, 0], words[:, 3] = 1, 2 + labels
        self.parts = [
            TensorDataset(words[: self.rows], labels[: self.rows]),
            TensorDataset(words[self.rows :], labels[self.rows :]),
        ]

    def train_data(self):
        return self.parts[0]

    def val_data(self):
        return self.parts[1] if self.val else None


def data_module_fn(chunk_id: int, rows: int = 32, val: int = 32):
    return Data(chunk_id, rows, val)


def encoder():
    from transformers import BertConfig, BertModel

    torch.manual_seed(1)
    return BertModel(BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=40, initializer_range=0.3,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    ))


class Plain(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.head = encoder(), torch.nn.Linear(16, 4)

    def forward(self, words):
        return self.head(self.encoder(words).last_hidden_state[:, 0])


def model_fn(model_state_url=None, kind: str = "plain", domains: int = 4):
    from luthier.tuning import LearningToPromptTransformer, SPromptTransformer

    if kind == "L2P":
        return LearningToPromptTransformer(encoder(), 4, 20, 2, 3)
    if kind == "S-Prompt":
        return SPromptTransformer(encoder(), 4, domains=domains, prompt_size=4,
                                  clusters_per_domain=2)
    return Plain()
'''
PROMPTED = ("L2P", "S-Prompt")


@pytest.fixture
def job(tmp_path: Path):
    config = tmp_path / "words.py"
    config.write_text(WORDS)

    def make(chunk, updater, *, state=None, start=None, arguments=None, update=None, **training):
        kind = updater if updater in PROMPTED else "plain"
        remembers = next(c for c in cards("updater") if c.name == updater).facts["memory"]
        words = {"num_train_epochs": 2, "per_device_train_batch_size": 8, "learning_rate": 0.02}
        return parse_spec({
            "task": "program",
            "model": {"name": str(config)},
            "data": {"train": {"uri": str(config)}},
            "program": {"config_file": str(config),
                        "arguments": {"chunk_id": chunk, "kind": kind} | (arguments or {})},
            "update": {"updater": updater, "memory_size": 12 if remembers else 0,
                       "input_state_url": start and str(start),
                       "output_state_url": state and str(state)} | (update or {}),
            "training": {"optim": "Adam", "device": "cpu"} | words | training,
        })  # fmt: skip

    return make


def interrupted(job, trained, files_of, tmp_path, updater, stops, **words) -> list:
    """Two updates, each in one go and in parts. Returns the results of the whole ones."""
    start, found = None, []
    for chunk in (0, 1):
        state = tmp_path / f"state-{chunk}"
        whole = trained(job(chunk, updater, state=state, start=start, **words), f"whole-{chunk}")
        other = job(chunk, updater, state=tmp_path / f"other-{chunk}", start=start, **words)
        for stop in stops:
            with pytest.raises(Interrupted):
                trained(other, f"parts-{chunk}", stop=stop)
        parts = trained(other, f"parts-{chunk}")
        assert files_of(parts.folder) == files_of(whole.folder)
        assert parts.metrics["update"] == whole.metrics["update"]
        start = state
        found.append(whole)
    return found


@pytest.mark.parametrize("updater", PROMPTED)
def test_an_update_of_prompts_resumes_bit_for_bit(
    updater, job, trained, files_of, tmp_path
) -> None:
    first, second = interrupted(job, trained, files_of, tmp_path, updater, (2, 3))
    before, after = (load_file(r.folder / "model.safetensors") for r in (first, second))
    frozen = [n for n in before if n.startswith("transformer.")]
    assert frozen
    assert all(torch.equal(before[n], after[n]) for n in frozen)
    assert any(not torch.equal(before[n], after[n]) for n in before)


@pytest.mark.parametrize("updater", [pytest.param("L2P", marks=pytest.mark.slow), "S-Prompt"])
def test_prompts_forget_less_than_fine_tuning(updater, job, trained, tmp_path) -> None:
    """Two chunks; the classes of the first must survive the second."""
    kept = {}
    words = {"L2P": {"num_train_epochs": 20, "learning_rate": 0.005, "arguments": {"rows": 96}},
             "S-Prompt": {"num_train_epochs": 30},
             "FineTuning": {"num_train_epochs": 15}}  # fmt: skip
    for name in ("FineTuning", updater):
        state = tmp_path / name
        for chunk in (0, 1):
            spec = job(chunk, name, state=state, start=state if chunk else None, **words[name])
            found = trained(spec, f"{name}-{chunk}").metrics["update"]
        kept[name] = found
    assert kept["FineTuning"]["forgetting"] > 0.8
    assert kept[updater]["matrix"][0][0] > 0.7
    assert kept[updater]["forgetting"] < kept["FineTuning"]["forgetting"] - 0.3
    assert kept[updater]["average"] > kept["FineTuning"]["average"] + 0.1


@pytest.mark.parametrize("kind", [LearningToPromptTransformer, SPromptTransformer])
def test_images_are_prompted_too(kind) -> None:
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                       intermediate_size=16, image_size=8, patch_size=4)  # fmt: skip
    vit = ViTModel(config, add_pooling_layer=False)
    model = kind(vit, 3)
    images = torch.randn(5, 3, 8, 8)
    scores = model(images)
    assert scores.shape == (5, 3)
    scores.sum().backward()
    assert all(p.grad is None for p in vit.parameters())
    assert not vit.training
    trained = (
        model.pool.prompts if isinstance(model, LearningToPromptTransformer) else model.prompts[0]
    )
    assert float(trained.grad.abs().sum()) > 0
    assert torch.equal(model(pixel_values=images), model.eval()(images))
    plain = vit(images).last_hidden_state
    assert plain.shape[1] == 5, "the hook that prompts is gone"


def test_a_model_without_prompts_is_told(job, trained) -> None:
    for updater in PROMPTED:
        with pytest.raises(ModelError, match=r"luthier\.tuning"):
            trained(job(0, updater, arguments={"kind": "plain"}), updater)


def test_more_updates_than_domains_are_told(job, trained, tmp_path) -> None:
    state = tmp_path / "state"
    words = {"arguments": {"domains": 1}, "num_train_epochs": 1}
    trained(job(0, "S-Prompt", state=state, **words), "first")
    with pytest.raises(ModelError, match="domains=…"):
        trained(job(1, "S-Prompt", state=state, start=state, **words), "second")


MERGES = {
    "wise-ft": {"points": 4},
    "ema": {"decay": 0.5},
    "soup": {"ingredients": 2},
    "ties": {"density": 0.6},
}


@pytest.mark.parametrize(
    ("updater", "merge"),
    [*(("DER", merge) for merge in sorted(MERGES)), ("LoRA", "ema"), ("LoRA", "ties"),
     ("iCaRL", "wise-ft"), ("RD", "ema")],
)  # fmt: skip
def test_a_merge_resumes_bit_for_bit(merge, updater, job, trained, files_of, tmp_path) -> None:
    update = {"merge": merge, "merge_options": MERGES[merge]}
    stops = (2, 5) if updater != "RD" else (5, 10)  # within an epoch or phase, and after one
    first, second = interrupted(job, trained, files_of, tmp_path, updater, stops, update=update)
    found = second.metrics["update"]["merge"]
    assert found["kind"] == merge
    if merge == "wise-ft":
        assert [row["alpha"] for row in found["table"]] == [0, 0.25, 0.5, 0.75, 1]
        (chosen,) = (row for row in found["table"] if row["chosen"])
        assert chosen["score"] == max(row["score"] for row in found["table"])
        if updater != "iCaRL":  # whose last layer is set after that
            after = second.metrics["after"]["val_accuracy"]
            assert chosen["score"] == pytest.approx(after)
    names = set(load_file(first.folder / "model.safetensors"))
    assert names == set(load_file(second.folder / "model.safetensors"))
    assert not any("lora" in name for name in names)


def test_a_merge_is_what_is_published(job, trained, tmp_path) -> None:
    """The mean of the epochs' weights, by the weights that each epoch was kept with."""
    update = {"merge": "soup", "merge_options": {"kind": "uniform"}}
    plain = job(0, "ER", num_train_epochs=2)
    spec = parse_spec(
        plain.model_dump() | {"callbacks": [{"kind": "checkpoint", "last_k_epochs": 2}]}
    )
    trained(spec, "epochs")
    folders = sorted((tmp_path / "epochs" / "epochs").iterdir())
    one, other = (load_file(folder / "model.safetensors") for folder in folders)
    merged = trained(job(0, "ER", num_train_epochs=2, update=update), "merged")
    found = load_file(merged.folder / "model.safetensors")
    for name in found:
        expected = (one[name].double() + other[name].double()) / 2
        assert torch.allclose(found[name].double(), expected, atol=1e-6), name


def test_a_merge_that_chooses_needs_rows_to_choose_by(job, trained) -> None:
    for merge in ("wise-ft", "soup"):
        with pytest.raises(SpecError, match="validation rows"):
            trained(job(0, "ER", arguments={"val": 0}, update={"merge": merge}), merge)


def test_an_expert_does_not_decide_which_epoch_is_the_best(job, trained, tmp_path) -> None:
    """RD: the best model is one of the second phase, also where the expert scored higher."""
    plain = job(0, "RD", num_train_epochs=3, learning_rate=0.01, lr_scheduler_type="linear")
    watch = {"kind": "best_model", "monitor": "val_accuracy", "mode": "max"}
    found = trained(parse_spec(plain.model_dump() | {"callbacks": [watch]}), "run")
    assert found.metrics["steps"] == 2 * 3 * 4
    history = json.loads((found.folder / "luthier" / "history.json").read_text())
    evaluations = history["evaluations"]
    assert [e["step"] for e in evaluations] == [4, 8, 12, 16, 20, 24]
    second = max(e["val_accuracy"] for e in evaluations[3:])
    assert found.metrics["after"]["val_accuracy"] == pytest.approx(second)
    rates = history["learning_rates"]
    assert rates[:12] == rates[12:], "each phase has the schedule to itself"
    assert rates[0] == 0.01 > rates[1] > rates[11]


def test_notes_move_towards_what_is_said_now(job, trained, tmp_path) -> None:
    """gamma below 1: what lies beside the remembered rows is no longer what was noted."""
    noted = {}
    for gamma in (1.0, 0.5):
        state, update = (
            tmp_path / f"{gamma}",
            {"updater_options": {"ema_memory_update_gamma": gamma, "offers": "end"}},
        )
        for chunk in (0, 1):
            spec = job(chunk, "DER", state=state, start=state if chunk else None, update=update)
            found = trained(spec, f"{gamma}-{chunk}")
            if not chunk:
                first = load_file(found.folder / "luthier/update/update.safetensors")
        last = load_file(found.folder / "luthier/update/update.safetensors")
        name = next(n for n in last if n.endswith("kept.scores"))
        noted[gamma] = (first[name], last[name])
    assert torch.equal(noted[1.0][0], noted[0.5][0]), "nothing was replayed in the first update"
    old = [i for i, row in enumerate(noted[1.0][1]) if (noted[1.0][0] == row).all(1).any()]
    assert old, "rows of the first update are still remembered, and were not noted anew"
    moved = [i for i in old if not torch.equal(noted[0.5][1][i], noted[1.0][1][i])]
    assert moved == old


def test_another_updater_goes_on_from_a_state(job, trained, tmp_path) -> None:
    """What one handed on means nothing to the next, and what it noted is noted anew."""
    state = tmp_path / "state"
    for chunk, updater in enumerate(("DER", "ER", "DER", "EWC", "LoRA")):
        spec = job(chunk % 2, updater, state=state, start=state if chunk else None,
                   num_train_epochs=1)  # fmt: skip
        assert trained(spec, f"run-{chunk}").metrics["update"]["matrix"]


def test_a_state_with_a_projection_is_of_another_model(job, trained, tmp_path) -> None:
    state = tmp_path / "state"
    for chunk in (0, 1):
        options = {"updater_options": {"projected": 20}}
        trained(job(chunk, "RanPAC", state=state, start=state if chunk else None, update=options),
                f"run-{chunk}")  # fmt: skip
    with pytest.raises(LuthierError, match="another model"):
        trained(job(0, "ER", start=state), "other")
