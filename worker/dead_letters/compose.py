"""Dead letters: the record unchanged, with headers that say where it came from and why it is here.

The header names ``__connect.errors.*`` are Kafka Connect's (``DeadLetterQueueReporter``), with UTF-8 text as values, so
that existing tools can read them; ``streaminfer.*`` are ours. A dead letter keeps the record's timestamp, so the topic's
``retention.ms`` counts from that time; with ``message.timestamp.type=LogAppendTime`` it counts from the failure. If the
topic would replace the timestamp, or refuse it because of its limits, a header holds the timestamp instead.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass

from worker.batch import Columns, Headers
from worker.errors import Rejection
from worker.sizes import wire_bytes
from worker.text import one_line

CONNECT = "__connect.errors."
OURS = ("streaminfer.error.reason", "streaminfer.error.attempts", "streaminfer.model")
TRIMMED = ("streaminfer.value.bytes", "streaminfer.value.sha256")
TIMESTAMP = "streaminfer.timestamp_ms"
KEY_ADDED = "streaminfer.key.added"
"""This header says that the record had no key and that the dead letter's key was made from its source."""
LETTER_BYTES = 4096
"""Bytes that a dead letter needs besides the record's key, value and headers: for our headers and the message."""
OWN_ERRORS = "worker."
PAYLOAD = "[payload]"
QUOTE_CHARS = 8
"""If a message of at least this many characters occurs in the record, it is taken for a copy of the record's data."""
_QUOTED = re.compile(r"""b?'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)\"""")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One record for the dead-letter topic."""

    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp_ms: int
    """The record's timestamp in Unix milliseconds; 0 = the time of sending."""
    key_added: bool = False
    """Whether the key was made here, because the record had none."""


def compose(
    columns: Columns,
    row: int,
    rejection: Rejection,
    pipeline: str,
    task_id: str,
    model: str | None,
    max_bytes: int,
    keeps_time: Callable[[int], bool] = lambda _timestamp_ms: True,
    needs_key: bool = False,
) -> DeadLetter:
    """The dead letter of one record.

    Args:
        columns, row: the record as it was read.
        pipeline: name of the pipeline that took the record; the worker's name if none did.
        task_id: client.id of this process.
        model: ``name@version``; None if no pipeline took the record.
        max_bytes: ``max.message.bytes`` of the dead-letter topic. If the record does not fit, its value is replaced
            by two headers with its size and SHA-256. If it still does not fit, its headers are left out, then its key.
        keeps_time: whether the dead-letter topic accepts a timestamp (Unix ms) and keeps it.
        needs_key: whether the dead-letter topic refuses records without a key, as a compacted topic does. A letter
            without a key then gets ``topic/partition/offset`` as its key, and a header that says so.
    """
    added = _reasons(columns, row, rejection, pipeline, task_id, model)
    timestamp_ms = max(0, columns.timestamps_ms[row])
    if timestamp_ms and not keeps_time(timestamp_ms):
        added[TIMESTAMP], timestamp_ms = str(timestamp_ms), 0
    # Drop the headers of an earlier failure, whoever wrote them: a replayed record's letter shows the latest failure.
    replaced = {*OURS, *TRIMMED, TIMESTAMP, KEY_ADDED}
    theirs: Headers = [
        pair
        for pair in columns.headers[row] or ()
        if pair[0] not in replaced and not pair[0].startswith(CONNECT)
    ]
    ours: Headers = [(name, text.encode()) for name, text in added.items()]
    key, value = columns.keys[row], columns.values[row]
    made = _source(columns, row).encode() if needs_key else None
    key_added = key is None and needs_key
    if key_added:
        key = made
    if value is not None and wire_bytes(key, value, theirs + ours) > max_bytes:
        digest = hashlib.sha256(value).hexdigest()
        ours += [(TRIMMED[0], str(len(value)).encode()), (TRIMMED[1], digest.encode())]
        value = None
    if wire_bytes(key, value, theirs + ours) > max_bytes:
        theirs = []  # if the topic refused the letter, the record would be retried forever: rather send less
    if wire_bytes(key, value, theirs + ours) > max_bytes:
        key, key_added = made, needs_key
    if key_added:
        ours.append((KEY_ADDED, b"true"))
    return DeadLetter(key, value, theirs + ours, timestamp_ms, key_added)


def _reasons(
    columns: Columns, row: int, rejection: Rejection, pipeline: str, task_id: str, model: str | None
) -> dict[str, str]:
    """The headers that say where a record came from and why it failed; see :func:`compose`."""
    partition = columns.partitions[row]
    return {
        CONNECT + "topic": partition.topic,
        CONNECT + "partition": str(partition.number),
        CONNECT + "offset": str(columns.offsets[row]),
        CONNECT + "connector.name": pipeline,
        CONNECT + "task.id": task_id,
        CONNECT + "stage": rejection.stage,
        CONNECT + "class.name": rejection.class_name,
        CONNECT + "exception.class.name": rejection.exception_class_name,
        CONNECT + "exception.message": one_line(without_payload(rejection, columns.values[row])),
        "streaminfer.error.reason": rejection.reason,
        "streaminfer.error.attempts": str(rejection.attempts),
        "streaminfer.model": model or "",
    }


def _source(columns: Columns, row: int) -> str:
    """``topic/partition/offset`` of a record."""
    partition = columns.partitions[row]
    return f"{partition.topic}/{partition.number}/{columns.offsets[row]}"


def without_payload(rejection: Rejection, value: bytes | None) -> str:
    """The message without its quotations from the record. Only exceptions from outside this package may quote it."""
    if not value or rejection.exception_class_name.startswith(OWN_ERRORS):
        return rejection.message
    if len(rejection.message) >= QUOTE_CHARS and _is_in(rejection.message, value):
        return PAYLOAD
    return _QUOTED.sub(
        lambda found: PAYLOAD if _is_in(found[1] or found[2] or "", value) else found[0], rejection.message
    )


def _is_in(text: str, value: bytes) -> bool:
    """Whether the record contains this text, or the bytes of which the text is the ``repr``."""
    if not text:
        return False
    shown = text.encode(errors="replace")
    try:
        return shown in value or shown.decode("unicode_escape").encode("latin-1") in value
    except ValueError:
        return False
