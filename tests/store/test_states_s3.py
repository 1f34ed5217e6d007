"""States in a bucket, on a real S3 server in a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import state_writers
from state_writers import make

from luthier import environment
from luthier.errors import (
    CorruptBundle,
    DiskFull,
    NotFound,
    StateConflict,
    StoreError,
    UnsafeLocation,
)
from luthier.store.bundle import MANIFEST, Bundle
from luthier.store.states import commit_state, head, prune, read_state
from luthier.testing import s3

BUCKET = "states"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[s3.Server]:
    with s3.server(tmp_path_factory.mktemp("s3")) as server:
        server.client().create_bucket(Bucket=BUCKET)
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


@pytest.fixture
def url(server: s3.Server, tmp_path: Path) -> str:
    return f"s3://{BUCKET}/{tmp_path.name}/first model"


@pytest.fixture
def made(tmp_path: Path) -> list[Bundle]:
    return [make(tmp_path / "made" / str(i), f"update {i}") for i in range(4)]


def committed(url: str, made: list[Bundle], count: int) -> None:
    for parent in range(count):
        assert commit_state(made[parent], url, parent=parent, meta={"n": parent}) == parent + 1


def objects(server: s3.Server, url: str) -> dict[str, Any]:
    """What lies below a URL: name → facts."""
    prefix = url.removeprefix(f"s3://{BUCKET}/") + "/"
    listed = server.client().list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
    return {entry["Key"].removeprefix(prefix): entry for entry in listed}


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def sent(server: s3.Server, method: str) -> int:
    """How many objects (not notes) were asked for or sent so far."""
    return server.log.read_text().count(f'"{method} ') - sum(
        f'"{method} ' in line and "/objects/" not in line
        for line in server.log.read_text().splitlines()
    )


def intercept(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    """Let ``answer(call, method, words)`` stand between luthier and the client."""
    import s3fs

    call = s3fs.S3FileSystem.call_s3
    monkeypatch.setattr(
        s3fs.S3FileSystem,
        "call_s3",
        lambda self, method, **words: answer(
            lambda method, **words: call(self, method, **words), method, words
        ),
    )


def test_each_update_reads_what_the_one_before_committed(
    server: s3.Server, url: str, made: list[Bundle], tmp_path: Path
) -> None:
    assert head(url) == 0
    for parent, bundle in enumerate(made):
        assert commit_state(bundle, url, parent=parent, meta={"rows": parent}) == parent + 1
        state = read_state(url, tmp_path / "cache")
        assert (state.url, state.generation, state.meta) == (url, parent + 1, {"rows": parent})
        assert (state.bundle.id, state.bundle.meta) == (bundle.id, bundle.meta)
        assert everything(state.bundle.path) == everything(bundle.path)
    assert read_state(url, tmp_path / "cache", generation=2).bundle.id == made[1].id
    assert read_state(f"{url}/", tmp_path / "cache").generation == 4
    names = objects(server, url)
    # 4 of model.safetensors, 4 manifests; the three other files are in all of them the same.
    assert sum(name.startswith("objects/") for name in names) == 4 + 4 + 3
    assert {name for name in names if not name.startswith("objects/")} == {
        "luthier-state.json", *(f"generations/0000000{n}.json" for n in (1, 2, 3, 4))
    }  # fmt: skip


def test_a_generation_is_fetched_once(
    server: s3.Server, url: str, made: list[Bundle], tmp_path: Path
) -> None:
    committed(url, made, 1)
    before = sent(server, "GET")
    first = read_state(url, tmp_path / "cache")
    fetched = sent(server, "GET")
    assert fetched - before == 5
    assert read_state(url, tmp_path / "cache") == first
    assert sent(server, "GET") == fetched
    # What was damaged in the cache is fetched again.
    (first.bundle.path / "model.safetensors").write_text("something else")
    assert read_state(url, tmp_path / "cache") == first
    assert sent(server, "GET") == fetched + 5
    assert everything(first.bundle.path) == everything(made[0].path)


def test_what_is_there_is_not_sent_again(
    server: s3.Server, url: str, made: list[Bundle], tmp_path: Path
) -> None:
    before = sent(server, "PUT")
    committed(url, made, 1)
    assert sent(server, "PUT") - before == 5
    assert commit_state(made[0], url, parent=0, meta={}) == 1
    assert sent(server, "PUT") - before == 5
    assert commit_state(made[1], url, parent=1, meta={}) == 2
    assert sent(server, "PUT") - before == 7


def test_a_state_may_fill_a_bucket(server: s3.Server, made: list[Bundle], tmp_path: Path) -> None:
    server.client().create_bucket(Bucket="whole-bucket")
    committed("s3://whole-bucket", made, 2)
    assert read_state("s3a://whole-bucket/", tmp_path).bundle.id == made[1].id


def test_another_update_of_the_same_generation_is_told(
    server: s3.Server, url: str, made: list[Bundle]
) -> None:
    committed(url, made, 2)
    before = objects(server, url)
    for parent, bundle in ((0, made[1]), (1, made[0]), (1, made[2])):
        with pytest.raises(StateConflict, match="committed meanwhile"):
            commit_state(bundle, url, parent=parent, meta={})
    assert objects(server, url) == before


def test_a_missing_state_names_the_nearest(url: str, made: list[Bundle], tmp_path: Path) -> None:
    committed(url, made, 1)
    with pytest.raises(NotFound, match="there is no state here") as caught:
        read_state(url.replace("first", "frist"), tmp_path)
    assert caught.value.hint == f"did you mean '{url}'? leave it out to train from scratch"
    with pytest.raises(NotFound, match="no generation 4 to be followed"):
        commit_state(made[1], url, parent=4, meta={})


def test_a_prefix_with_other_objects_is_refused(
    server: s3.Server, url: str, made: list[Bundle], tmp_path: Path
) -> None:
    server.put(BUCKET, f"{tmp_path.name}/first model/photo.jpg", b"mine")
    for verb in (
        lambda: head(url),
        lambda: read_state(url, tmp_path),
        lambda: commit_state(made[0], url, parent=0, meta={}),
    ):
        with pytest.raises(UnsafeLocation, match=r"other files lie here, as 'photo\.jpg'"):
            verb()
    assert list(objects(server, url)) == ["photo.jpg"]
    # Beside it, and where its name is a part of the other's, there is room.
    committed(f"s3://{BUCKET}/{tmp_path.name}/first", made, 1)


def test_no_bucket(server: s3.Server, made: list[Bundle], tmp_path: Path) -> None:
    for verb in (
        lambda: head("s3://no-such-bucket/state"),
        lambda: read_state("s3://no-such-bucket/state", tmp_path),
        lambda: commit_state(made[0], "s3://no-such-bucket/state", parent=0, meta={}),
    ):
        with pytest.raises(NotFound, match="there is no bucket 'no-such-bucket'"):
            verb()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wrong", "access was denied"),
        ("AWS_ACCESS_KEY_ID", None, "Unable to locate credentials"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:1", "Could not connect"),
    ],
)
def test_what_keeps_us_out_is_an_error_with_a_hint(
    server: s3.Server, made: list[Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    name: str, value: str | None, said: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    if value is None:
        monkeypatch.delenv(name)
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    else:
        monkeypatch.setenv(name, value)
    with pytest.raises(StoreError, match=said) as caught:
        commit_state(made[0], f"s3://{BUCKET}/out", parent=0, meta={})
    assert caught.value.where == f"s3://{BUCKET}/out"
    assert "AWS_ENDPOINT_URL" in str(caught.value.hint)
    assert server.environment["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)


def test_without_the_package_the_extra_is_named(tmp_path: Path) -> None:
    program = """
