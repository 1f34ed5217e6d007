"""LossCase: what every loss must be, to be subclassed in a test of one's own loss.

    class TestMyLoss(LossCase):
        loss = "MyLoss"
        form = "pairs"

        def oracle(self, columns, labels, targets):
            ...  # the equation, in plain Python loops

The equation of the paper is the judge, in float32 and float64.
"""

from __future__ import annotations

import inspect
import math
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from luthier import registry
from luthier.errors import SpecError
from luthier.objectives import Embedded, Objective, build_objective, needs, problems
from luthier.spec import ObjectiveSpec

#: Text columns that each form of data has.
COLUMNS = {"labelled": 1, "pairs": 2, "triplets": 4, "scored": 2, "margin": 3}

Vectors = list[list[float]]


def random_batch(
    form: str, n: int = 6, dim: int = 8, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Embedded:
    """Random embeddings of n rows. Labels come in pairs, scores from 0 to 1."""
    generator = torch.Generator().manual_seed(seed)
    columns = tuple(
        torch.randn(n, dim, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for _ in range(COLUMNS[form])
    )
    labels = torch.arange(n) // 2 if form == "labelled" else None
    targets = None
    if form in ("scored", "margin"):
        targets = torch.rand(n, generator=generator, dtype=torch.float64).to(dtype)
    return Embedded(columns, labels, targets)


class LossCase:
    """Subclass with ``loss``, ``form`` and ``oracle``; more ``options`` where they matter."""

    loss: ClassVar[str]
    form: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}
    rows: ClassVar[int] = 6
    dim: ClassVar[int] = 8
    tolerance: ClassVar[float] = 1e-9  # relative, in float64

    def oracle(
        self, columns: list[Vectors], labels: list[int] | None, targets: list[float] | None
    ) -> float:
        """The loss by its equation, in plain Python."""
        raise NotImplementedError

    def make(self, **options: Any) -> Objective:
        """The objective, as a job would get it."""
        torch.manual_seed(0)
        spec = ObjectiveSpec(loss=self.loss, loss_options={**self.options, **options})
        classes = self.rows // 2 if self.form == "labelled" else 0
        built = build_objective(spec, dim=self.dim, num_classes=classes, form=self.form)
        return built.double()

    def batch(self, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Embedded:
        """Embeddings to compute the loss of."""
        return random_batch(self.form, self.rows, self.dim, seed=seed, dtype=dtype)

    @pytest.mark.parametrize("seed", range(5))
    def test_equals_its_equation(self, seed: int) -> None:
        batch = self.batch(seed=seed)
        expected = self.oracle(
            [column.tolist() for column in batch.columns],
            None if batch.labels is None else batch.labels.tolist(),
            None if batch.targets is None else batch.targets.tolist(),
        )
        assert self.make()(batch).item() == pytest.approx(expected, rel=self.tolerance, abs=1e-9)
        single = self.make().float()(self.batch(seed=seed, dtype=torch.float32)).item()
        assert single == pytest.approx(expected, rel=1e-4, abs=1e-4)

    def test_its_gradient_is_that_of_its_value(self) -> None:
        loss, batch = self.make(), self.batch()
        loss(batch).backward()
        step = 1e-6
        for column in batch.columns:
            gradient = column.grad
            assert gradient is not None
            for place in ((0, 0), (2, 3), (5, 7)):
                ends = []
                for sign in (1, -1):
                    moved = column.detach().clone()
                    moved[place] += sign * step
                    columns = tuple(moved if c is column else c.detach() for c in batch.columns)
                    ends.append(loss(Embedded(columns, batch.labels, batch.targets)).item())
                slope = (ends[0] - ends[1]) / (2 * step)
                assert gradient[place].item() == pytest.approx(slope, rel=1e-3, abs=1e-6)

    def test_the_order_of_rows_does_not_matter(self) -> None:
        batch = self.batch()
        order = torch.tensor([3, 1, 5, 0, 4, 2])

        def moved(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[order]

        other = Embedded(
            tuple(c[order] for c in batch.columns), moved(batch.labels), moved(batch.targets)
        )
        loss = self.make()
        assert loss(other).item() == pytest.approx(loss(batch).item(), rel=1e-9, abs=1e-12)

    def test_half_precision_embeddings_are_compared_in_full(self) -> None:
        batch = self.batch(dtype=torch.float32)
        halves = tuple(c.detach().bfloat16().requires_grad_() for c in batch.columns)
        full = tuple(c.detach().float() for c in halves)
        loss = self.make().float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss(Embedded(halves, batch.labels, batch.targets))
        assert value.dtype == torch.float32
        assert value.item() == loss(Embedded(full, batch.labels, batch.targets)).item()
        value.backward()
        assert all(h.grad is not None and h.grad.dtype == torch.bfloat16 for h in halves)

    @pytest.mark.parametrize("rows", [1, 2])
    def test_the_smallest_batches_are_finite(self, rows: int) -> None:
        full = self.batch()
        columns = tuple(c[:rows].detach().requires_grad_() for c in full.columns)
        labels = None if full.labels is None else full.labels[:rows]
        targets = None if full.targets is None else full.targets[:rows]
        value = self.make()(Embedded(columns, labels, targets))
        value.backward()
        assert math.isfinite(value.item())
        for column in columns:
            assert column.grad is not None
            assert bool(column.grad.isfinite().all())

    def test_its_card_tells_the_truth(self) -> None:
        card = registry.find("loss", self.loss)
        assert self.form in card.forms
        assert card.summary
        assert card.paper
        spec = ObjectiveSpec(loss=self.loss, loss_options=self.options)
        assert problems(spec, self.form) == []
        assert bool(list(self.make().parameters())) == needs(spec).learns
        if card.facts.get("family") is None and not card.facts.get("wraps"):
            taken = inspect.signature(card.load()).parameters
            filled = card.facts.get("fills", {})
            assert {o.name: o.default for o in card.options} == {
                name: p.default for name, p in taken.items() if name not in filled
            }

    def test_options_that_it_lacks_are_refused(self) -> None:
        with pytest.raises(SpecError, match="takes no option 'no_such_option'"):
            self.make(no_such_option=1)
