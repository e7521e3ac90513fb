"""The ``streaminfer`` command, also as ``python -m streaminfer``.

The package of the worker is called ``worker``, a name that a user's own file may have, too. This module has another
one, so that it can say in one sentence what is wrong.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from pathlib import Path


def main() -> int:
    """Run the command; returns its exit code."""
    if os.getpid() == 1:
        # The kernel keeps from process 1 of a container each signal that it has no handler for. Until `run` has one of
        # its own, a SIGTERM ends it, as it ends any other process.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    package = Path(__file__).resolve().parent / "worker"
    found = importlib.util.find_spec("worker")
    where = Path(found.origin).resolve() if found is not None and found.origin else None
    if where != package / "__init__.py":
        print(
            f"streaminfer: another Python module named worker comes first: {where}; expected {package}. "
            "Rename that file or folder, or take its place out of PYTHONPATH",
            file=sys.stderr,
        )
        return 2
    from worker.__main__ import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
