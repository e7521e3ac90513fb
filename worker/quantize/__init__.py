"""Make a model smaller and faster, and measure what that costs in accuracy.

Offline: the worker never imports this package, and so never the ``onnx`` package either.
"""
