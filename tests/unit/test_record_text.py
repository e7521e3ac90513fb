"""What ``tail`` shows people: a line for each record, by what it is."""

from __future__ import annotations

import argparse
import json
import time
from datetime import datetime
from typing import Any

import orjson
import pytest

from worker.batch import Headers
from worker.cli.connect import beginning, since
from worker.cli.record_text import Lines
from worker.cli.text import harmless, json_value
from worker.kafka.tools import Record

STAMP = 1_763_676_000_123


def record(value: Any, key: bytes | None = None, headers: Headers = ()) -> Record:
    body = value if isinstance(value, bytes) or value is None else json.dumps(value).encode()
    return Record("out", 1, 7, STAMP, key, body, headers)


def lines(*records: Record, full: bool = False) -> list[str]:
    """Without the time, which depends on the zone of this machine."""
    made = Lines(full)
    return [line[14:] if not line.startswith(" ") else line for each in records for line in made.of(each)]


RESULT = {
    "id": "in/3/42",
    "source": {"topic": "in", "partition": 3, "offset": 42, "timestamp_ms": STAMP},
    "model": {"name": "m", "version": "v"},
    "prediction": {
        "label": "7",
        "score": 0.5,
        "top": [{"label": "7", "score": 0.5}, {"label": "1", "score": 0.25}],
    },
    "latency_ms": {
        "broker": 1.0,
        "queue": 0.5,
        "decode": 107.25,
        "wait": 0.0,
        "infer": 3.0,
        "encode": 0.25,
        "total": 112.0,
    },
}
LETTER = [
    ("__connect.errors.topic", b"in"),
    ("__connect.errors.partition", b"3"),
    ("__connect.errors.offset", b"43"),
    ("__connect.errors.stage", b"decode"),
    ("__connect.errors.exception.message", b"no\x1b picture"),
    ("streaminfer.error.reason", b"undecodable"),
]


def test_a_result_is_its_source_its_answer_and_its_time() -> None:
    """A result shows where its record was read, key, answer, total latency and the stage that took most of it."""
    assert lines(record(RESULT, b"a.png")) == ["in/3/42  a.png  7  50.0 %      112 ms  decode 107"]
    assert lines(record(RESULT | {"cached": True}))[0].endswith("decode 107  cached")
    assert lines(record({"id": "x", "error": "invalid: why"})) == ["out/1/7  error: invalid: why"]


def test_columns_line_up() -> None:
    """Later rows are as wide as earlier ones were; a key too long is cut."""
    wide = RESULT | {"source": {"topic": "in", "partition": 3, "offset": 4242}}
    first, second, third = lines(record(wide, b"k" * 50), record(RESULT, b"a"), record(RESULT))
    assert first.index("7  50.0") == second.index("7  50.0") == third.index("7  50.0")
    assert f"{'k' * 21}..." in first


def test_full_adds_a_line_for_each_thing() -> None:
    """With full a result also has its classes, model, latencies and headers."""
    shown = lines(record(RESULT, headers=[("h", b"v")]), full=True)
    assert shown[1:3] == ["    7               50.0 %", "    1               25.0 %"]
    assert "    model m@v" in shown
    assert any(line.startswith("    latency_ms broker 1.0") for line in shown)
    assert shown[-1] == "    h=v"


def test_a_dead_letter_is_its_place_and_why() -> None:
    """A dead letter shows where its record was read, reason, stage and message; its headers only with full."""
    (shown,) = lines(record(b"\x00\xff", b"k", LETTER))
    assert shown == "in/3/43  k  undecodable  decode  no\\x1b picture"
    assert len(lines(record(b"", b"k", LETTER), full=True)) == 1 + len(LETTER)


def test_a_metrics_record_is_one_line() -> None:
    """A metrics record shows the worker, records by pipeline, latency, lag and memory; one of another form says so."""
    found = {
        "type": "streaminfer.metrics",
        "interval_s": 5.0,
        "worker": {"id": "w-1"},
        "pipelines": {
            "p": {"records": {"in": 9, "out": 8, "dead_letter": 1, "dropped": 0},
                  "latency_ms": {"total": {"count": 8, "p50": 1.5, "p99": 12.0}}}
        },
        "partitions": {"in/0": {"lag": 3}, "in/1": {"lag": None}},
        "process": {"rss_bytes": 104857600},
    }  # fmt: skip
    assert lines(record(found)) == ["w-1  5 s  p: in 9 out 8 dead 1 p50 1.5 p99 12 ms  lag 3  rss 100 MiB"]
    assert lines(record({"type": "streaminfer.metrics"})) == ["?  0 s  (of another version)"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ({"features": [1]}, 'out/1/7  key=k  h=v  {"features": [1]}'),
        ({"prediction": 1}, 'out/1/7  key=k  h=v  {"prediction": 1}'),
        (b"\xff\xfe", "out/1/7  key=k  h=v  <2 bytes>"),
        (b"[" * 100_000, "out/1/7  key=k  h=v  " + "[" * 100_000),
        (None, "out/1/7  key=k  h=v  null"),
    ],
    ids=["json", "no id", "bytes", "deep", "tombstone"],
)
def test_any_other_record_is_shown_as_it_is(value: Any, shown: str) -> None:
    """What is no result, dead letter or metrics record is key, headers and value, text on one line."""
    assert lines(record(value, b"k", [("h", b"v")])) == [shown]


def test_times_are_so_long_ago_or_a_date() -> None:
    """--from takes 90s, 10m, 2h, 3d, a date or time of ISO 8601, earliest and latest, and refuses anything else."""
    now = time.time() * 1000
    for text, seconds in (("90s", 90), ("10m", 600), ("1.5h", 5400), ("3d", 259200), ("500ms", 0.5)):
        assert abs(now - since(text) - seconds * 1000) < 5000
    assert since("2026-03-01T14:05:00+00:00") == 1772373900000
    assert since("2026-03-01") == int(datetime(2026, 3, 1).timestamp() * 1000)
    assert (beginning("earliest"), beginning("latest")) == ("earliest", "latest")
    for wrong in ("ten minutes", "10", "-5m", "", "99999-01-01"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected so long ago"):
            beginning(wrong)


@pytest.mark.parametrize(
    "steers", ["\x7f", "\x9b31m", "\x85", "\u202e", "\u200b", "\u2028", "\ufeff"], ids=ascii
)
def test_json_lines_cannot_steer_a_terminal_and_say_the_same(steers: str) -> None:
    """A record's text with 8-bit control, bidirectional or invisible characters is shown as escapes, equal when parsed."""
    value = f'{{"label": "a{steers}\u00e9\u3000b"}}'.encode()
    line = harmless(orjson.dumps({"key": steers, "value": json_value(value)}))
    assert not set(line.decode()) & set(steers.strip("31m"))
    assert "\u00e9\u3000b" in line.decode()
    assert orjson.loads(line) == {"key": steers, "value": orjson.loads(value)}
