"""After training: choose the model, measure it, and write the result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from luthier.engine.control import Listener
from luthier.engine.examine import Examiner
from luthier.engine.oversight import starting
from luthier.engine.read import Place
from luthier.engine.setup import Setup, checkpointed, checkpoints, pretrained, prune
from luthier.engine.state import OURS, write_state
from luthier.engine.updating import UpdatingLearner
from luthier.errors import CorruptBundle, NotFound
from luthier.evaluation.report import Report, write_report
from luthier.models.adapters import merge, merged, restore, save_adapter, trainable
from luthier.models.text import TextModel
from luthier.models.vocabulary import whole
from luthier.spec import CalculatorCallback, WiSEFTCallback
from luthier.store.bundle import Bundle, open_bundle, write_bundle


def finished(place: Place) -> Bundle | None:
    """The result of a run that has already been written, if it is there and whole."""
    try:
        return open_bundle(place.folder / "result")
    except (NotFound, CorruptBundle):
        return None


def publish(
    setup: Setup,
    examiner: Examiner,
    before: Any,
    tell: Listener,
) -> Bundle:
    """Write the result bundle: the model, its report and its card.

    The model is the last, or the best where a callback asked for it, mixed with the
    pretrained one where WiSE-FT was asked for.
    """
    if isinstance(setup.model, TextModel):
        whole(setup.model)
    oversight = examiner.oversight
    skipped = oversight is not None and oversight.skips
    model, is_last = (starting(setup), True) if skipped else _chosen(setup, examiner, tell)
    if setup.update is not None:
        is_last = _ended(setup.update, model, examiner, skipped=skipped) and is_last
    after = examiner.latest if is_last and examiner.latest_is_current else None
    if after is None:
        after = examiner.judge.evaluate(model)
    tell("stage", {"name": "writing the result"})
    update = None if oversight is None else oversight.told(before, after, model)
    report = examiner.judge.report(before, after, _facts(setup) | {"update": update})
    metrics = _metrics(setup, before, after, report)
    if update is not None:
        metrics["update"] = update
        metrics["test"] = examiner.judge.tested(model)
        metrics["seconds"] = round(setup.position.seconds, 3)
    tell("report", metrics)

    def fill(folder: Path) -> None:
        model.save(folder)
        ours = folder / OURS
        ours.mkdir(exist_ok=True)
        if model.adapter is not None:
            save_adapter(model, ours / "adapter")
        (ours / "spec.json").write_text(setup.spec.canonical())
        write_state(
            ours,
            setup.position,
            setup.history,
            {"objective": dict(setup.learner.objective.state_dict())},
        )
        if oversight is not None and update is not None:
            oversight.save(ours, update)
        (ours / "metrics.json").write_text(json.dumps(metrics))
        write_report(ours, report)
        (folder / "README.md").write_text(examiner.judge.card(report), encoding="utf-8")
        if setup.spec.output.to_onnx:
            from luthier.models.onnx import export_onnx

            tell("stage", {"name": "exporting to ONNX"})
            with merged(model):
                worst = export_onnx(model, folder)
            message = f"the ONNX graph gives the model's vectors to {worst:.1e}"
            tell("log", {"level": "info", "message": message})

    meta = {"kind": "result", "spec_id": setup.spec.id, "metrics": metrics}
    result = setup.place.folder / "result"
    bundle: Bundle | None = None
    with setup.means.whole(setup.model):
        if setup.means.writes:
            bundle = write_bundle(result, fill, meta)
            prune(checkpoints(setup.place), 0)
            prune(setup.place.folder / "best", 0)
    setup.means.barrier()
    return bundle or open_bundle(result)


def _ended(update: UpdatingLearner, model: Any, examiner: Examiner, *, skipped: bool) -> bool:
    """Let the updater have its last say. Returns whether the model is as it was."""
    if skipped:
        update.updater.detach(model)
        return True
    return update.end(model, examiner.judge.evaluate)


def _chosen(setup: Setup, examiner: Examiner, tell: Listener) -> tuple[Any, bool]:
    """The model that is published, and whether it is the one that training ended with."""
    model, is_last = setup.model, True
    best = examiner.best()
    if best is not None:
        step = open_bundle(best).meta["step"]
        tell("log", {"level": "info", "message": f"the best model is that of step {step}"})
        if step != setup.position.done:
            model = checkpointed(setup, best)
            is_last = False
    if is_last and setup.means.half and model.adapter is not None:
        model, is_last = _in_full(setup), False
    mix = next((c for c in setup.spec.callbacks if isinstance(c, WiSEFTCallback)), None)
    if mix is not None:
        merge(model)
        new_head = setup.spec.model.output_dim is not None and not setup.spec.model.artifact
        start = pretrained(setup)
        merge(start)
        _interpolate(model, start, mix.alpha, new_head=new_head)
        is_last = False
    return model, is_last


def _in_full(setup: Setup) -> Any:
    """The pretrained weights as they were, and the adapters as they are, all in float32."""
    with setup.means.whole(setup.model):
        tuned = {name: weight.float().clone() for name, weight in trainable(setup.model).items()}
    model = pretrained(setup)
    restore(model, tuned)
    return model


def _interpolate(model: Any, start: Any, alpha: float, *, new_head: bool) -> None:
    """WiSE-FT: ``alpha * tuned + (1 - alpha) * start``, in place, for what was trained.

    A new head has no pretrained weights to be mixed with: it stays as tuned.
    """
    origin = dict(start.named_parameters())
    with torch.no_grad():
        for name, parameter, depth in model.depths():
            if parameter.requires_grad and not (new_head and depth > model.layers):
                parameter.lerp_(origin[name].to(parameter.device), 1 - alpha)


def _facts(setup: Setup) -> dict[str, Any]:
    """What a report says of any run."""
    spec, training = setup.spec, setup.spec.training
    return {
        "run": {
            "task": spec.task,
            "model": spec.model.name,
            "optimizer": training.optim,
            "learning rate": training.learning_rate,
            "schedule": training.lr_scheduler_type,
            "batch": setup.plan.batch_size,
            "epochs": round(setup.position.done / setup.plan.steps_per_epoch, 2),
            "steps": setup.position.done,
            "seed": training.seed,
        },
        "losses": setup.history.losses,
        "learning_rates": setup.history.learning_rates,
        "evaluations": setup.history.evaluations,
        "environment": {
            "device": str(setup.device.torch),
            "precision": setup.device.precision,
            "threads": torch.get_num_threads(),
            "seconds": round(setup.position.seconds, 1),
        },
        "lineage": {
            "spec": spec.id,
            "model": spec.model.name,
            "artifact": spec.model.artifact,
            "train data": spec.data.train.uri,
            "train data sha256": spec.data.train.sha256,
            "evaluation data": spec.data.eval.uri if spec.data.eval else None,
        },
    }


def _metrics(setup: Setup, before: Any, after: Any, report: Report) -> dict[str, Any]:
    found: dict[str, Any] = {"steps": setup.position.done, **setup.measured}
    if setup.history.losses:
        found["train_loss"] = setup.history.losses[-1]
    if before is not None and after is not None:
        found |= {"before": before.metrics, "after": after.metrics}
    if any(isinstance(c, CalculatorCallback) for c in setup.spec.callbacks):
        last = setup.history.evaluations[-1] if setup.history.evaluations else {}
        names = [n for n in last if n.startswith(("train_", "test_")) and n != "train_loss"]
        found["calculated"] = {name: last[name] for name in names}
    if report.comparison is not None:
        found["verdict"] = report.comparison.verdict
    if report.bm25 is not None:
        found["bm25"] = {name: interval.value for name, interval in report.bm25.items()}
    return found
