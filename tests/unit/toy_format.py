"""A toy input format, as the one new file that a format costs: a line of numbers between commas."""

from __future__ import annotations

from worker.errors import Reject
from worker.features import Place
from worker.model.signature import Signature, TensorSpec
from worker.records.fields import FieldsDecoder, features_of
from worker.settings import LimitsSettings, PipelineSettings
from worker.settings.sections import TensorInput


class LineDecoder(FieldsDecoder):
    """One line of numbers per record, as a spreadsheet writes it."""

    contents = ("numeric",)
    has_fields = False
    takes_missing = False

    def __init__(self, settings: PipelineSettings, signature: Signature, limits: LimitsSettings) -> None:
        super().__init__(features_of(settings, signature, limits, "numeric", _place), signature)

    def open(self, value: bytes) -> dict[str, list[float]]:
        try:
            return {"line": [float(cell) for cell in value.decode("ascii").split(",")]}
        except ValueError:
            raise Reject("not a line of numbers", "undecodable") from None

    def cost(self, value: bytes) -> int:
        return 64 * value.count(b",")


def _place(spec: TensorSpec, source: TensorInput | None, content: str) -> Place:
    return Place("line")
