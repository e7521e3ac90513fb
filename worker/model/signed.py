"""Signatures of model versions: ``model.sig``, a bundle of OpenSSF model signing (https://github.com/ossf/model-signing-spec).

The bundle is Sigstore's JSON with a DSSE envelope (https://github.com/secure-systems-lab/dsse) around an in-toto statement
(https://in-toto.io/Statement/v1) that lists the SHA-256 of each file. Only signatures by a key are verified here, not those by
a certificate or an identity: they need services that a worker may not reach.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from pathlib import Path
from typing import Any

import orjson

from worker import extras
from worker.errors import ConfigError, StartError
from worker.filesystem import read_bytes

SIGNATURE, SUM = "model.sig", "model.sha256"
NOT_SIGNED = frozenset({SIGNATURE, SUM})
"""Files of a version that its signature need not cover: itself, and the checksum, which may be written after it."""
MOST_BYTES = 16 << 20
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT, PREDICATE = "https://in-toto.io/Statement/v1", "https://model_signing/signature/v1.0"
_HASHES = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}
"""By curve: what the format signs with."""


class PublicKey:
    """The key that versions must be signed with.

    Args:
        path: a PEM file with an elliptic-curve public key (P-256, P-384 or P-521).
        key: the setting that names it, for an error's sentence.

    Raises:
        ConfigError: the package cryptography is not installed, or the file holds no such key.
    """

    def __init__(self, path: Path, key: str = "model.signature.public_key") -> None:
        why = key.rpartition(".")[0]
        serialization = extras.load("cryptography.hazmat.primitives.serialization", extra="signing", why=why)
        self._ec = extras.load("cryptography.hazmat.primitives.asymmetric.ec", extra="signing", why=why)
        hashes = extras.load("cryptography.hazmat.primitives.hashes", extra="signing", why=why)
        self._invalid = extras.load("cryptography.exceptions", extra="signing", why=why).InvalidSignature
        try:
            self._key = serialization.load_pem_public_key(read_bytes(path))
        except OSError as error:
            raise ConfigError(f"{key}: {path} cannot be read: {error.strerror}") from None
        except Exception:  # the library has many; none of their texts helps
            self._key = None
        name = _HASHES.get(getattr(getattr(self._key, "curve", None), "name", ""))
        if name is None:
            raise ConfigError(
                f"{key}: {path} holds no public key for model signatures; "
                "expected PEM with an elliptic-curve key (P-256, P-384 or P-521)"
            )
        self._hash = getattr(hashes, name)()
        self.path = path

    def check(self, folder: Path) -> int:
        """Verify the signature of a version's files; returns how many it covers.

        Every file below the folder must be in the signature and every file of the signature in the folder; only
        ``model.sig`` and ``model.sha256`` need not be.

        Raises:
            StartError: there is no valid signature by this key, or it is not one of these files.
        """
        path = folder / SIGNATURE
        try:
            with path.open("rb") as stream:
                text = stream.read(MOST_BYTES + 1)
        except FileNotFoundError:
            raise StartError(f"{folder} is not signed: {SIGNATURE} is not there") from None
        except OSError as error:
            raise StartError(f"{path} cannot be read: {error.strerror}") from None
        if len(text) > MOST_BYTES:
            raise StartError(f"{path} has more than {MOST_BYTES >> 20} MiB; expected a model signing bundle")
        try:
            signed = _digests(self._payload(text))
        except _Wrong as error:
            raise StartError(f"{path}: {error}") from None
        return _compare(folder, signed)

    def _payload(self, text: bytes) -> bytes:
        """What the envelope of a bundle holds, once its signature is verified."""
        bundle = _parsed(text)
        try:
            envelope = bundle["dsseEnvelope"]
            payload = base64.b64decode(envelope["payload"], validate=True)
            kind = envelope["payloadType"]
            signatures = [base64.b64decode(each["sig"], validate=True) for each in envelope["signatures"]]
        except (TypeError, KeyError, ValueError, binascii.Error):
            raise _Wrong(
                "expected a Sigstore bundle with a DSSE envelope, as model signing writes it"
            ) from None
        if kind != PAYLOAD_TYPE:
            raise _Wrong(f"its payload is {str(kind)[:80]!r}, expected {PAYLOAD_TYPE}")
        encoded = b"DSSEv1 %d %b %d %b" % (len(kind), kind.encode(), len(payload), payload)
        if not any(self._verifies(signature, encoded) for signature in signatures):
            raise _Wrong(f"no signature in it is by the key {self.path}")
        return payload

    def _verifies(self, signature: bytes, message: bytes) -> bool:
        try:
            self._key.verify(signature, message, self._ec.ECDSA(self._hash))
        except self._invalid:
            return False
        return True


class _Wrong(Exception):
    """Why a bundle is no signature of a model."""


def _parsed(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise _Wrong(f"it is not JSON: {error}") from None


def _digests(payload: bytes) -> dict[str, str]:
    """File -> SHA-256 of a statement whose signature is verified."""
    statement = _parsed(payload)
    try:
        if (statement["_type"], statement["predicateType"]) != (STATEMENT, PREDICATE):
            raise _Wrong(
                f"it states {str(statement['predicateType'])[:80]!r}, expected {PREDICATE} (model-signing 1.0 or later)"
            )
        resources = statement["predicate"]["resources"]
        found = {each["name"]: each["digest"].lower() for each in resources}
        kinds = {each["algorithm"] for each in resources}
        (subject,) = statement["subject"]
        root = hashlib.sha256(b"".join(bytes.fromhex(each["digest"]) for each in resources)).hexdigest()
        consistent = subject["digest"]["sha256"] == root
    except (TypeError, KeyError, ValueError, AttributeError):
        raise _Wrong("its statement is not that of model signing 1.0") from None
    if kinds - {"sha256"}:
        raise _Wrong("its files have other digests; expected sha256 of each file (not of parts of files)")
    if not consistent:
        raise _Wrong("its digest of all files is not that of the files that it lists")
    return found


def _compare(folder: Path, signed: dict[str, str]) -> int:
    """Compare the files of a version with those that were signed; returns how many there are."""
    try:
        there = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not path.is_dir()}
        for name, path in sorted(there.items()):
            if name in NOT_SIGNED:
                continue
            if name not in signed:
                raise StartError(
                    f"{folder}: {name} is not in the signature; expected every file to be signed"
                )
            with path.open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != signed[name]:
                    raise StartError(f"{folder}: {name} is not the file that was signed")
    except OSError as error:
        raise StartError(f"{folder}: {error.filename} cannot be read: {error.strerror}") from None
    if missing := sorted(signed.keys() - there.keys()):
        raise StartError(f"{folder}: {missing[0]} is in the signature and not in the folder")
    return len(signed)
