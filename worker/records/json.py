"""JSON objects: ``{"features": [...]}``, named fields, or one field per model input.

A batch is tried together first, by the compiled reader or in one parse; only what that leaves over, or the model's
shapes ask for, gets Python work of its own, and only then is its reason worked out. All ways accept the same records.
"""

from __future__ import annotations

import math
from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import orjson

from worker import native
from worker.batch import Array, Columns, Feed
from worker.errors import ConfigError, Reject
from worker.features.numbers import Numeric
from worker.model.signature import Signature, TensorSpec
from worker.records.joined import CHUNK_BYTES, JoinedParser, fill
from worker.records.rows import decode_each, put
from worker.records.values import TYPE_NAMES, shape_of, stack, typed
from worker.settings import ImageSettings, LimitsSettings, NumericSettings, PipelineSettings


class JsonDecoder:
    """A record is one JSON object; each model input is numbers or a picture from it."""

    def __init__(self, settings: PipelineSettings, signature: Signature, limits: LimitsSettings) -> None:
        self.specs = signature.inputs
        self.fixed = signature.fixed
        numbers, pictures = _sources(settings, signature, limits)
        self.numbers = numbers
        self.pictures = pictures
        # Parsing holds the GIL, so shards do not help; decoding pictures lets it go.
        self.shard_rows = 8 if pictures else 0
        self.joined: JoinedParser | None = None
        self.reader: Any | None = _reader(numbers) if self.fixed and not pictures else None
        if self.fixed and not pictures and _joinable(numbers):
            self.joined = JoinedParser([source.field or "" for source in numbers], self.specs)

    def cost(self, value: bytes) -> int:
        """Scratch of the largest picture's decode, where it is above 8 MiB."""
        if not self.pictures:
            return 0
        record = _parsed(value)
        return max(picture.cost(record) for picture in self.pictures)

    def decode(self, columns: Columns, feed: Feed, start: int, stop: int) -> None:
        values = columns.values
        if self.reader is not None:
            for rows in _chunks(values, self._read(self.reader, values, feed, start, stop)):
                self._decode_each(values, feed, rows)
            return
        for rows in _chunks(values, range(start, stop)):
            if not self._decode_joined(values, feed, rows[0], rows[-1] + 1):
                self._decode_each(values, feed, rows)

    def _read(
        self, reader: Any, values: Sequence[bytes | None], feed: Feed, start: int, stop: int
    ) -> list[int]:
        """Rows start..stop by the compiled reader; those it leaves over."""
        assert feed.arrays is not None
        arrays = [feed.arrays[source.spec.name] for source in self.numbers]
        left: list[int] = reader.read(values, start, stop, arrays)
        for source, array in zip(self.numbers, arrays, strict=True):
            source.scaled(array[start:stop])
        return left

    def _decode_joined(self, values: Sequence[bytes | None], feed: Feed, start: int, stop: int) -> bool:
        """Rows start..stop in one parse; False when any of them needs a closer look."""
        lists = self.joined.parse(values[start:stop]) if self.joined is not None else None
        if lists is None:
            return False
        assert feed.arrays is not None
        for source, elements in zip(self.numbers, lists, strict=True):
            slot = feed.arrays[source.spec.name][start:stop]
            if not fill(slot, elements):
                return False
            source.scaled(slot)
        return True

    def _decode_each(self, values: Sequence[bytes | None], feed: Feed, rows: Sequence[int]) -> None:
        """Each record parsed on its own, then their values converted together where that works."""
        records: dict[int, dict[str, Any]] = {}

        def parse(row: int) -> None:
            records[row] = _parsed(values[row] or b"")

        decode_each(self, feed, rows, parse)
        if self.fixed and not self.pictures and self._stack(records, feed):
            return
        decode_each(self, feed, records, lambda row: self._decode_row(records[row], feed, row))

    def _stack(self, records: dict[int, dict[str, Any]], feed: Feed) -> bool:
        """All records at once; False when one of them is in the way."""
        assert feed.arrays is not None
        try:
            for source in self.numbers:
                picked = list(map(source.pick, records.values()))
                feed.arrays[source.spec.name][list(records)] = source.items(picked)
        except (Reject, KeyError):
            return False
        return True

    def _decode_row(self, record: dict[str, Any], feed: Feed, row: int) -> None:
        items = {source.spec.name: source.item(record) for source in self.numbers}
        if all(picture.write(record, feed, row, items) for picture in self.pictures):
            put(feed, row, self.specs, items)


