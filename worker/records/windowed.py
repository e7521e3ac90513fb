"""Windows: a record is one sample of a series, and an item is a window of samples.

Two parts share one decoder of samples. The loop's thread asks :class:`SampleReader` for the sample in each record, in their
order. A pool thread fills an item from the samples of a complete window (:class:`WindowedDecoder`). So each record is decoded
once, however many windows it is in.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from worker.batch import Array, Columns, Feed
from worker.errors import ConfigError, Reject
from worker.model.signature import Signature, TensorSpec
from worker.records.memory import NEVER
from worker.records.paths import ABSENT, Path
from worker.records.rows import decode_each, put

Decode = Callable[[list[bytes | None], Columns, Feed, int, int], None]


def sample_signature(signature: Signature, size: int) -> Signature:
    """What the decoder of one sample is made for: the model's input without the dimension of the window.

    Raises:
        ConfigError: the model has several inputs, or its items are no windows of this size.
    """
    if len(signature.inputs) != 1:
        names = ", ".join(spec.name for spec in signature.inputs)
        raise ConfigError(
            f"input.window: feeds one model input, the model has {len(signature.inputs)} ({names})"
        )
    spec = signature.inputs[0]
    shape = str(list(spec.item_shape)).replace("None", "any")
    if not spec.item_shape or spec.item_shape[0] not in (None, size) or spec.dtype == object:
        raise ConfigError(
            f"input.window.size: got {size}, but an item of the model's input {spec.name} is {spec.datatype} {shape}; "
            f"expected numbers of shape [{size}, ...]"
        )
    if None in spec.item_shape[1:]:
        raise ConfigError(
            f"input.window: an item of the model's input {spec.name} has shape {shape}; expected a known shape of a sample"
        )
    return replace(signature, inputs=(replace(spec, shape=(spec.shape[0], *spec.shape[2:]), whole=None),))


class SampleReader:
    """Reads the samples of records; see :class:`worker.loop.series_source.Reader`.

    Args:
        by: ``input.window.by``.
        max_bytes: a longer record is no sample.
    """

    def __init__(self, samples: Any, spec: TensorSpec, by: str, max_bytes: int) -> None:
        self._samples = samples
        self._spec = spec
        self._by = None if by == "key" else Path.of(by)
        self._most = min(max_bytes, samples.free_bytes)
        """A longer record takes memory that is not in the byte budget when the loop's thread reads it."""

    def key(self, key: bytes | None) -> Hashable | None:
        """The series that a tombstone begins anew: that of its key; none if a field names the series."""
        return key if self._by is None else None

    def read(
        self, values: Sequence[bytes], keys: Sequence[bytes | None]
    ) -> list[tuple[Hashable, bytes] | Reject]:
        """The series and the sample of each record, or why it is no sample."""
        count = len(values)
        array = np.empty((count, *(d or 0 for d in self._spec.item_shape)), self._spec.dtype)
        feed = Feed({self._spec.name: array}, [], [None] * count)
        fit: list[bytes | None] = [value if len(value) <= self._most else b"" for value in values]
        self._samples.decode(fit, Columns(fit), feed, 0, count)
        whole, size = array.tobytes(), array.nbytes // max(1, count)
        found: list[tuple[Hashable, bytes] | Reject] = []
        for row in range(count):
            if len(values[row]) > self._most:
                found.append(
                    Reject(f"a sample has at most {self._most} bytes, got {len(values[row])}", "too_large")
                )
                continue
            rejection = feed.rejected.get(row)
            if rejection is not None:
                found.append(Reject(rejection.message, rejection.reason))
                continue
            try:
                found.append((self._series(values[row], keys[row]), whole[row * size : (row + 1) * size]))
            except Reject as why:
                found.append(why)
        return found

    def _series(self, value: bytes, key: bytes | None) -> Hashable:
        """What the record's series is called.

        Raises:
            Reject: it has no key, or not the field.
        """
        if self._by is None:
            if key is None:
                raise Reject(
                    "the record has no key, which says what series it belongs to (input.window.by: key)"
                )
            return key
        found = self._by.find(self._samples.open(value))
        if not isinstance(found, str | int | float | bool):
            state = "missing" if found is ABSENT else "no text and no number"
            raise Reject(
                f'the field "{self._by}" is {state}; input.window.by expects the name of the series there'
            )
        return (type(found), found)


class WindowedDecoder:
    """Fills an item from the samples of a window. A record is one sample; see the module.

    Args:
        samples: the decoder of one sample.
        size: samples in a window.
    """

    shard_rows = 0
    free_bytes = NEVER

    def __init__(self, samples: Any, signature: Signature, sample: TensorSpec, size: int) -> None:
        self.samples = samples
        self.fixed = signature.fixed
        self.has_fields = getattr(samples, "has_fields", False)
        self._specs = signature.inputs
        self._size = size
        self.sample = sample
        self._shape = (size, *(d or 0 for d in sample.item_shape))

    def cost(self, value: bytes) -> int:
        return 0

    def open(self, value: bytes) -> Mapping[str, Any]:
        """The fields of the record that completes the window."""
        found: Mapping[str, Any] = self.samples.open(value)
        return found

    def sources(self) -> dict[str, str]:
        """Where in a record the samples come from, for ``check``."""
        return {
            name: f"windows of {self._size} samples, each {source}"
            for name, source in getattr(self.samples, "sources", dict)().items()
        }

    def decode(
        self, payloads: list[bytes | None], columns: Columns, feed: Feed, start: int, stop: int
    ) -> None:
        spec = self._specs[0]

        def decode_row(row: int) -> None:
            item = np.frombuffer(self._window(payloads[row] or b""), spec.dtype).reshape(self._shape)
            if feed.arrays is not None:
                feed.arrays[spec.name][row] = item
            else:
                put(feed, row, self._specs, {spec.name: item})

        decode_each(self, feed, range(start, stop), decode_row)

    def _window(self, value: bytes) -> bytes:
        window: tuple[bytes, ...] | None = getattr(value, "window", None)
        if window is not None:
            return b"".join(window)
        return self._lines(value)

    def _lines(self, value: bytes) -> bytes:
        """A window whose samples are the lines of one value, as ``check --sample`` is given it."""
        lines: list[bytes | None] = [line for line in value.splitlines() if line.strip()]
        if len(lines) != self._size:
            raise Reject(
                f"got {len(lines)} lines, expected a window of {self._size} records, one in each line"
            )
        array: Array = np.empty(self._shape, self.sample.dtype)
        feed = Feed({self.sample.name: array}, [], [None] * self._size)
        self.samples.decode(lines, Columns(lines), feed, 0, self._size)
        for row, rejection in sorted(feed.rejected.items()):
            raise Reject(f"line {row + 1}: {rejection.message}", rejection.reason)
        return array.tobytes()
