"""A dead letter as ``dlq show`` writes it: for a reader on a terminal, or as JSON."""

from __future__ import annotations

import base64
from datetime import UTC
from typing import Any

from worker.cli.text import json_value, moment
from worker.dead_letters.compose import CONNECT
from worker.dead_letters.read import Letter, Source
from worker.text import printable

_TOLD = ("topic", "partition", "offset", "stage", "connector.name", "exception.message")
"""Headers that stand in lines of their own."""
PREVIEW_CHARACTERS = 2048
LINE_BREAK = "\n"
PREVIEW_BYTES = 256


def in_full(letter: Letter) -> str:
    """One letter for a reader on a terminal."""
    when = moment(letter.timestamp_ms, lambda at: at.isoformat(timespec="milliseconds"), UTC)
    lines = [
        ("dead letter", str(Source(letter.partition, letter.offset))),
        ("from", str(letter.source or "unknown")),
        ("timestamp", when),
        ("pipeline", letter.pipeline or "unknown"),
        ("reason", f"{letter.reason or '?'} in stage {letter.stage or '?'}"),
        ("message", letter.text(CONNECT + "exception.message")),
        ("key", "none" if letter.key is None else _preview(letter.key)),
    ]
    told = {CONNECT + name for name in _TOLD} | {"streaminfer.error.reason"}
    lines += [
        (f"header {name}", "none" if value is None else _preview(value))
        for name, value in letter.headers
        if name not in told
    ]
    if letter.trimmed:
        lines.append(("value", "not here: it did not fit the dead-letter topic, or could not be read"))
    elif letter.value is None:
        lines.append(("value", "none"))
    else:
        lines.append((f"value of {len(letter.value)} bytes", _preview(letter.value)))
    return "\n".join(f"{printable(name)}: {printable(text, keep=LINE_BREAK)}" for name, text in lines)


def _preview(value: bytes) -> str:
    """The value as text if it is UTF-8, else its first bytes in hexadecimal."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return value[:PREVIEW_BYTES].hex(" ") + _more(len(value), PREVIEW_BYTES)
    return text[:PREVIEW_CHARACTERS] + _more(len(text), PREVIEW_CHARACTERS)


def _more(length: int, shown: int) -> str:
    return " ... (--out FILE writes all of it)" if length > shown else ""


def as_dict(letter: Letter) -> dict[str, Any]:
    return {
        "topic": letter.partition.topic,
        "partition": letter.partition.number,
        "offset": letter.offset,
        "timestamp_ms": letter.timestamp_ms,
        "key": None if letter.key is None else _text_or_base64(letter.key),
        "headers": {
            name: None if value is None else _text_or_base64(value) for name, value in letter.headers
        },
        "value": json_value(letter.value),
    }


def _text_or_base64(value: bytes) -> Any:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}
