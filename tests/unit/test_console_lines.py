"""A log line for people."""

from __future__ import annotations

import time

from worker.telemetry.console import console_line, ranges

NOW = time.struct_time((2026, 1, 2, 6, 36, 21, 4, 2, 0))


def test_a_line_has_time_level_replica_event_and_fields_in_the_given_order() -> None:
    """Local time, a level of five characters, the replica, the event, then the fields; what is the same everywhere is left out."""
    event = {
        "timestamp": "2026-01-02T05:36:21Z",
        "level": "warning",
        "event": "broker lost",
        "replica": 1,
        "pid": 77,
        "group": "g",
        "zebra": 1,
        "apple": "two words",
        "ok": True,
        "none": [],
        "module": "worker.app",
    }
    assert console_line(event, replicas=True, now=NOW) == (
        '06:36:21 warn  1   broker lost  zebra=1  apple="two words"  ok=yes  none=none'
    )
    assert console_line({"level": "info", "event": "x", "module": "librdkafka"}, now=NOW) == (
        "06:36:21 info   x  module=librdkafka"
    )


def test_partitions_are_ranges_and_sizes_are_mib() -> None:
    """A list of partitions is one word for each topic, and a large number of bytes is in MiB."""
    assert ranges(["b/7", "a/2", "a/0", "a/1", "a/5"]) == "b/7 a/0-2,5"
    event = {
        "level": "info",
        "event": "e",
        "partitions": ["a/0", "a/1"],
        "rss_bytes": 139 << 20,
        "small_bytes": 5,
    }
    assert console_line(event, now=NOW).endswith("e  partitions=a/0-1  rss=139MiB  small_bytes=5")


def test_a_line_is_broken_at_a_field_where_the_terminal_ends() -> None:
    """On 80 columns a long event goes on in indented lines of at most 80 characters; without a width it is one line."""
    event = {"level": "info", "event": "started", **{f"field{i}": "v" * 12 for i in range(12)}}
    lines = console_line(event, width=80, now=NOW).splitlines()
    assert len(lines) > 2
    assert max(map(len, lines)) <= 80
    assert all(line.startswith("        ") for line in lines[1:])
    assert "\n" not in console_line(event, now=NOW)
    coloured = console_line(event, colors=True, width=80, now=NOW).splitlines()
    assert len(coloured) == len(lines)


def test_a_value_cannot_steer_a_terminal() -> None:
    """Escape sequences and line ends in a value or an event are shown as escapes; a traceback keeps its lines."""
    event = {"level": "error", "event": "e\x1b[2J", "value": "a\nb\x1b[2J", "exception": "one\ntwo\x1b[2J"}
    text = console_line(event, now=NOW)
    assert "\x1b" not in text
    assert text.splitlines()[1:] == ["    one", "    two\\x1b[2J"]
