"""UpdaterCase: what every updater must be, to be subclassed in a test of one's own updater.

    class TestMine(UpdaterCase):
        updater = "Mine"                 # the name of its card
        options = {"alpha": 0.3}         # where the defaults do not show what it does

An updater trains a small model here, step by step as the engine does it, over two updates. Its
equation is for a test of its own: a slow one in plain Python, as in ``tests/updaters``.
"""

from __future__ import annotations

import copy
import json
import random
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from luthier import registry
from luthier.engine.state import flatten, random_states, unflatten
from luthier.testing.pupils import SmallPupil
from luthier.updaters.build import build_memory, build_updater
from luthier.updaters.memory import Memory
from luthier.updaters.updater import Seen, Updater

#: Rows of an update, steps of a phase, rows of a step.
ROWS, STEPS, BATCH = 24, 6, 6


def kept(tree: Any) -> Any:
    """What a bundle gives back of a tree: JSON and tensors, and nothing else gets through."""
    tensors: dict[str, Tensor] = {}
    return unflatten(json.loads(json.dumps(flatten(tree, tensors, "it"))), tensors)


class Lesson:
    """One update of a pupil.

    rows: of the pupil, those that are remembered before those that are new. past: what the
    updater handed on. Attributes: pupil, updater, memory, done (steps).
    """

    def __init__(
        self, updater: Updater, pupil: SmallPupil, memory: Memory, past: list[Any] | None = None
    ) -> None:
        self.updater, self.pupil, self.memory, self.done = updater, pupil, memory, 0
        updater.attach(pupil.model, pupil.updates)
        pupil.model.to(pupil.inputs.dtype if pupil.inputs.is_floating_point() else torch.float32)
        self.fresh = copy.deepcopy(pupil.model.state_dict())
        self._optimize()
        updater.start(pupil, past)

    def _optimize(self) -> None:
        trained = [p for p in self.pupil.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(trained, lr=0.05, momentum=0.9)

    @property
    def steps(self) -> int:
        """How many there are in all phases."""
        return STEPS * self.updater.phases if self.updater.trains(self.pupil.updates) else 0

    def step(self) -> float:
        """The next one; returns its loss."""
        if self.done and self.done % STEPS == 0 and self.done < self.steps:
            self.updater.turned(self.pupil, self.done // STEPS)
            self.pupil.model.load_state_dict(self.fresh)
            self._optimize()
        first = BATCH * self.done % ROWS
        new = self.pupil.see(self.pupil.batch(range(first, first + BATCH)))
        loss = self.updater.loss(self.pupil, new, self._replay())
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.updater.stepped(self.pupil.model)
        self.done += 1
        return loss.item()

    def _replay(self) -> Seen | None:
        slots = self.updater.extend(self.memory, BATCH, self.done)
        if self.updater.learns != "new" or not len(slots):
            return None
        seen = self.pupil.see(self.pupil.batch(self.memory.rows[slots]))
        there = {name: self.memory.noted(name, slots) for name in self.memory.kept}
        return Seen(seen.batch, seen.scores, seen.features, there)

    def finish(self) -> list[dict[str, Any]]:
        """The last of the five points. Returns what is handed on."""
        self.updater.detach(self.pupil.model)
        for weights in list(self.updater.candidates(self.pupil.model).values())[-1:]:
            self.pupil.model.load_state_dict(weights)
        slots, _ = self.memory.offer(np.arange(ROWS, dtype=np.int64), self.pupil.of.numpy())
        if self.updater.notes and len(slots):
            with torch.no_grad():
                seen = self.pupil.see(self.pupil.batch(self.memory.rows[slots]))
            self.memory.note("scores", slots, seen.scores)
            for i, layer in enumerate(seen.features):
                self.memory.note(f"features.{i}", slots, layer)
        self.updater.end(self.pupil)
        return self.updater.hand_on()

    def state(self) -> dict[str, Any]:
        """What a checkpoint has."""
        return {
            "model": dict(self.pupil.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "updater": self.updater.state(),
            "memory": self.memory.state(),
            "done": self.done,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of ``state``."""
        self.pupil.model.load_state_dict(state["model"])
        self._optimize()
        self.optimizer.load_state_dict(state["optimizer"])
        self.updater.restore(state["updater"])
        self.memory.restore(state["memory"])
        self.done = state["done"]


class UpdaterCase:
    """Subclass with ``updater``; ``options`` where they matter, and ``pupil`` where it needs a
    model of its own kind."""

    updater: ClassVar[str]
    options: ClassVar[dict[str, Any]] = {}

    def pupil(self, updates: int) -> SmallPupil:
        """The pupil of an update after so many others: the same each time it is asked for."""
        generator = torch.Generator().manual_seed(updates)
        inputs = torch.randn(ROWS, 3, generator=generator)
        found = SmallPupil(inputs, torch.arange(ROWS) % 4, 4, seed=updates)
        found.updates, found.old_rows = updates, ROWS * updates
        return found

    def build(self) -> Updater:
        """The updater, as a job would get it."""
        return build_updater(self.updater, self.options, seed=3)

    def lesson(self, updates: int = 0, before: Any = None) -> Lesson:
        """An update. before: memory and state of the one before, as ``first`` gives them."""
        policy = registry.find("updater", self.updater).facts["memory"]
        memory = build_memory(self.updater, None, 8 if policy else 0, seed=3)
        with torch.random.fork_rng(devices=[]):
            pupil = self.pupil(updates)
        if before is not None:
            memory.restore(kept(before["memory"]))
            self.attached(pupil, before["model"])
        past = None if before is None else kept(before["state"])
        return Lesson(self.build(), pupil, memory, past)

    def attached(self, pupil: SmallPupil, model: dict[str, Tensor]) -> None:
        """Load weights into a pupil that nothing was attached to, or what is published has it."""
        if set(model) != set(pupil.model.state_dict()):
            self.build().attach(pupil.model, pupil.updates)
        pupil.model.load_state_dict(model)

    def first(self) -> dict[str, Any]:
        """What a first update leaves; the same each time, so it is made once."""
        if "_left" not in vars(self):
            self._left = self._first()
        return copy.deepcopy(self._left)

    def _first(self) -> dict[str, Any]:
        lesson = self.lesson()
        while lesson.done < lesson.steps:
            lesson.step()
        state = lesson.finish()
        model = copy.deepcopy(lesson.pupil.model.state_dict())
        return {"state": state, "memory": lesson.memory.state(), "model": model}

    def begun(self, updates: int) -> Lesson:
        """An update before its first step."""
        return self.lesson() if not updates else self.lesson(1, self.first())

    def weights(self, lesson: Lesson) -> Tensor:
        """All weights, one after the other."""
        state = lesson.pupil.model.state_dict().values()
        return torch.cat([t.detach().flatten().double() for t in state])

    # --- the laws ------------------------------------------------------------------------------

    @pytest.mark.parametrize("updates", [0, 1])
    def test_losses_are_finite_and_reach_what_trains(self, updates: int) -> None:
        lesson = self.begun(updates)
        before = self.weights(lesson)
        losses = [lesson.step() for _ in range(lesson.steps)]
        assert np.isfinite(losses).all()
        if losses:
            assert not torch.equal(self.weights(lesson), before)
        lesson.finish()
        assert bool(self.weights(lesson).isfinite().all())

    @pytest.mark.parametrize("updates", [0, 1])
    def test_going_on_from_a_state_is_going_on(self, updates: int) -> None:
        """Bit for bit, and what is handed on as well; the state goes through JSON and tensors."""
        whole, states = self.begun(updates), dict[int, Any]()
        while whole.done < whole.steps:
            if whole.done % STEPS in (0, 2):  # also between two phases, and in the second
                states[whole.done] = kept(whole.state())
            whole.step()
        left = whole.finish()
        for state in states.values():
            again = self.begun(updates)
            again.restore(state)
            while again.done < again.steps:
                again.step()
            assert same(again.finish(), left)
            assert torch.equal(self.weights(again), self.weights(whole))

    @pytest.mark.parametrize("updates", [0, 1])
    def test_global_random_states_are_left_alone(self, updates: int) -> None:
        """Neither drawn from nor moved: a resumed attempt would not know."""

        def go(seed: int) -> Tensor:
            before = self.first() if updates else None
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            states = random_states()
            lesson = self.lesson(updates, before)
            while lesson.done < lesson.steps:
                lesson.step()
            lesson.finish()
            assert same(random_states(), states)
            return self.weights(lesson)

        assert torch.equal(go(1), go(2))

    def test_being_looked_at_changes_nothing(self) -> None:
        """An evaluation between two steps sends rows through the model, and that is all."""
        watched, alone = self.begun(1), self.begun(1)
        for _ in range(watched.steps):
            watched.step()
            alone.step()
            before = kept({"memory": watched.memory.state(), "updater": watched.updater.state()})
            with torch.no_grad():
                watched.pupil.model.eval()
                watched.pupil.losses(watched.pupil.see(watched.pupil.batch(range(ROWS))))
                watched.pupil.model.train()
            after = {"memory": watched.memory.state(), "updater": watched.updater.state()}
            assert same(kept(after), before)
        assert torch.equal(self.weights(watched), self.weights(alone))

    def test_what_is_handed_on_is_numbers_and_tensors(self) -> None:
        """And it is enough: the next update is the same with what came back from a bundle."""
        left = self.first()
        assert same(kept(left["state"]), left["state"])
        direct = Lesson(self.build(), *self._second(left), copy.deepcopy(left["state"]))
        stored = Lesson(self.build(), *self._second(left), kept(left["state"]))
        for lesson in (direct, stored):
            while lesson.done < lesson.steps:
                lesson.step()
            lesson.finish()
        assert torch.equal(self.weights(direct), self.weights(stored))

    def _second(self, left: dict[str, Any]) -> tuple[SmallPupil, Memory]:
        lesson = self.lesson(1, left)
        pupil = self.pupil(1)
        self.attached(pupil, left["model"])
        return pupil, lesson.memory

    def test_what_is_published_has_no_trace_of_the_optimizer(self) -> None:
        """What ``attach`` put in and ``detach`` takes out: the same names in every update."""
        names = set(self.first()["model"])
        second = self.begun(1)
        second.finish()
        assert set(second.pupil.model.state_dict()) == names


def same(one: Any, other: Any) -> bool:
    """Whether two trees are equal, tensors bit for bit."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        tensors = isinstance(one, Tensor) and isinstance(other, Tensor)
        return tensors and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        alike = isinstance(other, dict) and one.keys() == other.keys()
        return alike and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        alike = isinstance(other, list | tuple) and len(one) == len(other)
        return alike and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)
