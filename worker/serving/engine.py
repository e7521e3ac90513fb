"""The engine: decode, infer, finish on one batch. It knows nothing of Kafka and keeps no state.

``decode`` writes rows into the batch's own buffers, on all pool threads. ``infer`` groups the decoded rows into
model runs. ``finish`` turns the model's answers into bodies. When a run raises, the engine first runs the model's
canary. If the canary fails, the model is sick: the batch says so (``batch.sick``), and no record is blamed.
Otherwise the engine bisects the batch until the guilty record stands alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import numpy as np

from worker.batch import STAGES, Array, Batch, Feed, Item, Outcomes, Run
from worker.errors import Reject, Rejection
from worker.serving.servable import Model, Servable

NO_KNOWN_OUTPUT = "its warm-up input no longer gives its known output"
MERGE_BYTES = 4 << 20
"""Outputs of several runs are put together for encoding up to this size."""

OUT_OF_MEMORY = (
    "failed to allocate memory",  # the runtime's arena
    "is smaller than requested bytes",  # the arena under a limit: "Available memory of 1 is smaller than ..."
    "out of memory",
    "out_of_memory",  # the name in CUDA
    "alloc_failed",  # cuBLAS and cuDNN
    "bad_alloc",
)
"""Words, in lower case, of errors that mean that the batch may be too large. The runtime has no type or code for them."""


class Engine:
    """The three steps, for the servable that a batch pins. Pool threads call them: no two threads the same step of one
    batch, except ``decode`` on different rows.

    Args:
        clock_ns: monotonic nanoseconds.
    """

    def __init__(self, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock_ns = clock_ns

    def shards(self, batch: Batch) -> list[tuple[int, int]]:
        """Give the batch its buffers; returns which rows may be decoded side by side."""
        batch.decode_started_ns = self._clock_ns()
        servable = _servable(batch)
        rows = len(batch)
        batch.outcomes = Outcomes.empty(rows)
        arrays = _buffers(servable, rows) if servable.decoder.fixed else None
        items: list[Item | None] = [] if servable.decoder.fixed else [None] * rows
        batch.feed = Feed(arrays, items, [None] * rows)
        step = servable.decoder.shard_rows or rows
        return [(start, min(start + step, rows)) for start in range(0, rows, step)]

    def decode(self, batch: Batch, start: int, stop: int) -> None:
        """Decode rows ``start..stop``; what is wrong with a row is in ``batch.feed.rejected`` afterwards."""
        assert batch.feed is not None
        _servable(batch).decoder.decode(batch.payloads, batch.columns, batch.feed, start, stop)
        batch.decode_ended_ns = self._clock_ns()

    def infer(self, batch: Batch) -> None:
        """Run the model over the decoded rows. Afterwards the batch has its runs, or says why its servable is sick."""
        servable = _servable(batch)
        try:
            for group in _groups(batch, servable):
                batch.runs.extend(self._answer(batch, servable, group))
        except _SickError as sick:
            batch.sick, batch.runs = str(sick), []
            return
        servable.run_limit.good()
        if batch.runs and servable.checkup.begin(self._clock_ns()):
            self._check(batch, servable)
        if len(batch.runs) > 1:
            batch.runs = _merged(batch.runs)

    def finish(self, batch: Batch) -> None:
        """Turn the model's answers into outcomes, and let the tensors go."""
        encoder = _servable(batch).encoder
        assert batch.feed is not None
        assert batch.outcomes is not None
        for run in batch.runs:
            fragments = encoder.predict(batch, run)
            _stamp(batch, run, self._clock_ns())
            encoder.bodies(batch, run, fragments)
            batch.items += sum(run.counts) if run.counts is not None else len(run.rows)
            run.outputs = {}
        batch.outcomes.rejected.update(batch.feed.rejected)
        batch.feed.arrays = None
        batch.feed.items = []
        batch.payloads = []
        batch.finished_ns = self._clock_ns()

    def _check(self, batch: Batch, servable: Servable) -> None:
        """Run the canary although nothing failed. A second try rules out a run that was interrupted or out of memory."""
        started_ns = self._clock_ns()
        if not (servable.model.canary() or servable.model.canary()):
            batch.sick, batch.runs = f"{NO_KNOWN_OUTPUT} (no run has failed)", []
        servable.checkup.end(started_ns, self._clock_ns())

    # -- running, and finding the guilty record ----------------------------------------------------------

    def _answer(self, batch: Batch, servable: Servable, group: _Group) -> list[Run]:
        """The model's answers to a group; a row that the model refuses on its own is rejected, the others are answered."""
        try:
            return [self._run(batch, servable.model, group)]
        except Exception as error:
            return self._isolate(batch, servable, group, error)

    def _isolate(self, batch: Batch, servable: Servable, group: _Group, error: Exception) -> list[Run]:
        if not servable.model.canary():
            raise _SickError(f"{NO_KNOWN_OUTPUT} (first error: {_one_line(error)})") from error
        if len(group.rows) == 1:
            _reject(batch, servable.model, group.rows[0], error)
            return []
        if _out_of_memory(error):
            servable.run_limit.out_of_memory(group.item_count)
        middle = len(group.rows) // 2
        return [
            *self._answer(batch, servable, group.part(0, middle)),
            *self._answer(batch, servable, group.part(middle, len(group.rows))),
        ]

    def _run(self, batch: Batch, model: Model, group: _Group) -> Run:
        """One model run.

        Raises:
            Exception: whatever the runtime raises; :class:`ValueError` when the outputs do not follow the batch.
        """
        feeds = _feeds(batch, model, group)
        started_ns = self._clock_ns()
        outputs = model.run(feeds)
        ended_ns = self._clock_ns()
        if group.alone:
            padded = model.fixed_batch
            cut = padded and (group.items is None or group.items[0].single)
            if cut:
                outputs = {k: v[:1] if v.ndim and len(v) == padded else v for k, v in outputs.items()}
        else:
            _check_lengths(outputs, group.item_count)
        if model.needs_canary:
            model.adopt_canary(feeds, outputs)
        return Run(group.rows, outputs, group.counts, group.alone, started_ns, ended_ns)


