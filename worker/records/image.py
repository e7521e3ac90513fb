"""Pictures: JPEG, PNG and WebP, decoded by OpenCV after their header has been checked."""

from __future__ import annotations

import numpy as np

from worker.batch import Array, Columns, Feed
from worker.errors import ConfigError, Reject, Rejection
from worker.features.opencv import cv2
from worker.features.picture import Geometry, ImagePreprocess
from worker.features.picture_header import ImageHeader, decodable, peek
from worker.model.signature import Signature
from worker.records.rows import decode_each, put
from worker.settings import ImageSettings, LimitsSettings, PipelineSettings

SHARD_ROWS = 8
"""Pictures per decode task: few enough to keep every thread busy, enough to pay for the hand-over."""

FREE_SCRATCH_BYTES = 8 << 20
"""A decode below this needs no bytes from the budget."""

# Measured peak bytes per pixel of cv2.imdecode, its own copy of the result included: (colour, gray).
_PEAK_BYTES = {
    "jpeg": (6, 2),
    "progressive_jpeg": (9, 7),
    "png": (6, 2),
    "webp": (9, 9),
    "animation": (12, 11),
}


def image_cost(header: ImageHeader, gray: bool) -> int:
    """Bytes a decode needs above the free 8 MiB rule; 0 when it stays below."""
    scratch = header.width * header.height * _PEAK_BYTES[header.kind][gray]
    return scratch if scratch > FREE_SCRATCH_BYTES else 0


class ImageReader:
    """Bytes -> pixels, within the limits.

    Args:
        limits: ``image_pixels`` and ``in_flight_bytes`` bound what is decoded at all.
        gray: whether every target is gray; decides what a decode costs.
    """

    def __init__(self, limits: LimitsSettings, gray: bool) -> None:
        self.max_pixels = limits.image_pixels
        self.max_bytes = limits.in_flight_bytes
        self.gray = gray

    def cost(self, value: bytes) -> int:
        """Scratch bytes of a decode above 8 MiB, 0 for others; reads the header only.

        Raises:
            Reject: ``undecodable`` or ``too_many_pixels``, as far as the header says so.
        """
        return self._cost(peek(value))

    def _cost(self, header: ImageHeader) -> int:
        pixels = header.width * header.height
        if pixels > self.max_pixels:
            raise Reject(
                f"the image is {header.height} x {header.width} pixels (height x width), {pixels} in all; "
                f"limits.image_pixels is {self.max_pixels}",
                "too_many_pixels",
            )
        cost = image_cost(header, self.gray)
        if cost > self.max_bytes:
            raise Reject(
                f"the image is {header.height} x {header.width} pixels (height x width); decoding it needs "
                f"{cost} bytes, limits.in_flight_bytes is {self.max_bytes}",
                "too_many_pixels",
            )
        return cost

    def read(self, value: bytes, flags: int) -> Array:
        """Pixels, uint8: (height, width) for gray, else (height, width, 3).

        Raises:
            Reject: ``undecodable`` or ``too_many_pixels``.
        """
        header = peek(value)
        self._cost(header)
        file = np.frombuffer(decodable(value, header), np.uint8)
        try:
            pixels: Array | None = cv2.imdecode(file, flags)
        except cv2.error:
            pixels = None
        if pixels is None:
            raise Reject("the image is broken or ends early", "undecodable")
        return pixels


class ImageDecoder:
    """A record is one picture; it becomes an item of one model input, or of several fitted differently.

    ``contexts[row]`` is the :class:`Geometry` of the first input.
    """

    shard_rows = SHARD_ROWS

    def __init__(self, settings: PipelineSettings, signature: Signature, limits: LimitsSettings) -> None:
        self.specs = signature.inputs
        self.fixed = signature.fixed
        self.targets = _targets(settings, signature)
        self.reader = ImageReader(limits, all(target.channels == 1 for target in self.targets))

    def cost(self, value: bytes) -> int:
        return self.reader.cost(value)

    def decode(self, columns: Columns, feed: Feed, start: int, stop: int) -> None:
        def decode_row(row: int) -> None:
            self._decode_row(columns.values[row] or b"", feed, row)

        decode_each(self, feed, range(start, stop), decode_row)

    def _decode_row(self, value: bytes, feed: Feed, row: int) -> None:
        pictures = {flags: self.reader.read(value, flags) for flags in {t.flags for t in self.targets}}
        items: dict[str, Array] = {}
        for target in self.targets:
            pixels = pictures[target.flags]
            if not fit(target, pixels, feed, row, items):
                return
        if feed.arrays is None:
            put(feed, row, self.specs, items)


def fit(target: ImagePreprocess, pixels: Array, feed: Feed, row: int, items: dict[str, Array]) -> bool:
    """Write pixels into the row's slot, or where the batch has none into a new item in ``items``.

    The first input's geometry becomes the row's context. Returns False when the row had to be rejected.
    """
    name = target.spec.name
    if feed.arrays is not None:
        slot = feed.arrays[name][row]
    else:
        slot = items[name] = np.empty(target.item_shape(pixels), target.spec.dtype)
    try:
        geometry: Geometry = target.write(pixels, slot)
    except Reject as error:
        feed.rejected[row] = Rejection.of(error, "preprocess", target)
        return False
    if feed.contexts[row] is None:
        feed.contexts[row] = geometry
    return True


def _targets(settings: PipelineSettings, signature: Signature) -> list[ImagePreprocess]:
    """One per model input, in the model's order."""
    preprocess = settings.preprocess
    if not preprocess.inputs:
        if len(signature.inputs) != 1:
            names = ", ".join(spec.name for spec in signature.inputs)
            raise ConfigError(
                f"input.format: an image feeds one model input, the model has {len(signature.inputs)} ({names}); "
                "expected preprocess.inputs to say where each comes from"
            )
        return [ImagePreprocess(preprocess.image or ImageSettings(), signature.inputs[0])]
    targets = []
    for spec in signature.inputs:
        source, key = preprocess.inputs[spec.name], f"preprocess.inputs.{spec.name}"
        if source.from_ != "value" or source.numeric is not None:
            raise ConfigError(f"{key}: input.format image has no fields; expected from: value and image")
        targets.append(ImagePreprocess(source.image or ImageSettings(), spec, f"{key}.image"))
    return targets
