"""What is published of several weights, and which layers are watched."""

import pytest
import torch
from torch import nn

from luthier.engine.choosing import Scored, choose
from luthier.engine.program_learner import Watched
from luthier.testing.pupils import SmallPupil
from luthier.tuning import MultiLayerPerceptron
from luthier.updaters.averages import Complementary
from luthier.updaters.merging import build_merge
from luthier.updaters.updater import Updater


class Judged:
    """Rows whose score is how near the model's bias is to a number."""

    def __init__(self, best: float, name: str = "correct") -> None:
        self.best, self.name = best, name

    def scores(self, found):
        away = abs(found - self.best)
        return self.name, torch.tensor([away if self.name == "loss" else -away]).numpy()


def measured(model: nn.Linear) -> float:
    return float(model.bias.detach())


class Copies(Complementary):
    """Copies that stand at 1 and 2 while the model is at 0."""

    def candidates(self, model):
        self._copies = (biased(1.0), biased(2.0))
        return super().candidates(model)


def biased(value: float) -> nn.Linear:
    model = nn.Linear(2, 1)
    nn.init.constant_(model.bias, value)
    return model


@pytest.mark.parametrize("name", ["correct", "loss"])
@pytest.mark.parametrize(
    ("best", "chosen"), [(0.1, "working"), (1.2, "stable"), (1.9, "plastic"), (0.5, "working")]
)
def test_the_copy_that_is_best_on_validation_rows(best, chosen, name) -> None:
    model, part = biased(0.0), Copies()
    told = choose(Updater([part]), None, Scored(model, measured, Judged(best, name)))
    assert measured(model) == {"working": 0.0, "stable": 1.0, "plastic": 2.0}[chosen]
    assert [row["name"] for row in told["table"] if row["chosen"]] == [chosen]
    distances = [abs(best - at) for at in (0.0, 1.0, 2.0)]
    sign = 1 if name == "loss" else -1
    assert [row["score"] for row in told["table"]] == pytest.approx([sign * d for d in distances])
    assert part.hand_on()["working"]["bias"].tolist() == [0.0], "what learns on is the model"


def test_one_that_is_asked_for_is_not_measured() -> None:
    model = biased(0.0)

    def never(_model):
        raise AssertionError("nothing is to be chosen")

    told = choose(Updater([Copies(published="plastic")]), None, Scored(model, never, Judged(0)))
    assert measured(model) == 2.0
    assert told["table"] == [{"name": "plastic", "chosen": True}]


def test_without_rows_it_is_the_working_model() -> None:
    model = biased(0.0)
    choose(Updater([Copies()]), None, Scored(model, lambda _: None, Judged(0)))
    assert measured(model) == 0.0


def test_the_next_update_learns_on_with_the_working_model() -> None:
    pupil, part = SmallPupil(torch.zeros(4, 3), torch.arange(4), 4), Complementary()
    part.start(pupil)
    with torch.no_grad():
        for weight in pupil.model.parameters():
            weight.add_(1.0)
    part.stepped(pupil.model)
    working = [w.detach().clone() for w in pupil.model.parameters()]
    told = part.candidates(pupil.model)
    with torch.no_grad():
        for weight in pupil.model.parameters():
            weight.zero_()  # what was published is something else
    again = Complementary()
    again.start(pupil, part.hand_on())
    assert all(torch.equal(a, b) for a, b in zip(pupil.model.parameters(), working, strict=True))
    stable = told["stable"]["0.weight"]
    assert torch.equal(again.candidates(pupil.model)["stable"]["0.weight"], stable)
    assert not torch.equal(stable, working[0]), "the copies stay where they were"


def test_merging_is_asked_for_and_wins() -> None:
    model, merge = biased(4.0), build_merge("wise-ft", {"points": 2})
    assert merge is not None
    merge.start({n: t.clone() for n, t in biased(0.0).state_dict().items()}, None)
    told = choose(Updater([Copies()]), merge, Scored(model, measured, Judged(2.1)))
    assert told["kind"] == "wise-ft"
    assert measured(model) == 2.0


def test_layers_are_watched_behind_their_activation() -> None:
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.Linear(4, 2)
    )
    inputs = torch.randn(6, 3)
    with Watched(model) as found:
        model(inputs)
    assert [f.shape for f in found] == [(6, 5), (6, 4)]
    assert torch.equal(found[0], model[2](model[1](inputs)))
    assert torch.equal(found[1], model[3](found[0]))


def test_a_model_says_which_layers_are_watched() -> None:
    model = MultiLayerPerceptron(3, 2, num_hidden_layers=1, hidden_size=4)
    with Watched(model) as found:
        model(torch.randn(6, 3))
    assert [f.shape for f in found] == [(6, 4), (6, 4)]
    assert all(bool((f >= 0).all()) for f in found), "behind the activations"
