"""Reads a folder of pictures as model inputs, for calibration and for measuring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from worker.batch import Array
from worker.errors import ConfigError, Reject
from worker.features.opencv import cv2
from worker.features.picture import ImageSettings
from worker.features.pixels import ImagePreprocess
from worker.filesystem import exists, is_dir
from worker.model.signature import TensorSpec

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
PLAIN = {"scale": 1.0, "mean": [0.0], "std": [1.0]}
"""Settings that leave pixel values unchanged."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures fitted to a model's input, with their classes if these are known."""

    pixels: NDArray[np.uint8]
    """(n, *item): in the model's own layout, not yet scaled."""
    labels: NDArray[np.int64] | None
    """(n,) class indices; None for a folder without class folders."""

    def __len__(self) -> int:
        return len(self.pixels)

    def split(self, first: int) -> tuple[Pictures, Pictures]:
        """``first`` pictures spread evenly over all, and the others."""
        chosen = np.linspace(0, len(self) - 1, first).astype(int)
        rest = np.setdiff1d(np.arange(len(self)), chosen)
        return self._pick(chosen), self._pick(rest)

    def _pick(self, rows: NDArray[np.int64]) -> Pictures:
        return Pictures(self.pixels[rows], None if self.labels is None else self.labels[rows])


class Preparation:
    """From fitted pixels to one model input, with the arithmetic the worker uses.

    Args:
        settings: ``preprocess.image``.
        spec: the model's only input.

    Raises:
        ConfigError: settings and input do not fit together, or leave the size of pictures open.
    """

    def __init__(self, settings: ImageSettings, spec: TensorSpec) -> None:
        self.settings = settings
        self._write = ImagePreprocess(settings, spec)
        plain = TensorSpec(spec.name, np.dtype(np.uint8), "UINT8", spec.shape)
        self._fit = ImagePreprocess(settings.model_copy(update=PLAIN), plain)
        height, width = self._fit.fitting.exact
        if height is None or width is None:
            raise ConfigError(
                "preprocess.image.size: expected [height, width], the model's input leaves it open"
            )
        self.dtype = spec.dtype
        self.item_shape = self._fit.item_shape(height, width)

    def read(self, path: Path) -> NDArray[np.uint8]:
        """One picture file, fitted: uint8, one item.

        Raises:
            ConfigError: the file is not a picture that can be decoded and fitted.
        """
        decoded = cv2.imdecode(np.frombuffer(path.read_bytes() or b"\0", np.uint8), self._fit.flags)
        if decoded is None:
            raise ConfigError(f"--data: {path} cannot be decoded; expected a JPEG, PNG or WebP picture")
        item = np.empty(self.item_shape, np.uint8)
        try:
            self._fit.write(decoded, item)
        except Reject as error:
            raise ConfigError(f"--data: {path}: {error}") from None
        return item

    def tensor(self, pixels: NDArray[np.uint8]) -> Array:
        """(n, *item) pixels -> the model's input, (n, *item) in its dtype."""
        tables = self._write.tables
        if tables is None:
            return pixels
        out = np.empty(pixels.shape, self.dtype)
        channel_axis = 1 if self._write.layout == "nchw" else pixels.ndim - 1
        planes, slots = np.moveaxis(pixels, channel_axis, 0), np.moveaxis(out, channel_axis, 0)
        for table, plane, slot in zip(tables, planes, slots, strict=True):
            slot[...] = table[plane]
        return out

    def prepare_one(self, item: NDArray[np.uint8], slot: Array) -> None:
        """Prepare one picture that already has the right size, as the worker does."""
        if self._write.layout == "nchw":
            item = item.transpose(1, 2, 0)
        self._write.write(item if self._write.channels == 3 else item[..., 0], slot)


def load(folder: Path, preparation: Preparation, names: Sequence[str] | None, most: int) -> Pictures:
    """The pictures in ``folder``; in class-named folders they are labelled.

    A class folder's index is its line in ``names`` if given; else its name if all names are whole numbers; else its
    place in alphabetical order.

    Args:
        names: labels of the model, in its order.
        most: most pictures to read, spread evenly over all.

    Raises:
        ConfigError: no such folder, no picture in it, a picture that cannot be read, a class without a label.
    """
    if not is_dir(folder):
        found = "is a file" if exists(folder) else "does not exist"
        raise ConfigError(f"--data: {folder} {found}; expected a folder of pictures")
    found_files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if len(found_files) < 2:
        raise ConfigError(
            f"--data: {folder} has {len(found_files)} pictures ({', '.join(SUFFIXES)}); "
            "expected some to calibrate on and others to measure with"
        )
    indices = _class_folders(folder, found_files, names)
    chosen = np.unique(np.linspace(0, len(found_files) - 1, min(most, len(found_files))).astype(int))
    files = [found_files[i] for i in chosen]
    labels = [indices[file.relative_to(folder).parts[0]] for file in files] if indices else None
    return Pictures(
        np.stack([preparation.read(file) for file in files]),
        None if labels is None else np.array(labels, np.int64),
    )


def _class_folders(folder: Path, files: Sequence[Path], names: Sequence[str] | None) -> dict[str, int]:
    """Class folder -> class index; empty if the pictures lie in ``folder`` itself."""
    if any(file.parent == folder for file in files):
        return {}
    return class_indices(sorted({file.relative_to(folder).parts[0] for file in files}), names)


def class_indices(classes: Sequence[str], names: Sequence[str] | None) -> dict[str, int]:
    """Name of a class in the data -> its index.

    That is its line in ``names`` if given; else its name if all names are whole numbers; else its place in ``classes``.

    Raises:
        ConfigError: a class is none of ``names``.
    """
    if names is not None:
        missing = [name for name in classes if name not in names]
        if missing:
            raise ConfigError(f"--data: the class {missing[0]} is none of the model's labels")
        return {name: names.index(name) for name in classes}
    if all(name.isascii() and name.isdecimal() for name in classes):
        return {name: int(name) for name in classes}
    return {name: index for index, name in enumerate(classes)}
