"""AES-256-GCM under a key that is derived from a configured one, for each process and hour.

The form of a value and of header ``streaminfer.encryption`` is this project's own: there is no standard for Kafka. The
parts are: HKDF with SHA-256 (RFC 5869), AES-256 in Galois/Counter Mode (NIST SP 800-38D) with a nonce of 12 bytes before
and a tag of 16 bytes behind the ciphertext.
"""

from __future__ import annotations

import base64
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from worker import extras
from worker.batch import Headers
from worker.errors import ConfigError, Reject
from worker.payload import Making
from worker.payload.headers import ENCRYPTION, last
from worker.payload.keys import Ring
from worker.settings.encryption import KEY_BYTES

NONCE_BYTES, TAG_BYTES, SALT_BYTES = 12, 16, 16
INFO = b"streaminfer"
SALT_S = 3600.0
"""A process takes a new salt so often, which bounds the random nonces under one key."""
_DERIVED_MAX = 4096
"""Derived keys that are kept: of so many processes and hours."""
_HEADER = re.compile(rb"v1;alg=A256GCM;kid=([A-Za-z0-9._-]{1,64});salt=([A-Za-z0-9_-]{22})(?:==)?")


class AesGcm:
    """AES-256-GCM with the keys of `encryption`, bound to the topic; header `streaminfer.encryption` names the key."""

    encoding = None
    exact = True

    def __init__(self, making: Making) -> None:
        if making.keys is None:
            raise ConfigError(f"{making.setting}: aes-256-gcm needs encryption.keys")
        self._library: Any = extras.load(
            "cryptography.hazmat.primitives.ciphers.aead",
            extra="encryption",
            why=f"{making.setting}: aes-256-gcm",
        )
        self._keys = making.keys
        self._derived: tuple[Ring, dict[bytes, Any]] = (self._keys.ring, {})
        """The ring, and by value of the header the cipher under the key that it leads to."""
        self._sealing: _Sealing | None = None
        self._lock = threading.Lock()

    def bound(self, value: bytes, at_most: int) -> int:
        inside = self.bound_of(len(value))
        if inside > at_most:
            raise Reject(
                f"the encrypted value has {inside} bytes inside, expected at most {at_most} (input.max_unwrapped_bytes)",
                "too_large",
            )
        return inside

    def bound_of(self, nbytes: int) -> int:
        return max(0, nbytes - NONCE_BYTES - TAG_BYTES)

    def unwrap(self, value: bytes, headers: Headers, topic: str, at_most: int) -> bytes:
        """See :class:`worker.payload.Filter`."""
        if len(value) - NONCE_BYTES - TAG_BYTES > at_most:
            self.bound(value, at_most)
        header = last(headers, ENCRYPTION)
        if header is None:
            raise Reject(f"header {ENCRYPTION} is missing: the record is not encrypted", "undecodable")
        if len(value) < NONCE_BYTES + TAG_BYTES:
            raise Reject("the encrypted value ends early", "undecodable")
        cipher = self._cipher(header)
        inside = memoryview(value)
        try:
            plain: bytes = cipher.decrypt(
                value[:NONCE_BYTES], inside[NONCE_BYTES:], associated_data(header, topic)
            )
        except Exception:  # the library's InvalidTag says nothing, and neither must we
            raise Reject(
                "the record cannot be decrypted: the key, the topic, the header or the value is another one",
                "undecodable",
            ) from None
        return plain

    def wrapper(self, topic: str) -> tuple[Callable[[bytes], bytes], Headers]:
        """What encrypts for this topic now: under a salt of this process and hour, with a random nonce each time."""
        sealing = self._seal()
        encrypt, data = sealing.cipher.encrypt, associated_data(sealing.header, topic)

        def seal(value: bytes) -> bytes:
            nonce = os.urandom(NONCE_BYTES)
            sealed: bytes = nonce + encrypt(nonce, value, data)
            return sealed

        return seal, [(ENCRYPTION, sealing.header)]

    def _cipher(self, header: bytes) -> Any:
        """The cipher that the header of a record leads to."""
        ring, derived = self._derived
        if ring is not self._keys.ring:
            ring, derived = self._derived = self._keys.ring, {}
        found = derived.get(header)
        if found is None:
            parsed = _HEADER.fullmatch(header)
            if parsed is None:
                raise Reject(
                    f"header {ENCRYPTION} has another form; expected v1;alg=A256GCM;kid=<id>;salt=<16 bytes, base64url>",
                    "undecodable",
                )
            kid = parsed[1].decode()
            if kid not in ring.keys:
                raise Reject(
                    f"the record is encrypted under key {kid}, which is not in encryption.keys", "undecodable"
                )
            found = self._library.AESGCM(derive(ring.keys[kid], base64.urlsafe_b64decode(parsed[2] + b"==")))
            if len(derived) >= _DERIVED_MAX:
                derived.clear()
            derived[header] = found
        return found

    def _seal(self) -> _Sealing:
        ring = self._keys.ring
        with self._lock:
            sealing = self._sealing
            if sealing is None or sealing.ring is not ring or time.monotonic() >= sealing.until_s:
                kid = ring.use or next(iter(ring.keys))  # a worker that encrypts has a configured one
                salt = os.urandom(SALT_BYTES)
                sealing = self._sealing = _Sealing(
                    ring,
                    header_of(kid, salt),
                    self._library.AESGCM(derive(ring.keys[kid], salt)),
                    time.monotonic() + SALT_S,
                )
            return sealing


@dataclass(frozen=True, slots=True, repr=False)
class _Sealing:
    """How this process encrypts for a while."""

    ring: Ring
    header: bytes
    cipher: Any
    until_s: float


def header_of(kid: str, salt: bytes) -> bytes:
    """The value of header ``streaminfer.encryption``."""
    text = base64.urlsafe_b64encode(salt).rstrip(b"=")
    return b"v1;alg=A256GCM;kid=%b;salt=%b" % (kid.encode(), text)


def associated_data(header: bytes, topic: str) -> bytes:
    """What the tag covers beside the value: the header's value, a newline and the topic's name."""
    return header + b"\n" + topic.encode()


def derive(key: bytes, salt: bytes) -> bytes:
    """The data key: HKDF with SHA-256 (RFC 5869) of a configured key, 32 bytes."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    derived: bytes = HKDF(SHA256(), KEY_BYTES, salt, INFO).derive(key)
    return derived
