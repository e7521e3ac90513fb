"""Signatures of model versions: what the reference library signed is accepted, and everything else is one sentence.

``tests/signed`` holds a folder that model-signing 1.1.1 signed, and the public key; the private key is gone.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from worker import extras
from worker.errors import ConfigError, StartError
from worker.model.signed import PublicKey
from worker.serving.load import load
from worker.serving.loader import Loader, Refusal, Swap
from worker.serving.versions import resolved
from worker.settings import validate

SIGNED = Path(__file__).parent.parent / "signed"
KEY = SIGNED / "key.pub"

pytest.importorskip("cryptography", reason="the extra signing is not installed")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A signed version that may be changed."""
    return Path(shutil.copytree(SIGNED / "version", tmp_path / "1"))


def test_what_the_reference_library_signed_is_accepted(folder: Path) -> None:
    """A bundle of the package model-signing verifies; a checksum that was written after it does no harm."""
    (folder / "model.sha256").write_text("written later")
    assert PublicKey(KEY).check(folder) == 3


def bundle(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Write the signature anew with another content."""
    document = json.loads((folder / "model.sig").read_bytes())
    change(document)
    (folder / "model.sig").write_text(json.dumps(document))


def statement(document: dict[str, Any], change: Callable[[dict[str, Any]], None]) -> None:
    """Change what was signed, without a signature of it."""
    envelope = document["dsseEnvelope"]
    payload = json.loads(base64.b64decode(envelope["payload"]))
    change(payload)
    envelope["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()


def forged(folder: Path) -> None:
    bundle(folder, lambda document: statement(document, lambda payload: payload["predicate"].clear()))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda folder: (folder / "model.sig").unlink(), "is not signed: model.sig is not there"),
        (lambda folder: (folder / "model.sig").write_text("no"), "it is not JSON"),
        (lambda folder: (folder / "model.sig").write_text("[]"), "expected a Sigstore bundle"),
        (
            lambda folder: (folder / "labels.txt").write_text("cat\nfox\n"),
            "labels.txt is not the file that was",
        ),
        (lambda folder: (folder / "more.bin").touch(), "more.bin is not in the signature"),
        (
            lambda folder: (folder / "sub" / "weights.bin").unlink(),
            "sub/weights.bin is in the signature and not",
        ),
        (forged, "no signature in it is by the key"),
        (
            lambda folder: bundle(folder, lambda d: d["dsseEnvelope"].update(payloadType="text/plain")),
            "its payload is 'text/plain'",
        ),
        (
            lambda folder: bundle(folder, lambda d: d["dsseEnvelope"].update(signatures=[])),
            "no signature in it is by the key",
        ),
    ],
)
def test_what_was_not_signed_is_refused(folder: Path, spoil: Callable[[Path], Any], sentence: str) -> None:
    """A file that was changed, added or removed, a forged statement, or no bundle at all is one sentence."""
    spoil(folder)
    with pytest.raises(StartError, match=sentence):
        PublicKey(KEY).check(folder)


def test_another_key_does_not_verify(folder: Path, tmp_path: Path) -> None:
    """A signature by somebody else is refused, with the name of the key that was expected."""
    other = new_key(tmp_path, "P-256")
    with pytest.raises(StartError, match=r"no signature in it is by the key .*other\.pub"):
        PublicKey(other).check(folder)


def new_key(folder: Path, curve: str) -> Path:
    """A pair of keys; returns the public one."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec

    kind = {"P-256": ec.SECP256R1, "P-384": ec.SECP384R1, "P-521": ec.SECP521R1}[curve]
    private = ec.generate_private_key(kind())
    (folder / "other.pem").write_bytes(
        private.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    )
    public = folder / "other.pub"
    public.write_bytes(
        private.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    )
    return public


def test_a_key_that_is_none_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that is missing, or is no elliptic-curve key, and a package that is not installed end a start with one sentence."""
    with pytest.raises(ConfigError, match=r"model.signature.public_key: .*nothing.pub cannot be read"):
        PublicKey(tmp_path / "nothing.pub")
    (tmp_path / "other.pub").write_text("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")
    with pytest.raises(ConfigError, match="holds no public key for model signatures"):
        PublicKey(tmp_path / "other.pub")

    def missing(*_args: Any, **_more: Any) -> Any:
        raise ConfigError("model.signature needs cryptography: pip install 'streaminfer[signing]'")

    monkeypatch.setattr(extras, "load", missing)
    with pytest.raises(ConfigError, match=r"streaminfer\[signing\]"):
        PublicKey(KEY)


def test_a_version_without_its_signature_is_refused(tmp_path: Path) -> None:
    """Beside a running version an unsigned one is refused with the reason ``unsigned``; at a start it is one sentence."""
    versions = tmp_path / "models" / "digits"
    shutil.copytree(SIGNED / "version", versions / "1")
    settings = validate(
        {
            "input": {"topics": ["in"], "format": "json"},
            "model": {
                "repository": "models",
                "name": "digits",
                "poll_s": 1e-9,
                "signature": {"public_key": str(KEY)},
            },
            "output": {"topic": "out"},
            "dead_letter": {"topic": "dead"},
            "kafka": {"bootstrap.servers": "localhost:9", "group.id": "g"},
        },
        tmp_path,
    )
    with_files, found = resolved(settings)
    took: dict[str, int] = {}
    rollouts = load(with_files, took)
    loader = Loader(settings, rollouts, {"digits": (found["digits"], took["digits"])})
    for version in ("2", "3"):
        folder = Path(shutil.copytree(SIGNED / "version", versions / version))
        if version == "2":
            (folder / "labels.txt").write_text("cat\nfox\n")
        digest = sha256sum(folder, "model.onnx", "labels.txt")
        (folder / "model.sha256").write_text(digest)  # counts at once
        loader.look()
        (event,) = loader.turn()
        if version == "2":
            assert event == Refusal("digits", "unsigned")
            with pytest.raises(StartError, match=r"labels.txt is not the file that was signed"):
                resolved(settings)
        else:
            assert isinstance(event, Swap)


def sha256sum(folder: Path, *names: str) -> str:
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    return "".join(f"{digest}  {name}\n" for name, digest in digests.items())


@pytest.mark.slow
@pytest.mark.parametrize("curve", ["P-256", "P-384", "P-521"])
def test_every_curve_of_the_reference_library(folder: Path, tmp_path: Path, curve: str) -> None:
    """What the package signs with each of its curves verifies here, and what was changed afterwards does neither here nor there."""
    pytest.importorskip("model_signing", reason="no model-signing: scripts/test --all installs it")
    public = new_key(tmp_path, curve)
    (folder / "model.sig").unlink()
    for command in (
        ["sign", "key", str(folder), "--private_key", str(tmp_path / "other.pem")],
        ["verify", "key", str(folder), "--public_key", str(public)],
    ):
        command += ["--signature", str(folder / "model.sig")]
        subprocess.run([sys.executable, "-m", "model_signing", *command], check=True, capture_output=True)
    assert PublicKey(public).check(folder) == 3
    (folder / "labels.txt").write_text("cat\nfox\n")
    assert subprocess.run([sys.executable, "-m", "model_signing", *command], check=False).returncode != 0
    with pytest.raises(StartError, match=r"labels\.txt"):
        PublicKey(public).check(folder)
