"""Weights of large matrix products in INT4, in blocks of 32 with a scale each (MatMulNBits of ONNX Runtime)."""

from __future__ import annotations

import copy
from collections.abc import Iterator

from onnx import helper

from worker.optimize.graphs import Graph, layers
from worker.optimize.methods import DoesNotApply, Made, Work

BLOCK = 32
LARGE = 1 << 16
"""Weights of a matrix product from which on it is large: below, the time goes elsewhere."""
LEVEL = 4
"""Accuracy level of the operator: activations in INT8. Without it the operator is about twice as slow on a CPU."""


def make(work: Work) -> Iterator[Made]:
    """One model."""
    yield with_bits(work, 4, "int4")


def with_bits(work: Work, bits: int, name: str) -> Made:
    """A model whose large matrix products have weights of so many bits; activations stay in float between them.

    Raises:
        DoesNotApply: there is no large one.
    """
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    model = copy.deepcopy(work.base)
    graph = Graph(model)
    _gemm_as_matmul(graph)
    weights = graph.weights
    products = [node for node in layers(model, {"MatMul"}) if weights[node.input[1]].ndim == 2]
    large = {node.name for node in products if weights[node.input[1]].size >= LARGE}
    if not large:
        raise DoesNotApply(f"the model has no matrix product with {LARGE:,} weights or more")
    others = [node.name for node in model.graph.node if node.op_type == "MatMul" and node.name not in large]
    quantizer = MatMulNBitsQuantizer(
        model, bits=bits, block_size=BLOCK, is_symmetric=False, accuracy_level=LEVEL, nodes_to_exclude=others
    )
    quantizer.process()
    return Made(name, quantizer.model.model, f"{len(large)} of {len(products)} matrix products")


def _gemm_as_matmul(graph: Graph) -> None:
    """Write each Gemm with weights as MatMul and Add, because only MatMul has an INT4 form."""
    nodes = []
    for node in graph.model.graph.node:
        form = graph.gemm(node)
        if form is None:
            nodes.append(node)
            continue
        weights, bias = form
        name = graph.add_weight(f"{node.name}_weights", weights)
        product = node.output[0] if bias is None else f"{node.output[0]}_product"
        nodes.append(helper.make_node("MatMul", [node.input[0], name], [product], name=node.name))
        if bias is not None:
            added = graph.add_weight(f"{node.name}_bias", bias)
            nodes.append(helper.make_node("Add", [product, added], [node.output[0]], name=f"{node.name}_add"))
    del graph.model.graph.node[:]
    graph.model.graph.node.extend(nodes)
    graph.drop_unused()
