"""An open slab: records that are taken and not submitted. They are in the byte budget already."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from worker.batch import COUNTED, Batch, Columns, Fetched, Outcomes, Partition, Route, Servable, Span, pick
from worker.errors import Rejection
from worker.loop.admission import Admission, Admitted
from worker.loop.budget import Share
from worker.loop.epochs import Epochs
from worker.loop.keep import Keep, LeftOut, without
from worker.loop.slab import Slab
from worker.sizes import held_bytes


class OpenSlab:
    """Grows by takes, is closed into a :class:`Slab` of at most what the budget has room for.

    Args:
        share: what its intake may hold of the byte budget.
    """

    def __init__(self, share: Share) -> None:
        self.claim = share.claim()
        """Holds the bytes of its records."""
        self.first_ns = 0
        """Monotonic clock when the first record was taken."""
        self._columns = Columns()
        self._spans: list[Span] = []
        self._first_ms = 0.0
        self._late_us: list[int] = []
        """Per row the microseconds between ``first_ns`` and its own take; empty while all rows came with one take."""

    def __len__(self) -> int:
        return len(self._columns)

    def append(self, columns: Columns, spans: list[Span], now_ns: int, now_ms: float) -> None:
        """Add a take.

        Args:
            now_ns: monotonic nanoseconds. now_ms: Unix milliseconds.
        """
        base = len(self._columns)
        if columns.fetched is None and self._columns.fetched is not None and base:
            columns = replace(columns, fetched=[Fetched(now_ns)] * len(columns))
        if columns.fetched is not None:
            self._append_fetched(columns, spans, now_ns, now_ms)
        elif not base:
            self.first_ns, self._first_ms = now_ns, now_ms
            self._columns, self._spans, self._late_us = columns, spans, []
        elif len(columns):
            late_us = self._late_us or [0] * base
            self._late_us = late_us + [(now_ns - self.first_ns) // 1000] * len(columns)
            self._columns.extend(columns)
            self._spans += [
                Span(s.partition, s.start + base, s.stop + base, s.next_offset, s.epoch) for s in spans
            ]
        self.claim.adjust(held_bytes(columns))

    def thin(self, keep: Keep) -> list[LeftOut]:
        """Leave out the records behind which there are newer ones of their key."""
        rows, told = keep.superseded(self._columns)
        if rows:
            left = [row for row in range(len(self._columns)) if row not in rows]
            self._columns = self._columns.select(left)
            self._late_us = pick(self._late_us, left) if self._late_us else []
            self._spans = without(self._spans, rows)
            self.claim.adjust(held_bytes(self._columns) - self.claim.nbytes)
        return told

    def _append_fetched(self, columns: Columns, spans: list[Span], now_ns: int, now_ms: float) -> None:
        """Add records that waited for something outside: the slab's time begins now, theirs began with their own take."""
        base = len(self._columns)
        if not base:
            self.first_ns, self._first_ms = now_ns, now_ms
            self._columns, self._spans, self._late_us = Columns(fetched=[]), [], []
        elif self._columns.fetched is None:  # they needed nothing
            self._late_us = self._late_us or [0] * base
            self._columns.fetched = [Fetched(self.first_ns + late_us * 1000) for late_us in self._late_us]
        self._late_us += [(fetched.taken_ns - self.first_ns) // 1000 for fetched in columns.fetched or ()]
        self._columns.extend(columns)
        self._spans += [
            Span(s.partition, s.start + base, s.stop + base, s.next_offset, s.epoch) for s in spans
        ]

    def discard(self, epochs: Epochs) -> None:
        """Forget the records that are not ours any more."""
        self._keep([span for span in self._spans if epochs.current(span)])

    def drop(self, partitions: Collection[Partition]) -> None:
        """Forget these partitions' records."""
        self._keep([span for span in self._spans if span.partition not in partitions])

    def clear(self) -> None:
        """Forget everything."""
        self._keep([])

    def _keep(self, live: list[Span]) -> None:
        if len(live) == len(self._spans):
            return
        rows = [row for span in live for row in range(span.start, span.stop)]
        self._columns = self._columns.select(rows)
        self._late_us = pick(self._late_us, rows) if self._late_us else []
        self._spans = rebased(live)
        self.claim.adjust(held_bytes(self._columns) - self.claim.nbytes)

    @property
    def first(self) -> tuple[Partition, int]:
        """Where the first record comes from: partition and offset."""
        return self._spans[0].partition, self._columns.offsets[0]

    def stretch(self, alone: Callable[[Partition, int], bool]) -> int:
        """How many records from the first on may go together: 1 when the first one has to go ``alone``."""
        if alone(*self.first):
            return 1
        offsets = self._columns.offsets
        # A partition's records are in order, and those that have to go alone come first.
        return next((s.start for s in self._spans if alone(s.partition, offsets[s.start])), len(offsets))

    def of_a_kind(self, kind: Callable[[Partition], bool]) -> int:
        """How many records from the first on are of partitions of which ``kind`` says the same as of the first one's."""
        first = kind(self._spans[0].partition)
        return next((s.start for s in self._spans if kind(s.partition) != first), len(self._columns))

    def begins(self, most: int) -> Iterator[tuple[Partition, int]]:
        """Where each run of a partition's records among the first ``most`` begins."""
        return ((s.partition, self._columns.offsets[s.start]) for s in self._spans if s.start < most)

    def close(
        self,
        admission: Admission,
        free_bytes: int,
        now_ms: float,
        most: int,
        force: bool,
        refused: Rejection | None = None,
    ) -> Slab | None:
        """Make a slab with its batches, of the longest beginning whose tensors fit the budget.

        Args:
            free_bytes: what the batches' tensors and scratch may take.
            now_ms: Unix milliseconds, for deadlines.
            most: most records that may go.
            force: one record goes even when it does not fit. Nothing else is in flight then, and whether it can fit at
                all was checked when the process started.
            refused: the records are not to be decoded, for this reason.

        Returns:
            None when not even one record fits.
        """
        admitted = admission.admit(self._columns.select(range(most)), now_ms)
        rows = _affordable(admitted.costs, free_bytes) or int(force or refused is not None)
        if len(admitted.servables) > 1:
            rows = _within_figures(admitted, rows)
        if not rows:
            return None
        slab = self._cut(rows)
        slab.routes = admitted.routes[:rows]
        slab.servables, slab.others = admitted.servables, admitted.others
        if slab.others and rows < len(admitted.routes):
            slab.others = {row: other for row, other in admitted.others.items() if row < rows}
        slab.one_route = slab.routes.count(slab.routes[0]) == rows
        if refused is not None:
            slab.decided = Outcomes([None] * rows, rejected=dict.fromkeys(range(rows), refused))
            return slab
        slab.decided = admitted.outcomes if admitted.decided else None
        slab.batches = _batches(slab, admitted)
        return slab

    def _cut(self, rows: int) -> Slab:
        """The first ``rows`` leave as a slab, the others stay."""
        total = len(self._columns)
        taken = self.first_ns, self._first_ms
        if rows == total:
            claim = self.claim.part(self.claim.nbytes)
            slab = Slab(self._columns, self._spans, *taken, claim, self._late_us)
            self._columns, self._spans, self._late_us = Columns(), [], []
            return slab
        head, tail = self._columns.select(range(rows)), self._columns.select(range(rows, total))
        first, rest = _split(self._spans, rows, self._columns.offsets)
        claim = self.claim.part(self.claim.nbytes - held_bytes(tail))
        slab = Slab(head, first, *taken, claim, self._late_us[:rows])
        self._columns, self._spans, self._late_us = tail, rest, self._late_us[rows:]
        return slab


def rebased(spans: Iterable[Span]) -> list[Span]:
    """Spans over rows that now stand one after the other."""
    found, base = [], 0
    for span in spans:
        stop = base + span.stop - span.start
        found.append(Span(span.partition, base, stop, span.next_offset, span.epoch))
        base = stop
    return found


def _affordable(costs: list[int], free_bytes: int) -> int:
    """How many rows from the first on fit together."""
    if sum(costs) <= free_bytes:
        return len(costs)
    rows = 0
    for cost in costs:
        free_bytes -= cost
        if free_bytes < 0:
            break
        rows += 1
    return rows


def _within_figures(admitted: Admitted, rows: int) -> int:
    """How many rows may go when no route may have more than the ``slab_records`` of its servable.

    Routes that share a topic share their slabs. A slow one must not get the many records that suit a quick one.
    """
    left = {route: servable.slab_records for route, servable in admitted.servables.items()}
    for row, route in enumerate(admitted.routes[:rows]):
        if route is not None:
            left[route] -= 1
            if left[route] < 0:
                return row
    return rows


def _split(spans: list[Span], rows: int, offsets: Sequence[int]) -> tuple[list[Span], list[Span]]:
    """Spans before and from row ``rows`` on, the latter counted from there."""
    first: list[Span] = []
    rest: list[Span] = []
    for span in spans:
        if span.start < rows:
            stop = min(span.stop, rows)
            if span.next_offset >= COUNTED:
                end = span.next_offset - (span.stop - stop)
            else:
                end = span.next_offset if stop == span.stop else offsets[stop - 1] + 1
            first.append(Span(span.partition, span.start, stop, end, span.epoch))
        if span.stop > rows:
            start = max(span.start, rows)
            rest.append(Span(span.partition, start - rows, span.stop - rows, span.next_offset, span.epoch))
    return first, rest


def _batches(slab: Slab, admitted: Admitted) -> list[Batch]:
    """The slab's rows by route, at most ``batch_records`` each; consecutive where they can be."""
    rows_of: dict[Route, Sequence[int]] = {}
    routes = slab.routes
    first = routes[0]
    if slab.one_route and first is not None and not admitted.decided:
        rows_of[first] = range(len(routes))
    else:
        grouped: dict[Route, list[int]] = {}
        for row, route in enumerate(routes):
            if route is not None and row not in admitted.decided:
                grouped.setdefault(route, []).append(row)
        rows_of.update(grouped)
    batches = []
    for route, servable, rows in _shares(rows_of, slab, admitted):
        trial = admitted.trials.get(route)
        for start in range(0, len(rows), servable.batch_records):
            part = rows[start : start + servable.batch_records]
            cost = sum(pick(admitted.costs, part))
            columns = slab.columns.select(part)
            late_us = _picked(slab.late_us, part)
            taken = slab.taken_ns, slab.taken_ms, late_us
            batch = Batch(slab, part, columns, route, servable, *taken, cost_bytes=cost, trial=trial)
            if admitted.to_open:
                batch.to_open = {index for index, row in enumerate(part) if row in admitted.to_open}
            if admitted.deadlines_ms:
                batch.deadlines = admitted.deadlines_of(part)
            if columns.fetched is not None:
                lay_in_fetched(batch, columns.fetched)
            batches.append(batch)
    return batches


def _shares(
    rows_of: Mapping[Route, Sequence[int]], slab: Slab, admitted: Admitted
) -> Iterator[tuple[Route, Servable, Sequence[int]]]:
    """The rows of each route by who answers them."""
    others = slab.others
    for route, rows in rows_of.items():
        stable, trial = admitted.servables[route], admitted.trials.get(route)
        if trial is None:
            yield route, stable, rows
            continue
        theirs, ours = _divided(rows, others, whole=slab.one_route and len(rows) == len(slab.routes))
        alike = len(theirs)
        if 0 < alike < len(ours) and trial.control():
            yield route, stable, ours[:alike]
            ours = ours[alike:]
        yield route, stable, ours
        yield route, trial.candidate, theirs


def _divided(
    rows: Sequence[int], others: Mapping[int, Servable], whole: bool
) -> tuple[list[int], Sequence[int]]:
    """The rows that are among the others, and the rest of them.

    Args:
        whole: the rows are those of the whole slab, so that all others are among them.
    """
    if not others or not rows:
        return [], rows
    ours = bytearray(b"\1") * (rows[-1] + 1)
    theirs = [*others] if whole else [row for row in rows if row in others]
    for row in theirs:
        ours[row] = 0
    return theirs, list(compress(rows, ours if whole else map(ours.__getitem__, rows)))


def lay_in_fetched(batch: Batch, fetched: Sequence[Fetched]) -> None:
    """Give the decoder what was fetched, and the records the stage."""
    batch.payloads = [
        value if its.payload is None else its.payload
        for value, its in zip(batch.columns.values, fetched, strict=True)
    ]
    batch.fetch_us = np.array([its.fetch_us for its in fetched], np.int64)


def _picked(late_us: list[int], rows: Sequence[int]) -> NDArray[np.int64] | None:
    """These rows' delays; None when all rows came with one take."""
    return np.array(pick(late_us, rows), np.int64) if late_us else None
