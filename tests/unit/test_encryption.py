"""Encrypted payloads: the form as written down, keys that change while records go on, and nothing told of what is inside."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import models
import pytest
import yaml
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from payload_support import RESULTS, TOPIC, Stream, document, gz, prediction, record

from worker import settings
from worker.batch import Headers
from worker.errors import ConfigError, Reject
from worker.payload import Making
from worker.payload.aes_gcm import SALT_S, AesGcm
from worker.payload.keys import Keys
from worker.settings.encryption import EncryptionSettings

KEYS = {"a": bytes(range(32)), "b": bytes(range(100, 132))}
TEXTS = {name: base64.b64encode(key).decode() for name, key in KEYS.items()}
HEADER = "streaminfer.encryption"
SECRET = b'{"features": [1, 2, 3, "passphrase"]}'


def encrypted(
    value: bytes,
    kid: str = "a",
    topic: str = TOPIC,
    salt: bytes = b"0123456789abcdef",
    nonce: bytes = b"abcdefghijkl",
    key: bytes | None = None,
    padded: bool = False,
) -> tuple[bytes, Headers]:
    """By hand, with the library alone and the words of the documentation."""
    text = base64.urlsafe_b64encode(salt).decode()
    header = f"v1;alg=A256GCM;kid={kid};salt={text if padded else text.rstrip('=')}".encode()
    data_key = HKDF(SHA256(), 32, salt, b"streaminfer").derive(key or KEYS[kid])
    sealed = AESGCM(data_key).encrypt(nonce, value, header + b"\n" + topic.encode())
    return nonce + sealed, [(HEADER, header)]


def decrypted(value: bytes | None, headers: Headers | None, topic: str = RESULTS) -> bytes:
    """By hand, as above."""
    assert value is not None
    header = dict(headers or [])[HEADER]
    assert header is not None
    fields = dict(part.split("=", 1) for part in header.decode().split(";")[1:])
    assert header.startswith(b"v1;")
    assert fields["alg"] == "A256GCM"
    salt = base64.urlsafe_b64decode(fields["salt"] + "==")
    assert len(salt) == 16
    data_key = HKDF(SHA256(), 32, salt, b"streaminfer").derive(KEYS[fields["kid"]])
    return AESGCM(data_key).decrypt(value[:12], value[12:], header + b"\n" + topic.encode())


def stream_of(folder: Path, model: bytes | None = None, use: str | None = None, **sections: Any) -> Stream:
    wrap = {"wrap": ["aes-256-gcm"]} if use else {}
    sections.setdefault("output", wrap)
    stream = Stream(
        folder,
        model,
        **{"input": {"unwrap": ["aes-256-gcm"]}, "encryption": {"keys": TEXTS, "use": use}, **sections},
    )
    stream.wrap = encrypted  # type: ignore[assignment]
    return stream


# -- the form ------------------------------------------------------------------------------------------------------


def test_the_derivation_is_that_of_the_rfc() -> None:
    """HKDF-SHA256 as in RFC 5869, appendix A.1; its info and length differ from ours, so the parts are held to it."""
    from cryptography.hazmat.primitives.hmac import HMAC

    from worker.payload.aes_gcm import derive

    ikm, salt = b"\x0b" * 22, bytes(range(13))
    info = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9")
    okm = HKDF(SHA256(), 42, salt, info).derive(ikm)
    assert okm.hex() == (
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )

    def mac(key: bytes, data: bytes) -> bytes:
        one = HMAC(key, SHA256())
        one.update(data)
        return one.finalize()

    # extract, then the first block of expand: 32 bytes are one block of SHA-256
    assert mac(mac(salt, ikm), info + b"\x01") == okm[:32]
    assert derive(KEYS["a"], salt) == mac(mac(salt, KEYS["a"]), b"streaminfer\x01")


def test_a_recorded_value_is_read(tmp_path: Path) -> None:
    """A value that was made once without any AEAD library is what the form says, and is read."""
    value, headers = encrypted(record(1, 2, 3, 4))
    assert headers == [(HEADER, b"v1;alg=A256GCM;kid=a;salt=MDEyMzQ1Njc4OWFiY2RlZg")]
    assert value.hex() == RECORDED
    assert stream_of(tmp_path).numbers(bytes.fromhex(RECORDED), headers) == [1, 2, 3, 4]


RECORDED = (
    "6162636465666768696a6b6cfdcd93dfdaaa7d8498305134c7de4f"
    "0773ef85ce2cdc7331c38f513d55e5f4712e82035c9cd8a20e6073"
)
"""AES-256-CTR and AES-256-ECB of OpenSSL's command line, HMAC of Python, and GHASH of NIST SP 800-38D written out for it."""


