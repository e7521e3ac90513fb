"""The image's health check: asks the worker for ``/livez``; exit code 0 healthy, 1 not.

``STREAMINFER_HEALTH`` is where ``metrics.http`` listens as seen from inside the container, ``host:port``, or
``https://host:port`` with ``metrics.tls``. Where it is not set, 127.0.0.1:9464 is asked, and a connection that is refused is no complaint: a pipeline without ``metrics.http``
listens nowhere, and a worker that ends takes its container with it. A worker that hangs still takes connections and
does not answer them.

Standard library only, no ``site``: it runs every ten seconds beside the worker.
"""

import os
import socket
import sys

DEFAULT = "127.0.0.1:9464"
TIMEOUT_S = 3.0


def main() -> int:
    """Ask once; print one sentence if something is wrong."""
    given = os.environ.get("STREAMINFER_HEALTH")
    encrypted = (given or "").startswith("https://")
    host, _, port = (given or DEFAULT).removeprefix("https://").rpartition(":")
    try:
        address = (host.strip("[]"), int(port))
    except ValueError:
        return fail(f"STREAMINFER_HEALTH is {given!r}, expected host:port or https://host:port")
    try:
        with socket.create_connection(address, TIMEOUT_S) as connection:
            connection.settimeout(TIMEOUT_S)
            asked = wrapped(connection) if encrypted else connection
            asked.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
            status = asked.makefile("rb").readline(200)
    except ConnectionRefusedError as error:
        return fail(f"{host}:{port}: {error}") if given else 0
    except OSError as error:
        return fail(f"{host}:{port}: {error}")
    if status.split()[1:2] != [b"200"]:
        return fail(
            f"{host}:{port}: /livez answered {status.decode('ascii', 'replace').strip()!r}, expected 200"
        )
    return 0


def wrapped(connection: socket.socket) -> socket.socket:
    """The connection, encrypted. Whose certificate it is does not matter: this asks its own container."""
    import ssl

    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context.wrap_socket(connection)


def fail(sentence: str) -> int:
    print(f"health check: {sentence}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
