"""What every answer of a route carries whatever its format: an id, where the record came from, copied headers, errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, Protocol

import orjson

from worker.batch import Batch, Columns, Headers, Servable, pick
from worker.encode.rows import header_column, request_of, source_of
from worker.errors import Postponed, Reject, Rejection, Retry
from worker.payload import events
from worker.payload.headers import CONTENT_ENCODING, CONTENT_TYPE, ENCRYPTION, is_structured
from worker.records import ReadId
from worker.schema_registry.frame import HEADER as SCHEMA_ID

if TYPE_CHECKING:
    from worker.payload.opening import Opening
    from worker.payload.wrapping import Wrapping

SOURCE = "streaminfer.source"
"""Header ``topic/partition/offset`` of an output whose body has no place for it."""
_PEEK_BYTES = 1 << 20
"""Most bytes that are unwrapped for the id of a record that is refused."""
TRACEPARENT = "traceparent"
_TRACE = frozenset({TRACEPARENT, "tracestate"})


class Writer(Protocol):
    """Writes values of an output topic in another format than JSON: see :mod:`worker.encode.registered`."""

    headers: Headers
    """What every output that has a value carries."""

    def write(self, body: bytes) -> bytes:
        """The value of a JSON body."""

    def read(self, value: bytes) -> Any:
        """A value as plain data, for people."""


class Envelope:
    """The part of every answer that does not depend on the model. One route has one; it is immutable.

    Args:
        copied: ``output.headers``: which input headers an output gets.
        reserved: header names (lower case) that the output format writes itself or that describe the input's body; they
            are never copied from a record.
        names_source: every output gets the header :data:`SOURCE`, unless ``copied`` is ``none``.
        read_id: reads the id inside a record's value, where the input format has such a thing.
        expires_as_error: an expired record's body is that of a refused one.
        wrapping: wraps every body; None = bodies go out as they are.
        results: makes every answer an event; None = they are none.
        opening: how the route's records are opened.
        writer: writes every value of the output topic in another format than JSON; None = values stay as they are.
    """

    def __init__(
        self,
        copied: Literal["none", "trace", "all"] | list[str],
        reserved: frozenset[str],
        names_source: bool = False,
        read_id: ReadId | None = None,
        expires_as_error: bool = False,
        wrapping: Wrapping | None = None,
        results: events.Results | None = None,
        opening: Opening | None = None,
        writer: Writer | None = None,
    ) -> None:
        self._always: Headers = writer.headers if writer is not None else []
        self.write: Callable[[bytes], bytes] = writer.write if writer is not None else bytes
        """Makes a value of the output topic of its JSON."""
        self.read: Callable[[bytes], Any] = writer.read if writer is not None else orjson.loads
        """Makes plain data of such a value."""
        self._wrapping = wrapping
        self._results = results
        self._peek = opening.within(_PEEK_BYTES) if opening is not None and not opening.runs_code else None
        self.completes = wrapping is not None or results is not None
        """:meth:`complete` has something to do."""
        self.copies_trace = copied in ("trace", "all") or TRACEPARENT in copied
        """A result carries the trace context of its record."""
        self._expires_as_error = expires_as_error
        self._copies_all = copied == "all"
        self._copied = frozenset(copied if isinstance(copied, list) else _TRACE if copied == "trace" else ())
        self._reserved = reserved | {CONTENT_ENCODING, ENCRYPTION, SCHEMA_ID}
        if self._copies_all:  # by name a user may ask for one of them
            # the id alone makes no event of a result, and readers match it with their request
            self._reserved |= events.OWN if results is not None else events.OWN - {"ce_id"}
        if results is not None:
            self._reserved |= {CONTENT_TYPE}
        self._names_source = names_source and copied != "none"
        self._read_id = read_id

    # -- answers of a model ------------------------------------------------------------------------------

    def ids(self, batch: Batch, rows: Sequence[int]) -> dict[int, str]:
        """Ids that the records brought along, by row: of the request, else of a header. Mostly empty."""
        headers, found = batch.headers, {}
        theirs = pick(headers, rows)
        if any(theirs):
            found = {row: own for row in rows if (own := _header_id(headers[row])) is not None}
        if batch.feed is not None and batch.feed.items:
            for row in rows:
                request = request_of(batch, row)
                if request is not None and request.id is not None:
                    found[row] = request.id
        return found

    def add_headers(self, batch: Batch, rows: Sequence[int]) -> None:
        """Give these rows' results the headers that go with them. Rows without headers cost nothing."""
        inputs = batch.headers
        if self._names_source:
            column = header_column(batch)
            for row in rows:
                column[row] = [*(column[row] or ()), (SOURCE, source_of(batch.columns, row).encode())]
        if self._always:
            column = header_column(batch)
            for row in rows:
                column[row] = [*(column[row] or ()), *self._always]
        theirs = pick(inputs, rows)
        if not (self._copies_all or self._copied) or not any(theirs):
            return
        for row in rows:
            kept = self._kept(inputs[row])
            if kept:
                column = header_column(batch)
                column[row] = [*(column[row] or ()), *kept]

    def complete(self, batch: Batch, rows: Sequence[int]) -> None:
        """Make the finished results of these rows events, and wrap them. Rows without a body are left alone."""
        assert batch.outcomes is not None
        assert batch.feed is not None
        bodies, column = batch.outcomes.bodies, header_column(batch)
        seal = self._wrapping.now() if self._wrapping is not None else None
        ids = self.ids(batch, rows) if self._results is not None else {}
        time = events.now()
        for row in rows:
            body = bodies[row]
            if body is None:
                continue
            headers = [*(column[row] or ())]
            if self._results is not None:
                own = source_of(batch.columns, row)
                self._results.add(headers, own, ids.get(row, own), time)
            if seal is not None:
                try:
                    bodies[row] = seal(body)
                except Exception as error:
                    bodies[row] = None
                    if isinstance(error, Retry):
                        batch.feed.postponed[row] = Postponed.of(error, "encode", self._wrapping)
                    else:
                        batch.outcomes.rejected[row] = Rejection.of(error, "encode", self._wrapping)
                    continue
                headers += seal.headers
            column[row] = headers or None

    def undo(self, body: bytes, headers: Headers | None) -> bytes:
        """A result as it was before it was wrapped, for whoever may see it."""
        return self._wrapping.undo(body, headers) if self._wrapping is not None else body

    # -- outputs for which no model ran ------------------------------------------------------------------

    def headers(self, columns: Columns, row: int) -> Headers | None:
        """Headers of a tombstone that is passed on; None where it has none. It is no event, and has nothing to wrap."""
        source = [(SOURCE, source_of(columns, row).encode())] if self._names_source else []
        return [*source, *self._kept(columns.headers[row])] or None

    def error(self, columns: Columns, row: int, rejection: Rejection) -> tuple[bytes, Headers | None]:
        """``{"id", "error"}`` of a rejected record: what ``output.errors`` publishes, and its headers."""
        # The text of an exception may hold characters that UTF-8 cannot encode.
        message = rejection.message.encode("utf-8", "replace").decode()
        # A record over the limit is not parsed, not even for its id: parsing takes many times its bytes.
        id_ = self._id(columns, row, may_parse=rejection.reason != "too_large")
        return self._without_answer(columns, row, id_, {"id": id_, "error": message})

    def expired(
        self, columns: Columns, row: int, message: str, servable: Servable
    ) -> tuple[bytes, Headers | None]:
        """The result of a record past its deadline, where ``limits.expired`` is ``publish``, and its headers."""
        id_ = self._id(columns, row)
        if self._expires_as_error:
            return self._without_answer(columns, row, id_, {"id": id_, "error": f"expired: {message}"})
        topic, number = columns.partitions[row]
        source = {
            "topic": topic,
            "partition": number,
            "offset": columns.offsets[row],
            "timestamp_ms": columns.timestamps_ms[row],
        }
        body = {
            "id": id_,
            "source": source,
            "model": {"name": servable.model_name, "version": servable.model_version},
            "prediction": None,
            "error": f"expired: {message}",
        }
        return self._without_answer(columns, row, id_, body)

    def _without_answer(
        self, columns: Columns, row: int, id_: str, said: dict[str, Any]
    ) -> tuple[bytes, Headers | None]:
        """A body that says why there is no answer, with its headers, wrapped as answers are.

        Raises:
            Reject: custom code cannot wrap it.
        """
        body = self.write(orjson.dumps(said))
        headers = [*(self.headers(columns, row) or []), *self._always]
        if self._results is not None:
            self._results.add(headers, source_of(columns, row), id_, events.now(), error=True)
        if self._wrapping is not None:
            seal = self._wrapping.now()
            try:
                body = seal(body)
            except Exception as error:  # custom code: nothing goes out unwrapped in its place
                reason = error.reason if isinstance(error, Reject) else "model_error"
                raise Reject(f"the error cannot be wrapped: {error}", reason) from None
            headers += seal.headers
        return body, headers or None

    def _id(self, columns: Columns, row: int, may_parse: bool = True) -> str:
        """The id of a record that was not decoded, or not to the end: the one that its result would have had."""
        value, headers = columns.values[row], columns.headers[row]
        if may_parse:
            value, headers = self._seen(value, headers, columns.partitions[row].topic)
        own = self._read_id(value or b"", headers) if self._read_id is not None and may_parse else None
        return own if own is not None else _header_id(headers) or source_of(columns, row)

    def _seen(
        self, value: bytes | None, headers: Headers | None, topic: str
    ) -> tuple[bytes | None, Headers | None]:
        """As much of a record as can be opened for its id."""
        if value is None or self._peek is None or not self._peek.applies(headers):
            return value, headers
        is_event = is_structured(headers)
        if self._read_id is None and not is_event:
            return value, headers
        with suppress(Exception):  # what is wrong with it is told elsewhere
            value = self._peek.unwrap(value, headers, topic)
            if is_event:
                event = events.parse(value)
                headers = events.merged(headers or [], event)
                value = events.data(event)
        return value, headers

    def _kept(self, headers: Headers | None) -> Headers:
        return [
            (name, value)
            for name, value in headers or ()
            if (self._copies_all or name in self._copied)
            and name.lower() not in self._reserved
            and not (name.lower() == CONTENT_TYPE and is_structured([(name, value)]))
        ]


def _header_id(headers: Headers | None) -> str | None:
    """``ce_id``, else ``x-request-id``. The last header of a name counts; an empty or non-UTF-8 one counts as absent."""
    if not headers:
        return None
    values = dict(headers)
    for name in ("ce_id", "x-request-id"):
        try:
            text = (values.get(name) or b"").decode()
        except UnicodeDecodeError:
            continue
        if text:
            return text
    return None
