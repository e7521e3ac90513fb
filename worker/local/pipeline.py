"""A configuration's pipelines in this process: records in, answers out, without Kafka and without the main loop."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import orjson
import structlog

from worker.assembly import bytes_for_records
from worker.batch import Batch, Columns, Fetched, Headers, Outcomes, Partition, Span
from worker.errors import ConfigError, Reject, Rejection, SickModel
from worker.local.answers import Answer, HeadersLike, Record, answer_of
from worker.local.outside import as_sent, fetched
from worker.loop.admission import Admission
from worker.loop.budget import Budget
from worker.loop.openslab import OpenSlab
from worker.loop.pool import InlinePool, Mailbox, Returned, ThreadPool
from worker.loop.slab import Slab
from worker.schema_registry.opening import Registry, open_registry
from worker.serving.engine import Engine
from worker.serving.load import load
from worker.serving.rollout import Rollout
from worker.serving.route import Route
from worker.serving.versions import resolved
from worker.settings import PipelineSettings, Settings
from worker.settings import load as load_settings
from worker.topics import Topics

SLABS_AT_ONCE = 4
"""So many slabs are in the pool at once: enough for every thread, and few enough that answers do not pile up."""
SHARE_OF_BUDGET = 4
"""The records of one take hold at most this part (1/n) of the byte budget: their tensors need the rest."""


class Pipeline:
    """The pipelines of one configuration, loaded and warm; a context manager.

    Records go through routing, admission, decoding, the model and encoding exactly as in the worker, and in batches as
    large as the worker's. What Kafka decides is left out: order among partitions, offsets, ``input.keep``. Nothing is
    written anywhere: a result that ``output.offload`` would put into a store is returned instead.

    Safe to use from several threads; they take turns.
    """

    def __init__(self, settings: Settings, rollouts: Sequence[Rollout], registry: Registry | None) -> None:
        self._rollouts = list(rollouts)
        self._registry = registry
        first = next(iter(settings.pipelines.values())).input
        self._first_topic = Topics(first.topics[:1]).example
        self._topics = Topics(topic for rollout in rollouts for topic in rollout.route.topics)
        self._fetches = any(rollout.route.outside for rollout in rollouts)
        limits = settings.limits
        budget = bytes_for_records(limits.in_flight_bytes, self._rollouts)
        self._share = Budget(budget).shares[0]
        self._admission = Admission(self._rollouts, limits.max_age_ms, limits.expired, budget)
        servables = [rollout.choose() for rollout in self._rollouts]
        self._slab_records = max(servable.slab_records for servable in servables)
        engine, mailbox = Engine(retry_s=limits.retry_s), Mailbox()
        threads = max(servable.threads for servable in servables)
        self._pool: ThreadPool | InlinePool = (
            ThreadPool(engine, threads, [servable.lane for servable in servables], mailbox)
            if threads
            else InlinePool(engine, mailbox)
        )
        self._lock = threading.Lock()
        self._closed = False
        self._offset = 0

    @classmethod
    def load(
        cls,
        config: str | os.PathLike[str],
        overrides: Sequence[str] = (),
        *,
        pipeline: str | None = None,
    ) -> Pipeline:
        """Load the models of a configuration file; the broker is not asked.

        Args:
            config: the worker's YAML file.
            overrides: settings over those of the file, as ``--set`` takes them: ``["batching.max_size=8"]``.
            pipeline: load this one alone; None: all of the file.

        Raises:
            ConfigError: the configuration is wrong; one sentence that names the setting.
            StartError: a model is missing or cannot be loaded, or a registry or store does not answer.
        """
        settings = load_settings(config, overrides)
        return cls.of(settings, pipeline)

    @classmethod
    def of(cls, settings: Settings, pipeline: str | None = None) -> Pipeline:
        """As :meth:`load`, of settings that are read already."""
        if not structlog.is_configured():  # by a command, or by the program around us
            _warn_on_stderr()
        if pipeline is not None:
            settings = _alone(settings, pipeline)
        for name, each in settings.pipelines.items():
            if each.input.window is not None:
                raise ConfigError(
                    f"{settings.key(name, 'input.window')}: a record is answered together with earlier ones of its key, "
                    "which is the worker's main loop; expected a pipeline whose records are answered alone"
                )
        settings, _ = resolved(settings)
        registry = open_registry(settings, registers=False)
        try:
            rollouts = load(settings, registry=registry)
        except BaseException:
            if registry is not None:
                registry.close()
            raise
        return cls(settings, [_kept_here(rollout) for rollout in rollouts.values()], registry)

    def __call__(
        self,
        value: bytes | str | dict[str, Any] | list[Any] | None,
        *,
        key: bytes | str | None = None,
        headers: HeadersLike | None = None,
        topic: str | None = None,
    ) -> Answer:
        """Answer one record; see :class:`worker.local.answers.Record` for the arguments.

        Raises:
            ConfigError: no pipeline reads this topic.
            StartError: a store or registry that the record needs does not answer.
            SickModel: the model no longer gives its known output.
        """
        return self.many([Record(value, key, headers, topic)])[0]

    def many(self, records: Iterable[Any]) -> list[Answer]:
        """Answer many records, in batches as the worker's; the answers are in the order of the records.

        Args:
            records: values as :meth:`__call__` takes them, or :class:`Record` where one has a key, headers or a topic.

        Raises:
            WorkerError: as :meth:`__call__`.
        """
        with self._lock:
            if self._closed:
                raise ValueError("this Pipeline is closed")
            answers: list[Answer] = []
            for columns in self._takes(records):
                answers += self._answered(columns)
            return answers

    @property
    def names(self) -> list[str]:
        """The pipelines, in the order in which they are tried."""
        return [rollout.route.name for rollout in self._rollouts]

    @property
    def models(self) -> dict[str, str]:
        """``name@version`` of each pipeline's model."""
        return {rollout.route.name: rollout.stable.label for rollout in self._rollouts}

    def close(self) -> None:
        """Give the models back. A second call does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._pool.close(5.0)
            for rollout in self._rollouts:
                rollout.close()
            if self._registry is not None:
                self._registry.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Pipeline {', '.join(f'{name}: {model}' for name, model in self.models.items())}>"

    # -- records to columns ------------------------------------------------------------------------------

    def _takes(self, records: Iterable[Any]) -> Iterator[Columns]:
        """The records in takes of at most a few slabs and a share of the byte budget."""
        most_bytes = self._share.limit_bytes // SHARE_OF_BUDGET
        taken, nbytes = self._nothing(), 0
        for record in records:
            row = self._row(record if isinstance(record, Record) else Record(record))
            taken.extend(row)
            nbytes += len(row.values[0] or b"")
            if len(taken) >= SLABS_AT_ONCE * self._slab_records or nbytes >= most_bytes:
                yield taken
                taken, nbytes = self._nothing(), 0
        if len(taken):
            yield taken

    def _nothing(self) -> Columns:
        return Columns(fetched=[] if self._fetches else None)

    def _row(self, record: Record) -> Columns:
        """One record as the source would give it."""
        topic = self._first_topic if record.topic is None else record.topic
        if topic not in self._topics:
            expected = ", ".join(sorted(self._topics))
            raise ConfigError(f"topic: got {topic!r}, expected one that a pipeline reads: {expected}")
        value, headers = _bytes(record.value), _headers(record.headers)
        now_ms = int(time.time() * 1000)
        self._offset += 1
        place = Partition(topic, 0)
        row = Columns([value], [_key(record.key)], [headers], [now_ms], [self._offset - 1], [place])
        if self._fetches:
            row.fetched = [Fetched(time.monotonic_ns())]
        (route,) = self._admission.routed(row)
        if value is None or not isinstance(route, Route):
            return row
        if route.outside:
            row.fetched = [found := _fetched(route, value, headers)]
            if found.payload is not None or found.rejection is not None:
                return row
        row.values[0], row.headers[0] = as_sent(route, value, headers)
        return row

    # -- through the engine ------------------------------------------------------------------------------

    def _answered(self, columns: Columns) -> list[Answer]:
        now_ms = time.time() * 1000
        taken = OpenSlab(self._share)
        taken.append(columns, _spans(columns), time.monotonic_ns(), now_ms)
        slabs: list[Slab] = []
        try:
            while len(taken):
                most = min(len(taken), self._slab_records)
                busy = self._pool.outstanding > 0
                slab = taken.close(self._admission, self._share.free, now_ms, most, not busy)
                if slab is None:
                    self._collect()
                    continue
                slabs.append(slab)
                for batch in slab.batches:
                    slab.claim.adjust(batch.cost_bytes)
                    self._pool.submit(batch)
            while self._pool.outstanding:
                self._collect()
            return [answer for slab in slabs for answer in _answers(slab)]
        finally:
            while (
                self._pool.outstanding
            ):  # after a failure: what is in the pool must not come back to the next caller
                self._pool.collect(0.05)
            taken.clear()
            for slab in slabs:
                slab.claim.free()

    def _collect(self) -> None:
        """Wait for batches that are back.

        Raises:
            SickModel: the model no longer gives its known output.
        """
        for returned in self._pool.collect(0.05):
            self._look_at(returned)

    def _look_at(self, returned: Returned) -> None:
        batch = returned.batch
        if returned.error is not None:
            raise returned.error
        if batch.sick is not None:
            raise SickModel(f"model {batch.servable.label} is sick: {batch.sick}")
        assert isinstance(batch.slab, Slab)
        batch.slab.claim.adjust(-batch.cost_bytes)


def _warn_on_stderr() -> None:
    """Let what the worker logs below a warning go unseen, and leave the program's own logging as it is."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def _alone(settings: Settings, pipeline: str) -> Settings:
    """The settings with one pipeline only."""
    if pipeline not in settings.pipelines:
        raise ConfigError(f"pipeline: got {pipeline!r}, expected one of {', '.join(settings.pipelines)}")
    kept: dict[str, PipelineSettings] = {pipeline: settings.pipelines[pipeline]}
    return settings.model_copy(update={"pipelines": kept})


