"""Optimizers and schedules: given by name, by class or ready made; their groups and rates."""

import pytest
import torch
import transformers
from lines import Line, both, fit, line, log, trainer
from torch import nn
from transformers.optimization import Adafactor, AdafactorSchedule, GreedyLR

from luthier.trainer.arguments import ArgumentsError


def ready(optimizer, schedule):
    """A model with an optimizer and a schedule of one's own."""

    def words():
        model = Line()
        made = optimizer(model.parameters())
        return {"model": model, "optimizers": (made, schedule(made))}

    return words


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05)


@pytest.mark.parametrize(
    ("optimizer", "schedule"),
    [
        (sgd, lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1.0)),
        (sgd, lambda o: None),
        (lambda p: Adafactor(p, relative_step=True, warmup_init=True, lr=None), AdafactorSchedule),
    ],
    ids=["sgd", "no schedule", "adafactor without a rate"],
)
def test_of_ones_own(optimizer, schedule, tmp_path) -> None:
    theirs, ours = both(tmp_path, ready(optimizer, schedule))
    assert log(ours) == log(theirs)
    assert line(ours) == line(theirs) != line(fit(trainer(tmp_path / "plain")))
    assert ours.optimizer.param_groups[0]["lr"] >= 0


@pytest.mark.parametrize(
    ("schedule", "name"),
    [
        (lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, factor=0.2, patience=0), "factor"),
        (lambda o: GreedyLR(o, factor=0.8, patience=1, cooldown=2), "cooldown"),
    ],
    ids=["plateau", "greedy"],
)
def test_schedules_of_ones_own_that_wait_for_metrics(schedule, name, tmp_path) -> None:
    settings = {"eval_strategy": "epoch", "num_train_epochs": 4,
                "metric_for_best_model": "eval_loss"}  # fmt: skip
    theirs, ours = both(tmp_path, ready(sgd, schedule), **settings)
    assert log(ours) == log(theirs)
    assert getattr(ours.lr_scheduler, name) == getattr(schedule(sgd(Line().parameters())), name)


@pytest.mark.parametrize(
    ("kind", "words"),
    [("reduce_lr_on_plateau", {"factor": 0.5, "patience": 0}),
     ("greedy", {"patience": 0, "factor": 0.5, "smooth": False})],
)  # fmt: skip
def test_rates_follow_the_metric(kind, words, tmp_path) -> None:
    settings = {"lr_scheduler_type": kind, "lr_scheduler_kwargs": words, "learning_rate": 1.5,
                "eval_strategy": "epoch", "num_train_epochs": 8, "save_strategy": "steps",
                "metric_for_best_model": "eval_loss", "save_steps": 10}  # fmt: skip
    theirs, ours = both(tmp_path, **settings)
    assert log(ours) == log(theirs)
    rates = [entry["learning_rate"] for entry in log(ours) if "learning_rate" in entry]
    assert len(set(rates)) > 1
    again = trainer(tmp_path / "theirs-False", **settings)
    fit(again, resume=str(tmp_path / "theirs-False" / "checkpoint-20"))
    assert log(again)[:-1] == log(ours)[:-1]


@pytest.mark.parametrize(
    ("kind", "words", "last"),
    [
        ("polynomial", {"power": 5.0, "lr_end": 1e-5}, 1e-5),
        ("cosine_with_min_lr", {"min_lr": 1e-5}, 1e-5),
        ("cosine_warmup_with_min_lr", {"min_lr": 1e-5}, 1e-5),
        ("warmup_stable_decay", {"num_decay_steps": 4, "min_lr_ratio": 0.1}, 0.02),
        ("constant_with_warmup", {}, 0.2),
    ],
)
def test_schedules_with_their_words(kind, words, last, tmp_path) -> None:
    made = trainer(tmp_path, lr_scheduler_type=kind, lr_scheduler_kwargs=words,
                   learning_rate=0.2, warmup_steps=2)  # fmt: skip
    made.create_optimizer_and_scheduler(num_training_steps=10)
    rates = []
    for _ in range(11):
        rates.append(made.get_learning_rates()[0])
        made.optimizer.step()
        made.lr_scheduler.step()
    assert max(rates) == 0.2
    assert rates[0] < rates[2]
    assert min(rates[2:]) == pytest.approx(last)
    theirs, ours = both(tmp_path, lr_scheduler_type=kind, lr_scheduler_kwargs=words,
                        warmup_steps=2)  # fmt: skip
    assert log(ours) == log(theirs)


def test_a_schedule_is_told_of_words_that_it_does_not_know(tmp_path) -> None:
    made = trainer(tmp_path, lr_scheduler_type="cosine", lr_scheduler_kwargs={"bend": 1})
    with pytest.raises(TypeError, match="bend"):
        fit(made)


