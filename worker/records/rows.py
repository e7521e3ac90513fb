"""Steps common to all decoders: write a row's tensors into the batch, or record why the row is refused."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

import numpy as np

from worker.batch import Array, Feed, Item
from worker.errors import ConfigError, Postponed, Reject, Rejection, Retry
from worker.model.signature import Signature, TensorSpec


def decode_each(step: object, feed: Feed, rows: Iterable[int], decode_row: Callable[[int], None]) -> None:
    """Decode rows one by one; a row that cannot be decoded becomes one rejection and affects no other row.

    Any exception that is not a :class:`Reject` or :class:`Retry` refuses the record too: bytes that no check foresaw
    cause it, not the worker.
    """
    for row in rows:
        try:
            decode_row(row)
        except Reject as error:
            feed.rejected[row] = Rejection.of(error, "decode", step)
        except Retry as error:
            feed.postponed[row] = Postponed.of(error, "decode", step)
        except Exception as error:
            feed.rejected[row] = Rejection.of(error, "decode", step, "undecodable")


def check_one_input(name: str, signature: Signature) -> None:
    """Refuse an input format that feeds one model input for a model with another number of them.

    Raises:
        ConfigError: naming the model's inputs.
    """
    inputs = signature.inputs
    if len(inputs) != 1:
        found = f"{len(inputs)} ({', '.join(spec.name for spec in inputs)})" if inputs else "none"
        others = "oip, or json" if inputs else "oip"
        raise ConfigError(
            f"input.format: {name} feeds one model input, the model has {found}; expected {others}"
        )


def full_rank(spec: TensorSpec, item: Array) -> Array:
    """An item with the model's batch dimension in front, if the input has one."""
    return item[np.newaxis] if spec.has_rows else item


def put_windows(
    feed: Feed,
    row: int,
    specs: Iterable[TensorSpec],
    windowed: Collection[str],
    items: dict[str, Array],
    marks: Mapping[str, Array],
) -> None:
    """A record's windows into the batch, one item each.

    Args:
        feed: the batch's input side, one ``Item`` per row.
        specs: the model's inputs, in its order.
        windowed: names of the inputs whose array holds a window per row; what the others hold goes to every window.
        items: one array per input.
        marks: name -> one number per window.

    Raises:
        Reject: ``invalid``: two inputs have another number of windows.
    """
    counts = {name: len(items[name]) for name in windowed}
    count = next(iter(counts.values()))
    if set(counts.values()) != {count}:
        found = ", ".join(f"{name} has {number}" for name, number in counts.items())
        raise Reject(f"the model's inputs have another number of windows each: {found}")
    arrays = {
        spec.name: items[spec.name]
        if spec.name in windowed or not spec.has_rows
        else np.repeat(items[spec.name][np.newaxis], count, axis=0)
        for spec in specs
    }
    feed.items[row] = Item(arrays, count, single=False, marks=marks)


def put(feed: Feed, row: int, specs: Iterable[TensorSpec], items: dict[str, Array]) -> None:
    """One item's tensors, by input name, into the batch.

    Args:
        feed: the batch's input side, either buffers of known shape or one ``Item`` per row.
        row: the row of the batch.
        specs: the model's inputs, in its order.
        items: one array per input: an item in the model's dtype.
    """
    if feed.arrays is None:
        feed.items[row] = Item({spec.name: full_rank(spec, items[spec.name]) for spec in specs})
    else:
        for name, item in items.items():
            feed.arrays[name][row] = item