def _kept_here(rollout: Rollout) -> Rollout:
    """The rollout with results that no store gets."""
    if rollout.stable.offload is None:
        return rollout
    return Rollout(rollout.route, replace(rollout.stable, offload=None))


def _bytes(value: Any) -> bytes | None:
    """The bytes of a value; see :class:`worker.local.answers.Record`.

    Raises:
        TypeError: it is nothing that a record can hold.
    """
    match value:
        case None | bytes():
            return value
        case str():
            return value.encode()
        case dict() | list():
            return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
        case bytearray() | memoryview():
            return bytes(value)
    raise TypeError(
        f"a record's value: got {type(value).__name__}, expected bytes, text, a dict, a list or None"
    )


def _key(key: bytes | str | None) -> bytes | None:
    return key.encode() if isinstance(key, str) else key


def _headers(headers: HeadersLike | None) -> Headers | None:
    if not headers:
        return None
    pairs = headers.items() if hasattr(headers, "items") else headers
    return [(name, text.encode() if isinstance(text, str) else text) for name, text in pairs]


def _fetched(route: Route, value: bytes, headers: Headers | None) -> Fetched:
    """What the record names outside, or why it cannot be had."""
    started_ns = time.monotonic_ns()
    payload, rejection = None, None
    try:
        payload = fetched(route, value, headers, "the record")
    except Reject as error:
        rejection = Rejection.of(error, "fetch", route.outside[0])
    return Fetched(started_ns, (time.monotonic_ns() - started_ns) // 1000, payload, rejection)


def _spans(columns: Columns) -> list[Span]:
    """The rows of each run of one partition."""
    spans: list[Span] = []
    for partition, rows in groupby(range(len(columns)), lambda row: columns.partitions[row]):
        places = list(rows)
        spans.append(Span(partition, places[0], places[-1] + 1, columns.offsets[places[-1]] + 1))
    return spans


def _answers(slab: Slab) -> list[Answer]:
    """The answer to each row of a slab whose batches are back."""
    placed: list[tuple[Outcomes, int]] = [
        (slab.decided or Outcomes([]), row) for row in range(len(slab.routes))
    ]
    for batch in slab.batches:
        for index, row in enumerate(batch.rows):
            placed[row] = _outcomes(batch), index
    return [
        answer_of(route, outcomes, row, value)
        for route, (outcomes, row), value in zip(slab.routes, placed, slab.columns.values, strict=True)
    ]


def _outcomes(batch: Batch) -> Outcomes:
    assert batch.outcomes is not None
    return batch.outcomes
