"""A candidate that answers every record as well, on a thread of its own, to be compared with the stable version.

It gets a batch when the stable version has answered it, and never holds anything up: while it is busy, batches pass it by
and are counted. What the stable version has decoded is not decoded again where both read records alike.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import Any, cast

import orjson
import structlog

from worker.batch import Answered, Array, Batch, Kept, Outcomes
from worker.batch import Servable as AnyServable
from worker.encode.rows import item_spans
from worker.errors import Postponed, Rejection
from worker.serving.agreement import agree
from worker.serving.engine import Engine
from worker.serving.servable import Servable
from worker.serving.trial import Trial

BATCHES_MAX = 3
"""Batches that may be on their way here: one that runs, one that waits, one that the stable version is at."""
COMPARE_SHARE = 0.02
"""Most of the time that comparing answers may take; beyond that, a batch is answered and not compared."""
COMPARED_ROWS = 256
"""Most records of a batch that are compared, evenly spread."""

log = structlog.get_logger()

Publish = Callable[[Batch], None]
"""Called on the shadow's thread with a batch that the candidate has answered; it must not raise."""


@dataclass(frozen=True, slots=True)
class _Work:
    twin: Batch
    kept: Kept
    """What the stable version's batch left behind."""
    theirs: Kept = field(default_factory=Kept)
    """What the candidate's batch leaves behind."""


