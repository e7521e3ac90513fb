"""A toy content whose records are several items, and a toy format with options of its own, for the tests of both seams."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from worker.batch import Array, Feed
from worker.errors import Reject
from worker.features import MARKS, FileFeature, Opened, Place, Record
from worker.model.signature import Signature, TensorSpec
from worker.records.fields import FieldsDecoder, features_of
from worker.settings import LimitsSettings, PipelineSettings
from worker.settings.choice import Named
from worker.settings.section import ContentSettings, Section
from worker.settings.sections import TensorInput


class ScaledSettings(Section):
    """How the toy format reads a byte."""

    factor: float
    """Every byte is multiplied by this."""
    offset: Annotated[int, Field(ge=0)] = 0
    """Bytes that are left out in front."""


class ScaledDecoder(FieldsDecoder):
    """Bytes in pieces of four, each byte times a factor: a toy format with options."""

    settings: ClassVar[type[Section]] = ScaledSettings
    contents = ("pieces",)
    has_fields = False
    takes_missing = False

    def __init__(self, settings: PipelineSettings, signature: Signature, limits: LimitsSettings) -> None:
        chosen = settings.input.format
        assert isinstance(chosen, Named)
        assert isinstance(chosen.options, ScaledSettings)
        self.options = chosen.options
        super().__init__(features_of(settings, signature, limits, "pieces", _place), signature)

    def open(self, value: bytes) -> Array:
        return np.frombuffer(value[self.options.offset :], np.uint8) * np.float32(self.options.factor)


def _place(spec: TensorSpec, source: TensorInput | None, content: str) -> Place:
    return Place()


class PiecesFeature(FileFeature):
    """One window for each four numbers."""

    slow = False
    windowed = True

    def scratch(self, beginning: bytes) -> int:
        return 0

    def items_in(self, beginning: bytes) -> int:
        return len(beginning) // 4

    def file(self, record: Record) -> bytes:
        return bytes(len(record))

    def write(self, record: Record, feed: Feed, row: int, items: dict[str, Array], opened: Opened) -> bool:
        if len(record) < 4:
            raise Reject("no piece of four")
        count = len(record) // 4
        items[self.spec.name] = record[: 4 * count].reshape(count, 4)
        starts = np.arange(count) * 0.5
        opened[MARKS] = {"start_s": starts, "end_s": starts + 0.5}
        return True


class Pieces:
    """Pieces of four numbers: a toy content with windows."""

    settings: ClassVar[type[ContentSettings]] = ContentSettings

    @staticmethod
    def make(options: Any, spec: TensorSpec, place: Place, key: str, limits: LimitsSettings) -> PiecesFeature:
        return PiecesFeature(spec, place)


def where(outputs: dict[str, Array], item: Any) -> Any:
    """A custom postprocess that says where its window is."""
    return {"at": [item.window["start_s"], item.window["end_s"]]}
