"""``python -m worker`` is the ``streaminfer`` command."""

import atexit
import os
import sys
import threading
from contextlib import suppress

from worker.cli.main import main as run


def main() -> int:
    """The command as a process of its own; returns its exit code, where it returns.

    A thread that is still inside a client's call, which may never come back, is not waited for. The interpreter would
    tear it out of there as it ends, and C++ ends the process with a signal then: so the process ends first.
    """
    code = run()
    others = [thread for thread in threading.enumerate() if thread is not threading.current_thread()]
    for thread in others:
        if not thread.daemon:
            thread.join()
    if any(thread.is_alive() for thread in others):
        atexit._run_exitfuncs()  # of everybody: a load generator's process is ended there, too
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
