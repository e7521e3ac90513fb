"""Pictures -> arrays."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from decode_support import Decoding, reasons
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.errors import ConfigError, Reject

RANDOM = np.random.default_rng(0)
SMOOTH = cv2.resize(
    RANDOM.integers(0, 256, (6, 8, 3), dtype=np.uint8), (64, 48), interpolation=cv2.INTER_CUBIC
)
NOISE = RANDOM.integers(0, 256, (48, 64, 3), dtype=np.uint8)
# A TIFF directory with one entry: orientation 6, turn 90 degrees clockwise to view.
TURNED = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"


def encode(extension: str, pixels: Any, *parameters: int) -> bytes:
    """``pixels`` are RGB (or gray), as the decoder gives them."""
    pixels = pixels[..., ::-1] if pixels.ndim == 3 else pixels
    return bytes(cv2.imencode(extension, pixels, list(parameters))[1].tobytes())


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, rows: bytes, depth: int = 8, color: int = 2, extra: bytes = b"") -> bytes:
    """A PNG made by hand; every row starts with its filter byte 0."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def turned_jpeg(jpeg: bytes) -> bytes:
    exif = b"Exif\0\0" + TURNED
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


FILES = {
    "jpeg": encode(".jpg", NOISE),
    "jpeg, smooth": encode(".jpg", SMOOTH),
    "jpeg, progressive": encode(".jpg", SMOOTH, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    "jpeg, restarts": encode(".jpg", SMOOTH, cv2.IMWRITE_JPEG_RST_INTERVAL, 2),
    "jpeg, gray": encode(".jpg", SMOOTH[..., 0]),
    "png": encode(".png", NOISE),
    "webp": encode(".webp", NOISE, cv2.IMWRITE_WEBP_QUALITY, 80),
    "webp, lossless": encode(".webp", SMOOTH, cv2.IMWRITE_WEBP_QUALITY, 101),
}


def raw_model(channels: int = 3, **image: Any) -> Decoding:
    """A uint8 model with free height and width: it sees the pixels as they were decoded."""
    color = "gray" if channels == 1 else "rgb"
    settings = {"image": {"color": color, "resize": "none", "layout": "nhwc"} | image}
    return Decoding("image", {"x": ("uint8", ("N", "H", "W", channels))}, preprocess=settings)


@pytest.mark.parametrize("name", FILES)
def test_pixels_are_opencvs(name: str) -> None:
    """Each format decodes to what IMREAD_COLOR_RGB and IMREAD_GRAYSCALE give."""
    data = np.frombuffer(FILES[name], np.uint8)
    assert np.array_equal(raw_model().item(FILES[name])[0], cv2.imdecode(data, cv2.IMREAD_COLOR_RGB))
    gray = raw_model(1).item(FILES[name])[0, ..., 0]
    assert np.array_equal(gray, cv2.imdecode(data, cv2.IMREAD_GRAYSCALE))


@pytest.mark.parametrize("name", FILES)
def test_data_that_end_early_are_undecodable(name: str) -> None:
    """Wherever a file is cut, the last byte included, it is refused, not filled up."""
    value, decoding = FILES[name], raw_model()
    cuts = sorted({*range(0, len(value), max(1, len(value) // 60)), *range(len(value) - 16, len(value))})
    feed = decoding.decode(*(value[:cut] for cut in cuts))
    assert reasons(feed) == dict.fromkeys(range(len(cuts)), "undecodable")


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("jpeg")])
def test_noise_behind_a_jpeg_header_is_undecodable(name: str) -> None:
    """Two bytes of the noise that look like the end of an image do not make it one."""
    file = FILES[name]
    head = file[: file.index(b"\xff\xda") + 14]
    noise = RANDOM.bytes(3000).replace(b"\xff\xd9", b"")
    value = head + noise + b"\xff\x40" + noise + b"\xff\xd9" + noise
    assert raw_model().refusal(value)[0] == "undecodable"


def test_a_bomb_is_told_by_its_size_even_cut_short() -> None:
    """The header is enough: nothing behind it is looked at."""
    value = png(60_000, 60_000, b"")
    for bomb in (value, value[:40]):
        assert raw_model().refusal(bomb)[0] == "too_many_pixels"


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"hello",
        b"GIF89a" + b"\0" * 40,
        b"BM" + b"\0" * 60,
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xe0\0\0" + b"\0" * 40,
        b"\xff\xd8" + b"\xff" * 100,
        b"\x89PNG\r\n\x1a\n",
        b"RIFF\x10\0\0\0WEBPVP8 ",
        b"RIFF\x20\0\0\0WEBPVP8?" + b"\0" * 40,
        png(4, 4, b"\0" * 13),
        png(0, 4, b""),
        FILES["png"][:60] + b"\xff" + FILES["png"][61:],
    ],
)
def test_what_is_no_picture_is_undecodable(value: bytes) -> None:
    """Other formats, headers without a picture, a picture whose data are missing or damaged."""
    assert raw_model().refusal(value)[0] == "undecodable"


def segments(jpeg: bytes) -> list[int]:
    """Where each segment of a JPEG file begins, up to its first scan."""
    places, position = [], 2
    while jpeg[position + 1] != 0xDA:
        places.append(position)
        position += 2 + int.from_bytes(jpeg[position + 2 : position + 4], "big")
    return [*places, position]


APP2, APP14 = b"\xff\xe2", b"\xff\xee"
ODD_SEGMENTS = {
    "bytes between segments": b"\0\1junk",
    "fill bytes": b"\xff\xff\xff",
    "a stuffed zero between segments": b"\0\xff\0\0",
    "a segment twice": 2 * (b"\xff\xed" + b"\0\x08Photos"),
    "a segment of length 0": APP2 + b"\0\0",
    "a segment of length 1": APP2 + b"\0\1",
    "a segment shorter than its kind": APP14 + b"\0\x07Adobe",
}


@pytest.mark.parametrize("odd", ODD_SEGMENTS)
@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("jpeg")])
def test_odd_segments_that_a_decoder_passes_over_do_not_matter(name: str, odd: str) -> None:
    """A JPEG with bytes or odd segments between its segments gives the pixels it gives without them."""
    jpeg = FILES[name]
    expected = raw_model().item(jpeg)
    first = 0 if ODD_SEGMENTS[odd].startswith(b"\xff") else 1  # a file begins with FF D8 FF
    for place in segments(jpeg)[first:]:
        file = jpeg[:place] + ODD_SEGMENTS[odd] + jpeg[place:]
        assert cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR) is not None
        assert np.array_equal(raw_model().item(file), expected), place
        assert raw_model().refusal(file[:-2])[0] == "undecodable"


