"""When too many records are bad the worker stops: a bad deploy is not bad data, and must not empty the topic."""

from __future__ import annotations

from collections import Counter, deque
from typing import NamedTuple

from worker.batch import Partition
from worker.errors import Rejection
from worker.loop.laying import Sheet
from worker.text import one_line

SAMPLES = 3
"""Bad records that the last sentence names."""


class Bad(NamedTuple):
    """A dead letter that counts."""

    seen: int
    """How many records had been seen when it was, itself included."""
    partition: Partition
    offset: int
    why: Rejection

    def __str__(self) -> str:
        place = f"{self.partition.topic}/{self.partition.number}/{self.offset}"
        return f"{place} {self.why.reason} ({one_line(self.why.message)})"


class Trip(NamedTuple):
    """The limit was reached."""

    row: int
    """Row of the sheet at which it was; the rows behind it were not counted."""
    sentence: str


class DeadLetterRate:
    """The share of dead letters among the last records.

    Args:
        ratio: share of dead letters at which the worker stops; None: it never does.
        of_last: over how many of the last records.
        from_seen: how many records must have been seen before anything is judged.
    """

    def __init__(self, ratio: float | None, of_last: int, from_seen: int = 100) -> None:
        self._ratio = ratio
        self._of_last = of_last
        self._from_seen = from_seen
        self._seen = 0
        self._bad: deque[Bad] = deque()
        """The bad ones among the last ``of_last`` records."""

    def judge_by(self, ratio: float | None, of_last: int) -> None:
        """From the next record on, judge by other figures. What was counted so far counts as far as ``of_last`` reached; when the
        limit is switched off, it is forgotten."""
        self._ratio, self._of_last = ratio, of_last
        if ratio is None:  # what is not counted meanwhile would make old records look like recent ones
            self._seen = 0
            self._bad.clear()

    def count(self, sheet: Sheet) -> Trip | None:
        """Count the live rows of a sheet, up to the one at which the limit is reached."""
        if self._ratio is None:
            return None
        for span in sheet.spans:
            before, self._seen = self._seen, self._seen + span.stop - span.start
            # The share rises only at a bad record. Judging begins at one certain record, good or bad.
            rows = [row for row in sheet.outcomes.rejected if span.start <= row < span.stop]
            if before < self._from_seen <= self._seen:
                rows.append(span.start + self._from_seen - before - 1)
            for row in sorted({*rows}):
                seen = before + 1 + row - span.start
                why = sheet.outcomes.rejected.get(row)
                if why is not None:
                    self._bad.append(
                        Bad(seen, sheet.columns.partitions[row], sheet.columns.offsets[row], why)
                    )
                if self._reached(seen):
                    return Trip(row, self._sentence(seen))
        return None

    def _reached(self, seen: int) -> bool:
        assert self._ratio is not None
        while self._bad and self._bad[0].seen <= seen - self._of_last:
            self._bad.popleft()
        return seen >= self._from_seen and len(self._bad) >= self._ratio * min(seen, self._of_last) > 0

    def _sentence(self, seen: int) -> str:
        reasons = Counter(bad.why.reason for bad in self._bad).most_common()
        # The last one of each reason, the most frequent reason first; then whatever else came last.
        newest = {bad.why.reason: bad for bad in self._bad}
        samples = [newest[reason] for reason, _ in reasons]
        samples += [bad for bad in reversed(self._bad) if bad not in samples]
        return (
            f"{len(self._bad)} of the last {min(seen, self._of_last)} records are dead letters, "
            f"dead_letter.stop_after.ratio is {self._ratio}: "
            + ", ".join(f"{count} {reason}" for reason, count in reasons)
            + "; for example "
            + ", ".join(map(str, samples[:SAMPLES]))
        )
