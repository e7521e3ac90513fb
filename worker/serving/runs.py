"""Which rows of a batch run together, what a run is fed, and how runs become one again for encoding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from worker.batch import Array, Batch, Feed, Item, Run
from worker.serving.ragged import Ragged, by_length, padded, padded_shape
from worker.serving.servable import Model, Servable

MERGE_BYTES = 4 << 20
"""Outputs of several runs are put together for encoding up to this size."""


@dataclass(slots=True)
class Group:
    """Rows that go into one model run, and how to put any part of them together."""

    rows: Sequence[int]
    alone: bool
    items: list[Item] | None = None
    """One per row where shapes are not fixed; None = the rows of the batch's arrays."""
    ragged: Ragged | None = None
    """How the items are padded to one length; None = they have one shape."""

    def part(self, start: int, stop: int) -> Group:
        items = self.items[start:stop] if self.items is not None else None
        return Group(self.rows[start:stop], self.alone, items, self.ragged)

    @property
    def counts(self) -> list[int] | None:
        """Items per row; None where each is one."""
        if self.items is None or all(item.single for item in self.items):
            return None
        return [item.count for item in self.items]

    @property
    def windowed(self) -> bool:
        """Whether its items are windows of records, which may run in parts."""
        return self.items is not None and any(item.marks is not None for item in self.items)

    @property
    def item_count(self) -> int:
        return sum(item.count for item in self.items) if self.items is not None else len(self.rows)


def buffers(servable: Servable, rows: int) -> dict[str, Array]:
    """One array per model input with a slot per row."""
    return {
        spec.name: np.full((rows, *_known(spec.item_shape)), "", object)
        if spec.dtype == object
        else servable.model.empty((rows, *_known(spec.item_shape)), spec.dtype)
        for spec in servable.model.signature.inputs
    }


def _known(shape: tuple[int | None, ...]) -> tuple[int, ...]:
    return tuple(d or 0 for d in shape)


def groups(batch: Batch, servable: Servable) -> Iterator[Group]:
    """The batch's good rows as model runs: together where the model allows it, else one by one."""
    feed = batch.feed
    assert feed is not None
    rows: Sequence[int] = range(len(batch))
    if feed.rejected or feed.postponed:
        rows = [row for row in rows if row not in feed.rejected and row not in feed.postponed]
    if not rows:
        return
    if not servable.model.signature.batchable:
        for row in rows:
            yield Group([row], True, None if feed.arrays is not None else _items(feed, [row]))
    elif feed.arrays is not None:
        while rows:  # the limit may change between two runs: no row behind it may be skipped
            limit = servable.run_limit.items
            yield Group(rows[:limit], False)
            rows = rows[limit:]
    elif servable.ragged is not None:
        for ours, items in by_length(feed, rows, servable.ragged, servable.run_limit):
            yield Group(ours, False, items, servable.ragged)
    else:
        by_record = bool(servable.model.signature.states)
        yield from _by_shape(feed, rows, servable.run_limit.items, by_record)


def _by_shape(feed: Feed, rows: Iterable[int], limit: int, by_record: bool) -> Iterator[Group]:
    """Rows of the same item shape together, at most ``limit`` items; a record of more runs alone.

    Args:
        by_record: a record counts as one, however many items it has, because they run one after the other.
    """
    gathered: dict[tuple[object, ...], tuple[list[int], list[Item]]] = {}
    counts: dict[tuple[object, ...], int] = {}
    for row in rows:
        item = feed.items[row]
        assert item is not None
        shape = tuple((name, array.shape[1:]) for name, array in item.arrays.items())
        before = counts.get(shape, 0)
        count = 1 if by_record else item.count
        if before and before + count > limit:
            yield Group(gathered[shape][0], False, gathered[shape][1])
            before = 0
        if not before:
            gathered[shape] = [], []
        counts[shape] = before + count
        ours, items = gathered[shape]
        ours.append(row)
        items.append(item)
    for ours, items in gathered.values():
        yield Group(ours, False, items)


