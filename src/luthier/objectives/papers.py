"""What a person has to know of pytorch-metric-learning: names, one line each, papers.

What a machine can find out (options, defaults, which distance fits) is measured by
``scripts/generate_pml_cards.py`` and stands in ``pml.json``.
"""

from __future__ import annotations

#: Loss → (what it does, paper).
LOSSES: dict[str, tuple[str, str]] = {
    "AngularLoss": (
        "bounds the angle at the negative of each triplet; alpha in degrees",
        "Wang et al., Deep Metric Learning with Angular Loss, ICCV 2017",
    ),
    "ArcFaceLoss": (
        "softmax over class centres with an angular margin in degrees",
        "Deng et al., ArcFace, CVPR 2019, arXiv:1801.07698",
    ),
    "CircleLoss": (
        "weighs each similarity by how far it is from its optimum",
        "Sun et al., Circle Loss, CVPR 2020, arXiv:2002.10857",
    ),
    "ContrastiveLoss": (
        "pulls positives within pos_margin, pushes negatives beyond neg_margin",
        "Hadsell et al., Dimensionality Reduction by Learning an Invariant Mapping, CVPR 2006",
    ),
    "CosFaceLoss": (
        "softmax over class centres with a margin on the cosine",
        "Wang et al., CosFace, CVPR 2018, arXiv:1801.09414",
    ),
    "DynamicSoftMarginLoss": (
        "weighs triplets by the running distribution of their difficulty",
        "Zhang and Rusinkiewicz, Learning Local Descriptors with a CDF-Based Dynamic Soft "
        "Margin, ICCV 2019",
    ),
    "FastAPLoss": (
        "average precision by soft histogram binning",
        "Cakir et al., Deep Metric Learning to Rank, CVPR 2019",
    ),
    "GeneralizedLiftedStructureLoss": (
        "all positives and all negatives of an anchor in one hinge",
        "Hermans et al., In Defense of the Triplet Loss, 2017, arXiv:1703.07737, p. 4",
    ),
    "HistogramLoss": (
        "the probability that a negative is more similar than a positive",
        "Ustinova and Lempitsky, Learning Deep Embeddings with Histogram Loss, NeurIPS 2016",
    ),
    "InstanceLoss": (
        "softmax over the batch; the target of an item is the rank of its class among the "
        "batch's, as the library computes it, so give batches of distinct classes",
        "Zheng et al., Dual-Path Convolutional Image-Text Embeddings, TOMM 2020, arXiv:1711.05535",
    ),
    "IntraPairVarianceLoss": (
        "narrows the spread of positive and of negative similarities",
        "Yu and Tao, Deep Metric Learning with Tuplet Margin Loss, ICCV 2019",
    ),
    "LargeMarginSoftmaxLoss": (
        "softmax over class centres with a multiplicative angular margin",
        "Liu et al., Large-Margin Softmax Loss, ICML 2016, arXiv:1612.02295",
    ),
    "LiftedStructureLoss": (
        "each positive pair against all negatives of both its ends",
        "Oh Song et al., Lifted Structured Feature Embedding, CVPR 2016, arXiv:1511.06452",
    ),
    "ManifoldLoss": (
        "random walk between items and K learned proxies; a class belongs to proxy (label mod K)",
        "Aziere and Todorovic, Ensemble Deep Manifold Similarity Learning using Hard Proxies, "
        "CVPR 2019",
    ),
    "MarginLoss": (
        "positives below and negatives above a boundary beta, learned with learn_beta",
        "Wu et al., Sampling Matters in Deep Embedding Learning, ICCV 2017, arXiv:1706.07567",
    ),
    "MultiSimilarityLoss": (
        "weighs pairs by their own and their relative similarities",
        "Wang et al., Multi-Similarity Loss with General Pair Weighting, CVPR 2019, "
        "arXiv:1904.06627",
    ),
    "NCALoss": (
        "the probability that a stochastic neighbour is of the same class",
        "Goldberger et al., Neighbourhood Components Analysis, NeurIPS 2004",
    ),
    "NPairsLoss": (
        "one pair a class, the positives of other classes as negatives",
        "Sohn, Improved Deep Metric Learning with Multi-class N-pair Loss, NeurIPS 2016",
    ),
    "NTXentLoss": (
        "InfoNCE: each positive pair against the negatives of its anchor",
        "van den Oord et al., 2018, arXiv:1807.03748; Chen et al., SimCLR, 2020, arXiv:2002.05709",
    ),
    "NormalizedSoftmaxLoss": (
        "softmax over normalized class centres",
        "Zhai and Wu, Classification is a Strong Baseline for Deep Metric Learning, BMVC 2019, "
        "arXiv:1811.12649",
    ),
    "P2SGradLoss": (
        "squared error between cosines to class centres and one-hot targets",
        "Zhang et al., P2SGrad, CVPR 2019, arXiv:1905.02479, eq. 11",
    ),
    "PNPLoss": (
        "penalizes negatives that rank before positives",
        "Li et al., Rethinking the Optimization of Average Precision: Only Penalizing Negative "
        "Instances before Positive Ones is Enough, AAAI 2022, arXiv:2102.04640",
    ),
    "ProxyAnchorLoss": (
        "each class proxy against all items of the batch",
        "Kim et al., Proxy Anchor Loss for Deep Metric Learning, CVPR 2020, arXiv:2003.13911",
    ),
    "ProxyNCALoss": (
        "NCA with one learned proxy a class in place of items",
        "Movshovitz-Attias et al., No Fuss Distance Metric Learning using Proxies, ICCV 2017, "
        "arXiv:1703.07464",
    ),
    "RankedListLoss": (
        "keeps positives in a ball and negatives outside a margin around it",
        "Wang et al., Ranked List Loss for Deep Metric Learning, CVPR 2019, arXiv:1903.03238",
    ),
    "SignalToNoiseRatioContrastiveLoss": (
        "contrastive loss on the noise-to-signal ratio of two embeddings",
        "Yuan et al., Signal-to-Noise Ratio: A Robust Distance Metric, CVPR 2019, arXiv:1904.02616",
    ),
    "SmoothAPLoss": (
        "average precision with sigmoids for ranks; batches hold equally many items a class",
        "Brown et al., Smooth-AP, ECCV 2020, arXiv:2007.12163",
    ),
    "SoftTripleLoss": (
        "softmax over several learned centres a class",
        "Qian et al., SoftTriple Loss, ICCV 2019, arXiv:1909.05235",
    ),
    "SphereFaceLoss": (
        "multiplicative angular margin with normalized class centres",
        "Liu et al., SphereFace, CVPR 2017, arXiv:1704.08063",
    ),
    "SubCenterArcFaceLoss": (
        "ArcFace with several centres a class, for noisy labels",
        "Deng et al., Sub-center ArcFace, ECCV 2020",
    ),
    "SupConLoss": (
        "InfoNCE with all items of a class as positives",
        "Khosla et al., Supervised Contrastive Learning, NeurIPS 2020, arXiv:2004.11362",
    ),
    "ThresholdConsistentMarginLoss": (
        "regularizes pairs to one threshold for all classes",
        "Zhang et al., Threshold-Consistent Margin Loss, ICLR 2024, arXiv:2307.04047",
    ),
    "TripletMarginLoss": (
        "anchor nearer to the positive than to the negative by a margin",
        "Schroff et al., FaceNet, CVPR 2015, arXiv:1503.03832",
    ),
    "TupletMarginLoss": (
        "one positive against all negatives, with an angular slack in degrees",
        "Yu and Tao, Deep Metric Learning with Tuplet Margin Loss, ICCV 2019",
    ),
    "VICRegLoss": (
        "invariance, variance and covariance of two views; no negatives",
        "Bardes et al., VICReg, ICLR 2022, arXiv:2105.04906",
    ),
}

