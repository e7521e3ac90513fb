"""Formats whose records are opened into fields: chooses the content of each model input, and decodes row by row."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from worker.batch import Array, Columns, Feed
from worker.errors import ConfigError
from worker.features import MARKS, Feature, FileFeature, Opened, Place, Record
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
    features = []
    for spec in signature.inputs:
        source = preprocess.inputs.get(spec.name)
        key = f"preprocess.inputs.{spec.name}" if source else "preprocess"
        content = (source or preprocess).content
        name = content.name if content else default
        entry = CONTENTS.entry(name)
        place = Place() if is_placeless(name) else place_of(spec, source, name)
        if place.default is not ABSENT and not getattr(entry, "takes_default", False):
            raise ConfigError(f"{key}.default: does not go with {name}")
        options = content.options if content else None
        feature = entry.make(options, spec, place, f"{key}.{name}", limits)
        if isinstance(feature, FileFeature):
            feature.answer_share = signature.shown.answer_share
        features.append(feature)
    return features


def is_placeless(content: str) -> bool:
    """Whether a content reads nothing of a record, so that it goes with every format that holds contents."""
    return bool(getattr(CONTENTS.entry(content), "placeless", False))


def check_sources(settings: PipelineSettings, signature: Signature) -> None:
    """Refuse settings that leave open which field of a record fills which model input.

    Raises:
        ConfigError: naming the setting that is missing.
    """
    preprocess, names, inputs = settings.preprocess, settings.input.fields, signature.inputs
    content = preprocess.content.name if preprocess.content else None
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
        self.windowed = {f.spec.name for f in features if getattr(f, "windowed", False)}
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
        self.shard_rows = SHARD_ROWS if any(feature.slow for feature in features) else 0

    def sources(self) -> dict[str, str]:
        """Where in a record each model input comes from, for ``check``."""
        return {feature.spec.name: str(getattr(feature, "place", "a constant")) for feature in self.features}

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
        return scratch

    def decode(
        self, payloads: list[bytes | None], columns: Columns, feed: Feed, start: int, stop: int
    ) -> None:
        def decode_row(row: int) -> None:
            self.decode_row(self.open(payloads[row] or b""), feed, row)

        decode_each(self, feed, range(start, stop), decode_row)

    def decode_row(self, record: Record, feed: Feed, row: int) -> None:
        """Fill one row from an opened record."""
        items: dict[str, Array] = {}
        opened: Opened = {}
        for feature in self.features:
            if not feature.write(record, feed, row, items, opened):
                return
        if self.windowed:
            put_windows(feed, row, self.specs, self.windowed, items, opened[MARKS])
        elif feed.arrays is None:
            put(feed, row, self.specs, items)
