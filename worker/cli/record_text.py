"""Records of the worker's topics for people: a line each, by what they are, and more lines with ``--full``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from worker.batch import Headers, Partition
from worker.cli.prediction_text import details, result_text
from worker.cli.text import moment
from worker.dead_letters.compose import CONNECT
from worker.dead_letters.read import Letter
from worker.kafka.tools import Record
from worker.text import printable

_RESULT = ("prediction", "predictions", "dataref", "error")
_STAGES = ("broker", "queue", "fetch", "decode", "wait", "infer", "encode")
KEY_WIDTH = 24
"""Characters of a key that are shown."""
MESSAGE_WIDTH = 160
"""Characters of a dead letter's message that are shown."""
INDENT = "    "


class Lines:
    """Makes lines of records; columns are as wide as what they have held so far.

    Args:
        full: also a line for each box, class, header and field.
    """

    def __init__(self, full: bool = False) -> None:
        self._full = full
        self._widths: dict[str, int] = {}

    def of(self, record: Record) -> Iterator[str]:
        """The record's lines, without line breaks."""
        time = moment(record.timestamp_ms, _time_of_day)
        letter = Letter(
            Partition(record.topic, record.partition),
            record.offset,
            record.timestamp_ms,
            record.key,
            None,
            record.headers,
        )
        found = _parsed(record.value)
        if letter.reason:
            yield self._letter(time, letter)
        elif isinstance(found, dict) and any(member in found for member in _RESULT) and "id" in found:
            yield self._result(time, record, found)
            if self._full:
                yield from (f"{INDENT}{line}" for line in details(found))
                yield from _rest(found)
        elif isinstance(found, dict) and found.get("type") == "streaminfer.metrics":
            yield _metrics(time, found)
        else:
            yield _plain(time, record)
            return
        if self._full:
            yield from _headers(record.headers)

    def _result(self, time: str, record: Record, result: dict[str, Any]) -> str:
        parts = [time, self._cell("place", _place_of(result, record)), self._key(record.key)]
        parts.append(self._cell("answer", result_text(result)))
        parts.append(_latency(result.get("latency_ms")))
        parts += ["cached"] * bool(result.get("cached"))
        return "  ".join(filter(None, parts)).rstrip()

    def _letter(self, time: str, letter: Letter) -> str:
        message = " ".join(printable(letter.text(CONNECT + "exception.message")).split())
        cut = message if len(message) <= MESSAGE_WIDTH or self._full else f"{message[:MESSAGE_WIDTH]}..."
        place = str(letter.source or f"{letter.partition.topic}/{letter.partition.number}/{letter.offset}")
        parts = [
            time,
            self._cell("place", printable(place)),
            self._key(letter.key),
            self._cell("reason", printable(letter.reason)),
            self._cell("stage", printable(letter.stage)),
            cut,
        ]
        return "  ".join(filter(None, parts)).rstrip()

    def _key(self, key: bytes | None) -> str:
        if key is None and "key" not in self._widths:
            return ""
        text = "" if key is None else _text(key)
        return self._cell("key", text if len(text) <= KEY_WIDTH else f"{text[: KEY_WIDTH - 3]}...")

    def _cell(self, column: str, text: str) -> str:
        width = self._widths[column] = max(self._widths.get(column, 0), min(len(text), 40))
        return f"{text:<{width}}"


def _parsed(value: bytes | None) -> Any:
    try:
        return None if value is None else json.loads(value)
    except (ValueError, RecursionError):
        return None


def _place_of(result: dict[str, Any], record: Record) -> str:
    """Where the record that was answered stands, else where the result does."""
    source = result.get("source")
    if isinstance(source, dict):
        return printable("/".join(str(source.get(part, "?")) for part in ("topic", "partition", "offset")))
    return f"{record.topic}/{record.partition}/{record.offset}"


def _latency(latency: Any) -> str:
    """The total, and the stage that took most of it."""
    if not isinstance(latency, dict) or not isinstance(latency.get("total"), int | float):
        return ""
    stages = {name: latency[name] for name in _STAGES if isinstance(latency.get(name), int | float)}
    longest = max(stages, key=lambda name: stages[name], default="")
    told = f"  {longest} {stages[longest]:.3g}" if longest else ""
    return f"{latency['total']:>7.4g} ms{told}"


def _rest(result: dict[str, Any]) -> Iterator[str]:
    """What else stands in a result."""
    model = result.get("model")
    if isinstance(model, dict):
        yield f"{INDENT}model {printable(str(model.get('name')))}@{printable(str(model.get('version')))}"
    for name in ("latency_ms", "steps_ms", "fields"):
        if isinstance(result.get(name), dict):
            yield f"{INDENT}{name} " + "  ".join(
                f"{printable(str(key))} {printable(json.dumps(value, ensure_ascii=False))}"
                for key, value in result[name].items()
            )


def _metrics(time: str, found: dict[str, Any]) -> str:
    """One interval of one process: records, errors, latency and lag."""
    parts = [
        time,
        printable(str(found.get("worker", {}).get("id", "?"))),
        f"{found.get('interval_s', 0):g} s",
    ]
    try:
        for name, pipeline in found["pipelines"].items():
            records = pipeline["records"]
            total = pipeline["latency_ms"].get("total", {})
            parts.append(
                f"{printable(str(name))}: in {records['in']} out {records['out']} dead {records['dead_letter']}"
                + (f" p50 {total['p50']:.3g} p99 {total['p99']:.3g} ms" if total.get("count") else "")
            )
        lag = sum(each.get("lag") or 0 for each in found["partitions"].values())
        parts.append(f"lag {lag}  rss {found['process']['rss_bytes'] / (1 << 20):.0f} MiB")
    except (KeyError, TypeError, AttributeError):
        parts.append("(of another version)")
    return "  ".join(parts)


def _headers(headers: Headers) -> Iterator[str]:
    for name, value in headers:
        yield f"{INDENT}{printable(name)}={_readable(value)}"


def _plain(time: str, record: Record) -> str:
    """A record of any other kind: place, key, headers and value."""
    parts = [time, f"{record.topic}/{record.partition}/{record.offset}"]
    if record.key is not None:
        parts.append(f"key={_readable(record.key)}")
    parts += [f"{printable(name)}={_readable(value)}" for name, value in record.headers]
    parts.append(_readable(record.value))
    return "  ".join(parts)


def _time_of_day(when: datetime) -> str:
    return when.strftime("%H:%M:%S.%f")[:-3]


def _readable(value: bytes | None) -> str:
    return "null" if value is None else _text(value)


def _text(value: bytes) -> str:
    """Text on one line; what is none, by its size."""
    try:
        return printable(value.decode())
    except UnicodeDecodeError:
        return f"<{len(value)} bytes>"
