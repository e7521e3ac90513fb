"""The compiled batch path: records to arrays, results to JSON and outputs to Kafka by the batch, in one C++ call each.

It is optional. Where it is not built, or ``STREAMINFER_NATIVE=0`` is in the environment, the same work is done in
Python with the same outcome to the byte; callers ask for :data:`records` at each use. It only takes what is plainly in
order: records it leaves over go through the Python decoders, which know every rule and every error message.
"""

from __future__ import annotations

import os
from importlib import import_module
from types import ModuleType

SWITCH = "STREAMINFER_NATIVE"
INTERFACE = 5
"""What a compiled module must say of itself; one built from other sources is as good as none."""


def _load(name: str) -> tuple[ModuleType | None, str]:
    """A compiled module, and in a few words which path is in use and why."""
    if os.environ.get(SWITCH) == "0":
        return None, f"python ({SWITCH}=0)"
    try:
        module = import_module(f"worker.native.{name}")
    except ImportError:
        return None, "python (the compiled one is not built)"
    if module.INTERFACE != INTERFACE:
        return None, "python (the compiled one is of another version: install again)"
    return module, "compiled"


records, batch_path = _load("_records")
"""Records to arrays and results to JSON: see ``_records.pyi``. None where it is not in use, which the text says."""
producer, producer_path = _load("_producer")
"""The producer of :mod:`worker.kafka.batch_sink`: see ``_producer.pyi``."""
