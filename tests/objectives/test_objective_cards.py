"""The cards are complete and current, need no torch, and find every problem before torch does."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import distances, losses, miners, reducers

from luthier import registry
from luthier.errors import SpecError
from luthier.objectives import build_objective, needs, problems
from luthier.objectives.cards import PML
from luthier.objectives.needs import losses_for
from luthier.objectives.papers import DISTANCES, LOSSES, MINERS, REDUCERS, REFUSED
from luthier.objectives.table import filled
from luthier.spec import ObjectiveSpec

ROOT = Path(__file__).parents[2]
FORMS = ("labelled", "pairs", "triplets", "scored", "margin")


def test_the_measured_facts_are_current() -> None:
    path = ROOT / "scripts" / "generate_pml_cards.py"
    found = importlib.util.spec_from_file_location("generate_pml_cards", path)
    assert found is not None
    assert found.loader is not None
    script = importlib.util.module_from_spec(found)
    found.loader.exec_module(script)
    stored = json.loads(script.FILE.read_text())
    measured = json.loads(script.text())
    assert measured == stored, "run scripts/generate_pml_cards.py"


@pytest.mark.parametrize(
    ("module", "known"),
    [
        (losses, set(LOSSES)),
        (miners, set(MINERS)),
        (distances, set(DISTANCES)),
        (reducers, set(REDUCERS)),
    ],
)
def test_every_name_of_the_library_is_a_card_or_refused(
    module: ModuleType, known: set[str]
) -> None:
    there = {name for name in dir(module) if inspect.isclass(getattr(module, name))}
    assert known <= there
    assert there - known <= set(REFUSED)
    assert not known & set(REFUSED)


def test_nothing_is_refused_that_does_not_exist() -> None:
    there = {n for m in (losses, miners, distances, reducers) for n in dir(m)}
    assert set(REFUSED) <= there


def test_the_docs_are_current() -> None:
    path = ROOT / "docs" / "objectives.md"
    text = path.read_text("utf-8")
    assert filled(text) == text, "run python -m luthier.objectives.table docs/objectives.md"


def test_the_loss_of_the_docs_works(tmp_path: Path) -> None:
    """The file of the docs, in a process that has it as a plugin."""
    text = (ROOT / "docs" / "objectives.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n# my_losses.py\n(.*?)```", text, re.DOTALL)
    (tmp_path / "my_losses.py").write_text(code)
    info = tmp_path / "mine-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[luthier.plugins]\nmine = my_losses:cards\n")
    (tmp_path / "test_it.py").write_text(
        "from luthier.testing.losses import LossCase\n"
        "def square(x, y): return sum((a - b) ** 2 for a, b in zip(x, y))\n"
        "class TestIt(LossCase):\n"
        "    loss, form = 'ContrastRatioLoss', 'triplets'\n"
        "    def batch(self, **given):\n"
        "        full = super().batch(**given)\n"
        "        return type(full)(full.columns[:3])\n"
        "    def oracle(self, columns, labels, targets):\n"
        "        rows = list(zip(*columns))\n"
        "        return sum(square(a, p) / square(a, n) for a, p, n in rows) / len(rows)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path, env={"PYTHONPATH": str(tmp_path), "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-3000:]
    assert "12 passed" in ran.stdout


def test_checks_load_no_torch() -> None:
    code = (
        "import sys\n"
        "from luthier.objectives import needs, problems\n"
        "from luthier.spec import ObjectiveSpec\n"
        "problems(ObjectiveSpec(loss='ArcFaceLos'), 'pairs')\n"
        "problems(ObjectiveSpec(miner='TripletMarginMiner'), 'labelled')\n"
        "needs(ObjectiveSpec(loss='MatryoshkaLoss'))\n"
        "loaded = {'torch', 'transformers', 'pytorch_metric_learning'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("kind", ["loss", "miner"])
def test_every_target_is_there(kind: Any) -> None:
    for card in registry.cards(kind):
        assert inspect.isclass(card.load()), card.name
        assert card.summary


def test_every_form_has_losses() -> None:
    assert all(len(losses_for(form)) >= 1 for form in FORMS)
    assert losses_for("margin") == ["MarginMSELoss"]


BAD: list[tuple[dict[str, Any], str | None, str]] = [
    ({"loss": "ArcFaceLos"}, None, r"no loss is called 'ArcFaceLos' \(did you mean 'ArcFaceLoss'"),
    ({"loss": "CrossBatchMemory"}, None, "cannot be used .*wrapper"),
    ({"loss": "Quux"}, None, "known: MultipleNegativesRankingLoss"),
    ({"miner": "TripletMiner"}, None, "did you mean 'TripletMarginMiner'"),
    ({"miner": "EmbeddingsAlreadyPackagedAsTriplets"}, None, "gives its triplets"),
    ({"miner_options": {"margin": 1}}, None, "given without a miner"),
    ({"loss_options": {"margn": 1}}, None, "loss_options.margn: .*did you mean 'margin'"),
    ({"loss_options": {"margin": "big"}}, None, "is a number, not 'big'"),
    ({"loss_options": {"margin": True}}, None, "is a number, not True"),
    ({"loss_options": {"swap": 1}}, None, "is true or false, not 1"),
    ({"loss_options": {"triplets_per_anchor": "some"}}, None, "is one of 'all', a whole number"),
    ({"loss_options": {"triplets_per_anchor": 0}}, None, "is greater than 0"),
    ({"loss_options": {"embedding_regularizer": 1}}, None, "is a Python object, not data"),
    ({"loss": "ArcFaceLoss", "loss_options": {"num_classes": 3}}, None, "known from the data"),
    ({"loss": "RankedListLoss"}, None, "needs the option 'margin'"),
    ({"loss": "SphereFaceLoss", "loss_options": {"margin": 3.5}}, None, "a whole number"),
    ({"loss": "FastAPLoss", "loss_options": {"num_bins": 3.5}}, None, "is a whole number"),
    ({"loss_options": {"distance": "LpDistanc"}}, None, "did you mean 'LpDistance'"),
    ({"loss": "CircleLoss", "loss_options": {"distance": "LpDistance"}}, None, "it takes: Cosine"),
    ({"loss_options": {"distance": "BatchedDistance"}}, None, "a wrapper of a distance object"),
    ({"loss_options": {"distance_options": {"q": 1}}}, None, "LpDistance takes no option 'q'"),
    ({"loss_options": {"distance_options": 3}}, None, "is a mapping of options"),
    ({"loss_options": {"reducer": "PerAnchorReducer"}}, None, "cannot use reducer"),
    ({"loss_options": {"reducer_options": {"low": 1}}}, None, "given without a reducer"),
    ({"loss_options": {"reducer": "ThresholdReducer"}}, None, "needs low, high or both"),
    (
        {"loss_options": {"reducer": "ClassWeightedReducer"}},
        None,
        "needs the option 'weights'",
    ),
    ({"loss": "PNPLoss", "miner": "BatchHardMiner"}, None, "PNPLoss takes no miner"),
    ({"loss": "CoSENTLoss", "miner": "BatchHardMiner"}, None, "CoSENTLoss takes no miner"),
    ({"miner": "BatchHardMiner", "miner_options": {"allowed_pos_range": [1]}}, None, "low, high"),
    ({"miner": "TripletMarginMiner"}, "triplets", "leave the miner out"),
    ({}, "scored", r"needs labelled or pairs or triplets data, .*for scored data use CoSENTLoss"),
    ({"loss": "CoSENTLoss"}, "pairs", "for pairs data use MultipleNegativesRankingLoss"),
    ({"loss": "MultipleNegativesRankingLoss"}, "labelled", "use TripletMarginLoss or ArcFaceLoss"),
    ({"loss": "AngularLoss"}, "triplets", "use MultipleNegativesRankingLoss or TripletMarginLoss"),
    ({"loss": "CLIPLoss"}, "margin", "use MarginMSELoss"),
    ({"loss_optimizer": "Adam"}, None, "no parameters of its own"),
    ({"loss": "MarginLoss", "loss_optimizer": "SGD"}, None, "or set learn_beta"),
    (
        {"loss": "MultipleNegativesRankingLoss", "loss_options": {"scale": 1, "temperature": 1}},
        None,
        "not both",
    ),
    (
        {"loss": "MultipleNegativesRankingLoss", "loss_options": {"temperature": 0}},
        None,
        "is greater than 0",
    ),
    (
        {"loss": "MultipleNegativesRankingLoss", "loss_options": {"similarity": "l2"}},
        None,
        "is one of 'cosine', 'dot'",
    ),
    ({"loss": "MatryoshkaLoss", "loss_options": {"loss": "Quux"}}, None, "no loss is called"),
    ({"loss": "MatryoshkaLoss", "loss_options": {"loss": 3}}, None, "is a name, not 3"),
    (
        {"loss": "MatryoshkaLoss", "loss_options": {"loss": "MatryoshkaLoss"}},
        None,
        "cannot wrap MatryoshkaLoss",
    ),
    (
        {"loss": "MatryoshkaLoss", "loss_options": {"loss_options": {"scal": 1}}},
        None,
        "loss_options.loss_options.scal: .*did you mean 'scale'",
    ),
    (
        {"loss": "MatryoshkaLoss", "loss_options": {"matryoshka_dims": [8, 0]}},
        None,
        "whole numbers above 0",
    ),
    (
        {"loss": "MatryoshkaLoss", "loss_options": {"matryoshka_dims": [8, 8]}},
        None,
        "names a width twice",
    ),
    (
        {
            "loss": "MatryoshkaLoss",
            "loss_options": {"matryoshka_dims": [8, 4], "matryoshka_weights": [1]},
        },
        None,
        "one weight for each",
    ),
    ({"loss": "MatryoshkaLoss"}, "scored", "MultipleNegativesRankingLoss needs pairs or triplets"),
    (
        {"loss_options": {"reducer": "ClassWeightedReducer", "reducer_options": {"weights": [1]}}},
        "triplets",
        "triplets have no classes",
    ),
]


@pytest.mark.parametrize(("spec", "form", "said"), BAD)
def test_problems(spec: dict[str, Any], form: str | None, said: str) -> None:
    found = "\n".join(map(str, problems(ObjectiveSpec(**spec), form)))
    assert re.search(said, found), found


def test_all_problems_at_once() -> None:
    spec = ObjectiveSpec(
        loss_options={"margn": 1, "swap": "yes"}, miner="NoMiner", miner_options={"x": 1}
    )
    assert {p.field for p in problems(spec, None)} == {
        "objective.loss_options.margn",
        "objective.loss_options.swap",
        "objective.miner",
    }


def test_an_unknown_loss_has_no_needs() -> None:
    with pytest.raises(SpecError, match="no loss is called"):
        needs(ObjectiveSpec(loss="Nope"))


def test_needs() -> None:
    triplet = needs(ObjectiveSpec())
    assert triplet.form_used("pairs") == "labelled"
    assert triplet.form_used("triplets") == "triplets"
    assert (triplet.sampler, triplet.sampler_forced, triplet.learns) == ("class", False, False)
    assert "triplets" not in needs(ObjectiveSpec(miner="BatchHardMiner")).forms
    arcface = needs(ObjectiveSpec(loss="ArcFaceLoss"))
    assert (arcface.sampler, arcface.learns, arcface.fixed_classes) == ("random", True, True)
    ranking = needs(ObjectiveSpec(loss="MultipleNegativesRankingLoss"))
    assert ranking.in_batch_negatives
    assert ranking.form_used("pairs") == "pairs"
    assert (ranking.min_rows("pairs"), ranking.min_rows("triplets")) == (2, 1)
    wrapped = needs(ObjectiveSpec(loss="MatryoshkaLoss", loss_options={"loss": "ArcFaceLoss"}))
    assert wrapped == arcface


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 70), st.floats(-2, 80), st.sampled_from(
        ["all", "LpDistance", "CosineSimilarity", "MeanReducer", "hard", "", "dot"]
    ), st.lists(st.integers(-1, 9), max_size=3), st.dictionaries(st.just("p"), st.integers(0, 3)),
)  # fmt: skip
NAMES = [card.name for card in registry.cards("loss")]
MINER_NAMES = [card.name for card in registry.cards("miner")]
OPTIONS = [*sorted({o.name for c in registry.cards("loss") for o in c.options}), "quux"]
MINER_OPTIONS = [*sorted({o.name for c in registry.cards("miner") for o in c.options}), "quux"]


@pytest.mark.filterwarnings("ignore:Values of Tp or Tn are too high")
@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    st.sampled_from(NAMES),
    st.dictionaries(st.sampled_from(OPTIONS), VALUES, max_size=3),
    st.sampled_from([None, None, *MINER_NAMES]),
    st.dictionaries(st.sampled_from(MINER_OPTIONS), VALUES, max_size=2),
    st.sampled_from(FORMS),
)
def test_any_spec_is_built_or_refused(
    name: str, options: dict[str, Any], miner: str | None, mined: dict[str, Any], form: str
) -> None:
    """No traceback of the library's: a job is buildable, or it is a SpecError with fields."""
    spec = ObjectiveSpec(loss=name, loss_options=options, miner=miner, miner_options=mined)
    found = problems(spec, form)
    used = form if found else needs(spec).form_used(form)
    refused: SpecError | None = None
    try:
        build_objective(spec, dim=8, num_classes=3, form=used)
    except SpecError as error:
        refused = error
    assert refused is not None or not found
    if refused is not None:
        assert refused.problems
        assert all(p.field.startswith("objective.") for p in refused.problems)


def test_the_library_is_the_one_that_was_measured() -> None:
    import pytorch_metric_learning

    assert pytorch_metric_learning.__version__ == PML["version"]
