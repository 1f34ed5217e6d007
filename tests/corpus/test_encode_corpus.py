"""Vectors of all items: whole versions in a folder or in PostgreSQL, however often it is killed."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import luthier
from luthier import environment
from luthier.corpus.encoding import open_place, write_corpus
from luthier.corpus.items import Items
from luthier.corpus.place import Plan
from luthier.errors import Conflict, DataError, NotFound, SpecError, StoreError
from luthier.runs.connection import Home, using
from luthier.store.bundle import write_bundle
from luthier.testing.forkserver import ForkServer


class Counting:
    """An encoder without a model: a vector says which text and which encoder it is of."""

    def __init__(self, base=0.0, dim=3):
        self.base, self.dim, self.texts = base, dim, []

    def encode(self, texts, batch_size=None, normalize=False):
        self.texts += texts
        numbers = [[self.base + float(text.split()[-1])] * self.dim for text in texts]
        return np.array(numbers, dtype=np.float32)


def items(folder, rows=25, name="items.jsonl"):
    path = folder / name
    path.write_text(
        "".join(json.dumps({"id": f"i{n}", "text": "word " * (n % 7) + str(n)}) + "\n"
                for n in range(rows))
    )  # fmt: skip
    return path


def encoded(path, where, encoder, model="m1", shard_rows=4, **more):
    source = Items(path)

    def plan():
        found = source.survey()
        return Plan(model, model, str(path), found.sha256, found.rows, False, False, shard_rows)

    return write_corpus(plan, source, open_place(where, "vectors", "auto"), lambda: encoder, **more)


def read(where):
    """id → (vector, model) of what is current."""
    if "://" not in str(where):
        rows = pq.read_table(f"{where}/current").to_pylist()
        return {row["id"]: (row["vector"], row["model"]) for row in rows}
    import psycopg

    with psycopg.connect(where) as connection:
        rows = connection.execute("SELECT id, vector::real[], model FROM vectors").fetchall()
    return {row[0]: (row[1], row[2]) for row in rows}


def expected(rows, base=0.0, dim=3, model="m1"):
    return {f"i{n}": ([base + n] * dim, model) for n in range(rows)}


@pytest.fixture(params=["folder", "postgresql"])
def where(request, tmp_path):
    if request.param == "folder":
        return str(tmp_path / "vectors")
    return request.getfixturevalue("postgresql_url")


def test_all_items_and_the_second_time_nothing(tmp_path, where):
    path, told = items(tmp_path), []
    first = Counting()
    done = encoded(path, where, first, progress=lambda *at: told.append(at))
    assert read(where) == expected(25)
    assert (done.rows, done.encoded) == (25, 25)
    assert told[-1] == (25, 25)
    assert told == sorted(told)
    second = Counting()
    done = encoded(path, where, second)
    assert (done.encoded, second.texts) == (0, [])
    other_format = tmp_path / "items.parquet"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    pq.write_table(pa.Table.from_pylist(rows), other_format)
    assert encoded(other_format, where, second, shard_rows=100).encoded == 0  # the same items


def test_another_model_takes_the_place_when_it_is_whole(tmp_path, where):
    path = items(tmp_path)
    old = encoded(path, where, Counting()).version
    broken = Counting(base=100.0, dim=5)
    broken.encode = lambda texts, **_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        encoded(path, where, broken, model="m2")
    assert read(where) == expected(25)
    done = encoded(path, where, Counting(100.0, dim=5), model="m2")
    assert read(where) == expected(25, 100.0, 5, "m2")
    assert done.version != old
    back = Counting()
    assert encoded(path, where, back).encoded == 0  # the old version was kept
    assert read(where) == expected(25)
    assert encoded(path, where, back, prune=True).removed == (done.version,)
    again = Counting(100.0, dim=5)
    assert encoded(path, where, again, model="m2").encoded == 25


def test_other_items_are_another_version(tmp_path, where):
    encoded(items(tmp_path), where, Counting())
    encoded(items(tmp_path, 27), where, Counting())
    assert read(where) == expected(27)


def test_what_is_there_goes_on_in_its_own_shards(tmp_path, where):
    path = items(tmp_path)
    encoder = Counting()
    whole = encoder.encode

    def stops(texts, **more):
        if len(encoder.texts) >= 12:
            raise KeyboardInterrupt
        return whole(texts, **more)

    encoder.encode = stops
    with pytest.raises(KeyboardInterrupt):
        encoded(path, where, encoder)
    later = Counting()
    assert encoded(path, where, later, shard_rows=1000).encoded == 13
    assert sorted(later.texts + encoder.texts, key=lambda t: int(t.split()[-1])) == [
        "word " * (n % 7) + str(n) for n in range(25)
    ]
    assert read(where) == expected(25)


def test_only_one_encodes_at_a_time(tmp_path, where):
    path = items(tmp_path)
    inner = Counting()

    class Nosy(Counting):
        def encode(self, texts, **more):
            with pytest.raises(Conflict, match="another process encodes"):
                encoded(path, where, inner)
            return super().encode(texts)

    encoded(path, where, Nosy())
    assert inner.texts == []


def test_a_file_that_changes_meanwhile_is_refused(tmp_path, where):
    path = items(tmp_path)

    class Changing(Counting):
        def encode(self, texts, **more):
            items(tmp_path, 24)
            return super().encode(texts)

    # the file is read in blocks, so what was read before may be the old text: either is refused
    source = Items(path)
    found = source.survey()
    items(tmp_path, 24)
    place = open_place(where, "vectors", "auto")
    plan = Plan("m1", "m1", str(path), found.sha256, found.rows, False, False, 4)
    with pytest.raises(DataError, match="changed while it was encoded"):
        write_corpus(lambda: plan, source, place, Changing)
    assert encoded(path, where, Counting()).rows == 24
    assert read(where) == expected(24)


KILLED = """
import sys
sys.path.insert(0, sys.argv[1])
from test_encode_corpus import Counting, encoded
encoded(sys.argv[2], sys.argv[3], Counting(100.0, dim=5), model="m2")
"""


def run_killed(tmp_path, where, **environment):
    """Encode with another model in a process of its own."""
    from pathlib import Path

    words = [str(Path(__file__).parent), str(tmp_path / "items.jsonl"), where]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *words], env={**os.environ, **environment},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


def test_killed_at_any_moment_it_goes_on(tmp_path, where):
    """Real processes, killed by the system at each kind of point that is passed, some more than
    once: what is read is the old version or the new, and no whole shard is made twice."""
    items(tmp_path, 10)
    encoded(tmp_path / "items.jsonl", where, Counting())
    trace = tmp_path / "trace"
    code, error = run_killed(tmp_path, where + "x" if "://" not in where else where,
                             **{environment.FAILPOINT_TRACE: str(trace)})  # fmt: skip
    assert code == 0, error
    points = list(dict.fromkeys(trace.read_text().split()))
    assert "corpus.shard" in points
    if "://" in where:  # begin anew: versions are told apart by what they are of
        encoded(tmp_path / "items.jsonl", where, Counting(), prune=True)
    for point in [*points, "corpus.shard@2"]:
        code, error = run_killed(tmp_path, where, **{environment.FAILPOINT: f"{point}=kill"})
        assert code in (0, -signal.SIGKILL), error
        assert read(where) in (expected(10), expected(10, 100.0, 5, "m2"))
    code, error = run_killed(tmp_path, where)
    assert code == 0, error
    assert read(where) == expected(10, 100.0, 5, "m2")
    assert encoded(tmp_path / "items.jsonl", where, Counting(100.0), model="m2").encoded == 0


def test_a_damaged_part_is_made_again(tmp_path):
    path, where = items(tmp_path), str(tmp_path / "vectors")
    version = encoded(path, where, Counting()).version
    part = tmp_path / "vectors" / "versions" / version / "part-00001.parquet"
    part.write_bytes(part.read_bytes()[:100])
    later = Counting()
    done = encoded(path, where, later)
    assert done.encoded == 4
    assert done.notes == ("part-00001.parquet is damaged and is made again",)
    assert read(where) == expected(25)


def test_a_manifest_names_model_and_data(tmp_path):
    path, where = items(tmp_path), tmp_path / "vectors"
    encoded(path, str(where), Counting())
    found = json.loads((where / "current" / "_manifest.json").read_text())
    assert (found["model"], found["rows"], found["dim"], found["file"]) == ("m1", 25, 3, str(path))
    assert found["data"] == Items(path).survey().sha256
    assert sum(part["rows"] for part in found["files"].values()) == 25


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"id": "a", "text": "x"}\n{"id": "b"}\n', "row 2, column text: this row lacks"),
        ('{"id": "a", "text": "x"}\n{"id": "b", "text": 3}\n', "row 2, column text: is no text: 3"),
        ('{"id": " ", "text": "x"}\n', "row 1, column id: it is empty"),
        ('{"id": "a", "text": "x"}\n{"id": "b", "text": "y"}\n{"id": "a", "text": "z"}\n',
         "row 3, column id: the id 'a' is that of row 1 as well"),
        ('{"id": "a", "text": "\\ud800"}\n', "surrogate"),
        ('{"key": "a", "text": "x"}\n', "which column holds the id"),
        ('{"id": "a", "one": "x", "two": "y"}\n', "which column holds the text"),
        ("", "the file is empty"),
    ],
)  # fmt: skip
def test_bad_items_are_named_by_row_before_anything_is_encoded(tmp_path, text, said):
    path = tmp_path / "items.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=said):
        encoded(path, str(tmp_path / "vectors"), None)


def test_columns_by_name_and_ids_that_are_numbers(tmp_path):
    path = tmp_path / "items.csv"
    path.write_text("sku,title,body\n007,a hat,1\n8,a cap,2\n")
    source = Items(path, id_column="sku", text_columns=["title", "body"])
    assert list(source.blocks()) == [(["007", "8"], ["a hat\n1", "a cap\n2"])]
    with pytest.raises(DataError, match="did you mean 'title'"):
        Items(path, id_column="sku", text_columns=["titel"])
    path = tmp_path / "items.parquet"
    pq.write_table(pa.table({"item_id": [3, 4], "text": ["x", "y"]}), path)
    assert list(Items(path).blocks()) == [(["3", "4"], ["x", "y"])]


def test_places_that_cannot_hold_vectors_are_refused(tmp_path, postgresql_url):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="is a file"):
        open_place(tmp_path / "file", "vectors", "auto")
    with pytest.raises(SpecError, match="'s3' cannot hold vectors"):
        open_place("s3://bucket/x", "vectors", "auto")
    with pytest.raises(SpecError, match="2 problems"):
        open_place(postgresql_url, 'x"; DROP', "float")
    path = items(tmp_path)
    with pytest.raises(StoreError, match="database failed"):
        encoded(path, postgresql_url.rpartition("/")[0] + "/nonesuch", Counting())
    import psycopg

    with psycopg.connect(postgresql_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE vectors (x int)")
    with pytest.raises(Conflict, match="something called vectors already"):
        encoded(path, postgresql_url, Counting())


def test_without_pgvector_it_says_so(tmp_path, postgresql_url):
    import psycopg

    query = "SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'"
    with psycopg.connect(postgresql_url) as connection:
        if connection.execute(query).fetchone()[0]:
            pytest.skip("pgvector is installed here")
    done = encoded(items(tmp_path), postgresql_url, Counting())
    assert done.notes == ("pgvector is not used: the column is real[]",)
    place = open_place(postgresql_url, "others", "vector")
    plan = Plan("m", "m", "f", "d", 1, False, False, 1)
    with pytest.raises(StoreError, match="no pgvector"), place.alone():
        place.begin(plan)


def test_pgvector(tmp_path, postgresql_url):
    import psycopg

    query = "SELECT count(*) FROM pg_available_extensions WHERE name = 'vector'"
    with psycopg.connect(postgresql_url) as connection:
        if not connection.execute(query).fetchone()[0]:
            pytest.skip("pgvector is not installed here")
    encoded(items(tmp_path), postgresql_url, Counting())
    with psycopg.connect(postgresql_url) as connection:
        near = "SELECT id FROM vectors ORDER BY vector <-> '[7, 7, 7]' LIMIT 1"
        assert connection.execute(near).fetchone() == ("i7",)
    assert read(postgresql_url) == expected(25)


def test_the_command_with_a_real_model_and_an_alias(tmp_path, tiny_model):
    """By name of a folder, then by an alias that is moved on."""
    import shutil

    path = items(tmp_path, 30)
    home = Home(tmp_path / "home")
    ids = []
    for text in ("one", "two"):

        def fill(folder, text=text):
            shutil.copytree(tiny_model, folder, dirs_exist_ok=True)
            (folder / "note").write_text(text)

        bundle = write_bundle(tmp_path / text, fill, {})
        ids.append(home.store.publish(bundle, public=False))
    home.aliases.promote(ids[0])
    where = str(tmp_path / "vectors")
    words = ["encode-corpus", "alias:production", str(path), where, "--home", str(home.path),
             "--shard-rows", "16", "--json"]  # fmt: skip
    with ForkServer() as forks:
        environment = {"OMP_NUM_THREADS": "1"}

        def call():
            return forks.call("luthier.cli.main:run", words, env=environment).wait(200)

        assert call() == 0
        assert {model for _, model in read(where).values()} == {ids[0]}
        home.aliases.promote(ids[1])
        assert call() == 0
    found = read(where)
    assert {model for _, model in found.values()} == {ids[1]}
    with using(home):
        texts = ["word " * (n % 7) + str(n) for n in range(30)]
        vectors = luthier.get_model("alias:production").encode(texts)
        assert np.abs([found[f"i{n}"][0] for n in range(30)] - vectors).max() < 1e-5
        done = luthier.encode_corpus(tiny_model, path, where, prune=True)
        assert len(done.removed) == 2
        with pytest.raises(NotFound):
            luthier.encode_corpus("nonesuch", path, where)
    home.close()
