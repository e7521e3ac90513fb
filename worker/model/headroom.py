"""How much memory this process may still take: of the machine, and of the control groups around it."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def memory_left(
    meminfo: Path = Path("/proc/meminfo"),
    cgroups: Path = Path("/sys/fs/cgroup"),
    membership: Path = Path("/proc/self/cgroup"),
) -> int | None:
    """Bytes that may still be taken; None where the system does not say.

    The page cache of a control group counts as free: the system gives it up before it ends a process.
    """
    found: list[int] = []
    with suppress(OSError):
        available = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.MULTILINE)
        if available:
            found.append(int(available[1]) << 10)
    with suppress(OSError):
        for line in membership.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            top = cgroups / "memory" if controllers else cgroups
            group = top / path.lstrip("/")
            for folder in (group, *group.parents):
                found += _left_in(folder)
                if folder == top:
                    break
    return max(0, min(found)) if found else None


def resident_bytes(statm: Path = Path("/proc/self/statm")) -> int:
    """Memory that this process has now; 0 where the system does not say."""
    try:
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
    except (OSError, ValueError, IndexError):
        return 0


def give_back() -> None:
    """Return memory that was freed and kept for reuse to the system, where the C library can (glibc)."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _left_in(folder: Path) -> Iterator[int]:
    """What the limit of one control group leaves (versions 2 and 1)."""
    for limit, usage in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):
            most = (folder / limit).read_text().strip()
            if most != "max":
                yield int(most) - int((folder / usage).read_text()) + _cache(folder)


def _cache(folder: Path) -> int:
    with suppress(OSError):
        found = re.search(
            r"^(?:total_)?inactive_file (\d+)", (folder / "memory.stat").read_text(), re.MULTILINE
        )
        return int(found[1]) if found else 0
    return 0
