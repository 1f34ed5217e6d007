"""The cards of all updaters. Imports no torch.

Facts of an updater's card:

    memory   the policy by which rows are remembered, where none is asked for; None: it needs none
    labels   whether it is for rows with classes only
    fresh    whether each update trains a new model
    program  whether it is for models of configuration files only: it changes what they are made
             of, trains nothing but their head, or asks for features of inner layers
    rows     whether it compares the scores of a row with scores of the same row at another time;
             "written": also of the tokens of a text that is written
"""

from __future__ import annotations

from typing import Any

from luthier.registry import Card, Option

_SHARED = (
    Option("loss_weight", 1.0, "weight of the loss of the new rows"),
    Option("loss_normalization", True, "divide by the sum of all weights"),
    Option("offers", "end", 'when new rows are offered to the memory: "online" or "end"'),
    Option("asymmetric", False, "new rows choose among their own classes only (ER-ACE)"),
)
#: As the paper of DER does. At the end of an update the scores may have grown so large that their
#: squared distance makes the next update diverge: on mnist it did for two seeds of five.
_ONLINE = tuple(Option(o.name, "online", o.doc) if o.name == "offers" else o for o in _SHARED)
#: Of those whose memory notes what the model said.
_NOTED = (
    *_SHARED,
    Option("ema_memory_update_gamma", 1.0, "what is kept of a note each time its row goes along"),
)
_NOTED_ONLINE = (*_ONLINE, _NOTED[-1])
_TUNE_FIRST = Option("tune_first", True, "train the features in the first update, then no more")
_AVERAGES = (
    Option("stable_model_update_weight", 0.99, "the most that the stable copy keeps of itself"),
    Option("plastic_model_update_weight", 0.99, "the same of the plastic copy"),
    Option("stable_model_update_probability", 0.7, "how often the stable copy moves"),
    Option("plastic_model_update_probability", 0.9, "how often the plastic copy moves"),
    Option("published", "best", '"working", "stable", "plastic", or the best by validation rows'),
)
_POOLED = (
    Option("distillation_type", "spatial", "spatial, pixel, channel, width, height or gap"),
    Option("normalize", True, "compare pooled features of length 1"),
)


def _card(
    name: str,
    target: str,
    summary: str,
    *options: Option,
    paper: str = "",
    memory: str | None = "reservoir",
    shared: bool | tuple[Option, ...] = True,
    labels: bool = False,
    fresh: bool = False,
    program: bool = False,
    rows: bool | str = False,
) -> Card:
    facts: dict[str, Any] = {"memory": memory, "labels": labels, "fresh": fresh}
    facts |= {"program": program, "rows": rows}
    more = _SHARED if shared is True else shared or ()
    return Card(
        "updater",
        name,
        f"luthier.updaters.build:{target}",
        summary,
        options=(*options, *more),
        paper=paper,
        facts=facts,
    )


def _prefixed(prefix: str, options: tuple[Option, ...], **other: Any) -> tuple[Option, ...]:
    """Options under a prefix, some with another default."""
    return tuple(Option(f"{prefix}_{o.name}", other.get(o.name, o.default), o.doc) for o in options)


#: Super-ER divides its loss by weights that sum to four: in an update of a few hundred steps its
#: model moves so little that copies with a longer memory lag behind it.
_QUICKER = {"stable_model_update_weight": 0.9, "plastic_model_update_weight": 0.9}


