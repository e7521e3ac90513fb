"""The methods of ``optimize`` by name. It imports nothing: ``--help`` shows the names without the runtime."""

METHODS = {
    "simplify": "worker.optimize.simplify",
    "fp16": "worker.optimize.half",
    "int8-dynamic": "worker.optimize.dynamic",
    "int8-static": "worker.optimize.static",
    "int8-mixed": "worker.optimize.mixed",
    "int4": "worker.optimize.int4",
    "int8-weights": "worker.optimize.int8_weights",
    "prune": "worker.optimize.prune",
    "prune-int8": "worker.optimize.prune_int8",
}
"""Name -> the module with its ``make``; in this order they are tried."""
