"""Boxes with points, such as people with their joints -> ``{"boxes": [{..., "keypoints": [[x, y, score], ...]}]}``."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import orjson
from pydantic import Field

from worker.batch import Array
from worker.errors import ConfigError, Reject, Rejection
from worker.model.signature import Signature
from worker.postprocess import rendering
from worker.postprocess.boxes import Boxes, Geometry, in_picture, suppress, to_image
from worker.postprocess.labels import own_names
from worker.postprocess.layout import HIGHEST_SCORE, matrix, matrix_output, odd_scores, shown
from worker.postprocess.yolo import columns_of
from worker.settings.kinds import Fraction, Label, Positive
from worker.settings.members import Members
from worker.settings.section import Section

_FIELD = "postprocess.keypoints"
_BOX = 4


class KeypointsSettings(Section):
    """Boxes with points in pixels of the original image."""

    layout: Literal["yolov8"] = "yolov8"
    """[4 + classes + points x 3, boxes]: centre, size, scores, then x, y and score of each point."""
    names: Annotated[list[Label], Field(min_length=1)] | None = None
    """Names of the points in their order; the answer then has them once, beside the boxes."""
    score: Fraction = 0.25
    """A box that scores less is left out."""
    iou: Fraction = 0.45
    """Of two boxes of one class that overlap more than this, the better one stays."""
    max: Positive = 300
    """Most boxes per image."""


class Keypoints:
    """Boxes as of ``detection`` with layout yolov8, each with its points: x, y and score, in pixels of the original image."""

    settings: ClassVar[type[Section]] = KeypointsSettings
    members: ClassVar[Members] = {"boxes": "list"}

    def __init__(
        self, settings: KeypointsSettings, signature: Signature, labels: Sequence[str] | None
    ) -> None:
        output, rows, columns = matrix_output(signature, _FIELD)
        task = signature.shown.metadata.get("task", "pose")
        if task != "pose":
            raise ConfigError(f"{_FIELD}: the model's metadata say task {task}; expected pose")
        self._output = output.name
        self._points, self._numbers = _points(settings, signature, rows, columns)
        self._classes = own_names(signature)
        self._check(signature, rows)
        self._score, self._iou, self._max = settings.score, settings.iou, settings.max
        self._head = b'"names":%b,' % orjson.dumps(settings.names) if settings.names else b""

    @property
    def _extra(self) -> int:
        """Rows behind the scores of the classes."""
        return self._points * self._numbers

    def _check(self, signature: Signature, rows: int | None) -> None:
        """Refuse an output that the classes, or its answer to a made-up item, speak against."""
        classes = None if rows is None else rows - _BOX - self._extra
        if classes is not None and self._classes is not None and classes != len(self._classes):
            raise ConfigError(
                f"{_FIELD}: the model file names {len(self._classes)} classes, but the output {self._output!r} of "
                f"{rows} rows has {classes} beside {self._points} points of {self._numbers} numbers"
            )
        for answer in signature.shown.answers[:1]:
            values = answer[self._output].reshape(-1, *answer[self._output].shape[-2:])[0]
            if not np.isfinite(values).all():
                continue
            odd = odd_scores(values[_BOX : len(values) - self._extra])
            if odd is None and self._numbers == 3:
                odd = odd_scores(values[len(values) - self._extra + 2 :: 3])
            if odd is not None:
                raise ConfigError(
                    f"{_FIELD}: the model's output {self._output!r} is not of layout yolov8 with {self._points} points of "
                    f"{self._numbers} numbers: {odd}"
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

    def _answer(self, item: Array, geometry: Geometry | None) -> bytes:
        with np.errstate(over="ignore", invalid="ignore"):  # coordinates may be of any size
            boxes = columns_of(matrix(item), self._score, "yolov8", self._extra)
            boxes, pixels = in_picture(boxes, geometry)
            kept = suppress(boxes, self._iou, self._max)
            boxes = boxes.take(kept)._replace(xyxy=pixels[kept])
            points = self._pixels(boxes, geometry)
        return b'{%b"boxes":%b}' % (self._head, self._render(boxes, points))

    def _pixels(self, boxes: Boxes, geometry: Geometry | None) -> Array:
        """The points of each box, (boxes, points, 2 or 3), in pixels of the picture and cut at its edges."""
        assert boxes.extra is not None
        points = boxes.extra.reshape(len(boxes.scores), self._points, self._numbers)
        places = points[..., :2].reshape(-1, 2)
        if geometry is not None:
            places = to_image(places, geometry)
        if not np.isfinite(places).all():
            raise Reject("a point is too large for its numbers", "non_finite")
        if self._numbers == 3 and points.size and points[..., 2].max() > HIGHEST_SCORE:
            raise Reject(
                f"a point's score of {points[..., 2].max():.4g}: not of layout yolov8", "model_error"
            )
        return np.concatenate([places.reshape(*points.shape[:2], 2), points[..., 2:]], axis=2)

    def _render(self, boxes: Boxes, points: Array) -> bytes:
        if not len(boxes.scores):
            return b"[]"
        classes = boxes.classes.tolist()
        texts = rendering.items(points)
        if self._numbers == 2:  # a point without a score of its own
            texts = [text.replace(b"],", b",null],").replace(b"]]", b",null]]") for text in texts]
        columns: tuple[Sequence[Any], ...] = (
            [self._label(number) for number in classes],
            classes,
            rendering.scalars(boxes.scores),
            rendering.items(boxes.xyxy),
            texts,
        )
        template = b'{"label":%b,"class_id":%d,"score":%b,"xyxy":%b,"keypoints":%b}'
        return b"[%b]" % b",".join([template % row for row in zip(*columns, strict=True)])

    def _label(self, number: int) -> bytes:
        if self._classes is None:
            return b'"%d"' % number
        if number >= len(self._classes):
            raise Reject(f"the model gave class {number}, its file names {len(self._classes)}", "model_error")
        return orjson.dumps(self._classes[number])


def _points(
    settings: KeypointsSettings, signature: Signature, rows: int | None, columns: int | None
) -> tuple[int, int]:
    """How many points a box has, and how many numbers a point: x, y and score, or x and y.

    Raises:
        ConfigError: the model's output has no place for them.
    """
    told = _told(signature.shown.metadata)
    points, numbers = told or (None, 3)
    who = "the model's metadata say" if told else "expected"
    if settings.names is not None:
        if points not in (None, len(settings.names)):
            raise ConfigError(f"{_FIELD}.names: got {len(settings.names)} names, {who} {points} points")
        points = len(settings.names)
    if rows is None and points is None:
        raise ConfigError(
            f"{_FIELD}.names: required, because the model does not say how many points a box has"
        )
    if points is None:
        assert rows is not None
        points, rest = divmod(rows - _BOX - 1, numbers)
        if rest or points < 1:
            raise ConfigError(
                f"{_FIELD}: {shown(rows, columns)}, not 4 + 1 class + 3 for each point; expected an output of layout "
                f"yolov8, or {_FIELD}.names for a model of several classes"
            )
    if rows is not None and rows - _BOX - points * numbers < 1:
        given = f"{points} points of {numbers} numbers"
        raise ConfigError(
            f"{_FIELD}: {shown(rows, columns)}, not 4 + classes + {points * numbers} rows, as {given} need"
        )
    return points, numbers


def _told(metadata: Mapping[str, str]) -> tuple[int, int] | None:
    """Points, and numbers of each, as Ultralytics writes them into the file: ``kpt_shape``."""
    try:
        points, numbers = ast.literal_eval(metadata.get("kpt_shape", ""))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return (points, numbers) if isinstance(points, int) and points > 0 and numbers in (2, 3) else None
