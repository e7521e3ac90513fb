"""Sound files: a record is one WAV, FLAC, OGG or MP3 file."""

from __future__ import annotations

from worker.errors import ConfigError
from worker.features import Place
from worker.model.signature import Signature, TensorSpec
from worker.records.fields import FieldsDecoder, features_of
from worker.settings import LimitsSettings, PipelineSettings
from worker.settings.sections import TensorInput


class AudioDecoder(FieldsDecoder):
    """One sound per record: a WAV, FLAC, OGG or MP3 file, whole or in windows."""

    contents = ("audio",)
    has_fields = False
    takes_missing = False

    def __init__(self, settings: PipelineSettings, signature: Signature, limits: LimitsSettings) -> None:
        super().__init__(features_of(settings, signature, limits, "audio", _place), signature)


def _place(spec: TensorSpec, source: TensorInput | None, content: str) -> Place:
    if source is not None and source.from_ != "value":
        raise ConfigError(
            f"preprocess.inputs.{spec.name}: a sound has no fields; expected from: value and audio"
        )
    return Place()
