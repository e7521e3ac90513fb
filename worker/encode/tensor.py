"""Results as bare tensors: the first output's item as little-endian bytes, or as an ``.npy`` file.

The first output is the model's, or the one that an Open Inference Protocol request names first.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from worker import native
from worker.batch import Array, Batch, Columns, Headers, Run
from worker.encode.oip import little_endian
from worker.errors import ConfigError, Reject, Rejection
from worker.model.signature import Signature
from worker.serving.envelope import (
    CONTENT_LENGTH,
    ResultEncoder,
    header_column,
    item_spans,
    request_of,
    source_of,
)

if TYPE_CHECKING:
    from worker.settings import PipelineSettings

_SOURCE = "streaminfer.source"


class TensorEncoder(ResultEncoder):
    """The first output's item as little-endian bytes in C order.

    The shape is the item's: without the batch dimension for a record of one item, with it for a record that had
    one, and whatever the model gave where the model is not batchable. NaN and infinity travel as they are.

    Raises:
        ConfigError: the model's first output holds strings.
    """

    predicts = False
    _as_file: ClassVar[bool] = False

    def __init__(
        self,
        settings: PipelineSettings,
        signature: Signature,
        model_name: str,
        model_version: str,
        labels: Sequence[str] | None,
    ) -> None:
        super().__init__(settings, model_name, model_version, reserved=frozenset({_SOURCE, CONTENT_LENGTH}))
        output = signature.outputs[0]
        if output.dtype == object:
            raise ConfigError(
                f"output.format: {settings.output.format} carries numbers, "
                f"but the model's first output {output.name!r} holds strings; use json or oip"
            )
        self._output = output.name
        self._says_source = settings.output.headers != "none"

    def encode(self, batch: Batch, run: Run, stamp: Callable[[], None]) -> None:
        """Bodies and headers of one run's rows; see :class:`worker.encode.Encoder`."""
        assert batch.outcomes is not None
        values = little_endian(run.outputs[self._output])
        batch.outcomes.put(run.rows, self._bodies(batch, run, values))
        refused = self._choose(batch, run)
        answered = [row for row in run.rows if row not in refused] if refused else run.rows
        if self._says_source:
            headers = header_column(batch)
            for row in answered:
                headers[row] = [(_SOURCE, source_of(batch.columns, row).encode())]
        self._copy_headers(batch, answered)
        stamp()  # the body carries no latency, so all of the encoding can be counted

    def travelling(self, columns: Columns, row: int) -> Headers | None:
        """As a result of this format would have them: with where it came from, the only name it has."""
        kept = super().travelling(columns, row)
        if not self._says_source:
            return kept
        return [(_SOURCE, source_of(columns, row).encode()), *(kept or ())]

    def _choose(self, batch: Batch, run: Run) -> set[int]:
        """Give the rows whose request names another output first that one instead; returns those that cannot have it."""
        assert batch.outcomes is not None
        if batch.feed is None or not batch.feed.items:  # no requests
            return set()
        others: dict[str, list[tuple[int, int]]] = {}
        for place, row in enumerate(run.rows):
            request = request_of(batch, row)
            if request is not None and request.outputs and request.outputs[0] != self._output:
                others.setdefault(request.outputs[0], []).append((place, row))
        refused: set[int] = set()
        for name, places in others.items():
            if run.outputs[name].dtype == object:
                why = Reject(f"outputs: {name!r} holds strings, which have no bytes of their own as a tensor")
                for _, row in places:
                    batch.outcomes.bodies[row] = None
                    batch.outcomes.rejected[row] = Rejection.of(why, "encode", self)
                    refused.add(row)
                continue
            bodies = self._bodies(batch, run, little_endian(run.outputs[name]))
            for place, row in places:
                batch.outcomes.bodies[row] = bodies[place]
        return refused

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
        header = npy_header(values.dtype.str, values.shape[1:]) if self._as_file else b""
        if native.records is not None:
            pieces: list[bytes] = native.records.pieces(np.ascontiguousarray(values), header)
            return pieces
        joined, size = values.tobytes(), values.nbytes // len(values)
        bodies = [joined[start : start + size] for start in range(0, len(joined), size)]
        return [header + body for body in bodies] if header else bodies


class NpyEncoder(TensorEncoder):
    """The first output's item as an ``.npy`` file: with dtype and shape in front."""

    _as_file = True


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