CARDS: tuple[Card, ...] = (
    _card(
        "FineTuning",
        "fine_tuning",
        "the new rows alone: what all others are measured against",
        memory=None,
        shared=False,
    ),
    _card(
        "ER",
        "experience_replay",
        "remembered rows go along with new ones",
        Option("alpha", 1.0, "weight of the loss of remembered rows"),
        paper="Chaudhry et al. 2019, On Tiny Episodic Memories in Continual Learning",
    ),
    _card(
        "ER-ACE",
        "asymmetric_replay",
        "replay in which new classes do not push old ones away",
        Option("alpha", 1.0, "weight of the loss of remembered rows"),
        Option("loss_weight", 1.0, "weight of the loss of the new rows"),
        Option("loss_normalization", True, "divide by the sum of all weights"),
        paper="Caccia et al. 2022, New Insights on Reducing Abrupt Representation Change",
        shared=False,
        labels=True,
    ),
    _card(
        "DER",
        "dark_replay",
        "replay, and what the model said of remembered rows stays (DER++)",
        Option("alpha", 1.0, "weight of the distance to the scores that were noted"),
        Option("beta", 1.0, "weight of the loss of remembered rows; 0 is the plain DER"),
        Option("distance", "mse", '"mse", or "huber", whose pull is bounded'),
        shared=_NOTED_ONLINE,
        paper="Buzzega et al. 2020, Dark Experience for General Continual Learning",
        rows=True,
    ),
    _card(
        "Robust-DER",
        "robust_replay",
        "DER by the Huber distance, on as many rows of each class",
        Option("alpha", 2.0, "weight of the distance to the scores that were noted"),
        Option("beta", 1.0, "weight of the loss of remembered rows"),
        shared=_NOTED,
        paper="Buzzega et al. 2020; Huber 1964, Robust Estimation of a Location Parameter",
        memory="greedy_balanced",
        rows=True,
    ),
    _card(
        "POD-ER",
        "pooled_replay",
        "pooled features of inner layers stay what they were",
        Option("alpha", 1.0, "weight of the distance between pooled features"),
        *_POOLED,
        shared=_NOTED,
        paper="Douillard et al. 2020, PODNet",
        program=True,
    ),
    _card(
        "CLS-ER",
        "complementary_replay",
        "replay under two slow copies of the model",
        Option("alpha", 0.5, "weight of the loss of remembered rows"),
        Option("beta", 0.1, "weight of the distance to the surer copy"),
        *_AVERAGES,
        paper="Arani et al. 2022, Learning Fast, Learning Slow",
        rows=True,
    ),
    _card(
        "Super-ER",
        "super_replay",
        "DER, CLS-ER, POD-ER, and weights that are shrunk and perturbed first",
        Option("der_alpha", 1.0, "weight of the distance to the scores that were noted"),
        Option("der_beta", 1.0, "weight of the loss of remembered rows"),
        Option("sp_shrink_factor", 0.95, "what is kept of the weights before the first step"),
        Option("sp_sigma", 0.001, "standard deviation of the noise that is added then"),
        Option("cls_alpha", 0.1, "weight of the distance to the surer copy"),
        *_prefixed("cls", _AVERAGES, **_QUICKER),
        Option("pod_alpha", 1.0, "weight of the distance between pooled features"),
        *_prefixed("pod", _POOLED),
        shared=_NOTED,
        paper="Renate's combination of the four",
        program=True,
    ),
    _card(
        "Offline-ER",
        "offline_replay",
        "one loss, split between new and remembered rows by their numbers",
        Option("loss_weight_new_data", None, "share of the new rows; None: as many as they are"),
        shared=False,
    ),
    _card(
        "GDumb",
        "greedy_dumb",
        "a new model, trained on the memory alone",
        paper="Prabhu et al. 2020, GDumb",
        memory="greedy_balanced",
        shared=False,
        labels=True,
        fresh=True,
    ),
    _card(
        "Joint",
        "joint",
        "a new model, trained on all rows there ever were: the bound for all others",
        memory="infinite",
        shared=False,
        fresh=True,
    ),
    _card(
        "EWC",
        "elastic",
        "weights that mattered before stay",
        Option("ewc_lambda", 0.4, "weight of the penalty"),
        Option("fisher_rows", 200, "new rows that the Fisher information is taken on"),
        paper="Kirkpatrick et al. 2017, Overcoming Catastrophic Forgetting",
        memory=None,
        shared=False,
    ),
    _card(
        "LwF",
        "without_forgetting",
        "what the model of before says of new rows stays",
        Option("alpha", 1.0, "weight of the divergence"),
        Option("temperature", 2.0, "by which both are softened"),
        paper="Li and Hoiem 2016, Learning without Forgetting",
        memory=None,
        shared=False,
        rows="written",
    ),
    _card(
        "L2-SP",
        "anchored",
        "weights stay near those before the update",
        Option("alpha", 0.01, "weight of the squared distance"),
        paper="Li et al. 2018, Explicit Inductive Bias for Transfer Learning",
        memory=None,
        shared=False,
    ),
    _card(
        "iCaRL",
        "nearest_exemplars",
        "new and remembered rows as one set, distillation, and the nearest mean of exemplars",
        Option("alpha", 1.0, "weight of the divergence from the model of before"),
        Option("temperature", 2.0, "by which both are softened"),
        paper="Rebuffi et al. 2017, iCaRL",
        memory="herding",
        shared=False,
        labels=True,
    ),
    _card(
        "RD",
        "repeated_distillation",
        "an expert learns the new rows; a new model learns from it and from what was noted",
        paper="Zhang et al. 2020, Class-incremental Learning via Deep Model Consolidation",
        shared=False,
        fresh=True,
        program=True,
    ),
    _card(
        "NCM",
        "nearest_mean",
        "the last layer is the nearest mean of each class, of all rows there ever were",
        _TUNE_FIRST,
        paper="Mensink et al. 2013, Distance-Based Image Classification",
        memory=None,
        shared=False,
        labels=True,
        program=True,
    ),
    _card(
        "RanPAC",
        "random_projection",
        "the last layer is a ridge regression on random projections of the features",
        Option("projected", 2000, "how many projections; 0 takes the features themselves"),
        Option("ridge", None, "strength of the ridge; None: the best on a fifth of the new rows"),
        _TUNE_FIRST,
        paper="McDonnell et al. 2023, RanPAC",
        memory=None,
        shared=False,
        labels=True,
        program=True,
    ),
    _card(
        "LoRA",
        "low_rank",
        "low-rank adapters for the time of the update, then merged into the weights",
        Option("lora_r", 8, "rank"),
        Option("lora_alpha", 8.0, "the product is added alpha / r times"),
        Option("lora_dropout", 0.0, "dropout before the adapters"),
        Option("orthogonality", 0.0, "keeps A orthogonal to those of former updates (O-LoRA)"),
        paper="Hu et al. 2021, LoRA; Wang et al. 2023, O-LoRA",
        memory=None,
        shared=False,
        program=True,
    ),
    _card(
        "L2P",
        "learning_to_prompt",
        "a pool of prompts in front of a frozen transformer, chosen row by row",
        Option("pull", 0.5, "weight of the distance between queries and the keys they choose"),
        Option("asymmetric", True, "new rows choose among their own classes only"),
        paper="Wang et al. 2022, Learning to Prompt for Continual Learning",
        memory=None,
        shared=False,
        program=True,
    ),
    _card(
        "S-Prompt",
        "domain_prompts",
        "prompts and a head for each update, in front of a frozen transformer",
        paper="Wang et al. 2022, S-Prompts Learning with Pre-trained Transformers",
        memory=None,
        shared=False,
        program=True,
    ),
)
