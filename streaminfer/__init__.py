"""streaminfer: a Kafka-native ONNX inference worker, from Python.

.. code-block:: python

    from streaminfer import Pipeline

    with Pipeline.load("digits.yaml") as pipeline:  # no Kafka
        print(pipeline(open("seven.png", "rb").read()).prediction)

The command ``streaminfer`` (also ``python -m streaminfer``) begins here, too. The package of the worker is called
``worker``, a name that a user's own file may have, too. This package has another one, so that it can say in one
sentence what is wrong. Names are imported when they are first used: the command needs none of them.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worker import Reject, Retry, __version__, batched
    from worker.errors import ConfigError, SickModel, StartError, WorkerError
    from worker.local.answers import Answer, Prediction, Record, Rejected
    from worker.local.pipeline import Pipeline
    from worker.local.protocols import BatchedPostprocess, Decoder, ItemPostprocess, ModelCode, Postprocess

__all__ = [
    "Answer",
    "BatchedPostprocess",
    "ConfigError",
    "Decoder",
    "ItemPostprocess",
    "ModelCode",
    "Pipeline",
    "Postprocess",
    "Prediction",
    "Record",
    "Reject",
    "Rejected",
    "Retry",
    "SickModel",
    "StartError",
    "WorkerError",
    "__version__",
    "batched",
]

_PLACES = {
    "worker": ("Reject", "Retry", "__version__", "batched"),
    "worker.errors": ("ConfigError", "SickModel", "StartError", "WorkerError"),
    "worker.local.answers": ("Answer", "Prediction", "Record", "Rejected"),
    "worker.local.pipeline": ("Pipeline",),
    "worker.local.protocols": (
        "BatchedPostprocess",
        "Decoder",
        "ItemPostprocess",
        "ModelCode",
        "Postprocess",
    ),
}


def __getattr__(name: str) -> Any:
    for place, names in _PLACES.items():
        if name in names:
            if (hidden := _hidden_by()) is not None:
                raise ImportError(hidden)
            found = getattr(importlib.import_module(place), name)
            globals()[name] = found
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "main"]


def main() -> int:
    """Run the command; returns its exit code."""
    if os.getpid() == 1:
        # The kernel keeps from process 1 of a container each signal that it has no handler for. Until `run` has one of
        # its own, a SIGTERM ends it, as it ends any other process.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    if (hidden := _hidden_by()) is not None:
        print(f"streaminfer: {hidden}", file=sys.stderr)
        return 2
    from worker.__main__ import main as run

    return run()


def _hidden_by() -> str | None:
    """What is wrong if another module named worker comes before ours; None if ours comes first."""
    package = Path(__file__).resolve().parent.parent / "worker"
    found = importlib.util.find_spec("worker")
    where = Path(found.origin).resolve() if found is not None and found.origin else None
    if where == package / "__init__.py":
        return None
    return (
        f"another Python module named worker comes first: {where}; expected {package}. "
        "Rename that file or folder, or take its place out of PYTHONPATH"
    )
