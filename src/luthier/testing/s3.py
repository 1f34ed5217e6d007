"""A real S3 server for tests: moto's, as a process of its own on a loopback port.

It checks signatures' keys and policies as S3 does, and its access log says who asked for what.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.testing.waiting import until

_ALL_OF_S3 = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}],
}
#: moto looks whether there is such an object, and then puts it; of S3 that is one thing.
_ATOMIC = """
import sys, threading
from moto.s3.responses import S3Response
from moto.server import main
lock, put = threading.Lock(), S3Response.put_object
def put_object(self):
    with lock:
        return put(self)
S3Response.put_object = put_object
main(sys.argv[1:])
"""
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_LINE = re.compile(r'"([A-Z]+) (\S+) HTTP/[\d.]+" (\d+)')


@dataclass(frozen=True)
class Server:
    """A running server, and a client of it that bypasses what is tested.

    endpoint: its URL. environment: what a user sets to reach it, keys included.
    """

    endpoint: str
    environment: dict[str, str]
    log: Path

    def client(self) -> Any:
        """A boto3 client with the right keys."""
        import boto3

        return boto3.client("s3", **_client_words(self.endpoint, self.environment))

    def put(self, bucket: str, key: str, content: bytes) -> str:
        """Store an object, in a new bucket if there is none of that name; its ``s3://`` URL."""
        client = self.client()
        if bucket not in [b["Name"] for b in client.list_buckets()["Buckets"]]:
            client.create_bucket(Bucket=bucket)
        client.put_object(Bucket=bucket, Key=key, Body=content)
        return f"s3://{bucket}/{key}"

    def requests(self, path: str) -> list[tuple[str, int]]:
        """What was asked for a path so far, as method and status, in order."""
        found = _LINE.findall(_COLOUR.sub("", self.log.read_text()))
        return [(how, int(status)) for how, what, status in found if what.split("?")[0] == path]


@contextmanager
def server(folder: Path) -> Iterator[Server]:
    """Run a server that keeps its objects in memory; it is killed at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    log = folder / "s3.log"
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", _ATOMIC, "-H", "127.0.0.1", "-p", str(port)],
            env={**os.environ, "PYTHONUNBUFFERED": "1", "MOTO_PORT": str(port)},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    try:
        until(lambda: process.poll() is not None or _answers(port))
        if process.poll() is not None:
            raise AssertionError(f"the S3 server did not start:\n{log.read_text()}")
        yield Server(endpoint, _environment(endpoint), log)
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    """A loopback port at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
    return number


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _environment(endpoint: str) -> dict[str, str]:
    """Make a user with keys, and from then on refuse everybody else."""
    import boto3

    anybody = {"AWS_ACCESS_KEY_ID": "anybody", "AWS_SECRET_ACCESS_KEY": "anybody"}
    iam = boto3.client("iam", **_client_words(endpoint, anybody))
    iam.create_user(UserName="luthier")
    iam.put_user_policy(UserName="luthier", PolicyName="s3", PolicyDocument=json.dumps(_ALL_OF_S3))
    keys = iam.create_access_key(UserName="luthier")["AccessKey"]
    # Not as a form, which would be taken apart before it is read.
    reset = urllib.request.Request(
        f"{endpoint}/moto-api/reset-auth", data=b"0", headers={"Content-Type": "text/plain"}
    )
    with urllib.request.urlopen(reset, timeout=10) as answer:
        answer.read()
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": keys["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": keys["SecretAccessKey"],
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def _client_words(endpoint: str, environment: dict[str, str]) -> dict[str, str]:
    return {
        "endpoint_url": endpoint,
        "region_name": "us-east-1",
        "aws_access_key_id": environment["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": environment["AWS_SECRET_ACCESS_KEY"],
    }
