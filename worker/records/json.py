"""JSON objects: ``{"features": [...]}``, named fields, or one field per model input.

The decoder first tries the whole batch, with the compiled reader or in one parse. It parses a record separately only if
that did not decode it, or if the model's shapes require it; only then it determines why a record is refused. Every way
accepts the same records.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from worker import native
from worker.batch import Columns, Feed
from worker.errors import ConfigError, Reject
from worker.features import FileFeature, Place, base64_text
from worker.features.numbers import NumbersFeature
from worker.model.signature import Signature, TensorSpec
from worker.records.fields import FieldsDecoder, check_missing, features_of
from worker.records.joined import JoinedParser, fill
from worker.records.json_text import parsed
from worker.records.memory import CHUNK_BYTES, check_room, json_bytes
from worker.records.rows import decode_each
from worker.settings import LimitsSettings, PipelineSettings
from worker.settings.sections import TensorInput

_OPENING = re.compile(rb'\s*:\s*"')
_HEADER_LENGTHS = (1 << 10, 96 << 10, 1 << 40)
"""Bytes of base64 text searched for a file's header; each length is tried in turn."""
_FEW_QUOTES = 200
_ESCAPES = ((b"\\/", b"/"), (b"\\n", b""), (b"\\r", b""), (b"\\t", b""))


class JsonDecoder(FieldsDecoder):
    """One JSON object per record; each model input is numbers or a picture from it."""

    contents = ("numeric", "image")
    has_fields = True
    takes_missing = True

    def __init__(self, settings: PipelineSettings, signature: Signature, limits: LimitsSettings) -> None:
        _check_sources(settings, signature)
        super().__init__(
            features_of(settings, signature, limits, "numeric", _Places(settings, signature)), signature
        )
        self.takes_nan = settings.input.missing != "reject"
        numbers = [feature for feature in self.features if isinstance(feature, NumbersFeature)]
        check_missing(settings, [feature.missing for feature in numbers])
        self.together = self.fixed and len(numbers) == len(self.features)
        """Whether a batch can be decoded at once, because every input is numbers of a known shape."""
        self.free_bytes = CHUNK_BYTES if self.together else 0
        self.numbers = numbers
        self.signature = signature
        self.limits = limits
        self.reader: Any | None = _reader(numbers) if self.together else None
        self.joined: JoinedParser | None = None
        if self.together and self.reader is None and _joinable(numbers):
            self.joined = JoinedParser([source.field or "" for source in numbers], self.specs)

    def open(self, value: bytes) -> dict[str, Any]:
        return parsed(value, self.takes_nan)

    def cost(self, value: bytes) -> int:
        """Bytes that parsing the record and decoding its files need, estimated from the text without parsing it.

        Each file counts with the largest header found under its field's name, at any depth. If the text could write
        a name with an escape, it is parsed.
        """
        # base64 with line breaks or in another alphabet is copied three times before it is decoded
        copies = 3 * len(value) if self.files else 0
        parsing = check_room(value, json_bytes(value) + copies, self.signature, self.limits)
        if not self.files:
            return parsing
        hidden = b"\\" in value and b"\\u00" in value  # one byte is found 50 times faster than four
        if hidden or any(not _plain_name(feature.place.field) for feature in self.files):
            return parsing + super().cost(value)
        return parsing + sum(max(_scratches(value, feature), default=0) for feature in self.files)

    def decode(
        self, payloads: list[bytes | None], columns: Columns, feed: Feed, start: int, stop: int
    ) -> None:
        left: Sequence[int] = range(start, stop)
        if self.reader is not None:
            left = self._read(self.reader, payloads, feed, start, stop)
        for rows in _chunks(payloads, left):
            if self.joined is None or not self._decode_joined(self.joined, payloads, feed, rows):
                self._decode_each(payloads, feed, rows)

    def _read(
        self, reader: Any, values: Sequence[bytes | None], feed: Feed, start: int, stop: int
    ) -> Sequence[int]:
        """Decode rows start..stop with the compiled reader; returns the rows that it left, which hold other values too."""
        assert feed.arrays is not None
        arrays = [feed.arrays[source.spec.name] for source in self.numbers]
        left: list[int] = reader.read(values, start, stop, arrays)
        for source, array in zip(self.numbers, arrays, strict=True):
            source.scaled(array[start:stop])
        return left

    def _decode_joined(
        self, joined: JoinedParser, values: Sequence[bytes | None], feed: Feed, rows: Sequence[int]
    ) -> bool:
        """Decode consecutive rows in one parse; False if one of them must be parsed separately."""
        start, stop = rows[0], rows[-1] + 1
        lists = joined.parse(values[start:stop])
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
        """Parse each record separately, then convert their values together if possible."""
        records: dict[int, dict[str, Any]] = {}

        def parse(row: int) -> None:
            records[row] = self.open(values[row] or b"")

        decode_each(self, feed, rows, parse)
        if self.together and self._stack(records, feed):
            return
        decode_each(self, feed, records, lambda row: self.decode_row(records[row], feed, row))

    def _stack(self, records: dict[int, dict[str, Any]], feed: Feed) -> bool:
        """Convert all records at once; False if one of them does not fit."""
        assert feed.arrays is not None
        try:
            for source in self.numbers:
                picked = list(map(source.pick, records.values()))
                feed.arrays[source.spec.name][list(records)] = source.items(picked)
        except (Reject, KeyError):
            return False
        return True


