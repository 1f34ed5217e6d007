"""Object stores, against a real S3 server in a process of its own."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import luthier
from luthier.data import load_dataset
from luthier.errors import DataError, LuthierError, StoreError, UnsafeLocation
from luthier.runs.process import Process, kill
from luthier.spec import CSVOptions
from luthier.store.urls import local_file
from luthier.testing import s3

ROWS = [(f"thing number {i}", f"what is called {i}") for i in range(24)]
CSV = "".join(f"{a},{p}\n" for a, p in [("anchor", "positive"), *ROWS]).encode()


def parquet() -> bytes:
    sink = io.BytesIO()
    anchors, positives = zip(*ROWS, strict=True)
    pq.write_table(pa.table({"anchor": anchors, "positive": positives}), sink)
    return sink.getvalue()


FILES = {
    "train.csv": CSV,
    "train.parquet": parquet(),
    "train.jsonl": b"".join(
        json.dumps({"anchor": a, "positive": p}).encode() + b"\n" for a, p in ROWS
    ),
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.Server]:
    with s3.server(tmp_path_factory.mktemp("s3")) as server:
        server.put("data", "some/train.csv", CSV)
        yield server


@pytest.fixture
def server(running: s3.Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> s3.Server:
    """The server, in the environment as a user would set it, and without anybody's profile."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()  # what was connected with another environment
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in running.environment.items():
        monkeypatch.setenv(name, value)
    return running


@pytest.mark.parametrize("name", FILES)
def test_training_data_is_read_from_s3(server: s3.Server, tmp_path: Path, name: str) -> None:
    uri = server.put("data", f"in a folder/{name}", FILES[name])
    path = local_file(uri, tmp_path)
    assert path.read_bytes() == FILES[name]
    data = load_dataset(path, CSVOptions(), tmp_path, name=uri)
    assert (data.form, len(data)) == ("pairs", 24)
    assert data.texts("positive", [3]) == ["what is called 3"]


def test_what_did_not_change_is_not_fetched_again(server: s3.Server, tmp_path: Path) -> None:
    def gets() -> int:
        return [how for how, _ in server.requests("/data/again.csv")].count("GET")

    uri = server.put("data", "again.csv", b"a,b\n1,2\n")
    first = local_file(uri, tmp_path)
    assert gets() == 1
    assert local_file(uri, tmp_path) == first
    assert gets() == 1
    server.put("data", "again.csv", b"a,b\n3,4\n")
    assert local_file(uri, tmp_path).read_bytes() == b"a,b\n3,4\n"
    assert gets() == 2
    assert not list(tmp_path.rglob("*.part"))


def test_an_object_of_many_parts_arrives_whole(server: s3.Server, tmp_path: Path) -> None:
    """Larger than a block of the client, which then asks for ranges, several at once."""
    content = bytes(range(256)) * (110 << 12)  # 110 MiB; the client's block is 50 MiB
    uri = server.put("data", "large.bin", content)
    assert local_file(uri, tmp_path).read_bytes() == content
    assert server.requests("/data/large.bin").count(("GET", 206)) > 1


def test_an_object_that_changes_meanwhile_is_noticed(
    server: s3.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    uri = server.put("data", "moving.csv", b"a,b\n1,2\n")
    fetch = s3fs.S3FileSystem.get_file

    def and_change(self: object, *words: object) -> None:
        fetch(self, *words)
        server.put("data", "moving.csv", b"a,b\n3,4\n")

    monkeypatch.setattr(s3fs.S3FileSystem, "get_file", and_change)
    with pytest.raises(StoreError, match="changed while it was downloaded"):
        local_file(uri, tmp_path)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == []


@pytest.mark.parametrize("key", ["a::b.csv", "a #1?x.csv", "100%.csv", "ü/..csv", "x" * 300])
def test_any_name_of_an_object_will_do(server: s3.Server, tmp_path: Path, key: str) -> None:
    assert local_file(server.put("data", key, CSV), tmp_path).read_bytes() == CSV


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("s3://data/some/trainn.csv", "there is no such file"),
        ("s3://data/%00", "there is no such file"),
        ("s3://data/..", "there is no such file"),
        ("s3://no-such-bucket/train.csv", "there is no bucket 'no-such-bucket'"),
        ("s3://data/some", "this is a folder"),
        ("s3://data/some/", "this is a folder"),
        ("s3://data", "this is a folder"),
        ("s3://", "this is a folder"),
        ("s3://data/some/train.csv::file:///etc/passwd", "there is no such file"),
    ],
)
def test_what_is_no_file_is_an_error(
    server: s3.Server, tmp_path: Path, uri: str, said: str
) -> None:
    with pytest.raises(DataError, match=said) as caught:
        local_file(uri, tmp_path)
    assert caught.value.where == uri
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("AWS_ACCESS_KEY_ID", "AKIAWRONG", "access was denied"),
        ("AWS_SECRET_ACCESS_KEY", "wrong", "access was denied"),
        ("AWS_ACCESS_KEY_ID", None, "Unable to locate credentials"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:1", "Could not connect"),
        ("AWS_ENDPOINT_URL", "nonsense", "Invalid endpoint"),
    ],
)
def test_what_keeps_us_out_is_an_error_with_a_hint(
    server: s3.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    name: str, value: str | None, said: str,
) -> None:  # fmt: skip
    if value is None:
        monkeypatch.delenv(name)
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    else:
        monkeypatch.setenv(name, value)
    with pytest.raises(StoreError, match=said) as caught:
        local_file("s3://data/some/train.csv", tmp_path)
    assert caught.value.where == "s3://data/some/train.csv"
    assert "AWS_ENDPOINT_URL" in str(caught.value.hint)
    assert server.environment["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)


def test_an_address_with_a_password_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsafeLocation, match="password") as caught:
        local_file("s3://key:secret@data/train.csv", tmp_path)
    assert "secret" not in str(caught.value)


def test_s3_without_its_package_names_the_extra(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from luthier.errors import MissingExtra
from luthier.store.urls import local_file
sys.modules["s3fs"] = None
try:
    local_file("s3://bucket/key", Path(sys.argv[1]))
except MissingExtra as error:
    print(error)
"""
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "pip install 'luthier[s3]'" in done.stdout


def test_a_model_is_tuned_on_data_in_s3(
    server: s3.Server, tmp_path: Path, tiny_model: Path
) -> None:
    """By a real worker, which finds the store by the environment."""
    train = server.put("data", "fit/train.csv", CSV)
    home = luthier.connect(tmp_path / "home")
    try:
        run = luthier.fit(
            str(tiny_model), train, eval_data=train, epochs=1, device="cpu", wait=True
        )
        assert run.status()["status"] == "FINISHED"
        assert f"{train}: 24 rows, pairs" in run.logs()
        missing = luthier.fit(str(tiny_model), "s3://data/none.csv", epochs=1)
        with pytest.raises(LuthierError, match=r"none\.csv: there is no such file"):
            missing.wait(progress=False)
        assert (missing.status()["status"], missing.status()["reason"]) == (
            "FAILED",
            "data_invalid",
        )
    finally:
        for worker in home.ledger.workers():
            kill(Process.parse(worker.process))
        home.close()