#: Miner → (what it picks, paper).
MINERS: dict[str, tuple[str, str]] = {
    "AngularMiner": (
        "triplets whose angle at the negative is above a threshold in degrees",
        "Wang et al., Deep Metric Learning with Angular Loss, ICCV 2017",
    ),
    "BatchEasyHardMiner": (
        "per anchor one positive and one negative: easy, semihard, hard or all",
        "Xuan et al., Improved Embeddings with Easy Positive Triplet Mining, WACV 2020",
    ),
    "BatchHardMiner": (
        "per anchor the hardest positive and the hardest negative",
        "Hermans et al., In Defense of the Triplet Loss, 2017, arXiv:1703.07737",
    ),
    "DistanceWeightedMiner": (
        "negatives drawn uniformly over distance",
        "Wu et al., Sampling Matters in Deep Embedding Learning, ICCV 2017, arXiv:1706.07567",
    ),
    "HDCMiner": (
        "the hardest share of positive and of negative pairs",
        "Yuan et al., Hard-Aware Deeply Cascaded Embedding, ICCV 2017, arXiv:1611.05720",
    ),
    "MultiSimilarityMiner": (
        "pairs that are within epsilon of violating the order of the anchor's pairs",
        "Wang et al., Multi-Similarity Loss with General Pair Weighting, CVPR 2019",
    ),
    "PairMarginMiner": ("pairs that violate the margins", ""),
    "TripletMarginMiner": (
        "triplets that violate the margin: all, hard, semihard, or those that do not: easy",
        "Schroff et al., FaceNet, CVPR 2015, arXiv:1503.03832",
    ),
    "UniformHistogramMiner": ("pairs drawn uniformly over histogram bins of distance", ""),
}

