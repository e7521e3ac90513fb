"""The engine: decode, infer, finish on one batch. It knows nothing of Kafka and keeps no state.

``decode`` writes rows into the batch's own buffers, on all pool threads. ``infer`` groups the decoded rows into
model runs. ``finish`` turns the model's answers into bodies. When a run raises, the engine first runs the model's
canary. If the canary fails, the model is sick: the batch says so (``batch.sick``), and no record is blamed.
Otherwise the engine bisects the batch until the guilty record stands alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, cast

import numpy as np

from worker.batch import FETCH, STAGES, Array, Batch, Feed, Item, Outcomes, Parts, Run
from worker.deadlines import past_deadline
from worker.errors import Reject, Rejection
from worker.serving import opened
from worker.serving.cache import answered, follow
from worker.serving.kept import keep_answers, keep_feed
from worker.serving.ragged import cut
from worker.serving.retrial import merge, postpone
from worker.serving.runs import Group, buffers, feeds, groups, merged, take_rows
from worker.serving.servable import Model, Servable, SickServable
from worker.serving.windows import run_windows

EXPIRED = Rejection("expired", "decode", "the record's deadline has passed")
"""Keeps a row out of the runs; :mod:`worker.deadlines` says what becomes of it."""
NO_KNOWN_OUTPUT = "its warm-up input no longer gives its known output"

OUT_OF_MEMORY = (
    "failed to allocate memory",  # the runtime's arena
    "is smaller than requested bytes",  # the arena under a limit: "Available memory of 1 is smaller than ..."
    "out of memory",
    "out_of_memory",  # the name in CUDA
    "alloc_failed",  # cuBLAS and cuDNN
    "bad_alloc",
)
"""Words, in lower case, of errors that mean that the batch may be too large. The runtime has no type or code for them."""

FIRST_ERROR = " (first error: "


class Engine:
    """The three steps, for the servable that a batch pins. Pool threads call them: no two threads the same step of one
    batch, except ``decode`` on different rows.

    Args:
        clock_ns: monotonic nanoseconds.
        retry_s: how long rows may be tried again after their first try; see :class:`worker.errors.Retry`.
    """

    def __init__(self, clock_ns: Callable[[], int] = time.monotonic_ns, retry_s: float = 0.0) -> None:
        self._clock_ns = clock_ns
        self.retry_s = retry_s

    def shards(self, batch: Batch) -> list[tuple[int, int]]:
        """Give the batch its buffers; returns which rows may be decoded side by side.

        Where some answers are in memory, these are the rows of the part that must be run.
        """
        batch.decode_started_ns = self._clock_ns()
        servable = _servable(batch)
        batch.outcomes = Outcomes.empty(len(batch))
        if servable.cache is None or batch.origin is not None:
            return self._shards(batch, servable)
        servable.cache.look(batch)
        if batch.parts is None:
            return self._shards(batch, servable)
        batch.feed = Feed(None, [], [])
        known, rest = batch.parts.known, batch.parts.rest
        known.outcomes = Outcomes.empty(len(known))
        if rest is None:
            return []
        rest.decode_started_ns, rest.outcomes = batch.decode_started_ns, Outcomes.empty(len(rest))
        return self._shards(rest, servable)

    def _shards(self, batch: Batch, servable: Servable) -> list[tuple[int, int]]:
        rows = len(batch)
        arrays = buffers(servable, rows) if servable.decoder.fixed else None
        items: list[Item | None] = [] if servable.decoder.fixed else [None] * rows
        batch.feed = Feed(arrays, items, [None] * rows)
        servable.prepare(batch.feed, rows)
        if servable.gauge is not None:
            servable.gauge.begin(batch)
        if batch.to_open:
            opened.prepare(batch)
        step = servable.decoder.shard_rows or rows
        late = past_deadline(batch, batch.decode_started_ns, "decoded")
        return [
            (start, min(start + step, stop))
            for first, stop in _others(rows, late)
            for start in range(first, stop, step)
        ]

    def decode(self, batch: Batch, start: int, stop: int) -> None:
        """Decode rows ``start..stop``; what is wrong with a row is in ``batch.feed.rejected`` afterwards."""
        batch = _to_run(batch)
        assert batch.feed is not None
        if batch.to_open or batch.headers is not batch.columns.headers:
            opened.decode(batch, _servable(batch), start, stop)
        else:
            _servable(batch).decoder.decode(batch.payloads, batch.columns, batch.feed, start, stop)
        if batch.looked is not None and (gauge := _servable(batch).gauge) is not None:
            gauge.decoded(batch, start, stop)
        batch.decode_ended_ns = self._clock_ns()

    def infer(self, batch: Batch) -> None:
        """Run the model over the decoded rows. Afterwards the batch has its runs, or says why its servable is sick."""
        if batch.parts is None:
            self._infer(batch)
            return
        if batch.parts.rest is not None:
            self._infer(batch.parts.rest)
        self._leave_out_expired(batch.parts.known)

    def _infer(self, batch: Batch) -> None:
        servable = _servable(batch)
        self._leave_out_expired(batch)
        try:
            servable.answer(batch, self)
        except SickServable as sick:
            batch.sick, batch.runs = str(sick), []
            if batch.route.opening is not None and batch.route.opening.secret:
                batch.sick = batch.sick.partition(FIRST_ERROR)[0]
            return
        if batch.runs and servable.checkup.begin(self._clock_ns()):
            self._check(batch, servable)
        if len(batch.runs) > 1:
            batch.runs = merged(batch.runs)

    def finish(self, batch: Batch) -> None:
        """Turn the model's answers into outcomes, and let the tensors go.

        Where custom code wants rows tried again, ``batch.again`` holds them afterwards. The outcomes of such a further try
        go to the batch that the rows belong to.
        """
        if batch.parts is None:
            self._finish(batch)
        else:
            self._finish_parts(batch, batch.parts)

    def _finish_parts(self, batch: Batch, parts: Parts) -> None:
        """Finish what was run, then what equals it or was known."""
        rest, made = parts.rest, dict[int, Any]()
        assert batch.feed is not None
        if rest is not None:
            assert rest.feed is not None
            follow(parts)
            self._finish(rest, made)
            batch.again, batch.feed.truncated = rest.again, rest.feed.truncated
        if batch.sick is None:
            answered(parts, made, self._clock_ns())
            self._finish(parts.known)
        batch.payloads, batch.parts = [], None

    def _finish(self, batch: Batch, made: dict[int, Any] | None = None) -> None:
        """Finish one batch.

        Args:
            made: gets the fragments by row.
        """
        encoder, envelope = _servable(batch).encoder, batch.route.envelope
        assert batch.feed is not None
        assert batch.outcomes is not None
        for run in batch.runs:
            fragments = encoder.predict(batch, run) if run.fragments is None else run.fragments
            if batch.keys is not None:
                self._keep(batch, run, fragments, made)
            keep_answers(batch, run, fragments)
            if batch.looked is not None and (gauge := _servable(batch).gauge) is not None:
                gauge.answered(batch, run, fragments)
            _stamp(batch, run, self._clock_ns())
            encoder.bodies(batch, run, fragments)
            if envelope.completes:
                envelope.complete(batch, run.rows)
            if run.fragments is None:
                batch.items += sum(run.counts) if run.counts is not None else len(run.rows)
            run.outputs = {}
        if (offload := _servable(batch).offload) is not None and not (batch.trial and batch.slab is None):
            offload.put_aside(batch)
        batch.outcomes.rejected.update(batch.feed.rejected)
        self.check_candidate(batch)
        if batch.deadlines is not None:
            batch.deadlines.decide(batch)
            for row in batch.deadlines.passed:
                batch.feed.postponed.pop(row, None)
        if batch.feed.postponed and batch.sick is None:
            postpone(batch, self.retry_s, self._clock_ns())
        if batch.outcomes.rejected and batch.route.opening is not None and batch.route.opening.secret:
            opened.withhold(batch)
        keep_feed(batch)
        batch.feed.arrays = None
        batch.feed.items = []
        batch.payloads = []
        batch.finished_ns = self._clock_ns()
        if batch.origin is not None:
            merge(batch)

    def _keep(self, batch: Batch, run: Run, fragments: Sequence[Any], made: dict[int, Any] | None) -> None:
        cache = _servable(batch).cache
        assert cache is not None
        cache.keep(batch, run, fragments)
        if made is not None:
            made.update(zip(run.rows, fragments, strict=True))

    def _check(self, batch: Batch, servable: Servable) -> None:
        """Run the canary although nothing failed. A second try rules out a run that was interrupted or out of memory."""
        started_ns = self._clock_ns()
        if servable.model.sickness() is not None and (why := servable.model.sickness()) is not None:
            batch.sick, batch.runs = f"{NO_KNOWN_OUTPUT}: {why}", []
        servable.checkup.end(started_ns, self._clock_ns())

    def check_candidate(self, batch: Batch) -> None:
        """Run a candidate's canary when its numbers are no numbers: a model that goes wrong must not cost records."""
        trial, outcomes = batch.trial, batch.outcomes
        if trial is None or batch.servable is not trial.candidate or batch.sick is not None:
            return
        if outcomes is not None and any(why.reason == "non_finite" for why in outcomes.rejected.values()):
            self._check(batch, _servable(batch))

    def _leave_out_expired(self, batch: Batch) -> None:
        """Rows whose deadline has passed since they were decoded are not run."""
        assert batch.feed is not None
        for row in past_deadline(batch, self._clock_ns(), "run"):
            batch.feed.rejected[row] = EXPIRED

    # -- running, and finding the guilty record ----------------------------------------------------------

    def answers(self, batch: Batch, servable: Servable) -> list[Run]:
        """See :class:`worker.serving.servable.Answers`."""
        runs: list[Run] = []
        for group in groups(batch, servable):
            runs.extend(self._answer(batch, servable, group))
        return runs

    def now_ns(self) -> int:
        """Monotonic clock."""
        return self._clock_ns()

    def _answer(self, batch: Batch, servable: Servable, group: Group) -> list[Run]:
        """The model's answers to a group; a row that the model refuses on its own is rejected, the others are answered."""
        try:
            run = self._run(batch, servable, group)
        except Exception as error:
            return self._isolate(batch, servable, group, error)
        if group.ragged is None or group.items is None or getattr(servable.encoder, "takes_padding", False):
            return [run]
        return cut(run, group.items, group.ragged)

    def _isolate(self, batch: Batch, servable: Servable, group: Group, error: Exception) -> list[Run]:
        trial = batch.trial
        if trial is not None and trial.doubt is not None and trial.candidate is batch.servable:
            raise SickServable(f"{trial.doubt}{FIRST_ERROR}{_one_line(error)})") from error
        if (why := servable.model.sickness()) is not None:
            raise SickServable(f"{NO_KNOWN_OUTPUT}: {why}{FIRST_ERROR}{_one_line(error)})") from error
        parts = servable.run_limit.items
        if _out_of_memory(error) and group.windowed and 1 < parts <= group.item_count:
            servable.run_limit.out_of_memory(parts)
            return self._answer(batch, servable, group)
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

    def _run(self, batch: Batch, servable: Servable, group: Group) -> Run:
        """One model run; of windows, one run for each part that fits.

        Raises:
            Exception: whatever the runtime raises; :class:`ValueError` when the outputs do not follow the batch.
        """
        model = servable.model
        fed = feeds(batch, model, group)
        started_ns = self._clock_ns()
        if group.windowed or (model.signature.states and group.counts is not None):
            outputs = run_windows(model, fed, group, servable.run_limit.items)
            return Run(
                group.rows, outputs, group.counts, group.alone, group.alone, started_ns, self._clock_ns()
            )
        outputs = model.run(fed)
        ended_ns = self._clock_ns()
        if group.alone:
            padded = model.fixed_batch
            cut = padded and (group.items is None or group.items[0].single)
            if cut:
                outputs = {k: v[:1] if v.ndim and len(v) == padded else v for k, v in outputs.items()}
        else:
            _check_lengths(outputs, group.item_count)
        if model.needs_canary:
            model.adopt_canary(fed, outputs)
        return Run(group.rows, outputs, group.counts, group.alone, started_ns=started_ns, ended_ns=ended_ns)


