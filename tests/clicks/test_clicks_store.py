"""Sessions and events that come in one by one, and batches that are released whole."""

import subprocess
import sys

import pytest
import sqlalchemy as sa

from luthier.clicks.store import ClickStore
from luthier.clicks.tables import HEAD, metadata
from luthier.errors import DataError, IllegalTransition, NotFound
from luthier.runs.database import Database

RESULTS = [{"object_id": "a", "rank": 0.9}, {"object_id": "b", "meta": {"x": 1}}]


@pytest.fixture
def store(url):
    found = ClickStore(url)
    yield found
    found.close()


def test_the_migration_makes_the_tables_that_the_code_speaks_of(url):
    ClickStore(url).close()
    ClickStore(url).close()  # again: nothing to do
    database = Database(url)
    with database.read() as connection:
        look = sa.inspect(connection)
        assert connection.scalar(sa.text("SELECT version_num FROM click_version")) == HEAD
        for table in metadata.sorted_tables:
            columns = {c["name"]: c["nullable"] for c in look.get_columns(table.name)}
            assert columns == {c.name: c.nullable for c in table.columns}
        assert look.has_table("runs")
    database.close()


def test_a_session_and_its_events(store):
    store.register_session("s1", "red hat", RESULTS, {"page": 1}, "u", "2024-01-01T00:00:00Z")
    events = [{"event_id": "e1", "object_id": "b", "created_at": 1_704_067_201_000}]
    assert store.push_events("s1", events) == 1
    assert store.push_events("s1", [*events, *events]) == 0
    found = store.get_session("s1")
    assert found["search_results"] == RESULTS
    assert found["created_at"] == 1_704_067_200.0
    assert found["events"] == [
        {"event_id": "e1", "object_id": "b", "event_type": "click", "meta": None,
         "created_at": 1_704_067_201.0}
    ]  # fmt: skip
    assert found["is_irrelevant"] is False
    store.mark_irrelevant("s1")
    store.mark_irrelevant("s1")
    assert store.get_session("s1")["is_irrelevant"] is True


def test_a_repeated_session_stays_as_it_came_first(store):
    store.register_session("s1", "red hat", RESULTS)
    kept = store.register_session("s1", "another", [])
    assert kept["search_query"] == "red hat"
    assert kept["search_results"] == RESULTS


def test_what_is_wrong_is_named_and_nothing_of_it_is_kept(store):
    store.register_session("s1", "q", RESULTS)
    good = {"event_id": "e1", "object_id": "a"}
    with pytest.raises(NotFound, match="no session is called 's2'"):
        store.push_events("s2", [good])
    with pytest.raises(DataError, match=r"row 2, column object_id: the session did not show 'z'"):
        store.push_events("s1", [good, {"event_id": "e2", "object_id": "z"}])
    with pytest.raises(DataError, match="column event_id: a field lacks"):
        store.push_events("s1", [good, {"object_id": "a"}])
    assert store.get_session("s1")["events"] == []
    with pytest.raises(DataError, match="column search_query"):
        store.register_session("s3", "", RESULTS)
    with pytest.raises(DataError, match="column created_at"):
        store.register_session("s3", "q", RESULTS, created_at="soon")
    with pytest.raises(DataError, match="a result comes twice"):
        store.register_session("s3", "q", [RESULTS[0], RESULTS[0]])
    with pytest.raises(NotFound):
        store.get_session("s3")


def test_a_batch_is_released_whole_and_read_in_pages(store):
    for i in range(7):
        store.register_session(f"s{i}", "q", RESULTS)
    store.push_events("s2", [{"event_id": "e", "object_id": "b", "meta": {"dwell_time": 40}}])
    collecting = store.list_batches()[0]
    assert (collecting["state"], collecting["sessions"]) == ("collecting", 7)
    with pytest.raises(IllegalTransition, match="release it first"):
        store.batch_sessions(collecting["batch_id"])
    released = store.release_batch("r1")
    assert store.release_batch("r1") == released
    with pytest.raises(NotFound, match="no batch collects"):
        store.release_batch("r2")
    store.register_session("late", "q", RESULTS)
    found, after = [], 0
    while (page := store.batch_sessions(released["batch_id"], after, 3))["sessions"]:
        found += [s["session_id"] for s in page["sessions"]]
        after = page["last_number"]
    assert found == [f"s{i}" for i in range(7)]
    assert [b["state"] for b in store.list_batches()] == ["released", "collecting"]
    with pytest.raises(IllegalTransition, match="was released"):
        store.push_events("s1", [{"event_id": "new", "object_id": "a"}])
    assert store.push_events("s2", [{"event_id": "e", "object_id": "b"}]) == 0  # a repetition
    sessions = store.load_batch(released["batch_id"])
    assert sessions.ids == found
    assert sessions.grades().tolist() == [0.0] * 5 + [1.0] + [0.0] * 8
    assert sessions.event_dwells.tolist() == [40.0]


def test_a_batch_goes_its_way_and_no_other(store):
    store.register_session("s", "q", RESULTS)
    batch = store.list_batches()[0]["batch_id"]
    with pytest.raises(IllegalTransition, match="from collecting to archived"):
        store.set_batch_state(batch, "archived")
    store.release_batch("r")
    for state in ("fine_tuning", "released", "fine_tuning", "fine_tuning", "archived"):
        store.set_batch_state(batch, state)
    with pytest.raises(IllegalTransition, match="from archived to released"):
        store.set_batch_state(batch, "released")
    with pytest.raises(NotFound, match="no batch is called"):
        store.set_batch_state("x", "released")


WRITER = """
import sys
from luthier.clicks.store import ClickStore
from luthier.errors import NotFound
url, who = sys.argv[1:]
store = ClickStore(url)
for i in range(25):
    store.register_session(f"s{i}" if i % 2 else f"{who}-{i}", who, [{"object_id": "a"}])
    if i % 10 == 5:
        try:
            print(store.release_batch(f"r{i}")["batch_id"])
        except NotFound:
            print("none")
store.close()
"""


def test_processes_that_write_and_release_at_once(url):
    """Real processes: no session is lost or twice, each release id has one batch."""
    command = [sys.executable, "-c", WRITER, url]
    running = [
        subprocess.Popen([*command, who], stdout=subprocess.PIPE, text=True) for who in "abc"
    ]
    outputs = [process.communicate(timeout=120)[0].split() for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert all(len(output) == 2 for output in outputs)
    for said in zip(*outputs, strict=True):
        assert len(set(said) - {"none"}) == 1
    store = ClickStore(url)
    batches = store.list_batches()
    assert sum(b["sessions"] for b in batches) == 12 + 3 * 13
    assert sum(b["state"] == "collecting" for b in batches) <= 1
    released = {b["release_id"] for b in batches} - {None}
    assert released == {"r5", "r15"}
    store.close()
