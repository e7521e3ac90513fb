"""Decoding of rows that are opened first: unwrapped, or taken out of the envelope of an event."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from worker.batch import Batch
from worker.errors import Postponed, Reject, Rejection, Retry, class_path
from worker.serving.servable import Servable

if TYPE_CHECKING:
    from worker.payload.opening import Opening

LARGE_BYTES = 64 << 10
"""Payloads from this length on are decoded as soon as they are opened, and let go."""
FREE_BYTES = 8 << 20
"""What a thread may take for the record at hand without it being charged."""
_MEANT = frozenset({"", class_path(Reject("")), class_path(Retry(""))})
"""Classes of exceptions whose message was written for whoever reads a dead letter; none: the worker itself refused."""
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
    """Open rows ``start..stop`` as far as they need it, and decode them.

    A row that cannot be opened has its rejection in ``batch.feed.rejected`` afterwards; the others are not touched by it.
    Large payloads are decoded one by one, each while it is in the processor's cache, and let go where nobody asks for
    fields of the record later; the others are decoded together.
    """
    assert batch.feed is not None
    columns = replace(batch.columns, headers=batch.headers)
    done: set[int] = set()
    for row in range(start, stop):
        if row not in batch.to_open:
            continue
        own = batch.payloads[row] is batch.columns.values[row]
        beyond = _opened(batch, servable, row)
        if beyond is None:
            done.add(row)
        elif beyond > FREE_BYTES or len(batch.payloads[row] or b"") >= LARGE_BYTES:
            with _one_at_a_time if beyond > FREE_BYTES else nullcontext():
                servable.decoder.decode(batch.payloads, columns, batch.feed, row, row + 1)
            done.add(row)
            if own and not getattr(servable.decoder, "has_fields", False):
                _let_go(batch, row)
    for first, end in _stretches(start, stop, done):
        servable.decoder.decode(batch.payloads, columns, batch.feed, first, end)


def _opened(batch: Batch, servable: Servable, row: int) -> int | None:
    """Open one row as :func:`_open`; None where it cannot be opened now, which the batch's feed then says."""
    assert batch.feed is not None
    try:
        return _open(batch, servable, row)
    except Retry as error:
        batch.feed.postponed[row] = Postponed.of(error, "decode", batch.route.opening)
    except Reject as error:
        batch.feed.rejected[row] = Rejection.of(error, "decode", batch.route.opening)
    except Exception as error:
        # its text may be one of the library's that quotes what was inside
        refusal = Reject(f"the record cannot be opened: {type(error).__name__}", "undecodable")
        batch.feed.rejected[row] = Rejection.of(refusal, "decode", batch.route.opening)
    return None


def _let_go(batch: Batch, row: int) -> None:
    """Forget an opened payload that is decoded. A further try opens the record again."""
    batch.payloads[row] = batch.columns.values[row]
    batch.to_open.add(row)


def withhold(batch: Batch) -> None:
    """Take messages that may quote what was encrypted out of the batch's rejections.

    A library or custom code may put a value into the text of its exception. What refuses a record on purpose
    (:class:`worker.Reject`) says what was expected.
    """
    assert batch.outcomes is not None
    for row, why in batch.outcomes.rejected.items():
        if why.exception_class_name not in _MEANT:
            told = f"{why.exception_class_name}; its message is not told, because the record is encrypted"
            batch.outcomes.rejected[row] = replace(why, message=told)


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
        batch.headers[row] = opening.with_attributes(original or b"", headers)
        payload = opening.unwrap(value, headers, topic)
    batch.payloads[row] = payload
    batch.to_open.discard(row)
    if len(payload) <= servable.free_bytes:
        return 0
    return servable.cost(payload) - (0 if opening.hides else servable.cost_of_length(len(payload)))


def _stretches(start: int, stop: int, without: set[int]) -> Iterator[tuple[int, int]]:
    """The runs of rows between those that are left out."""
    for row in sorted(without):
        if start < row:
            yield start, row
        start = row + 1
    if start < stop:
        yield start, stop
