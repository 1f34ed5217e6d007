"""The door of clicks: which leaf each parameter and each setting is, and what becomes a search."""

import pytest

from luthier.clicks import (
    DOT_PRODUCT,
    EUCLIDEAN_DISTANCE,
    CosineProbMarginRankingLoss,
    EarlyStopping,
    FineTuningParams,
    FineTuningSettings,
    RankingLoss,
)
from luthier.clicks.parameters import OF_DATA
from luthier.doors.clicks import ClickData, Part, clicks_spec, data_variants, params_of
from luthier.doors.clicks_search import PATHS
from luthier.errors import SpecError
from luthier.search import hp, loguniform
from luthier.search.space import applied, read_space
from luthier.spec import Source

DATA = ClickData(
    {(only, share): Part(Source(uri=f"/rankings/{only}-{share}"), 100)
     for only in (True, False) for share in (0.1, 0.3, 0.5)},
    eval=Source(uri="/held-out"), queries=Source(uri="/queries"), index=Source(uri="/index"),
)  # fmt: skip
GIVEN = {
    "num_fixed_layers": 1, "query_lr": 1e-4, "items_lr": 5e-4, "query_weight_decay": 1e-4,
    "items_weight_decay": 1e-5, "margin": 0.2, "not_irrelevant_only": False,
    "negative_downsampling": 0.5, "min_abs_difference_threshold": 0.1,
    "max_abs_difference_threshold": 0.9, "examples_order": [6, 11],
}  # fmt: skip
PARAMS = FineTuningParams(**GIVEN)
#: The seed's own.
INITIAL_PARAMS = {
    "num_fixed_layers": [0, 1, 2],
    "query_lr": [1e-4, 5e-4, 1e-3],
    "items_lr": [1e-4, 5e-4, 1e-3],
    "query_weight_decay": [0.0, 1e-5, 1e-4],
    "items_weight_decay": [0.0, 1e-5, 1e-4],
    "margin": [0.1, 0.2, 0.5],
    "not_irrelevant_only": [True, False],
    "negative_downsampling": [0.1, 0.3, 0.5],
}


def _settings(**changes):
    return FineTuningSettings(**{"loss_func": CosineProbMarginRankingLoss(), **changes})


def _spec(params=PARAMS, data=DATA, words=None, **changes):
    return clicks_spec("a-model", params, _settings(**changes), data, **(words or {}))


def test_every_parameter_is_a_leaf_or_of_the_data():
    assert {*PATHS, *OF_DATA} == set(FineTuningParams.model_fields)


def test_parameters_and_settings_become_this_job():
    spec = _spec(
        step_size=35, gamma=0.8, num_epochs=3, batch_size=2, test_each_n_inputs=0.5,
        gradient_accumulation_steps=5, optimizer="SGD", towers="two",
        early_stopping=EarlyStopping(patience=4), words={"seed": 7, "device": "cpu"},
    )  # fmt: skip
    found = spec.model_dump(mode="json", exclude_defaults=True)
    assert found["model"] == {"name": "a-model", "num_fixed_layers": 1, "towers": "two"}
    assert found["data"] == {"train": {"uri": "/rankings/False-0.5"}, "eval": {"uri": "/held-out"}}
    assert found["objective"] == {
        "loss": "CosineProbMarginRankingLoss",
        "loss_options": {
            "margin": 0.2, "similarity": "cosine", "min_abs_difference_threshold": 0.1,
            "max_abs_difference_threshold": 0.9,
        },
    }  # fmt: skip
    assert found["training"] == {
        "optim": "SGD", "optim_args": {"weight_decay": 1e-5}, "learning_rate": 5e-4,
        "query_learning_rate": 1e-4, "query_weight_decay": 1e-4, "examples_order": [6, 11],
        "lr_scheduler_type": "step", "lr_scheduler_kwargs": {"step_size": 35, "gamma": 0.8},
        "num_train_epochs": 3.0, "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 5, "eval_steps": 5, "seed": 7, "device": "cpu",
    }  # fmt: skip
    evaluation, stop = spec.callbacks
    assert (evaluation.kind, evaluation.limit, evaluation.exclude_self) == ("evaluation", 10, False)
    assert (stop.kind, stop.monitor, stop.mode, stop.patience) == (
        "early_stopping", "val_loss", "min", 4,
    )  # fmt: skip


def test_all_examples_alone_are_no_curriculum():
    spec = _spec(FineTuningParams(**{**GIVEN, "examples_order": ["all_examples"]}))
    assert spec.training.examples_order == ()


@pytest.mark.parametrize(
    ("ranker", "name"), [(DOT_PRODUCT, "dot"), (EUCLIDEAN_DISTANCE, "euclidean")]
)
def test_the_ranker_is_what_loss_and_evaluation_compare_by(ranker, name):
    spec = _spec(ranker=ranker, is_similarity=name == "dot")
    assert spec.objective.loss_options["similarity"] == name
    assert spec.callbacks[0].distance == name


