"""Updaters beside one another, on digits and mnist: half an hour on two idle cores.

    python benchmarks/continual.py [UPDATER]… [--scenario NAME]… [--seeds 5]

The same as ``luthier bench continual --data all``, which says what is measured and how.
"""

import sys

from luthier.cli.main import main

if __name__ == "__main__":
    main(["bench", "continual", "--data", "all", *sys.argv[1:]])
