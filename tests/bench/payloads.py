"""Wrapped values for the rows about payloads, and what the libraries alone take to unwrap them."""

from __future__ import annotations

import base64
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from worker.batch import Headers
from worker.payload import make_filter
from worker.payload.aes_gcm import NONCE_BYTES, associated_data, derive
from worker.payload.keys import Keys
from worker.payload.wrapping import Wrapping
from worker.settings.encryption import EncryptionSettings

KEY = bytes(range(32))
ENCRYPTION = {"keys": {"a": base64.b64encode(KEY).decode()}, "use": "a"}


def wrapped(values: Sequence[bytes], wrap: Sequence[str], topic: str) -> tuple[list[bytes], Headers]:
    """The values in their filters, and the headers that they need."""
    keys = Keys(EncryptionSettings.model_validate(ENCRYPTION))
    seal = Wrapping([make_filter(name, "output.wrap", keys) for name in wrap], topic).now()
    needs = (
        seal.headers if "aes-256-gcm" in wrap else []
    )  # without it the setting alone says what is around them
    return [seal(value) for value in values], needs


def library_us(values: Sequence[bytes], name: str) -> float:
    """CPU microseconds for each value of the library's own call."""
    packed, headers = wrapped(values, [name], "in")
    calls: dict[str, Callable[[], Callable[[bytes], Any]]] = {
        "gzip": lambda: lambda value: zlib.decompress(value, 31),
        "zstd": lambda: zstandard.ZstdDecompressor().decompress,
        "aes-256-gcm": lambda: _decrypt(headers),
    }
    call = calls[name]()
    best = float("inf")
    for _ in range(5):
        began = time.process_time()
        for value in packed:
            call(value)
        best = min(best, time.process_time() - began)
    return best * 1e6 / len(packed)


def _decrypt(headers: Headers) -> Callable[[bytes], bytes]:
    header = headers[0][1] or b""
    salt = base64.urlsafe_b64decode(header.rpartition(b"salt=")[2] + b"==")
    cipher, data = AESGCM(derive(KEY, salt)), associated_data(header, "in")
    return lambda value: cipher.decrypt(value[:NONCE_BYTES], value[NONCE_BYTES:], data)