def test_a_loss_without_a_margin_takes_none():
    with pytest.raises(SpecError, match=r"(?s)margin: LambdaLoss has no margin.*min_abs_"):
        _spec(loss_func="LambdaLoss")
    plain = {**GIVEN, "margin": None, "min_abs_difference_threshold": 0.0,
             "max_abs_difference_threshold": 1.0}  # fmt: skip
    spec = _spec(FineTuningParams(**plain), loss_func=RankingLoss("LambdaLoss", {"k": 5}))
    assert spec.objective.loss_options == {"k": 5, "similarity": "cosine"}


def test_weights_that_are_inverse_propensities_are_of_the_positive():
    assert _spec(words={"weighting": "positive"}).objective.loss_options["weighting"] == "positive"


def test_a_monitor_that_nothing_measures():
    blind = ClickData(DATA.parts)
    with pytest.raises(SpecError, match=r"nothing measures 'val_loss'.*strict=False"):
        _spec(data=blind, early_stopping=EarlyStopping())
    assert _spec(data=blind, early_stopping=EarlyStopping(strict=False)).callbacks == ()
    kept = _spec(data=blind, early_stopping=EarlyStopping(monitor="train_loss"))
    assert kept.callbacks[0].monitor == "train_loss"


def test_the_seeds_choices_are_a_search_by_tpe():
    spec = _spec(INITIAL_PARAMS, words={"search": {"max_trials": 10}})
    assert (spec.search.algorithm, spec.search.max_trials) == ("tpe", 10)
    space = read_space(spec.search.space)
    parameters = space.parameters()
    assert {name: parameter.count for name, parameter in parameters.items()} == {
        "model.num_fixed_layers": 3, "training.query_learning_rate": 3,
        "training.learning_rate": 3, "training.query_weight_decay": 3,
        "training.optim_args.weight_decay": 3, "objective.loss_options.margin": 3, "data": 6,
    }  # fmt: skip
    for seed in range(20):  # what any trial trains with is a set of the choices
        trial = applied(spec, space.values(space.sample(seed)))
        params = params_of(trial, {part.train.uri: v for v, part in DATA.parts.items()}, {})
        assert all(params[name] in choices for name, choices in INITIAL_PARAMS.items())
        FineTuningParams(**params)


def test_ranges_of_hyperopt_and_of_ours():
    given = {**INITIAL_PARAMS, "query_lr": hp.loguniform("q", -9, -7),
             "margin": hp.choice("m", [0.2]), "items_lr": loguniform(1e-5, 1e-3)}  # fmt: skip
    space = _spec(given).search.space
    assert space["training.learning_rate"] == {
        "type": "float", "lower": 1e-5, "upper": 1e-3, "log": True, "step": None,
    }  # fmt: skip
    assert space["training.query_learning_rate"]["log"] is True
    assert "objective.loss_options.margin" not in space  # one choice is no choice
    assert data_variants(given) == list(DATA.parts)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"query_rl": [1e-4]}, "did you mean 'query_lr'"),
        ({"negative_downsampling": hp.uniform("n", 0.1, 1.0)}, "changes the data.*give choices"),
        ({"negative_downsampling": [0.1, 2.0]}, "less than or equal to 1"),
        ({"margin": [0.1, "wide"]}, "margin"),
        ({"examples_order": [[11], [12]]}, "no type of examples is 12"),
        ({"query_lr": [0.0, 1e-4]}, "query_lr"),
    ],
)
def test_wrong_choices_are_told_by_name(changes, said):
    with pytest.raises(SpecError, match=said):
        _spec({**INITIAL_PARAMS, **changes})


def test_earlier_sets_are_tried_first_where_they_are_of_this_space():
    inside = {**GIVEN, "query_weight_decay": 0, "examples_order": [11]}
    spec = _spec(INITIAL_PARAMS, words={"initial": [inside, {**inside, "margin": 0.3}, inside]})
    (point,) = spec.search.initial
    assert point["data.train.uri"] == "/rankings/False-0.5"
    assert point["objective.loss_options.margin"] == 0.2
    space = read_space(spec.search.space)
    values = space.values(space.point_of(point))
    assert applied(spec, values).data.train.uri == "/rankings/False-0.5"


def test_a_search_of_nothing_is_refused():
    with pytest.raises(SpecError, match="there is nothing to search"):
        _spec(words={"search": {"max_trials": 3}})


def test_variants_that_are_the_same_data_are_one():
    same = {variant: Part(Source(uri="/rankings/one"), 100) for variant in DATA.parts}
    given = {**GIVEN, "not_irrelevant_only": [True, False], "query_lr": [1e-4, 1e-3],
             "examples_order": [[11]]}  # fmt: skip
    spec = _spec(given, data=ClickData(same, queries=DATA.queries))
    assert set(spec.search.space) == {"training.query_learning_rate"}
