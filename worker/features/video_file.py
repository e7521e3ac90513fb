"""A clip in a record -> pictures at regular times, within the limits -> one item each. One picture is decoded at a time."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any

import numpy as np

from worker import extras
from worker.batch import Array, Feed
from worker.errors import Reject, Rejection
from worker.features import MARKS, FileFeature, Opened, Place, Record
from worker.features.pixels import Geometry, ImagePreprocess
from worker.features.video import VideoSettings
from worker.features.video_header import VideoHeader, peek
from worker.model.signature import TensorSpec
from worker.settings import LimitsSettings

CODECS = frozenset(
    ("h264", "hevc", "vp8", "vp9", "av1", "libdav1d", "libvpx", "libvpx-vp9", "mpeg4", "mjpeg", "mpeg2video")
)
"""Decoders that are run, by FFmpeg's names. It has hundreds, most of them for files of other decades."""
FRAMES_PER_S = 240
"""A clip with more pictures a second than this is refused while it is decoded."""
_PICTURES, _PICTURES_PIXELS = 16, 184_320 * 256
"""Pictures that others refer to are kept: at most 16, and no more pixels in all than level 5.1 of H.264 allows, or 6."""
_PIXEL_BYTES = 3
"""Of a picture that is kept, for 4:2:0 with up to 16 bits or 4:4:4 with 8."""
_CONVERTED_BYTES = 6
"""Per pixel, of the picture that is converted."""
_MOST_BITS = 32
"""Of a pixel; pictures with more are refused."""
_SOFTWARE_BYTES = 8 << 20
"""What a demuxer and a decoder need beside pictures."""
_LEAST_PIXELS = 1 << 16
"""Some decoders count more than a small picture's pixels against the bound."""
_FORMATS = {"rgb": "rgb24", "bgr": "bgr24", "gray": "gray"}


