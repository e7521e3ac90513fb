"""Raw tensors: little-endian C-order bytes of one item, dtype and shape as the model says."""

from __future__ import annotations

import math

import numpy as np

from worker import native
from worker.batch import Columns, Feed
from worker.errors import ConfigError, Reject
from worker.model.signature import Signature
from worker.records.memory import NEVER
from worker.records.rows import check_one_input, decode_each
from worker.settings import LimitsSettings, PipelineSettings

_JOIN_BYTES = 16 << 10
"""Items of at most this many bytes are joined and copied together. For larger items the extra copy costs more."""


class TensorDecoder:
    """The bytes of one item of the model's only input, little-endian and in C order.

    Raises:
        ConfigError: the model has several inputs, a free item dimension, or strings.
    """

    contents = ()
    has_fields = False
    takes_missing = False
    fixed = True
    shard_rows = 0
    free_bytes = NEVER

    def __init__(self, settings: PipelineSettings, signature: Signature, limits: LimitsSettings) -> None:
        check_one_input("tensor", signature)
        spec = signature.inputs[0]
        if not spec.fixed or spec.dtype == object:
            what = "strings" if spec.dtype == object else "dimensions of any length"
            raise ConfigError(
                f"input.format: tensor needs items of a known number of bytes, but the model's input {spec.name} "
                f"has {what}; expected npy, oip or json"
            )
        self.name = spec.name
        self.datatype = spec.datatype
        self.item_shape = tuple(d for d in spec.item_shape if d is not None)
        # numpy takes any byte as a boolean and then computes nonsense: read numbers, check, then convert.
        self.wire = np.dtype(np.uint8) if spec.dtype == bool else spec.dtype.newbyteorder("<")
        self.boolean = spec.dtype == bool
        self.as_stored = self.wire.isnative and not self.boolean
        """Whether a record's bytes are the array's bytes, so that no conversion is needed."""
        self.nbytes = math.prod(self.item_shape) * self.wire.itemsize

    def cost(self, value: bytes) -> int:
        return 0

    def decode(
        self, payloads: list[bytes | None], columns: Columns, feed: Feed, start: int, stop: int
    ) -> None:
        assert feed.arrays is not None
        values, slots = payloads, feed.arrays[self.name]
        if (
            native.records is not None
            and self.as_stored
            and native.records.gather(values, start, stop, slots)
        ):
            return
        together = self.nbytes <= _JOIN_BYTES and not self.boolean
        bodies = [value or b"" for value in values[start:stop]]
        if together and {self.nbytes}.issuperset(map(len, bodies)):
            joined = np.frombuffer(b"".join(bodies), self.wire)
            slots[start:stop] = joined.reshape(stop - start, *self.item_shape)
            return

        def decode_row(row: int) -> None:
            value = values[row] or b""
            if len(value) != self.nbytes:
                raise Reject(
                    f"got {len(value)} bytes, expected {self.nbytes}: {self.datatype} {list(self.item_shape)}"
                )
            item = np.frombuffer(value, self.wire)
            if self.boolean and (item > 1).any():
                raise Reject("a boolean is a byte of 0 or 1")
            slots[row] = item.reshape(self.item_shape)

        decode_each(self, feed, range(start, stop), decode_row)
