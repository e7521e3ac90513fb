"""When outputs count as delivered and how positions are committed: the two delivery guarantees as two objects.

:class:`AtLeastOnce` counts acknowledgements per slab and commits positions of settled slabs at an interval.
:class:`ExactlyOnce` puts outputs and positions into one transaction; a slab belongs to exactly one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable
from typing import Any, Protocol

from worker.batch import Partition
from worker.errors import DeliveryFailed, TransactionFailed
from worker.loop.window import Slab, Window

TICK_S = 0.1
"""Between two looks at a commit that may never come back."""

Annotate = Callable[[dict[Partition, int]], dict[Partition, str]]
"""Positions about to be committed -> the metadata of those that get any."""


class Commits(Protocol):
    """The part of a source that commits."""

    def commit(
        self, positions: dict[Partition, int], wait: bool, metadata: dict[Partition, str]
    ) -> dict[Partition, int]:
        """Ask the broker to take these positions, with a note each; returns what it confirmed so far.

        With ``wait`` the answer is complete (a partition missing from it was refused); without, confirmations
        arrive through :meth:`confirmed`.
        """

    def confirmed(self) -> dict[Partition, int]:
        """Positions confirmed since the last call."""


class Purges(Protocol):
    """The part of a sink that gives up."""

    def poll(self, timeout_s: float = 0.0) -> None: ...

    def purge(self) -> None: ...


class Delivery(Protocol):
    """What the conductor needs of a delivery guarantee."""

    commits: int
    """Commits confirmed since the conductor last looked."""

    @property
    def waiting(self) -> bool:
        """Whether outputs are handed over and not acknowledged."""

    @property
    def ready(self) -> bool:
        """Whether outputs may be handed to the producer now (not while a transaction is being committed or undone)."""

    def on_delivery(self, slab: Slab) -> Callable[..., None] | None:
        """What the producer calls per output, or for several with their number; the slab's transaction, if there are any, is open from here on."""

    def handed_over(self, slab: Slab) -> None:
        """Every output of the slab is with the producer."""

    def settled(self) -> list[Slab]:
        """Slabs whose every output was acknowledged since the last call.

        Raises:
            DeliveryFailed: an output was refused for good.
        """

    def due(self, now_ns: int) -> bool: ...

    def commit(self, window: Window, wait: bool) -> list[Slab]:
        """Commit what may be committed; returns slabs that this settled."""

    def hurry(self, window: Window) -> list[Slab]:
        """Settle what is handed over without waiting for the interval (a revocation or a drain waits for it)."""

    def lost(self, partitions: Iterable[Partition]) -> None:
        """These may have another owner: nothing of them may become visible any more."""

    def abandon(self) -> None:
        """Begin to give up every output on its way; nothing is settled or committed until that is done."""

    def recovered(self, window: Window) -> dict[Partition, int] | None:
        """After :meth:`abandon`: rewind the window; where to read from again. None while that is not known yet.

        Raises:
            WorkerError: no outputs can be delivered any more.
        """


class AtLeastOnce:
    """Acknowledgements counted per slab, positions committed behind them.

    Args:
        interval_s: time between commits; what a killed process may repeat.
        annotate: what to note beside committed positions.
    """

    def __init__(
        self,
        source: Commits,
        sink: Purges,
        interval_s: float,
        clock_ns: Callable[[], int],
        annotate: Annotate = lambda _positions: {},
    ) -> None:
        self._annotate = annotate
        self.commits = 0
        self._source = source
        self._sink = sink
        self._interval_ns = int(interval_s * 1e9)
        self._clock_ns = clock_ns
        self._last_ns = clock_ns()
        self._pending = 0
        self._done: list[Slab] = []
        self._refused: DeliveryFailed | None = None

    @property
    def waiting(self) -> bool:
        return self._pending > 0

    @property
    def ready(self) -> bool:
        return True

    def on_delivery(self, slab: Slab) -> Callable[..., None]:
        done = self._done

        def acknowledged(error: Any, _message: Any, rows: int = 1) -> None:
            if error is not None and slab.ends:
                self._refused = DeliveryFailed("delivery", f"an output was refused for good: {error}")
            if slab.receipt.acknowledge(rows):
                done.append(slab)

        return acknowledged

    def handed_over(self, slab: Slab) -> None:
        self._pending += 1
        if slab.receipt.close():
            self._done.append(slab)  # acknowledged already, or nothing to publish at all

    def settled(self) -> list[Slab]:
        if self._refused is not None:
            failure, self._refused = self._refused, None
            raise failure
        settled = self._done[:]
        self._done.clear()
        self._pending -= len(settled)
        return settled

    def due(self, now_ns: int) -> bool:
        return now_ns - self._last_ns >= self._interval_ns

    def commit(self, window: Window, wait: bool) -> list[Slab]:
        self._last_ns = self._clock_ns()
        confirmed = self._source.confirmed()
        window.committed(confirmed)
        positions = window.committable()
        if positions:
            confirmed |= self._source.commit(positions, wait, self._annotate(positions))
            window.committed(confirmed)
        self.commits += bool(confirmed)
        return []

    def hurry(self, window: Window) -> list[Slab]:
        return []

    def lost(self, partitions: Iterable[Partition]) -> None:
        """Outputs on their way may still arrive: at least once."""

    def abandon(self) -> None:
        self._sink.purge()
        self._sink.poll()
        self._refused = None

    def recovered(self, window: Window) -> dict[Partition, int]:
        return window.rewind()  # what we settled ourselves is the truth