def _items(feed: Feed, rows: Sequence[int]) -> list[Item]:
    return [item for row in rows if (item := feed.items[row]) is not None]


def feeds(batch: Batch, model: Model, group: Group) -> dict[str, Array]:
    """What one run gets, the batch dimension included."""
    feed = batch.feed
    assert feed is not None
    if group.items is None:
        assert feed.arrays is not None
        found = {name: take_rows(array, group.rows) for name, array in feed.arrays.items()}
    elif group.ragged is not None:
        found = {name: _joined(model, group.items, name, group.ragged) for name in group.items[0].arrays}
    elif len(group.items) == 1:
        found = dict(group.items[0].arrays)
    else:
        names = group.items[0].arrays
        found = {name: np.concatenate([item.arrays[name] for item in group.items]) for name in names}
    if group.alone and not group.windowed:
        for spec in model.signature.inputs:
            if not spec.has_rows and group.items is None:
                found[spec.name] = found[spec.name].reshape(found[spec.name].shape[1:])
            elif model.fixed_batch and len(found[spec.name]) < model.fixed_batch:
                found[spec.name] = _padded(found[spec.name], model.fixed_batch)
    return found


def _joined(model: Model, items: Sequence[Item], name: str, ragged: Ragged) -> Array:
    """One input of items of unlike length."""
    arrays = [item.arrays[name] for item in items]
    padding = ragged.padding.get(name)
    if padding is None:
        return np.concatenate(arrays)
    return padded(arrays, padding, model.empty(padded_shape(arrays, padding), arrays[0].dtype))


def take_rows(array: Array, rows: Sequence[int]) -> Array:
    """Rows of a buffer; a view where they stand together."""
    if isinstance(rows, range) or rows[-1] - rows[0] == len(rows) - 1:
        return array[rows[0] : rows[-1] + 1]
    return array[list(rows)]


def _padded(array: Array, size: int) -> Array:
    padded = np.zeros((size, *array.shape[1:]), array.dtype)
    if array.dtype == object:
        padded[:] = ""
    padded[: len(array)] = array
    return padded


def merged(runs: list[Run]) -> list[Run]:
    """Runs over plain rows as one, where their outputs fit together: encoding costs by the run as much as by the row.

    The stages of all its rows are then those of the whole: from the first run's start to the last one's end. Its rows are in
    ascending order, whatever order the runs had.
    """
    first = runs[0]
    alike = all(
        not run.alone and run.counts is None and _item_shapes(run) == _item_shapes(first) for run in runs
    )
    if not alike or sum(o.nbytes for run in runs for o in run.outputs.values()) > MERGE_BYTES:
        return runs
    rows = _chained([run.rows for run in runs])
    outputs = {name: np.concatenate([run.outputs[name] for run in runs]) for name in first.outputs}
    if not isinstance(rows, range):
        order = np.argsort(rows)
        rows = np.asarray(rows)[order].tolist()
        outputs = {name: output[order] for name, output in outputs.items()}
    sizes = [size for run in runs for size in ([len(run.rows)] if run.sizes is None else run.sizes)]
    return [Run(rows, outputs, started_ns=first.started_ns, ended_ns=runs[-1].ended_ns, sizes=sizes)]


def _item_shapes(run: Run) -> list[tuple[int, ...]]:
    return [output.shape[1:] for output in run.outputs.values()]


def _chained(parts: list[Sequence[int]]) -> Sequence[int]:
    """Rows one after the other; a range only where they are consecutive and in ascending order."""
    if all(isinstance(part, range) and part.step == 1 for part in parts) and all(
        before[-1] + 1 == after[0] for before, after in pairwise(parts)
    ):
        return range(parts[0][0], parts[-1][-1] + 1)
    rows = [row for part in parts for row in part]
    consecutive = range(rows[0], rows[0] + len(rows))
    return consecutive if rows == list(consecutive) else rows
