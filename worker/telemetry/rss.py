"""What this process takes of memory now."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path


def rss_bytes() -> int:
    """Resident memory of this process; its peak on systems without ``/proc``, which do not show the present value."""
    try:
        resident_pages = int(Path("/proc/self/statm").read_bytes().split()[1])
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return resident_pages * os.sysconf("SC_PAGE_SIZE")
