"""streaminfer: a Kafka-native ONNX inference worker.

Records come in on a topic, a model answers, predictions go out on another. The map of the package::

    Kafka --poll--> conductor --Slab--> batches --> pool: engine ----> mailbox --> conductor --produce--> Kafka
                    admit, bound,                   decode, infer,     outcomes   release in order,
                    pause                           finish                        acknowledge, commit

``conductor.py`` is the main loop; one thread owns every Kafka handle. ``engine.py`` has never heard of Kafka.
Own code plugs in by ``module:attribute`` and refuses one record with :class:`Reject`.
"""

from worker.errors import Reject

__all__ = ["Reject", "__version__"]
__version__ = "0.1.0"
