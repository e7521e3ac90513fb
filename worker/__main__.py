"""``python -m worker`` is the ``streaminfer`` command."""

import atexit
import sys
import threading
from contextlib import suppress

from worker.cli.main import main as run


def main() -> int:
    """The command as a process of its own; returns its exit code, where it returns.

    A daemon thread may still be inside a call of a client that never returns, so nobody waits for it. If the
    interpreter shut down around it, C++ would end the process with a signal: the process ends before that.
    """
    code = run()
    others = [thread for thread in threading.enumerate() if thread is not threading.current_thread()]
    for thread in others:
        if not thread.daemon:
            thread.join()
    if any(thread.is_alive() for thread in others):
        atexit._run_exitfuncs()  # of everybody: a load generator's process is ended there, too
        with suppress(OSError, ValueError, AttributeError):  # closed from the start: None
            sys.stdout.flush()
        from worker.process.leaving import leave  # only here: it takes longer to import than --help takes

        leave(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