import sys
from luthier.errors import MissingExtra
from luthier.store.states import head
sys.modules["s3fs"] = None
try:
    head("s3://bucket/state")
except MissingExtra as error:
    print(error)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "pip install 'luthier[s3]'" in done.stdout


# Damage


@pytest.mark.parametrize("name", ["model.safetensors", MANIFEST])
@pytest.mark.parametrize("how", ["changed", "missing"])
def test_a_damaged_object_is_named(
    server: s3.Server, url: str, made: list[Bundle], tmp_path: Path, name: str, how: str
) -> None:
    committed(url, made, 2)
    note = server.client().get_object(
        Bucket=BUCKET, Key=f"{tmp_path.name}/first model/generations/00000002.json"
    )
    sha256 = json.loads(note["Body"].read())["files"][name]["sha256"]
    key = f"{tmp_path.name}/first model/objects/{sha256}"
    data = bytearray((made[1].path / name).read_bytes())
    data[0] ^= 1
    if how == "missing":
        server.client().delete_object(Bucket=BUCKET, Key=key)
    else:
        server.put(BUCKET, key, bytes(data))
    with pytest.raises(CorruptBundle) as caught:
        read_state(url, tmp_path / "cache")
    assert sha256 in f"{caught.value.where} {caught.value}"
    assert name in str(caught.value)
    assert everything(tmp_path / "cache") == {}
    assert read_state(url, tmp_path / "cache", generation=1).bundle.id == made[0].id


def test_a_damaged_note_is_named(
    server: s3.Server, url: str, made: list[Bundle], tmp_path: Path
) -> None:
    committed(url, made, 1)
    key = f"{tmp_path.name}/first model/generations/00000001.json"
    data = server.client().get_object(Bucket=BUCKET, Key=key)["Body"].read()
    for bad in (data[:-2], data.replace(b'"parent": 0', b'"parent": 1'), b""):
        where = server.put(BUCKET, key, bad)
        with pytest.raises(CorruptBundle) as caught:
            read_state(url, tmp_path)
        assert caught.value.where == where


