"""Weights of large matrix products in INT8, in blocks as :mod:`worker.optimize.int4` has them.

Unlike dynamic INT8 it takes no range over a whole run, so that the worker still answers records together.
"""

from __future__ import annotations

from collections.abc import Iterator

from worker.optimize.int4 import with_bits
from worker.optimize.methods import Made, Work


def make(work: Work) -> Iterator[Made]:
    """One model."""
    yield with_bits(work, 8, "int8-weights")
