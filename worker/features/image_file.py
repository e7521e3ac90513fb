"""A picture file in a record -> pixels, within the limits -> a row of the batch."""

from __future__ import annotations

import numpy as np

from worker.batch import Array, Feed, Padding
from worker.errors import Reject, Rejection
from worker.features import FileFeature, Opened, Place, Record
from worker.features.opencv import cv2
from worker.features.orientation import UPRIGHT, orientation, turned
from worker.features.picture import ImageSettings
from worker.features.picture_header import ImageHeader, decodable, peek
from worker.features.pixels import ImagePreprocess
from worker.model.signature import TensorSpec
from worker.settings import LimitsSettings

_SWAPPED = 5
"""From this orientation on, height and width change places."""

FREE_SCRATCH_BYTES = 8 << 20
"""A decode that needs at most this much memory takes none from the byte budget."""

# Measured peak bytes per pixel of cv2.imdecode, its own copy of the result included: (colour, gray).
_PEAK_BYTES = {
    "jpeg": (6, 2),
    "progressive_jpeg": (9, 7),
    "png": (6, 2),
    "webp": (9, 9),
    "animation": (12, 11),
}


def image_cost(header: ImageHeader, gray: bool) -> int:
    """Bytes of memory that a decode needs; 0 if they are at most ``FREE_SCRATCH_BYTES``."""
    scratch = header.width * header.height * _PEAK_BYTES[header.kind][gray]
    return scratch if scratch > FREE_SCRATCH_BYTES else 0


class PictureFeature(FileFeature):
    """Fills one model input with a picture, within the limits.

    The row's context becomes the :class:`Geometry` of the first picture written.

    Args:
        settings: how the picture is fitted.
        spec: the model input.
        place: where in the record the file is: bytes, or base64 text.
        key: the setting's name, for errors.
        limits: larger pictures than ``image_pixels`` and ``in_flight_bytes`` allow are refused.
    """

    def __init__(
        self, settings: ImageSettings, spec: TensorSpec, place: Place, key: str, limits: LimitsSettings
    ) -> None:
        super().__init__(spec, place)
        self.target = ImagePreprocess(settings, spec, key)
        self.flags = self.target.flags
        self.pixels_key = place.field, self.flags
        """The key under which features that read the same pixels share them, and later steps find them."""
        self.kept = 0
        """How many copies of the decoded picture stay until its record is answered, because later steps look at it."""
        self._unturned = self.flags | cv2.IMREAD_IGNORE_ORIENTATION
        self._turns = self.flags != self._unturned
        self._own_size = None in spec.item_shape
        self.max_pixels = limits.image_pixels
        self.max_bytes = limits.in_flight_bytes

    @property
    def padding(self) -> Padding | None:
        """See :attr:`worker.features.FileFeature.padding`."""
        return self.target.padding

    def scratch(self, beginning: bytes) -> int:
        """See :class:`worker.features.FileFeature`."""
        return self._scratch(peek(beginning), beginning)

    def _scratch(self, header: ImageHeader, file: bytes) -> int:
        pixels = header.width * header.height
        if pixels > self.max_pixels:
            raise Reject(
                f"the image is {header.height} x {header.width} pixels (height x width), {pixels} in all; "
                f"limits.image_pixels is {self.max_pixels}",
                "too_many_pixels",
            )
        cost = image_cost(header, self.target.channels == 1)
        if cost > self.max_bytes:
            raise Reject(
                f"the image is {header.height} x {header.width} pixels (height x width); decoding it needs "
                f"{cost} bytes, limits.in_flight_bytes is {self.max_bytes}",
                "too_many_pixels",
            )
        if self.kept:
            cost += self.kept * pixels * self.target.channels
        return cost + self._own_item_bytes(header, file) if self._own_size else cost

    def _own_item_bytes(self, header: ImageHeader, file: bytes) -> int:
        """:meth:`item_bytes` for the picture of a file."""
        height, width = header.height, header.width
        if not (height and width):
            return 0  # no decoder takes it
        # What a header says of a turned picture is swapped.
        if self._turns and height != width and orientation(file) >= _SWAPPED:
            height, width = width, height
        return self.item_bytes(height, width)

    def item_bytes(self, height: int, width: int) -> int:
        """Bytes of an item whose size follows the picture: its own memory, its copy in the batch and the model's answer.

        Raises:
            Reject: the item would be too large.
        """
        try:
            plan = self.target.plan(height, width)
        except Reject as error:
            if error.reason == "too_many_pixels":
                raise
            return 0  # the stage that fits the picture says so
        pixels = plan.height * plan.width
        item = pixels * self.target.channels * self.spec.dtype.itemsize
        resized = (
            0 if (height, width) == plan[:2] else plan.inner_height * plan.inner_width * self.target.channels
        )
        nbytes = 2 * item + resized + 2 * round(item * self.answer_share)
        if pixels > self.max_pixels or nbytes > self.max_bytes:
            raise Reject(
                f"the image is {height} x {width} pixels (height x width), as an item {plan.height} x {plan.width}; "
                f"that needs {nbytes} bytes, limits.in_flight_bytes is {self.max_bytes} and limits.image_pixels "
                f"{self.max_pixels}",
                "too_many_pixels",
            )
        return nbytes

    def write(self, record: Record, feed: Feed, row: int, items: dict[str, Array], opened: Opened) -> bool:
        """See :class:`worker.features.Feature`."""
        pixels: Array | None = opened.get(self.pixels_key)
        if pixels is None:
            pixels = opened[self.pixels_key] = self._pixels(record)
        try:
            if feed.arrays is not None:
                slot = feed.arrays[self.spec.name][row]
            else:
                plan = self.target.plan(*pixels.shape[:2])
                slot = items[self.spec.name] = np.empty(
                    self.target.item_shape(plan.height, plan.width), self.spec.dtype
                )
            geometry = self.target.write(pixels, slot)
        except Reject as error:
            feed.rejected[row] = Rejection.of(error, "preprocess", self.target)
            return False
        if feed.contexts[row] is None:
            feed.contexts[row] = geometry
        return True

    def _pixels(self, record: Record) -> Array:
        """Pixels, uint8: (height, width) for gray, else (height, width, 3).

        Raises:
            Reject: ``undecodable`` or ``too_many_pixels``.
        """
        value = self.file(record)
        header = peek(value)
        self._scratch(header, value)
        ours = self._turns and header.kind not in ("jpeg", "progressive_jpeg")
        file = np.frombuffer(decodable(value, header), np.uint8)
        try:
            pixels: Array | None = cv2.imdecode(file, self._unturned if ours else self.flags)
        except cv2.error:
            pixels = None
        if pixels is None:
            unusual = header.unusual and f", or its kind ({header.unusual}) cannot be read"
            raise Reject(f"the image is broken or ends early{unusual}", "undecodable")
        if ours and (held := orientation(value)) != UPRIGHT:
            pixels = turned(pixels, held)
        return pixels
