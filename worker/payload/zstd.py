"""Zstandard (RFC 8878). The lengths inside are read from the headers of its frames and blocks; nothing is unpacked for them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from worker import extras
from worker.batch import Headers
from worker.errors import Reject
from worker.payload import Making

_MAGIC = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = range(0x184D2A50, 0x184D2A60)
"""Magic numbers of frames that hold nothing."""
_BLOCK_MAX = 128 << 10
_WINDOW_MIN = 8 << 20
"""Frames with a window up to this are always read (RFC 8878 asks for it)."""
_MOST_TIMES = 1 << 15
"""The largest ratio of a body's length to its packed length: a block of 128 KiB in four bytes."""
_STEPS_MAX = 16384
"""Frames and blocks that are walked through before the most there can be is taken for the answer."""


class Zstd:
    """Zstandard (RFC 8878), of one frame or several; results are written at level 3."""

    encoding = "zstd"
    exact = False

    def __init__(self, making: Making) -> None:
        self._library: Any = extras.load("zstandard", extra="zstd", why=f"{making.setting}: zstd")
        self._thread = threading.local()

    def bound(self, value: bytes, at_most: int) -> int:
        """The sum of what its frames state; where one states nothing, of what its blocks can hold."""
        frames = _frames(value)
        total = frames[0].inside if len(frames) == 1 else sum(frame.inside for frame in frames)
        if total > at_most:
            if all(frame.stated for frame in frames):
                raise Reject(_too_large(at_most, total), "too_large")
            return at_most
        return total

    def bound_of(self, nbytes: int) -> int:
        return _MOST_TIMES * nbytes

    def unwrap(self, value: bytes, headers: Headers, topic: str, at_most: int) -> bytes:
        """See :class:`worker.payload.Filter`."""
        unpack = self._decompressor(at_most).decompress
        try:
            # nearly every value is one frame that states its length, which needs no walk through the blocks
            if 0 < self._library.frame_content_size(value) <= at_most:
                whole: bytes = unpack(value, allow_extra_data=False)
                return whole
        except self._library.ZstdError:
            pass  # several frames, or none: told below
        frames = _frames(value)
        parts: list[bytes] = []
        left = at_most
        for frame in frames:
            if frame.stated and frame.inside > left:
                raise Reject(_too_large(at_most), "too_large")
            part = value if len(frames) == 1 else value[frame.start : frame.stop]
            try:
                # Where the length is not stated, the library makes room for what is asked for at once.
                body: bytes = unpack(part, max_output_size=min(frame.inside, left)) if frame.inside else b""
            except self._library.ZstdError as error:
                raise _refusal(str(error), at_most, frame.inside > left) from None
            left -= len(body)
            parts.append(body)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def wrapper(self, topic: str) -> tuple[Callable[[bytes], bytes], Headers]:
        return self._pack, []

    def _pack(self, value: bytes) -> bytes:
        found = getattr(self._thread, "compressor", None)
        if found is None:
            found = self._thread.compressor = self._library.ZstdCompressor()
        packed: bytes = found.compress(value)
        return packed

    def _decompressor(self, at_most: int) -> Any:
        """This thread's own, because the library's object must not be used by two threads at once."""
        found = getattr(self._thread, "decompressor", None)
        if found is None:
            window = max(_WINDOW_MIN, 1 << (at_most - 1).bit_length())
            found = self._library.ZstdDecompressor(max_window_size=min(window, 1 << 31))
            self._thread.decompressor = found
        return found


class _Frame(NamedTuple):
    """Where a frame lies in the value, and how much is inside."""

    start: int
    stop: int
    inside: int
    """Bytes inside: as stated, else the most that its blocks can hold."""
    stated: bool


def _frames(value: bytes) -> list[_Frame]:
    """The frames of a value that hold anything.

    Raises:
        Reject: ``undecodable``: not zstd, or it ends early.
    """
    frames: list[_Frame] = []
    position, steps = 0, 0
    while position < len(value):
        magic = value[position : position + 4]
        if int.from_bytes(magic, "little") in _SKIPPABLE:
            position += 8 + int.from_bytes(value[position + 4 : position + 8], "little")
            steps += 1
        elif magic == _MAGIC:
            frame, walked = _frame(value, position, _STEPS_MAX - steps)
            frames.append(frame)
            position, steps = frame.stop, steps + walked
        else:
            raise Reject(
                "the record is not zstd" if not position else "the zstd body is broken", "undecodable"
            )
        if steps >= _STEPS_MAX:
            raise Reject(f"the zstd body has more than {_STEPS_MAX} frames and blocks", "undecodable")
    if position != len(value) or not frames:
        raise Reject("the zstd body ends early" if frames else "the record is not zstd", "undecodable")
    return frames


def _frame(value: bytes, start: int, steps: int) -> tuple[_Frame, int]:
    """The frame that begins at ``start``, and how many blocks it has (RFC 8878, section 3.1.1)."""
    if len(value) < start + 6:
        raise Reject("the zstd body ends early", "undecodable")
    descriptor = value[start + 4]
    single_segment, has_checksum = descriptor >> 5 & 1, descriptor >> 2 & 1
    position = start + 5
    window = 0
    if not single_segment:
        exponent, mantissa = value[position] >> 3, value[position] & 7
        window = (1 << 10 + exponent) // 8 * (8 + mantissa)
        position += 1
    position += (0, 1, 2, 4)[descriptor & 3]
    length = (single_segment, 2, 4, 8)[descriptor >> 6]
    stated = int.from_bytes(value[position : position + length], "little") + (256 if length == 2 else 0)
    position += length
    block_max = min(_BLOCK_MAX, window or stated)
    inside = walked = 0
    is_last = False
    while not is_last:
        header = int.from_bytes(value[position : position + 3], "little")
        if position + 3 > len(value) or walked >= steps:
            raise Reject(
                "the zstd body ends early" if walked < steps else "the zstd body has too many blocks",
                "undecodable",
            )
        is_last, kind, size = bool(header & 1), header >> 1 & 3, header >> 3
        position += 3 + (1 if kind == 1 else size)  # a repeated byte takes one byte, whatever its number
        inside += size if kind < 2 else block_max
        walked += 1
    position += 4 * has_checksum
    if position > len(value):
        raise Reject("the zstd body ends early", "undecodable")
    return _Frame(start, position, stated if length else inside, bool(length)), walked


def _refusal(error: str, at_most: int, cut: bool) -> Reject:
    """What the library's error means. ``cut``: the body was given less room than its blocks can hold."""
    if "too much memory" in error or (cut and "full frame" in error):
        return Reject(_too_large(at_most), "too_large")
    return Reject("the zstd body is broken", "undecodable")


def _too_large(at_most: int, stated: int | None = None) -> str:
    found = "more than that" if stated is None else f"{stated} bytes"
    return f"the zstd body has {found} unpacked, expected at most {at_most} (input.max_unwrapped_bytes)"
