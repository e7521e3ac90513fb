"""Pixels -> one model input: fit to size, x = (pixel * scale - mean) / std, channel order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worker.batch import Array
from worker.errors import ConfigError, Reject
from worker.features.opencv import cv2
from worker.features.picture import ImageSettings
from worker.model.signature import TensorSpec

_INTERPOLATIONS = {
    "linear": cv2.INTER_LINEAR,
    "nearest": cv2.INTER_NEAREST,
    "area": cv2.INTER_AREA,
    "cubic": cv2.INTER_CUBIC,
}
_FLAGS = {"rgb": cv2.IMREAD_COLOR_RGB, "bgr": cv2.IMREAD_COLOR, "gray": cv2.IMREAD_GRAYSCALE}
# The dtypes that cv2.LUT can write; numpy does the others, more slowly.
_LUT_DTYPES = (np.float16, np.float32, np.float64)

UNCOUNTED_PIXELS = (8 << 20) // 3
"""An intermediate picture of at most this many pixels (8 MiB) takes nothing from the byte budget."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a picture was fitted: model_xy = image_xy * scale + offset, in pixels."""

    height: int
    width: int
    scale_x: float = 1.0
    scale_y: float = 1.0
    offset_x: float = 0.0
    offset_y: float = 0.0


class ImagePreprocess:
    """Writes decoded pictures as items of one model input.

    A pixel has 256 values, so the arithmetic is done once per value, in the model's dtype, and then looked up.

    Args:
        settings: the user's settings; size and layout default to the model's.
        spec: the model input, (N, C, H, W) or (N, H, W, C).
        key: the setting's name, for errors.

    Raises:
        ConfigError: the settings and the model's input cannot go together.
    """

    def __init__(self, settings: ImageSettings, spec: TensorSpec, key: str = "preprocess.image") -> None:
        self.spec = spec
        self.settings = settings
        self.channels = 1 if settings.color == "gray" else 3
        self.layout = _layout(settings, spec, self.channels, key)
        self.height, self.width = _size(settings, spec, self.layout, key)
        self.tables = _tables(settings, spec, self.channels, key)
        self.flags: int = _FLAGS[settings.color]
        if settings.orientation == "ignore":
            self.flags |= cv2.IMREAD_IGNORE_ORIENTATION

    def write(self, pixels: Array, slot: Array) -> Geometry:
        """Fit a picture into one item of the batch's own buffer.

        Args:
            pixels: uint8, (height, width) for gray, else (height, width, 3).
            slot: one item, C order, in the model's dtype and of :meth:`item_shape`.

        Raises:
            Reject: the picture has another size than the model takes and resizing is off.
        """
        fitted, geometry = self._fit(pixels)
        if self.layout == "nhwc":
            self._write_interleaved(fitted, slot)
        else:
            self._write_planes(fitted, slot)
        return geometry

    def item_shape(self, pixels: Array) -> tuple[int, ...]:
        """The shape a picture has as an item, batch dimension left out."""
        height, width = self.height or pixels.shape[0], self.width or pixels.shape[1]
        return (self.channels, height, width) if self.layout == "nchw" else (height, width, self.channels)

    def _write_interleaved(self, fitted: Array, slot: Array) -> None:
        out = slot if self.channels == 3 else slot[..., 0]
        if self.tables is None:
            np.copyto(out, fitted)
        elif self.tables.dtype in _LUT_DTYPES:
            cv2.LUT(fitted, self.tables.T.reshape(1, 256, self.channels).copy(), dst=out)
        else:
            for channel, table in enumerate(self.tables):
                slot[..., channel] = table[fitted if self.channels == 1 else fitted[..., channel]]

    def _write_planes(self, fitted: Array, slot: Array) -> None:
        if self.tables is None:
            np.copyto(slot, fitted.transpose(2, 0, 1) if self.channels == 3 else fitted)
            return
        planes = cv2.split(fitted) if self.channels == 3 else (fitted,)
        for plane, table, out in zip(planes, self.tables, slot, strict=True):
            if table.dtype in _LUT_DTYPES:
                cv2.LUT(plane, table, dst=out)
            else:
                np.take(table, plane, out=out, mode="clip")

    def _fit(self, pixels: Array) -> tuple[Array, Geometry]:
        """The picture in the model's size, and the geometry of the fit."""
        height, width = pixels.shape[:2]
        target = self.height or height, self.width or width
        if (height, width) == target:
            return pixels, Geometry(height, width)
        if self.settings.resize == "none":
            raise Reject(
                f"the image is {height} x {width} pixels (height x width), expected {target[0]} x {target[1]} "
                "because preprocess.image.resize is none"
            )
        if self.settings.resize == "stretch":
            return self._resized(pixels, *target), Geometry(
                height, width, target[1] / width, target[0] / height
            )
        if self.settings.resize == "letterbox":
            return self._letterboxed(pixels, *target)
        return self._cropped(pixels, *target)

    def _resized(self, pixels: Array, height: int, width: int) -> Array:
        method = _INTERPOLATIONS[self.settings.interpolation]
        resized: Array = cv2.resize(pixels, (width, height), interpolation=method)
        return resized

    def _letterboxed(self, pixels: Array, target_height: int, target_width: int) -> tuple[Array, Geometry]:
        """All of the picture, as large as fits, centred on ``pad_value``."""
        height, width = pixels.shape[:2]
        scale = min(target_height / height, target_width / width)
        inner = max(1, round(height * scale)), max(1, round(width * scale))
        top, left = (target_height - inner[0]) // 2, (target_width - inner[1]) // 2
        canvas = np.full((target_height, target_width, *pixels.shape[2:]), self.settings.pad_value, np.uint8)
        canvas[top : top + inner[0], left : left + inner[1]] = self._resized(pixels, *inner)
        return canvas, Geometry(height, width, inner[1] / width, inner[0] / height, left, top)

    def _cropped(self, pixels: Array, target_height: int, target_width: int) -> tuple[Array, Geometry]:
        """The shorter side resized to fit, the centre cut out."""
        height, width = pixels.shape[:2]
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
        resized = self._resized(pixels, *outer)
        cut = resized[top : top + target_height, left : left + target_width]
        geometry = Geometry(height, width, outer[1] / width, outer[0] / height, -left, -top)
        return np.ascontiguousarray(cut), geometry