NAMES = ["adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop", "adafactor"]


@pytest.mark.parametrize("name", NAMES)
def test_by_name(name, tmp_path) -> None:
    theirs, ours = both(tmp_path, optim=name, weight_decay=0.1, adam_beta2=0.9)
    assert log(ours) == log(theirs)
    assert type(ours.optimizer.optimizer) is type(theirs.optimizer.optimizer)


@pytest.mark.parametrize("name", ["adamw_bnb_8bit", "galore_adamw", "lomo", "grokadamw",
                                  "schedule_free_adamw", "apollo_adamw", "stable_adamw",
                                  "adamw_torch_8bit"])  # fmt: skip
def test_a_package_that_is_missing_is_named(name, tmp_path) -> None:
    made = trainer(tmp_path, optim=name, optim_target_modules=["slope"])
    with pytest.raises((ImportError, ValueError), match=r"(?i)install|requires"):
        fit(made)


def test_words_for_the_optimizer(tmp_path) -> None:
    settings = {"optim": "rmsprop", "optim_args": "alpha=0.5,momentum=0.3"}
    theirs, ours = both(tmp_path, **settings)
    assert log(ours) == log(theirs)
    assert ours.optimizer.param_groups[0]["alpha"] == 0.5


def test_by_class_and_words(tmp_path) -> None:
    def words():
        return {"optimizer_cls_and_kwargs": (torch.optim.SGD, {"lr": 0.02, "momentum": 0.5})}

    theirs, ours = both(tmp_path, words)
    assert log(ours) == log(theirs)
    assert ours.optimizer.param_groups[0]["momentum"] == 0.5


class Factory:
    """Makes an optimizer from a model, as some that treat matrices apart do."""

    def __call__(self, model, **words):
        return torch.optim.SGD(model.parameters(), **words)


def test_by_a_factory(tmp_path) -> None:
    def words():
        return {"optimizer_cls_and_kwargs": (Factory, {"lr": 0.02})}

    theirs, ours = both(tmp_path, words)
    assert log(ours) == log(theirs)
    assert line(ours) == line(theirs) != (0.0, 0.0)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)
        self.bias = nn.Parameter(torch.zeros(4))


def test_groups_of_decay(tmp_path) -> None:
    model = nn.Sequential(Layer(), nn.ModuleList([Layer()]))
    made = trainer(tmp_path, words={"model": model}, weight_decay=0.1)
    with pytest.raises(ValueError, match="optimizer"):
        made.get_optimizer_group()
    with pytest.raises(ValueError, match="optimizer"):
        made.get_learning_rates()
    made.create_optimizer()
    decayed = {id(model[0].linear.weight), id(model[1][0].linear.weight)}
    assert len(made.get_optimizer_group()) == 2
    first, second = made.optimizer.param_groups
    assert made.get_optimizer_group(model[0].linear.weight) is first
    assert {id(p) for p in first["params"]} == decayed
    assert (first["weight_decay"], second["weight_decay"]) == (0.1, 0.0)
    assert len(first["params"]) + len(second["params"]) == len(list(model.parameters()))
    assert made.get_learning_rates() == [0.1, 0.1]


def test_no_clipping_and_clipping(tmp_path) -> None:
    for norm in (0.0, 1e8, 0.5):
        theirs, ours = both(tmp_path / str(norm), max_grad_norm=norm)
        assert log(ours) == log(theirs)
        assert all("grad_norm" in entry for entry in log(ours)[:-1])
    assert max(entry["grad_norm"] for entry in log(ours)[:-1]) > 0.5  # as it was before


def test_layers_with_rates_of_their_own(tmp_path) -> None:
    class Two(transformers.TrainerCallback):
        rates: tuple = ()

        def on_step_end(self, args, state, control, optimizer=None, **_):
            self.rates = [group["lr"] for group in optimizer.param_groups]

    watch = Two()

    def words():
        model = Line()
        groups = [{"params": [model.slope], "lr": 0.1}, {"params": [model.offset], "lr": 0.01}]
        return {"model": model, "optimizers": (torch.optim.SGD(groups), None),
                "callbacks": [watch]}  # fmt: skip

    theirs, ours = both(tmp_path, words)
    assert log(ours) == log(theirs)
    assert watch.rates == [0.0, 0.0]  # at the end of the linear schedule
    assert ours.get_learning_rates() == [0.0, 0.0]


def test_unknown_names_are_refused(tmp_path) -> None:
    for words in ({"optim": "adamm"}, {"lr_scheduler_type": "steep"}):
        with pytest.raises(ArgumentsError):
            trainer(tmp_path, **words)