def _servable(batch: Batch) -> Servable:
    """What answers this batch. The loop made it of a servable of this package; it knows only a part of it."""
    return cast("Servable", batch.servable)


def _to_run(batch: Batch) -> Batch:
    """The rows that are decoded and run."""
    if batch.parts is None:
        return batch
    assert batch.parts.rest is not None
    return batch.parts.rest


def _check_lengths(outputs: dict[str, Array], items: int) -> None:
    for name, output in outputs.items():
        if not output.ndim or len(output) != items:
            raise ValueError(
                f"output {name} has shape {list(output.shape)} for {items} items: "
                "its first dimension does not follow the batch"
            )


def _others(rows: int, without: Collection[int]) -> Iterator[tuple[int, int]]:
    """The stretches of ``rows`` rows between those that are left out."""
    start = 0
    for row in sorted(without):
        if start < row:
            yield start, row
        start = row + 1
    if start < rows:
        yield start, rows


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


# -- stamps ---------------------------------------------------------------------------------


def _stamp(batch: Batch, run: Run, now_ns: int) -> None:
    """Fill the run's stage times, in whole microseconds; ``total`` is their exact sum.

    ``broker`` is the only one across two clocks (record timestamp -> taken) and is never negative.
    """
    written_us = np.array(batch.columns.select(run.rows).timestamps_ms, np.int64) * 1000
    broker: Array = round(batch.taken_ms * 1000) - written_us
    queue: int | Array = _us(batch.decode_started_ns - batch.taken_ns)
    if batch.late_us is not None:  # each row counts from its own take, not from the first one of the slab
        late_us = take_rows(batch.late_us, run.rows)
        broker += late_us
        queue = np.maximum(queue - late_us, 0)
    np.maximum(broker, 0, out=broker)
    broker[written_us <= 0] = 0  # not known
    fetch: int | Array = 0
    if batch.fetch_us is not None:
        fetch = np.minimum(take_rows(batch.fetch_us, run.rows), queue)
        queue = queue - fetch
    times: tuple[Array, int | Array, int, int, int, int] = (
        broker,
        queue,
        _us(batch.decode_ended_ns - batch.decode_started_ns),
        _us(run.started_ns - batch.decode_ended_ns),
        _us(run.ended_ns - run.started_ns),
        _us(now_ns - run.ended_ns),
    )
    run.stages_us = dict(zip(STAGES, times, strict=True))
    if batch.fetch_us is not None:
        broker_queue = {stage: run.stages_us.pop(stage) for stage in STAGES[:2]}
        run.stages_us = broker_queue | {FETCH: fetch} | run.stages_us
    total: Array = broker + queue + fetch + sum(times[2:])
    run.stages_us["total"] = total


def _us(nanoseconds: int) -> int:
    return max(0, nanoseconds // 1000)
