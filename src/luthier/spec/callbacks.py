"""Callbacks as data, so that a spec can name them and a queue can carry them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from luthier.spec.source import Frozen, Source

Mode = Literal["auto", "min", "max"]


class EvaluationCallback(Frozen):
    """Retrieval metrics before training, after each epoch, and at the end.

    query_data: queries and what is relevant to them (pairs, or labelled items).
    index_data: what is searched; None searches the other items of query_data.
    limit: how many results are looked at. exclude_self: an item does not find itself.
    gather_examples: keep the top results of a few queries, before and after.
    """

    kind: Literal["evaluation"] = "evaluation"
    query_data: Source
    index_data: Source | None = None
    batch_size: int = Field(default=8, ge=1)
    exclude_self: bool = True
    limit: int = Field(default=20, ge=1)
    distance: Literal["cosine", "dot", "euclidean"] = "cosine"
    model: str | None = None
    index_model: str | None = None
    gather_examples: bool = False


class BestModelCheckpoint(Frozen):
    """The artifact is the model of the best epoch by ``monitor``, not the last."""

    kind: Literal["best_model"] = "best_model"
    monitor: str = "val_loss"
    mode: Mode = "auto"


class TrainingCheckpoint(Frozen):
    """Keep the checkpoints of the last k epochs."""

    kind: Literal["checkpoint"] = "checkpoint"
    last_k_epochs: int = Field(default=1, ge=1)


class EarlyStopping(Frozen):
    """Stop when ``monitor`` has not improved by ``min_delta`` for ``patience`` epochs."""

    kind: Literal["early_stopping"] = "early_stopping"
    monitor: str = "val_loss"
    mode: Mode = "auto"
    patience: int = Field(default=2, ge=1)
    min_delta: float = Field(default=0, ge=0)
    baseline: float | None = None


class WiSEFTCallback(Frozen):
    """The artifact's weights are ``alpha * tuned + (1 - alpha) * pretrained``.

    Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022, section 3.
    """

    kind: Literal["wise_ft"] = "wise_ft"
    alpha: float = Field(default=0.4, ge=0, le=1)


class CalculatorSpec(Frozen):
    """Says something of searches that the starting and the present model scored.

    name: a card of the kind "calculator", or the class that ``code`` defines. attributes: of its
    object. code: Python text. Who may hand in such a job may run code where it is worked on, as
    with ``program.config_file``.
    """

    name: str
    attributes: dict[str, Any] = Field(default_factory=dict)
    code: Source | None = None


class CalculatorCallback(Frozen):
    """What calculators say at each evaluation, as metrics ``train_NAME`` and ``test_NAME``.

    train_data, test_data: rankings that are scored. distance: how query and item are compared.
    """

    kind: Literal["calculators"] = "calculators"
    calculators: tuple[CalculatorSpec, ...] = Field(min_length=1)
    train_data: Source | None = None
    test_data: Source | None = None
    distance: Literal["cosine", "dot", "euclidean"] = "cosine"


class WandBLogger(Frozen):
    """Report to Weights & Biases (extra ``wandb``)."""

    kind: Literal["wandb"] = "wandb"
    project: str | None = None
    mode: Literal["online", "offline"] = "online"


class MLFlowLogger(Frozen):
    """Report to an MLflow tracking server or folder (extra ``mlflow``)."""

    kind: Literal["mlflow"] = "mlflow"
    experiment: str | None = None
    tracking_uri: str | None = None


CallbackSpec = Annotated[
    EvaluationCallback
    | BestModelCheckpoint
    | TrainingCheckpoint
    | EarlyStopping
    | WiSEFTCallback
    | CalculatorCallback
    | WandBLogger
    | MLFlowLogger,
    Field(discriminator="kind"),
]
