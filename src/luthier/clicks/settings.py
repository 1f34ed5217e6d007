"""``FineTuningSettings``: how training goes whatever the parameters are; losses and rankers.

A loss here is its name and its options: it trains in a worker's process, by the card of that name
in ``luthier.objectives``. The margin losses can be called as well, to be looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from luthier.clicks import rankers
from luthier.clicks.calculators import MetricCalculator
from luthier.clicks.confidence import dummy_confidences
from luthier.clicks.parameters import Strict
from luthier.errors import NotFound, Problem, SpecError
from luthier.registry import find

#: Rankers by the names that Embedding Studio gives them; see ``rankers``.
COSINE_SIMILARITY = rankers.cosine
DOT_PRODUCT = rankers.dot
EUCLIDEAN_DISTANCE = rankers.euclidean


@dataclass(frozen=True)
class RankingLossInterface:
    """A loss on rankings: the name of its card, and options of it."""

    card: ClassVar[str] = ""

    @property
    def name(self) -> str:
        """The name of the card that trains."""
        return self.card

    @property
    def options(self) -> dict[str, Any]:
        """Options that differ from the card's defaults."""
        return {}


@dataclass(frozen=True)
class RankingLoss(RankingLossInterface):
    """Any loss that takes rankings, by name: ``RankingLoss("LambdaLoss", {"k": 10})``."""

    loss: str
    loss_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.loss

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.loss_options)


@dataclass(frozen=True)
class ProbMarginRankingLoss(RankingLossInterface):
    """mean of c sigmoid(margin - t (positive - negative)), t = 1 for similarities, -1 for
    distances; c is the confidence of a pair. ``margin`` of the parameters is taken instead of
    ``base_margin`` where they have one.

    >>> loss = ProbMarginRankingLoss(base_margin=0.05)
    >>> round(float(loss(np.array([0.5, 0.3, 0.9]), np.array([0.2, 0.6, 0.1]))), 6)
    0.448421
    """

    base_margin: float = 1.0
    card: ClassVar[str] = "ProbMarginRankingLoss"

    @property
    def options(self) -> dict[str, Any]:
        return {"margin": self.base_margin}

    def __call__(
        self, positive: Any, negative: Any, confidence: Any = 1.0, *, is_similarity: bool = True
    ) -> Any:
        """The loss of the scores of pairs, [p] each, arrays or tensors; 0 of no pair."""
        t = 1.0 if is_similarity else -1.0
        apart = self.base_margin - t * (positive - negative)
        losses = confidence * _sigmoid(self._scaled(apart))
        return losses.mean() if len(losses) else losses.sum()

    def _scaled(self, apart: Any) -> Any:
        return apart


@dataclass(frozen=True)
class CosineProbMarginRankingLoss(ProbMarginRankingLoss):
    """The same with sigmoid(400 a - 6), as steep as differences of cosines are small.

    >>> loss = CosineProbMarginRankingLoss(base_margin=0.05)
    >>> round(float(loss(np.array([0.5, 0.3, 0.9]), np.array([0.2, 0.6, 0.1]))), 6)
    0.333333
    """

    card: ClassVar[str] = "CosineProbMarginRankingLoss"

    def _scaled(self, apart: Any) -> Any:
        return 400.0 * apart - 6.0


def _sigmoid(x: Any) -> Any:
    if hasattr(x, "sigmoid"):
        return x.sigmoid()
    return np.exp(-np.logaddexp(0.0, -np.asarray(x, np.float64)))


@dataclass(frozen=True)
class EarlyStopping:
    """Lightning's words for stopping early.

    monitor: ``val_loss`` (``test_loss`` means the same), ``train_loss``, or a metric. patience:
    evaluations without an improvement. strict: a monitor that nothing measures is an error;
    without it there is then no early stopping, and that is said. verbose: say in the result that
    it stopped early. mode: min, max, or auto.
    """

    monitor: str = "val_loss"
    patience: int = 3
    strict: bool = True
    verbose: bool = False
    mode: Literal["auto", "min", "max"] = "min"
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        wrong = []
        if isinstance(self.patience, bool) or not isinstance(self.patience, int):
            wrong.append(Problem("patience", f"is a whole number, not {self.patience!r}"))
        elif self.patience < 1:
            wrong.append(Problem("patience", f"is at least 1, not {self.patience}"))
        if self.mode not in ("auto", "min", "max"):
            wrong.append(Problem("mode", f"is min, max or auto, not {self.mode!r}"))
        if not self.min_delta >= 0:
            wrong.append(Problem("min_delta", f"is not negative, not {self.min_delta!r}"))
        if wrong:
            raise SpecError(wrong)

    @property
    def measured_as(self) -> str:
        """What the engine calls the monitor."""
        return "val_loss" if self.monitor == "test_loss" else self.monitor


