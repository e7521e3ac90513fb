"""Measures some records of each batch while their tensors live, for whoever compares them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast

import structlog

from worker.batch import Batch, Looked, Run
from worker.drift.measured import Measured
from worker.drift.profile import Profile
from worker.drift.watch import Watch
from worker.errors import ConfigError, Postponed, Rejection
from worker.serving.measures import Measures

if TYPE_CHECKING:
    from worker.encode import Encoder
    from worker.model.signature import Signature
    from worker.records import Decoder
    from worker.settings import PipelineSettings


log = structlog.get_logger()

RECORDS_MAX = 64
"""Records of one batch that are measured."""
FILES_MAX = 4
"""The same where records have a picture or sound: what was decoded of it stays in memory until it is measured."""


OWN_NS = 30_000
"""About what choosing rows costs. It is not measured: looking at a thread's clock costs several us, which batches without a chosen
row must not pay."""


class Comparer(Protocol):
    """Who wants the figures: see :class:`worker.drift.watch.Watch`."""

    def chosen(self, rows: int, most: int) -> Sequence[int]: ...

    def add(self, measured: Measured, cost_ns: int) -> None: ...


@dataclass(frozen=True, slots=True)
class Gauge:
    """See the module. Pool threads use it, each for batches of its own."""

    comparer: Comparer
    measures: Measures
    every: bool = False
    """Batches that no loop made count, too."""
    cpu_ns: Callable[[], int] = time.thread_time_ns
    _told: set[str] = field(default_factory=set)
    """Kinds of faults that were told."""

    def begin(self, batch: Batch) -> None:
        """Choose the rows of a batch that is about to be decoded.

        Further tries are left out, and so are the answers of a candidate on trial: they are compared otherwise.
        """
        if batch.origin is not None and batch.origin.tries:
            return
        if not self.every and (batch.slab is None or self._on_trial(batch)):
            return
        rows = self.comparer.chosen(len(batch), FILES_MAX if self.measures.files else RECORDS_MAX)
        if not rows:
            return
        batch.looked = Looked(rows, cost_ns=OWN_NS)
        assert batch.feed is not None
        if self.measures.files and batch.feed.opened is None:
            batch.feed.opened = cast("Any", _Some(rows))
            batch.looked.lets_go = True

    @staticmethod
    def _on_trial(batch: Batch) -> bool:
        return batch.trial is not None and batch.servable is batch.trial.candidate

    def decoded(self, batch: Batch, start: int, stop: int) -> None:
        """Measure the files of the chosen rows among ``start..stop``, which were just decoded, and let them go."""
        looked = batch.looked
        if looked is None or not self.measures.files:
            return
        started_ns = self.cpu_ns()
        try:
            self._measure_files(batch, looked, start, stop)
        except Exception as error:
            self._leave(batch, error)
        looked.cost_ns += self.cpu_ns() - started_ns

    def _measure_files(self, batch: Batch, looked: Looked, start: int, stop: int) -> None:
        feed = batch.feed
        if feed is None or feed.opened is None:
            return
        for row in looked.rows:
            if start <= row < stop:
                if row not in feed.rejected:
                    looked.files[row] = self.measures.of_files(feed.opened[row])
                if looked.lets_go:
                    feed.opened[row].clear()

    def answered(self, batch: Batch, run: Run, fragments: Sequence[Any]) -> None:
        """Measure the chosen rows that a run has answered."""
        looked = batch.looked
        assert looked is not None
        started_ns = self.cpu_ns()
        try:
            measured = self._measured(batch, looked, run, fragments)
        except Exception as error:
            self._leave(batch, error)
            return
        if measured.records:
            cost_ns, looked.cost_ns = looked.cost_ns + self.cpu_ns() - started_ns, 0
            self.comparer.add(measured, cost_ns)

    def _measured(self, batch: Batch, looked: Looked, run: Run, fragments: Sequence[Any]) -> Measured:
        refused = {
            row
            for row, fragment in zip(run.rows, fragments, strict=True)
            if isinstance(fragment, Rejection | Postponed)
        }
        ours = {*run.rows} - refused
        rows = [row for row in looked.rows if row in ours]
        measured = Measured(len(rows))
        if rows and looked.files:
            measured.put([looked.files.get(row, {}) for row in rows])
        if rows:
            self.measures.of_run(batch, run, fragments, rows, measured)
        return measured

    def _leave(self, batch: Batch, error: Exception) -> None:
        """Nothing of this batch is measured: whatever a record or custom code holds, its answer must not suffer."""
        batch.looked = None
        kind = type(error).__name__
        if kind not in self._told:
            self._told.add(kind)
            # its text may quote the record, which may be encrypted
            log.warning("some records cannot be measured", pipeline=batch.route.name, why=kind)


class _Some:
    """What was opened of some rows of a batch; what is opened of the others is let go at once."""

    def __init__(self, rows: Sequence[int]) -> None:
        self._kept: dict[int, dict[Any, Any]] = {row: {} for row in rows}

    def __getitem__(self, row: int) -> dict[Any, Any]:
        found = self._kept.get(row)
        return {} if found is None else found


def gauge_of(
    settings: PipelineSettings,
    watch: Watch | None,
    decoder: Decoder,
    encoder: Encoder,
    signature: Signature,
    pipeline: str,
) -> Gauge | None:
    """What measures the records of a servable for the watch of its route; None where it has none.

    Raises:
        ConfigError: the profile is that of another pipeline, or was made for another model or preprocess.
    """
    if watch is None or settings.drift is None:
        return None
    measures = Measures(decoder, encoder, signature)
    try:
        watch.profile.check(pipeline, settings.model.name or pipeline, measures.kinds)
    except ConfigError as error:
        raise ConfigError(f"drift.profile: {settings.drift.profile}: {error}") from None
    return Gauge(watch, measures)


def watch_of(settings: PipelineSettings) -> Watch | None:
    """What compares a pipeline's records with its profile; None where nobody asks for it.

    Raises:
        ConfigError: the profile cannot be read.
    """
    if settings.drift is None:
        return None
    try:
        return Watch(Profile.read(settings.drift.profile), settings.drift.window_s)
    except ConfigError as error:
        raise ConfigError(f"drift.profile: {error}") from None
