"""Careful reading: the first records of a partition whose last owner died, fetched by a process of its own.

A record can end the process that fetches it: 40 KB of zstd may hold 600 MB. The worker must not fetch such a record,
or it would die again and again. The process here fetches one batch at a time, with a bound on its memory, and hands
the records over. If it dies over a record twice, that record is reported as unread, and a new process goes on behind
it.

Only what the log held when careful reading began can have been fetched by the dead client. Careful reading ends there:
where records keep coming, it would never see the end of the log. Several such partitions take turns, so that none of
them stands still until the watchdog takes that for a fault.
"""

from __future__ import annotations

import multiprocessing
import resource
import signal
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from worker.batch import RENAMED_HEADERS, UNREAD_RECORD, Columns, Headers, Partition, Span
from worker.kafka.headers import header_column
from worker.kafka.properties import MEMBERSHIP

RECORDS_MAX = 100_000
"""Offsets behind the position that the dead client may have fetched: ``queued.min.messages``."""
DEATHS_MAX = 2
"""Deaths over the same record after which it counts as unread: one may be somebody's ``kill -9``."""
SILENT_S = 10.0
"""After this long without a word of the process the worker's own client reads: it may be let in where this one is not."""
BATCH_WAIT_S = 1.0
"""How often the process looks whether the worker is still there."""
TURN_S = 5.0
"""How long one partition is read while others wait."""
END_TIMEOUT_S = 3.0
"""Longest wait for the end of a log; without an answer only RECORDS_MAX bounds the reading. Below SILENT_S."""
ENDS_S = 5.0
"""Longest wait for the process to end once it was killed."""
FAILED = 3
"""Exit code of a process whose client could not read."""

log = structlog.get_logger(module=__name__)


class Row(NamedTuple):
    """One record on its way between the two processes."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers | None
    renamed: bool = False
    """The first header is the mark of :func:`worker.kafka.headers.header_column`: it counts only as the very object,
    which does not go through a pipe."""


class End(NamedTuple):
    """Where the log ended when the process began to read."""

    offset: int


class Taken(NamedTuple):
    """What came since the last look."""

    rows: list[Row]
    place: Partition | None = None
    """Where the rows are from."""
    over: bool = False
    """The partition is not read here any more; the worker's own client goes on behind the rows."""


NOTHING = Taken([])


