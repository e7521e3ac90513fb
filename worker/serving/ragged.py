"""Items of unlike length in one run: which of them share it, how they are padded, and how the padding is cut again.

A model is padded only if made-up items show that padding does not change its answers: see
:mod:`worker.serving.padding_check`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from worker.batch import Array, Feed, Item, Padding, Run
from worker.serving.run_limit import RunLimit

WASTE = 1.5
"""A run is closed before its positions, padding included, exceed this many times those of its records alone."""


@dataclass(frozen=True, slots=True)
class Ragged:
    """How the items of one servable are padded."""

    padding: Mapping[str, Padding]
    """By model input."""
    follows: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """By model output, the axes of its item that are as long as the padded inputs."""

    def lengths(self, item: Item) -> tuple[int, ...]:
        """The item's length in each padded input, rounded up as in a run of its own."""
        return tuple(
            rounded(item.arrays[name].shape[padding.axis + 1], padding)
            for name, padding in self.padding.items()
        )

    def positions_limit(self) -> int | None:
        limits = [p.positions for p in self.padding.values() if p.positions is not None]
        return min(limits) if limits else None


def rounded(length: int, padding: Padding) -> int:
    """The length rounded up to a multiple, at least one, as far as ``padding.longest`` allows."""
    whole = max(1, -(-length // padding.multiple)) * padding.multiple
    return whole if padding.longest is None else max(length, min(whole, padding.longest))


def by_length(
    feed: Feed, rows: Sequence[int], ragged: Ragged, limit: RunLimit
) -> Iterator[tuple[list[int], list[Item]]]:
    """The rows as runs of like length, longest first; the rows of each run are in ascending order.

    A run has at most ``limit.items`` items, and at most ``WASTE`` times the positions that its records need alone. A record
    of more items than the limit runs alone.
    """
    alike: dict[tuple[object, ...], list[tuple[tuple[int, ...], int]]] = {}
    for row in rows:
        item = feed.items[row]
        assert item is not None
        alike.setdefault(_kind(item, ragged), []).append((ragged.lengths(item), row))
    for found in alike.values():
        found.sort(key=lambda entry: (-sum(entry[0]), entry[1]))
        for chosen in _closed(feed, found, ragged.positions_limit(), limit):
            items = [item for row in chosen if (item := feed.items[row]) is not None]
            yield chosen, items


def _kind(item: Item, ragged: Ragged) -> tuple[object, ...]:
    """What two items must have in common to share a run: every dimension that is not padded."""
    kind: list[object] = []
    for name, array in item.arrays.items():
        shape = list(array.shape[1:])
        if name in ragged.padding:
            shape[ragged.padding[name].axis] = -1
        kind.append((name, *shape))
    return tuple(kind)


def _closed(
    feed: Feed,
    found: Sequence[tuple[tuple[int, ...], int]],
    most: int | None,
    limit: RunLimit,
) -> Iterator[list[int]]:
    """The rows of each run, ascending."""
    gathered: list[int] = []
    count = needed = 0
    longest: tuple[int, ...] = ()
    for lengths, row in found:
        item = feed.items[row]
        assert item is not None
        joint = tuple(map(max, longest, lengths)) if gathered else lengths
        together, alone = count + item.count, needed + item.count * sum(lengths)
        full = together > limit.items or (most is not None and together * max(joint) > most)
        if gathered and (full or together * sum(joint) > WASTE * alone):
            yield sorted(gathered)
            gathered, count, needed, joint = [], 0, 0, lengths
        gathered.append(row)
        count += item.count
        needed += item.count * sum(lengths)
        longest = joint
    if gathered:
        yield sorted(gathered)


def padded(arrays: Sequence[Array], padding: Padding, whole: Array) -> Array:
    """Fill ``whole`` with items of one input, one behind the other, and the padding value in all other places.

    Args:
        arrays: (items, *item) each.
        whole: (items of all, *item) with the padded axis as long as the longest or longer.
    """
    whole.fill(padding.value)
    axis = padding.axis + 1
    length, start = whole.shape[axis], 0
    between = (slice(None),) * (axis - 1)
    for array in arrays:
        own = array.shape[axis]
        place = slice(length - own, length) if padding.before else slice(own)
        whole[(slice(start, start + len(array)), *between, place)] = array
        start += len(array)
    return whole


def padded_shape(arrays: Sequence[Array], padding: Padding) -> tuple[int, ...]:
    """Shape of all the items of one input together, padded to the longest."""
    axis = padding.axis + 1
    shape = list(arrays[0].shape)
    shape[0] = sum(map(len, arrays))
    shape[axis] = rounded(max(array.shape[axis] for array in arrays), padding)
    return tuple(shape)


def cut(run: Run, items: Sequence[Item], ragged: Ragged) -> list[Run]:
    """A padded run as runs whose outputs have no padded position: one for each length among its records.

    Unchanged where no output follows the padded inputs.
    """
    if not ragged.follows:
        return [run]
    name, padding = next(iter(ragged.padding.items()))
    by_own: dict[int, list[int]] = {}
    for place, item in enumerate(items):
        by_own.setdefault(item.arrays[name].shape[padding.axis + 1], []).append(place)
    starts = np.cumsum([0, *(item.count for item in items)])
    parts = []
    sizes = [int(starts[-1])]
    for length, places in by_own.items():
        wanted = np.concatenate([np.arange(starts[place], starts[place + 1]) for place in places])
        outputs = {
            output: cut_output(array[wanted], ragged.follows.get(output, ()), length, padding.before)
            for output, array in run.outputs.items()
        }
        counts = [run.counts[place] for place in places] if run.counts is not None else None
        rows = [run.rows[place] for place in places]
        parts.append(
            Run(rows, outputs, counts, started_ns=run.started_ns, ended_ns=run.ended_ns, sizes=sizes)
        )
        sizes = []  # it was one model run
    return parts


def cut_output(output: Array, axes: Sequence[int], length: int, before: bool) -> Array:
    """The outputs of items of one length without their padded positions."""
    place = slice(-length, None) if before else slice(length)
    for axis in axes:
        output = output[(slice(None),) * (axis + 1) + (place,)]
    return np.ascontiguousarray(output)
