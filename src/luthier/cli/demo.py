"""``luthier demo``: the main job on real input, from a model to the proof that it is better."""

from __future__ import annotations

import typer

from luthier.cli.output import Home

app = typer.Typer(rich_markup_mode=None)


@app.command("demo")
def demo(home: Home = None) -> None:
    """Tune a real text encoder on a reverse dictionary: describe a word, find it.

    About two minutes on two cores. A second call shows the result at once.
    """
    from rich.console import Console

    from luthier import api
    from luthier.demo import story

    story.run(api.connect(home), Console())
