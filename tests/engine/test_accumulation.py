"""A batch in chunks has the loss and the gradient of the whole batch, negatives included."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from luthier.data import load_dataset
from luthier.engine.device import Device
from luthier.engine.learner import EmbeddingLearner
from luthier.engine.setup import train_form
from luthier.models.dropout import set_fast_dropout
from luthier.models.loading import load_text_model
from luthier.models.tokens import Tokens
from luthier.objectives import build_objective

ROWS = np.arange(12)


def learner(spec, place, loss, execution="padded"):
    spec = spec.changed(loss=loss)
    dataset = load_dataset(place.blobs(spec.data.train.uri), spec.data.csv, place.cache)
    dataset = train_form(dataset, spec)
    model = load_text_model(spec.model, artifact=None, device="cpu")
    objective = build_objective(
        spec.objective, dim=model.dim, num_classes=len(dataset), form=dataset.form
    )
    model.execution = execution
    set_fast_dropout(model, execution != "padded")
    return EmbeddingLearner(model, objective, dataset, Device("cpu", "fp32"))


def step(found, micro):
    found.mode(training=True)
    for module in found.modules():
        module.zero_grad(set_to_none=True)
    torch.manual_seed(3)
    loss = found.backward(found.fetch(ROWS), micro)
    gradients = [
        p.grad.clone() for m in found.modules() for p in m.parameters() if p.grad is not None
    ]
    return loss, gradients


@pytest.mark.parametrize("loss", ["MultipleNegativesRankingLoss", "NTXentLoss", "ArcFaceLoss"])
@pytest.mark.parametrize("micro", [1, 4, 5, 11])
@pytest.mark.parametrize("execution", ["packed", "chunked", "padded"])
def test_chunks_equal_the_whole(make_spec, place, loss, micro, execution, one_thread) -> None:
    whole_loss, whole = step(learner(make_spec(), place, loss), None)
    found = learner(make_spec(), place, loss, execution)
    loss, gradients = step(found, micro)
    assert loss == pytest.approx(whole_loss, abs=1e-6)
    assert len(gradients) == len(whole) > 0
    for gradient, expected in zip(gradients, whole, strict=True):
        torch.testing.assert_close(gradient, expected, atol=5e-6, rtol=1e-4)


@pytest.mark.parametrize("execution", ["packed", "chunked", "padded"])
def test_the_second_pass_draws_the_dropout_of_the_first(
    make_spec, place, tiny_dropout_model, execution, one_thread
) -> None:
    """Otherwise the gradient belongs to embeddings that the loss never saw. The oracle keeps
    the graph of every chunk, so it runs each only once."""
    spec = make_spec(**{"model.name": str(tiny_dropout_model)})
    found = learner(spec, place, "MultipleNegativesRankingLoss", execution)
    loss, gradients = step(found, 5)

    for module in found.modules():
        module.zero_grad(set_to_none=True)
    torch.manual_seed(3)
    batch = found.fetch(ROWS)
    tokens = Tokens.join(batch.columns)
    chunks = found._chunks(batch, 5)
    assert len(chunks) > 1
    places = torch.from_numpy(np.argsort(np.concatenate(chunks)))
    vectors = torch.cat([found.model.embed(tokens.take(chunk)).float() for chunk in chunks])[places]
    whole = found.compare(vectors.split(len(ROWS)), batch)
    whole.backward()
    expected = [p.grad for m in found.modules() for p in m.parameters() if p.grad is not None]
    assert loss == pytest.approx(whole.item(), abs=1e-6)
    for gradient, one in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, one, atol=5e-6, rtol=1e-4)


def test_a_chunk_holds_no_more_than_the_texts_of_one_role(make_spec, place, one_thread) -> None:
    """So many as are at once in memory where each role is chunked for itself."""
    found = learner(make_spec(), place, "MultipleNegativesRankingLoss", "packed")
    batch = found.fetch(ROWS)
    lengths = Tokens.join(batch.columns).lengths
    chunks = found._chunks(batch, 4)
    assert sorted(np.concatenate(chunks)) == list(range(len(lengths)))
    assert max(lengths[chunk].sum() for chunk in chunks) <= 4 * lengths.max()
    assert len(chunks) >= lengths.sum() / (4 * lengths.max())
