"""Bytes as a content: the first, or the first and last, bytes of a file as integers, as models of file types take them."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from worker.batch import Array, Feed
from worker.errors import ConfigError, Reject
from worker.features import FileFeature, Opened, Place, Record
from worker.features.given import scalar
from worker.model.signature import TensorSpec
from worker.settings import LimitsSettings
from worker.settings.kinds import Positive
from worker.settings.section import ContentSettings

_BLOCK_BYTES = 4096


class BytesSettings(ContentSettings):
    """A file's bytes as integers, cut or padded to one length."""

    length: Positive | None = None
    """Elements of one item; default: from the model's signature."""
    pad: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] = 0
    """Stands where a file has no more bytes."""
    head_tail: bool = False
    """The first half of the item is the beginning of the file, padded at its end; the second half is the end of the file, padded at its beginning. Default: the beginning alone."""
    strip: bool = False
    """Leave out ASCII blanks at the beginning of the file, and at its end with head_tail."""
    block: Positive | None = None
    """With strip, blanks are left out of this many bytes at each end, and no others are read; default: 4096, or what the item takes if that is more."""
    min_bytes: Annotated[int, Field(ge=0)] = 0
    """A shorter file is invalid."""

    @property
    def one_shape(self) -> bool:
        return self.length is not None

    @property
    def sizes(self) -> list[int]:
        return [] if self.length is None else [self.length]


class BytesFeature(FileFeature):
    """Fills one model input with the bytes of a file.

    Args:
        settings: which bytes.
        spec: the model input: integers or floats, of one dimension or of a known shape, which is filled in C order.
        place: where in the record the file is: bytes, or base64 text.
        key: the setting's name, for errors.

    Raises:
        ConfigError: the input has another shape, or cannot hold a byte or the padding.
    """

    slow = False

    def __init__(self, settings: BytesSettings, spec: TensorSpec, place: Place, key: str) -> None:
        super().__init__(spec, place)
        self._length = _length(settings, spec, key)
        self._shape = [self._length] if None in spec.item_shape else [d or 0 for d in spec.item_shape]
        self._pad = scalar(settings.pad, spec, f"{key}.pad")
        self._head_tail = settings.head_tail
        self._strip = settings.strip
        self._min_bytes = settings.min_bytes
        self._part = self._length // 2 if settings.head_tail else self._length
        self._block = settings.block or max(_BLOCK_BYTES, self._part)
        if settings.head_tail and self._length % 2:
            raise ConfigError(f"{key}.length: got {self._length}, expected an even number with head_tail")
        if self._block < self._part:
            raise ConfigError(
                f"{key}.block: got {self._block}, expected at least {self._part}, the bytes that an item takes of each end"
            )

    def scratch(self, beginning: bytes) -> int:
        return 0

    def write(self, record: Record, feed: Feed, row: int, items: dict[str, Array], opened: Opened) -> bool:
        """See :class:`worker.features.Feature`."""
        file = self.file(record)
        if len(file) < self._min_bytes:
            raise Reject(f"{self.place}: got {len(file)} bytes, expected at least {self._min_bytes}")
        if feed.arrays is not None:
            self._fill(feed.arrays[self.spec.name][row].reshape(-1), file)
            return True
        item = np.empty(self._length, self.spec.dtype)
        self._fill(item, file)
        items[self.spec.name] = item.reshape(self._shape)
        return True

    def _fill(self, item: Array, file: bytes) -> None:
        part = self._part
        head, tail = file[: self._block if self._strip else part], b""
        if self._head_tail:
            tail = file[-(self._block if self._strip else part) :]
        if self._strip:
            head, tail = head.lstrip(), tail.rstrip()
        head, tail = head[:part], tail[-part:]
        item[: len(head)] = np.frombuffer(head, np.uint8)
        item[len(head) : len(item) - len(tail)] = self._pad
        if tail:
            item[-len(tail) :] = np.frombuffer(tail, np.uint8)


class Bytes:
    """The bytes of a file as integers, cut or padded to one length; in a JSON field as base64 text."""

    settings: ClassVar[type[ContentSettings]] = BytesSettings

    @staticmethod
    def make(
        options: BytesSettings | None, spec: TensorSpec, place: Place, key: str, limits: LimitsSettings
    ) -> BytesFeature:
        """See :class:`worker.features.Content`."""
        return BytesFeature(options or BytesSettings(), spec, place, key)


def _length(settings: BytesSettings, spec: TensorSpec, key: str) -> int:
    shape = str(list(spec.item_shape)).replace("None", "?")
    free = None in spec.item_shape
    if spec.dtype.kind not in "iuf" or spec.dtype == np.int8 or (free and len(spec.item_shape) != 1):
        raise ConfigError(
            f"{key}: the model's input {spec.name} is {spec.datatype} with items of shape {shape}; expected numbers "
            "that hold every byte, of one dimension or of a known shape"
        )
    if free:
        if settings.length is None:
            raise ConfigError(
                f"{key}.length is required, because items of the model's input {spec.name} may have any length"
            )
        return settings.length
    size = math.prod(d or 0 for d in spec.item_shape)
    if settings.length not in (None, size):
        raise ConfigError(
            f"{key}.length: got {settings.length}, expected {size}, the elements of an item of the model's input {spec.name}"
        )
    return size
