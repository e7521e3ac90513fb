"""Results as Open Inference Protocol v2 responses, JSON or binary.

A binary output's little-endian bytes follow the JSON part, whose length is in header
``inference-header-content-length``. FP16 has no JSON form in the protocol, so an FP16 output is always binary.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import orjson

from worker.batch import Array, Batch, Headers, Request, Run
from worker.model.signature import Signature, TensorSpec
from worker.postprocess import rendering
from worker.serving.envelope import (
    CONTENT_LENGTH,
    ResultEncoder,
    header_column,
    item_spans,
    own_ids,
    request_of,
    source_of,
)

if TYPE_CHECKING:
    from worker.settings import PipelineSettings

_CONTENT_TYPE = "content-type"
_JSON_HEADERS: Headers = [(_CONTENT_TYPE, b"application/json")]
_DEFAULT = Request()


class OipEncoder(ResultEncoder):
    """One response per record: the outputs it asked for, in its order; all of the model's otherwise."""

    predicts = False

    def __init__(
        self,
        settings: PipelineSettings,
        signature: Signature,
        model_name: str,
        model_version: str,
        labels: Sequence[str] | None,
    ) -> None:
        reserved = frozenset({CONTENT_LENGTH, _CONTENT_TYPE})
        super().__init__(settings, model_name, model_version, reserved)
        self._specs = {spec.name: spec for spec in signature.outputs}
        model = orjson.dumps({"model_name": model_name, "model_version": model_version})[1:-1]
        self._template = b'{%b,"id":%%b,"outputs":[%%b],"parameters":{"source":%%b}}' % model.replace(
            b"%", b"%%"
        )

    def encode(self, batch: Batch, run: Run, stamp: Callable[[], None]) -> None:
        """Bodies, headers and rejections of one run's rows; see :class:`worker.encode.Encoder`."""
        assert batch.outcomes is not None
        answers = {name: _Output(spec, run.outputs[name], run) for name, spec in self._specs.items()}
        ids = own_ids(batch, run.rows)
        headers = header_column(batch)
        answered = []
        for place, row in enumerate(run.rows):
            request = request_of(batch, row) or _DEFAULT
            wanted = [answers[name] for name in request.outputs or self._specs]
            unsayable = [out for out in wanted if place in out.non_finite and not out.is_binary(request)]
            if unsayable:
                batch.outcomes.rejected[row] = rendering.non_finite(unsayable[0].name, self)
                continue
            entries, tensors = [], []
            for output in wanted:
                if output.is_binary(request):
                    tensors.append(output.tensor(place))
                    entries.append(
                        output.entry(place, b'"parameters":{"binary_data_size":%d}' % len(tensors[-1]))
                    )
                else:
                    entries.append(output.entry(place, b'"data":' + output.data(place)))
            id_ = orjson.dumps(ids.get(row, source_of(batch.columns, row)))
            source = orjson.dumps(source_of(batch.columns, row))
            text = self._template % (id_, b",".join(entries), source)
            batch.outcomes.bodies[row] = b"".join([text, *tensors])
            headers[row] = _binary_headers(len(text)) if tensors else _JSON_HEADERS
            answered.append(row)
        self._copy_headers(batch, answered)
        stamp()  # the body carries no latency, so all of the encoding can be counted


class _Output:
    """One output of a run, split by record; ``place`` is the record's position in the run."""

    def __init__(self, spec: TensorSpec, values: Array, run: Run) -> None:
        self.name = spec.name
        self._datatype = spec.datatype
        self._head = orjson.dumps({"name": spec.name, "datatype": spec.datatype})[:-1]
        self._records = [values] if run.alone else [values[start:stop] for start, stop in item_spans(run)]
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
