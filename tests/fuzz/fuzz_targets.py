"""What is fuzzed: each target takes any bytes and says what must hold of them.

A decoder must answer every record with arrays or a rejection it meant to make. `decode_each` turns any exception
into a rejection, so that a surprise costs one record only; here a surprise is a finding.
"""

from __future__ import annotations

import atexit
import base64
import functools
import io
import json
import math
import os
import posixpath
import sys
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import cv2
import numpy as np
import orjson

sys.path.append(str(Path(__file__).parent.parent))
sys.path.append(str(Path(__file__).parent.parent / "unit"))
sys.path.append(str(Path(__file__).parent.parent))

import fuzz_registry
from clips import moving, write_clip
from decode_support import Decoding
from encode_support import batch_of, encode, make_encoder
from fuzz_payloads import (
    EVENT_TOKENS,
    EVENTS,
    FILTER_SEEDS,
    check_encrypted,
    check_event,
    check_filter,
    encrypted,
)
from sound_targets import SOUND_TOKENS, check_sound, sound_seeds
from vision_targets import check_vision

from worker import native
from worker.batch import CONTENT_LENGTH, Columns, Feed, Headers, Partition
from worker.dead_letters.compose import CONNECT, KEY_ADDED, OURS, TIMESTAMP, TRIMMED, compose
from worker.dead_letters.read import Letter, original
from worker.encode import Encoder
from worker.encode.json import JsonEncoder
from worker.encode.oip import OipEncoder
from worker.errors import ConfigError, Reject, Rejection
from worker.features.picture_header import peek
from worker.loop.series import Marks, with_marks
from worker.settings import load
from worker.stores.allow import Allowed
from worker.text import MESSAGE_BYTES_MAX

MEANT = "worker.errors.Reject"
REASONS = {"undecodable", "invalid", "too_large", "too_many_pixels"}
PIXELS = 1_000_000
"""``limits.image_pixels`` here: what a decode may allocate stays small enough to see a bomb."""
RECORD = b"\x1e"
"""Between the records of one batch, where a target takes several."""


@dataclass(frozen=True)
class Target:
    """One thing to fuzz.

    Args:
        check: raises whatever is a finding.
        seeds: inputs to start from, good and bad.
        tokens: what the format is made of, to be put anywhere.
        repair: makes checksums right again, without which a decoder looks no further.
    """

    check: Callable[[bytes], None]
    seeds: Sequence[bytes]
    tokens: Sequence[bytes] = ()
    repair: Callable[[bytes], bytes] | None = None


# -- pictures -------------------------------------------------------------------------------------------

IMAGES = [
    Decoding(
        "image",
        {"x": ("float", ["N", 3, 8, 8])},
        limits={"image_pixels": PIXELS},
        preprocess={"image": {"resize": "letterbox", "scale": 0.5, "mean": [1, 2, 3]}},
    ),
    Decoding(
        "image",
        {"x": ("uint8", ["N", "H", "W", 1])},
        limits={"image_pixels": PIXELS},
        preprocess={"image": {"resize": "none", "color": "gray", "layout": "nhwc", "orientation": "ignore"}},
    ),
    Decoding(
        "image",
        {"x": ("float16", ["N", 3, 6, 9])},
        limits={"image_pixels": PIXELS},
        preprocess={"image": {"resize": "crop", "interpolation": "area", "color": "bgr"}},
    ),
    Decoding(
        "image",
        {"x": ("float", ["N", 3, "H", "W"])},
        limits={"image_pixels": PIXELS, "in_flight_bytes": 32 << 20},
        preprocess={"image": {"size": [12, None], "multiple": 8, "pad_to": [12, 16], "pad_value": 1.5}},
    ),
    Decoding(
        "image",
        {"x": ("uint8", ["N", "H", "W", 3])},
        limits={"image_pixels": PIXELS, "in_flight_bytes": 32 << 20},
        preprocess={"image": {"resize": "fit", "min_side": 16, "max_side": 64, "multiple": 8, "pad": "none"}},
    ),
]


def check_image(data: bytes) -> None:
    """The header reader and the decoder never disagree on the size: it is what keeps bombs out."""
    try:
        header = peek(data)
    except Reject:
        header = None
    for decoding in IMAGES:
        feed = decoding.decode(data)
        if assert_meant(feed):
            continue
        assert header is not None, "decoded without a header"
        geometry = feed.contexts[0]
        assert sorted((geometry.height, geometry.width)) == sorted((header.height, header.width))
        assert header.height * header.width <= PIXELS


CLIPS = [
    Decoding(
        "video",
        {"x": ("uint8", ["N", 16, 16, 3])},
        limits={"image_pixels": PIXELS, "in_flight_bytes": 64 << 20},
        preprocess={"video": {"fps": 5, "max_frames": 40}, "image": {"resize": "letterbox"}},
    ),
    Decoding(
        "video",
        {"x": ("float", ["N", 1, "H", "W"])},
        limits={"image_pixels": PIXELS, "in_flight_bytes": 64 << 20},
        preprocess={"image": {"size": [16, None], "color": "gray", "multiple": 8}},
    ),
]