class _SickError(Exception):
    """The canary failed: ends the batch, and nothing of it is any record's fault."""


def _servable(batch: Batch) -> Servable:
    """What answers this batch. The loop made it of a servable of this package; it knows only a part of it."""
    return cast("Servable", batch.servable)


def _check_lengths(outputs: dict[str, Array], items: int) -> None:
    for name, output in outputs.items():
        if not output.ndim or len(output) != items:
            raise ValueError(
                f"output {name} has shape {list(output.shape)} for {items} items: "
                "its first dimension does not follow the batch"
            )


# -- groups of rows that can run together --------------------------------------------------------------


@dataclass(slots=True)
class _Group:
    """Rows that go into one model run, and how to put any part of them together."""

    rows: Sequence[int]
    alone: bool
    items: list[Item] | None = None
    """One per row where shapes are not fixed; None = the rows of the batch's arrays."""

    def part(self, start: int, stop: int) -> _Group:
        items = self.items[start:stop] if self.items is not None else None
        return _Group(self.rows[start:stop], self.alone, items)

    @property
    def counts(self) -> list[int] | None:
        """Items per row; None where each is one."""
        if self.items is None or all(item.single for item in self.items):
            return None
        return [item.count for item in self.items]

    @property
    def item_count(self) -> int:
        return sum(item.count for item in self.items) if self.items is not None else len(self.rows)


def _groups(batch: Batch, servable: Servable) -> Iterator[_Group]:
    """The batch's good rows as model runs: together where the model allows it, else one by one."""
    feed = batch.feed
    assert feed is not None
    rows: Sequence[int] = range(len(batch))
    if feed.rejected:
        rows = [row for row in rows if row not in feed.rejected]
    if not rows:
        return
    if not servable.model.signature.batchable:
        for row in rows:
            yield _Group([row], True, None if feed.arrays is not None else _items(feed, [row]))
    elif feed.arrays is not None:
        while rows:  # the limit may change between two runs: no row behind it may be skipped
            limit = servable.run_limit.items
            yield _Group(rows[:limit], False)
            rows = rows[limit:]
    else:
        yield from _by_shape(feed, rows, servable.run_limit.items)


def _by_shape(feed: Feed, rows: Iterable[int], limit: int) -> Iterator[_Group]:
    """Rows of the same item shape together, at most ``limit`` items; a record of more runs alone."""
    gathered: dict[tuple[object, ...], tuple[list[int], list[Item]]] = {}
    counts: dict[tuple[object, ...], int] = {}
    for row in rows:
        item = feed.items[row]
        assert item is not None
        shape = tuple((name, array.shape[1:]) for name, array in item.arrays.items())
        before = counts.get(shape, 0)
        if before and before + item.count > limit:
            yield _Group(gathered[shape][0], False, gathered[shape][1])
            before = 0
        if not before:
            gathered[shape] = [], []
        counts[shape] = before + item.count
        ours, items = gathered[shape]
        ours.append(row)
        items.append(item)
    for ours, items in gathered.values():
        yield _Group(ours, False, items)


def _items(feed: Feed, rows: Sequence[int]) -> list[Item]:
    return [item for row in rows if (item := feed.items[row]) is not None]


