"""Results as Open Inference Protocol v2 responses, JSON or binary.

A binary output's little-endian bytes follow the JSON part, whose length is in header
``inference-header-content-length``. FP16 has no JSON form in the protocol, so an FP16 output is always binary.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import orjson

from worker.batch import CONTENT_LENGTH, Array, Batch, Headers, Request, Run
from worker.encode.rows import header_column, item_spans, request_of, source_of
from worker.errors import Rejection
from worker.model.signature import Signature, TensorSpec
from worker.postprocess import rendering

if TYPE_CHECKING:
    from worker.serving.envelope import Envelope
    from worker.settings import PipelineSettings

_CONTENT_TYPE = "content-type"
_JSON_HEADERS: Headers = [(_CONTENT_TYPE, b"application/json")]
_DEFAULT = Request()


class Answer(NamedTuple):
    """The fragment of one row: its ``outputs`` as JSON text, and the binary tensors that follow the JSON part."""

    outputs: bytes
    tensors: list[bytes]


class OipEncoder:
    """One response for each record: the outputs that it asks for, in its order; else all of the model's."""

    predicts = False
    reserved = frozenset({CONTENT_LENGTH, _CONTENT_TYPE})
    expires_as_error = True
    content_type = "application/json"
    names_source = False

    def __init__(
        self,
        settings: PipelineSettings,
        signature: Signature,
        model_name: str,
        model_version: str,
        labels: Sequence[str] | None,
        envelope: Envelope,
    ) -> None:
        self._envelope = envelope
        self._specs = {spec.name: spec for spec in signature.outputs}
        model = orjson.dumps({"model_name": model_name, "model_version": model_version})[1:-1]
        self._template = b'{%b,"id":%%b,"outputs":[%%b],"parameters":{"source":%%b}}' % model.replace(
            b"%", b"%%"
        )

    def predict(self, batch: Batch, run: Run) -> list[Answer | Rejection]:
        """See :meth:`worker.encode.Encoder.predict`."""
        answers = {name: _Output(spec, run.outputs[name], run) for name, spec in self._specs.items()}
        return [self._fragment(answers, place, request_of(batch, row)) for place, row in enumerate(run.rows)]

    def _fragment(self, answers: dict[str, _Output], place: int, asked: Request | None) -> Answer | Rejection:
        request = asked or _DEFAULT
        wanted = [answers[name] for name in request.outputs or self._specs]
        unsayable = [out for out in wanted if place in out.non_finite and not out.is_binary(request)]
        if unsayable:
            return rendering.non_finite(unsayable[0].name, self)
        entries, tensors = [], []
        for output in wanted:
            if output.is_binary(request):
                tensors.append(output.tensor(place))
                size = b'"parameters":{"binary_data_size":%d}' % len(tensors[-1])
                entries.append(output.entry(place, size))
            else:
                entries.append(output.entry(place, b'"data":' + output.data(place)))
        return Answer(b",".join(entries), tensors)

    def bodies(self, batch: Batch, run: Run, fragments: Sequence[Answer | Rejection]) -> None:
        """See :meth:`worker.encode.Encoder.bodies`."""
        assert batch.outcomes is not None
        ids = self._envelope.ids(batch, run.rows)
        headers = header_column(batch)
        answered = []
        for row, fragment in zip(run.rows, fragments, strict=True):
            if isinstance(fragment, Rejection):
                batch.outcomes.rejected[row] = fragment
                continue
            source = source_of(batch.columns, row)
            id_ = orjson.dumps(ids.get(row, source))
            text = self._template % (id_, fragment.outputs, orjson.dumps(source))
            batch.outcomes.bodies[row] = b"".join([text, *fragment.tensors])
            headers[row] = _binary_headers(len(text)) if fragment.tensors else _JSON_HEADERS
            answered.append(row)
        self._envelope.add_headers(batch, answered)


class _Output:
    """One output of a run, split by record; ``place`` is the record's position in the run."""

    def __init__(self, spec: TensorSpec, values: Array, run: Run) -> None:
        self.name = spec.name
        self._datatype = spec.datatype
        self._head = orjson.dumps({"name": spec.name, "datatype": spec.datatype})[:-1]
        self._records = [values] if run.whole else [values[start:stop] for start, stop in item_spans(run)]
        self.non_finite = (
            {place for place, record in enumerate(self._records) if not np.isfinite(record).all()}
            if values.dtype.kind == "f" and not np.isfinite(values).all()
            else set()
        )

    def is_binary(self, request: Request) -> bool:
        return self._datatype == "FP16" or request.binary_outputs.get(self.name, request.binary)

    def entry(self, place: int, content: bytes) -> bytes:
        """The output's object in the response, around its ``data`` or its ``parameters``."""
        return self._head + b',"shape":%b,%b}' % (orjson.dumps(self._records[place].shape), content)

    def data(self, place: int) -> bytes:
        """A flat JSON list, row-major."""
        return self._texts[place]

    def tensor(self, place: int) -> bytes:
        """Little-endian, row-major; strings as a 4-byte length and their UTF-8 bytes."""
        values = self._records[place]
        if values.dtype != object:
            return little_endian(values).tobytes()
        texts = [str(text).encode() for text in values.ravel()]
        return b"".join(part for text in texts for part in (struct.pack("<I", len(text)), text))

    @functools.cached_property
    def _texts(self) -> list[bytes]:
        """``data`` of every record: in one call where all records are of one size."""
        if len({record.shape for record in self._records}) == 1:
            return rendering.items(np.stack([record.reshape(-1) for record in self._records]))
        return [rendering.dumps(record.reshape(-1)) for record in self._records]


def little_endian(values: Array) -> Array:
    """The same numbers in little-endian byte order, C order; the very same array where it is so already."""
    return values.astype(values.dtype.newbyteorder("<"), order="C", copy=False)


def _binary_headers(json_length: int) -> Headers:
    return [(_CONTENT_TYPE, b"application/octet-stream"), (CONTENT_LENGTH, b"%d" % json_length)]
