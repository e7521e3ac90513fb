"""What a later step's items are made of: crops of a picture, or fields of an earlier step's predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import orjson

from worker.batch import Array, Batch
from worker.errors import Reject
from worker.records.paths import ABSENT
from worker.serving.condition import found
from worker.serving.servable import Answers

if TYPE_CHECKING:
    from worker.features.image_file import PictureFeature
    from worker.serving.cascade import Step
    from worker.serving.cascade_run import CascadeRun


class Feeding(Protocol):
    """Fills the batches of one step."""

    def nbytes(self, item: int) -> int | None:
        """Bytes that the item's tensors take; None if there is nothing to look at.

        Raises:
            Reject: it cannot be an item of this step.
        """

    def payload(self, item: int) -> bytes | None:
        """What the step's decoder reads."""

    def fill(self, inner: Batch, part: Sequence[int], engine: Answers) -> None:
        """Decode the items into the batch's feed."""


class FieldFeed:
    """A field of an earlier step's prediction is the record: text for a text model, else numbers."""

    def __init__(self, run: CascadeRun, step: Step) -> None:
        assert step.source is not None
        self._run, self._step = run, step
        self._is_text = not getattr(step.servable.decoder, "has_fields", False)
        self._payloads: dict[int, bytes] = {}

    def nbytes(self, item: int) -> int | None:
        step = self._step
        assert step.source is not None
        assert step.path is not None
        value = found(step.path, self._run.said_of(step, step.source, item))
        if value is ABSENT or value is None:
            return None
        payload = self._payloads[item] = self._as_record(value)
        scratch = step.servable.cost(payload) if len(payload) > step.servable.free_bytes else 0
        return step.servable.item_nbytes + len(payload) + scratch

    def payload(self, item: int) -> bytes | None:
        return self._payloads.pop(item)

    def fill(self, inner: Batch, part: Sequence[int], engine: Answers) -> None:
        for start, stop in engine.shards(inner):
            engine.decode(inner, start, stop)

    def _as_record(self, value: Any) -> bytes:
        if self._is_text:
            if not isinstance(value, str):
                raise Reject(f"{self._step.source}.{self._step.path} is no text")
            return value.encode()
        return orjson.dumps({"features": value if isinstance(value, list) else [value]})


class CropFeed:
    """The part of a picture inside a box, in the original's pixels, one at a time."""

    def __init__(self, run: CascadeRun, step: Step) -> None:
        self._run, self._step = run, step
        self._features = picture_features(step)
        self._last: tuple[tuple[str, int], Array] | None = None

    def nbytes(self, item: int) -> int | None:
        from worker.features.crops import size_of

        step = self._step
        items = self._run.kinds[step.scope]
        height, width = self._seen_by(step.scope[-1], items.parents[item]).shape[:2]
        down, across = size_of(items.boxes[item], height, width)
        if not down or not across:
            return None
        if self._quarter(item):
            down, across = across, down
        free = [feature for feature in self._features if None in feature.spec.item_shape]
        return step.servable.item_nbytes + sum(feature.item_bytes(down, across) for feature in free)

    def payload(self, item: int) -> bytes | None:
        return b""

    def fill(self, inner: Batch, part: Sequence[int], engine: Answers) -> None:
        from worker.features.crops import recoloured

        engine.shards(inner)
        feed, decoder, step = inner.feed, self._step.servable.decoder, self._step
        assert feed is not None
        feed.opened = [{} for _ in part]
        color = self._color_of(step.scope[-1])
        for row, item in enumerate(part):
            crop = self._crop(step, item)
            for feature in self._features:
                feed.opened[row][feature.pixels_key] = recoloured(crop, color, feature.target.settings.color)
            del crop
            decoder.decode(inner.payloads, inner.columns, feed, row, row + 1)
            feed.opened[row] = {}

    def _crop(self, step: Step, item: int) -> Array:
        """What a step over boxes sees of one box, in the colours of the picture that the boxes are in."""
        from worker.features.crops import cut, turned

        items = self._run.kinds[step.scope]
        part = cut(self._seen_by(step.scope[-1], items.parents[item]), items.boxes[item])
        return (
            turned(part, int(step.turn.degrees))
            if step.turn is not None and self._turns(step, item)
            else part
        )

    def _turns(self, step: Step, item: int) -> bool:
        """Whether the earlier step that looks for it says that the crop is turned."""
        assert step.turn is not None
        said = self._run.said_of(step, step.turn.step, item)
        if not isinstance(said, dict) or said.get("label") != step.turn.label:
            return False
        score = said.get("score")
        return isinstance(score, int | float) and score > step.turn.above

    def _quarter(self, item: int) -> bool:
        step = self._step
        return step.turn is not None and step.turn.degrees != "180" and self._turns(step, item)

    def _seen_by(self, name: str, item: int) -> Array:
        """The picture in which a step found its boxes; the last one is kept, because its boxes follow one another."""
        if self._last is not None and self._last[0] == (name, item):
            return self._last[1]
        step = self._run.step(name)
        if not step.scope:
            opened = self._run.batch.feed.opened if self._run.batch.feed is not None else None
            assert opened is not None
            picture: Array = opened[item][picture_features(step)[0].pixels_key]
        else:
            outer = CropFeed(self._run, step)
            from worker.features.crops import recoloured

            picture = recoloured(
                outer._crop(step, item), outer._color_of(step.scope[-1]), self._color_of(name)
            )
        self._last = (name, item), picture
        return picture

    def _color_of(self, name: str) -> str:
        return picture_features(self._run.step(name))[0].target.settings.color


def picture_features(step: Step) -> list[PictureFeature]:
    """What fills the step's model inputs with pictures."""
    from worker.features.image_file import PictureFeature

    features: Sequence[Any] = getattr(step.servable.decoder, "features", ())
    return [feature for feature in features if isinstance(feature, PictureFeature)]
