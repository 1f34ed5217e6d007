"""A model of one's own from a configuration file, update after update."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from luthier.engine.control import Interrupted
from luthier.engine.items import Stacked, stacked
from luthier.errors import (
    CorruptBundle,
    DataError,
    LuthierError,
    OutOfMemory,
    SpecError,
    StateConflict,
)
from luthier.registry import cards
from luthier.spec import parse_spec
from luthier.store.states import head, read_state
from luthier.testing import s3

CONFIG = '''
import torch
from torch.utils.data import TensorDataset


class Data:
    """Points around the corners of a cube: four classes, two of them a chunk."""

    def __init__(self, chunk_id, rows, val):
        self.chunk, self.rows, self.val = chunk_id, rows, val

    def prepare_data(self):
        pass

    def setup(self):
        generator = torch.Generator().manual_seed(self.chunk)
        labels = 2 * self.chunk + torch.arange(self.rows + self.val) % 2
        corners = torch.tensor([[0, 0, 1], [1, 0, 0], [0, 1, 0], [1, 1, 1.0]])
        inputs = corners[labels] + 0.2 * torch.randn(len(labels), 3, generator=generator)
        self.parts = [
            TensorDataset(inputs[: self.rows], labels[: self.rows]),
            TensorDataset(inputs[self.rows :], labels[self.rows :]),
        ]

    def train_data(self):
        return self.parts[0]

    def val_data(self):
        return self.parts[1]


def data_module_fn(chunk_id: int, rows: int = 44, val: int = 20):
    return Data(chunk_id, rows, val)


def model_fn(model_state_url=None, width: int = 12):
    return torch.nn.Sequential(
        torch.nn.Linear(3, width), torch.nn.Tanh(), torch.nn.Dropout(0.1), torch.nn.Linear(width, 4)
    )
'''
#: These train the prompts of a transformer: see test_prompted.py.
PROMPTED = ("L2P", "S-Prompt")
UPDATERS = [card.name for card in cards("updater") if card.name not in PROMPTED]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "config.py"
    file.write_text(CONFIG)
    return file


@pytest.fixture
def job(config, tmp_path):
    def make(
        chunk=0, updater="ER", start=None, state=None, arguments=None, update=None, **training
    ):
        words = {"learning_rate": 0.1, "num_train_epochs": 3, "per_device_train_batch_size": 8}
        words |= {"optim": "SGD", "optim_args": {"momentum": 0.9}, "device": "cpu"}
        urls = {"input_state_url": start and str(start), "output_state_url": state and str(state)}
        return parse_spec({
            "task": "program",
            "model": {"name": str(config)},
            "data": {"train": {"uri": str(config)}},
            "program": {"config_file": str(config),
                        "arguments": {"chunk_id": chunk, **(arguments or {})}},
            "update": {"updater": updater, "memory_size": 12, **urls, **(update or {})},
            "training": words | training,
        })  # fmt: skip

    return make


@pytest.mark.parametrize("updater", UPDATERS)
def test_an_update_that_was_interrupted_is_the_uninterrupted_one(
    updater, job, trained, tmp_path, files_of
):
    """In the first update, and in the second, which has a memory to go on from."""
    start = None
    for chunk in (0, 1):
        state = tmp_path / f"state-{chunk}"
        spec = job(chunk, updater, start=start, state=state)
        whole = trained(spec, f"whole-{chunk}")
        other = job(chunk, updater, start=start, state=tmp_path / f"other-{chunk}")
        for stop in (2, whole.metrics["steps"] // 2 - 1):  # within an epoch, and after one
            if not whole.metrics["steps"]:  # the head is set, nothing is trained
                break
            with pytest.raises(Interrupted):
                trained(other, f"parts-{chunk}", stop=stop)
        parts = trained(other, f"parts-{chunk}")
        assert files_of(parts.folder) == files_of(whole.folder)
        assert parts.metrics["update"] == whole.metrics["update"]
        start = state


@pytest.mark.parametrize("updater", ["ER", "DER", "Offline-ER", "iCaRL", "Joint"])
def test_what_was_learnt_stays(updater, job, trained, tmp_path) -> None:
    """Plain training forgets the first chunk, these do not; memory and matrix are as told."""
    kept = {}
    for name in ("FineTuning", updater):
        state, found = tmp_path / name, None
        for chunk in (0, 1):
            start = state if chunk else None
            spec = job(chunk, name, start=start, state=state, num_train_epochs=20,
                       update={"memory_size": 0 if name == "FineTuning" else 12})  # fmt: skip
            found = trained(spec, f"{name}-{chunk}")
        update = found.metrics["update"]
        assert [len(row) for row in update["matrix"]] == [1, 2]
        assert update["matrix"][0][0] > 0.9
        kept[name] = update["by_chunk"][0]
        assert update["forgetting"] == pytest.approx(update["matrix"][0][0] - kept[name])
        assert head(str(state)) == 2
    assert kept["FineTuning"] < 0.3
    assert kept[updater] > 0.8


def test_the_memory_holds_rows_and_little_else(job, trained, tmp_path) -> None:
    """Raw items, once: within 1.2 of their bytes."""
    spec = job(0, "ER", state=tmp_path / "state", arguments={"rows": 2000},
               update={"memory_size": 1000}, num_train_epochs=1)  # fmt: skip
    folder = trained(spec).folder / "luthier" / "update"
    memory = Stacked.load(folder / "memory.safetensors")
    assert len(memory) == 1000
    raw = 1000 * (3 * 4 + 8)
    assert (folder / "memory.safetensors").stat().st_size <= 1.2 * raw


def test_a_row_is_offered_once_however_many_epochs_there_are(job, trained, tmp_path) -> None:
    for offers in ("online", "end"):
        options = {"updater_options": {"offers": offers}}
        spec = job(0, "ER", state=tmp_path / f"{offers}-state", update=options, num_train_epochs=4)
        saved = json.loads(
            (trained(spec, offers).folder / "luthier/update/update.json").read_text()
        )
        parts = dict(saved["parts"]["__dict__"])
        assert dict(parts["memory"]["__dict__"])["seen"] == 44
        assert saved["seen"] == 44
        assert saved["classes"] == [0, 1]


def test_what_is_remembered_was_there(job, trained, tmp_path) -> None:
    state = tmp_path / "state"
    for chunk in (0, 1):
        trained(job(chunk, "DER", start=state if chunk else None, state=state), f"run-{chunk}")
    bundle = read_state(str(state), tmp_path / "cache").bundle
    memory = Stacked.load(bundle.path / "luthier/update/memory.safetensors")
    scope: dict = {}
    exec(CONFIG, scope)
    rows = set()
    for chunk in (0, 1):
        data = scope["data_module_fn"](chunk)
        data.setup()
        rows |= {(tuple(x.tolist()), int(y)) for x, y in data.train_data()}
    taken = memory.take(np.arange(len(memory)))
    held = {(tuple(x.tolist()), int(y)) for x, y in zip(*taken, strict=True)}
    assert len(held) == 12
    assert held <= rows
    assert {y for _, y in held} == {0, 1, 2, 3}
    noted = load_file(bundle.path / "luthier/update/update.safetensors")
    assert any(tensor.shape == (12, 4) for tensor in noted.values())


def test_of_two_updates_of_one_state_the_second_is_told(job, trained, tmp_path) -> None:
    state = tmp_path / "state"
    trained(job(0, state=state), "first")
    one, other = (job(1, start=state, state=state, seed=seed) for seed in (1, 2))
    with pytest.raises(Interrupted):
        trained(other, "slow", stop=2)
    trained(one, "quick")
    with pytest.raises(StateConflict):
        trained(other, "slow")
    assert head(str(state)) == 2


def test_committing_again_changes_nothing(job, trained, tmp_path) -> None:
    spec = job(0, state=tmp_path / "state")
    trained(spec)
    trained(spec)  # as after a crash between the commit and the end of the run
    assert head(str(tmp_path / "state")) == 1


@pytest.mark.parametrize("point", ["state.copied", "state.stored", "state.committed"])
def test_a_result_that_was_not_committed_is_committed_by_the_next_attempt(
    point, job, trained, tmp_path, monkeypatch, files_of
) -> None:
    state = tmp_path / "state"
    spec = job(0, state=state)
    monkeypatch.setenv("LUTHIER_FAILPOINT", f"{point}=eio")
    with pytest.raises((LuthierError, OSError)):
        trained(spec)
    monkeypatch.delenv("LUTHIER_FAILPOINT")
    done = trained(spec)
    assert head(str(state)) == 1
    assert files_of(read_state(str(state), tmp_path / "cache").bundle.path) == files_of(done.folder)


def test_every_chunk_is_tested_also_those_to_come(config, job, trained) -> None:
    config.write_text(
        CONFIG.replace(
            "    def val_data(self):",
            "    def test_data(self):\n        return [Data(c, 6, 0).ready() for c in (0, 1)]\n\n"
            "    def ready(self):\n        self.setup()\n        return self.parts[0]\n\n"
            "    def val_data(self):",
        )
    )
    first, second = trained(job(0, num_train_epochs=20)).metrics["test"]
    assert first["accuracy"] == 1.0
    assert second["accuracy"] == 0.0
    assert second["loss"] > first["loss"]


def test_a_missing_state_is_an_error(job, trained, tmp_path) -> None:
    with pytest.raises(LuthierError, match="nowhere"):
        trained(job(1, start=tmp_path / "nowhere"))


def test_a_state_of_another_model_is_told(job, trained, tmp_path) -> None:
    trained(job(0, state=tmp_path / "state"), "first")
    with pytest.raises(CorruptBundle, match="model_fn"):
        trained(job(1, start=tmp_path / "state", arguments={"width": 5}), "second")


BROKEN = {
    "no data": (CONFIG.replace("def data_module_fn", "def other"), SpecError, "data_module_fn"),
    "raises": (CONFIG + "\n1 / 0\n", LuthierError, "ZeroDivisionError"),
    "raises in model_fn": (
        CONFIG.replace("    return torch.nn.S", "    raise KeyError('weights')\n    torch.nn.S"),
        LuthierError, r"model_fn\(\) raised KeyError",
    ),
    "no module": (
        CONFIG.replace("return torch.nn.Sequential(", "return str("), LuthierError, "model_fn",
    ),
    "needs an argument": (CONFIG.replace("rows: int = 44", "rows: int"), SpecError, "'rows'"),
    "no rows": (CONFIG.replace("rows: int = 44", "rows: int = 0"), DataError, "train_data"),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_what_is_wrong_with_the_file_is_told(name, config, job, trained) -> None:
    text, kind, message = BROKEN[name]
    config.write_text(text)
    with pytest.raises(kind, match=message):
        trained(job(0))


REGRESSION = (
    CONFIG.replace("[: self.rows], labels[: self.rows])", "[: self.rows], inputs[: self.rows, :1])")
    .replace("[self.rows :], labels[self.rows :])", "[self.rows :], inputs[self.rows :, :1])")
    .replace("Linear(width, 4)", "Linear(width, 1)")
    + "\n\ndef loss_fn():\n    return torch.nn.MSELoss(reduction='none')\n"
)


@pytest.mark.parametrize("updater", UPDATERS)
def test_numbers_instead_of_classes(updater, config, job, trained, tmp_path) -> None:
    """Regression, twice; what needs classes says so."""
    config.write_text(REGRESSION)
    (card,) = (card for card in cards("updater") if card.name == updater)
    if card.facts["labels"]:
        with pytest.raises(SpecError, match="is for classes"):
            trained(job(0, updater))
        return
    state = tmp_path / "state"
    for chunk in (0, 1):
        spec = job(chunk, updater, start=state if chunk else None, state=state)
        found = trained(spec, f"run-{chunk}").metrics
    assert found["update"]["score"] == "loss"
    assert len(found["update"]["by_chunk"]) == 2
    assert "val_accuracy" not in found["after"]


def test_a_step_that_does_not_fit_in_memory_is_told(config, job, trained) -> None:
    """Its loss is made of all its rows together, so it is not cut into pieces in silence."""
    config.write_text(
        CONFIG + "\n\ndef loss_fn():\n    def loss(scores, targets):\n"
        "        raise RuntimeError('DefaultCPUAllocator: not enough memory')\n    return loss\n"
    )
    with pytest.raises(OutOfMemory, match="does not fit"):
        trained(job(0, arguments={"val": 0}))


def test_a_file_that_changed_since_is_refused(job, trained) -> None:
    spec = job(0)
    program = spec.program.model_dump() | {"sha256": "0" * 64}
    with pytest.raises(SpecError, match="has changed since"):
        trained(parse_spec(spec.model_dump() | {"program": program}))


def test_items_of_other_shapes_are_told() -> None:
    with pytest.raises(DataError, match="row 1"):
        stacked([(torch.zeros(3), 0), (torch.zeros(4), 0)])


def test_transforms_are_applied_late(config, job, trained, tmp_path) -> None:
    """What is remembered is raw; training rows and remembered rows have transforms of their own."""
    config.write_text(
        CONFIG.replace("corners[labels] +", "5 * corners[labels] +") + "\n\nSEEN = []\n"
        "def train_transform():\n    return lambda x: SEEN.append('train') or x / 5\n"
        "def test_transform():\n    return lambda x: SEEN.append('test') or x / 5\n"
        "def buffer_transform():\n    return lambda x: SEEN.append('buffer') or x / 5\n"
    )
    state = tmp_path / "state"
    for chunk in (0, 1):
        trained(job(chunk, start=state if chunk else None, state=state), f"run-{chunk}")

    (module,) = (
        m
        for n, m in sys.modules.items()
        if n.startswith("luthier_config_") and m.__dict__.get("SEEN")
    )
    assert set(module.SEEN) == {"train", "test", "buffer"}
    memory = Stacked.load(
        read_state(str(state), tmp_path / "cache").bundle.path / "luthier/update/memory.safetensors"
    )
    assert float(memory.columns["item.0"].abs().max()) > 3


def test_a_state_in_a_bucket(job, trained, tmp_path, monkeypatch, files_of) -> None:
    """Two updates by way of a real S3 server give what two by way of a folder give."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setenv("HOME", str(tmp_path))
    with s3.server(tmp_path) as server:
        server.client().create_bucket(Bucket="states")
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        found = {}
        for kind, state in (("bucket", "s3://states/first"), ("folder", str(tmp_path / "first"))):
            for chunk in (0, 1):
                spec = job(chunk, "DER", start=state if chunk else None, state=state)
                found[kind] = trained(spec, f"{kind}-{chunk}")
            assert head(state) == 2
        assert files_of(found["bucket"].folder) == files_of(found["folder"].folder)


