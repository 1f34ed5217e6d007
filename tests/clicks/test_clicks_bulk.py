"""Many sessions into the store at once: as single calls would have put them there."""

import os
import signal
import subprocess
import sys

import pytest

from luthier.clicks.bulk import Imported, import_sessions
from luthier.clicks.sessions import Sessions
from luthier.clicks.store import ClickStore


@pytest.fixture
def store(url):
    found = ClickStore(url)
    yield found
    found.close()


def some(count, start=0):
    return Sessions.of(
        {
            "session": f"s{i}", "query": f"q{i % 3}", "items": ["a", "b", "c"], "time": 1e9 + i,
            "positions": [1, 2, 3], "scores": [0.5, None, 0.1], "irrelevant": i % 5 == 4,
            "event_results": [i % 3, 1], "event_types": ["click", "purchase"],
            "event_grades": [None, 3.0], "event_dwells": [12.0, None],
            "event_times": [1e9 + i + 1, None], "event_ids": [f"e{i}", None],
        }
        for i in range(start, start + count)
    )  # fmt: skip


def released(store, name="r"):
    return store.load_batch(store.release_batch(name)["batch_id"])


def test_what_was_imported_comes_out_as_it_went_in(store):
    told = []
    new = some(2300)
    assert import_sessions(store, new, lambda *at: told.append(at)) == Imported(2300, 4600, 0)
    assert told == [(1000, 2300), (2000, 2300), (2300, 2300)]
    found = released(store)
    for column in ("session", "query", "time", "items", "positions", "scores", "irrelevant",
                   "event_results", "event_types", "event_grades", "event_dwells"):  # fmt: skip
        assert found.table[column].to_pylist() == new.table[column].to_pylist(), column
    assert found.table["event_ids"].to_pylist()[7] == ["e7", "1"]
    assert found.table["event_times"].to_pylist()[7] == [1e9 + 8, 1e9 + 7]


def test_it_is_the_same_as_single_calls(store, tmp_path):
    import_sessions(store, some(5))
    single = ClickStore(f"sqlite:///{tmp_path}/single.db")
    for i in range(5):
        results = [{"object_id": "a", "rank": 0.5}, {"object_id": "b"},
                   {"object_id": "c", "rank": 0.1}]  # fmt: skip
        single.register_session(f"s{i}", f"q{i % 3}", results, None, None, 1e9 + i)
        events = [
            {"event_id": f"e{i}", "object_id": "abc"[i % 3], "created_at": 1e9 + i + 1,
             "meta": {"dwell_time": 12.0}},
            {"event_id": "1", "object_id": "b", "event_type": "purchase", "created_at": 1e9 + i,
             "meta": {"grade": 3.0}},
        ]  # fmt: skip
        single.push_events(f"s{i}", events)
        if i % 5 == 4:
            single.mark_irrelevant(f"s{i}")
    for i in range(5):
        assert store.get_session(f"s{i}") | {"batch_id": None} == (
            single.get_session(f"s{i}") | {"batch_id": None}
        )
    single.close()


def test_what_is_known_stays_as_it_is(store):
    store.register_session("s1", "as it came first", [{"object_id": "x"}])
    assert import_sessions(store, some(3)) == Imported(2, 4, 1)
    assert store.get_session("s1")["search_query"] == "as it came first"
    assert store.get_session("s1")["events"] == []
    assert import_sessions(store, some(3)) == Imported(0, 0, 3)
    released(store)
    assert import_sessions(store, Sessions.join([some(4), some(4)])) == Imported(1, 2, 7)
    assert released(store, "again").ids == ["s3"]


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from test_clicks_bulk import some
from luthier.clicks.bulk import import_sessions
from luthier.clicks.store import ClickStore
def told(done, count):
    if done == 2000:
        os.kill(os.getpid(), signal.SIGKILL)
import_sessions(ClickStore(sys.argv[2]), some(3000), told)
"""


def test_killed_in_the_middle_it_goes_on(store, url):
    words = [os.path.dirname(__file__), url]
    done = subprocess.run([sys.executable, "-c", KILLED, *words], timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    assert import_sessions(store, some(3000)) == Imported(1000, 2000, 2000)
    assert len(released(store)) == 3000
