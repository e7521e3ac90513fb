"""One operating-system process: signals, watchdogs, the supervisor of several."""
