"""A Kafka that lets nobody in unasked, for tests: certificates, one user with three ways in, rights one by one."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # re-exported without saying so
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from stream import wait_for

USER = "worker"
PASSWORD = 'sparrow-grau"7\\e'
"""Holds what JSON and Python strings escape: it must be hidden before it is quoted."""
KEY_PASSWORD = "sparrow-gelb"
SPARROW = b"sparrow"
"""Begins every secret and occurs nowhere else."""


class SecuredKafka:
    """One broker, one user, no rights yet.

    Args:
        start: starts a broker with options of ``scripts/kafka start`` and returns its address.
        folder: for the certificates.
    """

    def __init__(self, start: Callable[..., str], folder: Path) -> None:
        make_certificates(folder)
        self.bootstrap = start("--secure", str(folder))
        """The administrator's door, without a lock: to make topics, and to read what others wrote."""
        host, port = self.bootstrap.split(":")
        tls = {"ssl.ca.location": str(folder / "ca.pem")}
        sasl = tls | {"bootstrap.servers": f"{host}:{int(port) + 1}", "security.protocol": "SASL_SSL"}
        self.ways: dict[str, dict[str, Any]] = {
            "scram": sasl
            | {"sasl.mechanism": "SCRAM-SHA-512", "sasl.username": USER, "sasl.password": PASSWORD},
            "oauthbearer": sasl
            | {
                "sasl.mechanism": "OAUTHBEARER",
                "enable.sasl.oauthbearer.unsecure.jwt": "true",
                "sasl.oauthbearer.config": f"principal={USER} scope=sparrow",
            },
            "certificate": tls
            | {
                "bootstrap.servers": f"{host}:{int(port) + 3}",
                "security.protocol": "SSL",
                "ssl.certificate.location": str(folder / "worker.pem"),
                "ssl.key.location": str(folder / "worker.key"),
                "ssl.key.password": KEY_PASSWORD,
            },
        }
        """Client properties of each way in for the user."""
        self.strange_ca = folder / "strange-ca.pem"
        """Of an authority that did not sign the broker's certificate."""
        self._admin = AdminClient({"bootstrap.servers": self.bootstrap})
        self._make_user()

    def allow(
        self,
        operation: AclOperation,
        kind: ResourceType,
        name: str,
        pattern: ResourcePatternType = ResourcePatternType.LITERAL,
    ) -> None:
        """Give the user one right to one topic, group or the like, in force when this returns."""
        resource = (kind, name, pattern)
        right = AclBinding(*resource, f"User:{USER}", "*", operation, AclPermissionType.ALLOW)
        for answer in self._admin.create_acls([right]).values():
            answer.result(30)
        wanted = AclBindingFilter(*resource, None, None, operation, AclPermissionType.ALLOW)
        wait_for(lambda: self._admin.describe_acls(wanted).result(30), f"the right {right}")

    def _make_user(self) -> None:
        scram = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
        user = UserScramCredentialUpsertion(USER, scram, PASSWORD.encode())
        for answer in self._admin.alter_user_scram_credentials([user]).values():
            answer.result(30)

        def let_in() -> bool:
            try:
                AdminClient({**self.ways["scram"], "log_level": 0}).list_topics(timeout=5)
            except KafkaException:
                return False
            return True

        wait_for(let_in, "the user to be let in")


def make_certificates(folder: Path) -> None:
    """The broker's key and certificate, the user's (its key under a password), two authorities."""
    for authority in ("ca", "strange-ca"):
        _openssl(
            folder,
            *("req", "-x509", *_NEW_KEY, "-noenc", "-days", "2", "-subj", f"/CN={authority}"),
            *("-keyout", f"{authority}.key", "-out", f"{authority}.pem"),
        )
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost")
    _sign(folder, "broker", "-noenc")
    _sign(folder, USER, "-passout", f"pass:{KEY_PASSWORD}")
    key, certificate = folder / "broker.key", folder / "broker.pem"
    certificate.write_bytes(key.read_bytes() + certificate.read_bytes())


_NEW_KEY = ("-newkey", "rsa:2048")


def _sign(folder: Path, name: str, *key_options: str) -> None:
    """``name``.key, and ``name``.pem signed by the authority ``ca``."""
    request = ("-keyout", f"{name}.key", "-out", f"{name}.csr")
    _openssl(folder, "req", *_NEW_KEY, *key_options, "-subj", f"/CN={name}", *request)
    signed = ("-in", f"{name}.csr", "-out", f"{name}.pem", "-days", "2", "-extfile", "names")
    _openssl(folder, "x509", "-req", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", *signed)


def _openssl(folder: Path, *arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