@pytest.mark.parametrize("padded", [False, True])
def test_records_of_two_keys_are_read_together(tmp_path: Path, padded: bool) -> None:
    """The header names the key, and every process its own salt: mixed in one batch, each record is read with its own."""
    sent = [
        encrypted(record(i, 0, 0, 0), "ab"[i % 2], salt=os.urandom(16), nonce=os.urandom(12), padded=padded)
        for i in range(8)
    ]
    outcomes = stream_of(tmp_path).send(*sent)
    assert [prediction(body)[0] for body in outcomes.bodies] == list(range(8))


def test_results_and_errors_are_encrypted(tmp_path: Path) -> None:
    """Every body on the output topic is encrypted for that topic, under the key in use, each with another nonce."""
    stream = stream_of(tmp_path, use="b", output={"wrap": ["gzip", "aes-256-gcm"], "errors": True})
    bad = encrypted(SECRET)
    outcomes = stream.send(encrypted(record(1, 2, 3, 4)), (None, None), bad, encrypted(record(1, 2, 3, 4)))
    headers = outcomes.headers or []
    assert [name for name, _ in headers[0] or []] == ["content-encoding", HEADER]
    assert b";kid=b;" in (dict(headers[0] or [])[HEADER] or b"")
    import gzip

    assert prediction(gzip.decompress(decrypted(outcomes.bodies[0], headers[0]))) == [1, 2, 3, 4]
    assert outcomes.bodies[1] is None
    assert headers[1] is None
    nonces = {(outcomes.bodies[row] or b"")[:12] for row in (0, 3)}
    assert len(nonces) == 2
    body, error_headers = stream.rollout.route.envelope.error(stream.columns, 2, outcomes.rejected[2])
    assert b"error" in gzip.decompress(decrypted(body, error_headers))
    assert stream.columns.values[2] == bad[0]


def test_a_salt_serves_a_process_for_an_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within an hour the header stays the same; then, and in another process, it is another one."""
    now_s = 1000.0
    monkeypatch.setattr("worker.payload.aes_gcm.time.monotonic", lambda: now_s)
    keys = Keys(EncryptionSettings(keys=TEXTS, use="a"))
    one, other = (AesGcm(Making("aes-256-gcm", "output.wrap", keys)) for _ in range(2))
    first = one.wrapper(RESULTS)[1]
    now_s += SALT_S - 1
    assert one.wrapper(RESULTS)[1] == first
    assert other.wrapper(RESULTS)[1] != first
    now_s += 2
    assert one.wrapper(RESULTS)[1] != first


# -- what cannot be read -------------------------------------------------------------------------------------------


def changed(value: bytes, place: int) -> bytes:
    damaged = bytearray(value)
    damaged[place] ^= 1
    return bytes(damaged)


UNREADABLE = {
    "another key under the id": lambda: encrypted(SECRET, key=KEYS["b"]),
    "an unknown id": lambda: (
        encrypted(SECRET)[0],
        [(HEADER, b"v1;alg=A256GCM;kid=zz;salt=MDEyMzQ1Njc4OWFiY2RlZg")],
    ),
    "the other id": lambda: (
        encrypted(SECRET)[0],
        [(HEADER, b"v1;alg=A256GCM;kid=b;salt=MDEyMzQ1Njc4OWFiY2RlZg")],
    ),
    "another salt": lambda: (encrypted(SECRET)[0], encrypted(SECRET, salt=bytes(16))[1]),
    "another topic": lambda: encrypted(SECRET, topic="elsewhere"),
    "a changed tag": lambda: (changed(encrypted(SECRET)[0], -1), encrypted(SECRET)[1]),
    "a changed value": lambda: (changed(encrypted(SECRET)[0], 20), encrypted(SECRET)[1]),
    "a changed nonce": lambda: (changed(encrypted(SECRET)[0], 0), encrypted(SECRET)[1]),
    "padding added": lambda: (encrypted(SECRET)[0], encrypted(SECRET, padded=True)[1]),
    "no header": lambda: (encrypted(SECRET)[0], None),
    "another version": lambda: (
        encrypted(SECRET)[0],
        [(HEADER, b"v2;alg=A256GCM;kid=a;salt=MDEyMzQ1Njc4OWFiY2RlZg")],
    ),
    "another cipher": lambda: (
        encrypted(SECRET)[0],
        [(HEADER, b"v1;alg=A128GCM;kid=a;salt=MDEyMzQ1Njc4OWFiY2RlZg")],
    ),
    "a short salt": lambda: (encrypted(SECRET)[0], [(HEADER, b"v1;alg=A256GCM;kid=a;salt=MDEyMzQ1")]),
    "a null header": lambda: (encrypted(SECRET)[0], [(HEADER, None)]),
    "not encrypted": lambda: (SECRET, encrypted(SECRET)[1]),
    "cut": lambda: (encrypted(SECRET)[0][:30], encrypted(SECRET)[1]),
    "nothing": lambda: (b"", encrypted(SECRET)[1]),
    "unreadable inside": lambda: encrypted(b"passphrase"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_says_nothing_of_the_content(tmp_path: Path, name: str) -> None:
    """Each is undecodable, in one sentence without a word of the content or the keys; the records beside it are answered."""
    value, headers = UNREADABLE[name]()
    stream = stream_of(tmp_path)
    reason, message = stream.refusal(value, headers)
    assert reason == "undecodable"
    for hidden in ("passphrase", *TEXTS.values(), KEYS["a"].hex()):
        assert hidden not in message
    assert stream.columns.values[1] == value


def test_an_encrypted_record_without_the_setting_is_told_apart(tmp_path: Path) -> None:
    """A pipeline without aes-256-gcm names the setting instead of calling the ciphertext broken JSON."""
    reason, message = Stream(tmp_path).refusal(*encrypted(record(1, 2, 3, 4)))
    assert reason == "undecodable"
    assert message == f"the record has header {HEADER}; expected aes-256-gcm in input.unwrap for it"


def quotes(outputs: dict[str, Any]) -> Any:
    """Custom code whose exception repeats what it was given."""
    raise ValueError(f"cannot use {outputs['y'].tolist()} of the passphrase")


def test_an_exception_that_quotes_the_content_is_not_told(tmp_path: Path) -> None:
    """Custom code and the runtime may put values into their messages: of an encrypted record only the class is told."""
    code = "test_encryption:quotes"
    outcomes = stream_of(tmp_path, postprocess=code).send(encrypted(record(1, 2, 3, 4)))
    why = outcomes.rejected[0]
    assert (why.reason, why.stage) == ("model_error", "postprocess")
    assert why.message == "builtins.ValueError; its message is not told, because the record is encrypted"
    plain = Stream(tmp_path, postprocess=code).send((record(1, 2, 3, 4), None)).rejected[0]
    assert plain.message == "cannot use [1.0, 2.0, 3.0, 4.0] of the passphrase"


def test_a_sick_model_does_not_quote_the_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last words of a worker whose model is sick leave out the error of an encrypted record."""
    stream = stream_of(tmp_path, models.raises_on(666.0))
    monkeypatch.setattr(type(stream.rollout.choose().model), "sickness", lambda self: "it answers nonsense")
    stream.send(encrypted(record(666, 0, 0, 0)))
    assert stream.sick == "its warm-up input no longer gives its known output: it answers nonsense"


