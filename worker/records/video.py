"""Clips: a record is one short MP4, WebM, MKV or AVI file."""

from __future__ import annotations

from typing import TypeVar

from worker.errors import ConfigError
from worker.features import Place
from worker.features.picture import ImageSettings
from worker.features.video import VideoSettings
from worker.model.signature import Signature, TensorSpec
from worker.records.fields import FieldsDecoder, features_of
from worker.settings import LimitsSettings, PipelineSettings
from worker.settings.choice import Chosen
from worker.settings.sections import PreprocessSettings, TensorInput

S = TypeVar("S", PreprocessSettings, TensorInput)


class VideoDecoder(FieldsDecoder):
    """One clip per record: an MP4, WebM, MKV or AVI file, of which pictures at regular times are items."""

    contents = ("video", "image")
    has_fields = False
    takes_missing = False

    def __init__(self, settings: PipelineSettings, signature: Signature, limits: LimitsSettings) -> None:
        preprocess = _of_clips(settings.preprocess)
        inputs = {name: _of_clips(source) for name, source in preprocess.inputs.items()}
        settings = settings.model_copy(
            update={"preprocess": preprocess.model_copy(update={"inputs": inputs})}
        )
        super().__init__(features_of(settings, signature, limits, "video", _place), signature)


def _of_clips(source: S) -> S:
    """A source whose pictures are those of a clip: ``image`` alone says how each of them is fitted."""
    options = source.options(ImageSettings)
    if options is None:
        return source
    return source.model_copy(update={"content": Chosen("video", VideoSettings(image=options))})


def _place(spec: TensorSpec, source: TensorInput | None, content: str) -> Place:
    if source is not None and source.from_ != "value":
        raise ConfigError(
            f"preprocess.inputs.{spec.name}: a clip has no fields; expected from: value and video"
        )
    return Place()
