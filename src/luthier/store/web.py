"""Fetching over http(s) from public addresses only, with the checked address pinned.

A server that fetches what users name can be made to reach what only it can reach: its own
loopback services, the neighbours in its network, a cloud's metadata address. So the host is
resolved here, every address is checked, the connection goes to that very address, and each
redirect starts over. ``LUTHIER_ALLOW_PRIVATE_URLS=1`` lifts this where that is wanted.
"""

from __future__ import annotations

import http.client
import ipaddress
import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import SplitResult, urljoin, urlsplit

from luthier.environment import ALLOW_PRIVATE_URLS
from luthier.errors import DataError, StoreError, UnsafeLocation

_MAX_REDIRECTS = 5
_TIMEOUT_S = 30.0


class Answer:
    """An open response: ``read(n)`` gives the body, ``fingerprint`` says if it changed."""

    def __init__(self, response: http.client.HTTPResponse, uri: str) -> None:
        self._response, self._uri = response, uri
        length = response.headers.get("Content-Length", "")
        self._left = int(length) if length.isdigit() else None
        etag = response.headers.get("ETag")
        modified = response.headers.get("Last-Modified")
        self.fingerprint = f"etag {etag}" if etag else f"date {modified}" if modified else None

    def read(self, size: int) -> bytes:
        """The next bytes. Raises StoreError when the body ends before its announced length."""
        try:
            chunk = self._response.read(size)
        except (OSError, http.client.HTTPException) as error:
            raise StoreError(f"the download broke off ({error})", where=self._uri) from error
        if self._left is not None:
            self._left -= len(chunk)
            if not chunk and self._left > 0:
                raise StoreError("the download broke off", where=self._uri)
        return chunk


@contextmanager
def open_web(uri: str, known: str | None) -> Iterator[Answer | None]:
    """Open a web address; None when what it gives is what ``known`` says we have.

    Raises UnsafeLocation, DataError (404, 410) or StoreError.
    """
    for _ in range(_MAX_REDIRECTS + 1):
        parts = _checked(uri)
        connection = _connection(parts, _address(parts, uri))
        try:
            response = _ask(connection, parts, uri, known)
            status = response.status
            if status == 304 and known:
                yield None
                return
            if status == 200:
                yield Answer(response, uri)
                return
            if status not in (301, 302, 303, 307, 308):
                kind = DataError if status in (404, 410) else StoreError
                raise kind(f"the server answered {status} {response.reason} for {uri}")
            uri = urljoin(uri, response.headers.get("Location") or "")
        finally:
            connection.close()
    raise StoreError(f"more than {_MAX_REDIRECTS} redirects", where=uri)


def _checked(uri: str) -> SplitResult:
    try:
        parts = urlsplit(uri)
        parts.port  # noqa: B018  (raises ValueError when it is no number)
    except ValueError as error:
        raise UnsafeLocation(f"this is not an address ({error})", where=uri[:200]) from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UnsafeLocation("this is not a web address", where=uri[:200])
    if any(ord(c) <= 32 or ord(c) == 127 for c in uri):
        raise UnsafeLocation(
            "an address may not hold spaces or control characters", where=uri[:200]
        )
    if parts.username or parts.password:
        raise UnsafeLocation(
            "an address may not carry a password: it would end up in the run's record",
            where=parts.hostname,
        )
    return parts


def _address(parts: SplitResult, uri: str) -> str:
    """One address of the host, after all of them were found to be public."""
    host = str(parts.hostname)
    try:
        found = socket.getaddrinfo(host, _port(parts), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise StoreError(f"the host cannot be found ({error})", where=uri) from error
    addresses = [str(entry[4][0]) for entry in found]
    if os.environ.get(ALLOW_PRIVATE_URLS) != "1":
        for address in addresses:
            if not _public(address):
                raise UnsafeLocation(
                    f"{host} is {address}, which is not a public address",
                    where=uri,
                    hint=f"set {ALLOW_PRIVATE_URLS}=1 to allow addresses of your own network",
                )
    return addresses[0]


def _public(address: str) -> bool:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        # An IPv4 address can be dressed up as IPv6 in several ways; look at what is inside.
        inner = parsed.ipv4_mapped or parsed.sixtofour
        if inner is None and parsed in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
        if inner is not None:
            return inner.is_global and not inner.is_multicast
    return parsed.is_global and not parsed.is_multicast


def _port(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)


def _connection(parts: SplitResult, address: str) -> http.client.HTTPConnection:
    """A connection to that address; the certificate is checked against the host's name."""
    host, port = str(parts.hostname), _port(parts)
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    try:
        plain = socket.create_connection((address, port), timeout=_TIMEOUT_S)
        if parts.scheme == "https":
            plain = ssl.create_default_context().wrap_socket(plain, server_hostname=host)
    except OSError as error:
        raise StoreError(f"cannot connect ({error})", where=f"{host}:{port}") from error
    connection.sock = plain
    return connection


def _ask(
    connection: http.client.HTTPConnection, parts: SplitResult, uri: str, known: str | None
) -> http.client.HTTPResponse:
    headers = {"User-Agent": "luthier", "Accept-Encoding": "identity"}
    kind, _, value = (known or "").partition(" ")
    if kind in ("etag", "date"):
        headers["If-None-Match" if kind == "etag" else "If-Modified-Since"] = value
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        connection.request("GET", path, headers=headers)
        return connection.getresponse()
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        raise StoreError(f"the server did not answer properly ({error})", where=uri) from error
