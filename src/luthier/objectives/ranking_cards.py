"""The cards of the losses of rankings; see ``cards.py`` for what their facts mean."""

from __future__ import annotations

from luthier.registry import Card, Option

_NEAR = ("cosine", "dot", "euclidean")
_WEIGHING = ("min", "positive")
_MARGIN = (
    Option("margin", 1.0, "by how much a pair is to be apart"),
    Option("similarity", "cosine", "cosine, dot or euclidean"),
    Option("min_abs_difference_threshold", 0.0, "pairs that are apart by more than this"),
    Option("max_abs_difference_threshold", 1.0, "and by less than this"),
    Option("weighting", "min", "of a pair: min of both weights, or that of the positive"),
)
_FACTS = {"works_on": "rows", "min_rows": 1}

RANKING_CARDS: tuple[Card, ...] = (
    Card(
        kind="loss",
        name="ProbMarginRankingLoss",
        target="luthier.objectives.prob_margin_ranking:ProbMarginRankingLoss",
        summary="the chance that a pair of a list is apart by less than a margin",
        options=_MARGIN,
        forms=("rankings",),
        paper="Embedding Studio; Joachims, Optimizing search engines using clickthrough data, "
        "KDD 2002, section 4",
        facts=_FACTS | {"choices": {"similarity": _NEAR, "weighting": _WEIGHING}},
    ),
    Card(
        kind="loss",
        name="CosineProbMarginRankingLoss",
        target="luthier.objectives.prob_margin_ranking:CosineProbMarginRankingLoss",
        summary="the same, steep as the small differences of cosines need it",
        options=_MARGIN,
        forms=("rankings",),
        paper="Embedding Studio; Joachims, Optimizing search engines using clickthrough data, "
        "KDD 2002, section 4",
        facts=_FACTS | {"choices": {"similarity": _NEAR, "weighting": _WEIGHING}},
    ),
    Card(
        kind="loss",
        name="ListwiseSoftmaxLoss",
        target="luthier.objectives.listwise_softmax:ListwiseSoftmaxLoss",
        summary="what was clicked stands out of its list, and of the other items of the batch",
        options=(
            Option("temperature", 0.05, "divides similarities"),
            Option("in_batch_negatives", True, "items of other queries are negatives"),
            Option("false_negative_margin", None, "but not those nearer than the positive less it"),
            Option("similarity", "cosine", "cosine, dot or euclidean"),
        ),
        forms=("rankings",),
        paper="Cao et al., Learning to Rank: From Pairwise Approach to Listwise Approach, ICML "
        "2007, section 4; Ai et al., SIGIR 2018, arXiv:1804.05938, section 4",
        facts=_FACTS | {"choices": {"similarity": _NEAR}, "positive": ("temperature",)},
    ),
    Card(
        kind="loss",
        name="LambdaLoss",
        target="luthier.objectives.lambda_loss:LambdaLoss",
        summary="logistic loss of pairs, weighed by the NDCG that their exchange would cost",
        options=(
            Option("sigma", 1.0, "multiplies differences; 10 to 20 for cosines"),
            Option("k", None, "NDCG of the first k; None: of all"),
            Option("similarity", "cosine", "cosine, dot or euclidean"),
            Option("weighting", "positive", "of a pair: that of the positive, or min of both"),
        ),
        forms=("rankings",),
        paper="Wang et al., The LambdaLoss Framework for Ranking Metric Optimization, CIKM 2018, "
        "doi:10.1145/3269206.3271784, equation 12",
        facts=_FACTS
        | {
            "choices": {"similarity": _NEAR, "weighting": _WEIGHING, "k": (None, int)},
            "positive": ("sigma", "k"),
        },
    ),
    Card(
        kind="loss",
        name="ApproxNDCGLoss",
        target="luthier.objectives.approx_ndcg:ApproxNDCGLoss",
        summary="1 - NDCG with ranks of sigmoids, which have a gradient",
        options=(
            Option("temperature", 0.1, "of the sigmoids"),
            Option("similarity", "cosine", "cosine, dot or euclidean"),
        ),
        forms=("rankings",),
        paper="Qin et al., A general approximation framework for direct optimization of "
        "information retrieval measures, Information Retrieval 13, 2010, section 4",
        facts=_FACTS | {"choices": {"similarity": _NEAR}, "positive": ("temperature",)},
    ),
)