def test_compressed_inside_encrypted_is_read_and_bounded(tmp_path: Path) -> None:
    """Layers are taken off in the order given; a bomb behind the cipher is too_large."""
    unwrap = {"unwrap": ["aes-256-gcm", "gzip"], "max_unwrapped_bytes": 1 << 20}
    stream = stream_of(tmp_path, input=unwrap)
    stream.wrap = lambda value: encrypted(gz(value))  # type: ignore[method-assign]
    assert stream.numbers(*encrypted(gz(record(1, 2, 3, 4)))) == [1, 2, 3, 4]
    assert stream.cost_bytes <= 4 << 20
    assert stream.refusal(*encrypted(gz(bytes(2 << 20))))[0] == "too_large"


# -- keys ----------------------------------------------------------------------------------------------------------


def test_keys_come_from_files_and_change_while_records_go_on(tmp_path: Path) -> None:
    """Read again, a new key counts from the next record on, old ones as long as they are there; results follow `use`."""
    (tmp_path / "a.key").write_text(TEXTS["a"] + "\n")
    keys = {"a": "file:a.key"}
    stream = stream_of(tmp_path, use="a", encryption={"keys": keys, "use": "a"})
    with pytest.raises(AssertionError):
        stream.numbers(*encrypted(record(1, 2, 3, 4), "b"))

    def configured(**encryption: Any) -> None:
        config = tmp_path / "worker.yaml"
        config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), "encryption": encryption}))
        stream.read_again()

    (tmp_path / "b.key").write_text(TEXTS["b"])
    configured(keys={**keys, "b": "file:b.key"}, use="a")
    both = stream.send(encrypted(record(1, 0, 0, 0), "a"), encrypted(record(2, 0, 0, 0), "b"))
    assert not both.rejected
    assert b";kid=a;" in ((both.headers or [])[0] or [])[0][1]  # type: ignore[operator]
    configured(keys={"b": "file:b.key"}, use="b")
    after = stream.send(encrypted(record(1, 0, 0, 0), "a"), encrypted(record(2, 0, 0, 0), "b"))
    assert after.rejected[0].reason == "undecodable"
    assert prediction(decrypted(after.bodies[1], (after.headers or [])[1])) == [2, 0, 0, 0]


