"""What becomes of replayed records: read from the topics of results and of dead letters."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import Any

from worker.batch import Partition
from worker.cli.payloads import reader_of_results, unwrapped
from worker.cli.registered import Unframer
from worker.dead_letters.read import Letter, Source
from worker.errors import ConfigError
from worker.kafka.properties import Connection
from worker.kafka.tools import Record, TopicReader
from worker.settings import Settings

TICK_S = 0.2
SOURCE = "streaminfer.source"
"""Header of a binary result: where its record was read."""


class Back:
    """Listens from its construction on, so that nothing that a replay causes is missed.

    Raises:
        ConfigError: results do not say which record they are of.
        StartError: the broker does not answer or refuses us; a topic does not exist.
    """

    def __init__(self, settings: Settings) -> None:
        for name, pipeline in settings.pipelines.items():
            output = pipeline.output
            if output.kafka is not None:
                raise ConfigError(f"--wait: results of {name} are on another cluster, which is not read")
            if output.body is not None or (output.format != "json" and output.headers == "none"):
                raise ConfigError(
                    f"--wait: results of {name} do not say which record they are of; expected no output.body, "
                    "and output.headers other than none"
                )
        self._letters = settings.dead_letter.topic
        outputs = {pipeline.output.topic for pipeline in settings.pipelines.values()}
        client = Connection("streaminfer-dlq", {k: v for k, v in settings.kafka.items() if k != "client.id"})
        self._read = reader_of_results(settings)
        self._plain = Unframer(settings.registry) if settings.registry is not None else None
        self._reader = TopicReader(client, sorted({*outputs, self._letters}), "latest")
        self._expected: set[Source] = set()
        self._seen: dict[Source, str] = {}
        """Place of each record that came back -> its reason as a dead letter, or nothing where it was answered."""

    def expect(self, place: Source) -> None:
        """A record was sent back to this place."""
        self._expected.add(place)

    def wait(self, seconds: float) -> None:
        """Read until every expected record has come back, or the time is up."""
        deadline = time.monotonic() + seconds
        try:
            while not self._expected <= self._seen.keys() and time.monotonic() < deadline:
                for record in self._reader.read(TICK_S):
                    self._take(record)
        finally:
            self._reader.close()
            if self._plain is not None:
                self._plain.close()

    def _take(self, record: Record) -> None:
        if record.topic == self._letters:
            place = Partition(record.topic, record.partition)
            letter = Letter(place, record.offset, record.timestamp_ms, record.key, None, record.headers)
            if letter.source is not None:
                self._seen[letter.source] = letter.reason or "unknown"
            return
        source = self._source(record)
        if source is not None:
            self._seen.setdefault(source, "")

    def _source(self, record: Record) -> Source | None:
        """Where the record was read that a result is of; None if it does not say."""
        named = next((value for name, value in reversed(record.headers) if name == SOURCE), None)
        if named is not None:
            return _place(named.decode(errors="replace").rsplit("/", 2))
        value = unwrapped(self._read(record.topic), record.value, record.headers)
        if self._plain is not None:
            value = self._plain.json(value, record.headers)
        try:
            found: Any = json.loads(value or b"")
        except (ValueError, RecursionError):
            return None
        source = found.get("source") if isinstance(found, dict) else None
        if not isinstance(source, dict):
            return None
        return _place([source.get(part) for part in ("topic", "partition", "offset")])

    @property
    def _came(self) -> list[str]:
        return [self._seen[place] for place in self._expected if place in self._seen]

    def as_object(self) -> dict[str, Any]:
        """What came back, for a program."""
        return {
            "answered": self._came.count(""),
            "dead_letters": dict(Counter(filter(None, self._came))),
            "missing": len(self._expected) - len(self._came),
        }

    def describe(self, waited_s: float) -> str:
        """The same as one line."""
        found = self.as_object()
        again = sum(found["dead_letters"].values())
        parts = [f"{found['answered']} answered"]
        if again:
            reasons = ", ".join(
                f"{count} {reason}" for reason, count in sorted(found["dead_letters"].items())
            )
            parts.append(f"{again} dead letter{'s' * (again != 1)} again ({reasons})")
        if found["missing"]:
            parts.append(
                f"{found['missing']} not seen within {waited_s:g} s: no worker reads them, or they are dropped"
            )
        return f"came back: {', '.join(parts)}"


def _place(parts: list[Any]) -> Source | None:
    try:
        topic, partition, offset = parts
        return Source(Partition(str(topic), int(partition)), int(offset))
    except (TypeError, ValueError):
        return None