class CarefulReader:
    """Reads partitions one after the other; used by the thread that owns the consumer, never waits for the broker.

    Args:
        properties: of the worker's consumer.
        memory_bytes: what the process may take beside what it has after its start.
    """

    def __init__(self, properties: Mapping[str, Any], memory_bytes: int) -> None:
        simple = {name: value for name, value in properties.items() if isinstance(value, str | int | float)}
        self._properties = (
            {name: value for name, value in simple.items() if name not in MEMBERSHIP}
            | {
                "group.id": "unused",
                "log_level": 0,
                "enable.partition.eof": True,
                "fetch.message.max.bytes": 1,  # the broker sends the first batch whole whatever its size, and no other
                "queued.min.messages": 1,
                "queued.max.messages.kbytes": 1,
                "fetch.queue.backoff.ms": 1_000,  # the next batch is not fetched before it is asked for
                "statistics.interval.ms": 0,
            }
        )
        self._memory_bytes = memory_bytes
        self._waiting: dict[Partition, tuple[int, int]] = {}
        """Partitions to read -> next offset to hand over, and the offset to stop at. The first is being read."""
        self._pipe: Connection | None = None
        self._process: Any = None
        self._fetching = -1
        """The offset that the process said it would fetch next; -1: it has said nothing yet."""
        self._deaths = 0
        """Deaths over the next record of the partition that is being read."""
        self._heard_s = 0.0
        """When the process last said something, or was started; monotonic."""
        self._turn_s = 0.0
        """When the turn of the partition that is being read began; monotonic."""

    def __contains__(self, place: object) -> bool:
        return place in self._waiting

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def __iter__(self) -> Iterator[Partition]:
        return iter(self._waiting)

    def add(self, place: Partition, start: int) -> None:
        """Read this partition from an offset on, as far as a client may have fetched it."""
        self._waiting[place] = (start, start + RECORDS_MAX)

    def seek(self, place: Partition, offset: int) -> None:
        """Read on at this offset of a partition that is read here."""
        if place == next(iter(self._waiting)):
            self._stop()
        self._waiting[place] = (offset, self._waiting[place][1])

    def drop(self, places: Collection[Partition]) -> None:
        """These partitions are not ours any more."""
        for place in [place for place in self._waiting if place in places]:
            if place == next(iter(self._waiting)):
                self._stop()
            del self._waiting[place]

    def close(self) -> None:
        """End the process."""
        self._waiting.clear()
        self._stop()

    def take(self, most: int, wanted_bytes: int, paused: Collection[str]) -> Taken:
        """The records that have come.

        Args:
            most: most records to return.
            wanted_bytes: about how many bytes of values.
            paused: topics of which no record is wanted now.
        """
        place = next((place for place in self._waiting if place.topic not in paused), None)
        if place is None:
            return NOTHING
        if place != next(iter(self._waiting)):
            self._stop()
            self._deaths = 0  # those were over a record of the other partition
            self._waiting = {place: self._waiting.pop(place), **self._waiting}
        start, until = self._waiting[place]
        try:
            if self._process is None:
                self._start(place, start, until)
            rows, ended = self._receive(most, wanted_bytes)
        except (EOFError, OSError):
            return self._died(place, start)
        if not rows and not ended and time.monotonic() - self._heard_s > SILENT_S:
            self._stop()
            return self._give_up(place, f"no word for {SILENT_S:.0f} s")
        if rows:
            self._deaths = 0
            self._waiting[place] = (rows[-1].offset + 1, self._waiting[place][1])
        if ended:
            self._stop()
            del self._waiting[place]
        elif rows and time.monotonic() - self._turn_s > TURN_S and self._others(place, paused):
            self._stop()
            self._waiting[place] = self._waiting.pop(place)  # the last in the line
        return Taken(rows, place, ended)

    def _others(self, place: Partition, paused: Collection[str]) -> bool:
        """Whether other partitions wait for their turn."""
        return any(other != place and other.topic not in paused for other in self._waiting)

    def _receive(self, most: int, wanted_bytes: int) -> tuple[list[Row], bool]:
        """Rows that have come, and whether they are the last ones.

        Raises:
            EOFError, OSError: the process is gone, and there are no rows of it.
        """
        rows: list[Row] = []
        assert self._pipe is not None
        try:
            while len(rows) < most and wanted_bytes > 0 and self._pipe.poll():
                news = self._pipe.recv()
                self._heard_s = time.monotonic()
                if news is None:
                    return rows, True
                if isinstance(news, int):
                    self._fetching = news
                    continue
                if isinstance(news, End):
                    place, (start, until) = next(iter(self._waiting.items()))
                    self._waiting[place] = (start, min(until, news.offset))
                    continue
                row = Row(*news)
                if row.renamed and row.headers:
                    row.headers[0] = (RENAMED_HEADERS, row.headers[0][1])
                rows.append(row)
                wanted_bytes -= len(row.value or b"")
        except (EOFError, OSError):
            if not rows:
                raise
        return rows, False

    def _died(self, place: Partition, start: int) -> Taken:
        """The process is gone: is the record that it was about to hand over the reason?"""
        fetching, code = self._fetching, self._stop()
        until = self._waiting[place][1]
        if code in (-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP, 0):
            return NOTHING  # somebody asked it to leave, as they asked us
        self._deaths += 1
        if code != FAILED and self._deaths < DEATHS_MAX:
            return NOTHING
        self._deaths = 0
        if code == FAILED or fetching < 0:
            return self._give_up(place, f"exit code {code}")
        log.warning(
            "fetching a record ends a process", partition=f"{place.topic}/{place.number}", offset=start
        )
        self._waiting[place] = (start + 1, until)
        return Taken([Row(start, 0, None, None, [(UNREAD_RECORD, b"")])], place)

    def _give_up(self, place: Partition, why: str) -> Taken:
        """The client cannot read, or there can be no such process: the worker's own client reads the partition."""
        log.warning("careful reading is not possible", partition=f"{place.topic}/{place.number}", why=why)
        del self._waiting[place]
        return Taken([], place, over=True)

    def _start(self, place: Partition, start: int, until: int) -> None:
        # spawned, not forked: a forked librdkafka has no threads
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=read_carefully,
            args=(self._properties, self._memory_bytes, place, start, until, theirs),
            name="careful-reader",
            daemon=True,
        )
        self._heard_s = self._turn_s = time.monotonic()
        self._process.start()
        theirs.close()

    def _stop(self) -> int | None:
        """End the process; returns its exit code."""
        process, self._process, self._fetching = self._process, None, -1
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if process is None or process.pid is None:
            return None
        process.join(0.2)  # one that died by itself
        if process.exitcode is None:
            process.kill()
            process.join(ENDS_S)
            return 0
        return int(process.exitcode)


