"""CloudEvents on Kafka: events in structured mode as they come in, results as events in binary mode as they go out.

The rules are those of CloudEvents 1.0: the JSON event format and the Kafka protocol binding
(https://github.com/cloudevents/spec). In structured mode the value is a JSON object with the attributes and the data;
in binary mode the attributes are headers ``ce_<name>`` and the value is the data.
"""

from __future__ import annotations

import base64
import binascii
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson

from worker.batch import Headers
from worker.errors import Reject
from worker.payload.headers import CONTENT_TYPE, last

if TYPE_CHECKING:
    from worker.settings.sections import CloudEventsSettings

PREFIX = "ce_"
VERSION = "1.0"
_REQUIRED = ("specversion", "id", "source", "type")
_CONTENT = frozenset({"data", "data_base64", "datacontenttype"})
"""Members of an event that are no header ``ce_*`` in binary mode."""
OWN = frozenset(
    f"{PREFIX}{name}"
    for name in (
        *_REQUIRED,
        *(
            "time",
            "subject",
            "datacontenttype",
            "dataschema",
            "dataref",
            "expirytime",
            "sequence",
            "sequencetype",
        ),
    )
)
"""Headers that say what a request is as an event. They are not true of its result, which is never sent with them."""


def attributes(event: dict[str, Any]) -> Headers:
    """The attributes of an event as headers, the way binary mode writes them.

    Raises:
        Reject: ``invalid``: a required attribute is missing, or one is no text, whole number or truth value.
    """
    found: Headers = []
    for name, value in event.items():
        if name in _CONTENT or value is None:  # null is the same as absent
            continue
        if isinstance(value, bool):
            text = "true" if value else "false"
        elif isinstance(value, str | int):
            text = str(value)
        else:
            raise Reject(f'the event\'s attribute "{_short(name)}" is {_kind(value)}, expected text')
        found.append((PREFIX + name, text.encode()))
    for name in _REQUIRED:
        if not isinstance(event.get(name), str) or not event[name]:
            raise Reject(f'the event has no attribute "{name}", expected text that is not empty')
    if event["specversion"] != VERSION:
        raise Reject(f'the event\'s specversion is "{_short(event["specversion"])}", expected "{VERSION}"')
    return found


def parse(value: bytes) -> dict[str, Any]:
    """The JSON object of an event.

    Raises:
        Reject: ``undecodable``: it is none.
    """
    try:
        event = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise Reject(f"the event is not JSON: {error.msg} at byte {error.pos}", "undecodable") from None
    if not isinstance(event, dict):
        raise Reject(f"the event is {_kind(event)}, expected a JSON object", "undecodable")
    return event


def data(event: dict[str, Any]) -> bytes:
    """The value that an event carries: its bytes, its text, or its JSON.

    A text is taken as it is, unless ``datacontenttype`` says that the data are JSON.

    Raises:
        Reject: ``invalid``: there is none or there are two; ``undecodable``: ``data_base64`` is no base64.
    """
    coded, plain = event.get("data_base64"), event.get("data")
    if coded is not None:
        if plain is not None:
            raise Reject("the event has data and data_base64, expected one of them")
        if not isinstance(coded, str):
            raise Reject(f"the event's data_base64 is {_kind(coded)}, expected text")
        try:
            return base64.b64decode(coded, validate=True)
        except (binascii.Error, ValueError):
            raise Reject("the event's data_base64 is no base64", "undecodable") from None
    if plain is None:
        raise Reject("the event has no data, expected data or data_base64")
    if isinstance(plain, str) and not _is_json(event.get("datacontenttype")):
        return plain.encode()
    return orjson.dumps(plain)


def merged(headers: Headers, event: dict[str, Any]) -> Headers:
    """The record's headers as they count: with the event's attributes, which come before headers of the same names.

    ``content-type`` becomes that of the data, and is left out where the event does not name one.
    """
    kept: Headers = [(name, value) for name, value in headers if name.lower() != CONTENT_TYPE]
    kept += attributes(event)
    content_type = event.get("datacontenttype")
    if isinstance(content_type, str):
        kept.append((CONTENT_TYPE, content_type.encode()))
    return kept


class Results:
    """The headers that make results CloudEvents in binary mode; of ``output.cloudevents``."""

    def __init__(self, settings: CloudEventsSettings, content_type: str) -> None:
        self._content_type = content_type.encode()
        fixed = [("specversion", VERSION), ("source", settings.source)]
        both: Headers = [(PREFIX + name, text.encode()) for name, text in fixed]
        self._answer: Headers = [*both, (f"{PREFIX}type", settings.type.encode())]
        self._error: Headers = [*both, (f"{PREFIX}type", f"{settings.type}.error".encode())]

    def add(self, headers: Headers, own_id: str, request_id: str, time: bytes, error: bool = False) -> None:
        """Make the headers of one result those of an event.

        Args:
            headers: those that the result has already; a content type among them stays.
            own_id: ``topic/partition/offset``: the same whenever the record is read again.
            request_id: the id of the record that it answers.
            time: of :func:`now`.
            error: the body is JSON that says why there is no answer.
        """
        headers += self._error if error else self._answer
        headers.append((f"{PREFIX}id", own_id.encode()))
        headers.append((f"{PREFIX}time", time))
        headers.append((f"{PREFIX}correlationid", request_id.encode("utf-8", "replace")))
        if last(headers, CONTENT_TYPE) is None:
            headers.append((CONTENT_TYPE, b"application/json" if error else self._content_type))


def now() -> bytes:
    """The present time as CloudEvents write it: RFC 3339, UTC, in milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z").encode()


def _is_json(content_type: Any) -> bool:
    kind = content_type.partition(";")[0].strip().lower() if isinstance(content_type, str) else ""
    return kind.endswith(("/json", "+json"))


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


def _short(text: str) -> str:
    return text if len(text) <= 64 else text[:64] + "..."
