"""Records on their way in: one intake for each group of routes that share topics.

An intake has an open slab (records that are taken and not submitted), figures of its own and a share of the byte
budget. So a pipeline on a topic of its own never waits for another one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import chain

from worker.batch import Columns, Lane, Route, Servable, Span, largest_bytes
from worker.errors import Rejection
from worker.loop.admission import Admission
from worker.loop.budget import Share
from worker.loop.fetching import Fetching
from worker.loop.keep import Keep, LeftOut
from worker.loop.openslab import OpenSlab
from worker.loop.pace import Pace
from worker.loop.slab import Slab
from worker.sizes import HELD_RECORD_BYTES
from worker.topics import Topics

SPARE_RECORDS = 64
"""Records that a full open slab still takes before its topics are paused."""
NEWEST_RECORDS = 4096
"""Records that an open slab takes of which only the newest of each key stay: as many keys may wait."""
SPARE_SLABS = 4
"""With several intakes it takes so many slabs more. The takes go on for the others meanwhile, and every pause throws
away what the client has fetched of the topic."""


class Intake:
    """See the module. The loop's thread alone uses it.

    Args:
        admission: of the routes that share topics.
        share: what it may hold of the byte budget.
        alone: there is no other intake.
        clock_ns: monotonic nanoseconds. cpu_ns: CPU time of the process.
        fetching: where its records get what they need from outside; None where no route needs anything.
    """

    def __init__(
        self,
        admission: Admission,
        share: Share,
        alone: bool,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        cpu_ns: Callable[[], int] = time.process_time_ns,
        fetching: Fetching | None = None,
    ) -> None:
        self.admission = admission
        self.share = share
        self.fetching = fetching
        self.topics = Topics(chain.from_iterable(route.topics for route in admission.rollouts))
        self.priority = max(route.priority for route in admission.rollouts)
        """The highest among its routes: they share the slab."""
        self.open = OpenSlab(share)
        self.paused = False
        """Its topics are not fetched."""
        self._rollouts = tuple(admission.rollouts.values())
        self._held_ns: int | None = None
        """Monotonic clock when it was first found to be held; None while it is not."""
        self.slab_records = 0
        """Most records in one slab: the largest figure among its servables. A slab ends earlier where a route has
        reached its own."""
        self.lanes: tuple[Lane, ...] = ()
        """Where its batches run."""
        self._spare_slabs = 0 if alone else SPARE_SLABS
        self._max_wait_ns = int(min(route.max_wait_s for route in admission.rollouts) * 1e9)
        self._pace = Pace(self._max_wait_ns / 1e9, clock_ns, cpu_ns)
        self._starved_at: int | None = None
        """What the share had freed when the first record of the open slab was found too large for what is free."""
        self._keep = Keep([*admission.rollouts], admission.route_of)
        self.newest_only = self._keep.newest_only
        """Its records are worth taking while none can be submitted: newer ones take the place of those that wait."""
        self._servables: Mapping[Route, Servable] = {}
        self._largest_cost = self._largest_record = 0
        self._kept_bytes = 0
        """What payloads leave free."""
        self._follow({route: rollout.choose() for route, rollout in admission.rollouts.items()})

    def __repr__(self) -> str:
        return f"<Intake of {', '.join(sorted(self.topics))}: {len(self.open)} records open, {self.share.held} bytes>"

    def append(
        self, columns: Columns, spans: list[Span], now_ns: int, now_ms: float, thin: bool = True
    ) -> Sequence[LeftOut]:
        """Add a take, or its part of one, to the open slab.

        Args:
            now_ns: monotonic nanoseconds. now_ms: Unix milliseconds.
            thin: leave out what ``input.keep`` does not keep.

        Returns:
            The records that were left out.
        """
        told: list[LeftOut] = []
        thin = thin and bool(self._keep)
        if thin:
            columns, spans, told = self._keep.sparse(columns, spans)
        if self.fetching is None or self.fetching.passes(columns):
            self.open.append(columns, spans, now_ns, now_ms)
        else:
            routes, deadlines_ms = self.admission.routed(columns), self.admission.deadlines(columns)
            self.fetching.append(columns, spans, routes, dict(deadlines_ms), now_ns)
        if thin:
            told += self.open.thin(self._keep)
        if self.share.guaranteed:
            self._keep_free(0, largest_bytes(columns.values) + HELD_RECORD_BYTES)
        return told

    def fetch(self, now_ns: int, now_ms: float, in_flight: bool, thin: bool) -> Sequence[LeftOut]:
        """Go on with what its records need from outside; those that have it join the open slab.

        Args:
            in_flight: there are slabs in flight, of this intake or others.
            thin: leave out what ``input.keep`` does not keep.

        Returns:
            The records that were left out.
        """
        if self.fetching is None or not (len(self.fetching) or self.fetching.active):
            return ()
        columns, spans = self.fetching.turn(lambda: self.free_for_payloads, in_flight)
        if not columns.values:
            return ()
        self.open.append(columns, spans, now_ns, now_ms)
        return self.open.thin(self._keep) if thin and self._keep else ()

    # -- whether it may go on at all ---------------------------------------------------------------------

    @property
    def held(self) -> bool:
        """Whether none of its records is to be answered now, because those of one of its routes are not."""
        return any(rollout.held for rollout in self._rollouts)

    def held_s(self, now_ns: int) -> float | None:
        """Seconds since it was first found to be held; None while it is not. To be asked at least once a second."""
        if not self.held:
            self._held_ns = None
            return None
        self._held_ns = now_ns if self._held_ns is None else self._held_ns
        return (now_ns - self._held_ns) / 1e9

    # -- what it has room for ----------------------------------------------------------------------------

    def room(self) -> int:
        """Records that may still come; none when the share of the byte budget is used up."""
        if self.share.free <= self._kept_bytes:
            return 0
        return self._most - len(self.open) + self._room_ahead()

    def _room_ahead(self) -> int:
        """Records that may wait for something outside beside those of the open slab."""
        if self.fetching is None:
            return 0
        return max(2 * self.fetching.most_calls, self.slab_records) - len(self.fetching)

    @property
    def _most(self) -> int:
        """Records that the open slab takes."""
        return max(self.slab_records, NEWEST_RECORDS) if self.newest_only else self.slab_records

    @property
    def _filled(self) -> bool:
        """Whether a slab of the open one would be as large as may be."""
        return len(self.open) >= self.slab_records or self.share.free <= self._kept_bytes

    @property
    def free_for_payloads(self) -> int:
        """Bytes that records may still take."""
        return self.share.free - self._kept_bytes

    def full(self) -> bool:
        """Whether nothing more may come, not even what is fetched already."""
        spare = SPARE_RECORDS + self._spare_slabs * self.slab_records
        most = self._most + spare + self._room_ahead()
        return self.share.free <= self._kept_bytes or len(self.open) >= most

    def relaxed(self) -> bool:
        """Whether half of what it may hold is free."""
        return self.share.held <= self.share.free

    # -- when its open slab should go --------------------------------------------------------------------

    def wait_at_most(self, wait_s: Mapping[str, float]) -> None:
        """Let the open slab wait for company so long at most, from now on.

        Args:
            wait_s: by the name of each pipeline; the shortest of its own counts.
        """
        longest_s = min(wait_s[route.name] for route in self.admission.rollouts)
        self._max_wait_ns = int(longest_s * 1e9)
        self._pace.keep_apart(longest_s)

    def left_s(self, now_ns: int) -> float:
        """Seconds until the open slab should go, full or not."""
        latest_ns = self.open.first_ns + self._max_wait_ns
        return (min(latest_ns, self._pace.next_ns) - now_ns) / 1e9

    def pace_left_s(self, now_ns: int) -> float:
        """Seconds until the next slab may follow the one before it."""
        return (self._pace.next_ns - now_ns) / 1e9

    def complete(self, now_ns: int, in_flight: bool) -> bool:
        """Whether the open slab is full, or has waited long enough.

        Args:
            in_flight: there are slabs in flight, of this intake or others.
        """
        if not self._filled:
            return self.left_s(now_ns) <= 0
        # Bytes that slabs in flight hold come back. When nothing is in flight, waiting would be for ever.
        return self.share.free > 0 or not in_flight

    def starves(self, in_flight: bool) -> bool:
        """Whether its first record is too large for what is free, and nothing was freed since that was found.

        With nothing in flight one record may go whatever it costs.
        """
        return in_flight and self._starved_at == self.share.freed

    def hungry(self) -> bool:
        """Whether it needs bytes that others hold: nothing of its own is in flight, and its records cannot go."""
        if self.fetching is not None and self.fetching.starved:
            return True
        waits = self._starved_at is not None or self.share.free <= 0
        unsubmitted = self.open.claim.nbytes + (self.fetching.claim.nbytes if self.fetching else 0)
        return waits and len(self.open) > 0 and self.share.held == unsubmitted

    def close(
        self, now_ms: float, most: int, in_flight: bool, refused: Rejection | None = None
    ) -> Slab | None:
        """The open slab, as much of it as may go; None when its first record does not fit the budget now.

        Args:
            now_ms: Unix milliseconds, for deadlines.
            most: most records that may go.
            refused: these records are not to be decoded, for this reason.
        """
        self._pace.closed(full=self._filled)
        most = min(most, self.slab_records)
        slab = self.open.close(self.admission, self.share.free, now_ms, most, not in_flight, refused)
        self._starved_at = self.share.freed if slab is None else None
        if slab is not None:
            self._follow(slab.servables)
            for batch in slab.batches:
                self._keep_free(batch.cost_bytes // len(batch), 0)
        return slab

    def _follow(self, servables: Mapping[Route, Servable]) -> None:
        """Take over the figures of those who answer now."""
        if servables == self._servables:
            return
        self._servables = dict(servables)
        self.slab_records = max(servable.slab_records for servable in servables.values())
        self.lanes = tuple(dict.fromkeys(servable.lane for servable in servables.values()))
        self._keep_free(max(servable.item_nbytes for servable in servables.values()), 0)

    def _keep_free(self, cost_bytes: int, record_bytes: int) -> None:
        """Keep so many bytes free of payloads.

        Args:
            cost_bytes: what a record needs to be worked on. Otherwise the first record of a full open slab would go
                beyond the budget.
            record_bytes: the size of a record, beside other intakes. A take may end with one record beyond what was
                asked for. It must not take bytes of another intake, which may be stuck.
        """
        guaranteed = self.share.guaranteed
        self._largest_cost = max(
            self._largest_cost, min(cost_bytes, (guaranteed or self.share.limit_bytes) // 2)
        )
        self._largest_record = max(self._largest_record, min(record_bytes, guaranteed // 4))
        self._kept_bytes = self._largest_cost + self._largest_record
