"""Properties that hold for every plan, whatever the data."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.batches import Plan, make_plan
from luthier.batches.class_plan import ClassPlan, choose_shape
from luthier.batches.distinct_plan import DistinctPlan
from luthier.batches.random_plan import RandomPlan
from luthier.data import Dataset
from luthier.errors import DataError, SpecError
from luthier.objectives import Needs, needs
from luthier.spec import ObjectiveSpec

TRIPLET = needs(ObjectiveSpec(loss="TripletMarginLoss"))
ARCFACE = needs(ObjectiveSpec(loss="ArcFaceLoss"))
SUPCON = needs(ObjectiveSpec(loss="SupConLoss"))
RANKING = needs(ObjectiveSpec(loss="MultipleNegativesRankingLoss"))
COSENT = needs(ObjectiveSpec(loss="CoSENTLoss"))

CHECKS = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


def labelled(labels: list[int]) -> Dataset:
    table = pa.table({"text": [f"t{i}" for i in range(len(labels))], "label": pa.array(labels)})
    return Dataset("labelled", table, "some data", {})


def rows_of(*columns: list[str]) -> Dataset:
    names = ["anchor", "positive", "negative_1"][: len(columns)]
    form = "pairs" if len(columns) == 2 else "triplets"
    table = pa.table({n: pa.array(c, pa.string()) for n, c in zip(names, columns, strict=True)})
    return Dataset(form, table, "some data", {})


def scored(n: int) -> Dataset:
    texts = [f"t{i}" for i in range(n)]
    table = pa.table({"sentence1": texts, "sentence2": texts, "score": [0.5] * n})
    return Dataset("scored", table, "some data", {})


def plan(dataset: Dataset, objective: Needs, batch: int, **other: Any) -> Plan:
    given_: dict[str, Any] = {"num_items_per_class": 4, "sampler": "auto", "seed": 1} | other
    return make_plan(dataset, batch_size=batch, objective=objective, **given_)


def epoch(made: Plan, number: int = 0) -> list[list[int]]:
    return [made.rows(number, step).tolist() for step in range(made.steps_per_epoch)]


def flat(found: list[list[int]]) -> list[int]:
    return list(chain.from_iterable(found))


sizes = st.integers(1, 120)
batches = st.integers(2, 40)
texts = st.lists(
    st.tuples(st.sampled_from("abcdefghijkl"), st.sampled_from("abcdefghijklmnopqrstu")),
    min_size=2,
    max_size=80,
)
labels = st.lists(st.integers(0, 12), min_size=4, max_size=90).filter(lambda v: len(set(v)) > 1)


class TestPurity:
    """Rows depend on (data, seed, epoch, step) and on nothing else."""

    @pytest.mark.parametrize("kind", ["class", "distinct", "random"])
    def test_any_order_of_asking_gives_the_same_rows(self, kind: str) -> None:
        def made(**other: Any) -> Plan:
            if kind == "class":
                return plan(labelled([i // 5 for i in range(100)]), TRIPLET, 8, **other)
            if kind == "distinct":
                anchors, positives = (
                    [f"a{i % 20}" for i in range(100)],
                    [f"p{i % 33}" for i in range(100)],
                )
                return plan(rows_of(anchors, positives), RANKING, 8, **other)
            return plan(scored(100), COSENT, 8, **other)

        first, again = made(), made()
        forward = {(e, s): first.rows(e, s).tolist() for e in range(4) for s in range(10)}
        for e, s in sorted(forward, key=lambda at: (at[1] * 7 + at[0] * 3) % 11):
            assert again.rows(e, s).tolist() == forward[e, s]  # epochs are forgotten and remade
        assert made(seed=2).rows(0, 0).tolist() != forward[0, 0]
        assert epoch(first, 0) != epoch(first, 1)
        assert first.rows(0, 0).dtype == np.int64

    def test_the_numbers_are_those_of_every_version(self) -> None:
        """A change of these rows would make every running job resume with other batches."""
        assert plan(scored(10), COSENT, 4).rows(0, 0).tolist() == [0, 9, 4, 5]
        assert plan(labelled([0, 0, 1, 1, 2, 2]), TRIPLET, 4).rows(3, 1).tolist() == [0, 1, 4, 5]
        distinct = plan(rows_of(list("aabbccdd"), list("xyxyxyxy")), RANKING, 2)
        assert distinct.rows(0, 0).tolist() == [6, 1]

    def test_other_data_has_another_order(self) -> None:
        first = plan(scored(50), COSENT, 50)
        table = pa.table({"sentence1": ["a"] * 50, "sentence2": ["b"] * 50, "score": [0.0] * 50})
        other = plan(Dataset("scored", table, "other data", {}), COSENT, 50)
        assert first.rows(0, 0).tolist() != other.rows(0, 0).tolist()

    @pytest.mark.parametrize("step", [-1, 13, 1000])
    def test_a_step_beyond_the_epoch_is_refused(self, step: int) -> None:
        with pytest.raises(IndexError, match="of an epoch of 13"):
            plan(scored(100), COSENT, 8).rows(0, step)


class TestRandom:
    @CHECKS
    @given(sizes, batches, st.integers(0, 3))
    def test_each_row_once(self, n: int, size: int, number: int) -> None:
        made = plan(scored(n), COSENT, size)
        found = epoch(made, number)
        left_out = 1 if n > size and n % size == 1 else 0
        assert len(set(flat(found))) == len(flat(found))
        assert len(flat(found)) == n - left_out
        assert all(len(b) == min(size, n) for b in found[:-1])
        assert found[-1]

    def test_a_single_left_over_row_changes_from_epoch_to_epoch(self) -> None:
        made = plan(scored(9), COSENT, 4)
        missing = {next(iter(set(range(9)) - set(flat(epoch(made, e))))) for e in range(20)}
        assert len(missing) > 4
        assert "one row of 9" in made.notes[0]

    def test_a_loss_of_single_rows_keeps_it(self) -> None:
        cosine = needs(ObjectiveSpec(loss="CosineSimilarityLoss"))
        assert [len(b) for b in epoch(plan(scored(9), cosine, 4))] == [4, 4, 1]

    def test_a_batch_too_small_to_compare_is_refused(self) -> None:
        with pytest.raises(SpecError, match="use 2 or more"):
            plan(scored(9), COSENT, 1)

    def test_no_rows(self) -> None:
        with pytest.raises(DataError, match="no rows"):
            plan(scored(0), COSENT, 4)


class TestClasses:
    @CHECKS
    @given(labels, st.integers(4, 40), st.integers(1, 9), st.integers(0, 2))
    def test_balance_and_coverage(self, codes: list[int], size: int, k: int, number: int) -> None:
        made = plan(labelled(codes), TRIPLET, size, num_items_per_class=k)
        assert isinstance(made, ClassPlan)
        k_used = made.describe()["num_items_per_class"]
        p = made.describe()["classes_per_batch"]
        found = epoch(made, number)
        for batch in found:
            assert len(batch) == made.batch_size == k_used * p  # exactly full
            held = Counter(codes[row] for row in batch)
            assert len(held) == p >= 2
            assert set(held.values()) == {k_used}
            for start in range(0, len(batch), k_used):  # items of a class together
                group = batch[start : start + k_used]
                assert len({codes[row] for row in group}) == 1
                in_class = codes.count(codes[group[0]])
                assert len(set(group)) == min(k_used, in_class)  # repeats only where it must
        assert set(flat(found)) == set(range(len(codes)))

    @CHECKS
    @given(labels, st.integers(4, 24))
    def test_no_longer_than_it_must_be(self, codes: list[int], size: int) -> None:
        made = plan(labelled(codes), TRIPLET, size)
        k, p = (made.describe()[name] for name in ("num_items_per_class", "classes_per_batch"))
        groups = [-(-count // k) for count in Counter(codes).values()]
        assert made.steps_per_epoch == max(-(-sum(groups) // p), *groups)

    @pytest.mark.parametrize(
        ("classes", "size", "k", "used", "why"),
        [
            (2, 20, 4, 10, "would need 5 classes and there are 2"),
            (100, 4, 8, 2, "cannot hold 8 items of a class"),
            (100, 8, 3, 2, "3 does not divide the batch of 8"),
            (3, 8, 3, 4, "3 does not divide the batch of 8"),
            (100, 8, 8, 4, "one class only"),
            (100, 8, 1, 2, "one item of a class"),
        ],
    )
    def test_dead_ends_of_the_past(
        self, classes: int, size: int, k: int, used: int, why: str
    ) -> None:
        codes = [i % classes for i in range(classes * 12)]
        made = plan(labelled(codes), TRIPLET, size, num_items_per_class=k)
        assert made.describe()["num_items_per_class"] == used
        assert made.batch_size == size
        assert why in made.notes[0]
        assert f"using {used}" in made.notes[0]
        assert all(len(b) == size for b in epoch(made))

    def test_a_possible_k_is_used_as_it_is(self) -> None:
        made = plan(labelled([i % 50 for i in range(400)]), TRIPLET, 32)
        assert made.describe()["num_items_per_class"] == 4
        assert made.notes == ()

    def test_a_prime_batch_gets_smaller_and_says_so(self) -> None:
        made = plan(labelled([i % 50 for i in range(400)]), TRIPLET, 7, num_items_per_class=3)
        assert made.batch_size == 6
        assert "in batches of 6 instead of 7" in made.notes[0]

    def test_groups_meet_other_groups_each_epoch(self) -> None:
        codes = [i // 4 for i in range(400)]
        made = plan(labelled(codes), TRIPLET, 8)
        met = {frozenset(codes[row] for row in batch) for e in range(5) for batch in epoch(made, e)}
        assert len(met) > 5 * 50 * 0.9

    def test_a_class_meets_many_others_within_an_epoch(self) -> None:
        codes = [i // 40 for i in range(4000)]
        made = plan(labelled(codes), TRIPLET, 8)
        met = {
            codes[row] for batch in epoch(made) for row in batch if 0 in {codes[r] for r in batch}
        }
        assert len(met - {0}) >= 7  # of 10 groups, each with one other class

    def test_small_classes_are_reported(self) -> None:
        made = plan(labelled([i // 2 for i in range(100)]), TRIPLET, 8)
        assert "50% of the items of an epoch fill up groups of 4" in made.notes[0]
        made = plan(labelled([*range(10), 0, 1]), TRIPLET, 4, num_items_per_class=2)
        assert "8 of 10 classes have one item" in made.notes[0]

    def test_a_large_class_is_reported(self) -> None:
        made = plan(labelled([0] * 100 + [1] * 4), TRIPLET, 8)
        assert made.steps_per_epoch == 25
        assert "the largest class sets the length" in made.notes[0]

    def test_samplers(self) -> None:
        data = labelled([i % 10 for i in range(100)])
        assert isinstance(plan(data, TRIPLET, 8), ClassPlan)
        assert isinstance(plan(data, TRIPLET, 8, sampler="random"), RandomPlan)
        assert isinstance(plan(data, ARCFACE, 8), RandomPlan)
        assert isinstance(plan(data, ARCFACE, 8, sampler="class"), ClassPlan)
        with pytest.raises(SpecError, match="SupConLoss compares items of a class"):
            plan(data, SUPCON, 8, sampler="random")
        with pytest.raises(SpecError, match="'class' needs labelled data"):
            plan(scored(9), COSENT, 8, sampler="class")

    def test_a_batch_without_contrast_is_refused(self) -> None:
        with pytest.raises(SpecError, match="two items of two classes"):
            plan(labelled([0, 0, 1, 1, 2, 2]), TRIPLET, 3)

    @pytest.mark.parametrize("codes", [[0] * 9, [0, 1, 1]])
    def test_data_without_contrast_falls_back_and_says_so(self, codes: list[int]) -> None:
        made = plan(labelled(codes), SUPCON, len(codes))
        assert isinstance(made, RandomPlan)
        assert "cannot be balanced" in made.notes[-1]

    def test_a_classifier_needs_no_contrast(self) -> None:
        made = plan(labelled([0] * 9), ARCFACE, 3, sampler="class")
        assert sorted(set(flat(epoch(made)))) == list(range(9))

    @given(st.integers(1, 64), st.integers(1, 64), st.integers(2, 50), st.booleans())
    def test_shapes_always_fit(self, size: int, k: int, classes: int, contrast: bool) -> None:
        shape = choose_shape(size, k, classes, contrast)
        if shape is None:
            assert contrast
            assert size < 4
            return
        least = 2 if contrast else 1
        assert least <= shape.classes <= classes
        assert shape.items >= least
        assert shape.classes * shape.items <= size
        if (shape.classes * shape.items, shape.items) != (size, k):
            assert shape.note
        else:
            assert shape.note is None


class TestDistinct:
    def clashes(self, columns: list[list[str]], found: list[list[int]]) -> int:
        count = 0
        for batch in found:
            held: Counter[str] = Counter()
            for row in batch:
                held.update({column[row] for column in columns})
            count += sum(times - 1 for times in held.values())
        return count

    @CHECKS
    @given(texts, st.integers(2, 12), st.integers(0, 2))
    def test_no_text_twice_and_no_row_twice(
        self, pairs: list[tuple[str, str]], size: int, number: int
    ) -> None:
        columns = [list(c) for c in zip(*pairs, strict=True)]
        made = plan(rows_of(*columns), RANKING, size)
        found = epoch(made, number)
        assert self.clashes(columns, found) == 0
        used = flat(found)
        assert len(used) == len(set(used))
        assert all(1 <= len(b) <= size for b in found)

    @CHECKS
    @given(st.integers(2, 90), st.integers(1, 30), batches, st.integers(0, 2))
    def test_every_row_where_one_side_repeats(
        self, n: int, distinct: int, size: int, number: int
    ) -> None:
        """One repeated side can always be dealt; only what no batch of two could hold waits."""
        columns = [[f"a{i}" for i in range(n)], [f"p{i % distinct}" for i in range(n)]]
        made = plan(rows_of(*columns), RANKING, size)
        found = epoch(made, number)
        used = flat(found)
        assert self.clashes(columns, found) == 0
        counts = Counter(columns[1]).values()
        full, rest = divmod(n, min(size, n))
        if rest != 1 and max(counts) <= full:
            assert sorted(used) == list(range(n))
            assert [len(b) for b in found] == [min(size, n)] * full + [rest] * (rest > 0)
        elif rest != 1 and n >= 2 * max(counts):
            assert sorted(used) == list(range(n))
            assert min(map(len, found)) >= 2

    @CHECKS
    @given(st.integers(2, 120), batches)
    def test_distinct_texts_are_only_shuffled(self, n: int, size: int) -> None:
        columns = [[f"a{i}" for i in range(n)], [f"p{i}" for i in range(n)]]
        found = epoch(plan(rows_of(*columns), RANKING, size))
        single = n % size == 1 and n > size
        assert len(set(flat(found))) == n - single
        assert all(len(b) == size for b in found[: n // size])

    def test_both_sides_repeat(self) -> None:
        columns = [[f"a{i % 97}" for i in range(2000)], [f"p{i % 83}" for i in range(2000)]]
        made = plan(rows_of(*columns), RANKING, 16)
        for number in range(3):
            found = epoch(made, number)
            assert self.clashes(columns, found) == 0
            assert len(flat(found)) == 2000
            assert {len(b) for b in found} == {16}

    def test_anchors_that_are_positives_elsewhere(self) -> None:
        columns = [[f"t{i}" for i in range(300)], [f"t{(i + 1) % 300}" for i in range(300)]]
        found = epoch(plan(rows_of(*columns), RANKING, 25))
        assert self.clashes(columns, found) == 0
        assert len(flat(found)) == 300

    def test_negatives_count_too(self) -> None:
        columns = [
            [f"a{i}" for i in range(60)],
            [f"p{i}" for i in range(60)],
            [f"n{i % 15}" for i in range(60)],
        ]
        found = epoch(plan(rows_of(*columns), RANKING, 12))
        assert self.clashes(columns, found) == 0
        assert len(flat(found)) == 60

    def test_a_row_may_repeat_its_own_text(self) -> None:
        columns = [[f"t{i}" for i in range(10)]] * 2
        assert len(flat(epoch(plan(rows_of(*columns), RANKING, 5)))) == 10

    def test_a_text_in_most_rows_makes_smaller_batches(self) -> None:
        columns = [[f"a{i}" for i in range(100)], ["yes"] * 40 + [f"p{i}" for i in range(60)]]
        made = plan(rows_of(*columns), RANKING, 10)
        found = epoch(made)
        assert made.steps_per_epoch == 40
        assert self.clashes(columns, found) == 0
        assert len(flat(found)) == 100
        assert min(map(len, found)) >= 2
        assert "in 40 of 100 rows" in made.notes[0]

    def test_rows_that_can_meet_no_other_wait_in_turn(self) -> None:
        columns = [[f"a{i}" for i in range(100)], ["yes"] * 90 + [f"p{i}" for i in range(10)]]
        made = plan(rows_of(*columns), RANKING, 10)
        assert "80 rows (others each epoch) are left out" in made.notes[0]
        seen: set[int] = set()
        for number in range(60):
            found = epoch(made, number)
            assert [len(b) for b in found] == [2] * 10
            assert self.clashes(columns, found) == 0
            seen |= set(flat(found))
        assert seen == set(range(100))

    def test_it_is_used_for_ranking_losses_only(self) -> None:
        data = rows_of(["a", "b", "c", "d"], ["w", "x", "y", "z"])
        assert isinstance(plan(data, RANKING, 2), DistinctPlan)
        clip = needs(ObjectiveSpec(loss="CLIPLoss"))
        assert isinstance(plan(data, clip, 2), DistinctPlan)
        vicreg = needs(ObjectiveSpec(loss="VICRegLoss"))
        assert isinstance(plan(data, vicreg, 2), RandomPlan)

    def test_batches_are_not_the_same_rows_every_epoch(self) -> None:
        columns = [[f"a{i // 2}" for i in range(100)], [f"p{i}" for i in range(100)]]
        made = plan(rows_of(*columns), RANKING, 10)
        together = [{frozenset(b) for b in epoch(made, e)} for e in range(3)]
        assert not together[0] & together[1] | together[1] & together[2]
