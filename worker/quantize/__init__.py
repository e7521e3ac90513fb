"""Make a model smaller and faster, and measure what that costs in accuracy.

Used offline only: the worker never imports this package, so it does not need the ``onnx`` package.
"""
