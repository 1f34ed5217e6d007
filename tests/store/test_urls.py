"""The only opener of URLs."""

from __future__ import annotations

import http.server
import os
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from luthier.errors import (
    DataError,
    LuthierError,
    StoreError,
    UnsafeLocation,
)
from luthier.store import web
from luthier.store.urls import local_file


def test_paths_and_file_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train data.csv").write_text("a,b\n")
    monkeypatch.chdir(tmp_path)
    assert local_file("train data.csv", tmp_path) == tmp_path / "train data.csv"
    assert local_file(f"file://{tmp_path}/train%20data.csv", tmp_path).is_file()
    with pytest.raises(DataError, match="did you mean"):
        local_file("train_data.csv", tmp_path)
    with pytest.raises(DataError, match="folder"):
        local_file(str(tmp_path), tmp_path)
    with pytest.raises(DataError, match="no folder"):
        local_file("/nowhere/at/all.csv", tmp_path)


@pytest.mark.parametrize(
    "uri",
    [
        "file://host/etc/passwd",
        "ftp://example.org/x",
        "simplecache::https://example.org/x",
        "zip://x::file:///etc/passwd",
        "memory://x",
        "blob:" + "0" * 64,
        "http://127.0.0.1/x",
        "http://localhost:1/x",
        "http://[::1]/x",
        "http://2130706433/x",
        "http://0x7f.1/x",
        "http://0/x",
        "http://[::ffff:127.0.0.1]/x",
        "http://[::ffff:7f00:1]/x",
        "http://[64:ff9b::7f00:1]/x",
        "http://[2002:7f00:1::]/x",
        "http://169.254.169.254/latest/meta-data",
        "http://10.0.0.1/x",
        "http://192.168.1.1/x",
        "http://100.64.0.1/x",
        "http://[fd00::1]/x",
        "http://[fe80::1]/x",
        "http://224.0.0.1/x",
        "http://user:secret@93.184.216.34/x",
        "http://example.org:port/x",
        "http:///x",
        "https://exa mple.org/x",
        "https://example.org/x\r\nHost: y",
        "a\0b",
    ],
)
def test_unsafe_locations_are_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises((UnsafeLocation, DataError)) as caught:
        local_file(uri, tmp_path / "cache")
    assert isinstance(caught.value, UnsafeLocation) or "::" in uri
    assert "secret" not in str(caught.value)


class Site(http.server.BaseHTTPRequestHandler):
    body = b"a,b\n1,2\n"
    fetched = 0

    def do_GET(self) -> None:
        if self.path == "/missing":
            self.send_error(404)
        elif self.path == "/away":
            self.send_response(302)
            self.send_header("Location", "http://10.1.2.3/secret")
            self.end_headers()
        elif self.path == "/loop":
            self.send_response(302)
            self.send_header("Location", "/loop")
            self.end_headers()
        elif self.path == "/short":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"short")
        elif self.headers.get("If-None-Match") == f'"{hash(Site.body)}"':
            self.send_response(304)
            self.end_headers()
        else:
            Site.fetched += 1
            self.send_response(200)
            self.send_header("ETag", f'"{hash(Site.body)}"')
            self.send_header("Content-Length", str(len(Site.body)))
            self.end_headers()
            self.wfile.write(Site.body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_web_is_fetched_once_per_change(
    site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUTHIER_ALLOW_PRIVATE_URLS", "1")
    Site.fetched = 0
    Site.body = b"a,b\n1,2\n"
    first = local_file(f"{site}/data/train.csv?x=1", tmp_path)
    assert (first.name, first.read_bytes()) == ("train.csv", b"a,b\n1,2\n")
    assert local_file(f"{site}/data/train.csv?x=1", tmp_path) == first
    assert Site.fetched == 1
    Site.body = b"a,b\n3,4\n"
    assert local_file(f"{site}/data/train.csv?x=1", tmp_path).read_bytes() == b"a,b\n3,4\n"
    with pytest.raises(DataError, match="404"):
        local_file(f"{site}/missing", tmp_path)
    with pytest.raises(StoreError, match="redirects"):
        local_file(f"{site}/loop", tmp_path)
    with pytest.raises(StoreError, match="broke off"):
        local_file(f"{site}/short", tmp_path)
    assert not list(tmp_path.rglob("*.part"))


def test_each_redirect_is_checked(
    site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    public = web._public
    monkeypatch.setattr(web, "_public", lambda a: a == "127.0.0.1" or public(a))
    with pytest.raises(UnsafeLocation, match=r"10\.1\.2\.3"):
        local_file(f"{site}/away", tmp_path)


def test_a_name_that_rebinds_cannot_lead_elsewhere(
    site: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name gives a public address when checked and loopback afterwards: never connected."""
    asked: list[str] = []

    def rebinding(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        asked.append(host)
        address = "93.184.216.34" if len(asked) == 1 else "127.0.0.1"
        return [(2, 1, 6, "", (address, port))]

    connected: list[tuple[str, int]] = []

    def refuse(address: tuple[str, int], timeout: float) -> None:
        connected.append(address)
        raise OSError("no network in tests")

    monkeypatch.setattr(web.socket, "getaddrinfo", rebinding)
    monkeypatch.setattr(web.socket, "create_connection", refuse)
    with pytest.raises(StoreError, match="cannot connect"):
        local_file(site.replace("127.0.0.1", "rebind.example"), tmp_path)
    assert [a for a, _ in connected] == ["93.184.216.34"]


def test_other_fsspec_schemes_when_the_owner_allows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsspec's own ``local://`` stands for any of its file systems."""
    (tmp_path / "rows.csv").write_text("a,b\n")
    uri = f"local://{tmp_path}/rows.csv"
    with pytest.raises(UnsafeLocation):
        local_file(uri, tmp_path / "cache")
    monkeypatch.setenv("LUTHIER_ALLOW_URL_SCHEMES", "local")
    assert local_file(uri, tmp_path / "cache").read_text() == "a,b\n"
    os.truncate(tmp_path / "rows.csv", 1)
    assert local_file(uri, tmp_path / "cache").read_text() == "a"
    with pytest.raises(DataError):
        local_file(f"local://{tmp_path}/none.csv", tmp_path / "cache")


def test_allowing_a_scheme_allows_no_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each link of a chain would be opened by fsspec, past the guard."""
    with zipfile.ZipFile(tmp_path / "rows.zip", "w") as archive:
        archive.writestr("rows.csv", "a,b\n")
    monkeypatch.setenv("LUTHIER_ALLOW_URL_SCHEMES", "zip, memory,simplecache,dir,reference,nosuch")
    for uri in (
        f"zip://rows.csv::file://{tmp_path}/rows.zip",
        "zip://x::http://169.254.169.254/latest/meta-data",
        "memory://x::file:///etc/passwd",
        "simplecache::https://example.org/x",
        "simplecache://x::http://127.0.0.1/x",
        "simplecache::memory://x",
    ):
        with pytest.raises(UnsafeLocation):
            local_file(uri, tmp_path / "cache")
    for uri in ("zip://x", "simplecache://x", "reference://x", "nosuch://x", "dir://x"):
        with pytest.raises(LuthierError):
            local_file(uri, tmp_path / "cache")


def test_a_folder_of_an_allowed_scheme_is_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUTHIER_ALLOW_URL_SCHEMES", "local,memory")
    (tmp_path / "rows.csv").mkdir()
    with pytest.raises(DataError, match="folder"):
        local_file(f"local://{tmp_path}/rows.csv", tmp_path / "cache")
    with pytest.raises(DataError, match="no such file"):
        local_file("memory://rows.csv", tmp_path / "cache")
