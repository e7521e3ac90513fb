"""What is measured of records to compare them with others: of each model input by its content, and of each prediction.

A picture or sound is measured as it was decoded, before it is made to fit the model; numbers as they stand in the record, before
they are scaled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import orjson

from worker.batch import Array, Batch, Feed, Run
from worker.drift.measured import Measured, Value
from worker.encode import Encoder
from worker.encode.rows import item_spans
from worker.features.constant import ConstantFeature
from worker.features.numbers import NumbersFeature
from worker.features.strings import StringFeature
from worker.model.signature import Signature, TensorSpec
from worker.records import Decoder

if TYPE_CHECKING:
    from worker.features.tokens import TokensFeature

ELEMENTS_MAX = 128
"""An item or output of more elements counts with its mean and deviation, not with each element."""
PREDICTION_BYTES = 1 << 16
"""A longer prediction is not read: the model's outputs are measured instead."""
TEXT_MAX = 64
"""A longer text of a prediction counts with its length."""


class Opened(Protocol):
    """Measures what a decoder has made of a record's file."""

    key: object
    """Under which it lies in the record's ``opened``."""

    def __call__(self, found: Array) -> dict[str, float]: ...


class Measures:
    """See the module.

    Args:
        decoder: of the records. encoder: of the results.
        signature: of the model that the decoder feeds.
    """

    def __init__(self, decoder: Decoder, encoder: Encoder, signature: Signature) -> None:
        self.kinds: dict[str, str] = {}
        """What is measured of each model input, in words."""
        self.files: list[tuple[str, object, Callable[[Array], dict[str, float]]]] = []
        """Of each file in a record: what its features are called, where its content lies, what measures it."""
        self._predicts = bool(getattr(encoder, "predicts", False))
        self._inputs: list[Callable[[Feed, Sequence[int], Measured], None]] = []
        features: Sequence[Any] = getattr(decoder, "features", ())
        covered: set[str] = set()
        for feature in features:
            names = [spec.name for spec in getattr(feature, "specs", [feature.spec])]
            covered.update(getattr(feature, "filled", names))
            self._take(feature, signature)
        for spec in signature.inputs:
            if spec.name not in covered:
                self._take_tensor(spec, spec.name, None, ())
        self._called_apart()

    def of_files(self, opened: Mapping[Any, Any]) -> dict[str, float]:
        """Figures of the pictures and sounds of one record.

        Args:
            opened: what features have read of the record.
        """
        return {
            f"{called}.{name}": value
            for called, key, figures in self.files
            if (found := opened.get(key)) is not None
            for name, value in figures(found).items()
        }

    def of_run(
        self, batch: Batch, run: Run, fragments: Sequence[Any], rows: Sequence[int], measured: Measured
    ) -> None:
        """Add figures of the inputs and of the answers to some rows of a batch whose tensors are still there.

        Args:
            fragments: of the run. rows: rows of the batch that the run has answered, ascending.
        """
        assert batch.feed is not None
        for measure in self._inputs:
            measure(batch.feed, rows, measured)
        at = _positions(run.rows, rows)
        texts = [fragments[place] for place in at]
        if self._predicts and all(
            isinstance(text, bytes) and len(text) <= PREDICTION_BYTES for text in texts
        ):
            measured.put([dict(_figures(_read(text), "prediction")) for text in texts])
        else:
            _outputs(run, at, measured)

    # -- inputs ------------------------------------------------------------------------------------------

    def _take(self, feature: Any, signature: Signature) -> None:
        from worker.features.image_file import PictureFeature  # loads OpenCV
        from worker.features.sound_file import SoundFeature
        from worker.features.tokens import TokensFeature

        if isinstance(feature, ConstantFeature):
            return
        if isinstance(feature, PictureFeature):
            from worker.features.figures import of_picture

            order = feature.target.settings.color
            self._take_file(feature, "picture", feature.pixels_key, lambda found: of_picture(found, order))
        elif isinstance(feature, SoundFeature):
            from worker.features.figures import of_sound

            rate = feature.rate
            self._take_file(feature, "sound", feature.sound_key, lambda found: of_sound(found, rate))
        elif isinstance(feature, TokensFeature):
            self.kinds[feature.spec.name] = "text"
            self._inputs.append(_Tokens(feature))
        elif isinstance(feature, StringFeature):
            self.kinds[feature.spec.name] = "text"
            self._inputs.append(_Characters(feature.spec))
        elif isinstance(feature, NumbersFeature):
            called = feature.field or feature.spec.name
            self._take_tensor(feature.spec, called, feature.scaling, feature.names)
        else:
            self._take_tensor(feature.spec, feature.spec.name, None, ())

    def _take_file(
        self, feature: Any, kind: str, key: object, figures: Callable[[Array], dict[str, float]]
    ) -> None:
        self.kinds[feature.spec.name] = kind
        if all(key != known for _, known, _ in self.files):
            self.files.append((f"{kind}:{feature.spec.name}", key, figures))

    def _take_tensor(self, spec: TensorSpec, called: str, scaling: Any, names: Sequence[str]) -> None:
        elements = None if None in spec.item_shape else math.prod(d or 0 for d in spec.item_shape)
        what = "texts" if spec.dtype == object else "numbers"
        size = len(names) or elements
        self.kinds[spec.name] = f"{what} of any length" if size is None else f"{size} {what}"
        self._inputs.append(_Tensor(spec, called, scaling, names))

    def _called_apart(self) -> None:
        """A file is called by its kind, or by its input where there are several of its kind."""
        kinds = [called.partition(":")[0] for called, _, _ in self.files]
        self.files = [
            (kind if kinds.count(kind) == 1 else called.partition(":")[2], key, figures)
            for kind, (called, key, figures) in zip(kinds, self.files, strict=True)
        ]


