"""Real retrieval data from Debian's package descriptions: short description → long one, both in
English, or from another language into English.

Built at run time from the package lists of the machine's own apt sources (their licences
are mixed, so nothing of it is shipped). Needs apt; takes about ten seconds.

    train 26,757 pairs, test 4,928 on Debian 12; a pair belongs to train, dev or test by a
    hash of its package's name, so the split is the same everywhere

``python -m luthier.benchmark.debian`` writes it into .luthier/benchmarks.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from luthier.benchmark.unavailable import Unavailable

#: The release that the documentation's figures are of; any other will do where it is not there.
_RELEASE = "bookworm"
_HELPER = "/usr/lib/apt/apt-helper"
_LEFT_OUT = {"debug", "metapackages", "tasks", "oldlibs"}


def build(folder: Path, language: str = "en") -> Path:
    """Write ``debian.jsonl`` (query, doc, split) into a folder, once; its path. language: of the
    queries, in a file of its own where it is not English.

    Raises Unavailable: there is no apt, or it cannot fetch its lists.
    """
    file = folder / ("debian.jsonl" if language == "en" else f"debian-{language}.jsonl")
    if file.exists():
        return file
    if shutil.which("apt-get") is None or not Path(_HELPER).exists():
        raise Unavailable("Debian's package descriptions are read by apt, which is not here")
    lists = folder.resolve() / "apt-lists"  # apt takes absolute paths only
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    options = [
        f"-oDir::State::Lists={lists}",
        f"-oAcquire::Languages={','.join({'en': 0, language: 0})}",
        "-oDir::Cache::pkgcache=",
        "-oDir::Cache::srcpkgcache=",
    ]
    asked = subprocess.run(
        ["apt-get", *options, "-qq", "update"], check=False, capture_output=True, text=True
    )
    if asked.returncode != 0:
        raise Unavailable(f"apt-get update: {asked.stderr.strip() or asked.stdout.strip()}")
    rows = list(_rows(lists) if language == "en" else _translated(lists, language))
    aside = file.with_suffix(".aside")
    aside.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    aside.rename(file)
    return file


def _texts(lists: Path, language: str) -> dict[tuple[str, str], tuple[str, str, str]]:
    """Short and long description by package and hash of the English text."""
    key = f"Description-{language}"
    return {
        (entry["Package"], entry["Description-md5"]): entry[key].partition("\n")
        for entry in _stanzas(_only(lists, f"_main_i18n_Translation-{language}"))
        if key in entry
    }


def _translated(lists: Path, language: str) -> Iterator[dict[str, str]]:
    """The rows whose short description was translated, with that as their query."""
    there = {name: short for (name, _), (short, _, _) in _texts(lists, language).items()}
    for row in _rows(lists):
        short = there.get(row["name"], "").strip()
        if short != row["query"] and len(short.split()) > 1:
            yield row | {"query": short}


def _rows(lists: Path) -> Iterator[dict[str, str]]:
    texts = _texts(lists, "en")
    packages: dict[str, dict[str, str]] = {}
    for entry in _stanzas(_only(lists, "_main_binary-")):
        if (entry["Package"], entry.get("Description-md5")) in texts:
            packages.setdefault(entry["Package"], entry)
    seen: set[tuple[str, str]] = set()
    for name in sorted(packages):
        entry = packages[name]
        short, _, long = texts[name, entry["Description-md5"]]
        query, doc = short.strip(), _clean(long)
        if entry.get("Section") in _LEFT_OUT or len(doc.split()) < 15 or len(query.split()) < 2:
            continue
        source = entry.get("Source", name).split(" ")[0]
        keys = {("source", source), ("doc", doc), ("query", query.lower())}
        if seen & keys:  # one a source package, and no text twice
            continue
        seen |= keys
        yield {"name": name, "query": query, "doc": doc, "split": _split(name)}


def _split(name: str) -> str:
    share = int(hashlib.sha256(f"s1{name}".encode()).hexdigest()[:8], 16) / 2**32
    return "test" if share < 0.15 else "dev" if share < 0.18 else "train"


def _clean(long: str) -> str:
    paragraphs = re.split(r"\n\.\n|\n \.\n", long)
    text = " ".join(" ".join(line.strip() for line in p.split("\n")) for p in paragraphs)
    return re.sub(r"\s+", " ", text.replace(" . ", " ")).strip()


def _only(lists: Path, part: str) -> str:
    found = list(lists.glob(f"*{part}*"))
    found.sort(key=lambda path: (f"_{_RELEASE}_" not in path.name, -path.stat().st_size))
    if not found:
        raise Unavailable(f"apt has fetched no list that is called *{part}")
    command = [_HELPER, "cat-file", str(found[0])]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.decode()


def _stanzas(text: str) -> Iterator[dict[str, str]]:
    for stanza in text.split("\n\n"):
        entry: dict[str, str] = {}
        key = ""
        for line in stanza.split("\n"):
            if line.startswith(" "):
                entry[key] += "\n" + line[1:]
            elif line:
                key, _, value = line.partition(":")
                entry[key] = value.strip()
        if entry:
            yield entry


if __name__ == "__main__":
    print(build(Path(".luthier/benchmarks")))
