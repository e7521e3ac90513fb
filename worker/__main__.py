"""``python -m worker`` is the ``streaminfer`` command."""

import sys

from worker.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