class _Tensor:
    """Figures of one model input: each element of a small item, mean and deviation of a large one."""

    def __init__(self, spec: TensorSpec, called: str, scaling: Any, names: Sequence[str]) -> None:
        self._spec, self._called, self._scaling, self._names = spec, called, scaling, names

    def __call__(self, feed: Feed, rows: Sequence[int], measured: Measured) -> None:
        name = self._spec.name
        if feed.arrays is not None:
            if name in feed.arrays:
                self._put(feed.arrays[name][rows], measured)
            return
        items = [item.arrays.get(name) if (item := feed.items[row]) is not None else None for row in rows]
        if any(item is None or not item.size for item in items):
            return
        ours: list[Any] = [item[0] if item is not None and self._spec.has_rows else item for item in items]
        if len({item.shape for item in ours}) == 1:
            self._put(np.stack(ours), measured)
        else:
            flat = [item.reshape(-1) for item in ours]
            measured.put(
                [self._summary(item) | {f"{self._called}.length": float(len(item))} for item in flat]
            )

    def _put(self, values: Array, measured: Measured) -> None:
        """Args: values: (rows, *item)."""
        if values.dtype == object:
            flat = values.reshape(len(values), -1)
            names = self._names or _numbered(self._called, flat.shape[1])
            for place, name in enumerate(names[:ELEMENTS_MAX]):
                measured.texts.append((name, [str(value)[:TEXT_MAX] for value in flat[:, place].tolist()]))
            return
        numbers = values.astype(np.float64)
        if self._scaling is not None:
            numbers = numbers * self._scaling.std.astype(np.float64) + self._scaling.mean.astype(np.float64)
        flat = numbers.reshape(len(values), -1)
        free = None in self._spec.item_shape and not self._names
        if free or flat.shape[1] > ELEMENTS_MAX:
            length = {f"{self._called}.length": float(flat.shape[1])} if free else {}
            measured.put([self._summary(row) | length for row in flat])
        else:
            measured.numbers.append((tuple(self._names) or _numbered(self._called, flat.shape[1]), flat))

    def _summary(self, item: Array) -> dict[str, Value]:
        return _spread(self._called, item)


class _Tokens:
    """Figures of a text that became tokens."""

    def __init__(self, feature: TokensFeature) -> None:
        self._ids, self._mask = feature.spec, feature.mask
        self._pad, self._unknown = feature.tokenizer.pad_id, feature.tokenizer.unknown_id()

    def __call__(self, feed: Feed, rows: Sequence[int], measured: Measured) -> None:
        measured.put([self._of(feed, row) for row in rows])

    def _of(self, feed: Feed, row: int) -> dict[str, Value]:
        ids = _item(feed, self._ids, row)
        if ids is None:
            return {}
        mask = _item(feed, self._mask, row) if self._mask is not None else None
        own = ids[mask != 0] if mask is not None else ids[ids != self._pad]
        found: dict[str, Value] = {"text.length": float(len(own))}
        if self._unknown is not None and len(own):
            found["text.unknown"] = float((own == self._unknown).mean())
        return found


