"""The cards of all losses and miners. Imports no torch.

Facts of a loss card (see docs/objectives.md):

    works_on            "labels": embeddings with class labels; "rows": one row of texts at a time
    learns              whether it has parameters: True, False, or the option that gives it some
    sampler             what ``sampler="auto"`` means for labelled data: "class" or "random"
    sampler_forced      whether the other sampler is refused
    in_batch_negatives  other rows of the batch are negatives: no text may occur twice in it
    min_rows            rows without which the loss says nothing
    fills               options that we fill in: {option: "dim" or "num_classes"}
    takes_miner, takes_tuples, distance, distances, reducers    pytorch-metric-learning's only
    choices             option → what it may be, where that is not any number
    positive, whole     options that must be greater than 0, that must be whole numbers
    wraps               it takes another loss by name
"""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from luthier.objectives.papers import LOSSES, MINERS
from luthier.objectives.ranking_cards import RANKING_CARDS
from luthier.registry import Card, Option

#: What ``scripts/generate_pml_cards.py`` measured.
PML: dict[str, Any] = json.loads((files("luthier.objectives") / "pml.json").read_text("utf-8"))

#: Losses that we repair; see repairs.py.
_REPAIRED = {
    "DynamicSoftMarginLoss",
    "HistogramLoss",
    "LargeMarginSoftmaxLoss",
    "ManifoldLoss",
    "NCALoss",
    "SmoothAPLoss",
    "SphereFaceLoss",
    "TupletMarginLoss",
}
#: Losses on pairs of a batch: without two items of a class they say nothing, so class-balanced
#: batches are not a choice. SmoothAP needs equally many items of each class.
_CONTRASTIVE = {
    "ContrastiveLoss",
    "NTXentLoss",
    "NPairsLoss",
    "SignalToNoiseRatioContrastiveLoss",
    "SmoothAPLoss",
    "SupConLoss",
}
#: Losses that compare items with learned centres, or with themselves: any batch will do.
_ANY_BATCH = {"InstanceLoss", "ManifoldLoss"}

_STRATEGIES = ("easy", "semihard", "hard", "all")
_CHOICES: dict[str, dict[str, tuple[Any, ...]]] = {
    "TripletMarginLoss": {"triplets_per_anchor": ("all", int)},
    "MarginLoss": {"triplets_per_anchor": ("all", int), "num_classes": (None, "auto")},
    "PNPLoss": {"variant": ("Ds", "Dq", "Iu", "Ib", "O")},
    "LargeMarginSoftmaxLoss": {"margin": (int,)},
    "SphereFaceLoss": {"margin": (int,)},
    "TripletMarginMiner": {"type_of_triplets": ("easy", "semihard", "hard", "all")},
    "BatchEasyHardMiner": {
        "pos_strategy": _STRATEGIES,
        "neg_strategy": _STRATEGIES,
        "allowed_pos_range": (None, list),
        "allowed_neg_range": (None, list),
    },
    "BatchHardMiner": {"allowed_pos_range": (None, list), "allowed_neg_range": (None, list)},
}
#: Options that divide or scale, so that 0 or less makes no sense.
_POSITIVE = {
    "K", "anneal", "base_temperature", "centers_per_class", "delta", "eps", "gamma", "n_bins",
    "neg_per_bin", "num_bins", "pos_per_bin", "scale", "softmax_scale", "sub_centers",
    "temperature", "triplets_per_anchor",
}  # fmt: skip


#: Options that count something; the library cuts a fraction off in silence.
_WHOLE = {
    "K", "centers_per_class", "n_bins", "neg_per_bin", "num_bins", "pos_per_bin", "sub_centers",
}  # fmt: skip


def _options(name: str, entry: dict[str, Any]) -> tuple[Option, ...]:
    found = [Option(option, required=True) for option in entry.get("required", ())]
    found += [Option(option, default) for option, default in entry["options"].items()]
    if entry.get("distances"):
        doc = f"one of {', '.join(entry['distances'])}"
        found += [Option("distance", entry["distance"], doc), Option("distance_options", {})]
    if entry.get("reducers"):
        doc = f"one of {', '.join(entry['reducers'])}; None: the loss's own"
        found += [Option("reducer", None, doc), Option("reducer_options", {})]
    return tuple(found)


def _loss(name: str, entry: dict[str, Any]) -> Card:
    summary, paper = LOSSES[name]
    rows = entry["works_on"] == "rows"
    classified = "num_classes" in entry.get("fills", {}).values()
    forms = ("pairs",) if rows else ("labelled", "pairs")
    module = "luthier.objectives.repairs" if name in _REPAIRED else "pytorch_metric_learning.losses"
    return Card(
        kind="loss",
        name=name,
        target=f"{module}:{name}",
        summary=summary,
        options=_options(name, entry),
        forms=forms + (("triplets",) if entry.get("takes_tuples") else ()),
        paper=paper,
        facts={
            "family": "pml",
            "works_on": entry["works_on"],
            "learns": "learn_beta" if name == "MarginLoss" else entry["learns"],
            "sampler": "random" if rows or classified or name in _ANY_BATCH else "class",
            "sampler_forced": name in _CONTRASTIVE,
            "min_rows": 1 if classified or name in _ANY_BATCH else 2,
            "fills": entry.get("fills", {}),
            "takes_miner": entry.get("takes_miner", False),
            "takes_tuples": entry.get("takes_tuples", False),
            "distance": entry.get("distance"),
            "distances": tuple(entry.get("distances", ())),
            "reducers": tuple(entry.get("reducers", ())),
            "choices": _CHOICES.get(name, {}),
            "positive": tuple(o for o in entry["options"] if o in _POSITIVE),
            "whole": tuple(o for o in entry["options"] if o in _WHOLE),
        },
    )


