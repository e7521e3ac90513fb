"""Exactly once: outputs, dead letters and positions are one transaction; a slab belongs to exactly one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, Protocol

from worker.batch import Partition
from worker.errors import DeliveryFailed, TransactionFailed
from worker.loop.delivery import Annotate
from worker.loop.slab import Slab
from worker.loop.tasks import Spawn
from worker.loop.window import Window

TICK_S = 0.1
"""Time between two looks at a commit that may never return."""


class Transactions(Protocol):
    """A transactional producer together with the consumer's group."""

    def begin(self) -> None:
        """Open a transaction.

        Raises:
            TransactionFailed: the producer cannot.
        """

    def group(self) -> Any:
        """The group metadata of this moment; asked for on the loop's thread."""

    def commit(self, positions: dict[Partition, int], metadata: dict[Partition, str], group: Any) -> None:
        """Make outputs and positions visible together. Blocks, and may be called on another thread.

        Raises:
            TransactionFailed: they are not visible, or the outcome is unknown.
        """

    @property
    def hung(self) -> bool:
        """Whether a call has outlived its own time-out, so that it may never return."""

    def abort(self) -> None:
        """Give up the open transaction. Afterwards a new one can begin, on a new producer if need be. Blocks.

        Raises:
            WorkerError: no producer can be had any more.
        """

    def committed(self, partitions: Collection[Partition]) -> dict[Partition, int | None] | None:
        """The committed position of each partition (None = it has none); None when the broker does not answer now."""


class ExactlyOnce:
    """See the module and :class:`worker.loop.delivery.Delivery`.

    A commit takes several round trips, so it runs beside the loop, which goes on taking, decoding and inferring.
    Only publishing waits for it. A transaction is undone beside the loop too: that may have to wait for the broker
    to come back, and the group could not rebalance if the loop did not go on polling.

    Args:
        interval_s: longest time from a transaction's first output to its commit, which is what a reader waits.
        most_records: a transaction of this many records is committed at once.
        patience_s: longest time the loop itself waits for a commit.
        clock_ns: the monotonic clock.
        count: told how each transaction ended: ``committed``, ``aborted``, ``fenced`` or ``unknown``.
        spawn: starts the calls that block.
        annotate: gives the metadata of committed positions.
    """

    def __init__(
        self,
        transactions: Transactions,
        interval_s: float,
        most_records: int,
        patience_s: float,
        clock_ns: Callable[[], int],
        count: Callable[[str], None],
        spawn: Spawn,
        annotate: Annotate = lambda _positions: {},
    ) -> None:
        self.commits = 0
        self._annotate = annotate
        self._transactions = transactions
        self._interval_ns = int(interval_s * 1e9)
        self._most_records = most_records
        self._patience_s = patience_s
        self._clock_ns = clock_ns
        self._count = count
        self._spawn = spawn
        self._begun = False
        self._began_ns = 0
        self._partial: Slab | None = None
        """A slab of which the producer has some outputs and not all: no commit may come between them."""
        self._slabs: list[Slab] = []
        """Slabs that are whole in the open transaction."""
        self._records = 0
        self._committing: _Committing | None = None
        self._undoing: _Undoing | None = None
        self._done: list[Slab] = []
        """Slabs committed or given up, and not returned by :meth:`acknowledged` yet."""
        self._lost: list[Partition] = []
        self._in_doubt = False
        """A commit got no clear answer: its outputs may be visible."""

    def bound(self, interval_s: float, most_records: int, patience_s: float) -> None:
        """Bound transactions otherwise; see the class. The one that is open counts from its own beginning."""
        self._interval_ns, self._most_records = int(interval_s * 1e9), most_records
        self._patience_s = patience_s

    @property
    def waiting(self) -> bool:
        return bool(self._slabs or self._committing)

    @property
    def ready(self) -> bool:
        return self._committing is None and self._undoing is None

    def on_delivery(self, slab: Slab) -> None:
        if not self._begun:
            self._begin()
            self._began_ns = self._clock_ns()
        self._partial = slab

    def handed_over(self, slab: Slab) -> None:
        if not self._slabs and not self._begun:
            self._began_ns = self._clock_ns()
        if self._partial is slab:
            self._partial = None
        slab.receipt.acknowledge_all()
        slab.receipt.close()
        self._slabs.append(slab)
        self._records += len(slab.routes)

    def acknowledged(self) -> list[Slab]:
        if self._undoing is not None:
            return []  # slabs that were given up may be reported only once the window has gone back
        if self._committing is not None and (self._committing.done or self._transactions.hung):
            self._done += self._conclude()
        self._refuse_lost()
        return self._report()

    def due(self, now_ns: int) -> bool:
        if not self._slabs or self._partial is not None or not self.ready:
            return False
        return now_ns - self._began_ns >= self._interval_ns or self._records >= self._most_records

    def commit(self, window: Window, wait: bool) -> list[Slab]:
        if self._undoing is not None:
            return []
        if self._committing is not None:
            self._done += self._conclude()
        self._refuse_lost()
        if self._partial is not None:
            raise DeliveryFailed("handover", "a slab was handed over in part when its partitions had to go")
        if self._slabs:
            self._start(window)
        if self._committing is not None and wait:
            self._done += self._conclude()
        return self._report()

    def hurry(self, window: Window) -> list[Slab]:
        ready = self._slabs and self._partial is None and self.ready
        return self.commit(window, wait=True) if ready else []

    def lost(self, partitions: Iterable[Partition]) -> None:
        if self._undoing is None and (self._begun or self._committing is not None):
            self._lost += partitions

    def abandon(self) -> None:
        if self._undoing is not None:
            return
        committing, begun = self._committing, self._begun or self._partial is not None
        self._done += self._slabs + (committing.slabs if committing is not None else [])
        self._committing, self._slabs, self._records, self._lost = None, [], 0, []
        self._partial, self._begun = None, False
        self._in_doubt = self._in_doubt or committing is not None
        self._undoing = _Undoing(self._transactions, committing, begun, self._spawn)

    def recovered(self, window: Window) -> dict[Partition, int] | None:
        if self._undoing is None or not self._undoing.done:
            return None
        ended = self._undoing.result()
        truth = self._transactions.committed(window.owned)
        if truth is None:
            return None
        for result in ended:
            self._count(result)
        self._undoing = None
        for slab in self._done:
            # A commit that got no clear answer may have worked. After a clear refusal a position beyond the slab is that
            # of another process, which has answered its records.
            spans = slab.live_spans(window.epochs) if self._in_doubt else []
            slab.receipt.committed = [
                span for span in spans if span.next_offset <= (truth.get(span.partition) or 0)
            ]
        self._in_doubt = False
        return window.rewind(truth)

    def _refuse_lost(self) -> None:
        """Outputs of lost partitions must not be committed: their next owner answers those records."""
        if self._lost:
            lost, self._lost = self._lost, []
            names = ", ".join(f"{p.topic}/{p.number}" for p in lost)
            raise DeliveryFailed(
                "lost", f"partitions with outputs in the open transaction were lost: {names}"
            )

    def _report(self) -> list[Slab]:
        """Slabs for which nothing is awaited any more. They are kept until asked for, whatever fails meanwhile."""
        done, self._done = self._done, []
        return done

    def _begin(self) -> None:
        self._begun = True  # also when it fails: then there is something to give up
        try:
            self._transactions.begin()
        except TransactionFailed as failure:
            raise DeliveryFailed("transaction", str(failure)) from failure

    def _start(self, window: Window) -> None:
        positions: dict[Partition, int] = {}
        for slab in self._slabs:
            # Not in order: a slab without outputs is handed over before one that waits for the producer's queue.
            for partition, end in slab.turn.ends.items():
                positions[partition] = max(end, positions.get(partition, end))
        if not positions and not self._begun:
            # A rewind or a revocation took every partition away. Do not commit an empty transaction: it would
            # count as a commit and reset the number of rewinds in a row.
            self._done += self._slabs
            self._slabs, self._records = [], 0
            return
        if not self._begun:
            self._begin()  # nothing to publish, only positions to move
        notes = self._annotate(positions)
        self._committing = _Committing(self._transactions, positions, notes, self._slabs, window, self._spawn)
        self._slabs, self._records, self._begun = [], 0, False

    def _conclude(self) -> list[Slab]:
        """Wait for the commit under way; returns the slabs it made visible.

        Raises:
            DeliveryFailed: it failed, or there is no answer: the transaction is still to be undone.
        """
        committing = self._committing
        assert committing is not None
        if not committing.wait(0.0 if self._transactions.hung else self._patience_s):
            raise DeliveryFailed("transaction", "the client does not return from a commit")
        self._committing = None
        failure = committing.result()
        if failure is not None:
            self._begun = True
            self._done += committing.slabs
            if failure.result != "aborted":
                self._in_doubt = True
                self._count(failure.result)
            raise DeliveryFailed("transaction", str(failure))
        self._count("committed")
        committing.window.committed(committing.positions)
        self.commits += 1
        return committing.slabs


