"""Generalised-mean pooling as a sentence-transformers module, so that a model saves it."""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers.base.modules import Module
from torch import Tensor


class GeM(Module):  # type: ignore[misc]
    r"""Generalised mean over the tokens of a text.

    .. math:: f_d = \left(\frac{1}{T}\sum_t \max(x_{td}, \epsilon)^p\right)^{1/p}

    Radenović et al., Fine-tuning CNN Image Retrieval with No Human Annotation, TPAMI 2018,
    section 3.2. p = 1 is the mean of the clamped values; p → ∞ is max pooling.

    Args:
        embedding_dimension: width of the token vectors.
        p: the exponent, above 0; the paper starts from 3.
        eps: smallest value before the power is taken, above 0.

    Input: ``token_embeddings`` [n, tokens, d] and ``attention_mask`` [n, tokens].
    Output: ``sentence_embedding`` [n, d].
    """

    config_keys = ["embedding_dimension", "p", "eps"]  # noqa: RUF012

    def __init__(self, embedding_dimension: int, p: float = 3.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.embedding_dimension = embedding_dimension
        self.p = float(p)
        self.eps = float(eps)

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        tokens: Tensor = features["token_embeddings"].float()  # powers overflow in half precision
        clamped = tokens.clamp(min=self.eps)
        if "cu_seq_lens_q" in features:  # texts one after another, [1, total, d]
            pooled = self._of_rows(clamped[0], features["cu_seq_lens_q"])
        else:
            pooled = self._of_padded(clamped, features["attention_mask"])
        features["sentence_embedding"] = pooled.to(features["token_embeddings"].dtype)
        return features

    def _of_padded(self, clamped: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask.unsqueeze(-1).to(clamped.dtype)
        # f(x) = m f(x / m) for any m > 0: with the maximum, no power over- or underflows.
        largest = (clamped * mask).detach().amax(dim=1, keepdim=True).clamp(min=self.eps)
        powers = (clamped * mask / largest).pow(self.p) * mask
        return self._root(powers.sum(dim=1) / mask.sum(dim=1).clamp(min=1.0), largest.squeeze(1))

    def _of_rows(self, clamped: Tensor, ends: Tensor) -> Tensor:
        lengths = ends.diff()
        text = torch.repeat_interleave(lengths)
        wide = text.unsqueeze(1).expand_as(clamped)
        largest = clamped.new_full((len(lengths), clamped.shape[1]), self.eps)
        largest = largest.scatter_reduce(0, wide, clamped.detach(), "amax")
        powers = (clamped / largest[text]).pow(self.p)
        total = torch.zeros_like(largest).index_add(0, text, powers)
        return self._root(total / lengths.unsqueeze(1), largest)

    def _root(self, mean: Tensor, largest: Tensor) -> Tensor:
        return largest * mean.clamp(min=torch.finfo(mean.dtype).tiny).pow(1.0 / self.p)

    def get_embedding_dimension(self) -> int:
        return self.embedding_dimension

    def save(self, output_path: str, *_: Any, **__: Any) -> None:
        self.save_config(output_path)
