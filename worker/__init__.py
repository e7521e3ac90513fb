"""streaminfer: a Kafka-native ONNX inference worker.

Records come in on a topic, a model answers, predictions go out on another. The map of the package::

    Kafka --poll--> intake --slab--> batches --> lanes: decode, infer, finish --> mailbox --> window --produce--> Kafka
                    route, bound,                by the servable that             outcomes   release in order,
                    pause, pace                  a batch pins                                acknowledge, commit

``loop/conductor.py`` is the main loop: one thread owns every Kafka handle. ``serving/engine.py`` knows nothing of Kafka.

A configuration names custom code by ``module:attribute``. Custom code refuses a record with :class:`Reject`, or has it
tried again with :class:`Retry`. A postprocess marked :func:`batched` takes many items at once.
"""

import os

# ONNX Runtime from 1.32 on reports its use to its makers. It looks at this variable once, when it is imported, and
# custom code may import it before the model is loaded: so it is set here, before any other module of this package.
# A value that the user has set stays.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from worker.custom import batched
from worker.errors import Reject, Retry

__all__ = ["Reject", "Retry", "__version__", "batched"]
__version__ = "0.1.0"