class _Characters:
    """Figures of a text that the model is given as it is."""

    def __init__(self, spec: TensorSpec) -> None:
        self._spec = spec

    def __call__(self, feed: Feed, rows: Sequence[int], measured: Measured) -> None:
        texts = [_item(feed, self._spec, row) for row in rows]
        measured.put([{} if text is None else {"text.length": float(len(str(text[0])))} for text in texts])


def _item(feed: Feed, spec: TensorSpec, row: int) -> Array | None:
    """One input of a row, the first of its items, flat."""
    if feed.arrays is not None:
        return np.asarray(feed.arrays[spec.name][row]).reshape(-1)
    item = feed.items[row]
    array = item.arrays.get(spec.name) if item is not None else None
    if array is None or not array.size:
        return None
    return (array[0] if spec.has_rows else array).reshape(-1)


def _numbered(called: str, count: int) -> tuple[str, ...]:
    return (called,) if count == 1 else tuple(f"{called}[{place}]" for place in range(count))


def _spread(called: str, item: Array) -> dict[str, Value]:
    """Mean and standard deviation of the finite numbers of one item."""
    numbers = np.asarray(item, np.float64)
    numbers = numbers[np.isfinite(numbers)]
    if not numbers.size:
        return {}
    return {f"{called}.mean": float(numbers.mean()), f"{called}.deviation": float(numbers.std())}


# -- answers -----------------------------------------------------------------------------------------------


def _positions(rows: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """Where these rows stand among those of a run, which ascend or are few."""
    if isinstance(rows, range):
        return [row - rows.start for row in wanted]
    places = {row: place for place, row in enumerate(rows)}
    return [places[row] for row in wanted]


def _read(text: bytes) -> Any:
    """A prediction; of a record with several items, whose predictions are joined by commas, that of the first."""
    predictions = orjson.loads(b"[%b]" % text)
    return predictions[0] if predictions else None


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _figures(value: Any, called: str, depth: int = 0) -> Iterator[tuple[str, Value]]:
    """The figures in a prediction, by their paths.

    Numbers and short texts count as they are, longer texts with their length, lists of objects with how many there are and with
    the label and the score of the first, lists of numbers as tensors.
    """
    if isinstance(value, bool):
        yield called, str(value).lower()
    elif isinstance(value, int | float):
        yield called, float(value)
    elif isinstance(value, str):
        yield from [(called, value)] if len(value) <= TEXT_MAX and not called.endswith(".text") else []
        if called.endswith(".text") or len(value) > TEXT_MAX:
            yield f"{called}.length", float(len(value))
    elif isinstance(value, dict) and depth < 4:
        for name, held in value.items():
            if not (name == "top" and "label" in value):  # the label and the score again, with the next best
                yield from _figures(held, f"{called}.{name}", depth + 1)
    elif isinstance(value, list):
        yield from _of_list(value, called, depth)


def _of_list(value: list[Any], called: str, depth: int) -> Iterator[tuple[str, Value]]:
    if all(isinstance(each, int | float) for each in value) and value:
        if len(value) <= ELEMENTS_MAX:
            yield from zip(_numbered(called, len(value)), map(float, value), strict=True)
        else:
            yield from _spread(called, np.array(value, np.float64)).items()
    elif not value or all(map(_is_dict, value)):
        yield f"{called}.count", float(len(value))
        for name in ("label", "score") if value else ():
            if name in value[0]:
                yield from _figures(value[0][name], f"{called}.{name}", depth + 1)
    elif isinstance(value[0], list) and len(value) == 1:
        yield from _of_list(value[0], called, depth)


def _outputs(run: Run, at: Sequence[int], measured: Measured) -> None:
    """Figures of the model's own outputs, of the first item of each record."""
    spans = item_spans(run)
    rows: list[dict[str, Value]] = []
    for place in at:
        row: dict[str, Value] = {}
        for name, output in run.outputs.items():
            item = (output if run.whole else output[spans[place][0]]).reshape(-1)
            if item.dtype == object:
                row |= {f"output.{name}": str(item[0])[:TEXT_MAX]} if item.size == 1 else {}
            elif item.size <= ELEMENTS_MAX:
                row |= zip(
                    _numbered(f"output.{name}", item.size), item.astype(np.float64).tolist(), strict=True
                )
            else:
                row |= _spread(f"output.{name}", item)
        rows.append(row)
    measured.put(rows)
