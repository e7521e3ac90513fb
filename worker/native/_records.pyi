"""Compiled from the C++ sources beside this file. Every function may be called from any thread."""

from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import NDArray

INTERFACE: int
"""Counts up when a function here takes or gives something else."""

class Reader:
    """Reads JSON objects of numbers into arrays.

    Args:
        fields: per JSON field (name in UTF-8, index of its target, place of its first element in the item,
            number of elements, whether a flat list of them will do, whether one bare number will do).
        targets: per model input (dtype code of the struct module, item size in bytes, elements per item).
        ways: per field the steps that lead to it (UTF-8 of a key, or a place in a list); empty where it is a key of the
            record itself. Fields must not lie inside one another.
    """

    def __new__(
        cls,
        fields: list[tuple[bytes, int, int, int, bool, bool]],
        targets: list[tuple[str, int, int]],
        ways: list[tuple[bytes | int, ...]] = ...,
    ) -> Reader: ...
    def read(self, values: list[Any], start: int, stop: int, arrays: list[NDArray[Any]]) -> list[int]:
        """Decode rows start..stop into the same rows of the arrays, one (rows, *item) array per target, C order.

        Lets go of the interpreter meanwhile.

        Returns:
            The rows left over, whose items are now zero: values that are not bytes, not plainly one object with
            every field once, or with a number that its target does not hold exactly as Python would say.
        """

def extent(column: list[bytes | None]) -> tuple[int, int]:
    """Total and largest length of a column; None has none."""

def contexts(headers: list[list[tuple[str, bytes | None]] | None]) -> bytes:
    """One byte for each row: what its last header ``traceparent`` says, by the rules of W3C Trace Context.

    Returns:
        0: there is none, or it is not valid; 1: the trace is not sampled; 2: it is.
    """

def pieces(values: NDArray[Any], before: bytes) -> list[bytes]:
    """``before`` and the bytes of ``values[i]`` for every i of a C-order array of rank 1 or more."""

def gather(values: list[Any], start: int, stop: int, array: NDArray[Any]) -> bool:
    """Copy rows start..stop as they are into the same rows of a C-order array; False at the first that does not fit."""

def items(values: NDArray[Any], before: bytes, after: bytes) -> list[bytes]:
    """``before``, the JSON text of ``values[i]`` and ``after``, for every i of a C-order array of rank 1 or more.

    Floats (float32 or float64) are the shortest decimals that read back, ``null`` where they are not finite.
    """

def top(scores: NDArray[Any], labels: list[bytes], most: int, threshold: float) -> list[bytes | None]:
    """``{"label", "score", "top"}`` of each row of (rows, classes) float32 or float64 scores in C order.

    Args:
        labels: JSON text of each class.
        most: classes wanted, 1..classes.
        threshold: a class below it does not count; compared in the scores' dtype.

    Returns:
        None where a score of the row is not finite.
    """

def bodies(
    head: Callable[[Any], tuple[bytes, bytes]],
    partitions: list[Any],
    offsets: list[int],
    timestamps_ms: list[int],
    ids: list[bytes | None] | None,
    model: bytes,
    predictions: Sequence[Any],
    stages: list[tuple[bytes, int | NDArray[Any]]],
) -> list[bytes | None]:
    """JSON results, one per row.

    Args:
        head: partition -> text up to the offset in the default id, and text behind the id up to the offset. Asked
            where a row's partition is not the same object as that of the row before.
        ids: JSON text of ids that stand for the default one; None where a row has none, or where no row has any.
        model: what stands between timestamp and prediction.
        predictions: a list of fragments; what is not bytes gives None instead of a body.
        stages: (text before it, whole microseconds of all rows or as int64 per row): written in milliseconds.
    """