class _Committing:
    """One commit under way beside the loop."""

    def __init__(
        self,
        transactions: Transactions,
        positions: dict[Partition, int],
        notes: dict[Partition, str],
        slabs: list[Slab],
        window: Window,
        spawn: Spawn,
    ) -> None:
        self._notes = notes
        self.positions = positions
        self.slabs = slabs
        self.window = window
        self._transactions = transactions
        self._group = transactions.group()
        self._error: BaseException | None = None
        self._task = spawn("commit", self._run)

    @property
    def done(self) -> bool:
        return self._task.done

    def wait(self, timeout_s: float) -> bool:
        return self._task.wait(timeout_s)

    def result(self) -> TransactionFailed | None:
        if self._error is None or isinstance(self._error, TransactionFailed):
            return self._error
        raise self._error

    def _run(self) -> None:
        try:
            self._transactions.commit(self.positions, self._notes, self._group)
        except BaseException as error:  # whatever it is, the loop must hear of it
            self._error = error


class _Undoing:
    """A transaction that is given up beside the loop, after the commit that may still be under way."""

    def __init__(
        self, transactions: Transactions, committing: _Committing | None, begun: bool, spawn: Spawn
    ) -> None:
        self._transactions = transactions
        self._committing = committing
        self._begun = begun
        self._ended: list[str] = []
        self._error: BaseException | None = None
        self._task = spawn("undo", self._run)

    @property
    def done(self) -> bool:
        return self._task.done

    def result(self) -> list[str]:
        """How the transactions ended, for the counter.

        Raises:
            WorkerError: no producer can be had any more.
        """
        if self._error is not None:
            raise self._error
        return self._ended

    def _run(self) -> None:
        try:
            if self._committing is not None:
                self._ended.append(self._fate(self._committing))
                self._begun = self._ended != ["committed"]
            if self._begun:
                self._transactions.abort()
                if not self._ended:
                    self._ended.append("aborted")
        except BaseException as error:  # whatever it is, the loop must hear of it
            self._error = error

    def _fate(self, committing: _Committing) -> str:
        while not committing.wait(TICK_S):
            if self._transactions.hung:
                return "unknown"
        failure = committing.result()
        return "committed" if failure is None else failure.result
