"""Train by the method of a plugin on a log, and say what came of it.

    LUTHIER_PLUGINS=examples/clicks/plugins CATALOGUE=items.jsonl \
        python examples/clicks/by_method.py log.jsonl
"""

import sys

from luthier.clicks import find_method
from luthier.clicks.reading import read_sessions
from luthier.clicks.tuning import run

if __name__ == "__main__":
    method = find_method("TextMethod")
    method.upload_initial_model()
    builder = method.get_fine_tuning_builder(read_sessions(sys.argv[1], say=print))
    done = run(builder, say=print)
    print(f"{done.verdict}: {done.metrics['reason']}")
    print(f"model {done.artifact_id}, report {done.folder / 'report.html'}")
