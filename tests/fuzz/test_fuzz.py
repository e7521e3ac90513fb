"""What was found stays fixed, a few thousand new inputs find nothing, and the fuzzer finds what is planted."""

from __future__ import annotations

import mmap
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random

import cv2
import fuzz_run
import numpy as np
import pytest
from fuzz_run import fuzz, inputs, run, tried, turns
from fuzz_targets import TARGETS, Target, encoded
from thorough import cases

CASES = {"image": 2000, "video": 1000, "tensor": 2000, "npy": 2000, "oip": 2000, "letter": 2000}
"""Inputs per target, most; the others look at each of theirs many times over."""
OTHERS = 400


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_found_stays_fixed(name: str) -> None:
    """Every seed and every input of the corpus is taken as it should be."""
    for data in inputs(name):
        assert tried(TARGETS[name], data) is None, data[:200]


@pytest.mark.parametrize("name", TARGETS)
def test_new_inputs_find_nothing(name: str, tmp_path: Path) -> None:
    """No surprise, no warning, no lasting growth of memory and no standstill, in a process of its own."""
    count = cases(CASES.get(name, OTHERS))
    findings = run(name, count, None, seed=7, corpus=tmp_path)
    assert not findings.found, findings.found
    assert findings.cases == count


def planted(data: bytes) -> None:
    if b"!" in data:
        raise KeyError("planted")


def test_a_planted_bug_is_found_and_kept(tmp_path: Path) -> None:
    """An exception is reported once by its kind, and an input that shows it is in the corpus."""
    with mmap.mmap(-1, fuzz_run.LARGEST + 8) as current:
        target = Target(planted, [b"ab"], [b"!"])
        findings = fuzz(target, Random(1), [b"ab"], tmp_path, current, turns(200, 0))
    assert findings.cases == 200
    ((kind, times),) = findings.found.items()
    assert kind.startswith("KeyError at test_fuzz.py:")
    assert times > 1
    kept = [path.read_bytes() for path in tmp_path.iterdir()]
    assert kept
    assert all(b"!" in data for data in kept)


# Decompression bombs


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of(width: int, height: int) -> bytes:
    """Black; a thousandth of its pixels' size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes((3 * width + 1) * height), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def png_with_packed_text() -> bytes:
    """A small picture beside 100 texts that unpack to 7 MB each."""
    picture = encoded(".png", np.zeros((16, 16, 3), np.uint8))
    text = zlib.compress(b"a" * 7_000_000, 9)
    texts = chunk(b"zTXt", b"k\0\0" + text) * 50 + chunk(b"iTXt", b"k\0\1\0\0\0" + text) * 50
    return picture[:33] + texts + picture[33:]


def png_with_a_long_chunk() -> bytes:
    """A small picture whose data chunk says it holds 3 GB."""
    picture = bytearray(encoded(".png", np.zeros((16, 16, 3), np.uint8)))
    picture[33:37] = (3 << 30).to_bytes(4, "big")
    return bytes(picture)


def jpeg_with_many_scans() -> bytes:
    """A megapixel that a thousand scans of 60 bytes each go over again."""
    picture = encoded(".jpg", np.zeros((1000, 1000, 3), np.uint8), cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    last = picture[picture.rindex(b"\xff\xda") : -2]
    return picture[:-2] + last * 1000 + b"\xff\xd9"


def webp_of(width: int, height: int) -> bytes:
    return encoded(".webp", np.zeros((height, width, 3), np.uint8), cv2.IMWRITE_WEBP_QUALITY, 101)


def jpeg_of(width: int, height: int) -> bytes:
    return encoded(".jpg", np.zeros((height, width, 3), np.uint8))


def webp_in_a_small_frame() -> bytes:
    """A canvas of 8 x 8 around a picture of 4000 x 4000."""
    picture = webp_of(4000, 4000)[12:]
    canvas = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (7).to_bytes(3, "little") * 2
    body = b"WEBP" + canvas + picture
    return b"RIFF" + struct.pack("<I", len(body)) + body


BOMBS: dict[str, tuple[Callable[[], bytes], str | None]] = {
    "PNG": (lambda: png_of(4000, 4000), "too_many_pixels"),
    "PNG, packed text": (png_with_packed_text, None),
    "PNG, a long chunk": (png_with_a_long_chunk, "undecodable"),
    "JPEG": (lambda: jpeg_of(4000, 4000), "too_many_pixels"),
    "JPEG, many scans": (jpeg_with_many_scans, "undecodable"),
    "WebP": (lambda: webp_of(4000, 4000), "too_many_pixels"),
    "WebP, a small frame": (webp_in_a_small_frame, "undecodable"),
}

GROWTH = """
import resource, sys
sys.path.append(sys.argv[1])
from fuzz_targets import IMAGES

for path in sys.argv[2:]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    feed = IMAGES[0].decode(open(path, "rb").read())
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(*(rejection.reason for rejection in feed.rejected.values()), after - before)
"""
"""Decodes files in turn; prints why the last one was refused, if it was, and the KiB it added to the peak."""


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_does_not_go_off(name: str, tmp_path: Path) -> None:
    """A small file that asks for much memory or time is refused by its header, or decoded without what asks for it."""
    make, reason = BOMBS[name]
    bomb, small = tmp_path / "bomb", tmp_path / "small"
    bomb.write_bytes(make())
    small.write_bytes(encoded(".png", np.zeros((16, 16, 3), np.uint8)))
    assert bomb.stat().st_size < 1 << 20
    command = [sys.executable, "-c", GROWTH, str(Path(__file__).parent), str(small), str(bomb)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    *reasons, growth = done.stdout.split()
    assert reasons == ([reason] if reason else [])
    assert int(growth) < 32 << 10
