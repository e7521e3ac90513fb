"""``python -m streaminfer`` is the ``streaminfer`` command."""

import sys

from streaminfer import main

if __name__ == "__main__":
    sys.exit(main())
