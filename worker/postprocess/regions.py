"""Rotated boxes of text or other marks from a score map -> ``{"regions": [{"score", "points": [[x, y], ...]}]}``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from worker.batch import Array
from worker.errors import ConfigError, Reject, Rejection
from worker.model.signature import Signature
from worker.postprocess import rendering
from worker.postprocess.boxes import to_image
from worker.postprocess.frame import Frame
from worker.postprocess.layout import HIGHEST_SCORE, as_floats, item_shape, odd_scores
from worker.postprocess.selection import numeric_output
from worker.settings.kinds import Fraction, Positive
from worker.settings.members import Members
from worker.settings.section import Section

_FIELD = "postprocess.regions"


class RegionsSettings(Section):
    """Rotated boxes from a score map, as text detectors such as DBNet give it."""

    threshold: Fraction = 0.3
    """Cells that score more belong to a region."""
    box_threshold: Fraction = 0.5
    """A region whose box has a lower mean score is left out."""
    unclip: Annotated[float, Field(ge=0, le=10)] = 1.6
    """A box grows by area x this / perimeter on every side, because the model marks the inner part of a text."""
    min_size: Annotated[float, Field(ge=0)] = 3.0
    """A box whose shorter side has fewer cells is left out."""
    dilate: bool = True
    """Whether marks are made one cell larger first, which joins those that nearly touch."""
    max: Positive = 1000
    """Most regions looked at in an image."""


class Regions:
    """The smallest rotated box around each group of cells above ``threshold``, in pixels of the original image.

    The steps and defaults are those of DBNet's and PaddleOCR's post-processing. Boxes come in reading order: from top to
    bottom, then from left to right, by their first point; the four points clockwise from the upper left one.
    """

    settings: ClassVar[type[Section]] = RegionsSettings
    members: ClassVar[Members] = {"regions": "list"}
    takes_items = True

    def __init__(self, settings: RegionsSettings, signature: Signature, labels: Sequence[str] | None) -> None:
        from worker.postprocess.outlines import rotated_boxes  # OpenCV only where a pipeline has regions

        self._find, self._settings, self._frame = rotated_boxes, settings, Frame(signature)
        output = numeric_output(signature, _FIELD)
        shape = item_shape(signature, output)
        if len(shape) != 2:
            raise ConfigError(
                f"{_FIELD} needs a map of scores [height, width] per item, but the model's output {output.name!r} has "
                f"shape {list(output.shape)}"
            )
        self._output = output.name
        for answer in signature.shown.answers[:1]:
            values = answer[output.name]
            if np.isfinite(values).all() and (odd := odd_scores(values)) is not None:
                raise ConfigError(f"{_FIELD}: the model's output {output.name!r} is no map of scores: {odd}")

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
        if item.ndim != 2 or not item.size:
            raise Reject(f"expected a map of scores, the model gave shape {list(item.shape)}", "model_error")
        if item.max() > HIGHEST_SCORE:
            raise Reject(f"a score of {item.max():.4g}: the output is no map of scores", "model_error")
        points, scores = self._find(as_floats(item), self._settings)
        if not len(scores):
            return b'{"regions":[]}'
        geometry, size = self._frame.fitted(context, item.shape)
        cells = np.array([size[1] / item.shape[1], size[0] / item.shape[0]] * 4)
        pixels = to_image(points.reshape(-1, 8) * cells, geometry)
        order = np.lexsort((pixels[:, 0], pixels[:, 1]))
        texts = rendering.items(pixels[order].reshape(-1, 4, 2))
        rows = zip(rendering.scalars(scores[order]), texts, strict=True)
        return b'{"regions":[%b]}' % b",".join([b'{"score":%b,"points":%b}' % row for row in rows])
