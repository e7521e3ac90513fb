"""Pixels -> one model input: fit to size, x = (pixel * scale - mean) / std, channel order."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worker.batch import Array, Padding
from worker.errors import ConfigError
from worker.features.fit import Fitting, Plan, Sides
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

_SIZES_KEPT = 64
"""Sizes of pictures whose plans are kept."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a picture was fitted: model_xy = image_xy * scale + offset, in pixels."""

    height: int
    width: int
    scale_x: float = 1.0
    scale_y: float = 1.0
    offset_x: float = 0.0
    offset_y: float = 0.0
    item_height: int = 0
    """Of the model's input for this picture, borders included."""
    item_width: int = 0

    @classmethod
    def of(cls, plan: Plan, height: int, width: int) -> Geometry:
        """The geometry of a picture of this size that was fitted by this plan."""
        scale_x, scale_y = plan.inner_width / width, plan.inner_height / height
        return cls(height, width, scale_x, scale_y, plan.left, plan.top, plan.height, plan.width)


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
        self.fitting = _fitting(settings, spec, self.layout, key)
        self.tables = _tables(settings, spec, self.channels, key)
        self.border = _border(settings, spec, self.channels, key)
        """(channels,) in the model's dtype: the input where there is no picture."""
        self._plans: dict[tuple[int, int], tuple[Plan, Geometry]] = {}
        self.flags: int = _FLAGS[settings.color]
        self.turns = settings.orientation == "exif"
        """Whether the camera's orientation turns the picture."""
        if not self.turns:
            self.flags |= cv2.IMREAD_IGNORE_ORIENTATION

    def plan(self, height: int, width: int) -> Plan:
        """How a picture of this size is fitted.

        Raises:
            Reject: the picture has another size than the model takes and resizing is off, or would grow too large.
        """
        return self._fitted(height, width)[0]

    def _fitted(self, height: int, width: int) -> tuple[Plan, Geometry]:
        """The plan and the geometry for a picture of this size; kept, because most pictures of a stream have few sizes."""
        found = self._plans.get((height, width))
        if found is None:
            plan = self.fitting.plan(height, width)
            found = plan, Geometry.of(plan, height, width)
            if len(self._plans) < _SIZES_KEPT:
                self._plans[height, width] = found
        return found

    @property
    def padding(self) -> Padding | None:
        """How items of unlike width are made equally wide; None where they are not, or not by one value."""
        height, width = self.fitting.exact
        settings = self.settings
        if height is None or width is not None or settings.pad == "none" or settings.resize == "none":
            return None
        if len(set(self.border.tolist())) > 1:
            return None
        axis = 2 if self.layout == "nchw" else 1
        return Padding(axis, float(self.border[0]), settings.multiple)

    def write(self, pixels: Array, slot: Array) -> Geometry:
        """Fit a picture into one item of the batch's own buffer.

        Args:
            pixels: uint8, (height, width) for gray, else (height, width, 3).
            slot: one item, C order, in the model's dtype and of :meth:`item_shape`.

        Raises:
            Reject: see :meth:`plan`.
        """
        plan, geometry = self._fitted(*pixels.shape[:2])
        fitted = self._resized(pixels, plan)
        inner = slot
        if plan.inner_height < plan.height or plan.inner_width < plan.width:
            inner = self._framed(slot, plan)
        if self.layout == "nhwc":
            self._write_interleaved(fitted, inner)
        else:
            self._write_planes(fitted, inner)
        return geometry

    def item_shape(self, height: int, width: int) -> tuple[int, ...]:
        """The shape of an item of so many pixels, batch dimension left out."""
        return (self.channels, height, width) if self.layout == "nchw" else (height, width, self.channels)

    def _framed(self, slot: Array, plan: Plan) -> Array:
        """Write the border around the picture's place; returns that place."""
        interleaved = self.layout == "nhwc"
        border = self.border if interleaved else self.border[:, None, None]
        bottom, right = plan.top + plan.inner_height, plan.left + plan.inner_width
        rows, columns = slice(plan.top, bottom), slice(plan.left, right)
        for down, across in (
            (slice(0, plan.top), slice(None)),
            (slice(bottom, None), slice(None)),
            (rows, slice(0, plan.left)),
            (rows, slice(right, None)),
        ):
            slot[(down, across) if interleaved else (slice(None), down, across)] = border
        return slot[rows, columns] if interleaved else slot[:, rows, columns]

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

    def _resized(self, pixels: Array, plan: Plan) -> Array:
        """The part of the resized picture that the item shows."""
        if pixels.shape[:2] != (plan.inner_height, plan.inner_width):
            method = _INTERPOLATIONS[self.settings.interpolation]
            pixels = cv2.resize(pixels, (plan.inner_width, plan.inner_height), interpolation=method)
        if plan.top >= 0 and plan.left >= 0:
            return pixels
        cut = pixels[-plan.top : plan.height - plan.top, -plan.left : plan.width - plan.left]
        return np.ascontiguousarray(cut)


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


_TO_ONE_SIZE = ("stretch", "letterbox", "crop")
"""The ways of resizing that need a size."""


def _fitting(settings: ImageSettings, spec: TensorSpec, layout: str, key: str) -> Fitting:
    """How pictures get the height and width of an item.

    Raises:
        ConfigError: the settings leave open what the model needs, or contradict it.
    """
    in_model = spec.shape[2:4] if layout == "nchw" else spec.shape[1:3]
    shape = f"the model's input {spec.name} has shape {_shown(spec)}"
    given = settings.size or (None, None)
    if settings.size is None and in_model == (None, None) and settings.resize in _TO_ONE_SIZE:
        given = spec.suggested or given
    for wanted, fixed in zip(given, in_model, strict=True):
        open_side = settings.size is not None and wanted is None and any(given)
        if fixed is not None and (open_side or wanted not in (None, fixed)):
            shown = str(list(given)).replace("None", "null")
            raise ConfigError(f"{key}.size: got {shown}, but {shape}; expected {list(in_model)}")
    bounds: Sides = given[0] or in_model[0], given[1] or in_model[1]
    exact: Sides = bounds
    if settings.resize == "fit" and None not in bounds:
        exact = in_model[0], in_model[1]
    if (settings.min_side or settings.max_side) and any(bounds):
        raise ConfigError(f"{key}: {shape}; expected no min_side and max_side, which need free sides")
    if None in exact and settings.resize != "none" and not settings.fits:
        expected = "[height, width] (or resize: fit or none)"
        if settings.resize != "stretch" and any(given):
            expected = "two numbers, or resize: fit"
        raise ConfigError(f"{key}.size: required, because {shape}; expected {expected}")
    return Fitting(settings, exact, bounds)


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


def _border(settings: ImageSettings, spec: TensorSpec, channels: int, key: str) -> Array:
    """(channels,) in the model's dtype: the input where there is no picture.

    Raises:
        ConfigError: the model takes integers, and ``pad_value`` is none.
    """
    value = settings.pad_value
    if spec.dtype.kind != "f":
        if value != int(value):
            raise ConfigError(
                f"{key}.pad_value: the model's input {spec.name} is {spec.datatype}; expected an integer, got {value}"
            )
        return np.full(channels, int(value), spec.dtype)
    scale, mean, std = (np.asarray(v, spec.dtype) for v in (settings.scale, settings.mean, settings.std))
    border = (np.asarray(value, spec.dtype) * scale - mean) / std
    return np.ascontiguousarray(np.broadcast_to(border, (channels,)))


def _shown(spec: TensorSpec) -> str:
    return str(["?" if d is None else d for d in spec.shape]).replace("'", "")