OWN_FUNCTIONS = """


def optimizer_fn(step_size: float = 0.2):
    return lambda parameters: torch.optim.RMSprop(parameters, lr=step_size)


def lr_scheduler_fn():
    return lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5), "epoch"


class Wrong:
    def reset(self):
        self.count = 0

    def update(self, scores, targets):
        self.count += int((scores.argmax(1) != targets).sum())

    def compute(self):
        return self.count


def metrics_fn():
    return {"wrong": Wrong()}
"""


def test_an_optimizer_a_schedule_and_metrics_of_the_file(config, job, trained, files_of) -> None:
    """They are what trains and measures, and survive an interruption."""
    config.write_text(CONFIG + OWN_FUNCTIONS)
    spec = job(0, arguments={"step_size": 0.08})
    whole = trained(spec, "whole")
    history = json.loads((whole.folder / "luthier/history.json").read_text())
    per_epoch = whole.metrics["steps"] // 3
    assert history["learning_rates"][::per_epoch] == pytest.approx([0.08, 0.04, 0.02])
    after = whole.metrics["after"]
    assert after["val_wrong"] == round(20 * (1 - after["val_accuracy"]))
    with pytest.raises(Interrupted):
        trained(spec, "parts", stop=per_epoch + 1)
    assert files_of(trained(spec, "parts").folder) == files_of(whole.folder)
