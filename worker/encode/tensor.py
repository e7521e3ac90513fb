"""Results as bare tensors: the first output's item as little-endian bytes, or as an ``.npy`` file.

The first output is the model's, or the one that an Open Inference Protocol request names first.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from worker import native
from worker.batch import CONTENT_LENGTH, Array, Batch, Run
from worker.encode.oip import little_endian
from worker.encode.rows import item_spans, request_of
from worker.errors import ConfigError, Reject, Rejection
from worker.model.signature import Signature

if TYPE_CHECKING:
    from worker.serving.envelope import Envelope
    from worker.settings import PipelineSettings


class TensorEncoder:
    """The first output's item as little-endian bytes in C order.

    The shape is the item's: without the batch dimension for a record of one item, with it for a record that had
    one, and as the model gave it where the model is not batchable. NaN and infinity travel as they are. A fragment is a
    row's body.
    Raises:
        ConfigError: the model's first output holds strings.
    """

    predicts = False
    reserved = frozenset({"streaminfer.source", CONTENT_LENGTH})
    expires_as_error = False
    content_type = "application/octet-stream"
    names_source = True
    has_header: ClassVar[bool] = False
    """Every body begins with the dtype and shape of its tensor."""

    def __init__(
        self,
        settings: PipelineSettings,
        signature: Signature,
        model_name: str,
        model_version: str,
        labels: Sequence[str] | None,
        envelope: Envelope,
    ) -> None:
        output = signature.outputs[0]
        if output.dtype == object:
            raise ConfigError(
                f"output.format: {settings.output.format} carries numbers, "
                f"but the model's first output {output.name!r} holds strings; use json or oip"
            )
        self._envelope = envelope
        self._output = output.name

    def predict(self, batch: Batch, run: Run) -> Sequence[bytes | Rejection]:
        """See :meth:`worker.encode.Encoder.predict`."""
        fragments = self._rendered(batch, run, little_endian(run.outputs[self._output]))
        if batch.feed is None or not batch.feed.items:  # no requests
            return fragments
        return self._chosen(batch, run, fragments)

    def bodies(self, batch: Batch, run: Run, fragments: Sequence[bytes | Rejection]) -> None:
        """See :meth:`worker.encode.Encoder.bodies`."""
        outcomes, answered = batch.outcomes, run.rows
        assert outcomes is not None
        if batch.feed is not None and batch.feed.items:  # only requests are refused
            found = list(zip(run.rows, fragments, strict=True))
            outcomes.rejected.update({row: why for row, why in found if isinstance(why, Rejection)})
            answered = [row for row in run.rows if row not in outcomes.rejected]
            fragments = [body for body in fragments if not isinstance(body, Rejection)]
        outcomes.put(answered, fragments)  # type: ignore[arg-type]
        self._envelope.add_headers(batch, answered)

    def _chosen(self, batch: Batch, run: Run, fragments: Sequence[bytes]) -> list[bytes | Rejection]:
        """As given, but a row whose request names another output first has that one, or a rejection."""
        others: dict[str, list[int]] = {}
        for place, row in enumerate(run.rows):
            request = request_of(batch, row)
            if request is not None and request.outputs and request.outputs[0] != self._output:
                others.setdefault(request.outputs[0], []).append(place)
        chosen: list[bytes | Rejection] = [*fragments]
        for name, places in others.items():
            if run.outputs[name].dtype == object:
                why = Reject(f"outputs: {name!r} holds strings, which have no bytes of their own as a tensor")
                for place in places:
                    chosen[place] = Rejection.of(why, "encode", self)
                continue
            rendered = self._rendered(batch, run, little_endian(run.outputs[name]))
            for place in places:
                chosen[place] = rendered[place]
        return chosen

    def _rendered(self, batch: Batch, run: Run, values: Array) -> list[bytes]:
        if run.counts is None and not run.whole and values.nbytes:
            return self._one_item_each(values)
        records = [values] if run.whole else [values[start:stop] for start, stop in item_spans(run)]
        bodies = [record.tobytes() for record in records]
        if not self.has_header:
            return bodies
        shapes = [
            record.shape[1:] if not run.whole and _is_single(batch, row) else record.shape
            for row, record in zip(run.rows, records, strict=True)
        ]
        return [npy_header(values.dtype.str, s) + body for s, body in zip(shapes, bodies, strict=True)]

    def _one_item_each(self, values: Array) -> list[bytes]:
        """The hot path of small tensors: one copy of all of them, cut into pieces."""
        header = npy_header(values.dtype.str, values.shape[1:]) if self.has_header else b""
        if native.records is not None:
            pieces: list[bytes] = native.records.pieces(np.ascontiguousarray(values), header)
            return pieces
        joined, size = values.tobytes(), values.nbytes // len(values)
        bodies = [joined[start : start + size] for start in range(0, len(joined), size)]
        return [header + body for body in bodies] if header else bodies


class NpyEncoder(TensorEncoder):
    """``npy``: as ``tensor``, with dtype and shape in front."""

    has_header = True


@functools.lru_cache(maxsize=1024)
def npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """What stands before the C-order data in an ``.npy`` file, version 1.0."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


def _is_single(batch: Batch, row: int) -> bool:
    """Whether the record came without a batch dimension of its own."""
    assert batch.feed is not None
    item = batch.feed.items[row] if batch.feed.items else None
    return item is None or item.single
