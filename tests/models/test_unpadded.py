"""An encoder without padding behind its own forward: logits, loss and gradients are the padded
ones, by family and head; a family that cannot be packed runs plainly and says why."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from luthier.models.unpadded import Unpadded
from luthier.testing.models import tiny_text_model

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = ["lemon", "banana", "a", "river", "stone", "quick", "brown", "fox", "over", "the"]
TEXTS = [" ".join(WORDS[: 1 + (i * 7) % 10]) for i in range(24)]

#: Family → why a packed model of it is refused; "" where it packs.
REASONS = {
    "bert": "", "roberta": "", "electra": "", "distilbert": "", "albert": "", "modernbert": "",
    "llama": "", "mpnet": "an attention of its own",
}  # fmt: skip


@pytest.fixture(scope="module")
def model_and_batch(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import (
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
        AutoTokenizer,
    )

    kinds = {
        "classification": AutoModelForSequenceClassification,
        "tagging": AutoModelForTokenClassification,
    }
    folders: dict[str, Any] = {}

    def make(family: str, head: str) -> tuple[Any, dict[str, torch.Tensor]]:
        if family not in folders:
            folders[family] = tiny_text_model(tmp_path_factory.mktemp(family) / "m", family)
        tokenizer = AutoTokenizer.from_pretrained(folders[family])
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model: Any = kinds[head].from_pretrained(folders[family], num_labels=3)
        for module in model.modules():  # heads have a dropout of their own
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.config.pad_token_id = tokenizer.pad_token_id
        batch = dict(tokenizer(TEXTS, padding=True, return_tensors="pt"))
        batch["labels"] = torch.arange(len(TEXTS)) % 3
        if head == "tagging":
            batch["labels"] = torch.where(
                batch["attention_mask"].bool(), batch["input_ids"] % 3, -100
            )
        return model.train(), batch

    return make


@pytest.mark.parametrize("head", ["classification", "tagging"])
@pytest.mark.parametrize("family", REASONS)
def test_loss_and_gradients_are_the_padded_ones(model_and_batch, family, head) -> None:
    model, batch = model_and_batch(family, head)

    def step() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model.zero_grad(set_to_none=True)
        loss = model(**batch).loss
        loss.backward()
        found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        return loss.detach(), found

    loss, expected = step()
    unpadded = Unpadded(model)
    packs = unpadded.check(batch)
    assert packs == (not REASONS[family]), unpadded.reason
    found, gradients = step()
    torch.testing.assert_close(found, loss, atol=2e-6, rtol=1e-5)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-3, msg=name)
    if packs:
        assert unpadded.calls == {"packed": 1}
        unpadded.remove()
        torch.testing.assert_close(step()[0], loss, atol=0, rtol=0)
    else:
        assert REASONS[family] in unpadded.reason
