"""Updaters by name: which parts each is put together from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luthier.registry import find
from luthier.updaters.averages import Complementary
from luthier.updaters.classes import NearestMean, RunningMeans
from luthier.updaters.distill import Previous
from luthier.updaters.elastic import Elastic
from luthier.updaters.expert import Distilled, Expert
from luthier.updaters.lowrank import LowRank
from luthier.updaters.memory import MEMORIES, Memory
from luthier.updaters.pooled import PooledOutputs
from luthier.updaters.projected import RandomProjection
from luthier.updaters.prompts import Domains, Pull
from luthier.updaters.replay import Dark, Replay
from luthier.updaters.updater import Pupil, Updater
from luthier.updaters.weights import Anchor, ShrinkAndPerturb


def build_updater(name: str, options: Mapping[str, Any], seed: int) -> Updater:
    """The updater of that name. Raises NotFound; options have been checked by its card."""
    card = find("updater", name)
    known = {option.name: option.default for option in card.options}
    updater: Updater = card.load()(**known | dict(options))
    for part in updater.parts:
        if hasattr(part, "seed"):
            part.seed = seed
    return updater


def build_memory(name: str, kind: str | None, size: int, seed: int) -> Memory:
    """The memory that an updater goes with, or of the kind that is asked for."""
    kind = kind or find("updater", name).facts["memory"]
    return MEMORIES[kind](size, seed) if kind else MEMORIES["reservoir"](0, seed)


def fine_tuning() -> Updater:
    return Updater()


def experience_replay(alpha: float, **shared: Any) -> Updater:
    return Updater([Replay(alpha)], **shared)


def asymmetric_replay(alpha: float, **shared: Any) -> Updater:
    return Updater([Replay(alpha)], asymmetric=True, offers="online", **shared)


def dark_replay(alpha: float, beta: float, distance: Any, **shared: Any) -> Updater:
    return Updater([*([Replay(beta)] if beta else ()), Dark(alpha, distance)], **shared)


def robust_replay(alpha: float, beta: float, **shared: Any) -> Updater:
    return Updater([Replay(beta), Dark(alpha, "huber")], **shared)


def pooled_replay(alpha: float, distillation_type: Any, normalize: bool, **shared: Any) -> Updater:
    return Updater([PooledOutputs(alpha, distillation_type, normalize)], **shared)


def complementary_replay(
    alpha: float,
    beta: float,
    stable_model_update_weight: float,
    plastic_model_update_weight: float,
    stable_model_update_probability: float,
    plastic_model_update_probability: float,
    published: str,
    **shared: Any,
) -> Updater:
    averages = Complementary(
        beta,
        stable_model_update_weight,
        plastic_model_update_weight,
        stable_model_update_probability,
        plastic_model_update_probability,
        published,
    )
    return Updater([Replay(alpha), averages], **shared)


def super_replay(
    der_alpha: float,
    der_beta: float,
    sp_shrink_factor: float,
    sp_sigma: float,
    cls_alpha: float,
    pod_alpha: float,
    **rest: Any,
) -> Updater:
    def of(prefix: str) -> dict[str, Any]:
        names = [name for name in rest if name.startswith(prefix)]
        return {name.removeprefix(prefix): rest.pop(name) for name in names}

    averages, pooled = of("cls_"), of("pod_")
    parts = (
        Dark(der_alpha),
        Replay(der_beta),
        Complementary(cls_alpha, **averages),
        ShrinkAndPerturb(sp_shrink_factor, sp_sigma),
        PooledOutputs(pod_alpha, **pooled),
    )
    return Updater(parts, **rest)


class ByNumber(Updater):
    """new and remembered rows share one loss, by default as their numbers do:
    N_t / (N_1 + … + N_t) for the new ones."""

    def start(self, pupil: Pupil, past: list[dict[str, Any]] | None = None) -> None:
        (replay,) = self.parts
        assert isinstance(replay, Replay)
        if not self.loss_weight:
            self.loss_weight = pupil.new_rows / max(1, pupil.new_rows + pupil.old_rows)
        replay.alpha = 1 - self.loss_weight
        super().start(pupil, past)


def offline_replay(loss_weight_new_data: float | None) -> Updater:
    return ByNumber([Replay()], offers="end", loss_weight=loss_weight_new_data or 0.0)


def greedy_dumb() -> Updater:
    return Updater(learns="memory", offers="start", fresh=True)


def joint() -> Updater:
    return Updater(learns="memory", offers="start", fresh=True)


def elastic(ewc_lambda: float, fisher_rows: int) -> Updater:
    return Updater([Elastic(ewc_lambda, fisher_rows)], loss_normalization=False)


def without_forgetting(alpha: float, temperature: float) -> Updater:
    return Updater([Previous(alpha, temperature)], loss_normalization=False)


def anchored(alpha: float) -> Updater:
    return Updater([Anchor(alpha)], loss_normalization=False)


def nearest_exemplars(alpha: float, temperature: float) -> Updater:
    parts = (Previous(alpha, temperature), NearestMean())
    return Updater(parts, learns="both", offers="end", loss_normalization=False)


def repeated_distillation() -> Updater:
    return Distilled([Expert()], offers="end", fresh=True, phases=2, renotes=True)


def nearest_mean(tune_first: bool) -> Updater:
    return Updater([RunningMeans()], tunes="first" if tune_first else "never")


def random_projection(projected: int, ridge: float | None, tune_first: bool) -> Updater:
    part = RandomProjection(projected, ridge, tune_first)
    return Updater([part], tunes="first" if tune_first else "never")


def low_rank(lora_r: int, lora_alpha: float, lora_dropout: float, orthogonality: float) -> Updater:
    part = LowRank(lora_r, lora_alpha, lora_dropout, orthogonality)
    return Updater([part], loss_normalization=False)


def learning_to_prompt(pull: float, asymmetric: bool) -> Updater:
    return Updater([Pull(pull)], loss_normalization=False, own_classes=asymmetric)


def domain_prompts() -> Updater:
    return Updater([Domains()])