DISTANCES = ("CosineSimilarity", "DotProductSimilarity", "LpDistance", "SNRDistance")
REDUCERS = (
    "AvgNonZeroReducer",
    "ClassWeightedReducer",
    "DivisorReducer",
    "MeanReducer",
    "PerAnchorReducer",
    "SumReducer",
    "ThresholdReducer",
)

#: Every other name of the library's losses, miners, distances and reducers, and why not.
REFUSED: dict[str, str] = {
    "BaseMetricLossFunction": "abstract: the base of losses",
    "GenericPairLoss": "abstract: the base of losses on pairs",
    "EmbeddingRegularizerMixin": "not a loss: a mixin of losses",
    "WeightRegularizerMixin": "not a loss: a mixin of losses",
    "BaseLossWrapper": "abstract: the base of wrappers",
    "CrossBatchMemory": "a wrapper that remembers embeddings of past batches; a bundle could "
    "not resume it bit for bit",
    "MultipleLosses": "a wrapper of loss objects, which are not data; name one loss",
    "SelfSupervisedLoss": "a wrapper of a loss object for two views of unlabelled data; "
    "use MultipleNegativesRankingLoss on pairs",
    "BaseMiner": "abstract: the base of miners",
    "EmbeddingsAlreadyPackagedAsTriplets": "triplet data gives its triplets to the loss by itself; "
    "leave the miner out",
    "BaseDistance": "abstract: the base of distances",
    "BatchedDistance": "a wrapper of a distance object, which is not data",
    "BaseReducer": "abstract: the base of reducers",
    "DoNothingReducer": "returns the unreduced losses, which cannot be trained on",
    "MultipleReducers": "a wrapper of reducer objects, which are not data; name one reducer",
}

#: Constructor options that are Python objects, and why a job cannot carry them.
REFUSED_OPTIONS: dict[str, str] = {
    "embedding_regularizer": "is a Python object, not data; use the optimizer's weight_decay",
    "embedding_reg_weight": "weighs embedding_regularizer, which a job cannot carry",
    "weight_regularizer": "is a Python object, not data; use the optimizer's weight_decay",
    "weight_reg_weight": "weighs weight_regularizer, which a job cannot carry",
    "weight_init_func": "is a Python object, not data",
    "collect_stats": "the numbers of mined tuples are always reported",
    "num_classes": "is known from the data",
    "embedding_size": "is known from the model",
    "descriptors_dim": "is known from the model",
    "l": "is known from the model",
}
