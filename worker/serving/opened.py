"""Decoding of rows that are opened first: unwrapped, or taken out of the envelope of an event."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from worker.batch import Batch
from worker.errors import Postponed, Reject, Rejection, Retry
from worker.serving.servable import Servable

if TYPE_CHECKING:
    from worker.payload.opening import Opening

FREE_BYTES = 8 << 20
"""What a thread may take for the record at hand without it being charged."""
_one_at_a_time = threading.Lock()
"""Held while a record is decoded that takes more than was charged for it: before it was unwrapped nobody could tell.
There is at most one such record at a time, and it alone fits the budget."""


def prepare(batch: Batch) -> None:
    """Give the batch columns of its own for what opening changes. Called before any row is decoded."""
    if batch.payloads is batch.columns.values:
        batch.payloads = [*batch.columns.values]
    if batch.headers is batch.columns.headers:
        batch.headers = [*batch.columns.headers]


def decode(batch: Batch, servable: Servable, start: int, stop: int) -> None:
    """Open rows ``start..stop`` as far as they need it, then decode them.

    A row that cannot be opened has its rejection in ``batch.feed.rejected`` afterwards; the others are not touched by it.
    """
    feed = batch.feed
    assert feed is not None
    left_out: set[int] = set()
    alone: set[int] = set()
    for row in range(start, stop):
        if row not in batch.to_open:
            continue
        try:
            if _open(batch, servable, row) > FREE_BYTES:
                alone.add(row)
        except Retry as error:
            feed.postponed[row] = Postponed.of(error, "decode", batch.route.opening)
            left_out.add(row)
        except Reject as error:
            feed.rejected[row] = Rejection.of(error, "decode", batch.route.opening)
            left_out.add(row)
        except Exception as error:
            # its text may be one of the library's that quotes what was inside
            refusal = Reject(f"the record cannot be opened: {type(error).__name__}", "undecodable")
            feed.rejected[row] = Rejection.of(refusal, "decode", batch.route.opening)
            left_out.add(row)
    columns = replace(batch.columns, headers=batch.headers)
    for first, end in _stretches(start, stop, left_out | alone):
        servable.decoder.decode(batch.payloads, columns, feed, first, end)
    for row in sorted(alone):
        with _one_at_a_time:
            servable.decoder.decode(batch.payloads, columns, feed, row, row + 1)


def _open(batch: Batch, servable: Servable, row: int) -> int:
    """Open one row; returns the bytes that decoding it takes beyond what was charged.

    What was fetched stands in ``payloads`` already: the event around it, which named it, is another value.
    """
    opening = cast("Opening", batch.route.opening)
    value, original, headers = (
        batch.payloads[row] or b"",
        batch.columns.values[row],
        batch.columns.headers[row],
    )
    topic = batch.columns.partitions[row].topic
    if batch.payloads[row] is original:
        payload, batch.headers[row] = opening.open(value, headers, topic)
    else:
        batch.headers[row] = opening.counted(original or b"", headers)
        payload = opening.unwrap(value, headers, topic)
    batch.payloads[row] = payload
    batch.to_open.discard(row)
    needed = servable.cost(payload) if len(payload) > servable.free_bytes else 0
    return needed - (0 if opening.hides else servable.cost_of_length(len(payload)))


def _stretches(start: int, stop: int, without: set[int]) -> Iterator[tuple[int, int]]:
    """The runs of rows between those that are left out."""
    for row in sorted(without):
        if start < row:
            yield start, row
        start = row + 1
    if start < stop:
        yield start, stop