class _Numbers:
    """One model input made of numbers (or booleans, or strings) of the record.

    Args:
        spec: the model input.
        field: the JSON field with a list; None = ``names``.
        names: fields of one element each, in this order.
        numeric: scaling, if any.
    """

    def __init__(
        self, spec: TensorSpec, field: str | None, names: Sequence[str], numeric: Numeric | None
    ) -> None:
        self.spec = spec
        self.field = field
        self.names = names
        self.numeric = numeric
        self.pick: Callable[[dict[str, Any]], Any] = (
            itemgetter(*names) if field is None else itemgetter(field)
        )
        if field is None and len(names) == 1:
            self.pick = lambda record: (record[names[0]],)
        elif field is not None and field != "features" and math.prod(d or 0 for d in spec.item_shape) == 1:
            # One number under the input's own name is as good as a list of one.
            self.pick = lambda record: _listed(record[field])

    def items(self, picked: list[Any]) -> Array:
        """(records, *item) from what :attr:`pick` gave; the item's shape is known.

        Raises:
            Reject: one of them does not fit.
        """
        return self.scaled(stack(picked, self.spec.dtype, shape_of(None, self.spec.item_shape)))

    def item(self, record: dict[str, Any]) -> Array:
        """One record's item, or why it has none.

        Raises:
            Reject: ``invalid``, naming the field.
        """
        try:
            picked = self.pick(record)
        except KeyError as error:
            raise Reject(f'the field "{error.args[0]}" is missing') from None
        if self.field is None:
            return self._named_item(picked)
        try:
            shape = shape_of(picked, self.spec.item_shape)
            items: Array = self.scaled(stack([picked], self.spec.dtype, shape))
            return items.reshape(shape)
        except Reject as error:
            raise Reject(f'the field "{self.field}": {error}') from None

    def _named_item(self, picked: Sequence[Any]) -> Array:
        elements = []
        for name, element in zip(self.names, picked, strict=True):
            try:
                elements.append(typed([element], self.spec.dtype))
            except Reject as error:
                raise Reject(f'the field "{name}": {str(error).replace("element 0", "it")}') from None
        shape = [len(elements) if d is None else d for d in self.spec.item_shape]
        items: Array = np.concatenate(elements).reshape(1, *shape)
        return self.scaled(items).reshape(shape)

    def scaled(self, items: Array) -> Array:
        if self.numeric is not None:
            self.numeric.apply(items)
        return items


class _Picture:
    """One model input that is a picture, in the record as base64 text."""

    def __init__(self, spec: TensorSpec, field: str, settings: ImageSettings, limits: LimitsSettings) -> None:
        from worker.features.picture import ImagePreprocess
        from worker.records.image import ImageReader

        self.field = field
        self.target = ImagePreprocess(settings, spec, f"preprocess.inputs.{spec.name}.image")
        self.reader = ImageReader(limits, self.target.channels == 1)

    def cost(self, record: dict[str, Any]) -> int:
        return self.reader.cost(self._bytes(record))

    def write(self, record: dict[str, Any], feed: Feed, row: int, items: dict[str, Array]) -> bool:
        from worker.records.image import fit

        pixels = self.reader.read(self._bytes(record), self.target.flags)
        return fit(self.target, pixels, feed, row, items)

    def _bytes(self, record: dict[str, Any]) -> bytes:
        if self.field not in record:
            raise Reject(f'the field "{self.field}" is missing')
        text = record[self.field]
        if not isinstance(text, str):
            raise Reject(f'the field "{self.field}": expected an image as base64 text')
        try:
            return b64decode(text, validate=True)
        except ValueError:
            raise Reject(f'the field "{self.field}" is not base64', "undecodable") from None


def _joinable(sources: Sequence[_Numbers]) -> bool:
    """Whether every input is a list of numbers, as long as its items."""
    return all(
        source.field is not None and source.spec.dtype.kind in "fiu" and 0 not in source.spec.item_shape
        for source in sources
    )


def _parsed(value: bytes) -> dict[str, Any]:
    """One record.

    Raises:
        Reject: ``undecodable``: not JSON; ``invalid``: not an object, or a number beyond float64.
    """
    try:
        record = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        if "infinity" in str(error):
            raise Reject("a number is too large for float64") from None
        raise Reject(f"not JSON: {_without_payload(error)}", "undecodable") from None
    if not isinstance(record, dict):
        raise Reject(f"expected a JSON object, got {TYPE_NAMES[type(record)]}")
    return record


