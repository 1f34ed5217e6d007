"""``luthier.fit`` on the demo's definitions, as a simulated log clicks them."""

from __future__ import annotations

import csv

import pytest

import luthier
from luthier.clicks.click_models import PositionBased
from luthier.clicks.conversion import convert
from luthier.clicks.propensity import harvest
from luthier.clicks.rankings import to_rankings
from luthier.clicks.simulate import Collection, simulate
from luthier.clicks.splits import split_sessions
from luthier.clicks.weights import weights_of
from luthier.demo.data import train_and_eval
from luthier.runs.connection import Home, using


@pytest.mark.real
def test_a_log_teaches_to_rank(tmp_path, monkeypatch):
    """nDCG of later searches for the same things rises, from one command through a worker."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    train, _ = train_and_eval(tmp_path)
    with open(train, newline="") as file:
        # a word of the definition and what it defines: definitions share such words
        pairs = [(r["query"].split()[0] + " " + r["document"], r["query"])
                 for r in csv.DictReader(file)][:120]  # fmt: skip
    log = simulate(
        Collection.of_pairs(pairs), PositionBased.eta_decay(6), sessions=4000, results=6,
        noise=2.0, attraction=(0.02, 0.95),
    )  # fmt: skip
    parts = split_sessions(log.sessions, by="time", test_size_ratio=0.3)
    items = {f"d{i}": text for i, (_, text) in enumerate(pairs)}
    found = harvest(log.sessions, log.clicked)
    inputs = convert(parts.train).weighted(weights_of(parts.train, found))
    train_file = to_rankings(inputs, items, tmp_path / "searches.arrow")
    later = to_rankings(convert(parts.test), items, tmp_path / "later.arrow")
    home = Home(str(tmp_path / "home"))
    with using(home):
        run = luthier.fit(
            "all-minilm-l6-v2", str(train_file), str(later), loss="ListwiseSoftmaxLoss",
            batch_size=8, max_steps=60, learning_rate=2e-4, num_fixed_layers=5,
            model_options={"max_seq_length": 16}, num_workers=0, device="cpu", wait=True,
        )  # fmt: skip
        metrics = run.metrics()
    home.close()
    assert metrics["after"]["ndcg_at_k"] > metrics["before"]["ndcg_at_k"]
    assert metrics["verdict"] in ("better", "no clear difference")