@given(st.integers(2, 700), st.binary(min_size=1, max_size=6))
@settings(max_examples=300, deadline=None)
def test_what_opencv_decodes_whole_is_decoded(place: int, junk: bytes) -> None:
    """Bytes changed in a JPEG's header refuse it only where OpenCV refuses it, or where its end is not reached."""
    jpeg = FILES["jpeg, smooth"]
    file = jpeg[:place] + junk + jpeg[place + len(junk) :]
    decoding = Decoding(
        "image",
        {"x": ("uint8", ("N", "H", "W", 3))},
        limits={"image_pixels": 10_000},
        preprocess={"image": {"resize": "none"}},
    )
    feed = decoding.decode(file)
    if reasons(feed) == {0: "too_many_pixels"}:
        return
    pixels = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR_RGB)
    if feed.rejected:
        assert feed.rejected[0].reason == "undecodable"
        assert pixels is None or "ends early" in feed.rejected[0].message
    else:
        assert np.array_equal(feed.items[0].arrays["x"][0], pixels)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (b"GIF89a" + b"\0" * 40, "a GIF image"),
        (encode(".bmp", NOISE), "a BMP image"),
        (encode(".tiff", NOISE), "a TIFF image"),
        (b"\0\0\0 ftypavif" + b"\0" * 40, "an AVIF image"),
        (b"\0\0\0 ftypheic" + b"\0" * 40, "a HEIC image"),
        (base64.b64encode(FILES["png"]), "base64 text of a PNG image"),
        (base64.b64encode(FILES["jpeg"]), "base64 text of a JPEG image"),
        (FILES["jpeg"].replace(b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x0c"), "12 bits per sample"),
        (FILES["jpeg"].replace(b"\xff\xc0\0\x11\x08", b"\xff\xc3\0\x11\x08"), "lossless"),
    ],
)
def test_the_message_names_another_kind_of_file(value: bytes, name: str) -> None:
    """A picture of a kind that is not read is refused with the name of its kind."""
    reason, message = raw_model().refusal(value)
    assert reason == "undecodable"
    assert name in message


