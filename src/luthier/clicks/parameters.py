"""``FineTuningParams``: what a search varies, with the names and defaults of Embedding Studio."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from luthier.clicks.curriculum import ExamplesType, examples_order
from luthier.errors import DataError, Problem, SpecError, nearest


class Strict(BaseModel):
    """Frozen, and strict about names. Raises SpecError with every problem, a hint where a name
    is like a known one."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, protected_namespaces=()
    )

    def __init__(self, **given: Any) -> None:
        try:
            super().__init__(**given)
        except ValidationError as error:
            what = type(self).__name__
            known = tuple(type(self).model_fields)
            found = [_problem(item, what, known) for item in error.errors(include_url=False)]
            raise SpecError(found) from None


def _problem(item: Any, what: str, known: tuple[str, ...]) -> Problem:
    field = ".".join(str(part) for part in item["loc"]) or what
    if item["type"] == "extra_forbidden":
        hint = nearest(field, known) or f"known: {', '.join(known)}"
        return Problem(field, f"{what} has no such field", hint)
    if item["type"] == "missing":
        return Problem(field, f"{what} needs it")
    message = item["msg"].removeprefix("Value error, ")
    given = item.get("input")
    shown = "" if isinstance(given, dict | list) else f", not {given!r:.80}"
    return Problem(field, message + shown)


class FineTuningParams(Strict):
    """Hyperparameters of one training on clicks.

    num_fixed_layers: the embeddings and so many layers from the lowest do not train. query_lr,
    items_lr, query_weight_decay, items_weight_decay: of the two sides of a search. margin: of a
    loss with margins; None where the loss has none. not_irrelevant_only: leave sessions without a
    click out. negative_downsampling: the share in (0, 1] of non-clicks that is kept.
    min_abs_difference_threshold, max_abs_difference_threshold: a pair trains while its scores are
    apart by more than the one and less than the other. examples_order: the phases of training.
    """

    num_fixed_layers: int = Field(ge=0)
    query_lr: float = Field(gt=0, allow_inf_nan=False)
    items_lr: float = Field(gt=0, allow_inf_nan=False)
    query_weight_decay: float = Field(ge=0, allow_inf_nan=False)
    items_weight_decay: float = Field(ge=0, allow_inf_nan=False)
    margin: float | None = Field(allow_inf_nan=False)
    not_irrelevant_only: bool
    negative_downsampling: float = Field(gt=0, le=1)
    min_abs_difference_threshold: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    max_abs_difference_threshold: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    examples_order: list[ExamplesType] = [ExamplesType.all_examples]

    @field_validator("examples_order", mode="before")
    @classmethod
    def _by_number_or_name(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        try:
            return list(examples_order(value))
        except DataError as error:
            raise ValueError(f"{error.message}; {error.hint}") from None

    @model_validator(mode="after")
    def _room_between_the_thresholds(self) -> FineTuningParams:
        if self.min_abs_difference_threshold >= self.max_abs_difference_threshold:
            raise ValueError("min_abs_difference_threshold is below max_abs_difference_threshold")
        return self


#: Parameters that change the data rather than the training.
OF_DATA = ("not_irrelevant_only", "negative_downsampling")