def _miner(name: str, entry: dict[str, Any]) -> Card:
    summary, paper = MINERS[name]
    return Card(
        kind="miner",
        name=name,
        target=f"pytorch_metric_learning.miners:{name}",
        summary=summary,
        options=_options(name, entry),
        paper=paper,
        facts={
            "family": "pml",
            "distance": entry["distance"],
            "distances": tuple(entry["distances"]),
            "choices": _CHOICES.get(name, {}),
            "positive": tuple(o for o in entry["options"] if o in _POSITIVE),
            "whole": tuple(o for o in entry["options"] if o in _WHOLE),
        },
    )


_SIMILARITY = {"choices": {"similarity": ("cosine", "dot")}}

_OWN = (
    Card(
        kind="loss",
        name="MultipleNegativesRankingLoss",
        target="luthier.objectives.multiple_negatives_ranking:MultipleNegativesRankingLoss",
        summary="each anchor finds its positive among all positives and negatives of the batch",
        options=(
            Option("scale", 20.0, "multiplies similarities; 1 / temperature"),
            Option("temperature", None, "instead of scale: 1 / scale"),
            Option("symmetric", False, "also: each positive finds its anchor"),
            Option("similarity", "cosine", "cosine, or dot for embeddings of any length"),
        ),
        forms=("pairs", "triplets"),
        paper="Henderson et al., Efficient Natural Language Response Suggestion, 2017, "
        "arXiv:1705.00652, section 4.4; van den Oord et al., 2018, arXiv:1807.03748",
        facts={
            "works_on": "rows",
            "in_batch_negatives": True,
            "min_rows": 2,
            "positive": ("scale", "temperature"),
        }
        | _SIMILARITY,
    ),
    Card(
        kind="loss",
        name="CLIPLoss",
        target="luthier.objectives.clip:CLIPLoss",
        summary="both sides of a pair find each other in the batch, with a learned temperature",
        options=(
            Option("temperature", 0.07, "at the start; the paper's value"),
            Option("max_scale", 100.0, "1 / temperature grows no further; the paper's value"),
        ),
        forms=("pairs",),
        paper="Radford et al., CLIP, ICML 2021, arXiv:2103.00020, section 2.3 and figure 3",
        facts={
            "works_on": "rows",
            "learns": True,
            "in_batch_negatives": True,
            "min_rows": 2,
            "positive": ("temperature", "max_scale"),
        },
    ),
    Card(
        kind="loss",
        name="CosineSimilarityLoss",
        target="luthier.objectives.cosine_similarity:CosineSimilarityLoss",
        summary="squared error between the cosine of two texts and their score",
        forms=("scored",),
        paper="Reimers and Gurevych, Sentence-BERT, EMNLP 2019, arXiv:1908.10084, section 3",
        facts={"works_on": "rows", "min_rows": 1},
    ),
    Card(
        kind="loss",
        name="CoSENTLoss",
        target="luthier.objectives.cosent:CoSENTLoss",
        summary="cosines in the order of the scores, over all pairs of rows in the batch",
        options=(Option("scale", 20.0, "multiplies similarities; the paper's value"),),
        forms=("scored",),
        paper="Huang et al., CoSENT, TASLP 2024, doi:10.1109/TASLP.2024.3402087",
        facts={"works_on": "rows", "min_rows": 2, "positive": ("scale",)},
    ),
    Card(
        kind="loss",
        name="AnglELoss",
        target="luthier.objectives.angle:AnglELoss",
        summary="CoSENT on angles in complex space, where the cosine is flat",
        options=(Option("scale", 20.0, "multiplies similarities; the paper's value"),),
        forms=("scored",),
        paper="Li and Li, AoE: Angle-optimized Embeddings for Semantic Textual Similarity, "
        "ACL 2024, arXiv:2309.12871",
        facts={"works_on": "rows", "min_rows": 2, "positive": ("scale",)},
    ),
    Card(
        kind="loss",
        name="MarginMSELoss",
        target="luthier.objectives.margin_mse:MarginMSELoss",
        summary="squared error between the student's and a teacher's difference of similarities",
        options=(Option("similarity", "dot", "dot, the paper's, or cosine"),),
        forms=("margin",),
        paper="Hofstätter et al., Improving Efficient Neural Ranking Models with "
        "Cross-Architecture Knowledge Distillation, 2020, arXiv:2010.02666, section 3.2",
        facts={"works_on": "rows", "min_rows": 1} | _SIMILARITY,
    ),
    *RANKING_CARDS,
    Card(
        kind="loss",
        name="MatryoshkaLoss",
        target="luthier.objectives.matryoshka:MatryoshkaLoss",
        summary="another loss at several widths, so that embeddings may be cut short",
        options=(
            Option("loss", "MultipleNegativesRankingLoss", "the loss at each width, by name"),
            Option("loss_options", {}, "its options"),
            Option("matryoshka_dims", None, "widths; None: the model's, halved down to 32"),
            Option("matryoshka_weights", None, "one a width; None: 1 each"),
        ),
        forms=("labelled", "pairs", "triplets", "scored", "margin", "rankings"),
        paper="Kusupati et al., Matryoshka Representation Learning, NeurIPS 2022, arXiv:2205.13147",
        facts={
            "wraps": True,
            "choices": {"matryoshka_dims": (None, list), "matryoshka_weights": (None, list)},
        },
    ),
)

CARDS: tuple[Card, ...] = (
    *_OWN,
    *(_loss(name, entry) for name, entry in PML["losses"].items()),
    *(_miner(name, entry) for name, entry in PML["miners"].items()),
)
