"""Results as bare tensors: the first output's item as little-endian bytes, or as an ``.npy`` file."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from worker.batch import Array, Batch, Run
from worker.codecs.envelope import CONTENT_LENGTH, ResultEncoder, header_column, item_spans, source_of
from worker.codecs.oip_response import little_endian
from worker.errors import ConfigError
from worker.model.signature import Signature

if TYPE_CHECKING:
    from worker.settings import PipelineSettings

_SOURCE = "streaminfer.source"


class TensorEncoder(ResultEncoder):
    """``tensor``: the bytes alone; ``npy``: with dtype and shape in front.

    The shape is the item's: without the batch dimension for a record of one item, with it for a record that had
    one, and whatever the model gave where the model is not batchable. NaN and infinity travel as they are.

    Raises:
        ConfigError: the model's first output holds strings.
    """

    def __init__(
        self, settings: PipelineSettings, model_name: str, model_version: str, signature: Signature
    ) -> None:
        super().__init__(settings, model_name, model_version, reserved=frozenset({_SOURCE, CONTENT_LENGTH}))
        output = signature.outputs[0]
        if output.dtype == object:
            raise ConfigError(
                f"output.format: {settings.output.format} carries numbers, "
                f"but the model's first output {output.name!r} holds strings; use json or oip"
            )
        self._output = output.name
        self._as_file = settings.output.format == "npy"
        self._says_source = settings.output.headers != "none"

    def encode(self, batch: Batch, run: Run, stamp: Callable[[], None]) -> None:
        """Bodies and headers of one run's rows; see :class:`worker.codecs.encoders.Encoder`."""
        assert batch.outcomes is not None
        values = little_endian(run.outputs[self._output])
        batch.outcomes.put(run.rows, self._bodies(batch, run, values))
        if self._says_source:
            headers = header_column(batch)
            for row in run.rows:
                headers[row] = [(_SOURCE, source_of(batch.columns, row).encode())]
        self._copy_headers(batch, run.rows)
        stamp()  # the body carries no latency, so all of the encoding can be counted

    def _bodies(self, batch: Batch, run: Run, values: Array) -> list[bytes]:
        if run.counts is None and not run.alone and values.nbytes:
            return self._one_item_each(values)
        records = [values] if run.alone else [values[start:stop] for start, stop in item_spans(run)]
        bodies = [record.tobytes() for record in records]
        if not self._as_file:
            return bodies
        shapes = [
            record.shape[1:] if not run.alone and _is_single(batch, row) else record.shape
            for row, record in zip(run.rows, records, strict=True)
        ]
        return [npy_header(values.dtype.str, s) + body for s, body in zip(shapes, bodies, strict=True)]

    def _one_item_each(self, values: Array) -> list[bytes]:
        """The hot path of small tensors: one copy of them all, cut into pieces."""
        joined, size = values.tobytes(), values.nbytes // len(values)
        bodies = [joined[start : start + size] for start in range(0, len(joined), size)]
        if not self._as_file:
            return bodies
        header = npy_header(values.dtype.str, values.shape[1:])
        return [header + body for body in bodies]


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
