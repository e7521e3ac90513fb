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
from worker.errors import Reject
from worker.features import FileFeature, base64_text
from worker.features.constant import ConstantFeature
from worker.features.numbers import NumbersFeature
from worker.model.signature import Signature
from worker.records.fields import FieldPlaces, FieldsDecoder, check_missing, check_sources, features_of
from worker.records.joined import JoinedParser, fill
from worker.records.json_text import parsed
from worker.records.memory import CHUNK_BYTES, check_room, json_bytes
from worker.records.paths import Path
from worker.records.rows import decode_each
from worker.settings import LimitsSettings, PipelineSettings

_OPENING = re.compile(rb'\s*:\s*"')
_HEADER_LENGTHS = (1 << 10, 96 << 10, 1 << 40)
"""Bytes of base64 text searched for a file's header; each length is tried in turn."""
_FEW_QUOTES = 200
_DEPTH_MAX = 32
"""Most steps of a path that the compiled reader follows."""
_ESCAPES = ((b"\\/", b"/"), (b"\\n", b""), (b"\\r", b""), (b"\\t", b""))


class JsonDecoder(FieldsDecoder):
    """One JSON object per record; each model input is numbers or a picture from it."""

    contents = ("numeric", "image", "audio", "bytes", "text")
    has_fields = True
    takes_missing = True

    def __init__(self, settings: PipelineSettings, signature: Signature, limits: LimitsSettings) -> None:
        check_sources(settings, signature)
        super().__init__(
            features_of(settings, signature, limits, "numeric", FieldPlaces(settings, signature)), signature
        )
        self.takes_nan = settings.input.missing != "reject"
        numbers = [feature for feature in self.features if isinstance(feature, NumbersFeature)]
        check_missing(settings, [feature.missing for feature in numbers])
        self.constants = [feature for feature in self.features if isinstance(feature, ConstantFeature)]
        self.together = (
            self.fixed and bool(numbers) and len(numbers) + len(self.constants) == len(self.features)
        )
        """Whether a batch can be decoded at once, because every input is numbers of a known shape, or constant."""
        self.free_bytes = CHUNK_BYTES if self.together else 0
        self.numbers = numbers
        self.signature = signature
        self.limits = limits
        self.reader: Any | None = _reader(numbers) if self.together else None
        self.joined: JoinedParser | None = None
        if self.together and self.reader is None and _joinable(numbers):
            self.joined = JoinedParser(
                [source.field or "" for source in numbers], [source.spec for source in numbers]
            )

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
            return parsing + self.sized_room(len(value))
        hidden = b"\\" in value and b"\\u00" in value  # one byte is found 50 times faster than four
        if hidden or not all(map(_is_found, self.files)):
            return parsing + super().cost(value)
        files = sum(max(_scratches(value, feature), default=0) for feature in self.files)
        return parsing + files + self.sized_room(len(value))

    def decode(
        self, payloads: list[bytes | None], columns: Columns, feed: Feed, start: int, stop: int
    ) -> None:
        left: Sequence[int] = range(start, stop)
        if self.together:
            for constant in self.constants:
                constant.fill(feed, start, stop)
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
        self.decode_records(records, feed)

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
        source.field is not None
        and source.plain
        and source.spec.dtype.kind in "fiu"
        and 0 not in source.spec.item_shape
        for source in sources
    )


def _is_found(feature: FileFeature) -> bool:
    """Whether a search for the field's name finds its text: a name stands right before it, and is written as it is."""
    path = feature.place.path
    return path is not None and path.steps[-1] == path.name and all(map(_is_written, (path.name, path.text)))


def _is_written(name: str) -> bool:
    """Whether JSON text writes a name unchanged, or with escapes that begin with ``\\u00``."""
    return name.isascii() and name.isprintable() and not {'"', "\\"} & set(name)


def _scratches(value: bytes, feature: FileFeature) -> Iterator[int]:
    """Bytes that decoding needs, for each text under the field's name in a JSON record, at any depth."""
    path = feature.place.path
    assert path is not None
    for name in {path.name, path.text}:
        quoted = f'"{name}"'.encode()
        for position in _places(value, quoted):
            found = _OPENING.match(value, position + len(quoted))
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
    for length in _HEADER_LENGTHS[-1:] if feature.reads_whole else _HEADER_LENGTHS:
        text = value[start : start + length].partition(b'"')[0]
        if b"\\" in text:
            for escape, plain in _ESCAPES:
                text = text.replace(escape, plain)
        try:
            if feature.reads_whole:
                return feature.charge(base64_text.decoded(text.decode("ascii")))
            return feature.charge(base64_text.beginning(text))
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
    paths = [Path.of(name.decode()) for name, *_ in fields]
    if not _apart(paths):
        return None
    ways = [() if path.plain else tuple(map(_encoded, path.steps)) for path in paths]
    return native.records.Reader(fields, targets, ways)


def _apart(paths: Sequence[Path]) -> bool:
    """Whether the compiled reader can tell these fields apart.

    No two may be one, and none may lie inside another. What is an object on one way must not be a list on another. No index
    may count from the end, and no field of the record itself may have the whole text of a path as its name.
    """
    ways = [path.steps for path in paths]
    if len(set(ways)) != len(ways) or any(step < 0 for way in ways for step in way if isinstance(step, int)):
        return False
    inside = {way[:length] for way in ways for length in range(1, len(way))}
    if inside.intersection(ways) or max(map(len, ways)) > _DEPTH_MAX:
        return False
    lists: dict[tuple[str | int, ...], bool] = {}
    for way in ways:
        for length in range(1, len(way)):
            if lists.setdefault(way[:length], isinstance(way[length], int)) != isinstance(way[length], int):
                return False
    texts = {path.text for path in paths if not path.plain}
    return not texts.intersection(way[0] for way in ways)


def _encoded(step: str | int) -> bytes | int:
    return step.encode() if isinstance(step, str) else step
