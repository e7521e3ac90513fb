"""How a picture is made to fit a model input: the size of the item, and where in it the picture stands. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from worker.errors import Reject
from worker.features.picture import ImageSettings

UNCOUNTED_PIXELS = (8 << 20) // 3
"""An intermediate picture of at most this many pixels (8 MiB) takes nothing from the byte budget."""

Sides = tuple[int | None, int | None]
"""Height and width in pixels; None for a side that the picture decides."""


class Plan(NamedTuple):
    """What is done with one picture, in pixels. A border is where ``top`` or ``left`` is positive; a cut where it is negative."""

    inner_height: int
    """The picture is resized to this height and width."""
    inner_width: int
    top: int
    """Rows of the item above the picture."""
    left: int
    height: int
    """Of the item."""
    width: int


@dataclass(frozen=True, slots=True)
class Fitting:
    """Plans for the pictures of one model input.

    Args:
        settings: the user's settings.
        exact: what the item's sides are whatever the picture is.
        bounds: what the picture must not exceed; ``resize: fit`` alone has sides that are bounded and not exact.
    """

    settings: ImageSettings
    exact: Sides
    bounds: Sides

    @property
    def free(self) -> bool:
        """Whether items have different sizes."""
        return None in self.exact

    def plan(self, height: int, width: int) -> Plan:
        """The plan for a picture of this size.

        Raises:
            Reject: the picture has another size than the model takes and resizing is off, or would grow too large.
        """
        target = self.exact[0] or height, self.exact[1] or width
        settings = self.settings
        if settings.fits and self.free:
            return self._fit(height, width)
        if (height, width) == target:
            return Plan(height, width, 0, 0, height, width)
        if settings.resize == "none":
            raise Reject(
                f"the image is {height} x {width} pixels (height x width), expected {target[0]} x {target[1]} "
                "because preprocess.image.resize is none"
            )
        if settings.resize == "stretch":
            return Plan(*target, 0, 0, *target)
        if settings.resize == "crop":
            return _crop(height, width, *target)
        return self._inside(height, width, *target)

    def _inside(self, height: int, width: int, target_height: int, target_width: int) -> Plan:
        """All of the picture, as large as fits into an item of a given size."""
        scale = min(target_height / height, target_width / width)
        inner = max(1, round(height * scale)), max(1, round(width * scale))
        return self._placed(inner, (target_height, target_width))

    def _fit(self, height: int, width: int) -> Plan:
        """The aspect ratio is kept; the sides that are not exact follow the picture."""
        down, across = self.bounds
        if down and across:
            scale = min(down / height, across / width)
            inner = max(1, round(height * scale)), max(1, round(width * scale))
        elif down:
            inner = down, max(1, math.ceil(down * (width / height)))
        elif across:
            inner = max(1, math.ceil(across * (height / width))), across
        else:
            scale = self._side_scale(height, width)
            # A nearest multiple is that of the whole pixels, as text detectors count them.
            whole = int if self.settings.pad == "none" else round
            inner = max(1, whole(height * scale)), max(1, whole(width * scale))
        if self.settings.pad == "none":
            item = self._item_side(inner[0], 0), self._item_side(inner[1], 1)
            return Plan(*item, 0, 0, *item)
        return self._placed(inner, (self._item_side(inner[0], 0), self._item_side(inner[1], 1)))

    def _side_scale(self, height: int, width: int) -> float:
        """By how much a picture grows to ``min_side``, or shrinks to ``max_side``, which counts more."""
        settings = self.settings
        scale = max(1.0, settings.min_side / min(height, width)) if settings.min_side else 1.0
        if settings.max_side:
            scale = min(scale, settings.max_side / max(height, width))
        return scale

    def _item_side(self, inner: int, axis: int) -> int:
        """The item's side for a picture's side after resizing."""
        exact, bound = self.exact[axis], self.bounds[axis]
        if exact is not None:
            return exact
        multiple = self.settings.multiple
        if self.settings.pad == "none":
            return max(multiple, round(inner / multiple) * multiple)
        least = self.settings.pad_to[axis] if self.settings.pad_to else None
        side = max(-(-inner // multiple) * multiple, least or 0)
        return side if bound is None else min(side, bound)

    def _placed(self, inner: tuple[int, int], item: tuple[int, int]) -> Plan:
        if self.settings.pad == "top_left":
            return Plan(*inner, 0, 0, *item)
        return Plan(*inner, (item[0] - inner[0]) // 2, (item[1] - inner[1]) // 2, *item)


def _crop(height: int, width: int, target_height: int, target_width: int) -> Plan:
    """The shorter side resized to fit, the centre cut out."""
    scale = max(target_height / height, target_width / width)
    outer = max(target_height, round(height * scale)), max(target_width, round(width * scale))
    # Resizing a very long, thin picture before the crop would make a huge intermediate picture.
    if outer[0] * outer[1] > max(UNCOUNTED_PIXELS, height * width, 4 * target_height * target_width):
        raise Reject(
            f"the image is {height} x {width} pixels (height x width); to crop it, it would have to be "
            f"resized to {outer[0]} x {outer[1]} first",
            "too_many_pixels",
        )
    top, left = (outer[0] - target_height) // 2, (outer[1] - target_width) // 2
    return Plan(*outer, -top, -left, target_height, target_width)
