"""Dead letters: the record unchanged, with headers that say where it came from and why it is here.

The ``__connect.errors.*`` names are Kafka Connect's (``DeadLetterQueueReporter``), values UTF-8 text, so that
existing triage tools read them; ``streaminfer.*`` are ours. The timestamp stays the original's, so the topic's
``retention.ms`` counts from there: give it ``message.timestamp.type=LogAppendTime`` to count from the failure. Such a
topic does not keep it, and one with limits on timestamps may refuse it: then it is in a header.
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
"""Says that the record had no key, and that the dead letter's was made of its source."""
LETTER_BYTES = 4096
"""Room that a dead letter needs without its record's key, value and headers: names, places and the message."""
OWN_ERRORS = "worker."
PAYLOAD = "[payload]"
QUOTE_CHARS = 8
"""From here on a whole message that is found in the record is taken for a copy of it."""
_QUOTED = re.compile(r"""b?'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)\"""")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One record for the dead-letter topic."""

    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp_ms: int
    """The original's; 0 = the time of sending."""
    key_added: bool = False
    """The key is not the record's own."""


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
        columns, row: the original, bytes as they came.
        pipeline: name of the pipeline that took it (the worker's own where none did).
        task_id: client.id of this process.
        model: ``name@version``; None where no pipeline took the record.
        max_bytes: ``max.message.bytes`` of the dead-letter topic. An original that does not fit loses its
            value, which is then described by size and SHA-256; its own headers and its key only where it does not
            fit without its value either.
        keeps_time: whether the dead-letter topic takes a timestamp and keeps it.
        needs_key: whether the dead-letter topic takes records with a key only, as a compacted one does. A letter
            without a key then gets one made of its source, ``topic/partition/offset``, and a header that says so.
    """
    added = _reasons(columns, row, rejection, pipeline, task_id, model)
    timestamp_ms = max(0, columns.timestamps_ms[row])
    if timestamp_ms and not keeps_time(timestamp_ms):
        added[TIMESTAMP], timestamp_ms = str(timestamp_ms), 0
    # headers of an earlier failure are replaced, whoever wrote them: a replayed record says why it failed this time
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
        theirs = []  # a letter the topic refuses would come back for ever: better one that says less
    if wire_bytes(key, value, theirs + ours) > max_bytes:
        key, key_added = made, needs_key
    if key_added:
        ours.append((KEY_ADDED, b"true"))
    return DeadLetter(key, value, theirs + ours, timestamp_ms, key_added)


def _reasons(
    columns: Columns, row: int, rejection: Rejection, pipeline: str, task_id: str, model: str | None
) -> dict[str, str]:
    """The headers that say where a record came from and why it is here; see :func:`compose`."""
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
        CONNECT + "exception.message": one_line(_without_payload(rejection, columns.values[row])),
        "streaminfer.error.reason": rejection.reason,
        "streaminfer.error.attempts": str(rejection.attempts),
        "streaminfer.model": model or "",
    }


def _source(columns: Columns, row: int) -> str:
    """``topic/partition/offset`` of a record."""
    partition = columns.partitions[row]
    return f"{partition.topic}/{partition.number}/{columns.offsets[row]}"


def _without_payload(rejection: Rejection, value: bytes | None) -> str:
    """The message without what it quotes of the record. Our own never do; other people's exceptions may."""
    if not value or rejection.exception_class_name.startswith(OWN_ERRORS):
        return rejection.message
    if len(rejection.message) >= QUOTE_CHARS and _is_in(rejection.message, value):
        return PAYLOAD
    return _QUOTED.sub(
        lambda found: PAYLOAD if _is_in(found[1] or found[2] or "", value) else found[0], rejection.message
    )


def _is_in(text: str, value: bytes) -> bool:
    """Whether the record holds this text, or the bytes that it is the ``repr`` of."""
    if not text:
        return False
    shown = text.encode(errors="replace")
    try:
        return shown in value or shown.decode("unicode_escape").encode("latin-1") in value
    except ValueError:
        return False
