"""Clips as a content: the settings and the entry; PyAV and OpenCV are imported only if a pipeline has clips."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from worker.features import Place
from worker.features.picture import ImageSettings
from worker.model.signature import TensorSpec
from worker.settings import LimitsSettings
from worker.settings.kinds import Positive
from worker.settings.section import ContentSettings

if TYPE_CHECKING:
    from worker.features.video_file import VideoFeature


class VideoSettings(ContentSettings):
    """From a clip to pictures at regular times; each is one item with a prediction of its own."""

    fps: Annotated[float, Field(gt=0, le=240)] = 1.0
    """Pictures a second: of every 1/fps seconds the first one is taken. More than the clip has gives every picture of it."""
    max_frames: Positive = 300
    """A clip with more pictures than this, at that rate, is a dead letter, undecoded."""
    image: ImageSettings = ImageSettings()
    """How each picture becomes an item; usually written beside video, as `preprocess.image`."""

    @property
    def one_shape(self) -> bool:
        return self.image.one_shape

    @property
    def sizes(self) -> list[int]:
        return self.image.sizes


class Video:
    """A clip: pictures at regular times of an MP4, WebM, MKV or AVI file; in a JSON field as base64 text."""

    settings: ClassVar[type[ContentSettings]] = VideoSettings
    holds = ("image",)

    @staticmethod
    def make(
        options: VideoSettings | None, spec: TensorSpec, place: Place, key: str, limits: LimitsSettings
    ) -> VideoFeature:
        """See :class:`worker.features.Content`."""
        # OpenCV reads this variable once, at import.
        os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(max(limits.image_pixels, 40_000_000)))
        from worker.features.video_file import VideoFeature

        return VideoFeature(options or VideoSettings(), spec, place, key, limits)