class Shadow:
    """See the module. The loop's thread uses it, except where something else is said.

    Args:
        publish: gets the candidate's results; None: nobody wants them, and no bodies are made.
        tolerance: of numbers, see :func:`worker.serving.agreement.agree`.
    """

    def __init__(
        self,
        trial: Trial,
        publish: Publish | None = None,
        tolerance: float = 0.01,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._trial = trial
        self._publish = publish
        self._tolerance = tolerance
        self._clock_ns = clock_ns
        self._engine = Engine(clock_ns)
        self._alike: tuple[AnyServable | None, bool] = None, False
        """Who decoded the last batch, and whether the candidate reads records alike."""
        self._predicts: bool = getattr(trial.candidate.encoder, "predicts", False)
        self._under_way = 0
        """Places that are reserved."""
        self._todo: SimpleQueue[_Work | None] = SimpleQueue()
        self._done: deque[tuple[Batch, str | None, tuple[int, int]]] = deque()
        """With why the candidate is sick, and how many answers were compared and found to disagree."""
        self._thread: threading.Thread | None = None
        self._closing = False
        self._since_ns = clock_ns()
        self._comparing_ns = 0

    # -- for the loop's thread -----------------------------------------------------------------------------

    def reserve(self, batch: Batch) -> bool:
        """Keep a place for a batch that goes to the stable version; False: it passes by."""
        if self._under_way >= BATCHES_MAX:
            self.pass_by(batch)
            return False
        self._under_way += 1
        batch.kept = Kept()
        return True

    def pass_by(self, batch: Batch) -> None:
        """The candidate does not get this batch."""
        self._trial.tally.passed_by += len(batch)

    def release(self) -> None:
        """Nothing comes of a place that was kept."""
        self._under_way -= 1

    def start(self, twin: Batch, kept: Kept) -> None:
        """Answer a batch, for which a place was kept.

        Args:
            twin: the same records for the candidate. kept: what the stable version's batch left behind.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="shadow", daemon=True)
            self._thread.start()
        self._todo.put(_Work(twin, kept))

    def back(self) -> Iterator[tuple[Batch, str | None]]:
        """The batches that were started and are done now, each with why the candidate is sick, if it is."""
        while self._done:
            twin, sick, compared = self._done.popleft()
            self._under_way -= 1
            if sick is None:
                self._trial.tally.shadowed(twin, *compared)
            yield twin, sick

    def close(self, timeout_s: float) -> None:
        """Start nothing more, and wait so long for what runs."""
        self._closing = True
        self._todo.put(None)
        if self._thread is not None and timeout_s > 0:
            self._thread.join(timeout_s)

    # -- on the shadow's thread ------------------------------------------------------------------------------

    def _work(self) -> None:
        while (work := self._todo.get()) is not None:
            sick, compared = None, (0, 0)
            try:
                if not self._closing:
                    sick = self._answer(work)
                    compared = self._compare(work.kept, work.theirs) if sick is None else (0, 0)
            except Exception as error:  # a candidate must not cost the process anything
                log.exception("a shadow batch failed", pipeline=work.twin.route.name)
                sick = f"{type(error).__name__}: {error}"
            self._done.append((work.twin, sick, compared))
            del work  # its arrays must not live until the next one

    def _answer(self, work: _Work) -> str | None:
        """Take a batch through the candidate; why the candidate is sick, if it is."""
        twin = work.twin
        self._decode(twin, work.kept)
        twin.kept = work.theirs
        self._engine.infer(twin)
        if twin.sick is None and self._publish is None and twin.parts is None:
            self._predict(twin, work.theirs)
        elif twin.sick is None:
            self._engine.finish(twin)
        if twin.sick is None and self._publish is not None:
            self._publish(twin)
        return twin.sick

    def _predict(self, twin: Batch, theirs: Kept) -> None:
        """What the candidate says, without making results of it."""
        encoder = self._trial.candidate.encoder
        assert twin.feed is not None
        assert twin.outcomes is not None
        for run in twin.runs:
            fragments = encoder.predict(twin, run)
            theirs.answered.append(Answered(run, fragments, run.outputs, run.rows))
            twin.outcomes.rejected.update(
                (row, why) for row, why in zip(run.rows, fragments, strict=True) if isinstance(why, Rejection)
            )
        twin.outcomes.rejected.update(twin.feed.rejected)
        self._engine.check_candidate(twin)

    def _decode(self, twin: Batch, kept: Kept) -> None:
        feed = kept.feed  # none where some answers were in memory: these records were not decoded
        if feed is not None and self._alike[0] is not kept.servable:
            stable = cast("Servable", kept.servable)
            self._alike = stable, self._trial.candidate.reads_like(stable)
        if self._alike[1] and feed is not None:
            later = {row: why.rejection for row, why in feed.postponed.items()}
            twin.decode_started_ns = twin.decode_ended_ns = self._clock_ns()
            twin.feed = replace(feed, rejected=feed.rejected | later, postponed={})
            twin.outcomes = Outcomes.empty(len(twin))
            return
        for start, stop in self._engine.shards(twin):
            self._engine.decode(twin, start, stop)

    def _compare(self, ours: Kept, theirs: Kept) -> tuple[int, int]:
        """Compare some of the answers that both gave: how many, and how many of these disagree."""
        started_ns = self._clock_ns()
        if self._comparing_ns > COMPARE_SHARE * (started_ns - self._since_ns):
            return 0, 0
        stable, candidate = _by_row(ours, self._predicts), _by_row(theirs, self._predicts)
        rows = [row for row in stable if row in candidate]
        rows = rows[:: max(1, len(rows) // COMPARED_ROWS)]
        disagreed = sum(not self._same(stable[row], candidate[row]) for row in rows)
        self._comparing_ns += self._clock_ns() - started_ns
        return len(rows), disagreed

    def _same(self, one: Any, other: Any) -> bool:
        if isinstance(one, bytes) and isinstance(other, bytes):
            # Several items are joined by commas; one item is a list of one.
            return one == other or agree(
                orjson.loads(b"[%b]" % one), orjson.loads(b"[%b]" % other), self._tolerance
            )
        return agree(_as_lists(one), _as_lists(other), self._tolerance)


def _by_row(kept: Kept, predicts: bool) -> dict[int, Any]:
    """What was answered to each row: the prediction as JSON, or the model's outputs; rows that were refused are left out."""
    found: dict[int, Any] = {}
    for answered in kept.answered:
        run, outputs = answered.run, answered.outputs
        for row, fragment, (start, stop) in zip(
            answered.rows, answered.fragments, item_spans(run), strict=True
        ):
            if isinstance(fragment, Rejection | Postponed) or not (predicts or outputs):
                continue
            if predicts:
                found[row] = fragment
            else:
                found[row] = (
                    outputs if run.whole else {name: output[start:stop] for name, output in outputs.items()}
                )
    return found


def _as_lists(outputs: dict[str, Array]) -> dict[str, Any]:
    return {name: output.tolist() for name, output in outputs.items()}
