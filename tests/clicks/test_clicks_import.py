"""Logs of every format become the same sessions; a bad row costs that row and is named."""

import json
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.clicks.importing import detect, import_log
from luthier.clicks.sessions import Sessions
from luthier.clicks.times import seconds
from luthier.errors import DataError

#: What every format below says.
EXPECTED = [
    {"query": "red shoes", "items": ["a", "b", "c"], "grades": [0.0, 1.0, 0.0], "user": "u1"},
    {"query": "hats", "items": ["d", "a"], "grades": [0.0, 0.0], "user": "u2"},
]


def _plain(sessions: Sessions):
    grades = sessions.grades()
    users = sessions.table["user"].to_pylist()
    found = []
    for i in range(len(sessions)):
        rows = slice(sessions.starts[i], sessions.starts[i + 1])
        found.append(
            {
                "query": sessions.table["query"][i].as_py(),
                "items": [sessions.item_names[c] for c in sessions.item_codes[rows]],
                "grades": grades[rows].tolist(),
                "user": users[i],
            }
        )
    return sorted(found, key=lambda row: row["query"], reverse=True)


def _lines(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


STUDIO = [
    {
        "session_id": "s1", "search_query": "red shoes", "user_id": "u1",
        "created_at": 1_700_000_000,
        "search_results": [
            {"object_id": i, "rank": s} for i, s in (("a", .9), ("b", .8), ("c", .1))
        ],
        "events": [{"event_id": "e1", "object_id": "b"}, {"event_id": "e1", "object_id": "b"}],
    },
    {
        "session_id": "s2", "search_query": "hats", "user_id": "u2", "created_at": 1_700_000_100,
        "search_results": [{"object_id": "d"}, {"object_id": "a"}], "is_irrelevant": True,
    },
]  # fmt: skip
UBI = [
    {"query_id": "s1", "user_query": "red shoes", "client_id": "u1",
     "query_response_hit_ids": ["a", "b", "c"], "timestamp": "2023-11-14T22:13:20Z"},
    {"_source": {"query_id": "s2", "user_query": "hats", "client_id": "u2",
     "query_response_hit_ids": ["d", "a"], "timestamp": 1_700_000_100_000}},
]  # fmt: skip
UBI_EVENTS = [
    {"action_name": "on_search", "query_id": "s1", "timestamp": 1_700_000_001_000},
    {"action_name": "click", "query_id": "s1", "timestamp": 1_700_000_002_000,
     "event_attributes": {"object": {"object_id": "b"}, "position": {"ordinal": 2}}},
    {"action_name": "impression", "query_id": "s2", "timestamp": 1_700_000_102_000,
     "event_attributes": {"object": {"object_id": "d"}}},
]  # fmt: skip
METARANK = [
    {"event": "item", "id": "m", "item": "a", "timestamp": "1700000000000", "fields": []},
    {"event": "interaction", "id": "i1", "ranking": "s1", "timestamp": "1700000002000",
     "user": "u1", "type": "click", "item": "b"},  # before its ranking
    {"event": "ranking", "id": "s1", "timestamp": "1700000000000", "user": "u1",
     "fields": [{"name": "query", "value": "red shoes"}],
     "items": [{"id": "a", "relevancy": .9}, {"id": "b"}, {"id": "c"}]},
    {"event": "ranking", "id": "s2", "timestamp": "1700000100000", "user": "u2",
     "fields": [{"name": "query", "value": "hats"}], "items": [{"id": "d"}, {"id": "a"}]},
]  # fmt: skip
CSV = """session,query,item,position,clicked,user,timestamp
s1,red shoes,c,3,0,u1,1700000000
s2,hats,d,1,false,u2,1700000100
s1,red shoes,a,1,0,u1,1700000000
s1,red shoes,b,2,1,u1,1700000002
s2,hats,a,2,,u2,1700000100
s1,red shoes,b,2,1,u1,1700000002
"""


def _written(format, folder):
    if format == "csv":
        (folder / "log.csv").write_text(CSV)
        return folder / "log.csv", {}
    records = {"studio": STUDIO, "ubi": UBI, "metarank": METARANK}[format]
    path = _lines(folder / f"{format}.jsonl", records)
    more = {"events": _lines(folder / "events.jsonl", UBI_EVENTS)} if format == "ubi" else {}
    return path, more


@pytest.mark.parametrize("format", ["studio", "ubi", "metarank", "csv"])
def test_every_format_says_the_same(format, tmp_path):
    path, more = _written(format, tmp_path)
    assert detect(path) == format
    done = import_log(path, tmp_path / "sessions.arrow", **more, strict=True)
    sessions = done.sessions
    assert done.count == len(sessions) == 2
    assert _plain(sessions) == EXPECTED
    assert sorted(sessions.times.tolist()) == [1_700_000_000.0, 1_700_000_100.0]
    assert sorted(sessions.ids) == ["s1", "s2"]
    assert sessions.positions.tolist() in ([1, 2, 3, 1, 2], [1, 2, 1, 2, 3])


def test_the_score_of_the_search_and_the_place_are_kept_apart(tmp_path):
    done = import_log(_lines(tmp_path / "s.jsonl", STUDIO), tmp_path / "out.arrow")
    assert done.sessions.scores[:3].tolist() == [0.9, 0.8, 0.1]
    assert done.sessions.positions[:3].tolist() == [1, 2, 3]
    assert done.sessions.irrelevant.tolist() == [False, True]


@pytest.mark.parametrize("partition_bytes", [16 << 20, 40])
def test_rows_of_a_search_may_stand_anywhere(tmp_path, monkeypatch, partition_bytes):
    """Many partitions, and rows in any order, give the same sessions as one pass in memory."""
    monkeypatch.setattr("luthier.clicks.importing._PARTITION_BYTES", partition_bytes)
    rng = random.Random(3)
    rows, expected = [], {}
    for s in range(150):
        items = rng.sample(range(40), rng.randint(1, 7))
        clicks = {i for i in items if rng.random() < 0.3}
        expected[f"s{s}"] = [(f"d{i}", float(i in clicks)) for i in items]
        rows += [f"s{s},q{s % 9},d{i},{p},{int(i in clicks)}" for p, i in enumerate(items, 1)]
    rng.shuffle(rows)
    path = tmp_path / "log.csv"
    path.write_text("\n".join(["session,query,item,position,clicked", *rows]))
    sessions = import_log(path, tmp_path / "out.arrow", strict=True).sessions
    found, grades = {}, sessions.grades()
    for i, name in enumerate(sessions.ids):
        at = range(sessions.starts[i], sessions.starts[i + 1])
        found[name] = [(sessions.item_names[sessions.item_codes[j]], grades[j]) for j in at]
    assert found == expected


def test_bad_rows_of_csv_are_named_and_cost_nothing_else(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(
        "session,query,item,position,clicked\n"
        's1,"two\nlines",a,1,0\n'  # lines 2 and 3
        "s1,q,b,zero,0\n"  # 4
        "\n"  # 5
        "s1,q,b,1,1,extra\n"  # 6
        "s1,q,,1,1\n"  # 7
        "s1,q,b,1,maybe\n"  # 8
        "s1,q,c,1,1\n"  # 9
    )
    done = import_log(path, tmp_path / "out.arrow")
    assert done.count == 2
    assert done.sessions.grades().tolist() == [0.0, 1.0]
    rejected = done.rejected
    assert rejected.count == 4
    found = sorted((f.row, f.column) for f in rejected.listed if f.column)
    assert found == [(4, "position"), (7, "item"), (8, "clicked")]
    assert [f.row for f in rejected.listed if not f.column] == [6]
    with pytest.raises(DataError, match=r"row 4, column position.*'zero'") as caught:
        import_log(path, tmp_path / "strict.arrow", strict=True)
    assert "row 8" in str(caught.value)
    assert not (tmp_path / "strict.arrow").exists()


def test_bad_records_of_json_are_named_and_cost_nothing_else(tmp_path):
    path = tmp_path / "log.jsonl"
    good = json.dumps(STUDIO[1])
    odd = json.dumps(
        {**STUDIO[0], "events": [{"object_id": "z"}, {"object_id": "a", "created_at": "soon"},
                                 {"object_id": "c"}]}
    )  # fmt: skip
    path.write_text(
        f'{odd}\n{{"half\n[1]\n{good}\n{good}\n{{"session_id": "x"}}\n'
        '{"session_id": "y", "search_query": "q", "search_results": []}\n'
    )
    done = import_log(path, tmp_path / "out.arrow", format="studio")
    assert sorted(done.sessions.ids) == ["s1", "s2"]
    assert done.sessions.grades().tolist() == [0.0, 0.0, 1.0, 0.0, 0.0]
    assert sorted((f.row, f.message.split(":")[0]) for f in done.rejected.listed) == [
        (1, "a field is no time"),
        (1, "an event on an item that was not shown"),
        (2, "not JSON"),
        (3, "not a JSON object"),
        (5, "a search that was in the log before"),
        (6, "a field lacks"),
        (7, "a search without results"),
    ]


def test_bytes_that_are_no_text_cost_their_row(tmp_path):
    path = tmp_path / "log.csv"
    path.write_bytes(b"query,item,clicked\nq,a,1\nq,\xff\xfe,1\nq,\xc3\xa9,0\n")
    done = import_log(path, tmp_path / "out.arrow")
    assert done.sessions.item_names == ["a", "é"]
    assert [(f.row, f.message) for f in done.rejected.listed] == [(3, "not UTF-8")]
    path.write_bytes(b'{"session_id": "\xff"}\n' + json.dumps(STUDIO[0]).encode())
    done = import_log(path, tmp_path / "out.arrow", format="studio")
    assert done.count == 1
    assert done.rejected.listed[0].row == 1


_HEADS = {
    "csv": b"session,query,item,position,clicked,timestamp\ns,q,a,1,1,5\n",
    "studio": json.dumps(STUDIO[0]).encode() + b"\n",
    "ubi": json.dumps(UBI[0]).encode() + b"\n",
    "metarank": json.dumps(METARANK[2]).encode() + b"\n",
}
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(
        st.sampled_from(["session_id", "search_query", "search_results", "object_id", "events",
                         "event", "id", "items", "ranking", "item", "fields", "query_id",
                         "user_query", "query_response_hit_ids", "action_name", "timestamp",
                         "event_attributes", "created_at", "_source"]), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(tail=st.binary(max_size=60) | st.lists(_JSON, max_size=3).map(
    lambda rows: "\n".join(map(json.dumps, rows)).encode()))  # fmt: skip
@pytest.mark.parametrize("format", _HEADS)
def test_no_bytes_do_more_than_lose_their_rows(format, tail, tmp_path):
    """Whatever follows a good record, it is a DataError or a bad row, and the good one stays."""
    path = tmp_path / "log"
    path.write_bytes(_HEADS[format] + tail)
    try:
        done = import_log(path, tmp_path / "out.arrow", format=format)
    except DataError:
        assert format == "csv"  # a quote that is never closed spoils what follows
        assert b'"' in tail or b"\r" in tail
        return
    assert done.count >= 1


def test_an_event_of_a_search_that_lacks_is_counted(tmp_path):
    path = _lines(tmp_path / "m.jsonl", [*METARANK, {**METARANK[1], "ranking": "s9"}])
    done = import_log(path, tmp_path / "out.arrow")
    assert done.rejected.reasons == {"an event of a search that is not in the log": 1}
    assert done.rejected.listed[0].row == 5


def test_without_a_session_a_pause_makes_a_new_search(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(
        "user,query,item,clicked,timestamp\n"
        "u,q,a,0,2024-01-01T10:00:00\nu,q,b,1,2024-01-01T10:00:05\n"
        "u,q,a,1,2024-01-01T12:00:00\nv,q,a,0,2024-01-01T10:00:00\n"
    )
    sessions = import_log(path, tmp_path / "out.arrow").sessions
    assert np.diff(sessions.starts).tolist() == [2, 1, 1]
    assert sessions.ids == ["u", "u/2", "v"]


def test_a_visit_with_several_queries_is_several_searches(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("session,query,item,clicked\ns,q,a,0\ns,r,a,1\ns,q,b,1\n")
    sessions = import_log(path, tmp_path / "out.arrow").sessions
    assert sessions.ids == ["s", "s/2"]
    assert sessions.grades().tolist() == [0.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("query,item\nq,a\n", "no column for clicked"),
        ('{"what": 1}\n', "JSON of no known format"),
        ("query,item,clicked\n", "no session in the log"),
        ("query,item,clicked\nq,a,perhaps\n", "row 2, column clicked"),
    ],
)
def test_what_is_no_log_is_refused(tmp_path, text, message):
    path = tmp_path / "log"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        import_log(path, tmp_path / "out.arrow")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log"]


def test_columns_may_be_called_otherwise(tmp_path):
    path = tmp_path / "log.tsv"
    path.write_text("Suche\titem\tclicked\nq\ta\t1\n")
    done = import_log(path, tmp_path / "out.arrow", columns={"query": "Suche"})
    assert done.sessions.query_texts == ["q"]
    with pytest.raises(DataError, match="did you mean 'Suche'"):
        import_log(path, tmp_path / "out.arrow", columns={"query": "suche"})


@pytest.mark.parametrize(
    "value", [1_700_000_000, 1.7e12, "1700000000", 1_700_000_000_000_000, 1.7e18,
              "2023-11-14T22:13:20", "2023-11-15T00:13:20+02:00", "2023-11-14 22:13:20Z"]
)  # fmt: skip
def test_times_of_every_spelling(value):
    assert seconds(value) == 1_700_000_000.0


@pytest.mark.parametrize("value", ["soon", True, float("nan"), [1]])
def test_what_is_no_time(value):
    with pytest.raises(ValueError, match="no time"):
        seconds(value)


MANY = """
import resource, sys
from luthier.clicks.importing import import_log
import_log(sys.argv[1] + ".small", sys.argv[2])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
done = import_log(sys.argv[1], sys.argv[2])
print(done.count, done.rejected.count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_log(tmp_path):
    """The quick form of benchmarks/clicks_import.py: 60,000 sessions of six results."""
    path = tmp_path / "log.csv"
    head = "session,query,item,position,clicked\n"
    with open(path, "w") as file:
        file.write(head)
        for start in range(0, 60_000, 20_000):
            file.writelines(
                f"session-{s:06},query number {s % 999},item-{s * p % 7919},{p},{s % p == 1:d}\n"
                for p in range(1, 7) for s in range(start, start + 20_000)
            )  # fmt: skip
    with open(path) as file, open(f"{path}.small", "w") as small:
        small.writelines(line for _, line in zip(range(20_000), file, strict=False))
    command = [sys.executable, "-c", MANY, str(path), str(tmp_path / "out.arrow")]
    said = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True).stdout
    count, rejected, grown_kb = map(int, said.split())
    assert (count, rejected) == (60_000, 0)
    assert grown_kb < 200_000
