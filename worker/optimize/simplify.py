"""The same computation with fewer nodes: constants folded, nodes without effect removed (onnxslim)."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import onnx

from worker.optimize.methods import Made, Work


def make(work: Work) -> Iterator[Made]:
    """One model."""
    import onnxslim

    before = len(work.original.graph.node)
    made = onnxslim.slim(copy.deepcopy(work.original))
    assert isinstance(made, onnx.ModelProto)
    yield Made("simplify", made, f"{before} nodes became {len(made.graph.node)}")
