"""What the nodes of a model file say about batches and classes, read without the ``onnx`` package."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from worker.model.protobuf import Content, content_of, entries, fields, packed

_OVER_THE_WHOLE_TENSOR = {
    "DynamicQuantizeLinear",
    "DynamicQuantizeMatMul",
    "DynamicQuantizeLSTM",
}
"""Operators that take the range of numbers of a whole tensor, so of all items in a batch."""
_MODEL_GRAPH, _MODEL_FUNCTION = 7, 25
_GRAPH_NODE, _FUNCTION_NODE = 1, 7
_NODE_OUTPUT, _NODE_OPERATOR, _NODE_ATTRIBUTE = 2, 4, 5
_ATTRIBUTE_NAME, _ATTRIBUTE_INTEGER, _ATTRIBUTE_GRAPH, _ATTRIBUTE_INTEGERS, _ATTRIBUTE_TEXTS = 1, 3, 6, 8, 9
_CLASS_NAMES = {"classlabels_strings", "classlabels_int64s", "classlabels_ints"}


@dataclass(slots=True)
class Graph:
    """What is found in a model file."""

    mixes: str = ""
    """A clause on the first operator whose result for an item depends on the other items; empty if none is known to.

    Other such operators, for instance a maximum over the first dimension, can as well be harmless: only running shows it.
    """
    class_names: tuple[str, ...] = ()
    """What a classifier of the ai.onnx.ml operators calls its classes, in the order of its scores; empty if there is
    none, or several that differ."""
    maps: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Output of a ZipMap operator -> its keys as text, in the order in which the runtime gives them."""


def read_graph(path: Path) -> Graph:
    """Walk over the nodes of a model file. What is no model file shows nothing: loading it says what is wrong.

    Raises:
        OSError: the file cannot be read.
    """
    walk = _Walk()
    with content_of(path) as content, suppress(ValueError, IndexError):
        walk.model(content)
    names = set(walk.class_names)
    return Graph(walk.mixes, names.pop() if len(names) == 1 else (), walk.maps)


class _Walk:
    def __init__(self) -> None:
        self.mixes = ""
        self.class_names: list[tuple[str, ...]] = []
        self.maps: dict[str, tuple[str, ...]] = {}

    def model(self, content: Content) -> None:
        for number, start, stop in fields(content, 0, len(content)):
            if number == _MODEL_GRAPH:
                self._nodes(content, start, stop, _GRAPH_NODE)
            elif number == _MODEL_FUNCTION:
                self._nodes(content, start, stop, _FUNCTION_NODE)

    def _nodes(self, content: Content, start: int, stop: int, node: int) -> None:
        for number, begin, end in fields(content, start, stop):
            if number == node:
                self._node(content, begin, end)

    def _node(self, content: Content, start: int, stop: int) -> None:
        operator, outputs, training = "", 0, False
        output, before = "", len(self.class_names)
        for number, begin, end in fields(content, start, stop):
            if number == _NODE_OPERATOR:
                operator = _text(content, begin, end)
            elif number == _NODE_OUTPUT:
                outputs += end > begin
                output = output or _text(content, begin, end)
            elif number == _NODE_ATTRIBUTE:
                training |= self._is_training(content, begin, end)
        if operator == "ZipMap" and len(self.class_names) > before:
            self.maps[output] = _in_map_order(self.class_names.pop())
        if operator in _OVER_THE_WHOLE_TENSOR:
            self._mixing(f"its operator {operator} takes the range of its numbers from the whole batch")
        if operator == "BatchNormalization" and (training or outputs > 1):
            self._mixing(
                "its BatchNormalization is in training mode and takes mean and variance from the whole batch"
            )

    def _mixing(self, clause: str) -> None:
        self.mixes = self.mixes or clause

    def _is_training(self, content: Content, start: int, stop: int) -> bool:
        """Look at an attribute, and into the graph that it may hold; whether it is a training mode that is on."""
        name, integer, texts, integers = "", 0, [], []
        for number, value in entries(content, start, stop):
            if isinstance(value, int):
                if number == _ATTRIBUTE_INTEGER:
                    integer = value
                elif number == _ATTRIBUTE_INTEGERS:
                    integers.append(value)
            elif number == _ATTRIBUTE_NAME:
                name = _text(content, value.start, value.stop)
            elif number == _ATTRIBUTE_GRAPH:
                self._nodes(content, value.start, value.stop, _GRAPH_NODE)
            elif name in _CLASS_NAMES and number == _ATTRIBUTE_TEXTS:
                texts.append(_text(content, value.start, value.stop))
            elif name in _CLASS_NAMES and number == _ATTRIBUTE_INTEGERS:
                integers += packed(content, value.start, value.stop)
        if name in _CLASS_NAMES and (texts or integers):
            self.class_names.append(tuple(texts or map(str, map(_signed, integers))))
        return name == "training_mode" and integer == 1


def _in_map_order(keys: tuple[str, ...]) -> tuple[str, ...]:
    """Keys in the order of a C++ map: numbers by value, texts by their bytes."""
    try:
        return tuple(sorted(keys, key=int))
    except ValueError:
        return tuple(sorted(keys, key=str.encode))


def _text(content: Content, start: int, stop: int) -> str:
    return bytes(content[start:stop]).decode(errors="replace")


def _signed(value: int) -> int:
    """A negative number is written as its two's complement in 64 bits."""
    return value - (1 << 64) if value >> 63 else value
