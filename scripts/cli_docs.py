"""Write the help of every verb into docs/cli.md; with --check, only say whether it is there.

python scripts/cli_docs.py [--check]
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from importlib import import_module
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
MARK = "<!-- The rest of this page is written by: python scripts/cli_docs.py -->\n"
WIDTH = "88"


def main() -> int:
    """0 when the page is as it should be, 1 when --check found that it is not."""
    os.environ["COLUMNS"] = os.environ["TERMINAL_WIDTH"] = WIDTH
    text = PAGE.read_text(encoding="utf-8")
    head, mark, _ = text.partition(MARK)
    if not mark:
        sys.exit(f"{PAGE.name} has lost its mark: {MARK}")
    wanted = head + mark + "".join(_section(words) for words in _verbs())
    if "--check" in sys.argv:
        return int(text != wanted)
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


def _verbs() -> list[list[str]]:
    from luthier.cli.main import VERBS

    verbs: list[list[str]] = []
    for verb, (module, _) in VERBS.items():
        app = import_module(f"luthier.cli.{module}").app
        inner = [command.name for command in app.registered_commands]
        if verb in inner:
            verbs.append([verb])
        else:
            verbs += [[verb, str(name)] for name in inner]
        for group in app.registered_groups:
            more = group.typer_instance.registered_commands
            verbs += [[verb, str(group.name), str(command.name)] for command in more]
    return verbs


def _section(words: list[str]) -> str:
    from luthier.cli.main import run

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        run([*words, "--help"])
    lines = [line.rstrip() for line in said.getvalue().strip().splitlines()]
    return f"\n### `luthier {' '.join(words)}`\n\n```text\n" + "\n".join(lines) + "\n```\n"


if __name__ == "__main__":
    sys.exit(main())
