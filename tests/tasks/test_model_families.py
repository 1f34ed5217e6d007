"""Models whose tokenizers or heads differ from BERT's: what loading settles for them."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from luthier.data.rows import Rows
from luthier.errors import ModelError
from luthier.tasks.question_answering import QuestionAnswering
from luthier.tasks.text_classification import TextClassification
from luthier.tasks.token_classification import TokenClassification
from luthier.testing.models import tiny_text_model

TEXTS = Rows("f", pa.table({"text": ["good", "a long bad text", "so so"], "label": [0, 1, 0]}))
TAGS = Rows("f", pa.table({"tokens": [["ab", "c"], ["d"]], "tags": [["X", "O"], ["O"]]}))
ANSWERS = Rows("f", pa.table({
    "question": ["who", "what is it now"], "context": ["it is tom", "a cat"],
    "answer_start": [6, 2], "answer_text": ["tom", "cat"],
}))  # fmt: skip


@pytest.fixture(scope="module")
def plain_roberta(tmp_path_factory):
    """A tiny RoBERTa with its real tokenizer class, over single bytes."""
    from tokenizers import pre_tokenizers
    from transformers import RobertaConfig, RobertaModel, RobertaTokenizer

    folder = tmp_path_factory.mktemp("task") / "roberta"
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    pieces += sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = RobertaTokenizer(vocab={p: i for i, p in enumerate(pieces)}, merges=[])
    tokenizer.model_max_length = 512
    config = RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=66, pad_token_id=1,
    )  # fmt: skip
    RobertaModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_gpt2_classifies_by_the_last_token_that_is_no_padding(plain_gpt2):
    task = TextClassification()
    examples = task.read(TEXTS)
    torch.manual_seed(0)
    model, tokenizer = task.load(plain_gpt2, examples.labels)
    one = task.predict(model, examples, tokenizer, batch_size=1).arrays["probabilities"]
    many = task.predict(model, examples, tokenizer, batch_size=3).arrays["probabilities"]
    np.testing.assert_allclose(one, many, atol=1e-6)
    assert not np.allclose(one[0], one[1]), "a test that could not fail otherwise"


def test_robertas_words_have_spaces_before_them_and_fewer_positions(plain_roberta, tmp_path):
    task = TokenClassification()
    examples = task.read(TAGS)
    model, tokenizer = task.load(plain_roberta, examples.labels)
    assert tokenizer.model_max_length == 64
    feature = task.features(examples, np.array([0]), tokenizer)[0]
    assert tokenizer.decode(feature["input_ids"]) == "<s> ab c</s>"
    assert [label for label in feature["labels"] if label != -100] == [1, 0]
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, reader = task.load(tmp_path, examples.labels, random_head_ok=False)
    assert task.features(examples, np.array([0]), reader)[0] == feature
    assert task.predict(again, examples, reader).values == (
        task.predict(model, examples, tokenizer).values
    )


@pytest.mark.parametrize("family", ["distilbert", "albert", "electra", "modernbert", "roberta"])
@pytest.mark.parametrize(
    ("kind", "rows"),
    [(TextClassification, TEXTS), (TokenClassification, TAGS), (QuestionAnswering, ANSWERS)],
)
def test_encoders_of_other_families_take_every_head(family, kind, rows, tmp_path):
    """The loss is finite, its gradient reaches the embeddings, and answers do not depend on
    what else is in the batch."""
    folder = tiny_text_model(tmp_path / family, family, pooling=None)
    task = kind()
    examples = task.read(rows)
    torch.manual_seed(0)
    model, tokenizer = task.load(folder, examples.labels)
    features = task.features(examples, np.arange(len(rows)), tokenizer)
    loss = model(**task.collator(tokenizer, model)(features)).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert model.get_input_embeddings().weight.grad.abs().sum() > 0
    one = task.predict(model, examples, tokenizer, batch_size=1)
    many = task.predict(model, examples, tokenizer, batch_size=3)
    assert one.values == many.values
    for name, array in one.arrays.items():
        np.testing.assert_allclose(array, many.arrays[name], atol=1e-5)
    with pytest.raises(ModelError, match="has no weights for"):
        task.load(folder, examples.labels, random_head_ok=False)