def _joinable(sources: Sequence[NumbersFeature]) -> bool:
    """Whether every input is a list of numbers, as long as its items."""
    return all(
        source.field is not None and source.spec.dtype.kind in "fiu" and 0 not in source.spec.item_shape
        for source in sources
    )


def _plain_name(field: str | None) -> bool:
    """Whether JSON text writes a field's name unchanged, or with escapes that begin with ``\\u00``."""
    return field is not None and field.isascii() and field.isprintable() and not {'"', "\\"} & set(field)


def _scratches(value: bytes, feature: FileFeature) -> Iterator[int]:
    """Bytes that decoding needs, for each text under the field's name in a JSON record."""
    name = f'"{feature.place.field}"'.encode()
    for position in _places(value, name):
        found = _OPENING.match(value, position + len(name))
        if found:
            yield _scratch(value, found.end(), feature)


def _places(value: bytes, name: bytes) -> Iterator[int]:
    """Positions of a quoted name. The first quotes are checked one by one, which finds it much faster than a search."""
    position, quotes = value.find(b'"'), 0
    while position >= 0:
        if value.startswith(name, position):
            yield position
        quotes += 1
        position = value.find(b'"' if quotes < _FEW_QUOTES else name, position + 1)


def _scratch(value: bytes, start: int, feature: FileFeature) -> int:
    """Bytes that decoding needs for the base64 text at ``start``; 0 if it is not such a file."""
    for length in _HEADER_LENGTHS:
        text = value[start : start + length].partition(b'"')[0]
        if b"\\" in text:
            for escape, plain in _ESCAPES:
                text = text.replace(escape, plain)
        try:
            return feature.scratch(base64_text.beginning(text))
        except (Reject, ValueError):
            # the header may be longer than this text; decoding reports any other fault
            if start + length >= len(value):
                break
    return 0


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


def _reader(sources: Sequence[NumbersFeature]) -> Any | None:
    """The compiled reader for these inputs; None without compiled modules, or if it cannot read one of the inputs."""
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
        return None  # two inputs read the same field
    return native.records.Reader(fields, targets)


def _check_sources(settings: PipelineSettings, signature: Signature) -> None:
    """Refuse settings that leave open which field fills which model input.

    Raises:
        ConfigError: naming the setting that is missing.
    """
    preprocess, names, inputs = settings.preprocess, settings.input.fields, signature.inputs
    content = preprocess.content.name if preprocess.content else None
    if content not in (None, "numeric"):
        raise ConfigError(
            f"preprocess.{content}: with input.format json the {content} needs a field; expected "
            f"preprocess.inputs.<tensor>: {{from: <JSON field>, {content}: ...}}"
        )
    if content and len(inputs) != 1:
        raise ConfigError(
            f"preprocess.{content}: the model has {len(inputs)} inputs; expected preprocess.inputs"
        )
    if names and not preprocess.inputs and len(inputs) != 1:
        raise ConfigError(
            f"input.fields: the model has {len(inputs)} inputs; expected preprocess.inputs to say which "
            "of them the fields feed, or none, and each input is the field of its own name"
        )


class _Places:
    """The place of each model input in a JSON record."""

    def __init__(self, settings: PipelineSettings, signature: Signature) -> None:
        self.names = tuple(settings.input.fields or ())
        self.sole = len(signature.inputs) == 1
        self.missing = settings.input.missing

    def __call__(self, spec: TensorSpec, source: TensorInput | None, content: str) -> Place:
        whole = source.from_ == "value" if source else self.sole
        if not whole:
            return Place(source.from_ if source else spec.name, missing=self.missing)
        if content != "numeric":
            raise ConfigError(
                f"preprocess.inputs.{spec.name}.from: the record is JSON; "
                f"expected the JSON field that holds the {content}"
            )
        if self.names:
            _check_fields(spec, self.names)
            return Place(names=self.names, missing=self.missing)
        return Place("features", missing=self.missing)


def _check_fields(spec: TensorSpec, names: Sequence[str]) -> None:
    """The named fields must be exactly one item."""
    free = spec.item_shape.count(None)
    size = math.prod(d for d in spec.item_shape if d is not None)
    if free > 1 or (free and size != 1) or (not free and size != len(names)):
        shape = str(list(spec.item_shape)).replace("None", "?")
        raise ConfigError(
            f"input.fields: got {len(names)} fields, but an item of the model's input {spec.name} has shape {shape}"
        )
