"""The kind, picture size and length of a clip, read from its header before anything is decoded. No decoder is asked.

A few kilobytes can hold hours, or pictures of gigabytes. So width, height and duration are read here, from the boxes of
MP4 (ISO/IEC 14496-12), the elements of Matroska and WebM (RFC 9559) or the header of AVI. The decoder is then held to
what they say.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import Literal, NamedTuple

from worker.errors import Reject

Kind = Literal["mov", "matroska", "avi"]

_BOXES_MAX = 10_000
"""Boxes or elements that are looked at in one file."""
_UNKNOWN = -1
_TABLES = re.compile(rb"stsz|stz2|trun|cmov")
"""Boxes of an MP4 file that say how many samples there are, and one that is a compressed header."""
_UNREAD = frozenset((b"mdat", b"free", b"skip"))
# Matroska element ids.
_EBML, _SEGMENT, _INFO, _TRACKS, _CLUSTER = 0x1A45DFA3, 0x18538067, 0x1549A966, 0x1654AE6B, 0x1F43B675
_SCALE, _DURATION, _TRACK, _VIDEO, _WIDTH, _HEIGHT = 0x2AD7B1, 0x4489, 0xAE, 0xE0, 0xB0, 0xBA

_OTHER_FILES = (
    (b"G@", "an MPEG transport stream"),
    (b"\0\0\1\xba", "an MPEG program stream"),
    (b"FLV", "a Flash clip"),
    (b"OggS", "an Ogg file"),
    (b"GIF8", "a GIF image"),
    (b"0&\xb2u", "a Windows Media clip"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89PNG", "a PNG image"),
    (b"data:", "a data URI"),
    (b"AAAA", "base64 text of an MP4 clip"),
    (b"GkXf", "base64 text of a WebM or MKV clip"),
)


class VideoHeader(NamedTuple):
    """What the header says. Pixels are as stored, before any rotation."""

    kind: Kind
    """FFmpeg's name of the container."""
    width: int
    height: int
    duration_s: float | None
    """None where the header does not tell, as in a clip that was written live."""
    on_its_side: bool = False
    """Height and width change places when the clip is shown."""


class _Box(NamedTuple):
    """One box of an MP4 file, or chunk of an AVI file: what it holds is ``start..end``."""

    name: bytes
    start: int
    end: int


