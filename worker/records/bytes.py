"""Bytes as they are: a record is one file of any kind."""

from __future__ import annotations

from worker.errors import ConfigError
from worker.features import Place
from worker.model.signature import Signature, TensorSpec
from worker.records.fields import FieldsDecoder, features_of
from worker.settings import LimitsSettings, PipelineSettings
from worker.settings.sections import TensorInput


class BytesDecoder(FieldsDecoder):
    """The record's value as it is, a file of any kind: its bytes as integers."""

    contents = ("bytes",)
    has_fields = False
    takes_missing = False

    def __init__(self, settings: PipelineSettings, signature: Signature, limits: LimitsSettings) -> None:
        if not settings.preprocess.inputs and len(signature.inputs) != 1:
            names = ", ".join(spec.name for spec in signature.inputs)
            raise ConfigError(
                f"input.format: bytes feed one model input, the model has {len(signature.inputs)} ({names}); "
                "expected preprocess.inputs to say where each comes from"
            )
        super().__init__(features_of(settings, signature, limits, "bytes", _place), signature)


def _place(spec: TensorSpec, source: TensorInput | None, content: str) -> Place:
    if source is not None and source.from_ != "value":
        raise ConfigError(
            f"preprocess.inputs.{spec.name}: input.format bytes has no fields; expected from: value and bytes, or constant"
        )
    return Place()
