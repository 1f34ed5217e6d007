"""The losses of rankings against their equations in plain Python, and against golden values."""

import math
import os
from dataclasses import replace

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from luthier.errors import DataError
from luthier.objectives import Embedded, build_objective, problems
from luthier.objectives.lists import Lists, Phase
from luthier.registry import find
from luthier.spec import ObjectiveSpec

torch.set_num_threads(1)

NAMES = (
    "ProbMarginRankingLoss",
    "CosineProbMarginRankingLoss",
    "ListwiseSoftmaxLoss",
    "LambdaLoss",
    "ApproxNDCGLoss",
)


def make(name, **options):
    spec = ObjectiveSpec(loss=name, loss_options=options)
    assert problems(spec, "rankings") == []
    return build_objective(spec, dim=5, num_classes=0, form="rankings").double()


def a_batch(seed=0, n=4, u=9, d=5, grades=3):
    """n searches over u items, lists of different lengths; the first two of the same query."""
    g = torch.Generator().manual_seed(seed)
    sizes = [5, 3, 6, 4][:n]
    items = torch.cat([torch.randperm(u, generator=g)[:size] for size in sizes])
    rows = torch.repeat_interleave(torch.arange(n), torch.tensor(sizes))
    m = len(rows)
    relevance = torch.randint(0, grades, (m,), generator=g).double()
    relevance[0] = 1.0
    weights = torch.rand(m, generator=g, dtype=torch.float64) + 0.5
    scores = torch.rand(m, generator=g, dtype=torch.float64)
    irrelevant = (torch.rand(m, generator=g) < 0.4) & (relevance == 0)
    queries = torch.tensor([7, 7, 3, 1])[:n]
    columns = tuple(
        torch.randn(k, d, generator=g, dtype=torch.float64).requires_grad_() for k in (n, u)
    )
    lists = Lists(rows, items, relevance, weights, queries, scores, irrelevant)
    return Embedded(columns, lists=lists)


# --- the equations, slowly ---------------------------------------------------------------------


