"""A model and data sets at hand, updated in this process."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from luthier.errors import NotFound, SpecError
from luthier.store.states import head
from luthier.tuning import ModelUpdater


def chunk(number: int, rows: int = 48) -> TensorDataset:
    generator = torch.Generator().manual_seed(number)
    labels = 2 * number + torch.arange(rows) % 2
    corners = torch.tensor([[0, 0, 1], [1, 0, 0], [0, 1, 0], [1, 1, 1.0]])
    return TensorDataset(corners[labels] + 0.1 * torch.randn(rows, 3, generator=generator), labels)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 4))


def right(model: nn.Module, rows: TensorDataset) -> float:
    inputs, labels = rows.tensors
    return float((model(inputs).argmax(1) == labels).float().mean())


def test_updates_follow_one_another_and_replay_keeps_the_first(tmp_path: Path) -> None:
    found = {}
    for name in ("FineTuning", "ER"):
        net = model()
        settings = {"memory_size": 30} if name == "ER" else {}
        updater = ModelUpdater(
            net, optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9), updater=name,
            max_epochs=12, accelerator="cpu", **settings,
        )  # fmt: skip
        for number in (0, 1):
            assert updater.update(chunk(number), chunk(number, 20)) is net
            assert right(net, chunk(number)) > 0.9
        found[name] = right(net, chunk(0))
        assert len(updater.metrics["update"]["by_chunk"]) == 2
    assert found["ER"] > 0.9
    assert found["FineTuning"] < 0.3


def test_a_state_is_gone_on_from_and_the_model_of_a_stopped_update_stays(tmp_path: Path) -> None:
    state = tmp_path / "state"
    first = ModelUpdater(
        model(), updater="DER", max_epochs=8, learning_rate=0.02, accelerator="cpu",
        output_state_folder=state, memory_size=12,
    )  # fmt: skip
    first.update(chunk(0), chunk(0, 20))
    assert head(str(state)) == 1
    net = model()
    words = {"input_state_folder": state, "output_state_folder": state, "learning_rate": 0.02}
    second = ModelUpdater(
        net, updater="FineTuning", max_epochs=8, accelerator="cpu", forgetting_budget=0.0, **words
    )
    before = {name: value.clone() for name, value in net.state_dict().items()}
    second.update(chunk(1), chunk(1, 20))
    assert second.metrics["update"]["promoted"] is False
    assert head(str(state)) == 1
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_a_loss_of_ones_own_is_used() -> None:
    calls = []

    def loss(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        calls.append(len(targets))
        return nn.functional.cross_entropy(scores, targets, reduction="none")

    updater = ModelUpdater(
        model(), loss, updater="FineTuning", max_epochs=1, batch_size=16, accelerator="cpu"
    )
    updater.update(chunk(0))
    assert sum(calls) == 48


def test_what_is_wrong_is_said_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="memory_sise"):
        ModelUpdater(model(), memory_sise=3)
    missing = ModelUpdater(model(), input_state_folder=tmp_path / "none", accelerator="cpu")
    with pytest.raises(NotFound):
        missing.update(chunk(0))
