"""What every answer of a route carries whatever its format: an id, where the record came from, copied headers, errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import orjson

from worker.batch import Batch, Columns, Headers, Servable, pick
from worker.encode.rows import header_column, request_of, source_of
from worker.errors import Rejection
from worker.records import ReadId
from worker.records.gzip_body import CONTENT_ENCODING

SOURCE = "streaminfer.source"
"""Header ``topic/partition/offset`` of an output whose body has no place for it."""
_TRACE = frozenset({"traceparent", "tracestate"})


class Envelope:
    """The part of every answer that does not depend on the model. One route has one; it is immutable.

    Args:
        copied: ``output.headers``: which input headers an output gets.
        reserved: header names (lower case) that the output format writes itself or that describe the input's body; they
            are never copied from a record.
        names_source: every output gets the header :data:`SOURCE`, unless ``copied`` is ``none``.
        read_id: reads the id inside a record's value, where the input format has such a thing.
        expires_as_error: an expired record's body is that of a refused one.
    """

    def __init__(
        self,
        copied: Literal["none", "trace", "all"] | list[str],
        reserved: frozenset[str],
        names_source: bool = False,
        read_id: ReadId | None = None,
        expires_as_error: bool = False,
    ) -> None:
        self._expires_as_error = expires_as_error
        self._copies_all = copied == "all"
        self._copied = frozenset(copied if isinstance(copied, list) else _TRACE if copied == "trace" else ())
        self._reserved = reserved | {CONTENT_ENCODING}
        self._names_source = names_source and copied != "none"
        self._read_id = read_id

    # -- answers of a model ------------------------------------------------------------------------------

    def ids(self, batch: Batch, rows: Sequence[int]) -> dict[int, str]:
        """Ids that the records brought along, by row: of the request, else of a header. Mostly empty."""
        headers, found = batch.columns.headers, {}
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
        inputs = batch.columns.headers
        if self._names_source:
            column = header_column(batch)
            for row in rows:
                column[row] = [*(column[row] or ()), (SOURCE, source_of(batch.columns, row).encode())]
        theirs = pick(inputs, rows)
        if not (self._copies_all or self._copied) or not any(theirs):
            return
        for row in rows:
            kept = self._kept(inputs[row])
            if kept:
                column = header_column(batch)
                column[row] = [*(column[row] or ()), *kept]

    # -- outputs for which no model ran ------------------------------------------------------------------

    def headers(self, columns: Columns, row: int) -> Headers | None:
        """Headers of an output for which no model ran (a tombstone, an expired record); None where it has none."""
        source = [(SOURCE, source_of(columns, row).encode())] if self._names_source else []
        return [*source, *self._kept(columns.headers[row])] or None

    def error_body(self, columns: Columns, row: int, rejection: Rejection) -> bytes:
        """``{"id", "error"}`` of a rejected record: what ``output.errors`` publishes."""
        # The text of an exception may hold characters that UTF-8 cannot encode.
        message = rejection.message.encode("utf-8", "replace").decode()
        # A record over the limit is not parsed, not even for its id: parsing takes many times its bytes.
        id_ = self._id(columns, row, may_parse=rejection.reason != "too_large")
        return orjson.dumps({"id": id_, "error": message})

    def expired_body(self, columns: Columns, row: int, message: str, servable: Servable) -> bytes:
        """The result of a record past its deadline, where ``limits.expired`` is ``publish``."""
        if self._expires_as_error:
            return orjson.dumps({"id": self._id(columns, row), "error": f"expired: {message}"})
        topic, number = columns.partitions[row]
        source = {
            "topic": topic,
            "partition": number,
            "offset": columns.offsets[row],
            "timestamp_ms": columns.timestamps_ms[row],
        }
        return orjson.dumps(
            {
                "id": self._id(columns, row),
                "source": source,
                "model": {"name": servable.model_name, "version": servable.model_version},
                "prediction": None,
                "error": f"expired: {message}",
            }
        )

    def _id(self, columns: Columns, row: int, may_parse: bool = True) -> str:
        """The id of a record that was not decoded, or not to the end: the one that its result would have had."""
        value, headers = columns.values[row], columns.headers[row]
        own = self._read_id(value or b"", headers) if self._read_id is not None and may_parse else None
        return own if own is not None else _header_id(headers) or source_of(columns, row)

    def _kept(self, headers: Headers | None) -> Headers:
        return [
            (name, value)
            for name, value in headers or ()
            if (self._copies_all or name in self._copied) and name.lower() not in self._reserved
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
