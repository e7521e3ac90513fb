"""What every output format asks of a batch: a row's request, its source, its items, the column of output headers."""

from __future__ import annotations

from worker.batch import Batch, Columns, Headers, Request, Run
from worker.errors import Postponed, Rejection


def header_column(batch: Batch) -> list[Headers | None]:
    """The batch's column of output headers. It is made with the first header; every row then has None."""
    assert batch.outcomes is not None
    if batch.outcomes.headers is None:
        batch.outcomes.headers = [None] * len(batch)
    return batch.outcomes.headers


def request_of(batch: Batch, row: int) -> Request | None:
    """The Open Inference Protocol request that a row was decoded from; None where it was none."""
    assert batch.feed is not None
    item = batch.feed.items[row] if batch.feed.items else None
    return item.request if item is not None else None


def source_of(columns: Columns, row: int) -> str:
    """``topic/partition/offset``."""
    topic, number = columns.partitions[row]
    return f"{topic}/{number}/{columns.offsets[row]}"


def put_off(batch: Batch, row: int, why: Rejection | Postponed) -> None:
    """This row has no answer: it is rejected, or tried again."""
    assert batch.outcomes is not None
    assert batch.feed is not None
    if isinstance(why, Postponed):
        batch.feed.postponed[row] = why
    else:
        batch.outcomes.rejected[row] = why


def item_spans(run: Run) -> list[tuple[int, int]]:
    """Which items of the outputs (first dimension) belong to each row of a run."""
    if run.counts is None:
        return [(i, i + 1) for i in range(len(run.rows))]
    ends, end = [], 0
    for count in run.counts:
        ends.append((end, end + count))
        end += count
    return ends