def similarity(kind, a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    if kind == "dot":
        return dot
    if kind == "euclidean":
        return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


class Plain:
    def __init__(self, batch, kind="cosine"):
        self.queries, self.items = (c.tolist() for c in batch.columns)
        lists = batch.lists
        self.row, self.item = lists.rows.tolist(), lists.items.tolist()
        self.y, self.w = lists.relevance.tolist(), lists.weights.tolist()
        self.code, self.start = lists.queries.tolist(), lists.scores.tolist()
        self.irrelevant, self.phase = lists.irrelevant.tolist(), lists.phase
        self.kind, self.n = kind, len(self.queries)

    def raw(self, i):
        return similarity(self.kind, self.queries[self.row[i]], self.items[self.item[i]])

    def s(self, i):
        return -self.raw(i) if self.kind == "euclidean" else self.raw(i)

    def of(self, row):
        return [i for i in range(len(self.row)) if self.row[i] == row]

    def counts(self, i, j):
        if self.phase is None:
            return True
        apart = abs(self.start[i] - self.start[j])
        fits = self.phase.low < apart <= self.phase.high
        return fits and self.phase.irrelevant in (None, self.irrelevant[j])

    def pairs(self, row):
        found = [(i, j) for i in self.of(row) for j in self.of(row) if self.y[i] > self.y[j]]
        return [(i, j) for i, j in found if self.counts(i, j)]

    def gain(self, i):
        return 2 ** self.y[i] - 1

    def ideal(self, row, k=None):
        best = sorted((self.gain(i) for i in self.of(row)), reverse=True)[:k]
        return sum(g / math.log2(2 + place) for place, g in enumerate(best))

    def prob_margin(self, margin, low, high, steep, weighting):
        total, count = 0.0, 0
        for row in range(self.n):
            for i, j in self.pairs(row):
                d = self.raw(i) - self.raw(j)
                if not low < abs(d) < high:
                    continue
                a = (d if self.kind == "euclidean" else -d) + margin
                c = self.w[i] if weighting == "positive" else min(self.w[i], self.w[j])
                total += c * (1 + math.tanh((400 * a - 6 if steep else a) / 2)) / 2  # sigmoid
                count += 1
        return total / count if count else 0.0

    def softmax(self, temperature, in_batch, margin):
        total, queries = 0.0, set()
        for i in range(len(self.row)):
            if self.y[i] == 0:
                continue
            row = self.row[i]
            own = {self.item[j] for j in self.of(row) if self.y[j] > 0 or self.counts(i, j)} | {
                self.item[i]
            }
            same = [r for r in range(self.n) if self.code[r] == self.code[row]]
            shown = {self.item[j] for r in same for j in self.of(r)}

            def near(item, row=row):
                value = similarity(self.kind, self.queries[row], self.items[item])
                return -value if self.kind == "euclidean" else value

            others = {x for x in range(len(self.items)) if x not in shown} if in_batch else set()
            if margin is not None:
                others = {x for x in others if near(x) <= self.s(i) - margin}
            below = sum(math.exp(near(x) / temperature) for x in own | others)
            total += self.w[i] * self.y[i] * (math.log(below) - self.s(i) / temperature)
            queries.add(row)
        return total / len(queries)

    def ranks(self, row):
        order = sorted(self.of(row), key=lambda i: -self.s(i))
        return {i: place for place, i in enumerate(order, 1)}

    def lambdas(self, sigma, k, weighting):
        total, queries = 0.0, 0
        for row in range(self.n):
            ranks, pairs = self.ranks(row), self.pairs(row)
            queries += bool(pairs)
            for i, j in pairs:
                if k is not None and min(ranks[i], ranks[j]) > k:
                    continue
                gains = abs(self.gain(i) - self.gain(j)) / (self.ideal(row, k) or 1)
                apart = abs(1 / math.log2(1 + ranks[i]) - 1 / math.log2(1 + ranks[j]))
                c = self.w[i] if weighting == "positive" else min(self.w[i], self.w[j])
                lost = math.log2(1 + math.exp(-sigma * (self.s(i) - self.s(j))))
                total += c * gains * apart * lost
        return total / queries if queries else 0.0

    def approx_ndcg(self, temperature):
        total, queries = 0.0, set()
        for row in range(self.n):
            best = sorted(self.of(row), key=lambda i: -self.y[i])
            for i in self.of(row):
                others = [j for j in self.of(row) if j != i]
                others = [j for j in others if self.y[j] > 0 or self.counts(i, j)]
                if self.y[i] == 0:
                    continue
                if others:
                    queries.add(row)
                rank = 1 + sum(
                    1 / (1 + math.exp((self.s(i) - self.s(j)) / temperature)) for j in others
                )
                ideal = 1 / math.log2(2 + best.index(i))
                gain = self.w[i] * self.gain(i) / self.ideal(row)
                total += gain * (ideal - 1 / math.log2(1 + rank))
        return total / len(queries)


CASES = [
    ("ProbMarginRankingLoss", {}),
    ("ProbMarginRankingLoss", {"margin": 0.2, "similarity": "euclidean",
                               "max_abs_difference_threshold": 5.0}),
    ("ProbMarginRankingLoss", {"min_abs_difference_threshold": 0.3, "weighting": "positive"}),
    ("CosineProbMarginRankingLoss", {"margin": 0.05}),
    ("CosineProbMarginRankingLoss", {"margin": 0.1, "similarity": "dot",
                                     "max_abs_difference_threshold": 2.0}),
    ("ListwiseSoftmaxLoss", {"temperature": 0.3}),
    ("ListwiseSoftmaxLoss", {"temperature": 0.5, "in_batch_negatives": False}),
    ("ListwiseSoftmaxLoss", {"temperature": 0.5, "false_negative_margin": 0.1}),
    ("ListwiseSoftmaxLoss", {"temperature": 1.0, "similarity": "euclidean"}),
    ("LambdaLoss", {}),
    ("LambdaLoss", {"sigma": 10.0, "k": 2}),
    ("LambdaLoss", {"similarity": "euclidean", "weighting": "min"}),
    ("ApproxNDCGLoss", {}),
    ("ApproxNDCGLoss", {"temperature": 1.0, "similarity": "dot"}),
]  # fmt: skip
PHASES = [None, Phase(0.1, 0.6), Phase(irrelevant=False), Phase(irrelevant=True)]


def expected(name, options, batch):
    plain = Plain(batch, options.get("similarity", "cosine"))
    if name.endswith("ProbMarginRankingLoss"):
        return plain.prob_margin(
            options.get("margin", 1.0),
            options.get("min_abs_difference_threshold", 0.0),
            options.get("max_abs_difference_threshold", 1.0),
            name.startswith("Cosine"),
            options.get("weighting", "min"),
        )
    if name == "ListwiseSoftmaxLoss":
        return plain.softmax(
            options.get("temperature", 0.05),
            options.get("in_batch_negatives", True),
            options.get("false_negative_margin"),
        )
    if name == "LambdaLoss":
        return plain.lambdas(
            options.get("sigma", 1.0), options.get("k"), options.get("weighting", "positive")
        )
    return plain.approx_ndcg(options.get("temperature", 0.1))


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("phase", PHASES, ids=str)
def test_equals_its_equation(name, options, phase):
    for seed in range(4):
        batch = a_batch(seed)
        batch = replace(batch, lists=replace(batch.lists, phase=phase))
        if name == "ListwiseSoftmaxLoss" and phase is not None:
            options = options | {"in_batch_negatives": True}  # or lists of one stand out of nothing
        assert make(name, **options)(batch).item() == pytest.approx(
            expected(name, options, batch), rel=1e-9, abs=1e-12
        )


@pytest.mark.parametrize(("name", "options"), CASES)
def test_its_gradient_is_that_of_its_value(name, options):
    batch, loss = a_batch(3), make(name, **options)
    assert torch.autograd.gradcheck(
        lambda q, i: loss(Embedded((q, i), lists=batch.lists)), batch.columns
    )


GOLDEN = [
    ("ProbMarginRankingLoss", 0.05, 0.448421),
    ("CosineProbMarginRankingLoss", 0.05, 0.333333),
    ("ProbMarginRankingLoss", 1.0, 0.667952),
    ("CosineProbMarginRankingLoss", 1.0, 1.0),
]


@pytest.mark.parametrize(("name", "margin", "value"), GOLDEN)
def test_golden_values_of_embedding_studio(name, margin, value):
    """Positives .5, .3, .9 and negatives .2, .6, .1, one pair a search, confidence 1."""
    cosines = torch.tensor([0.5, 0.2, 0.3, 0.6, 0.9, 0.1], dtype=torch.float64)
    items = torch.stack([cosines, (1 - cosines**2).sqrt()], dim=1)
    queries = torch.tensor([[1.0, 0.0]] * 3, dtype=torch.float64)
    lists = Lists(
        torch.tensor([0, 0, 1, 1, 2, 2]),
        torch.arange(6),
        torch.tensor([1.0, 0.0] * 3).double(),
        torch.ones(6).double(),
        torch.arange(3),
    )
    found = make(name, margin=margin)(Embedded((queries, items), lists=lists))
    assert found.item() == pytest.approx(value, abs=5e-7)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_to_learn_is_a_zero_with_a_gradient_of_zero(name):
    batch = a_batch()
    nothing = replace(batch.lists, relevance=torch.zeros(len(batch.lists)).double())
    cases = [nothing]
    if "ProbMargin" in name or name == "LambdaLoss":
        cases.append(replace(batch.lists, phase=Phase(low=9.0)))
    for lists in cases:
        columns = tuple(c.detach().clone().requires_grad_() for c in batch.columns)
        value = make(name)(Embedded(columns, lists=lists))
        value.backward()
        assert value.item() == 0.0
        assert all(bool((c.grad == 0).all()) for c in columns)


@pytest.mark.parametrize("name", NAMES[:2])
def test_no_pair_left_by_the_thresholds(name):
    batch = a_batch()
    value = make(name, min_abs_difference_threshold=0.9, max_abs_difference_threshold=0.9)(batch)
    value.backward()
    assert value.item() == 0.0
    assert all(bool((c.grad == 0).all()) for c in batch.columns)


@pytest.mark.parametrize("name", NAMES)
def test_a_text_equal_to_its_query_has_a_finite_gradient(name):
    batch = a_batch()
    queries, items = (c.detach().clone() for c in batch.columns)
    items[batch.lists.items[0]] = queries[0]
    columns = queries.requires_grad_(), items.requires_grad_()
    make(name, similarity="euclidean")(Embedded(columns, lists=batch.lists)).backward()
    assert all(bool(c.grad.isfinite().all()) for c in columns)


def test_weights_make_clicks_unbiased_by_position():
    """Clicks drawn by p(k) * relevance, weighted by 1 / p: the mean loss is that of relevance."""
    true = torch.tensor([0.9, 0.2, 0.7, 0.4], dtype=torch.float64)
    seen = torch.tensor([1.0, 0.6, 0.4, 0.2], dtype=torch.float64)
    g = torch.Generator().manual_seed(0)
    q = torch.randn(1, 5, generator=g, dtype=torch.float64)
    items = torch.randn(4, 5, generator=g, dtype=torch.float64)
    loss = make("ListwiseSoftmaxLoss", temperature=0.5)

    def value(relevance, weights):
        at = torch.zeros(4, dtype=torch.int64)
        lists = Lists(at, torch.arange(4), relevance, weights, at[:1])
        return loss(Embedded((q, items), lists=lists)).item()

    draws = torch.rand(4000, 4, generator=g, dtype=torch.float64) < true * seen
    weighted = sum(value(d.double(), 1 / seen) for d in draws) / len(draws)
    naive = sum(value(d.double(), torch.ones(4).double()) for d in draws) / len(draws)
    truth = value(true, torch.ones(4).double())
    assert weighted == pytest.approx(truth, rel=0.05)
    assert abs(naive - truth) > 0.2 * truth


@pytest.mark.parametrize("name", NAMES)
def test_cards_tell_the_truth(name):
    import inspect

    card = find("loss", name)
    taken = inspect.signature(card.load()).parameters
    assert {o.name: o.default for o in card.options} == {n: p.default for n, p in taken.items()}
    said = problems(ObjectiveSpec(loss=name), "pairs")
    assert "needs rankings data, and this data is pairs" in str(said[0])
    said = problems(ObjectiveSpec(loss=name, miner="BatchHardMiner"), "rankings")
    assert "takes no miner" in str(said[0])
    said = problems(ObjectiveSpec(loss=name, loss_options={"similarity": "manhattan"}), "rankings")
    assert "is one of 'cosine', 'dot', 'euclidean'" in str(said[0])
    with pytest.raises(DataError, match="the items of searches"):
        make(name)(Embedded((torch.randn(3, 5), torch.randn(3, 5))))


@pytest.mark.parametrize("name", NAMES)
def test_at_several_widths(name):
    batch = a_batch()
    spec = {"loss": name, "matryoshka_dims": [5, 3]}
    whole = make("MatryoshkaLoss", **spec)(batch).item()
    cut = make(name)(batch.cut(5)).item() + make(name)(batch.cut(3)).item()
    assert whole == pytest.approx(cut, rel=1e-12)