@pytest.mark.parametrize(
    "content", [None, "", "short", base64.b64encode(bytes(31)).decode(), "*" * 44, "é" * 44]
)
def test_a_key_that_is_none_changes_nothing(tmp_path: Path, content: str | None) -> None:
    """A file that is missing or holds no key is one sentence with its name; the keys that were there stay."""
    path = tmp_path / "a.key"
    path.write_text(TEXTS["a"])
    stream = stream_of(tmp_path, encryption={"keys": {"a": "file:a.key"}})
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(
        ConfigError, match=r"^.*encryption\.keys\.a: .*a\.key: (cannot be read|expected 32 bytes)"
    ) as why:
        stream.read_again()
    assert not content or content not in str(why.value)
    assert stream.numbers(*encrypted(record(1, 2, 3, 4))) == [1, 2, 3, 4]


def test_read_again_with_no_key_in_use_is_refused(tmp_path: Path) -> None:
    """A worker that encrypts its results does not begin to send them as they are, and needs a key to use."""
    keys = Keys(EncryptionSettings(keys=TEXTS, use="a"))
    with pytest.raises(ConfigError, match=r"encryption\.use"):
        keys.follow(EncryptionSettings(keys=TEXTS))
    with pytest.raises(ConfigError, match="to be there still"):
        keys.follow(None)


MISTAKES: dict[str, tuple[Any, str]] = {
    "no keys": ({"keys": {}}, r"encryption\.keys: expected something that is not empty"),
    "a short key": ({"keys": {"a": "c2hvcnQ="}}, r"encryption\.keys\.a: expected 32 bytes in base64"),
    "no base64": ({"keys": {"a": "a key that is none"}}, r"encryption\.keys\.a: expected 32 bytes in base64"),
    "a list": ({"keys": {"a": [TEXTS["a"]]}}, r"encryption\.keys\.a: expected text"),
    "text for keys": ({"keys": TEXTS["a"]}, r"encryption\.keys: expected a mapping"),
    "text for all": (TEXTS["a"], r"encryption: expected a mapping"),
    "an odd id": ({"keys": {"a;b": TEXTS["a"]}}, r"expected an id of 1 to 64 of the characters"),
    "use of another": (
        {"keys": {"a": TEXTS["a"]}, "use": "c"},
        r"use is 'c', expected one of the ids under keys",
    ),
    "no use": (
        {"keys": {"a": TEXTS["a"]}},
        r"encryption\.use is required, because output\.wrap has aes-256-gcm",
    ),
    "a missing file": ({"keys": {"a": "file:nowhere"}}, r"encryption\.keys\.a: /.*/nowhere: cannot be read"),
    "an unknown word": ({"keys": {"a": TEXTS["a"]}, "uses": "a"}, r"unknown key encryption\.uses"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_keys_is_one_sentence_without_them(tmp_path: Path, name: str) -> None:
    """The setting is named, the key is not shown, whatever is wrong."""
    encryption, sentence = MISTAKES[name]
    whole = document(encryption=encryption, output={"wrap": ["aes-256-gcm"]})
    with pytest.raises(ConfigError, match=sentence) as why:
        settings.validate(whole, tmp_path)
    for hidden in (TEXTS["a"], "c2hvcnQ=", "a key that is none"):
        assert hidden not in str(why.value)


def test_keys_are_shown_nowhere(tmp_path: Path) -> None:
    """Neither the settings as they are logged, nor their repr, nor an override that fails shows a key; logs blank it."""
    found = (
        settings.validate(document(encryption={"keys": {**TEXTS, "c": "file:c.key"}}), tmp_path)
        if ((tmp_path / "c.key").write_text(TEXTS["a"]))
        else None
    )
    assert found is not None
    assert found.encryption is not None
    shown = f"{found.redacted()} {found!r} {found.encryption!r} {found}"
    for hidden in TEXTS.values():
        assert hidden not in shown
        assert hidden in found.secrets()
    assert "file:" in str(found.redacted())
    config = tmp_path / "worker.yaml"
    config.write_text(yaml.safe_dump(document(encryption={"keys": TEXTS})))
    with pytest.raises(ConfigError) as why:
        settings.load(config, ["encryption.keys.a.b=1"])
    assert TEXTS["a"] not in str(why.value)
    with pytest.raises(Reject) as refused:
        AesGcm(Making("aes-256-gcm", "input.unwrap", Keys(found.encryption))).unwrap(
            *encrypted(SECRET, topic="elsewhere"), TOPIC, 1000
        )
    assert refused.value.__cause__ is None
