"""The certificate of ``metrics.tls``: loaded at start, and again when its files change, as tools that renew it expect."""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from pathlib import Path

from worker.errors import ConfigError
from worker.filesystem import read_bytes
from worker.telemetry import logs

LOOK_EVERY_S = 5.0
"""How often the files are looked at, at most."""

log = logs.get(__name__)


class Tls:
    """Encrypts connections.

    Raises:
        ConfigError: a file cannot be read, is no PEM file of its kind, or the key is not that of the certificate.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = certificate, key
        self._lock = threading.Lock()
        self._looked_s = time.monotonic()
        self._changed = self._stamp()
        self._context = self._load()

    def wrap(self, connection: socket.socket) -> ssl.SSLSocket:
        """The encrypted form of a connection that was accepted, before its handshake; it replaces the other."""
        return self._current().wrap_socket(connection, server_side=True, do_handshake_on_connect=False)

    @staticmethod
    def handshake(connection: ssl.SSLSocket, seconds: float) -> None:
        """Agree on encryption with the client, within ``seconds`` in all.

        Raises:
            OSError: the handshake failed, or took too long.
        """
        connection.settimeout(seconds)  # Python applies it to the whole handshake
        connection.do_handshake()

    def _current(self) -> ssl.SSLContext:
        with self._lock:
            if time.monotonic() - self._looked_s >= LOOK_EVERY_S:
                self._looked_s = time.monotonic()
                stamp = self._stamp()
                if stamp != self._changed:
                    self._changed = stamp
                    self._reload()
            return self._context

    def _reload(self) -> None:
        try:
            self._context = self._load()
        except ConfigError as error:  # half of the files may be written
            log.warning("the new certificate is not used, the old one stays", why=str(error))
        else:
            log.info("certificate read again", certificate=str(self._files[0]))

    def _stamp(self) -> tuple[object, ...]:
        return tuple(map(_stamp_of, self._files))

    def _load(self) -> ssl.SSLContext:
        certificate, key = self._files
        for name, file in (("certificate", certificate), ("key", key)):
            try:
                read_bytes(file)
            except OSError as error:
                why = error.strerror or type(error).__name__
                raise ConfigError(
                    f"metrics.tls.{name}: {file} cannot be read ({why}); expected a PEM file"
                ) from None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            # Without this function a key with a password would ask on the terminal.
            context.load_cert_chain(certificate, key, password=lambda: b"")
        except ssl.SSLError as error:
            why = (error.reason or str(error)).lower().replace("_", " ")
            raise ConfigError(
                f"metrics.tls: {certificate} and {key} are not used ({why}); expected a certificate and its own key, "
                "both PEM, the key without a password"
            ) from None
        return context


def _stamp_of(file: Path) -> tuple[int, int, int] | None:
    """What changes when a file does; None while it is not there."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
