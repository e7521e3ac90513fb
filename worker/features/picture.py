"""Pictures as a content: the settings and the feature; OpenCV is imported only if a pipeline has pictures."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from worker.features import Place
from worker.model.signature import TensorSpec
from worker.settings import LimitsSettings
from worker.settings.kinds import Divisors, Numbers, OpenSize, Positive
from worker.settings.section import ContentSettings

if TYPE_CHECKING:
    from worker.features.image_file import PictureFeature


class ImageSettings(ContentSettings):
    """From an encoded picture to a tensor: x = (pixel * scale - mean) / std in the model's own dtype."""

    size: OpenSize | None = None
    """[height, width] in pixels; default: from the model's signature. One of them may be null: it then follows the picture's shape."""
    resize: Literal["stretch", "letterbox", "crop", "fit", "none"] = "stretch"
    """How a picture of another size is made to fit; fit keeps its shape, and the item is as large as the picture then is."""
    min_side: Positive | None = None
    """fit without size: a picture whose shorter side has fewer pixels is enlarged until it has as many."""
    max_side: Positive | None = None
    """fit without size: a picture whose longer side has more pixels is shrunk to it; counts more than min_side."""
    multiple: Positive = 1
    """fit, or a size with null: the sides that follow the picture are made a multiple of this."""
    pad: Literal["center", "top_left", "none"] = "center"
    """Where the picture stands in a larger item; none: it is resized to the nearest multiple instead."""
    pad_to: OpenSize | None = None
    """fit, or a size with null: a smaller item is padded to at least this [height, width]."""
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
    pad_value: Annotated[float, Field(ge=0, le=255)] = 114
    """Pixel value of what is padded."""
    orientation: Literal["exif", "ignore"] = "exif"
    """Whether the camera's orientation tag turns the picture."""

    @property
    def one_shape(self) -> bool:
        return self.size is not None and None not in self.size and self.resize != "fit"

    @property
    def fits(self) -> bool:
        """Whether items may follow the shape of their pictures: ``resize: fit``, or a size with one null."""
        return self.resize == "fit" or (
            self.resize == "stretch"
            and self.size is not None
            and sum(side is None for side in self.size) == 1
        )

    @property
    def sizes(self) -> list[int]:
        """Lengths that a free dimension of the model is known to take."""
        if not self.fits:
            return []
        known = [*(self.size or ()), self.min_side, self.multiple * -(-32 // self.multiple)]
        return [side for side in known if side]

    @model_validator(mode="after")
    def _together(self) -> ImageSettings:
        given = [n for n in ("min_side", "max_side", "pad_to") if getattr(self, n)]
        given += ["multiple"] if self.multiple > 1 else []
        if given and not self.fits:
            raise ValueError(f"{given[0]} goes with resize: fit, or with a size of which one side is null")
        sides = self.size or (None, None)
        if (self.min_side or self.max_side) and sides != (None, None):
            raise ValueError("expected either size, or min_side and max_side")
        if None not in sides and any((side or 0) % self.multiple for side in sides):
            raise ValueError(
                f"size: got {list(sides)}, expected multiples of multiple, which is {self.multiple}"
            )
        if self.pad == "none" and (self.pad_to or self.resize == "letterbox"):
            raise ValueError("pad: none leaves nothing to pad; expected center or top_left")
        return self


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
