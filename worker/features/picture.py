"""Pictures as a content: the settings and the feature; OpenCV is imported only if a pipeline has pictures."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from worker.features import Place
from worker.model.signature import TensorSpec
from worker.settings import LimitsSettings
from worker.settings.kinds import Divisors, Numbers, Size
from worker.settings.section import ContentSettings

if TYPE_CHECKING:
    from worker.features.image_file import PictureFeature


class ImageSettings(ContentSettings):
    """From an encoded picture to a tensor: x = (pixel * scale - mean) / std in the model's own dtype."""

    size: Size | None = None
    """[height, width] in pixels; default: from the model's signature."""
    resize: Literal["stretch", "letterbox", "crop", "none"] = "stretch"
    """How a picture of another size is made to fit."""
    interpolation: Literal["linear", "nearest", "area", "cubic"] = "linear"
    """How pixels are computed when resizing."""
    color: Literal["rgb", "bgr", "gray"] = "rgb"
    """Channels and their order."""
    layout: Literal["nchw", "nhwc"] | None = None
    """Order of the dimensions; default: from the model's signature."""
    scale: float = 1.0
    """Every pixel is multiplied by this first."""
    mean: Numbers = Field(default=[0.0])
    """Subtracted after scaling; one number or one per channel."""
    std: Divisors = Field(default=[1.0])
    """Divided by at last; one number or one per channel."""
    pad_value: Annotated[int, Field(ge=0, le=255)] = 114
    """Pixel value of a letterbox's border."""
    orientation: Literal["exif", "ignore"] = "exif"
    """Whether the camera's orientation tag turns the picture."""

    @property
    def one_shape(self) -> bool:
        return self.size is not None


class Picture:
    """A picture: JPEG, PNG or WebP; in a JSON field as base64 text."""

    settings: ClassVar[type[ContentSettings]] = ImageSettings

    @staticmethod
    def make(
        options: ImageSettings | None, spec: TensorSpec, place: Place, key: str, limits: LimitsSettings
    ) -> PictureFeature:
        # OpenCV reads this variable once, at import. The header check before every decode enforces the user's limit.
        os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(max(limits.image_pixels, 40_000_000)))
        from worker.features.image_file import PictureFeature

        return PictureFeature(options or ImageSettings(), spec, place, key, limits)
