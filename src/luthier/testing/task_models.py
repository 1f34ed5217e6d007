"""Tiny models with the heads of tasks, random weights, made in a second and without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

#: A chat template with the marks by which training tells what the assistant says.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_level(length: int, **special: str) -> Any:
    """A byte-level BPE tokenizer without merges: a token a byte, and those that are named."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer: Any = Tokenizer(BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    made: Any = PreTrainedTokenizerFast
    return made(
        tokenizer_object=tokenizer, model_max_length=length,
        model_input_names=["input_ids", "attention_mask"], **special,
    )  # fmt: skip


def _ending(length: int) -> Any:
    """A byte-level tokenizer that ends a text as T5's does."""
    from tokenizers import processors

    tokenizer = byte_level(length, eos_token="</s>", pad_token="<pad>")
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>",
        special_tokens=[("</s>", tokenizer.eos_token_id)],
    )  # fmt: skip
    return tokenizer


def tiny_gpt2(
    folder: Path, *, length: int = 96, dropout: float = 0.0, template: str | None = None
) -> Path:
    """Write a tiny GPT-2 and its tokenizer."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = byte_level(length, eos_token="<|end|>", bos_token="<|end|>")
    if template is not None:
        tokenizer.chat_template = template
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=length, n_embd=32, n_layer=2, n_head=2,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_t5(folder: Path, *, length: int = 64, dropout: float = 0.0) -> Path:
    """Write a tiny T5 with a byte-level tokenizer that ends a text as T5's does."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = _ending(length)
    end = tokenizer.eos_token_id
    settings: Any = T5Config
    config = settings(
        vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2,
        dropout_rate=dropout, pad_token_id=tokenizer.pad_token_id, eos_token_id=end,
        decoder_start_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = T5ForConditionalGeneration(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


#: Families with adapters that have no maker of their own → transformers' class, and its words for
#: the sizes. Those that write texts are given an end of text.
_ENCODERS = {
    "bert": "Bert", "roberta": "Roberta", "camembert": "Camembert", "deberta": "Deberta",
    "deberta-v2": "DebertaV2", "distilbert": "DistilBert",
}  # fmt: skip
_WRITERS = {"bart": "Bart", "mbart": "MBart", "marian": "Marian"}

#: Families of the finetune component's LoRA, for ``tiny_family``.
FAMILIES = ("gpt2", *_ENCODERS, "t5", *_WRITERS)


def tiny_family(folder: Path, family: str, *, length: int = 64) -> Path:
    """Write a tiny model of a family, without dropout, and a tokenizer that fits it."""
    if family in ("gpt2", "t5"):
        return {"gpt2": tiny_gpt2, "t5": tiny_t5}[family](folder, length=length)
    import torch
    import transformers

    writes = family in _WRITERS
    tokenizer = _ending(length) if writes else _word_pieces(length)
    name = _WRITERS[family] if writes else _ENCODERS[family]
    sizes = _writer(tokenizer, length) if writes else _encoder(tokenizer, length, family)
    head = "MTModel" if family == "marian" else "ForConditionalGeneration"
    kind = f"{name}{head if writes else 'Model'}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, kind)(getattr(transformers, f"{name}Config")(**sizes))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _encoder(tokenizer: Any, length: int, family: str) -> dict[str, Any]:
    """A DeBERTa with what makes it one: attention to relative positions."""
    tokens = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    if family == "distilbert":
        return tokens | {
            "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "dropout": 0.0,
            "attention_dropout": 0.0, "seq_classif_dropout": 0.0,
            "max_position_embeddings": length,
        }  # fmt: skip
    relative: dict[str, Any] = {}
    if family.startswith("deberta"):
        relative = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"],
                    "position_biased_input": False, "type_vocab_size": 0}  # fmt: skip
    return tokens | relative | {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        "max_position_embeddings": length + 2,  # RoBERTa counts them from pad_token_id + 1
    }  # fmt: skip


def _writer(tokenizer: Any, length: int) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer), "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64, "max_position_embeddings": length, "dropout": 0.0,
        "attention_dropout": 0.0, "activation_dropout": 0.0,
        "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id, "forced_eos_token_id": tokenizer.eos_token_id,
        "decoder_start_token_id": tokenizer.pad_token_id,
    }  # fmt: skip


def _word_pieces(length: int) -> Any:
    from luthier.testing.models import wordpiece_tokenizer

    return wordpiece_tokenizer(600, length, with_types=False)


def tiny_vit(folder: Path, *, size: int = 16, dropout: float = 0.0) -> Path:
    """Write a tiny ViT without a head, and its image processor."""
    import torch
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        image_size=size, patch_size=size // 2, hidden_dropout_prob=dropout,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ViTModel(config)
    model.save_pretrained(folder)
    made: Any = ViTImageProcessor
    made(size={"height": size, "width": size}).save_pretrained(folder)
    return folder


def tiny_resnet(folder: Path, *, size: int = 16) -> Path:
    """Write a tiny ResNet without a head, and its image processor."""
    import torch
    from transformers import ResNetConfig, ResNetModel, ViTImageProcessor

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ResNetModel(config)
    model.save_pretrained(folder)
    made: Any = ViTImageProcessor
    made(size={"height": size, "width": size}).save_pretrained(folder)
    return folder