def test_bytes_after_the_end_do_not_matter() -> None:
    """Cameras pad; what follows a whole picture is ignored."""
    for value in FILES.values():
        assert np.array_equal(raw_model().item(value + b"\0" * 30), raw_model().item(value))


def test_alpha_is_dropped_and_sixteen_bits_become_eight() -> None:
    """As OpenCV does: colour channels as stored, v >> 8."""
    rgba = RANDOM.integers(0, 256, (4, 5, 4), dtype=np.uint8)
    value = png(5, 4, b"".join(b"\0" + row.tobytes() for row in rgba), color=6)
    assert np.array_equal(raw_model().item(value)[0], rgba[..., :3])
    deep = RANDOM.integers(0, 65536, (4, 5, 3), dtype=np.uint16)
    value = png(5, 4, b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep), depth=16)
    assert np.array_equal(raw_model().item(value)[0], (deep >> 8).astype(np.uint8))


def test_orientation_is_applied_unless_ignored() -> None:
    """orientation: exif turns the picture as its tag says; ignore leaves it as stored."""
    rows = b"".join(b"\0" + row.tobytes() for row in NOISE)
    for value in (turned_jpeg(FILES["jpeg"]), png(64, 48, rows, extra=chunk(b"eXIf", TURNED))):
        upright, stored = raw_model().item(value)[0], raw_model(orientation="ignore").item(value)[0]
        assert stored.shape == (48, 64, 3)
        assert np.array_equal(upright, np.rot90(stored, -1))


def test_a_bomb_is_refused_by_its_header() -> None:
    """Too many pixels are refused before a decode, for the record and when its cost is asked."""
    bomb = png(30_000, 30_000, b"\0")
    decoding = raw_model()
    assert decoding.refusal(bomb)[0] == "too_many_pixels"
    with pytest.raises(Reject) as caught:
        decoding.decoder.cost(bomb)
    assert caught.value.reason == "too_many_pixels"
    small = Decoding("image", {"x": ("uint8", ("N", 48, 64, 3))}, limits={"image_pixels": 48 * 64 - 1})
    assert small.refusal(FILES["jpeg"])[0] == "too_many_pixels"
    exact = Decoding("image", {"x": ("uint8", ("N", 48, 64, 3))}, limits={"image_pixels": 48 * 64})
    assert reasons(exact.decode(FILES["jpeg"], FILES["webp"], FILES["png"])) == {}


@pytest.mark.parametrize("extension", [".jpg", ".png", ".webp"])
def test_a_large_decode_states_its_cost(extension: str) -> None:
    """Below 8 MiB a decode is free, above it costs at least its pixels; an item of the picture's own size costs twice its bytes."""
    large = encode(extension, np.zeros((1700, 1800, 3), np.uint8))
    fitted = Decoding("image", {"x": ("uint8", ("N", 32, 32, 3))})
    assert fitted.decoder.cost(FILES["jpeg"]) == 0
    assert fitted.decoder.cost(large) >= 1700 * 1800 * 3
    assert raw_model().decoder.cost(FILES["jpeg"]) == 2 * 48 * 64 * 3
    assert raw_model().decoder.cost(large) == fitted.decoder.cost(large) + 2 * 1700 * 1800 * 3
    tight = Decoding(
        "image", {"x": ("uint8", ("N", 32, 32, 3))}, limits={"in_flight_bytes": 1700 * 1800 * 3 - 1}
    )
    assert tight.refusal(large)[0] == "too_many_pixels"


