"""Formats whose records are opened into fields: chooses the content of each model input, and decodes row by row."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from worker.batch import Array, Columns, Feed
from worker.errors import ConfigError
from worker.features import MARKS, Feature, FileFeature, HasRoom, Opened, Place, ReadsAhead, Record
from worker.model.signature import Signature, TensorSpec
from worker.records.paths import ABSENT
from worker.records.rows import decode_each, put, put_windows
from worker.registry import CONTENTS
from worker.settings import LimitsSettings, PipelineSettings
from worker.settings.sections import TensorInput

SHARD_ROWS = 8
"""Rows per decode task of a slow content: few enough to keep every thread busy, enough to pay for a task."""


def features_of(
    settings: PipelineSettings,
    signature: Signature,
    limits: LimitsSettings,
    default: str,
    place_of: Callable[[TensorSpec, TensorInput | None, str], Place],
) -> list[Feature]:
    """The features that fill the model's inputs, in the model's order.

    Args:
        default: the content of an input whose settings name none.
        place_of: (model input, its settings if there are any, content's name) -> where in the record it is.

    Raises:
        ConfigError: an input has no source, or a source cannot fill it.
    """
    preprocess = settings.preprocess
    wide = wide_of(settings, signature, default)
    filled = {spec.name for one in wide for spec in one.specs}
    features = [one.feature(settings, limits, place_of) for one in wide]
    for spec in signature.inputs:
        if spec.name in filled:
            continue
        source = preprocess.inputs.get(spec.name)
        key = f"preprocess.inputs.{spec.name}" if source else "preprocess"
        content = (source or preprocess).content
        name = content.name if content else default
        entry = CONTENTS.entry(name)
        place = Place() if is_placeless(name) else place_of(spec, source, name)
        if place.default is not ABSENT and not getattr(entry, "takes_default", False):
            raise ConfigError(f"{key}.default: does not go with {name}")
        options = content.options if content else None
        features.append(entry.make(options, spec, place, f"{key}.{name}", limits))
    for feature in features:
        if isinstance(feature, FileFeature):
            feature.answer_share = signature.shown.answer_share
    return features


def is_placeless(content: str) -> bool:
    """Whether a content reads nothing of a record, so that it goes with every format that holds contents."""
    return bool(getattr(CONTENTS.entry(content), "placeless", False))


@dataclass(frozen=True)
class _Wide:
    """A content of the settings that fills several model inputs."""

    name: str
    options: Any
    source: TensorInput | None
    key: str
    specs: list[TensorSpec]

    def feature(
        self,
        settings: PipelineSettings,
        limits: LimitsSettings,
        place_of: Callable[[TensorSpec, TensorInput | None, str], Place],
    ) -> Feature:
        source, entry = self.source, CONTENTS.entry(self.name)
        options = self.options
        if source is not None and options.from_ == "value" and source.from_ is not None:
            options = options.model_copy(update={"from_": source.from_})

        def places(from_: str) -> Place:
            default = source.default if source is not None and from_ == options.from_ else None
            return place_of(
                self.specs[0], TensorInput.model_validate({"from": from_, "default": default}), self.name
            )

        return entry.make_wide(options, self.specs, places, self.key, settings, limits)  # type: ignore[attr-defined,no-any-return]


def wide_of(settings: PipelineSettings, signature: Signature, default: str | None = None) -> list[_Wide]:
    """The contents of the settings that may fill several model inputs, with the inputs that they fill.

    Args:
        default: the content of a record whose settings name none.

    Raises:
        ConfigError: an input that such a content has to fill is not there, or two sources fill one.
    """
    preprocess, found = settings.preprocess, []
    sources: list[tuple[TensorSpec | None, TensorInput | None, str]] = [
        (signature.input(name), source, f"preprocess.inputs.{name}")
        for name, source in preprocess.inputs.items()
    ]
    for spec, source, key in sources or [(None, None, "preprocess")]:
        content = (source or preprocess).content
        name = content.name if content else default
        if name is None or (source is not None and spec is None):
            continue
        entry: Any = CONTENTS.entry(name)
        if not hasattr(entry, "fills"):
            continue
        options = content.options if content else entry.settings()
        specs = entry.fills(options, signature.inputs, spec, f"{key}.{name}")
        found.append(_Wide(name, options, source, f"{key}.{name}", specs))
    return found


def check_inputs(settings: PipelineSettings, signature: Signature) -> None:
    """Check that ``preprocess.inputs``, if given, leads to every model input once and to nothing else.

    Raises:
        ConfigError: names the input that is missing, unknown or filled twice.
    """
    names = [spec.name for spec in signature.inputs]
    given = [name for name in settings.preprocess.inputs if name not in signature.constants]
    if states := [name for name in given if name in signature.states]:
        raise ConfigError(
            f"preprocess.inputs.{states[0]}: model.state fills this input; expected it there alone"
        )
    if not given:
        return
    unknown = next((name for name in given if name not in names), None)
    if unknown is not None:
        raise ConfigError(
            f"preprocess.inputs: {unknown} is no input of the model; expected exactly {', '.join(names)}"
        )
    filled = [spec.name for one in wide_of(settings, signature) for spec in one.specs]
    narrow = [
        name for name in given if name not in {one.specs[0].name for one in wide_of(settings, signature)}
    ]
    twice = next((name for name in [*filled, *narrow] if [*filled, *narrow].count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"preprocess.inputs: {twice} is filled twice; expected one source for it")
    missing = next((name for name in names if name not in given and name not in filled), None)
    if missing is not None:
        raise ConfigError(f"preprocess.inputs: {missing} is missing; expected exactly {', '.join(names)}")


def check_sources(settings: PipelineSettings, signature: Signature) -> None:
    """Refuse settings that leave open which field of a record fills which model input.

    Raises:
        ConfigError: naming the setting that is missing.
    """
    preprocess, names, inputs = settings.preprocess, settings.input.fields, signature.inputs
    content = preprocess.content.name if preprocess.content else None
    if preprocess.content is not None and hasattr(CONTENTS.entry(preprocess.content.name), "fills"):
        if getattr(preprocess.content.options, "from_", "value") == "value":
            raise ConfigError(
                f"preprocess.{content}: with input.format {settings.input.format} the {content} needs a field; "
                f"expected preprocess.{content}: {{from: <field>, ...}}"
            )
        return
    if content not in (None, "numeric") and not is_placeless(content):
        raise ConfigError(
            f"preprocess.{content}: with input.format {settings.input.format} the {content} needs a field; "
            f"expected preprocess.inputs.<tensor>: {{from: <field>, {content}: ...}}"
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


class FieldPlaces:
    """The place of each model input in a record with named fields; for :func:`features_of`."""

    def __init__(self, settings: PipelineSettings, signature: Signature) -> None:
        self.format = settings.input.format
        self.names = settings.input.field_names
        self.defaults = settings.input.field_defaults
        self.sole = len(signature.inputs) == 1
        self.missing = settings.input.missing

    def __call__(self, spec: TensorSpec, source: TensorInput | None, content: str) -> Place:
        default = ABSENT if source is None or source.default is None else source.default
        whole = source.from_ == "value" if source else self.sole
        if not whole:
            field = source.from_ if source else spec.name
            return Place(field, missing=self.missing, default=default)
        if content != "numeric":
            record = {"json": "JSON"}.get(self.format, self.format)
            raise ConfigError(
                f"preprocess.inputs.{spec.name}.from: the record is {record}; "
                f"expected the field that holds the {content}"
            )
        if self.names:
            if default is not ABSENT:
                raise ConfigError(
                    f"preprocess.inputs.{spec.name}.default: input.fields names the fields; expected "
                    "input.fields: [{from: <field>, default: ...}, ...]"
                )
            _check_fields(spec, self.names)
            return Place(names=self.names, missing=self.missing, defaults=self.defaults)
        return Place("features", missing=self.missing, default=default)


def _check_fields(spec: TensorSpec, names: Sequence[str]) -> None:
    """The named fields must be exactly one item."""
    free = spec.item_shape.count(None)
    size = math.prod(d for d in spec.item_shape if d is not None)
    if free > 1 or (free and size != 1) or (not free and size != len(names)):
        shape = str(list(spec.item_shape)).replace("None", "?")
        raise ConfigError(
            f"input.fields: got {len(names)} fields, but an item of the model's input {spec.name} has shape {shape}"
        )


def check_missing(settings: PipelineSettings, standing: Sequence[float | None]) -> None:
    """Refuse ``input.missing`` if no model input can hold the substitute.

    Args:
        standing: per model input the substitute for a missing number; None = the input cannot hold one.

    Raises:
        ConfigError: names the setting.
    """
    missing = settings.input.missing
    if missing != "reject" and all(each is None for each in standing):
        raise ConfigError(
            f"input.missing: got {missing}, but no model input made of numbers can hold it; expected reject"
        )


class FieldsDecoder:
    """Opens each record and lets a feature fill each model input from it."""

    free_bytes = 0

    def __init__(self, features: Sequence[Feature], signature: Signature) -> None:
        self.features = features
        self.specs = signature.inputs
        self.windowed = {n for f in features if isinstance(f, FileFeature) and f.windowed for n in f.filled}
        """The model inputs that may get several items from one record."""
        self.fixed = signature.fixed and not self.windowed
        self.files = [feature for feature in features if isinstance(feature, FileFeature)]
        for file in self.files:
            file.further_nbytes = 2 * sum(s.item_nbytes for s in (*signature.inputs, *signature.outputs))
        padding = {file.spec.name: file.padding for file in self.files}
        self.padding = {name: one for name, one in padding.items() if one is not None}
        """How items of unlike length share a run, by model input."""
        bounds = [file.batch_records for file in self.files if file.batch_records is not None]
        self.batch_records = min(bounds, default=None)
        """Most records in one batch; None = as many as ``batching.max_size``."""
        for feature in features:
            self.padding |= getattr(feature, "paddings", {})
        self.ahead = [feature for feature in features if isinstance(feature, ReadsAhead)]
        self.sized = [feature for feature in features if isinstance(feature, HasRoom)]
        self.signature = signature
        self.shard_rows = SHARD_ROWS if any(feature.slow for feature in features) else 0

    def sources(self) -> dict[str, str]:
        """Where in a record each model input comes from, for ``check``."""
        return {
            spec.name: str(getattr(feature, "place", "a constant"))
            for feature in self.features
            for spec in getattr(feature, "specs", [feature.spec])
        }

    def open(self, value: bytes) -> Record:
        """The record's fields, or its bytes if the format has no fields.

        Raises:
            Reject: ``undecodable``: the bytes do not have the format; ``invalid``: their content is of another kind.
        """
        return value

    def cost(self, value: bytes) -> int:
        """Bytes that decoding the record's files needs, besides the files and items; reads their headers only.

        Raises:
            Reject: a header says that the file cannot be decoded.
        """
        record = self.open(value)
        scratch = 0
        for feature in self.files:
            scratch += feature.charge(feature.file(record))
        return scratch + self.sized_room(len(value))

    def sized_room(self, nbytes: int) -> int:
        """Bytes that tensors of no known size take at most, for a record of so many bytes."""
        return sum(feature.room(nbytes, self.signature) for feature in self.sized)

    def decode(
        self, payloads: list[bytes | None], columns: Columns, feed: Feed, start: int, stop: int
    ) -> None:
        if self.ahead:
            records: dict[int, Record] = {}

            def open_row(row: int) -> None:
                records[row] = self.open(payloads[row] or b"")

            decode_each(self, feed, range(start, stop), open_row)
            self.decode_records(records, feed)
            return

        def decode_row(row: int) -> None:
            self.decode_row(self.open(payloads[row] or b""), feed, row)

        decode_each(self, feed, range(start, stop), decode_row)

    def decode_records(self, records: Mapping[int, Record], feed: Feed) -> None:
        """Fill the rows of opened records; features that read many at once do so first."""
        read = [(feature, feature.read_all(records)) for feature in self.ahead]

        def decode_row(row: int) -> None:
            self.decode_row(records[row], feed, row, {feature: found[row] for feature, found in read})

        decode_each(self, feed, records, decode_row)

    def decode_row(self, record: Record, feed: Feed, row: int, opened: Opened | None = None) -> None:
        """Fill one row from an opened record.

        Args:
            opened: what features have read of it before; see :class:`worker.features.ReadsAhead`.
        """
        items: dict[str, Array] = {}
        opened = {} if opened is None else opened
        if feed.opened is not None:
            feed.opened[row].update(opened)
            opened = feed.opened[row]
        for feature in self.features:
            if not feature.write(record, feed, row, items, opened):
                return
        if self.windowed:
            put_windows(feed, row, self.specs, self.windowed, items, opened[MARKS])
        elif feed.arrays is None:
            put(feed, row, self.specs, items)
