"""A real PostgreSQL server for tests, as a process of its own in a temporary folder."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def server_binaries() -> Path | None:
    """The folder with ``initdb`` and ``pg_ctl``, the newest version first; None without."""
    found = shutil.which("initdb")
    if found:
        return Path(found).parent
    versions = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    return max((path.parent for path in versions), default=None)


@contextmanager
def server(binaries: Path, folder: Path) -> Iterator[str]:
    """Run a server on a free port; yields its URL, without a database's name.

    Without fsync: these tests are about its rules, not about its disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    user: dict[str, Any] = {}
    if os.geteuid() == 0:  # the server refuses to run as root
        shutil.chown(folder, "nobody")
        for path in [folder, *list(folder.parents)[:3]]:
            path.chmod(path.stat().st_mode | 0o055)
        user = {"user": pwd.getpwnam("nobody").pw_uid}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data = str(folder / "data")
    initdb, pg_ctl = str(binaries / "initdb"), str(binaries / "pg_ctl")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    make = [initdb, "-D", data, "-U", "luthier", "-A", "trust", "--no-sync"]
    start = [pg_ctl, "-D", data, "-w", "-l", str(folder / "log"), "-o", options, "start"]
    stop = [pg_ctl, "-D", data, "-m", "immediate", "stop"]
    subprocess.run(make, check=True, capture_output=True, cwd=folder, **user)
    subprocess.run(start, check=True, stdout=subprocess.DEVNULL, cwd=folder, **user)
    try:
        yield f"postgresql://luthier@127.0.0.1:{port}"
    finally:
        subprocess.run(stop, check=True, stdout=subprocess.DEVNULL, cwd=folder, **user)