@pytest.mark.parametrize("kind", ["float", "float16", "double"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("color", ["rgb", "bgr", "gray"])
def test_values_are_scaled_in_the_models_dtype(kind: str, layout: str, color: str) -> None:
    """x = (pixel * scale - mean) / std, bit for bit as numpy computes it in that dtype."""
    dtype = np.dtype("float32" if kind == "float" else kind)
    channels = 1 if color == "gray" else 3
    mean, std, scale = [0.485, 0.456, 0.406][:channels], [0.229, 0.224, 0.225][:channels], 0.00392157
    shape = (channels, 48, 64) if layout == "nchw" else (48, 64, channels)
    decoding = Decoding(
        "image",
        {"x": (kind, ("N", *shape))},
        preprocess={"image": {"color": color, "scale": scale, "mean": mean, "std": std}},
    )
    data = np.frombuffer(FILES["png"], np.uint8)
    pixels = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)[..., None] if channels == 1 else NOISE
    pixels = pixels[..., ::-1] if color == "bgr" else pixels
    expected = (pixels.astype(dtype) * dtype.type(scale) - np.array(mean, dtype)) / np.array(std, dtype)
    expected = expected.transpose(2, 0, 1) if layout == "nchw" else expected
    item = decoding.item(FILES["png"])
    assert item.dtype == dtype
    assert np.array_equal(item, expected)


@pytest.mark.parametrize("kind", ["uint8", "int32", "int64", "uint16"])
@pytest.mark.parametrize("shape", [(3, 48, 64), (48, 64, 3)])
def test_integer_models_get_the_pixels(kind: str, shape: tuple[int, ...]) -> None:
    """Without scaling an integer model sees 0 to 255."""
    item = Decoding("image", {"x": (kind, ("N", *shape))}).item(FILES["png"])
    assert np.array_equal(item if shape[-1] == 3 else item.transpose(1, 2, 0), NOISE)


def fitted(resize: str, height: int, width: int, **image: Any) -> Any:
    """(item, geometry) of the 64 x 48 picture in a uint8 model of another size."""
    decoding = Decoding(
        "image", {"x": ("uint8", ("N", height, width, 3))}, preprocess={"image": {"resize": resize} | image}
    )
    feed = decoding.decode(FILES["png"])
    assert not feed.rejected, feed.rejected
    return feed.arrays["x"][0], feed.contexts[0]


@pytest.mark.parametrize("name", ["linear", "nearest", "area", "cubic"])
def test_stretch_is_one_resize(name: str) -> None:
    """stretch is cv2.resize with the interpolation asked for."""
    item, geometry = fitted("stretch", 20, 30, interpolation=name)
    method = getattr(cv2, f"INTER_{name.upper()}")
    assert np.array_equal(item, cv2.resize(NOISE, (30, 20), interpolation=method))
    assert (geometry.height, geometry.width) == (48, 64)
    assert (geometry.scale_x, geometry.scale_y) == (30 / 64, 20 / 48)


def test_letterbox_is_centred_on_its_padding() -> None:
    """The whole picture, as large as fits, with equal borders of pad_value."""
    item, geometry = fitted("letterbox", 32, 32, pad_value=9)
    assert np.array_equal(item[4:28], cv2.resize(NOISE, (32, 24)))
    assert (item[:4] == 9).all()
    assert (item[28:] == 9).all()
    assert (geometry.scale_x, geometry.scale_y, geometry.offset_x, geometry.offset_y) == (0.5, 0.5, 0, 4)


def test_crop_cuts_the_centre() -> None:
    """The shorter side is resized to fit and the centre kept."""
    item, geometry = fitted("crop", 24, 24)
    assert np.array_equal(item, cv2.resize(NOISE, (32, 24))[:, 4:28])
    assert (geometry.scale_x, geometry.scale_y, geometry.offset_x, geometry.offset_y) == (0.5, 0.5, -4, 0)


def test_none_takes_pictures_as_they_are() -> None:
    """resize: none refuses another size where the model's is fixed, in the preprocess stage."""
    item, geometry = fitted("none", 48, 64)
    assert np.array_equal(item, NOISE)
    assert (geometry.scale_x, geometry.offset_x) == (1, 0)
    decoding = Decoding("image", {"x": ("uint8", ("N", 32, 64, 3))}, preprocess={"image": {"resize": "none"}})
    rejection = decoding.decode(FILES["png"]).rejected[0]
    assert (rejection.reason, rejection.stage) == ("invalid", "preprocess")


def test_a_thin_picture_does_not_explode_when_cropped() -> None:
    """Cropping one pixel by 200,000 would resize it to gigabytes first: it is refused instead."""
    thin = encode(".png", np.zeros((1, 200_000, 3), np.uint8))
    decoding = Decoding(
        "image", {"x": ("uint8", ("N", 224, 224, 3))}, preprocess={"image": {"resize": "crop"}}
    )
    assert decoding.refusal(thin)[0] == "too_many_pixels"


def test_a_shard_writes_its_own_rows_only() -> None:
    """Rows stay in order across shards and a bad one leaves its neighbours alone."""
    decoding = Decoding("image", {"x": ("uint8", ("N", 1, 1, 3))}, preprocess={"image": {"layout": "nhwc"}})
    values = [encode(".png", np.full((1, 1, 3), row, np.uint8)) for row in range(20)]
    values[11] = b"nonsense"
    feed = decoding.decode(*values)
    assert reasons(feed) == {11: "undecodable"}
    good = [row for row in range(20) if row != 11]
    assert feed.arrays["x"][good, 0, 0, 0].tolist() == good


def test_one_picture_may_feed_two_inputs() -> None:
    """preprocess.inputs fits the same record's picture to each input."""
    decoding = Decoding(
        "image",
        {"large": ("uint8", ("N", 48, 64, 3)), "small": ("float", ("N", 1, 12, 16))},
        preprocess={
            "inputs": {
                "large": {"from": "value", "image": {}},
                "small": {"from": "value", "image": {"color": "gray", "scale": 0.5}},
            }
        },
    )
    feed = decoding.decode(FILES["png"])
    assert np.array_equal(feed.arrays["large"][0], NOISE)
    gray = cv2.imdecode(np.frombuffer(FILES["png"], np.uint8), cv2.IMREAD_GRAYSCALE)
    assert np.array_equal(feed.arrays["small"][0, 0], cv2.resize(gray, (16, 12)).astype(np.float32) / 2)


@pytest.mark.parametrize(
    ("kind", "shape", "image", "key"),
    [
        ("float", ("N", 20), {}, "preprocess.image:"),
        ("float", ("N", "C", 8, 8), {}, "preprocess.image.layout"),
        ("float", ("N", 3, 8, 8), {"color": "gray"}, "preprocess.image.color"),
        ("float", ("N", 3, 8, 8), {"size": [8, 9]}, "preprocess.image.size"),
        ("float", ("N", 3, "H", "W"), {}, "preprocess.image.size"),
        ("float", ("N", 3, 8, 8), {"mean": [1, 2]}, "preprocess.image.mean"),
        ("float", ("N", 3, 8, 8), {"std": [1, 2]}, "preprocess.image.std"),
        ("int64", ("N", 3, 8, 8), {"scale": 0.5}, "preprocess.image:"),
        ("bool", ("N", 3, 8, 8), {}, "preprocess.image:"),
        ("int8", ("N", 3, 8, 8), {}, "preprocess.image:"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused(kind: str, shape: Any, image: Any, key: str) -> None:
    """A mismatch between configuration and model is one sentence that names the setting."""
    with pytest.raises(ConfigError, match=f"^{key}"):
        Decoding("image", {"x": (kind, shape)}, preprocess={"image": image})


def test_a_model_of_two_inputs_needs_to_be_told() -> None:
    """One picture does not say which input it is for."""
    with pytest.raises(ConfigError, match=r"^input\.format: .*preprocess\.inputs"):
        Decoding("image", {"a": ("float", ("N", 3, 8, 8)), "b": ("float", ("N", 3, 8, 8))})


def test_a_png_that_moves_is_its_still_picture() -> None:
    """Of an animated PNG the picture that any viewer shows is decoded; its frames and texts never reach the decoder."""
    moving = cv2.Animation()
    moving.frames, moving.durations = [NOISE[..., ::-1].copy(), np.zeros_like(NOISE)], [10, 20]
    animated = cv2.imencodeanimation(".png", moving)[1].tobytes()
    text = chunk(b"zTXt", b"k\0\0" + zlib.compress(b"a" * 1000))
    decoding = Decoding("image", {"x": ("uint8", ["N", 48, 64, 3])})
    np.testing.assert_array_equal(decoding.item(animated), NOISE)
    np.testing.assert_array_equal(decoding.item(animated[:33] + text + animated[33:]), NOISE)