def check_video(data: bytes) -> None:
    """A clip is items with ascending times, no more of them than its header let be charged; or a rejection that was meant."""
    for decoding in CLIPS:
        feed = decoding.decode(data)
        if assert_meant(feed):
            continue
        item = feed.items[0]
        assert item is not None
        assert item.marks is not None
        times = item.marks["time_s"].tolist()
        assert times == sorted(times)
        assert times[0] == 0
        assert len(times) == item.count == len(item.arrays["x"]) <= 300
        assert decoding.decoder.cost(data) >= item.arrays["x"].nbytes


def video_seeds() -> list[bytes]:
    """Every container, a clip that was written live, pictures that refer to later ones."""
    pictures = moving(12, 16, 32)
    live = {"movflags": "frag_keyframe+empty_moov"}
    return [
        write_clip(pictures, "mp4", "libx264", options={"bf": "3"}),
        write_clip(pictures, "mp4", "libx264", container_options=live),
        write_clip(pictures, "matroska", "libx264"),
        write_clip(pictures, "webm", "libvpx"),
        write_clip(pictures, "avi", "mpeg4"),
    ]


VIDEO_TOKENS = [
    *(b"moov", b"trak", b"mdhd", b"tkhd", b"stsd", b"mvex", b"mehd", b"moof", b"mdat", b"free", b"avc1"),
    *(b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75", b"\x44\x89", b"\xe0", b"\xb0", b"\xba"),
    *(b"LIST", b"hdrl", b"avih", b"movi", b"idx1"),
    *(b"\0" * 4, b"\xff" * 4, b"\0\0\0\x01", b"\x01\xff\xff\xff\xff\xff\xff\xff", b"\x7f\xff\xff\xff"),
]


def image_seeds() -> list[bytes]:
    """Every kind of file, small and not quite, with an orientation, and bombs that are mostly header."""
    random = np.random.default_rng(1)
    noise = random.integers(0, 256, (13, 21, 3), np.uint8)
    smooth = cv2.resize(noise[:3, :4], (40, 30))
    seeds = []
    for pixels in (noise, smooth, noise[..., 0], np.dstack([noise, noise[..., :1]])):
        seeds.append(encoded(".png", pixels))
        seeds.append(encoded(".webp", pixels, cv2.IMWRITE_WEBP_QUALITY, 80))
        seeds.append(encoded(".webp", pixels, cv2.IMWRITE_WEBP_QUALITY, 101))  # above 100: lossless
        if pixels.shape[-1] != 4:
            seeds.append(encoded(".jpg", pixels))
            seeds.append(encoded(".jpg", pixels, cv2.IMWRITE_JPEG_PROGRESSIVE, 1))
            seeds.append(encoded(".jpg", pixels, cv2.IMWRITE_JPEG_RST_INTERVAL, 1))
    seeds.append(encoded(".png", noise.astype(np.uint16) * 257))
    moving = cv2.Animation()
    moving.frames, moving.durations = [noise, noise[::-1].copy()], [10, 20]
    for suffix in (".png", ".webp"):
        seeds.append(cv2.imencodeanimation(suffix, moving)[1].tobytes())
    jpeg = encoded(".jpg", smooth)
    orientation = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    seeds.append(jpeg[:2] + b"\xff\xe1" + (len(orientation) + 2).to_bytes(2, "big") + orientation + jpeg[2:])
    return seeds


def encoded(suffix: str, pixels: Any, *options: int) -> bytes:
    done, data = cv2.imencode(suffix, pixels, list(options))
    assert done
    return data.tobytes()


def repaired(data: bytes) -> bytes:
    """A PNG file whose checksums are right; the last chunk's length too."""
    if not data.startswith(b"\x89PNG"):
        return data
    parts, position = [data[:8]], 8
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        length = min(length, len(data) - position - 12)
        body = data[position + 4 : position + 8 + length]
        parts.append(length.to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big"))
        position += 12 + length
    return b"".join(parts)


IMAGE_TOKENS = [
    *(bytes((0xFF, marker)) for marker in (0xC0, 0xC1, 0xC2, 0xC4, 0xD0, 0xD8, 0xD9, 0xDA, 0xDB, 0xDD, 0xE1)),
    *(b"IHDR", b"IDAT", b"IEND", b"PLTE", b"tRNS", b"acTL", b"fcTL", b"fdAT", b"eXIf", b"iCCP"),
    *(b"VP8 ", b"VP8L", b"VP8X", b"ANIM", b"ANMF", b"ALPH", b"EXIF", b"\x9d\x01\x2a"),
    *(b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\xff\x3f", b"\0\x01"),
]

# -- bytes ----------------------------------------------------------------------------------------------

BYTES = [
    Decoding(
        "bytes",
        {"x": ("int32", ["N", 16])},
        preprocess={"bytes": {"pad": 256, "head_tail": True, "strip": True}},
    ),
    Decoding(
        "bytes", {"x": ("uint8", ["N", "L"])}, preprocess={"bytes": {"length": 5, "strip": True, "block": 5}}
    ),
]


def check_bytes(data: bytes) -> None:
    """Every file has an item, of its own bytes in their order and of padding."""
    both, short = (decoding.decode(data) for decoding in BYTES)
    assert not both.rejected
    assert not short.rejected
    assert both.arrays is not None
    item = both.arrays["x"][0].tolist()
    head, tail = data[:4096].lstrip()[:8], data[-4096:].rstrip()[-8:]
    assert item == [*head, *[256] * (8 - len(head)), *[256] * (8 - len(tail)), *tail]
    assert short.items[0] is not None
    begin = data[:5].lstrip()
    assert short.items[0].arrays["x"].tolist() == [[*begin, *[0] * (5 - len(begin))]]


# -- windows --------------------------------------------------------------------------------------------


def check_marks(data: bytes) -> None:
    """No metadata beside a committed position makes reading it raise; what is read is written as it was."""
    text = data.decode("latin-1")
    try:
        marks = Marks.parse(text)
    except ValueError:
        raise AssertionError("metadata that cannot be read") from None
    if marks is not None:
        assert Marks.parse(with_marks("", marks)) == marks
        assert list(marks.offsets) == sorted(marks.offsets)


# -- JSON -----------------------------------------------------------------------------------------------

FEATURES = [
    Decoding("json", {"x": (kind, ["N", 3])})
    for kind in ("float", "double", "float16", "int64", "uint64", "uint8", "int8")
]
FEATURES += [
    Decoding("json", {"x": ("float", ["N", 2, 2])}, preprocess={"numeric": {"mean": 1, "std": 2}}),
    Decoding("json", {"a": ("float", ["N", 2]), "b": ("int64", ["N", 1])}),
]
NAMED = [
    Decoding("json", {"x": ("float", ["N", 3])}, fields=["a", "b", "c"]),
    Decoding("json", {"x": ("int32", ["N", 2])}, fields=["b", "a"]),
    Decoding("json", {"x": ("float", ["N"])}),
    Decoding("json", {"a": ("float", ["N"]), "features": ("double", ["N", 3])}),
    Decoding("json", {"x": ("float", ["N", 3])}, fields=["a.b", "c[0].b", "c[1]"]),
    Decoding("json", {"x": ("int64", ["N", 2])}, fields=["b", '"a.b".c']),
    Decoding(
        "json",
        {"x": ("float", ["N", 2]), "k": ("int64", ["N", 1])},
        preprocess={"inputs": {"x": {"from": "a.features"}, "k": {"constant": 7}}},
    ),
]
OTHER_JSON = [
    Decoding(
        "json", {"x": ("float", ["N", 2])}, fields=["c[-1].b", {"from": "a.b", "default": 3}], missing="nan"
    ),
    Decoding("json", {"x": ("int32", ["N", 8])}, preprocess={"inputs": {"x": {"from": "a.b", "bytes": {}}}}),
    Decoding("json", {"x": ("float", [])}, batchable=False),
    Decoding("json", {"x": ("float", ["N", "L", 2])}),
    Decoding("json", {"x": ("string", ["N", 2])}),
    Decoding("json", {"x": ("bool", ["N", "L"])}),
    Decoding(
        "json",
        {"features": ("uint8", ["N", 3, 4, 4]), "a": ("float", ["N", 1])},
        preprocess={
            "inputs": {"features": {"from": "image", "image": {}}, "a": {"from": "a", "numeric": {"mean": 3}}}
        },
        limits={"image_pixels": PIXELS},
    ),
]


def check_json(data: bytes) -> None:
    """The compiled reader and one parse of a whole batch accept what a look at each record does, to the bit."""
    records = data.split(RECORD)[:16]
    for decoding in [*FEATURES, *NAMED]:
        apart = [decode_by(decoding, [record], reader=False, joined=False) for record in records]
        for reader in (True, False):
            agree(decode_by(decoding, records, reader, joined=True), apart)
    for decoding in OTHER_JSON:
        assert_meant(decoding.decode(*records))


def agree(together: Feed, apart: Sequence[Feed]) -> None:
    assert_meant(together)
    assert together.arrays is not None
    for row, feed in enumerate(apart):
        same = (together.rejected.get(row), feed.rejected.get(0))
        assert same[0] == same[1], same
        if same[0] is None:
            assert feed.arrays is not None
            for name, array in together.arrays.items():
                assert array[row].tobytes() == feed.arrays[name][0].tobytes(), (array[row], feed.arrays[name])
                assert array.dtype.kind != "f" or np.isfinite(array[row]).all()


def decode_by(decoding: Decoding, records: Sequence[bytes], reader: bool, joined: bool) -> Feed:
    """The records, by the compiled reader and the joined parse only where these are wanted (and there)."""
    decoder: Any = decoding.decoder
    kept = decoder.reader, decoder.joined
    decoder.reader, decoder.joined = kept[0] if reader else None, kept[1] if joined else None
    try:
        return decoding.decode(*records)
    finally:
        decoder.reader, decoder.joined = kept


def json_seeds() -> list[bytes]:
    picture = base64.b64encode(encoded(".png", np.zeros((4, 4, 3), np.uint8))).decode()
    records = [
        {"features": [1, 2, 3]},
        {"features": [1.5, -2e3, 3]},
        {"features": [[1, 2], [3, 4]]},
        {"features": [1, 2, 3], "other": "text", "more": {"a": None}},
        {"features": [2**63 - 1, 2**64 - 1, -(2**63)]},
        {"features": [255, 0, -1]},
        {"features": [0.1, 1e-320, 1e38]},
        {"features": [True, "2", None]},
        {"features": ["a", "b"]},
        {"features": 7},
        {"a": [1, 2], "b": [3]},
        {"a": 1, "b": 2.5, "c": -3},
        {"features": [True, False]},
        {"image": picture, "a": [1]},
        {"a": {"b": 1}, "c": [{"b": 2}, 3], "b": 4},
        {"a": {"features": [1, 2], "b": None}, "c": [{"b": 2, "x": [{}]}, 3.5]},
        {"a.b": 1, "a": {"b": 2}, "c": [{"b": 2}, 3]},
        {"a.b": {"c": 1}, "b": 2},
        {"a": {"b": picture}},
    ]
    texts = [json.dumps(record).encode() for record in records]
    texts += [b'{"a":{"b":1},"a":{"b":2},"c":[{"b":2},3]}', b'{"a":{"b":1,"b":2},"c":[{"b":2},3]}']
    twice = b'{"features":[1,2,3],"features":7}'
    two = b'{"features":[1,2,3]},{"features":[4,5,6]}'
    # joined, the first two of these are one record, which makes up for two being two
    across = [b'{"features":[1,2,3],"a":[{}', b'{"b":1}]}', two]
    halves = [b'{"features":[1,2', b"3]}", b'{"features":[1e999,1,2]}']
    batches = (texts[:4], [texts[0]] * 3, [texts[0], two, *halves], [texts[0], twice], across, [two, b"{}"])
    return [*texts, *map(RECORD.join, batches)]


JSON_TOKENS = [
    *(b'"c":[', b'{"b":', b'"a.b"', b'"a":{"b":'),
    *(b'"features"', b'"a"', b'"b"', b'"image"', b'"inputs"', b'"feature\\u0073"', b"\\u0000", b"\\ud800"),
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b'"',
        b"\\",
        b"\n",
        RECORD,
        b"},{",
        b"],[",
        b"null",
        b"true",
        b"[]",
    ),
    *(b"1e308", b"1e309", b"-0", b"-0.0", b"0.1", b"1e-400", b"3.4028236e38", b"65504", b"65520"),
    *(b"9007199254740993", b"18446744073709551615", b"18446744073709551616", b"-9223372036854775809", b"1.0"),
]

# -- tensors --------------------------------------------------------------------------------------------

TENSORS = [
    Decoding("tensor", {"x": (kind, ["N", 3])}) for kind in ("float", "int64", "bool", "float16", "uint8")
]


def check_tensor(data: bytes) -> None:
    """A record of the right length is the item; any other is invalid."""
    for decoding in TENSORS:
        spec = decoding.signature.inputs[0]
        feed = decoding.decode(data, data)
        if assert_meant(feed):
            assert len(data) != 3 * spec.dtype.itemsize or spec.dtype == bool
        else:
            assert feed.arrays is not None
            assert feed.arrays["x"][1].tobytes() == data


NPY = [
    Decoding("npy", {"x": ("float", ["N", 3])}),
    Decoding("npy", {"x": ("int64", ["N", "L"])}),
    Decoding("npy", {"x": ("string", ["N", 2])}),
    Decoding("npy", {"x": ("bool", [])}, batchable=False),
]


def check_npy(data: bytes) -> None:
    """What is taken is what numpy itself reads without pickles."""
    for decoding in NPY:
        feed = decoding.decode(data)
        if assert_meant(feed):
            continue
        item = feed.items[0]
        assert item is not None
        (array,) = item.arrays.values()
        expected = np.load(io.BytesIO(data), allow_pickle=False)
        assert array.dtype == decoding.signature.inputs[0].dtype
        np.testing.assert_array_equal(array.reshape(expected.shape), expected)


def npy_seeds() -> list[bytes]:
    arrays = [
        np.arange(3, dtype=np.float32),
        np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        np.arange(6, dtype=">i8").reshape(2, 3),
        np.array(["a", "bä"]),
        np.array(True),
        np.zeros((0, 3), np.float32),
        np.zeros(3, [("a", "f4")]),
    ]
    seeds = []
    for version in ((1, 0), (2, 0), (3, 0)):
        for array in arrays:
            file = io.BytesIO()
            np.lib.format.write_array(file, array, version=version)
            seeds.append(file.getvalue())
    return seeds


NPY_TOKENS = [
    *(
        b"'descr'",
        b"'fortran_order'",
        b"'shape'",
        b"True",
        b"False",
        b"(",
        b")",
        b"()",
        b"(3,)",
        b"-1",
        b"1_0",
    ),
    *(
        b"'<f4'",
        b"'>f4'",
        b"'|O'",
        b"'<U0'",
        b"'|V0'",
        b"'<M8[s]'",
        b"[('a', '<f4')]",
        b"99999999999999999999",
    ),
    *(
        b"1e3",
        b"1j",
        b"{",
        b"}",
        b",",
        b"[",
        b"]",
        b"'",
        b"\\",
        b"#",
        b"\n",
        b"\0",
        b"-",
        b"+" * 50,
        b"(" * 200,
    ),
]

# -- Open Inference Protocol ----------------------------------------------------------------------------

OIP = [
    Decoding("oip", {"x": ("float", ["N", 3])}),
    Decoding("oip", {"a": ("string", ["N", 1]), "b": ("bool", ["N", "L"])}),
    Decoding("oip", {"x": ("int64", ["N", "L", 2]), "a": ("float16", ["N", 2])}, batchable=False),
]


def check_oip(data: bytes) -> None:
    """Tensors that are taken have the model's names, dtypes and shapes; the first two bytes are the JSON's length."""
    length, body = int.from_bytes(data[:2], "little"), data[2:]
    headers: Headers = [(CONTENT_LENGTH, b"%d" % length)] if length else []
    for decoding in OIP:
        feed = decoding.decode(body, headers=[headers])
        if assert_meant(feed):
            continue
        item = feed.items[0]
        assert item is not None
        assert list(item.arrays) == [spec.name for spec in decoding.signature.inputs]
        for spec in decoding.signature.inputs:
            array = item.arrays[spec.name]
            assert array.dtype == spec.dtype
            assert array.ndim == len(spec.shape)
            assert all(d in (None, n) for d, n in zip(spec.shape, array.shape, strict=True))
            assert not decoding.signature.batchable or len(array) == item.count
            if spec.dtype == object:
                assert all(type(text) is str for text in array.ravel())


def oip_seeds() -> list[bytes]:
    def tensor(name: str, datatype: str, shape: list[int], data: Any = None, **parameters: Any) -> Any:
        given = {"data": data} if data is not None else {"parameters": parameters}
        return {"name": name, "datatype": datatype, "shape": shape, **given}

    def request(*inputs: Any, binary: bytes = b"", **more: Any) -> bytes:
        text = json.dumps({"inputs": inputs, **more}).encode()
        return (len(text) if binary else 0).to_bytes(2, "little") + text + binary

    strings = b"\x01\0\0\0a\x02\0\0\0bc"
    return [
        request(tensor("x", "FP32", [1, 3], [1, 2, 3]), id="seven"),
        request(tensor("x", "FP32", [2, 3], [[1, 2, 3], [4, 5, 6]]), outputs=[{"name": "y"}]),
        request(tensor("x", "FP32", [1, 3], binary_data_size=12), binary=b"\0\0\x80\x3f" * 3),
        request(tensor("a", "BYTES", [2, 1], ["p", "q"]), tensor("b", "BOOL", [2, 2], [True] * 4)),
        request(
            tensor("a", "BYTES", [2, 1], binary_data_size=len(strings)),
            tensor("b", "BOOL", [2, 1], binary_data_size=2),
            binary=strings + b"\0\x01",
        ),
        request(
            tensor("x", "INT64", [1, 2, 2], [1, 2, 3, 4]),
            tensor("a", "FP16", [1, 2], binary_data_size=4),
            binary=b"\0\x3c" * 2,
            parameters={"binary_data_output": True},
        ),
        request(tensor("x", "FP32", [0, 3], []), tensor("x", "FP32", [2**40, 3], [1])),
    ]


OIP_TOKENS = [
    *JSON_TOKENS,
    *(b'"name"', b'"shape"', b'"datatype"', b'"data"', b'"parameters"', b'"binary_data_size"', b'"outputs"'),
    *(
        b'"FP32"',
        b'"BYTES"',
        b'"BOOL"',
        b'"x"',
        b"[0]",
        b"-1",
        b"99999999999",
        b"\xff\xff\xff\xff",
        b"\0\0\0\0",
    ),
]


# -- text -----------------------------------------------------------------------------------------------

TOKENS = {"input_ids": ("int64", ["N", "L"]), "attention_mask": ("int64", ["N", "L"])}
TOKENIZER = Path(tempfile.gettempdir()) / f"streaminfer-fuzz-{os.getpid()}.tokenizer.json"
atexit.register(TOKENIZER.unlink, missing_ok=True)
TEXT_LENGTH = 12


@functools.cache
def text_decodings() -> dict[str, Any]:
    """Texts cut at either end, in a record and in a JSON field, and the library's own tokenizers for them."""
    from text_models import by_hand, tokenizer_json

    TOKENIZER.write_text(tokenizer_json(), encoding="utf-8")
    options = {"tokenizer": str(TOKENIZER), "max_length": TEXT_LENGTH}
    found: dict[str, Any] = {"json": Decoding("json", TOKENS, preprocess={"text": {**options, "from": "t"}})}
    for end in ("right", "left"):
        found[end] = Decoding("text", TOKENS, preprocess={"text": {**options, "truncation": end}})
        found[f"{end} by hand"] = by_hand(TOKENIZER)
        found[f"{end} by hand"].enable_truncation(TEXT_LENGTH, direction=end)
    return found


def check_text(data: bytes) -> None:
    """Whatever the bytes are, the tokens are those of the library for that text alone, or the record is refused."""
    records = data.split(RECORD)[:16]
    decodings = text_decodings()
    assert_meant(decodings["json"].decode(*records))
    for end in ("right", "left"):
        feed = decodings[end].decode(*records)
        assert_meant(feed)
        for row, record in enumerate(records):
            try:
                text = record.removeprefix(b"\xef\xbb\xbf").decode()
            except UnicodeDecodeError:
                assert feed.rejected[row].reason == "undecodable"
                continue
            expected = decodings[f"{end} by hand"].encode(text)
            item = feed.items[row]
            assert item is not None
            assert item.arrays["input_ids"][0].tolist() == expected.ids, text
            assert (row in feed.truncated) == bool(expected.overflowing), text


def text_seeds() -> list[bytes]:
    texts = [
        "the quick brown fox",
        "naïve Zoë 日本 😀",
        "",
        " ",
        "a\0b",
        "x" * 300,
        "[SEP] [CLS] ##fox",
        "\u202eשלום",
        "fox " * 90,
    ]
    return [
        *(text.encode() for text in texts),
        b'{"t": "the fox"}',
        b"\xed\xa0\x80",
        RECORD.join([b"the", b"\xff", b"fox"]),
    ]


TEXT_TOKENS = [
    RECORD,
    b"the quick",
    b" ",
    "\u0301".encode(),
    "ß".encode(),
    b"\xef\xbb\xbf",
    b"[MASK]",
    b"\0",
    b'{"t":"',
    b'"}',
]


def assert_meant(feed: Feed) -> bool:
    """Whether any row was rejected; every rejection must be one the decoder meant to make, said in one line."""
    for rejection in feed.rejected.values():
        assert rejection.exception_class_name == MEANT, rejection
        assert rejection.reason in REASONS, rejection
        assert rejection.stage in ("decode", "preprocess"), rejection
        assert len(rejection.message) < 2000, rejection
    if feed.arrays is None:
        for row, item in enumerate(feed.items):
            assert (item is None) == (row in feed.rejected)
    return bool(feed.rejected)


# -- configuration --------------------------------------------------------------------------------------

CONFIG = Path(tempfile.gettempdir()) / f"streaminfer-fuzz-{os.getpid()}.yaml"
atexit.register(CONFIG.unlink, missing_ok=True)
EXAMPLE = b"""\
name: digits
input: {topics: [digits], format: image, max_bytes: 8388608, start: earliest, tombstone: pass}
preprocess:
  image: {size: [28, 28], resize: stretch, color: gray, scale: 0.00392157, mean: [0.0], std: [1.0]}
model: {path: models/digits.onnx, version: 1.10, providers: [cpu], threads: auto, instances: 2}
batching: {max_size: 64, max_wait_ms: 5}
postprocess: {classification: {labels: models/digits.txt, top_k: 3}}
output: {topic: digits.predictions, format: json, headers: trace, create: {partitions: 3}}
dead_letter: {topic: digits.dead-letter, stop_after: {ratio: 0.5, of_last: 1000}}
metrics: {topic: worker.metrics, interval_s: 5, http: "127.0.0.1:9464"}
limits: {in_flight_bytes: 268435456, max_age_ms: null, expired: drop}
kafka: {bootstrap.servers: "localhost:9092", group.id: digits, sasl.password: "${NONE:-x}"}
"""
PIPELINES = b"""\
pipelines:
  a: {input: {topics: [t], format: json}, when: {header: h, equals: a}, model: {path: a.onnx}, output: {topic: o}}
  b: {input: {topics: [t], format: oip}, model: {path: b.onnx}, output: {topic: o, format: oip}}
dead_letter: {topic: d}
kafka: {bootstrap.servers: h:1, group.id: g}
"""
CONFIG_TOKENS = [
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b": ",
        b", ",
        b"\n",
        b"\n  ",
        b"- ",
        b'"',
        b"'",
        b"|",
        b">",
        b"#",
        b"---",
        b"...",
    ),
    *(b"&a ", b"*a", b"<<: *a", b"!!python/object:os.system ", b"!!binary ", b"!!int ", b"? ", b"%YAML 1.1"),
    *(
        b"null",
        b"~",
        b"true",
        b"yes",
        b"0x10",
        b"0o7",
        b"1e3",
        b".inf",
        b".nan",
        b"-1",
        b"1_000",
        b"1" * 5000,
    ),
    *(
        b"${",
        b"${HOME}",
        b"${NONE}",
        b"${NONE:-[1]}",
        b'"\\ud800"',
        b'"\\0"',
        b"\xff",
        b"\xe2\x80\xa8",
        b"\x85",
    ),
    *(b"image", b"json", b"auto", b"raw", b"own:code", b"a.b:c", b"regression", b"detection", b"2001-01-01"),
    *(
        RECORD,
        RECORD + b"a.b=[x]",
        RECORD + b"kafka.a.b=1",
        RECORD + b"input.topics=",
        RECORD + b"limits=null",
    ),
]


def check_config(data: bytes) -> None:
    """A file, and what ``--set`` lays over it, is settings that can be shown, or one line that says why not."""
    file, *overrides = data.split(RECORD)
    CONFIG.write_bytes(file)
    try:
        settings = load(CONFIG, [text.decode(errors="replace") for text in overrides])
    except ConfigError as refused:
        said = str(refused)
    else:
        said = json.dumps(settings.redacted(), ensure_ascii=False)
    assert len(said.encode().splitlines()) == 1, said


# -- dead letters ---------------------------------------------------------------------------------------


def check_letter(data: bytes) -> None:
    """A dead letter is the record with reasons beside it; sent back, it is the record again."""
    key, value, name, message, *pairs = (*data.split(RECORD), b"", b"", b"", b"")
    text = name.decode(errors="replace") or "h"
    headers: Headers = [(text, key), *((pair[:40].decode(errors="replace"), pair) for pair in pairs)]
    columns = Columns([value], [key], [headers], [7], [42], [Partition("topic", 3)])
    said = message.decode(errors="surrogateescape")
    rejection = Rejection("invalid", "decode", said, "a.B", "c.D")
    limit = len(data) + 300 * (len(data) % 7)
    letter = compose(columns, 0, rejection, "pipeline", "client", "model@1", limit)

    added = letter.headers[-12 - 2 * (letter.value is None) :]
    theirs = letter.headers[: len(letter.headers) - len(added)]
    ours = {*OURS, *TRIMMED, TIMESTAMP, KEY_ADDED}
    kept = [pair for pair in headers if pair[0] not in ours and not pair[0].startswith(CONNECT)]
    # what does not fit without its value either loses its own headers, and only then its key
    assert theirs in (kept, []) if letter.value is None else theirs == kept
    assert letter.key == key or (letter.value is None and letter.key is None and not theirs)
    reason = dict(added)[CONNECT + "exception.message"] or b""
    assert len(reason) <= MESSAGE_BYTES_MAX
    assert len(reason.decode().splitlines()) <= 1
    if letter.value is None:
        assert dict(added)[TRIMMED[0]] == str(len(value)).encode()
    else:
        assert letter.value == value
        assert (
            len(key) + len(value) + sum(len(n.encode()) + len(v or b"") for n, v in letter.headers) <= limit
        )

    read = Letter(Partition("dead", 0), 0, 7, letter.key, letter.value, letter.headers)
    assert read.source is not None
    back = original(read, read.source)
    assert (back.key, back.partition, back.offset) == (letter.key, Partition("topic", 3), 42)
    again = [pair for pair in back.headers if pair in headers]
    assert again == [pair for pair in theirs if pair in back.headers]


# -- results --------------------------------------------------------------------------------------------


def check_result(data: bytes) -> None:
    """What a model may give becomes bodies that can be read back, or rejections; the first byte says how many items."""
    count = 1 + (data[0] if data else 0) % 4
    for kind, encoder, shape in ENCODERS:
        outputs = {"y": numbers(data[1:], kind, (count, *shape))}
        outcomes = encode(encoder, batch_of(count), outputs)
        assert (
            in_python(lambda encoder=encoder, outputs=outputs: encode(encoder, batch_of(count), outputs))
            == outcomes
        )
        for row in range(count):
            rejection, body = outcomes.rejected.get(row), outcomes.bodies[row]
            assert (rejection is None) == (body is not None)
            if rejection is not None:
                assert rejection.exception_class_name == MEANT, rejection
                assert rejection.reason in ("non_finite", "model_error"), rejection
            elif isinstance(encoder, JsonEncoder | OipEncoder):
                check_body(body or b"", outputs["y"][row])
            else:
                assert (body or b"").endswith(outputs["y"][row].tobytes())


def in_python(call: Callable[[], Any]) -> Any:
    """What a call gives without the compiled batch path."""
    kept, native.records = native.records, None
    try:
        return call()
    finally:
        native.records = kept


def check_body(body: bytes, sent: Any) -> None:
    """JSON, whose raw outputs read back as the very numbers the model gave."""
    found = orjson.loads(body)
    prediction = found.get("prediction", {})
    assert all(None not in (box["score"], *box["xyxy"]) for box in prediction.get("boxes", ()))
    raw = prediction.get("outputs", {}).get("y")
    if raw is None and "outputs" in found and "data" in found["outputs"][0]:
        raw = found["outputs"][0]["data"]
    if raw is not None:
        np.testing.assert_array_equal(np.array(raw, sent.dtype).reshape(sent.shape), sent)


def numbers(data: bytes, kind: str, shape: tuple[int, ...]) -> Any:
    """An array made of these bytes, repeated."""
    dtype = np.dtype({"float": "f4", "double": "f8", "bool": "u1"}.get(kind, kind))
    wanted = math.prod(shape) * dtype.itemsize
    array = np.frombuffer((data * (wanted // max(len(data), 1) + 1))[:wanted].ljust(wanted, b"\0"), dtype)
    return (array % 2 == 1 if kind == "bool" else array).reshape(shape)


def _encoder(kind: str, shape: tuple[int, ...], **settings: Any) -> tuple[str, Encoder, tuple[int, ...]]:
    return kind, make_encoder({"y": (kind, ["N", *shape])}, **settings), shape


ENCODERS = [
    *(_encoder(kind, (2, 2)) for kind in ("float", "double", "float16", "int64", "uint8", "bool")),
    *(_encoder("float", (5,), postprocess={"classification": {"top_k": 2, "activation": a, "threshold": t}})
      for a, t in (("none", 0), ("softmax", 0.3), ("sigmoid", 0.9))),
    _encoder("float16", (40,), postprocess={"classification": {"top_k": 20}}),
    _encoder("int64", (5,), postprocess={"classification": {"top_k": 5}}),
    _encoder("float", (7, 9), postprocess={"detection": {"layout": "yolov8"}}),
    _encoder("float16", (4, 6), postprocess={"detection": {"layout": "xyxy", "score": 0}}),
    _encoder("double", (4, 6), postprocess={"detection": {"layout": "xyxy"}}, labels=["a", "b"]),
    _encoder("float", (1,), postprocess="regression"),
    _encoder("float", (3,), postprocess={"embedding": {"normalize": True}}),
    _encoder("float16", (3,), postprocess={"embedding": {"normalize": True}}),
    _encoder("float", (2, 2), format="oip"),
    _encoder("float16", (3,), format="tensor"),
    _encoder("double", (), format="npy"),
]  # fmt: skip
FLOATS = [0.0, -0.0, 1.0, 0.5, np.nan, np.inf, -np.inf, 3.4e38, 1e-45, 65504.0, 1e38, 2.0, 9.2e18]
FLOAT_TOKENS = [np.array(f, t).tobytes() for f in FLOATS for t in ("f4", "f8")] + [b"\0\x7c", b"\xff\x7b"]

ALLOWED = Allowed(["s3://frames/", "https://media.example/in/", "http://127.0.0.1:8080/", "file:///data/"])
URL_SEEDS = [
    b"s3://frames/a/b.jpg",
    b"https://Media.Example.:443/in/%61?sig=x",
    b"http://[::ffff:127.0.0.1]:8080/x",
    b"https://media.example/in/../../x",
    b"file:///data/a%20b",
]
URL_TOKENS = [
    *(
        b"%2e",
        b"%2f",
        b"%5c",
        b"%25",
        b"%00",
        b"..",
        b"//",
        b"\\",
        b"@",
        b"#",
        b"?",
        b":",
        b"[",
        b"]",
        b"::1",
        b"xn--",
    ),
    *(
        b"s3://",
        b"https://",
        b"http://",
        b"file://",
        b"127.1",
        b"0x7f",
        b"localhost",
        "\uff0e".encode(),
        "\u3002".encode(),
    ),
]


def check_url(data: bytes) -> None:
    """Any text is refused, or is under the allow list also to another reader of URLs, and to this one again."""
    try:
        url = ALLOWED.checked(data.decode("utf-8", "replace"))
    except Reject:
        return
    text = url.place + url.target
    parts = urlsplit(text)
    places = {"s3": "frames", "https": "media.example", "http": "127.0.0.1", "file": ""}
    assert (parts.hostname or "") == places[parts.scheme], text
    assert parts.username is None, text
    root = {"https": "/in/", "file": "/data/"}.get(parts.scheme, "/")
    assert posixpath.normpath(unquote(parts.path)).startswith(root.rstrip("/") or "/"), text
    assert ALLOWED.checked(text) == url


TARGETS = {
    "image": Target(check_image, image_seeds(), IMAGE_TOKENS, repaired),
    "video": Target(check_video, video_seeds(), VIDEO_TOKENS),
    "sound": Target(check_sound, sound_seeds(), SOUND_TOKENS),
    "bytes": Target(check_bytes, [b"", b" \n a \t", bytes(range(40)), b" " * 9000], [b" ", b"\n", b"\0"]),
    "marks": Target(
        check_marks,
        [
            str(Marks(900, tuple(range(0, 900, 7)))).encode(),
            b"streaminfer;attempts=1;until=3;series=9+3:AQ;",
            b";series=5;",
        ],
        [b";series=", b"+", b":", b"_w", b"gICA", b"\xff"],
    ),
    "json": Target(check_json, json_seeds(), JSON_TOKENS),
    "tensor": Target(check_tensor, [b"", b"\0\x01\x01", bytes(12), bytes(range(24))], FLOAT_TOKENS),
    "npy": Target(check_npy, npy_seeds(), NPY_TOKENS),
    "oip": Target(check_oip, oip_seeds(), OIP_TOKENS),
    "text": Target(check_text, text_seeds(), TEXT_TOKENS),
    "config": Target(check_config, [EXAMPLE, PIPELINES, EXAMPLE + RECORD + b"name=x"], CONFIG_TOKENS),
    "letter": Target(
        check_letter,
        [RECORD.join([b"key", b"value", b"name", b"why\n\xff", b"__connect.errors.stage", b"x" * 3000])],
        [
            RECORD,
            *(name.encode() for name in (*OURS, *TRIMMED, TIMESTAMP, KEY_ADDED)),
            CONNECT.encode() + b"topic",
            b"\n",
            b"\xff",
        ],
    ),
    "vision": Target(
        check_vision,
        [bytes([way]) + bytes(range(0, 256, 7)) for way in range(12)] + [b"\x01" + FLOAT_TOKENS[0] * 9],
        FLOAT_TOKENS,
    ),
    "url": Target(check_url, URL_SEEDS, URL_TOKENS),
    "avro": Target(fuzz_registry.check_avro, fuzz_registry.avro_seeds(), fuzz_registry.AVRO_TOKENS),
    "protobuf": Target(
        fuzz_registry.check_protobuf, fuzz_registry.protobuf_seeds(), fuzz_registry.PROTOBUF_TOKENS
    ),
    "schema": Target(fuzz_registry.check_schema, fuzz_registry.schema_seeds(), fuzz_registry.SCHEMA_TOKENS),
    "filter": Target(check_filter, FILTER_SEEDS, [seed[:18] for seed in FILTER_SEEDS] + [b"\xff" * 4]),
    "encrypted": Target(
        check_encrypted, [encrypted(), b"v1;alg=A256GCM;kid=a;salt=\n"], [b"kid=a", b";", b"=="]
    ),
    "event": Target(check_event, [json.dumps(event).encode() for event in EVENTS], EVENT_TOKENS),
    "result": Target(check_result, [b"\x02" + FLOAT_TOKENS[0] * 3, b"\x01" + bytes(range(50))], FLOAT_TOKENS),
}
