"""The page's file: one request, nothing from elsewhere, no script but its own; and the small pictures it shows."""

from __future__ import annotations

import base64
import hashlib
import re

import cv2
import numpy as np
import pytest

from worker.features.thumbnail import SIDE, thumbnail
from worker.telemetry.page import page

HTML = page().body.decode()
POLICY = page().headers["Content-Security-Policy"]


def test_the_page_is_one_small_file() -> None:
    """The page is under 200 kB and names nothing outside: no address, no import, no file of its own beside it."""
    assert len(page().body) < 200_000
    found = re.findall(r"""(?:https?:)?//[a-z][^\s"'<>)]*""", HTML)
    namespaces = {"http://www.w3.org/2000/svg"}
    assert {each for each in found if re.match(r"(https?:)?//\w+\.\w", each)} <= namespaces
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)=\"(?!data:)", HTML)
    assert "@import" not in HTML
    assert "import(" not in HTML


@pytest.mark.parametrize("tag", ["script", "style"])
def test_the_policy_allows_the_pages_own_parts_and_no_others(tag: str) -> None:
    """The Content-Security-Policy names script and style by the hash of exactly what stands in the file."""
    (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", HTML, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    assert f"{tag}-src 'sha256-{digest}'" in POLICY
    assert "unsafe" not in POLICY
    assert POLICY.startswith("default-src 'self';")


def test_nothing_in_the_page_is_markup_from_data() -> None:
    """The script never writes markup: whatever a record or a message holds is text."""
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", HTML)
    assert not re.search(r"<[^>]+\son\w+=", HTML.split("<script>")[0])


def picture(height: int, width: int, kind: str = ".jpg", *options: int) -> bytes:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = 255
    return cv2.imencode(kind, pixels, list(options))[1].tobytes()


@pytest.mark.parametrize("kind", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("size", [(28, 28), (480, 640), (1080, 1920), (3000, 100)])
def test_a_small_picture_shows_the_same(kind: str, size: tuple[int, int]) -> None:
    """A small picture has the shape of the original, is at most 360 pixels wide and high, and keeps the original's size beside it."""
    made = thumbnail(picture(*size, kind))
    assert made is not None
    assert (made.height, made.width) == size
    shown = cv2.imdecode(np.frombuffer(made.file, np.uint8), cv2.IMREAD_COLOR)
    assert max(shown.shape[:2]) <= SIDE
    assert shown.shape[0] / shown.shape[1] == pytest.approx(size[0] / size[1], rel=0.1)
    quarters = (
        shown[: shown.shape[0] // 2 - 1, : max(1, shown.shape[1] // 2 - 1)],
        shown[shown.shape[0] // 2 + 1 :],
    )
    assert (quarters[0].mean() > 230, quarters[1].mean() < 25) == (True, True)
    assert len(made.file) < 65_536


@pytest.mark.parametrize("file", [b"", b"text", picture(100, 100)[:400], b"GIF89a" + bytes(50)])
def test_what_is_no_picture_has_no_small_one(file: bytes) -> None:
    """Text, broken files and other formats give none, and no error."""
    assert thumbnail(file) is None


def test_a_turned_picture_is_shown_upright() -> None:
    """A photo with EXIF orientation 6 is turned, as boxes are given in the turned picture; with orientation ignored it is not."""
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    plain = picture(480, 640)
    file = plain[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + plain[2:]
    turned, ignored = thumbnail(file), thumbnail(file, upright=False)
    assert turned is not None
    assert ignored is not None
    assert (turned.width, turned.height) == (480, 640)
    assert (ignored.width, ignored.height) == (640, 480)
