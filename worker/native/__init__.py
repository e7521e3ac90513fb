"""The compiled batch path: whole batches of JSON records to arrays and of results to JSON, in one C++ call each.

It is optional. Where it is not built, or ``STREAMINFER_NATIVE=0`` is in the environment, the same work is done in
Python with the same outcome to the byte; callers ask for :data:`records` at each use. It only takes what is plainly in
order: records it leaves over go through the Python decoders, which know every rule and every error message.
"""

from __future__ import annotations

import os
from types import ModuleType

SWITCH = "STREAMINFER_NATIVE"
INTERFACE = 1
"""What the compiled module must say of itself; one built from other sources is as good as none."""


def _load() -> tuple[ModuleType | None, str]:
    """The compiled module, and in a few words which path is in use and why."""
    if os.environ.get(SWITCH) == "0":
        return None, f"python ({SWITCH}=0)"
    try:
        from worker.native import _records
    except ImportError:
        return None, "python (the compiled one is not built)"
    if _records.INTERFACE != INTERFACE:
        return None, "python (the compiled one is of another version: install again)"
    return _records, "compiled"


records, batch_path = _load()