def test_a_file_that_changes_while_it_is_sent_is_not_left_under_its_name(
    server: s3.Server, url: str, made: list[Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    send = s3fs.S3FileSystem.put_file

    def changed(self: object, path: str, target: str) -> None:
        if path.endswith("model.safetensors"):
            Path(path).write_text("UPDATE 0")  # of the same length
        send(self, path, target)

    monkeypatch.setattr(s3fs.S3FileSystem, "put_file", changed)
    with pytest.raises(CorruptBundle, match="changed while it was uploaded") as caught:
        commit_state(made[0], url, parent=0, meta={})
    assert caught.value.where == str(made[0].path / "model.safetensors")
    assert head(url) == 0
    contents = {
        server.client().get_object(Bucket=BUCKET, Key=entry["Key"])["Body"].read()
        for entry in objects(server, url).values()
    }
    assert b"UPDATE 0" not in contents


# Several writers, and their ends


@pytest.mark.parametrize("rounds", [8, pytest.param(150, marks=pytest.mark.slow)])
def test_of_two_writers_one_wins_and_the_other_is_told(
    url: str, tmp_path: Path, rounds: int
) -> None:
    winners = state_writers.race(url, tmp_path / "race", rounds)
    assert len(winners) == head(url) == rounds


def test_a_store_that_lets_one_overwrite_another_is_refused(
    server: s3.Server, url: str, made: list[Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a client from before conditional writes: s3fs leaves out what it does not know."""
    intercept(
        monkeypatch,
        lambda call, method, words: call(
            method, **{name: word for name, word in words.items() if name != "IfNoneMatch"}
        ),
    )
    for _ in range(2):
        with pytest.raises(StoreError, match="lets one writer overwrite another"):
            commit_state(made[0], url, parent=0, meta={})
    monkeypatch.undo()
    assert list(objects(server, url)) == ["luthier-state.json"]


def test_an_answer_that_was_lost_is_no_conflict(
    url: str, made: list[Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client asks again, and is told that the object is there: it is ours."""

    def twice(call: Any, method: str, words: dict[str, Any]) -> Any:
        if method == "put_object" and "/generations/" in words["Key"]:
            call(method, **words)
        return call(method, **words)

    intercept(monkeypatch, twice)
    committed(url, made, 2)
    assert read_state(url, tmp_path).bundle.id == made[1].id


@pytest.mark.parametrize(("busy", "fine"), [(1, True), (7, True), (1000, False)])
def test_a_store_that_is_busy_with_another_writer_is_asked_again(
    url: str, made: list[Bundle], monkeypatch: pytest.MonkeyPatch, busy: int, fine: bool
) -> None:
    """AWS answers 409 ConditionalRequestConflict to one of two at the very same moment."""
    from botocore.exceptions import ClientError

    asked = []

    def answer(call: Any, method: str, words: dict[str, Any]) -> Any:
        if method == "put_object" and "/generations/" in words["Key"]:
            asked.append(words["Key"])
            if len(asked) <= busy:
                said = {"Error": {"Code": "ConditionalRequestConflict", "Message": "busy"},
                        "ResponseMetadata": {"HTTPStatusCode": 409}}  # fmt: skip
                raise OSError(16, "busy") from ClientError(said, "PutObject")
        return call(method, **words)

    intercept(monkeypatch, answer)
    if fine:
        committed(url, made, 1)
        assert len(asked) == busy + 1
    else:
        with pytest.raises(StoreError, match="busy"):
            commit_state(made[0], url, parent=0, meta={})
        assert head(url) == 0


@pytest.mark.parametrize(
    "passage", ["state.uploaded@1", pytest.param("state.stored", marks=pytest.mark.slow)]
)
def test_a_killed_writer_leaves_the_generation_before(
    server: s3.Server, url: str, made: list[Bundle], tmp_path: Path, passage: str
) -> None:
    committed(url, made, 1)
    code, _ = state_writers.run(
        "commit", url, made[1].path, 1, **{environment.FAILPOINT: f"{passage}=kill"}
    )
    assert code == -signal.SIGKILL
    state = read_state(url, tmp_path / "cache")
    assert (state.generation, state.bundle.id) == (1, made[0].id)
    before = sent(server, "PUT")
    assert commit_state(made[1], url, parent=1, meta={}) == 2
    assert sent(server, "PUT") - before == (1 if passage == "state.uploaded@1" else 0)
    assert read_state(url, tmp_path / "cache").bundle.id == made[1].id


def test_a_writer_that_is_killed_after_its_commit_may_commit_again(
    url: str, made: list[Bundle], tmp_path: Path
) -> None:
    words = ("commit", url, made[0].path, 0)
    assert state_writers.run(*words, **{environment.FAILPOINT: "state.committed=kill"})[0] == -9
    assert state_writers.run(*words) == (0, "1")


@pytest.mark.parametrize(
    ("passage", "end"),
    [
        ("state.downloaded@5", "enospc"),
        ("folder.filled", "kill"),
        pytest.param("state.downloaded@1", "kill", marks=pytest.mark.slow),
    ],
)
def test_a_fetch_that_ends_halfway_leaves_no_half(
    url: str, made: list[Bundle], tmp_path: Path, end: str, passage: str
) -> None:
    committed(url, made, 1)
    cache = tmp_path / "cache"
    code, said = state_writers.run(
        "read", url, cache, **{environment.FAILPOINT: f"{passage}={end}"}
    )
    assert (code, said.split()[:1]) == ((-9, []) if end == "kill" else (9, ["disk_full"]))
    assert [p for p in (cache / "states").iterdir() if not p.name.startswith(".")] == []
    assert read_state(url, cache).bundle.id == made[0].id


def test_a_full_disk_while_fetching_is_said(url: str, made: list[Bundle], tmp_path: Path) -> None:
    """By the kernel: no file of this process may grow beyond a limit."""
    import resource

    committed(url, made, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(DiskFull):
            read_state(url, tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert everything(tmp_path / "cache") == {}


# Pruning


def test_pruning_keeps_the_newest_and_what_it_shares(
    server: s3.Server, url: str, made: list[Bundle], tmp_path: Path
) -> None:
    committed(url, made, 4)
    before = objects(server, url)
    assert prune(url, keep=2) == 0  # all of them are too young
    assert objects(server, url) == before
    assert prune(url, keep=2, grace_s=0) == 4
    assert [read_state(url, tmp_path / "cache", generation=g).bundle.id for g in (3, 4)] == [
        made[2].id,
        made[3].id,
    ]
    with pytest.raises(NotFound, match="generation 1 was pruned"):
        read_state(url, tmp_path / "cache", generation=1)
    for parent in (0, 1):
        with pytest.raises(StateConflict):
            commit_state(made[3], url, parent=parent, meta={})
    assert commit_state(made[0], url, parent=4, meta={}) == 5
    assert read_state(url, tmp_path / "cache").bundle.id == made[0].id


def test_pruning_ends_uploads_that_were_broken_off(
    server: s3.Server, url: str, made: list[Bundle], tmp_path: Path
) -> None:
    committed(url, made, 1)
    client = server.client()
    for where in (f"{tmp_path.name}/first model/objects/{'0' * 64}", "somebody/else"):
        client.create_multipart_upload(Bucket=BUCKET, Key=where)

    def left() -> list[str]:
        uploads = client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
        return [upload["Key"] for upload in uploads]

    assert len(left()) == 2
    assert prune(url, keep=1) == 1  # moto begins all uploads in 2010
    assert left() == ["somebody/else"]
    assert read_state(url, tmp_path / "cache").generation == 1


def test_what_prune_may_be_about_to_remove_is_sent_again(
    server: s3.Server, url: str, made: list[Bundle], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """An object that is old and not in the newest generation: the writer makes it young."""
    from luthier.store import states_s3

    committed(url, made, 2)
    monkeypatch.setattr(states_s3, "_FRESH_S", -1.0)  # all that is there is old
    before = sent(server, "PUT")
    assert commit_state(made[0], url, parent=2, meta={}) == 3
    # Two files of generation 1 that are not in generation 2; the other three are.
    assert sent(server, "PUT") - before == 2


def test_what_was_sent_again_while_pruning_is_not_removed(
    server: s3.Server, url: str, made: list[Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old when they were listed, young when they are about to be removed."""

    def old(call: Any, method: str, words: dict[str, Any]) -> Any:
        answer = call(method, **words)
        for entry in answer.get("Contents", []) if method == "list_objects_v2" else []:
            entry["LastModified"] -= timedelta(days=2)
        return answer

    committed(url, made, 2)
    before = objects(server, url)
    intercept(monkeypatch, old)
    assert prune(url, keep=1) == 0
    assert objects(server, url) == before


def test_many_generations_are_listed_page_by_page(
    url: str, made: list[Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(call: Any, method: str, words: dict[str, Any]) -> Any:
        return call(method, **words, **({"MaxKeys": 2} if method == "list_objects_v2" else {}))

    committed(url, made, 3)
    intercept(monkeypatch, short)
    assert head(url) == 3
    assert prune(url, keep=1, grace_s=0) == 4
    monkeypatch.undo()
    assert read_state(url, tmp_path / "cache").bundle.id == made[2].id
