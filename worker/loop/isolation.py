"""Records under caution, one at a time: nothing else is worked on in the whole process beside such a record.

:mod:`worker.loop.caution` knows which records these are and counts attempts. This object makes the loop obey: what
has to wait, what is committed before a record is begun, and when a record is behind us.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from worker.batch import Batch, Partition
from worker.errors import Rejection, class_path
from worker.loop.caution import Caution
from worker.loop.slab import Slab
from worker.loop.window import Window

Place = tuple[Partition, int]
"""Where a record comes from: partition and offset."""


class Commits(Protocol):
    """The part of a source that commits notes."""

    def commit(
        self, positions: dict[Partition, int], wait: bool, metadata: dict[Partition, str]
    ) -> dict[Partition, int]: ...


class Isolation:
    """See the module. The loop's thread alone uses it."""

    def __init__(self, caution: Caution, source: Commits, window: Window) -> None:
        self.caution = caution
        self.given_up: Slab | None = None
        """A record that gets a dead letter because it killed too often. It is committed before the next one is begun."""
        self._alone: Slab | None = None
        """One record under caution that is being worked on."""
        self._source = source
        self._window = window

    def holds_back(self, first: Place, outstanding: int, ready: bool) -> bool:
        """Whether a slab that begins with this record must wait.

        Args:
            outstanding: batches in the pool.
            ready: outputs may be handed to the producer; no transaction is being committed or undone.
        """
        if self.given_up is not None:
            return True
        if not self.caution:
            return False
        if not ready:
            return True  # a note committed now would carry the position from before the transaction
        careful = self.caution.covers(*first)
        return outstanding > 0 and (careful or self._alone is not None)

    def refusal(self, first: Place) -> Rejection | None:
        """Why this record is not worked on: it killed the process too often. None: it may be worked on."""
        partition, offset = first
        if not self.caution.covers(partition, offset):
            return None
        attempts = self.caution.attempts(partition, offset)
        if attempts < self.caution.max_crashes:
            return None
        message = f"the process died {attempts - 1} times while it worked on this record"
        if self.caution.timed_out(partition, offset):
            message += ", the last time because the run took longer than limits.batch_timeout_s"
        return Rejection("crashed", "decode", message, class_path(self), "", attempts)

    def passed_over(self, begins: Iterable[Place]) -> None:
        """A slab that begins each partition here is closed: records under caution before it are behind us, or gone."""
        for partition, offset in begins:
            self.caution.survived(partition, offset)

    def begin(self, slab: Slab, first: Place, refused: bool) -> None:
        """The slab is about to be worked on: commit the notes that the next process would need."""
        careful = self.caution.covers(*first)
        if careful:
            self.caution.begin(*first)
        if self.caution.outdated:
            notes = self.caution.notes()
            positions = {partition: self._window.resume_at(partition) for partition in notes}
            self._window.committed(self._source.commit(positions, True, notes))
        if refused:
            self.given_up = slab
        elif careful and slab.batches:
            self._alone = slab
        elif careful:
            self._passed(slab)

    def returned(self, batch: Batch) -> None:
        """A batch is back from the pool."""
        if batch.slab is self._alone and self._alone is not None:
            self._passed(self._alone)

    def committed(self) -> None:
        """Everything in flight is committed, the dead letter of a record that was given up included."""
        if self.given_up is not None:
            self._passed(self.given_up)

    def forget(self) -> None:
        """A rewind: a record that was given up is read again, and given up again."""
        self.given_up = None

    def _passed(self, slab: Slab) -> None:
        """The one record of this slab is behind us."""
        for span in slab.live_spans(self._window.epochs):
            self.caution.survived(span.partition, span.next_offset)
        self._alone = self.given_up = None
