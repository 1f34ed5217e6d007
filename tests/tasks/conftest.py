"""What the tests of tasks share: rows in memory or as files, and a small world of words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from luthier.data.rows import Rows, read_rows
from luthier.spec import CSVOptions
from luthier.testing.models import tiny_text_model


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def rows(tmp_path: Path):
    """From a list of dicts, or the text of a file, to rows."""

    def make(content: list[dict[str, Any]] | str, name: str = "data.jsonl", **options: Any) -> Rows:
        path = tmp_path / name
        if not isinstance(content, str):
            content = "\n".join(json.dumps(row, ensure_ascii=False) for row in content)
        path.write_text(content, encoding="utf-8")
        return read_rows(path, CSVOptions(**options), name=name)

    return make


@pytest.fixture(scope="session")
def plain_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT without any head."""
    return tiny_text_model(tmp_path_factory.mktemp("task") / "bert", pooling=None)


@pytest.fixture
def learn():
    """A few steps over all rows at once: the least that learning is."""

    def train(task: Any, model: Any, processor: Any, examples: Any, steps: int) -> None:
        features = task.features(examples, np.arange(len(examples)), processor)
        batch = task.collator(processor, model)(features)
        optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
        model.train()
        for _ in range(steps):
            loss = model(**batch).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return train


@pytest.fixture(scope="session")
def plain_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2 with a byte-level tokenizer and, as GPT-2, without a padding token."""
    return tiny_gpt2(tmp_path_factory.mktemp("task") / "gpt2")


def byte_level(length: int, **special: str) -> Any:
    """A byte-level BPE tokenizer without merges: a token a byte, and those that are named."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=length,
        model_input_names=["input_ids", "attention_mask"], **special,
    )  # fmt: skip


def tiny_gpt2(folder: Path, length: int = 96, template: str | None = None) -> Path:
    """Write a tiny GPT-2 and its tokenizer."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = byte_level(length, eos_token="<|end|>", bos_token="<|end|>")
    if template is not None:
        tokenizer.chat_template = template
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=length, n_embd=32, n_layer=2, n_head=2,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def plain_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny T5 with a byte-level tokenizer that ends a text as T5's does."""
    from tokenizers import processors
    from transformers import T5Config, T5ForConditionalGeneration

    folder = tmp_path_factory.mktemp("task") / "t5"
    tokenizer = byte_level(64, eos_token="</s>", pad_token="<pad>")
    end = tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", end)]
    )
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2,
        dropout_rate=0.0, pad_token_id=tokenizer.pad_token_id, eos_token_id=end,
        decoder_start_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def plain_mbart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny mBART-50 with the real tokenizer class, over an alphabet of single characters."""
    from transformers import MBart50Tokenizer, MBartConfig, MBartForConditionalGeneration

    folder = tmp_path_factory.mktemp("task") / "mbart"
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = MBart50Tokenizer(vocab=[(piece, -float(i)) for i, piece in enumerate(pieces)])
    tokenizer.model_max_length = 64
    config = MBartConfig(
        vocab_size=len(tokenizer), d_model=32, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=64,
        decoder_ffn_dim=64, max_position_embeddings=64, dropout=0.0, decoder_start_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    MBartForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
