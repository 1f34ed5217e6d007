"""Tiny text encoders with random weights, made in a second and without a network.

They have the layout, the modules and a real WordPiece tokenizer of their big relatives, so
code that works on one works on the other; only the vectors mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Model families with quite different module trees; each is a key of ``_CONFIGS``.
FAMILIES = (
    "bert",
    "roberta",
    "distilbert",
    "mpnet",
    "albert",
    "electra",
    "modernbert",
    "llama",
    "t5",
)

_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'\"()-_/&%+=#@"


def tiny_text_model(
    folder: Path | str,
    family: str = "bert",
    *,
    layers: int = 2,
    hidden: int = 32,
    vocab: int = 600,
    heads: int = 2,
    max_length: int = 64,
    dropout: float = 0.0,
    pooling: str | None = "mean",
    normalize: bool = False,
    seed: int = 0,
) -> Path:
    """Write a sentence-transformers folder with a tiny random encoder, and return its path.

    The same arguments write the same weights; torch's global random state is left as it was.
    ``vocab`` is the number of WordPiece entries, at least 120: all characters, then syllables.
    ``dropout`` is every dropout probability of the encoder. ``pooling`` None writes a plain
    transformers folder (no ``modules.json``).
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import AutoModel

    from luthier.models.loading import quietly

    folder = Path(folder)
    if family not in _CONFIGS:
        raise ValueError(
            f"no tiny model of the family '{family}'; there are: {', '.join(_CONFIGS)}"
        )
    tokenizer = wordpiece_tokenizer(vocab, max_length, with_types=family in ("bert", "electra"))
    config = _CONFIGS[family](
        {
            "vocab_size": len(tokenizer),
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.cls_token_id,
            "eos_token_id": tokenizer.sep_token_id,
        },
        {"layers": layers, "hidden": hidden, "heads": heads, "length": max_length},
        dropout,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
    with quietly():
        encoder.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if pooling is None:
            return folder
        modules: list[torch.nn.Module] = [Transformer(str(folder), max_seq_length=max_length)]
        modules.append(Pooling(hidden, pooling))
        if normalize:
            modules.append(Normalize())
        model = SentenceTransformer(modules=modules, device="cpu")
        model.save(str(folder), create_model_card=False)
    return folder


def wordpiece_tokenizer(vocab: int, max_length: int, *, with_types: bool = True) -> Any:
    """A lower-casing WordPiece tokenizer whose vocabulary is written down, not trained."""
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordPiece
    from transformers import PreTrainedTokenizerFast

    words = _vocabulary(vocab)
    tokenizer = Tokenizer(WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", words.index("[CLS]")), ("[SEP]", words.index("[SEP]"))],
    )
    names = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        model_input_names=["input_ids", "token_type_ids", *names[1:]] if with_types else names,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def _vocabulary(size: int) -> list[str]:
    characters = [*_CHARACTERS, *(f"##{c}" for c in _CHARACTERS if c.isalnum())]
    syllables = [a + b for a in "bcdfghjklmnprstvwz" for b in "aeiouy"]
    longer = [a + b for a in syllables for b in "nrst"]
    pieces = [p for word in [*syllables, *longer] for p in (f"##{word}", word)]
    words = [*_SPECIAL, *characters, *pieces]
    fixed = len(_SPECIAL) + len(characters)
    if not fixed <= size <= len(words):
        raise ValueError(f"vocab must be between {fixed} and {len(words)}, not {size}")
    return words[:size]


def _bert_like(name: str, extra: dict[str, Any] | None = None) -> Callable[..., Any]:
    def config(tokens: dict[str, Any], shape: dict[str, int], dropout: float) -> Any:
        import transformers

        # RoBERTa and MPNet count positions from pad_token_id + 1.
        spare = 2 if name in ("RobertaConfig", "MPNetConfig") else 0
        return getattr(transformers, name)(
            **tokens,
            num_hidden_layers=shape["layers"],
            hidden_size=shape["hidden"],
            embedding_size=shape["hidden"],
            num_attention_heads=shape["heads"],
            intermediate_size=2 * shape["hidden"],
            max_position_embeddings=shape["length"] + spare,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            **(extra or {}),
        )

    return config


def _distilbert(tokens: dict[str, Any], shape: dict[str, int], dropout: float) -> Any:
    from transformers import DistilBertConfig

    return DistilBertConfig(
        **tokens,
        n_layers=shape["layers"],
        dim=shape["hidden"],
        n_heads=shape["heads"],
        hidden_dim=2 * shape["hidden"],
        max_position_embeddings=shape["length"],
        dropout=dropout,
        attention_dropout=dropout,
    )


def _modernbert(tokens: dict[str, Any], shape: dict[str, int], dropout: float) -> Any:
    from transformers import ModernBertConfig

    return ModernBertConfig(
        **tokens,
        cls_token_id=tokens["bos_token_id"],
        sep_token_id=tokens["eos_token_id"],
        num_hidden_layers=shape["layers"],
        hidden_size=shape["hidden"],
        num_attention_heads=shape["heads"],
        intermediate_size=2 * shape["hidden"],
        max_position_embeddings=shape["length"],
        attention_dropout=dropout,
        embedding_dropout=dropout,
        mlp_dropout=dropout,
    )


def _llama(tokens: dict[str, Any], shape: dict[str, int], dropout: float) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        **tokens,
        num_hidden_layers=shape["layers"],
        hidden_size=shape["hidden"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["heads"],
        intermediate_size=2 * shape["hidden"],
        max_position_embeddings=shape["length"],
        attention_dropout=dropout,
    )


def _t5(tokens: dict[str, Any], shape: dict[str, int], dropout: float) -> Any:
    from transformers import T5Config

    return T5Config(
        **{k: v for k, v in tokens.items() if k != "bos_token_id"},
        num_layers=shape["layers"],
        num_decoder_layers=1,
        d_model=shape["hidden"],
        num_heads=shape["heads"],
        d_kv=shape["hidden"] // shape["heads"],
        d_ff=2 * shape["hidden"],
        dropout_rate=dropout,
    )


_CONFIGS: dict[str, Callable[..., Any]] = {
    "bert": _bert_like("BertConfig"),
    "roberta": _bert_like("RobertaConfig"),
    "distilbert": _distilbert,
    "mpnet": _bert_like("MPNetConfig"),
    "albert": _bert_like("AlbertConfig"),
    "electra": _bert_like("ElectraConfig"),
    "modernbert": _modernbert,
    "llama": _llama,
    "t5": _t5,
}
