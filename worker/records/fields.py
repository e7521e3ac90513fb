"""Formats whose records are opened into fields: chooses the content of each model input, and decodes row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from worker.batch import Array, Columns, Feed
from worker.errors import ConfigError
from worker.features import Feature, FileFeature, Opened, Place, Record
from worker.model.signature import Signature, TensorSpec
from worker.records.rows import decode_each, put
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
        place = place_of(spec, source, name)
        options = content.options if content else None
        features.append(CONTENTS.entry(name).make(options, spec, place, f"{key}.{name}", limits))
    return features


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
        self.fixed = signature.fixed
        self.files = [feature for feature in features if isinstance(feature, FileFeature)]
        self.shard_rows = SHARD_ROWS if any(feature.slow for feature in features) else 0

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
            scratch += feature.scratch(feature.file(record))
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
        if feed.arrays is None:
            put(feed, row, self.specs, items)