def peek(value: bytes, whole: bool = True) -> VideoHeader:
    """The header of an MP4 (or QuickTime), MKV, WebM or AVI clip.

    Args:
        whole: ``value`` is the file, not only the beginning of one.

    Raises:
        Reject: ``undecodable``: another format, a header that is broken, or a file that ends early.
    """
    try:
        if value[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free"):
            found = _mp4(value, whole)
        elif value.startswith(_EBML.to_bytes(4, "big")):
            found = _matroska(value, whole)
        elif value[:4] == b"RIFF" and value[8:12] == b"AVI ":
            found = _avi(value, whole)
        else:
            other = next((name for start, name in _OTHER_FILES if value.startswith(start)), None)
            said = f"{other}; expected" if other else "no clip; expected"
            raise Reject(f"{said} an MP4, WebM, MKV or AVI file", "undecodable")
    except (IndexError, StopIteration, struct.error):
        raise Reject("a clip whose header is broken or ends early", "undecodable") from None
    if found.width < 1 or found.height < 1:
        raise Reject("a clip without pictures", "undecodable")
    return found


# -- MP4 ---------------------------------------------------------------------------------------------------


def _boxes(value: bytes, start: int, end: int) -> Iterator[_Box]:
    """The boxes in a stretch of a file; the last one may end behind it."""
    for _ in range(_BOXES_MAX):
        if start + 8 > end:
            return
        size, header = int.from_bytes(value[start : start + 4], "big"), 8
        if size == 1:
            size, header = int.from_bytes(value[start + 8 : start + 16], "big"), 16
        size = size or end - start
        if size < header:
            raise IndexError
        yield _Box(value[start + 4 : start + 8], start + header, start + size)
        start += size
    raise IndexError


def _inside(value: bytes, box: _Box, *names: bytes) -> Iterator[_Box]:
    """Boxes by their way down from a box."""
    for found in _boxes(value, box.start, min(box.end, len(value))):
        if found.name == names[0]:
            if len(names) == 1:
                yield found
            else:
                yield from _inside(value, found, *names[1:])


def _mp4(value: bytes, whole: bool) -> VideoHeader:
    movie: _Box | None = None
    named = 0
    for box in _boxes(value, 0, len(value)):
        if whole and box.end > len(value):
            raise Reject("the clip ends early", "undecodable")
        if box.name == b"moov" and movie is None:  # FFmpeg passes over a second one
            movie = box
        if box.name not in _UNREAD:
            named += _check_samples(value, box)
    if movie is None:
        raise Reject("a clip without a header, or one that ends early", "undecodable")
    if named > 2 * len(value):
        raise Reject("a clip whose header names more samples than the file can hold", "undecodable")
    fragment = next(_inside(value, movie, b"mvex", b"mehd"), None)
    for track in _inside(value, movie, b"trak"):
        handler = next(_inside(value, track, b"mdia", b"hdlr"), None)
        if handler is None or value[handler.start + 8 : handler.start + 12] != b"vide":
            continue
        width, height = _sample_size(value, track)
        head = next(_inside(value, track, b"tkhd"))
        matrix = head.start + (52 if value[head.start] else 40)
        a, b = struct.unpack(">ii", value[matrix : matrix + 8])
        media = next(_inside(value, track, b"mdia", b"mdhd"))
        duration = _mp4_duration(value, media)
        if duration == 0 and fragment is not None:
            duration = _fragments_duration(value, movie, fragment)
        known = duration is not None and duration > 0
        return VideoHeader("mov", width, height, duration if known else None, a == 0 and b != 0)
    raise Reject("a clip without pictures", "undecodable")


def _check_samples(value: bytes, box: _Box) -> int:
    """Samples, in bytes that they must have at least, that the tables in a box name; wherever in it they are.

    FFmpeg takes 24 bytes or more for each sample that is named. A table of one size for all samples, and a fragment without
    sizes, need no bytes for one.

    Raises:
        Reject: the header is compressed: unpacked it may have any size.
    """
    named = 0
    for table in _TABLES.finditer(value, box.start, min(box.end, len(value))):
        second, third = struct.unpack(">4xII", value[table.end() : table.end() + 12].ljust(12, b"\0"))
        if table[0] == b"cmov":
            raise Reject("a clip whose header is compressed", "undecodable")
        if table[0] == b"stsz":
            named += third * second if second else 4 * third
        else:
            named += third // 2 if table[0] == b"stz2" else second
    return named


def _sample_size(value: bytes, track: _Box) -> tuple[int, int]:
    """Width and height of the largest kind of sample that a track has."""
    sizes = []
    for table in _inside(value, track, b"mdia", b"minf", b"stbl", b"stsd"):
        entries = _Box(b"", table.start + 8, table.end)
        for entry in _boxes(value, entries.start, min(entries.end, len(value))):
            sizes.append(struct.unpack(">HH", value[entry.start + 24 : entry.start + 28]))
    width, height = max(sizes, key=lambda size: size[0] * size[1], default=(0, 0))
    return width, height


def _mp4_duration(value: bytes, head: _Box) -> float | None:
    """Seconds of an ``mdhd`` or ``mvhd`` box; None where it says that it does not know."""
    if value[head.start]:
        scale, units = struct.unpack(">IQ", value[head.start + 20 : head.start + 32])
        unknown = (1 << 64) - 1
    else:
        scale, units = struct.unpack(">II", value[head.start + 12 : head.start + 20])
        unknown = (1 << 32) - 1
    return None if units == unknown or not scale else units / scale


def _fragments_duration(value: bytes, movie: _Box, fragments: _Box) -> float | None:
    """Seconds that a fragmented file says it has in all."""
    head = next(_inside(value, movie, b"mvhd"))
    scale = int.from_bytes(value[head.start + (20 if value[head.start] else 12) :][:4], "big")
    width = 8 if value[fragments.start] else 4
    units = int.from_bytes(value[fragments.start + 4 : fragments.start + 4 + width], "big")
    return units / scale if scale else None


# -- Matroska and WebM ---------------------------------------------------------------------------------------


def _number(value: bytes, position: int, keep_marker: bool) -> tuple[int, int]:
    """A variable-length number and the position behind it; ``_UNKNOWN`` for a size that is left open."""
    first = value[position]
    length = 9 - first.bit_length()
    if length > 8 or position + length > len(value):
        raise IndexError
    number = int.from_bytes(value[position : position + length], "big")
    if not keep_marker:
        number &= (1 << (7 * length)) - 1
        if number == (1 << (7 * length)) - 1:
            number = _UNKNOWN
    return number, position + length


def _elements(value: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(id, start, end) of the elements in a stretch of a file; an open end is the end of the stretch."""
    for _ in range(_BOXES_MAX):
        if start >= end:
            return
        name, position = _number(value, start, True)
        size, position = _number(value, position, False)
        stop = end if size == _UNKNOWN else position + size
        yield name, position, stop
        start = stop
    raise IndexError


def _integer(value: bytes, start: int, end: int) -> int:
    """The unsigned integer in an element, which has at most eight bytes; 0 for an empty one."""
    if end - start > 8 or end > len(value):
        raise IndexError
    return int.from_bytes(value[start:end], "big")


def _matroska(value: bytes, whole: bool) -> VideoHeader:
    duration, scale, width, height = None, 1_000_000, 0, 0
    for name, start, end in _elements(value, 0, len(value)):
        if whole and end > len(value):
            raise Reject("the clip ends early", "undecodable")
        if name != _SEGMENT:
            continue
        for inner, first, last in _elements(value, start, min(end, len(value))):
            if inner == _INFO:
                for key, at, stop in _elements(value, first, last):
                    if key == _SCALE:
                        scale = _integer(value, at, stop)
                    elif key == _DURATION:
                        (duration,) = struct.unpack(">f" if stop - at == 4 else ">d", value[at:stop])
            elif inner == _TRACKS:
                width, height = _track_size(value, first, last)
            if inner == _CLUSTER or (width and duration):
                break
    seconds = duration * scale / 1e9 if duration is not None and 0 < duration < 1e18 else None
    return VideoHeader("matroska", width, height, seconds)


def _track_size(value: bytes, start: int, end: int) -> tuple[int, int]:
    """Width and height of the largest video track."""
    sizes = [(0, 0)]
    for name, first, last in _elements(value, start, end):
        if name != _TRACK:
            continue
        for inner, at, stop in _elements(value, first, last):
            if inner == _VIDEO:
                found = {k: (a, b) for k, a, b in _elements(value, at, stop)}
                width, height = (_integer(value, *found.get(key, (0, 0))) for key in (_WIDTH, _HEIGHT))
                sizes.append((width, height))
    return max(sizes, key=lambda size: size[0] * size[1])


# -- AVI -----------------------------------------------------------------------------------------------------


def _avi(value: bytes, whole: bool) -> VideoHeader:
    if whole and 8 + int.from_bytes(value[4:8], "little") > len(value):
        raise Reject("the clip ends early", "undecodable")
    if value[12:16] != b"LIST" or value[20:24] != b"hdrl" or value[24:28] != b"avih":
        raise IndexError
    per_frame, _, _, _, frames = struct.unpack("<5I", value[32:52])
    width, height = struct.unpack("<2I", value[64:72])
    seconds = per_frame * frames / 1e6
    return VideoHeader("avi", width, height, seconds or None)