def columns_of(place: Partition, rows: list[Row]) -> tuple[Columns, list[Span]]:
    """The rows as a take of one partition (epoch 0)."""
    columns = Columns(
        [row.value for row in rows],
        [row.key for row in rows],
        [row.headers for row in rows],
        [row.timestamp_ms for row in rows],
        [row.offset for row in rows],
        [place] * len(rows),
    )
    return columns, [Span(place, 0, len(rows), rows[-1].offset + 1)]


# -- the process -------------------------------------------------------------------------------------------


def read_carefully(
    properties: dict[str, Any], memory_bytes: int, place: Partition, start: int, until: int, pipe: Connection
) -> None:
    """Send where the log ends; each batch: the offset before it is fetched, a row for each record; None at the end."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the worker decides, and closes the pipe
    consumer = Consumer(properties)
    _bound_memory(memory_bytes)
    following = start
    with suppress(BrokenPipeError):
        with suppress(KafkaException):
            found = consumer.get_watermark_offsets(TopicPartition(*place), timeout=END_TIMEOUT_S)
            if found is not None:
                until = min(until, found[1])
                pipe.send(End(found[1]))
        while following < until:
            pipe.send(following)
            consumer.assign([TopicPartition(place.topic, place.number, following)])
            records = _batch(consumer, pipe)
            if not records:
                break
            for record, headers in zip(records, header_column(records), strict=True):
                renamed = bool(headers) and headers[0][0] is RENAMED_HEADERS  # type: ignore[index]
                stamp = record.timestamp()[1]
                pipe.send(Row(record.offset(), stamp, record.key(), record.value(), headers, renamed))
            following = records[-1].offset() + 1
        pipe.send(None)


def _batch(consumer: Consumer, pipe: Connection) -> list[Any]:
    """The records of the next batch; none at the end of the log. Ends the process if nobody waits for it any more."""
    while True:
        first: Any = consumer.poll(BATCH_WAIT_S)
        if pipe.poll():  # nothing is ever sent to here: the other end is closed
            sys.exit(0)
        if first is None:
            continue
        if first.error() is None:
            following = consumer.consume(RECORDS_MAX, 0)
            return [first, *(message for message in following if message.error() is None)]
        if first.error().code() == KafkaError._PARTITION_EOF:
            return []
        if not first.error().retriable():
            sys.exit(FAILED)


def _bound_memory(memory_bytes: int) -> None:
    """Let this process take so much more memory than it has now, where the system can bound that."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return
    held_kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData"))
    limit = held_kib * 1024 + memory_bytes
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard == resource.RLIM_INFINITY or hard > limit:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
