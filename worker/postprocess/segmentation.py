"""A class for each pixel -> ``{"size": [h, w], "rle": [class, length, ...], "shares": {label: share}}``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import orjson

from worker.batch import Array
from worker.errors import ConfigError, Reject, Rejection
from worker.model.signature import Signature
from worker.postprocess import rendering
from worker.postprocess.frame import Frame
from worker.postprocess.labels import own_names
from worker.postprocess.layout import Shape, as_floats, item_shape
from worker.postprocess.resampling import Grid, best_class
from worker.postprocess.rle import RunCount, class_runs
from worker.postprocess.selection import numeric_output
from worker.settings.kinds import File, Label
from worker.settings.members import Members
from worker.settings.section import Section

_FIELD = "postprocess.segmentation"
UNSEEN = -1
"""The class of pixels that a crop kept from the model."""


class SegmentationSettings(Section):
    """A class for each pixel of the original image."""

    labels: File | list[Label] | None = None
    """Text file with one label per line, relative to the configuration file; or a list of labels. Default: the names in the model file, else class indices."""
    threshold: float | None = None
    """Only for an output of one channel: where it is at least this, the class is 1, else 0."""


class Segmentation:
    """The best class of each pixel of the original image, as run lengths, and the share of the picture that each class has.

    The scores are interpolated to the picture's pixels; classes that the model itself chose are taken from the nearest
    cell. Reads the first floating output, else the first.
    """

    settings: ClassVar[type[Section]] = SegmentationSettings
    members: ClassVar[Members] = {"size": "list", "rle": "list", "shares": "object"}
    takes_items = True

    def __init__(
        self, settings: SegmentationSettings, signature: Signature, labels: Sequence[str] | None
    ) -> None:
        output = numeric_output(signature, _FIELD)
        shape = item_shape(signature, output)
        if len(shape) not in (2, 3):
            raise ConfigError(
                f"{_FIELD} needs [classes, height, width] or [height, width] of classes per item, but the model's output "
                f"{output.name!r} has shape {list(output.shape)}"
            )
        self._output, self._frame = output.name, Frame(signature)
        self._check_proportions(shape)
        self._chosen = len(shape) == 2 and output.dtype.kind in "iu"
        self._one_channel = len(shape) == 2 or shape[0] == 1
        self._classes = None if self._chosen else 2 if self._one_channel else shape[0]
        self._threshold = self._checked_threshold(settings.threshold)
        self._labels = self._checked_labels(signature, labels)
        self._check_answers(signature)

    def _check_proportions(self, shape: Shape) -> None:
        """Refuse cells that cannot lie on the input: such a shape has another order of dimensions."""
        (height, width), size = shape[-2:], self._frame.size
        if height is None or width is None or size is None:
            return
        if not 0.5 <= (height / size[0]) / (width / size[1]) <= 2:
            raise ConfigError(
                f"{_FIELD}: an item of the model's output {self._output!r} has shape {list(shape)}, which as [classes, height, "
                f"width] does not fit an input of {size[0]} x {size[1]} pixels; expected that order of dimensions"
            )

    def _checked_threshold(self, threshold: float | None) -> float | None:
        one = not self._chosen and self._one_channel
        if one and threshold is None:
            raise ConfigError(
                f"{_FIELD}.threshold: required, because the model's output {self._output!r} has one channel"
            )
        if threshold is not None and not one:
            raise ConfigError(
                f"{_FIELD}.threshold: got {threshold}, expected none, because the model's output {self._output!r} has "
                "more than one channel, or classes"
            )
        return threshold

    def _checked_labels(self, signature: Signature, labels: Sequence[str] | None) -> list[str] | None:
        if labels is None:
            names = own_names(signature)
            return names if names is not None and self._classes in (None, len(names)) else None
        if self._classes is not None and len(labels) != self._classes:
            raise ConfigError(
                f"{_FIELD}.labels names {len(labels)} classes, but the model's output {self._output!r} has {self._classes}"
            )
        return [*labels]

    def _check_answers(self, signature: Signature) -> None:
        for answer in signature.shown.answers[:1]:
            values = answer[self._output]
            if (
                self._chosen
                and self._labels is not None
                and values.size
                and values.max() >= len(self._labels)
            ):
                raise ConfigError(
                    f"{_FIELD}.labels names {len(self._labels)} classes, but the model's output {self._output!r} has "
                    f"class {values.max()}"
                )

    def predictions(
        self, outputs: dict[str, Array], count: int, contexts: Sequence[Any], alone: bool
    ) -> list[bytes | Rejection]:
        output = outputs[self._output]
        broken = set(rendering.non_finite_items(output))
        found: list[bytes | Rejection] = []
        for item in range(count):
            try:
                found.append(
                    rendering.non_finite(self._output, self)
                    if item in broken
                    else self._answer(output[item], contexts[item])
                )
            except Reject as error:
                found.append(Rejection.of(error, "postprocess", self))
        return found

    def _answer(self, item: Array, context: Any) -> bytes:
        while item.ndim > 2 and len(item) == 1:
            item = item[0]
        if item.ndim not in (2, 3) or not item.size:
            raise Reject(
                f"expected scores or classes of cells, the model gave shape {list(item.shape)}", "model_error"
            )
        geometry, size = self._frame.fitted(context, item.shape[-2:])
        grid = Grid.over(geometry, item.shape[-2:], size, (0, 0, geometry.width, geometry.height))
        pairs = class_runs(self._bands(item, grid), RunCount())
        shares = self._shares(pairs[0::2], pairs[1::2])
        return b'{"size":[%d,%d],"rle":%b,"shares":%b}' % (
            geometry.height,
            geometry.width,
            rendering.dumps(pairs),
            orjson.dumps(shares),
        )

    def _bands(self, item: Array, grid: Grid) -> Iterator[Array]:
        """The class of each pixel, int32 (rows, columns), a band of columns after the other."""
        scores, best = self._cells(item)
        rows = grid.rows
        for _, columns in grid.bands():
            if scores is None:
                found = best[:, columns.nearest][rows.nearest]
            else:
                found = best_class(scores, best, rows, columns)
            if self._threshold is not None:
                found = 1 - found
            if not (columns.inside.all() and rows.inside.all()):
                found[~(rows.inside[:, np.newaxis] & columns.inside)] = UNSEEN
            yield found

    def _cells(self, item: Array) -> tuple[Array | None, Array]:
        """Scores (classes, rows, columns), None where the model chose the classes itself; and the class of each cell."""
        if item.ndim == 2 and item.dtype.kind in "iu":
            if item.min() < 0 or item.max() >= (len(self._labels) if self._labels else 1 << 31):
                raise Reject(
                    f"the model gave class {item.min() if item.min() < 0 else item.max()}, expected one of "
                    f"{len(self._labels) if self._labels else 'those from 0 on'}",
                    "model_error",
                )
            return None, item.astype(np.int32)
        scores = as_floats(item)
        if item.ndim == 2:
            if self._threshold is None:
                raise Reject("the model gave one channel, and no threshold is configured", "model_error")
            # two scores, of which the first one, of class 1, wins a tie
            scores = np.stack([scores, np.full_like(scores, self._threshold)])
        elif self._labels is not None and len(self._labels) != len(item):
            raise Reject(
                f"the model gave {len(item)} classes, labels name {len(self._labels)}", "model_error"
            )
        return scores, scores.argmax(axis=0).astype(np.int32)

    def _shares(self, classes: Array, lengths: Array) -> dict[str, float]:
        """By label, the share of the pixels that the model saw; the largest first, the lower class on a tie."""
        seen = classes != UNSEEN
        numbers, place = np.unique(classes[seen], return_inverse=True)
        pixels = np.bincount(place, lengths[seen], len(numbers))
        total, found = pixels.sum(), dict[str, float]()
        for i in np.argsort(-pixels, kind="stable").tolist():
            number = int(numbers[i])
            label = self._labels[number] if self._labels is not None else str(number)
            found[label] = found.get(label, 0.0) + float(pixels[i] / total)
        return found
