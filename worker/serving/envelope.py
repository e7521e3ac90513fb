"""What every result carries whatever its format: the record's id, where it came from, copied headers, errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import orjson

from worker.batch import Batch, Columns, Headers, Request, Run, pick
from worker.errors import Rejection

if TYPE_CHECKING:
    from worker.settings import PipelineSettings

_TRACE = frozenset({"traceparent", "tracestate"})
CONTENT_LENGTH = "inference-header-content-length"
"""Record header of a binary Open Inference Protocol body: ASCII decimal length of its JSON part."""


class ResultEncoder:
    """Base of the encoders: which input headers travel on, and bodies for records without a result.

    Args:
        reserved: header names (lower case) this encoder writes itself or that describe the input's body;
            never copied from a record.
    """

    def __init__(
        self, settings: PipelineSettings, model_name: str, model_version: str, reserved: frozenset[str]
    ) -> None:
        wanted = settings.output.headers
        self._copy_all = wanted == "all"
        self._copied = frozenset(wanted if isinstance(wanted, list) else _TRACE if wanted == "trace" else ())
        self._reserved = reserved
        self._requests_are_oip = settings.input.format == "oip"
        self._model = {"name": model_name, "version": model_version}

    def error_body(self, columns: Columns, row: int, rejection: Rejection) -> bytes:
        """``{"id", "error"}`` of a record that is rejected: what ``output.errors`` publishes."""
        # an exception's text may hold what UTF-8 cannot
        message = rejection.message.encode("utf-8", "replace").decode()
        # a record over the limit is not parsed, not even for its id: that takes many times its bytes
        id_ = self._id_without_result(columns, row, may_parse=rejection.reason != "too_large")
        return orjson.dumps({"id": id_, "error": message})

    def expired_body(self, columns: Columns, row: int, message: str) -> bytes:
        """The result of a record past its deadline, where ``limits.expired`` is ``publish``."""
        topic, number = columns.partitions[row]
        source = {
            "topic": topic,
            "partition": number,
            "offset": columns.offsets[row],
            "timestamp_ms": columns.timestamps_ms[row],
        }
        return orjson.dumps(
            {
                "id": self._id_without_result(columns, row),
                "source": source,
                "model": self._model,
                "prediction": None,
                "error": f"expired: {message}",
            }
        )

    def travelling(self, columns: Columns, row: int) -> Headers | None:
        """Headers of an output that no result was made for (a tombstone, an expired record); None where there are none."""
        headers = columns.headers[row]
        return (self._kept(headers) if headers else None) or None

    def _id_without_result(self, columns: Columns, row: int, may_parse: bool = True) -> str:
        """The id of a record that was never decoded, or not to the end: as its result would have had it."""
        value, headers = columns.values[row], columns.headers[row]
        own = _id_in(value, headers) if self._requests_are_oip and may_parse else None
        return own if own is not None else _header_id(headers) or source_of(columns, row)

    def _copy_headers(self, batch: Batch, rows: Sequence[int]) -> None:
        """Give these rows' results the headers that travel on. Rows without headers cost nothing."""
        inputs = batch.columns.headers
        theirs = pick(inputs, rows)
        if not (self._copy_all or self._copied) or not any(theirs):
            return
        for row in rows:
            kept = self._kept(inputs[row])
            if kept:
                column = header_column(batch)
                column[row] = [*(column[row] or ()), *kept]

    def _kept(self, headers: Headers | None) -> Headers:
        return [
            (name, value)
            for name, value in headers or ()
            if (self._copy_all or name in self._copied) and name.lower() not in self._reserved
        ]


def header_column(batch: Batch) -> list[Headers | None]:
    """The batch's column of output headers; made with its first header, None in every row."""
    assert batch.outcomes is not None
    if batch.outcomes.headers is None:
        batch.outcomes.headers = [None] * len(batch)
    return batch.outcomes.headers


def request_of(batch: Batch, row: int) -> Request | None:
    """The Open Inference Protocol request a row was decoded from, if it was one."""
    assert batch.feed is not None
    item = batch.feed.items[row] if batch.feed.items else None
    return item.request if item is not None else None


def own_ids(batch: Batch, rows: Sequence[int]) -> dict[int, str]:
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


def source_of(columns: Columns, row: int) -> str:
    """``topic/partition/offset``."""
    topic, number = columns.partitions[row]
    return f"{topic}/{number}/{columns.offsets[row]}"


def _header_id(headers: Headers | None) -> str | None:
    """``ce_id``, else ``x-request-id``; the last one of a name, and an empty or non-UTF-8 one is as good as none."""
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


def _id_in(value: bytes | None, headers: Headers | None) -> str | None:
    """The id in an Open Inference Protocol request that was refused, as far as it can be read."""
    length = next((text for name, text in headers or () if name.lower() == CONTENT_LENGTH), None)
    try:
        request = orjson.loads((value or b"")[: int(length) if length else None])
    except ValueError:
        return None
    found = request.get("id") if isinstance(request, dict) else None
    return found if isinstance(found, str) else None


def item_spans(run: Run) -> list[tuple[int, int]]:
    """Which items of the outputs (first dimension) belong to each row of a run."""
    if run.counts is None:
        return [(i, i + 1) for i in range(len(run.rows))]
    ends, end = [], 0
    for count in run.counts:
        ends.append((end, end + count))
        end += count
    return ends
