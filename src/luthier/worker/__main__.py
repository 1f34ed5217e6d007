"""``python -m luthier.worker``"""

import sys

from luthier.worker.main import main

sys.exit(main())