def _layout(settings: ImageSettings, spec: TensorSpec, channels: int, key: str) -> str:
    """``nchw`` or ``nhwc``, as configured or as the model's channel dimension shows."""
    shape = f"the model's input {spec.name} has shape {_shown(spec)}"
    if len(spec.shape) != 4:
        raise ConfigError(f"{key}: {shape}; expected 4 dimensions, [N, channels, height, width] or the like")
    first, last = spec.shape[1], spec.shape[3]
    layout = settings.layout
    if layout is None:
        if first in (1, 3) and (first == channels or last != channels):
            layout = "nchw"
        elif last in (1, 3):
            layout = "nhwc"
        else:
            raise ConfigError(
                f"{key}.layout: {shape}, which does not tell; expected nchw or nhwc to be given"
            )
    found = first if layout == "nchw" else last
    if found not in (None, channels):
        raise ConfigError(
            f"{key}.color: {settings.color} has {channels} channel(s), but {shape}, "
            f"{found} channel(s) as {layout}; expected them to agree"
        )
    return layout


def _size(settings: ImageSettings, spec: TensorSpec, layout: str, key: str) -> tuple[int | None, int | None]:
    """(height, width) of an item; None for a dimension in which pictures keep their size."""
    in_model = spec.shape[2:4] if layout == "nchw" else spec.shape[1:3]
    given = settings.size or (None, None)
    for wanted, fixed in zip(given, in_model, strict=True):
        if wanted is not None and fixed not in (None, wanted):
            raise ConfigError(
                f"{key}.size: got {list(given)}, but the model's input {spec.name} has shape {_shown(spec)}; "
                f"expected {list(in_model)}"
            )
    height, width = given[0] or in_model[0], given[1] or in_model[1]
    if settings.resize != "none" and None in (height, width):
        raise ConfigError(
            f"{key}.size: required, because the model's input {spec.name} has shape {_shown(spec)}; "
            "expected [height, width] (or resize: none)"
        )
    return height, width


def _tables(settings: ImageSettings, spec: TensorSpec, channels: int, key: str) -> Array | None:
    """(channels, 256) in the model's dtype: the input for each pixel value; None if pixels are taken unchanged."""
    for name, values in (("mean", settings.mean), ("std", settings.std)):
        if len(values) not in (1, channels):
            raise ConfigError(
                f"{key}.{name}: got {len(values)} numbers, expected 1 or {channels}, one per channel of "
                f"color: {settings.color}"
            )
    dtype = spec.dtype
    if dtype == np.uint8:
        return None
    levels = np.arange(256, dtype=np.uint8)
    if dtype.kind == "f":
        scale, mean, std = (np.asarray(v, dtype) for v in (settings.scale, settings.mean, settings.std))
        table = (levels[:, None].astype(dtype) * scale - mean) / std
    elif dtype.kind in "iu" and dtype != np.int8:
        if settings.scale != 1 or any(settings.mean) or set(settings.std) != {1.0}:
            raise ConfigError(
                f"{key}: the model's input {spec.name} is {spec.datatype}; expected no scale, mean or std, "
                "which need a floating input"
            )
        table = levels[:, None].astype(dtype)
    else:
        raise ConfigError(
            f"{key}: the model's input {spec.name} is {spec.datatype}, which cannot hold pixels"
        )
    return np.ascontiguousarray(np.broadcast_to(table, (256, channels)).T)


def _shown(spec: TensorSpec) -> str:
    return str(["?" if d is None else d for d in spec.shape]).replace("'", "")
