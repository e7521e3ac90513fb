"""Pictures whose file says how the camera was held."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from decode_support import Decoding

PIXELS = np.random.default_rng(5).integers(0, 256, (4, 8, 3), dtype=np.uint8)
ORIENTATIONS = range(1, 9)


def exif(orientation: int, order: str = ">") -> bytes:
    """A TIFF directory with one entry."""
    magic = b"MM\0*" if order == ">" else b"II*\0"
    return magic + struct.pack(f"{order}IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_profile(orientation: int) -> bytes:
    data = b"Exif\0\0" + exif(orientation)
    return b"\nexif\n%8d\n%b\n" % (len(data), data.hex().encode())


def xmp(orientation: int) -> bytes:
    return b'<rdf:Description tiff:Orientation="%d"/>' % orientation


def png(*extra: bytes) -> bytes:
    file = cv2.imencode(".png", PIXELS[..., ::-1])[1].tobytes()
    return file[:33] + b"".join(extra) + file[33:]


def webp(*extra: bytes) -> bytes:
    """An extended WebP file: the flag for EXIF and XMP, a canvas of 8 x 4, the lossless picture, the chunks."""
    file = cv2.imencode(".webp", PIXELS[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, 101])[1].tobytes()
    canvas = bytes([0x0C, 0, 0, 0, 7, 0, 0, 3, 0, 0])
    body = b"WEBP" + b"VP8X" + struct.pack("<I", 10) + canvas + file[12:] + b"".join(extra)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def riff(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)


def text(keyword: bytes, data: bytes) -> bytes:
    return keyword + b"\0\0\0\0\0" + data


FILES = {
    "png eXIf": lambda n: png(chunk(b"eXIf", exif(n))),
    "png eXIf, little-endian": lambda n: png(chunk(b"eXIf", exif(n, "<"))),
    "png raw profile": lambda n: png(chunk(b"tEXt", b"Raw profile type exif\0" + raw_profile(n))),
    "png packed raw profile": lambda n: png(
        chunk(b"zTXt", b"Raw profile type APP1\0\0" + zlib.compress(raw_profile(n)))
    ),
    "png XMP": lambda n: png(chunk(b"iTXt", text(b"XML:com.adobe.xmp", xmp(n)))),
    "webp EXIF": lambda n: webp(riff(b"EXIF", exif(n))),
    "webp EXIF with the prefix of a JPEG": lambda n: webp(riff(b"EXIF", b"Exif\0\0" + exif(n))),
    "webp XMP": lambda n: webp(riff(b"XMP ", xmp(n))),
}


def decoded(file: bytes, **image: Any) -> Any:
    options = {"resize": "none", "layout": "nhwc", **image}
    return Decoding("image", {"x": ("uint8", ("N", "H", "W", 3))}, preprocess={"image": options}).item(file)[
        0
    ]


def upright(orientation: int) -> Any:
    """What a viewer shows, from what EXIF says of the first row and column of the stored picture."""
    rows, columns = PIXELS.shape[:2]
    shown = np.empty((columns, rows, 3) if orientation > 4 else PIXELS.shape, np.uint8)
    for row in range(rows):
        for column in range(columns):
            right, below = columns - 1 - column, rows - 1 - row
            place = {
                1: (row, column),
                2: (row, right),
                3: (below, right),
                4: (below, column),
                5: (column, row),
                6: (column, below),
                7: (right, below),
                8: (right, row),
            }[orientation]
            shown[place] = PIXELS[row, column]
    return shown


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("kind", FILES)
def test_a_png_or_webp_is_turned_upright(kind: str, orientation: int) -> None:
    """The orientation of a PNG or WebP file is followed wherever it stands: EXIF, a raw profile or XMP."""
    file = FILES[kind](orientation)
    assert np.array_equal(decoded(file), upright(orientation))
    assert np.array_equal(decoded(file, orientation="ignore"), PIXELS)


def test_a_turned_jpeg_is_turned_the_same_way() -> None:
    """One orientation turns a JPEG, a PNG and a WebP file alike."""
    jpeg = cv2.imencode(".jpg", PIXELS)[1].tobytes()
    stored = decoded(jpeg)
    for orientation in ORIENTATIONS:
        data = b"Exif\0\0" + exif(orientation)
        file = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data + jpeg[2:]
        as_png = cv2.imencode(".png", stored[..., ::-1])[1].tobytes()
        as_png = as_png[:33] + chunk(b"eXIf", exif(orientation)) + as_png[33:]
        assert np.array_equal(decoded(file), decoded(as_png)), orientation


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"MM\0*",
        exif(0),
        exif(9),
        exif(6)[:-9],
        b"MM\0*\xff\xff\xff\xff",
        b"MM\0*\0\0\0\x08\xff\xff",
        b"noise" * 9,
    ],
)
def test_a_broken_orientation_leaves_the_picture_as_it_is(data: bytes) -> None:
    """EXIF data that end early or hold another number than 1 to 8 do not make a picture undecodable."""
    assert np.array_equal(decoded(png(chunk(b"eXIf", data))), PIXELS)
    assert np.array_equal(decoded(webp(riff(b"EXIF", data))), PIXELS)


def test_a_packed_profile_is_unpacked_to_a_limit() -> None:
    """A text chunk that unpacks to a gigabyte costs about a megabyte."""
    bomb = zlib.compress(b"\0" * (64 << 20), 9)
    file = png(chunk(b"zTXt", b"Raw profile type exif\0\0" + bomb))
    decoding = Decoding("image", {"x": ("uint8", ("N", 4, 8, 3))}, preprocess={"image": {}})
    tracemalloc.start()
    decoding.item(file)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20
