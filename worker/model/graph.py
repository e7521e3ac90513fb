"""What the nodes of a model file say about batches, read without the ``onnx`` package."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from worker.model.protobuf import Content, content_of, entries, fields

_OVER_THE_WHOLE_TENSOR = {
    "DynamicQuantizeLinear",
    "DynamicQuantizeMatMul",
    "DynamicQuantizeLSTM",
}
"""Operators that take the range of numbers of a whole tensor, so of all items in a batch."""
_MODEL_GRAPH, _MODEL_FUNCTION = 7, 25
_GRAPH_NODE, _FUNCTION_NODE = 1, 7
_NODE_OUTPUT, _NODE_OPERATOR, _NODE_ATTRIBUTE = 2, 4, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_INTEGER, _ATTRIBUTE_GRAPH = 1, 3, 6


def batch_mixing_operator(path: Path) -> str | None:
    """A clause on the first operator whose result for an item depends on the other items; None if none is known to.

    Other such operators, for instance a maximum over the first dimension, can as well be harmless: only running shows it.

    Raises:
        OSError: the file cannot be read.
    """
    with content_of(path) as content:
        try:
            return next(_clauses(content), None)
        except (ValueError, IndexError):
            return None  # no protobuf: loading it says so


def _clauses(content: Content) -> Iterator[str]:
    for number, start, stop in fields(content, 0, len(content)):
        if number == _MODEL_GRAPH:
            yield from _of_nodes(content, start, stop, _GRAPH_NODE)
        elif number == _MODEL_FUNCTION:
            yield from _of_nodes(content, start, stop, _FUNCTION_NODE)


def _of_nodes(content: Content, start: int, stop: int, node: int) -> Iterator[str]:
    for number, begin, end in fields(content, start, stop):
        if number == node:
            yield from _of_node(content, begin, end)


def _of_node(content: Content, start: int, stop: int) -> Iterator[str]:
    operator, outputs, training = "", 0, False
    for number, begin, end in fields(content, start, stop):
        if number == _NODE_OPERATOR:
            operator = bytes(content[begin:end]).decode(errors="replace")
        elif number == _NODE_OUTPUT:
            outputs += end > begin
        elif number == _NODE_ATTRIBUTE:
            attribute = dict(entries(content, begin, end))
            name = attribute.get(_ATTRIBUTE_NAME)
            if isinstance(name, range) and bytes(content[name.start : name.stop]) == b"training_mode":
                training = attribute.get(_ATTRIBUTE_INTEGER) == 1
            graph = attribute.get(_ATTRIBUTE_GRAPH)
            if isinstance(graph, range):
                yield from _of_nodes(content, graph.start, graph.stop, _GRAPH_NODE)
    if operator in _OVER_THE_WHOLE_TENSOR:
        yield f"its operator {operator} takes the range of its numbers from the whole batch"
    if operator == "BatchNormalization" and (training or outputs > 1):
        yield "its BatchNormalization is in training mode and takes mean and variance from the whole batch"
