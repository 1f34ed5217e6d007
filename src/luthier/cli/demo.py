"""``luthier demo``: the main job on real input, from a model to the proof that it is better."""

from __future__ import annotations

import typer

from luthier.cli.output import Home, Json, print_json

app = typer.Typer(rich_markup_mode=None)


@app.command("demo")
def demo(home: Home = None, as_json: Json = False) -> None:
    """Tune a real text encoder on a reverse dictionary: describe a word, find it.

    About two minutes on two cores. A second call shows the result at once. With --json the
    story goes to standard error, and what came of it to standard output.
    """
    from rich.console import Console

    from luthier import api
    from luthier.demo import story

    run = story.run(api.connect(home), Console(stderr=as_json))
    if as_json:
        print_json({"run": run.name, "artifact": run.artifact_id, "metrics": run.metrics()})