class FineTuningSettings(Strict):
    """How training goes. Names and defaults of the first ten are Embedding Studio's.

    loss_func: a loss, or the name of one that takes rankings. metric_calculators: what is told
    of the trained model beside its evaluation. ranker: ``COSINE_SIMILARITY``, ``DOT_PRODUCT`` or
    ``EUCLIDEAN_DISTANCE``; is_similarity: whether more is more similar, which must fit it.
    confidence_calculator: (ranks, clicks, starts) → weights. step_size, gamma: the learning rates
    are multiplied by gamma every step_size steps; None: they stay. batch_size: sessions a step.
    test_each_n_inputs: evaluate after that share of an epoch (0 to 1), that many sessions (above
    1), or each epoch (0 and below).

    early_stopping, gradient_accumulation_steps, optimizer, towers ("two": queries and items train
    copies of their own), negatives ("skip_above": only what stands above the last click),
    mined_negatives (so many items a query that the starting model finds, and nobody clicked; not
    those nearer than what was clicked less ``mined_margin``) and rows are ours. rows: what is one
    list, each of the "sessions", or all sessions of one of the "queries"; then an item counts by
    what it has above its query's mean, less ``certainty`` standard errors.
    """

    loss_func: RankingLossInterface
    metric_calculators: list[MetricCalculator] | None = None
    ranker: Callable[[Any, Any], Any] | None = COSINE_SIMILARITY
    is_similarity: bool | None = True
    confidence_calculator: Callable[..., Any] | None = dummy_confidences
    step_size: int | None = Field(default=500, ge=1)
    gamma: float | None = Field(default=0.9, gt=0, le=1)
    num_epochs: int | None = Field(default=10, ge=1)
    batch_size: int | None = Field(default=1, ge=1)
    test_each_n_inputs: float | int | None = -1
    early_stopping: EarlyStopping | None = None
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    optimizer: str = "AdamW"
    towers: Literal["shared", "two"] = "shared"
    negatives: Literal["all", "skip_above"] = "all"
    mined_negatives: int = Field(default=0, ge=0)
    mined_margin: float = Field(default=0.05, allow_inf_nan=False)
    rows: Literal["sessions", "queries"] = "sessions"
    certainty: float = Field(default=2.0, ge=0, allow_inf_nan=False)

    @field_validator("loss_func", mode="before")
    @classmethod
    def _known_loss(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = RankingLoss(value)
        if isinstance(value, RankingLossInterface):
            try:
                card = find("loss", value.name)
            except NotFound as error:
                raise ValueError(f"{error.message}; {error.hint}") from None
            if card.forms and "rankings" not in card.forms:
                raise ValueError(f"{card.name} does not take rankings")
            return value
        raise ValueError(
            "a loss of luthier.clicks, or the name of one; a loss of your own is a card "
            "(entry point luthier.plugins), because it trains in a worker's process"
        )

    @field_validator("ranker", "confidence_calculator", "is_similarity", "num_epochs",
                     "batch_size", "test_each_n_inputs", mode="after")  # fmt: skip
    @classmethod
    def _none_is_the_default(cls, value: Any, info: Any) -> Any:
        return cls.model_fields[info.field_name].default if value is None else value

    @field_validator("ranker", mode="after")
    @classmethod
    def _known_ranker(cls, value: Any) -> Any:
        known = {function for function, _ in rankers.RANKERS.values()}
        if value not in known:
            raise ValueError(
                "one of COSINE_SIMILARITY, DOT_PRODUCT and EUCLIDEAN_DISTANCE: training and "
                "search compare vectors by it, in other processes"
            )
        return value

    @model_validator(mode="after")
    def _consistent(self) -> FineTuningSettings:
        if self.is_similarity != rankers.RANKERS[self.ranker_name][1]:
            kind = "distance" if self.is_similarity else "similarity"
            raise ValueError(f"is_similarity={self.is_similarity}, and the ranker is a {kind}")
        if self.mined_negatives and self.ranker_name == "euclidean":
            raise ValueError("mined_negatives are nearest by COSINE_SIMILARITY or DOT_PRODUCT")
        if (self.step_size is None) != (self.gamma is None):
            raise ValueError("step_size and gamma are given together, or both None")
        if self.rows == "queries":
            self._of_queries()
        elif self.certainty != type(self).model_fields["certainty"].default:
            raise ValueError("certainty is of rows='queries'")
        return self

    def _of_queries(self) -> None:
        """Refuse what is of single sessions."""
        if self.negatives != "all":
            raise ValueError("rows='queries' takes all that was shown: negatives is 'all'")
        if self.mined_negatives:
            raise ValueError("mined_negatives are added to sessions: rows is 'sessions'")
        if self.confidence_calculator is not dummy_confidences:
            raise ValueError("a confidence_calculator weighs clicks: rows is 'sessions'")

    @property
    def ranker_name(self) -> str:
        """cosine, dot or euclidean."""
        return next(n for n, (function, _) in rankers.RANKERS.items() if function == self.ranker)

    def eval_steps(self, rows: int) -> int | None:
        """Optimizer steps between evaluations for so many sessions of training; None: each epoch.

        >>> FineTuningSettings(loss_func="ListwiseSoftmaxLoss", batch_size=4,
        ...                    test_each_n_inputs=0.5).eval_steps(80)
        10
        """
        asked = float(self.test_each_n_inputs or 0)
        each = (self.batch_size or 1) * self.gradient_accumulation_steps
        if asked <= 0 or asked == 1:
            return None
        if asked < 1:
            return max(1, round(asked * -(-rows // each)))
        return max(1, round(asked / each))
