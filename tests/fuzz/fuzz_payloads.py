"""Fuzz targets of payloads: filters, the header of an encrypted value, structured events."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

import zstandard

from worker.batch import Headers
from worker.errors import Reject
from worker.payload import Making, make_filter
from worker.payload.aes_gcm import AesGcm
from worker.payload.headers import ENCRYPTION
from worker.payload.keys import Keys
from worker.payload.opening import Opening
from worker.settings.encryption import EncryptionSettings

AT_MOST = 1 << 20
"""What a value may have unwrapped here: small enough to see a bomb."""
REASONS = {"undecodable", "invalid", "too_large"}
TOPIC = "in"
KEYS = Keys(EncryptionSettings(keys={"a": base64.b64encode(bytes(32)).decode()}, use="a"))
COMPRESSORS = [make_filter(name, "input.unwrap", None) for name in ("gzip", "zstd")]
CIPHER = AesGcm(Making("aes-256-gcm", "input.unwrap", KEYS))
OPENING = Opening(None, AT_MOST)
EVENT: Headers = [("content-type", b"application/cloudevents+json")]


def check_filter(data: bytes) -> None:
    """gzip and zstd: what comes out is within the bound told before; anything else is a rejection that is meant."""
    for one in COMPRESSORS:
        bound = meant(lambda one=one: one.bound(data, AT_MOST))
        if bound is None:
            continue
        assert 0 <= bound <= AT_MOST
        assert bound <= one.bound_of(len(data))
        inside = meant(lambda one=one, bound=bound: one.unwrap(data, [], TOPIC, bound))
        assert inside is None or len(inside) <= bound


def check_encrypted(data: bytes) -> None:
    """A header and a value, parted by a newline: nothing but what was encrypted here can be read."""
    header, _, value = data.partition(b"\n")
    inside = meant(lambda: CIPHER.unwrap(value, [(ENCRYPTION, header)], TOPIC, AT_MOST))
    assert inside in (None, b"plain"), "a value that nobody encrypted was read"


def check_event(data: bytes) -> None:
    """A structured event opens to bytes and headers of text, as many attributes as it has, or is refused."""
    found = meant(lambda: OPENING.open(data, EVENT, TOPIC))
    if found is None:
        return
    value, headers = found
    assert isinstance(value, bytes)
    event = json.loads(data)
    assert {f"ce_{name}" for name in ("id", "source", "type", "specversion")} <= {name for name, _ in headers}
    for name, text in headers:
        assert isinstance(text, bytes)
        assert text.decode() is not None
        assert name == "content-type" or name[3:] in event


def meant(call: Any) -> Any:
    """What a call gives; None if it refuses the record for a known reason."""
    try:
        return call()
    except Reject as error:
        if error.reason not in REASONS:
            raise
        return None


def encrypted() -> bytes:
    seal, headers = CIPHER.wrapper(TOPIC)
    return (headers[0][1] or b"") + b"\n" + seal(b"plain")


FILTER_SEEDS = [
    gzip.compress(b"abc" * 100, mtime=0),
    gzip.compress(b"", mtime=0) * 3,
    gzip.compress(bytes(1 << 22), mtime=0),
    zstandard.ZstdCompressor().compress(b"abc" * 100),
    zstandard.ZstdCompressor(write_content_size=False).compress(b"abc" * 100),
    zstandard.ZstdCompressor(write_checksum=True).compress(bytes(1 << 22)) * 2,
    b"\x50\x2a\x4d\x18\x02\x00\x00\x00ab" + zstandard.ZstdCompressor().compress(b"x"),
]
EVENTS = [
    {"specversion": "1.0", "id": "1", "source": "/a", "type": "t", "data": {"features": [1, 2.5]}},
    {"specversion": "1.0", "id": "1", "source": "/a", "type": "t", "data_base64": "YWJj", "n": 7, "b": True},
    {
        "specversion": "1.0",
        "id": "é",
        "source": "/a",
        "type": "t",
        "data": "x",
        "datacontenttype": "text/json",
    },
]
EVENT_TOKENS = [
    b'"data"',
    b'"data_base64"',
    b"null",
    b"[",
    b"{",
    b'"datacontenttype":"application/json"',
    b"\\ud800",
]