class Transactions(Protocol):
    """A transactional producer with the consumer's group behind it."""

    def begin(self) -> None: ...

    def group(self) -> Any:
        """The group metadata of this moment; asked for on the conductor's thread."""

    def commit(self, positions: dict[Partition, int], metadata: dict[Partition, str], group: Any) -> None:
        """Make outputs and positions visible together; blocks, and may be called on another thread.

        Raises:
            TransactionFailed: it was not, or the outcome is unknown.
        """

    @property
    def hung(self) -> bool:
        """Whether a call has outlived its own time-out: it may never return."""

    def abort(self) -> None:
        """Give up the open transaction; afterwards a new one can begin, on a new producer where need be.

        Raises:
            WorkerError: no producer can be had any more.
        """

    def committed(self, partitions: Collection[Partition]) -> dict[Partition, int | None] | None:
        """What the broker has as committed (None = nothing yet); None when it does not say now."""


class ExactlyOnce:
    """Outputs, dead letters and positions in one transaction.

    The commit runs on a thread of its own: it takes several round trips, and taking, decoding and inferring go on
    meanwhile. Only publishing waits for it. So does the undoing of a transaction, which may have to wait for the
    broker to come back: the conductor goes on serving the group, which could not rebalance without it.

    Args:
        interval_s: longest time from a transaction's first output to its commit: what a reader waits.
        most_records: a transaction of this many records is committed at once.
        patience_s: longest time the conductor itself waits for a commit.
        count: told how each transaction ended.
        annotate: what to note beside committed positions.
    """

    def __init__(
        self,
        transactions: Transactions,
        interval_s: float,
        most_records: int,
        patience_s: float,
        clock_ns: Callable[[], int],
        count: Callable[[str], None],
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
        self._begun = False
        self._began_ns = 0
        self._partial: Slab | None = None
        """A slab of which the producer has some outputs and not all: no commit may come between them."""
        self._slabs: list[Slab] = []
        """Slabs whole in the open transaction."""
        self._records = 0
        self._committing: _Committing | None = None
        self._undoing: _Undoing | None = None
        self._done: list[Slab] = []
        """Committed or given up, and not reported yet."""
        self._lost: list[Partition] = []

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

    def settled(self) -> list[Slab]:
        if self._undoing is not None:
            return []  # what was given up may count as settled only once the window has gone back
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
        self._undoing = _Undoing(self._transactions, committing, begun)

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
        for slab in self._done:  # a commit without an answer may have worked
            spans = slab.live_spans(window.epochs)
            slab.receipt.committed = [
                span for span in spans if span.next_offset <= (truth.get(span.partition) or 0)
            ]
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
        """Slabs nothing is awaited for any more, each once; kept until asked for, whatever fails meanwhile."""
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
            # not in order: a slab without outputs is handed over before one that waits for the producer's queue
            for partition, end in slab.ends.items():
                positions[partition] = max(end, positions.get(partition, end))
        if not positions and not self._begun:
            # given up by a rewind or taken from us while they were worked on; an empty transaction costs the client
            # nothing and would pass for a commit: a rewind after the other would count as the first in a row
            self._done += self._slabs
            self._slabs, self._records = [], 0
            return
        if not self._begun:
            self._begin()  # nothing to publish, only positions to move
        notes = self._annotate(positions)
        self._committing = _Committing(self._transactions, positions, notes, self._slabs, window)
        self._slabs, self._records, self._begun = [], 0, False

    def _conclude(self) -> list[Slab]:
        """Wait for the commit under way; the slabs it settled.

        Raises:
            DeliveryFailed: it failed, or there is no answer: the transaction is still to be undone.
        """
        committing = self._committing
        assert committing is not None
        if not committing.wait(0.0 if self._transactions.hung else self._patience_s):
            raise DeliveryFailed("transaction", "the client does not come back from a commit")
        self._committing = None
        failure = committing.result()
        if failure is not None:
            self._begun = True
            self._done += committing.slabs
            if failure.result != "aborted":
                self._count(failure.result)
            raise DeliveryFailed("transaction", str(failure))
        self._count("committed")
        committing.window.committed(committing.positions)
        self.commits += 1
        return committing.slabs


class _Committing:
    """One commit under way on its own thread."""

    def __init__(
        self,
        transactions: Transactions,
        positions: dict[Partition, int],
        notes: dict[Partition, str],
        slabs: list[Slab],
        window: Window,
    ) -> None:
        self._notes = notes
        self.positions = positions
        self.slabs = slabs
        self.window = window
        self._transactions = transactions
        self._group = transactions.group()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="commit", daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def wait(self, timeout_s: float) -> bool:
        self._thread.join(timeout_s)
        return self.done

    def result(self) -> TransactionFailed | None:
        if self._error is None or isinstance(self._error, TransactionFailed):
            return self._error
        raise self._error

    def _run(self) -> None:
        try:
            self._transactions.commit(self.positions, self._notes, self._group)
        except BaseException as error:  # whatever it is, the conductor must hear of it
            self._error = error


class _Undoing:
    """A transaction being given up on a thread of its own, after the commit that may still be under way."""

    def __init__(self, transactions: Transactions, committing: _Committing | None, begun: bool) -> None:
        self._transactions = transactions
        self._committing = committing
        self._begun = begun
        self._ended: list[str] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="undo", daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

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
        except BaseException as error:  # the conductor must hear of it
            self._error = error

    def _fate(self, committing: _Committing) -> str:
        while not committing.wait(TICK_S):
            if self._transactions.hung:
                return "unknown"
        failure = committing.result()
        return "committed" if failure is None else failure.result
