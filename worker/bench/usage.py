"""What the replicas of a group took while they were under load, as their metrics topic says."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from worker.errors import WorkerError

READ_S = 0.2
NEAR = 0.7
"""An interval counts when a replica took in at least this part of the rate in question: an idle one says nothing."""
SHORTEST_S = 0.5


class Record(Protocol):
    """What is used of a record."""

    @property
    def value(self) -> bytes | None: ...


class Reader(Protocol):
    """See :class:`worker.kafka.tools.TopicReader`."""

    def read(self, timeout_s: float) -> Sequence[Record]: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Interval:
    """What one replica said of one interval."""

    replica: str
    host: str
    seconds: float
    records: int
    cpu_s: float
    rss_bytes: int
    owns: bool
    """It has partitions."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a group took near one rate."""

    replicas: int
    """With partitions."""
    cpu_us_per_record: float | None
    """CPU time of the processes, everything included; None where no interval was near the rate."""
    rss_bytes: int
    """Resident memory of the largest replica."""
    hosts: tuple[str, ...]


class Listener:
    """Reads the metrics topic on a thread of its own, from construction on; a context manager.

    Args:
        group: records of other groups are left out.
        reader: of the topic, from its end on.
    """

    def __init__(self, group: str, reader: Reader) -> None:
        self._group = group
        self._reader = reader
        self._intervals: list[Interval] = []
        self._ended = threading.Event()
        self._heard = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(10 * READ_S)

    def next(self, timeout_s: float) -> None:
        """Wait until something more was said, at most so long: what was just measured is told at the end of its interval."""
        with self._heard:
            before = len(self._intervals)
            self._heard.wait_for(lambda: len(self._intervals) > before, timeout_s)

    def usage(self, per_s: float) -> Usage | None:
        """What the group took at about ``per_s`` records/s of all replicas together; None if nothing was said."""
        with self._heard:
            return usage_of(self._intervals, per_s)

    def _run(self) -> None:
        try:
            while not self._ended.is_set():
                for record in self._reader.read(READ_S):
                    if (found := interval_of(record.value, self._group)) is not None:
                        with self._heard:
                            self._intervals.append(found)
                            self._heard.notify_all()
        except WorkerError:
            return  # what was heard until then counts
        finally:
            self._reader.close()


def interval_of(value: bytes | None, group: str) -> Interval | None:
    """The interval that a record of the metrics topic tells of; None if it is none of this group."""
    try:
        record: dict[str, Any] = orjson.loads(value or b"null")
        worker = record["worker"]
        if record["type"] != "streaminfer.metrics" or worker["group"] != group:
            return None
        return Interval(
            str(worker["id"]),
            str(worker["host"]),
            float(record["interval_s"]),
            sum(int(each["records"]["in"]) for each in record["pipelines"].values()),
            float(record["process"]["cpu_s"]),
            int(record["process"]["rss_bytes"]),
            bool(record["partitions"]),
        )
    except (KeyError, TypeError, AttributeError, ValueError):
        return None  # anyone may write to the topic


def usage_of(intervals: Sequence[Interval], per_s: float) -> Usage | None:
    """See :meth:`Listener.usage`."""
    owners = {each.replica: each for each in intervals if each.owns}
    if not owners:
        return None
    whole = [each for each in intervals if each.replica in owners and each.seconds >= SHORTEST_S]
    each_per_s = per_s / len(owners)

    def total(near: Callable[[Interval], bool]) -> float | None:
        found = [each for each in whole if near(each)]
        records = sum(each.records for each in found)
        return 1e6 * sum(each.cpu_s for each in found) / records if records else None

    cpu = total(lambda each: NEAR * each_per_s <= each.records / each.seconds <= each_per_s / NEAR)
    if cpu is None:
        most = max((each.records / each.seconds for each in whole), default=0.0)
        cpu = total(lambda each: each.records / each.seconds >= NEAR * most)
    return Usage(
        len(owners),
        cpu,
        max(each.rss_bytes for each in owners.values()),
        tuple(sorted({each.host for each in owners.values()})),
    )