def _without_payload(error: orjson.JSONDecodeError) -> str:
    return f"{error.msg} (at byte {error.pos})" if error.doc else error.msg


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _chunks(values: Sequence[bytes | None], rows: Sequence[int]) -> Iterator[Sequence[int]]:
    """These rows in runs of at most ``CHUNK_BYTES``, or of one row."""
    sizes = [len(values[row] or b"") for row in rows]
    first, size = 0, 0
    if sum(sizes) > CHUNK_BYTES:
        for index, length in enumerate(sizes):
            if size + length > CHUNK_BYTES and index > first:
                yield rows[first:index]
                first, size = index, 0
            size += length
    if rows:
        yield rows[first:]


def _reader(sources: Sequence[_Numbers]) -> Any | None:
    """The compiled reader of these inputs; None where it is not there, or they are more than numbers of one size."""
    if native.records is None:
        return None
    fields: list[tuple[bytes, int, int, int, bool, bool]] = []
    targets: list[tuple[str, int, int]] = []
    for index, source in enumerate(sources):
        dtype, shape = source.spec.dtype, source.spec.item_shape
        size = math.prod(d or 0 for d in shape)
        if dtype.char not in "fdbBhHiIlLqQ" or not dtype.isnative or not size:
            return None
        targets.append((dtype.char, dtype.itemsize, size))
        if source.field is None:
            fields += [
                (name.encode(), index, place, 1, False, True) for place, name in enumerate(source.names)
            ]
        else:
            bare = size == 1 and (source.field != "features" or not shape)
            fields.append((source.field.encode(), index, 0, size, True, bare))
    if len({name for name, *_ in fields}) != len(fields):
        return None  # a value that is read twice
    return native.records.Reader(fields, targets)


def _sources(
    settings: PipelineSettings, signature: Signature, limits: LimitsSettings
) -> tuple[list[_Numbers], list[_Picture]]:
    """Where each model input comes from, in the model's order.

    Raises:
        ConfigError: an input has no source, or a source cannot fill it.
    """
    preprocess, names = settings.preprocess, settings.input.fields or []
    sole = len(signature.inputs) == 1
    if preprocess.image is not None:
        raise ConfigError(
            "preprocess.image: with input.format json the image needs a field; expected "
            "preprocess.inputs.<tensor>: {from: <JSON field>, image: ...}"
        )
    if preprocess.numeric is not None and not sole:
        raise ConfigError(
            f"preprocess.numeric: the model has {len(signature.inputs)} inputs; expected preprocess.inputs"
        )
    if names and not preprocess.inputs and not sole:
        raise ConfigError(
            f"input.fields: the model has {len(signature.inputs)} inputs; expected preprocess.inputs to say which "
            "of them the fields feed, or none, and each input is the field of its own name"
        )
    numbers: list[_Numbers] = []
    pictures: list[_Picture] = []
    for spec in signature.inputs:
        source = preprocess.inputs.get(spec.name)
        key = f"preprocess.inputs.{spec.name}" if source else "preprocess"
        whole = source.from_ == "value" if source else sole
        field = source.from_ if source and not whole else spec.name
        if source and source.image is not None:
            if whole:
                raise ConfigError(
                    f"{key}.from: the record is JSON; expected the JSON field that holds the image"
                )
            pictures.append(_Picture(spec, field, source.image, limits))
            continue
        numeric = _numeric(source.numeric if source else preprocess.numeric, spec, f"{key}.numeric")
        if whole and names:
            _check_fields(spec, names)
            numbers.append(_Numbers(spec, None, names, numeric))
        else:
            numbers.append(_Numbers(spec, "features" if whole else field, (), numeric))
    return numbers, pictures


def _numeric(settings: NumericSettings | None, spec: TensorSpec, key: str) -> Numeric | None:
    return None if settings is None else Numeric(settings, spec, key)


def _check_fields(spec: TensorSpec, names: Sequence[str]) -> None:
    """The named fields must be exactly one item."""
    free = spec.item_shape.count(None)
    size = math.prod(d for d in spec.item_shape if d is not None)
    if free > 1 or (free and size != 1) or (not free and size != len(names)):
        shape = str(list(spec.item_shape)).replace("None", "?")
        raise ConfigError(
            f"input.fields: got {len(names)} fields, but an item of the model's input {spec.name} has shape {shape}"
        )