class VideoFeature(FileFeature):
    """Fills one model input with the pictures of a clip, within the limits.

    The row's context becomes the :class:`Geometry` of the first picture.

    Args:
        settings: which pictures, and how each is fitted.
        spec: the model input.
        place: where in the record the file is: bytes, or base64 text.
        key: the setting's name, for errors.
        limits: larger pictures than ``image_pixels``, or clips that need more than ``in_flight_bytes``, are refused.

    Raises:
        ConfigError: the settings and the model's input cannot go together, or PyAV is not installed.
    """

    windowed = True
    reads_whole = True
    batch_records = 1
    """A clip is a batch: several would keep each other waiting, and share one time-out."""

    def __init__(
        self, settings: VideoSettings, spec: TensorSpec, place: Place, key: str, limits: LimitsSettings
    ) -> None:
        super().__init__(spec, place)
        self._av = extras.load("av", extra="video", why=key)
        self._av.logging.set_level(
            self._av.logging.PANIC
        )  # a broken clip is a dead letter, not lines of a log
        self.target = ImagePreprocess(settings.image, spec, f"{key.removesuffix('.video')}.image")
        self.settings = settings
        self.max_pixels = limits.image_pixels
        self.max_bytes = limits.in_flight_bytes
        self.longest_s = limits.batch_timeout_s / 2
        """CPU time for one clip: a batch that takes longer than its time-out would end the process."""

    # -- what it takes -------------------------------------------------------------------------------------

    def scratch(self, beginning: bytes) -> int:
        """See :class:`worker.features.FileFeature`."""
        header = peek(beginning)
        return self._decode_bytes(header)

    def charge(self, beginning: bytes) -> int:
        """See :class:`worker.features.FileFeature`."""
        header = peek(beginning)
        return self._decode_bytes(header) + self.most_frames(header) * self._frame_bytes(header)

    def most_frames(self, header: VideoHeader) -> int:
        """Most pictures that the clip may give: by its duration, or what half of the budget holds where it names none.

        Raises:
            Reject: ``too_large``: more than ``max_frames``, or than the budget holds.
        """
        most, each = self.settings.max_frames, max(1, self._frame_bytes(header))
        room = (self.max_bytes - self._decode_bytes(header)) // each
        if header.duration_s is None:
            return max(1, min(most, room // 2))
        frames = max(1, math.ceil(header.duration_s * self.settings.fps - 1e-6))
        if frames > most:
            raise Reject(
                f"the clip is {header.duration_s:.1f} s long, which is {frames} pictures at fps: "
                f"{self.settings.fps:g}; preprocess.video.max_frames is {most}",
                "too_large",
            )
        if frames > room:
            raise Reject(
                f"the {frames} pictures of the clip need {frames * each} bytes of memory as items, "
                f"limits.in_flight_bytes is {self.max_bytes}",
                "too_large",
            )
        return frames

    def _decode_bytes(self, header: VideoHeader) -> int:
        """Bytes that a decode needs.

        Raises:
            Reject: ``too_many_pixels``.
        """
        pixels = header.width * header.height
        kept = min(_PICTURES, max(6, _PICTURES_PIXELS // max(1, pixels)))
        needed = _SOFTWARE_BYTES + pixels * (kept * _PIXEL_BYTES + _CONVERTED_BYTES)
        if pixels > self.max_pixels or needed > self.max_bytes:
            raise Reject(
                f"the clip's pictures are {header.height} x {header.width} pixels (height x width); decoding them "
                f"needs {needed} bytes, limits.image_pixels is {self.max_pixels} and limits.in_flight_bytes "
                f"{self.max_bytes}",
                "too_many_pixels",
            )
        return needed

    def _frame_bytes(self, header: VideoHeader) -> int:
        """Bytes that each picture takes as an item, with its copy in the run and the model's answer to it."""
        height, width = header.height, header.width
        if header.on_its_side and self.target.turns:
            height, width = width, height
        try:
            plan = self.target.plan(height, width)
        except Reject:
            return 0  # the stage that fits the picture says so
        item = math.prod(self.target.item_shape(plan.height, plan.width)) * self.spec.dtype.itemsize
        return max(self.further_nbytes, 2 * item + 2 * round(item * self.answer_share))

    # -- decoding ------------------------------------------------------------------------------------------

    def write(self, record: Record, feed: Feed, row: int, items: dict[str, Array], opened: Opened) -> bool:
        """See :class:`worker.features.Feature`."""
        value = self.file(record)
        header = peek(value)
        most = self.most_frames(header)
        array: Array | None = None
        times: list[float] = []
        with closing(self._pictures(value, header)) as pictures:
            for time_s, pixels in pictures:
                if len(times) == most:
                    raise Reject(
                        f"the clip has more than {most} pictures, {self._why(header, most)}", "too_large"
                    )
                try:
                    plan = self.target.plan(*pixels.shape[:2])
                    shape = self.target.item_shape(plan.height, plan.width)
                    if array is None:
                        array = np.empty((most, *shape), self.spec.dtype)
                    elif array.shape[1:] != shape:
                        raise Reject("the size of the pictures changes inside the clip")
                    geometry: Geometry = self.target.write(pixels, array[len(times)])
                except Reject as error:
                    feed.rejected[row] = Rejection.of(error, "preprocess", self.target)
                    return False
                times.append(time_s)
                if feed.contexts[row] is None:
                    feed.contexts[row] = geometry
        if array is None:
            raise Reject("the clip has no picture that can be decoded", "undecodable")
        items[self.spec.name] = array[: len(times)]
        opened[MARKS] = {"time_s": np.array(times)}
        return True

    def _why(self, header: VideoHeader, most: int) -> str:
        if header.duration_s is not None:
            return f"although its header says {header.duration_s:.3g} s"
        if most == self.settings.max_frames:
            return "which is preprocess.video.max_frames"
        return "which half of limits.in_flight_bytes holds; its header says no duration"

    def _pictures(self, value: bytes, header: VideoHeader) -> Generator[tuple[float, Array], None, None]:
        """(seconds since the first picture, pixels as ``color`` has them) of the pictures that are taken.

        Raises:
            Reject: ``undecodable`` or ``too_large``.
        """
        try:
            # Naming the container keeps FFmpeg from those that open other files or addresses.
            bounds = self._bounds(header)
            with self._av.open(
                io.BytesIO(value), format=header.kind, options=bounds, metadata_errors="ignore"
            ) as container:
                yield from self._taken(container, header)
        except self._av.error.FFmpegError as error:
            raise Reject(f"the clip is broken or ends early ({error.strerror})", "undecodable") from None

    def _bounds(self, header: VideoHeader) -> dict[str, str]:
        """What the decoder is held to: pictures no larger than the header says, in whole blocks of 64."""
        width, height = (-(-side // 64) * 64 for side in (header.width, header.height))
        return {
            "max_pixels": str(max(width * height, _LEAST_PIXELS)),
            "probesize": str(1 << 20),
            "max_streams": "32",
        }

    def _taken(self, container: Any, header: VideoHeader) -> Iterator[tuple[float, Array]]:
        stream = container.streams.best("video")
        if stream is None or stream.codec_context is None:
            raise Reject("the clip has no pictures", "undecodable")
        codec = stream.codec_context
        if codec.name not in CODECS:
            raise Reject(f"the clip's pictures are coded as {codec.name}, which is not read", "undecodable")
        codec.thread_type, codec.thread_count = "NONE", 1  # the pool's threads already decode in parallel
        codec.options = self._bounds(header)
        convert, color = self._av.video.reformatter.VideoReformatter(), _FORMATS[self.target.settings.color]
        fps, first, due, began = self.settings.fps, None, 0.0, time.thread_time()
        for count, frame in enumerate(container.decode(stream)):
            self._check(frame, count, header, time.thread_time() - began)
            at = self._time(frame, count, stream)
            first = at if first is None else first
            at -= first
            if at < due - 1e-6:
                continue
            due = (math.floor(at * fps + 1e-6) + 1) / fps
            pixels = convert.reformat(frame, format=color).to_ndarray()
            turns = round(frame.rotation / 90) % 4 if self.target.turns else 0
            yield round(at, 6), np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels

    def _check(self, frame: Any, count: int, header: VideoHeader, used_s: float) -> None:
        """Refuse a picture that is not whole, and a clip that takes too long."""
        if frame.is_corrupt:
            raise Reject(f"picture {count} of the clip is broken", "undecodable")
        if frame.format.padded_bits_per_pixel > _MOST_BITS:
            raise Reject(f"the clip's pixels are {frame.format.name}, which is not read", "undecodable")
        longest_s = (
            self.settings.max_frames / self.settings.fps if header.duration_s is None else header.duration_s
        )
        if count > FRAMES_PER_S * (longest_s + 1):
            raise Reject(f"the clip has more than {FRAMES_PER_S} pictures a second", "too_large")
        if used_s > self.longest_s:
            raise Reject(f"decoding the clip takes longer than {self.longest_s:g} s", "too_large")

    @staticmethod
    def _time(frame: Any, count: int, stream: Any) -> float:
        """When a picture is shown, in seconds; by the rate where the file names no time."""
        if frame.pts is not None:
            return float(frame.pts * frame.time_base)
        rate = stream.average_rate or stream.guessed_rate
        if not rate:
            raise Reject("the clip's pictures have no times", "undecodable")
        return float(count / rate)
