"""Judges encoders: retrieval, or correlation with scores, and the loss on held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from luthier.batches import make_plan
from luthier.data import facts
from luthier.data.rankings import Rankings
from luthier.engine.above import Above
from luthier.engine.calculating import Encode, calculating
from luthier.engine.control import Control, Listener, obeying
from luthier.engine.learner import EmbeddingLearner
from luthier.engine.precision import encoding_in, encoding_precision
from luthier.engine.ranking_learner import RankingLearner, sides
from luthier.engine.read import Data
from luthier.engine.setup import Setup, train_form
from luthier.errors import Problem, SpecError
from luthier.evaluation.card import model_card
from luthier.evaluation.measure import Evaluation, evaluate
from luthier.evaluation.report import Report, build_report
from luthier.evaluation.sets import EvaluationSet, evaluation_set
from luthier.objectives import needs
from luthier.registry import cards
from luthier.spec import EvaluationCallback


class RetrievalJudge:
    """Measures on the queries of an evaluation callback, or on the rows held out."""

    def __init__(self, setup: Setup, data: Data, tell: Listener, control: Control) -> None:
        self.setup, self.data, self.tell = setup, data, tell
        self._obey = obeying(control)
        spec = setup.spec
        self.callback = next((c for c in spec.callbacks if isinstance(c, EvaluationCallback)), None)
        self.set: EvaluationSet | None = None
        if data.queries is not None:
            self.set = evaluation_set(
                data.queries,
                index=data.index,
                exclude_self=self.callback.exclude_self if self.callback else True,
            )
        self._held_out = self._held_out_learner(data)
        self._above = Above(setup, tell, self._obey)
        self._calculating = calculating(spec, data.calculated, setup.place, self._encoders, tell)

    def evaluate(self, model: Any) -> Evaluation | None:
        """Retrieval (or correlation) of a model on the evaluation set, if there is one."""
        return None if self.set is None else self.measured(model, self.set)

    def measured(self, model: Any, found: EvaluationSet) -> Evaluation:
        """The same on any set."""
        self.tell("stage", {"name": "evaluating"})
        model.execution = self.setup.model.execution  # all that is compared runs the same way
        query, items = sides(model)
        index = None if items is query else self._encoder(items)
        if index is not None and found.kind in ("scored", "margin"):
            hint = "evaluate on rankings or on pairs"
            problem = Problem("model.towers", "two towers score no pairs of like texts", hint)
            raise SpecError([problem])
        words: dict[str, Any] = {}
        if self.callback is not None:
            words = {"k": self.callback.limit, "distance": self.callback.distance}
        return evaluate(self._encoder(query), found, encode_index=index, **words)

    def _encoder(self, tower: Any) -> Callable[[Sequence[str]], np.ndarray]:
        """How texts of one side become vectors, not normalized."""
        place, plain = self.setup.place, self.setup.model.execution == "padded"
        batch = self.setup.spec.training.per_device_eval_batch_size
        if self.callback:
            batch = self.callback.batch_size

        def encode(texts: Sequence[str]) -> np.ndarray:
            if (known := self._above.encode(tower, texts)) is not None:
                return known
            word = encoding_precision(tower, texts, place, plain, self.tell)
            with encoding_in(tower, word):
                vectors: np.ndarray = tower.encode(
                    texts, batch_size=batch, normalize=False, progress=lambda _: self._obey()
                )
            return vectors

        return encode

    def begin(self, starting: Callable[[], Any]) -> None:
        """Let calculators see the model that training starts from."""
        if self._calculating is not None:
            self._calculating.begin(starting, writes=self.setup.means.writes)

    def calculated(self, model: Any) -> dict[str, float]:
        """What calculators say of a model; nothing without any."""
        return {} if self._calculating is None else self._calculating(model)

    def _encoders(self, model: Any) -> tuple[Encode, Encode]:
        model.execution = self.setup.model.execution
        query, items = (self._encoder(tower) for tower in sides(model))
        return query, items

    def evaluate_quickly(self, model: Any) -> Evaluation | None:
        return self.evaluate(model)

    def tested(self, model: Any) -> list[dict[str, float]]:
        return []

    def read(self, record: dict[str, Any]) -> Evaluation:
        return Evaluation.from_dict(record)

    def report(
        self, before: Evaluation | None, after: Evaluation | None, told: dict[str, Any]
    ) -> Report:
        spec = self.setup.spec
        run = {
            "loss": spec.objective.loss,
            "miner": spec.objective.miner,
        }
        told = told | {"run": run | told["run"]}
        report = build_report(
            Path(spec.model.name).name,
            before=before,
            after=after,
            evaluation_set=self.set,
            seed=spec.training.seed,
            data=facts.describe(self.data.train),
            **told,
        )
        if self.callback is not None and not self.callback.gather_examples:
            report = replace(report, examples=())
        return report

    def card(self, report: Report) -> str:
        """A catalog model's licence and languages are known; others are not."""
        name = self.setup.spec.model.name
        known = {card.name: card.facts for card in cards("model")}.get(name, {})
        languages = known.get("languages")
        return model_card(
            report,
            base_model=known.get("hub_id") or name,
            license=known.get("license"),
            language=str(languages) if languages else None,
        )

    def _held_out_learner(self, data: Data) -> EmbeddingLearner | None:
        spec = self.setup.spec
        wants = needs(spec.objective)
        if data.held_out is None:
            return None
        if wants.fixed_classes:
            self._refuse_val_loss(
                f"{spec.objective.loss} has a centre for each training class, "
                "so its loss on other classes means nothing"
            )
            return None
        dataset = train_form(data.held_out, spec)
        learner = self.setup.learner
        if isinstance(dataset, Rankings):
            return RankingLearner(learner.model, learner.objective, dataset, learner.device)
        return EmbeddingLearner(learner.model, learner.objective, dataset, learner.device)

    def _refuse_val_loss(self, reason: str) -> None:
        for callback in self.setup.spec.callbacks:
            if getattr(callback, "monitor", None) == "val_loss":
                hint = "monitor an evaluation metric such as 'ndcg_at_k'"
                raise SpecError([Problem("callbacks.monitor", reason, hint)])

    def validation_loss(self) -> float | None:
        """Mean loss over the held-out rows, in batches of the training size."""
        learner, training = self._held_out, self.setup.spec.training
        if learner is None:
            return None
        plan = make_plan(
            learner.dataset,
            batch_size=min(self.setup.batch_size, len(learner.dataset)),
            num_items_per_class=training.num_items_per_class,
            sampler=training.sampler,
            seed=training.seed,
            objective=needs(self.setup.spec.objective),
        )
        learner.mode(training=False)
        total, rows = 0.0, 0
        for step in range(plan.steps_per_epoch):
            self._obey()
            with self._above.held_out(learner):
                batch = learner.fetch(plan.rows(0, step))
                total += learner.loss(batch) * len(batch)
            rows += len(batch)
        return total / rows