def _feeds(batch: Batch, model: Model, group: _Group) -> dict[str, Array]:
    """What one run gets, the batch dimension included."""
    feed = batch.feed
    assert feed is not None
    if group.items is None:
        assert feed.arrays is not None
        feeds = {name: _take_rows(array, group.rows) for name, array in feed.arrays.items()}
    elif len(group.items) == 1:
        feeds = dict(group.items[0].arrays)
    else:
        names = group.items[0].arrays
        feeds = {name: np.concatenate([item.arrays[name] for item in group.items]) for name in names}
    if group.alone:
        for spec in model.signature.inputs:
            if not spec.shape and group.items is None:
                feeds[spec.name] = feeds[spec.name].reshape(())
            elif model.fixed_batch and len(feeds[spec.name]) < model.fixed_batch:
                feeds[spec.name] = _padded(feeds[spec.name], model.fixed_batch)
    return feeds


def _take_rows(array: Array, rows: Sequence[int]) -> Array:
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


def _reject(batch: Batch, model: Model, row: int, error: Exception) -> None:
    assert batch.outcomes is not None
    reason = error.reason if isinstance(error, Reject) else "model_error"
    rejection = Rejection.of(error, "infer", model, reason)
    batch.outcomes.rejected[row] = rejection


def _out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in OUT_OF_MEMORY)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _merged(runs: list[Run]) -> list[Run]:
    """Runs over plain rows as one, where their outputs fit together: encoding costs by the run as much as by the row.

    The stages of all its rows are then those of the whole: from the first run's start to the last one's end.
    """
    first = runs[0]
    alike = all(
        not run.alone and run.counts is None and _item_shapes(run) == _item_shapes(first) for run in runs
    )
    if not alike or sum(o.nbytes for run in runs for o in run.outputs.values()) > MERGE_BYTES:
        return runs
    return [
        Run(
            _chained([run.rows for run in runs]),
            {name: np.concatenate([run.outputs[name] for run in runs]) for name in first.outputs},
            started_ns=first.started_ns,
            ended_ns=runs[-1].ended_ns,
            sizes=[len(run.rows) for run in runs],
        )
    ]


def _item_shapes(run: Run) -> list[tuple[int, ...]]:
    return [output.shape[1:] for output in run.outputs.values()]


def _chained(parts: list[Sequence[int]]) -> Sequence[int]:
    """Rows one after the other; a range where they are consecutive."""
    if all(isinstance(part, range) and part.step == 1 for part in parts) and all(
        before[-1] + 1 == after[0] for before, after in pairwise(parts)
    ):
        return range(parts[0][0], parts[-1][-1] + 1)
    rows = [row for part in parts for row in part]
    return range(rows[0], rows[-1] + 1) if rows[-1] - rows[0] == len(rows) - 1 else rows


# -- buffers and stamps ---------------------------------------------------------------------------------


def _buffers(servable: Servable, rows: int) -> dict[str, Array]:
    """One array per model input with a slot per row."""
    return {
        spec.name: np.full((rows, *_known(spec.item_shape)), "", object)
        if spec.dtype == object
        else servable.model.empty((rows, *_known(spec.item_shape)), spec.dtype)
        for spec in servable.model.signature.inputs
    }


def _known(shape: tuple[int | None, ...]) -> tuple[int, ...]:
    return tuple(d or 0 for d in shape)


def _stamp(batch: Batch, run: Run, now_ns: int) -> None:
    """Fill the run's stage times, in whole microseconds; ``total`` is their exact sum.

    ``broker`` is the only one across two clocks (record timestamp -> taken) and is never negative.
    """
    written_us = np.array(batch.columns.select(run.rows).timestamps_ms, np.int64) * 1000
    broker: Array = round(batch.taken_ms * 1000) - written_us
    queue: int | Array = _us(batch.decode_started_ns - batch.taken_ns)
    if batch.late_us is not None:  # each row counts from its own take, not from the first one of the slab
        late_us = _take_rows(batch.late_us, run.rows)
        broker += late_us
        queue = np.maximum(queue - late_us, 0)
    np.maximum(broker, 0, out=broker)
    broker[written_us <= 0] = 0  # not known
    times: tuple[Array, int | Array, int, int, int, int] = (
        broker,
        queue,
        _us(batch.decode_ended_ns - batch.decode_started_ns),
        _us(run.started_ns - batch.decode_ended_ns),
        _us(run.ended_ns - run.started_ns),
        _us(now_ns - run.ended_ns),
    )
    run.stages_us = dict(zip(STAGES, times, strict=True))
    total: Array = broker + queue + sum(times[2:])
    run.stages_us["total"] = total


def _us(nanoseconds: int) -> int:
    return max(0, nanoseconds // 1000)
