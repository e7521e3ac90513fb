"""Who may ask ``metrics.http``: the Host header, the bearer token, and TLS."""

from __future__ import annotations

import http.client
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest
from page_support import WORKER, Told
from secured import make_certificates

from worker.errors import ConfigError
from worker.settings import validate
from worker.telemetry import page, tls
from worker.telemetry.access import PROBES, Access
from worker.telemetry.http import MOST_READING, REQUEST_S, HttpServer
from worker.telemetry.tls import Tls

TOKEN = "s3cret-token"


def ask(server: HttpServer, path: str, **headers: str) -> tuple[int, str, http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.putrequest("GET", path, skip_host=True)
        for name, value in {"Host": "localhost", **headers}.items():
            connection.putheader(name, value)
        connection.endheaders()
        response = connection.getresponse()
        return response.status, response.read().decode(), response
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("host", "answered"),
    [
        ("localhost:9464", True),
        ("LOCALHOST", True),
        ("app.localhost", True),
        ("127.0.0.1:9464", True),
        ("[::1]:9464", True),
        ("192.168.3.4", True),
        (socket.gethostname(), True),
        ("worker.example.com:80", True),
        ("a.pods.example.org", True),
        ("worker.example.com.", True),
        ("evil.example.net", False),
        ("pods.example.org", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
    ],
)
def test_only_known_names_are_answered(host: str, answered: bool) -> None:
    """Addresses, localhost, the machine's name and those of metrics.hosts are answered; any other name may be a rebound one."""
    access = Access("127.0.0.1", ["worker.example.com", "*.pods.example.org"])
    assert (access.refusal("/metrics", host, None) is None) == answered


def test_another_name_gets_a_sentence_and_probes_an_answer() -> None:
    """A request by another name is refused with 421 and the setting that would allow it; a probe is answered."""
    server = HttpServer("127.0.0.1:0", Told(), WORKER)
    try:
        status, text, _ = ask(server, "/metrics", Host="evil.example:80")
        assert (status, text) == (
            421,
            'the Host header names "evil.example:80": expected an address, localhost, or a name under metrics.hosts\n',
        )
        assert [ask(server, path, Host="evil.example")[0] for path in sorted(PROBES)] == [200] * len(PROBES)
    finally:
        server.close()


def test_a_token_is_asked_for_by_everything_but_the_probes() -> None:
    """Without the token /metrics, /progressz and unknown paths are 401 and say how; with it they are answered."""
    server = HttpServer("127.0.0.1:0", Told(), WORKER, access=Access(token=TOKEN), pages=page.routes())
    try:
        for path in ("/metrics", "/progressz", "/nothing"):
            for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
                status, text, response = ask(server, path, **given)
                assert status == 401
                assert response.headers["WWW-Authenticate"].startswith("Bearer")
                assert "Authorization: Bearer" in text
                assert TOKEN not in text
        assert ask(server, "/metrics", Authorization=f"Bearer {TOKEN}")[0] == 200
        assert ask(server, "/nothing", Authorization=f"bearer {TOKEN}")[0] == 404
        assert [ask(server, path)[0] for path in sorted(PROBES)] == [200] * len(PROBES)
    finally:
        server.close()


def test_the_page_of_a_worker_with_a_token_asks_for_it() -> None:
    """Without the token the page comes with 401 and without a number, and has the field that takes the token."""
    server = HttpServer("127.0.0.1:0", Told(), WORKER, access=Access(token=TOKEN), pages=page.routes())
    try:
        status, html, _ = ask(server, "/")
        assert (status, 'id="token"' in html) == (401, True)
        assert WORKER.id not in html
    finally:
        server.close()


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    make_certificates(folder)
    return folder


def test_encrypted_requests_are_answered(certificates: Path) -> None:
    """With metrics.tls a client that trusts the issuer gets its answer, and one that speaks plainly gets none."""
    server = HttpServer(
        "127.0.0.1:0", Told(), WORKER, tls=Tls(certificates / "broker.pem", certificates / "broker.pem")
    )
    try:
        trusting = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
        trusting.check_hostname = False
        connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=10, context=trusting)
        connection.request("GET", "/readyz")
        assert connection.getresponse().status == 200
        connection.close()
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as plain:
            plain.sendall(b"GET /livez HTTP/1.1\r\n\r\n")
            assert not plain.recv(1000).startswith(b"HTTP")
    finally:
        server.close()


def test_the_images_health_check_asks_an_encrypted_worker(certificates: Path) -> None:
    """With https:// in STREAMINFER_HEALTH the health check is content with a worker that speaks TLS; without it, it is not."""
    server = HttpServer(
        "127.0.0.1:0", Told(), WORKER, tls=Tls(certificates / "broker.pem", certificates / "broker.pem")
    )
    script = Path(__file__).parent.parent.parent / "docker" / "healthcheck.py"
    try:
        codes = [
            subprocess.run(
                [sys.executable, "-I", "-S", str(script)],
                env={"STREAMINFER_HEALTH": f"{scheme}127.0.0.1:{server.port}"},
                capture_output=True,
                timeout=30,
            ).returncode
            for scheme in ("https://", "")
        ]
    finally:
        server.close()
    assert codes == [0, 1]


def test_handshakes_that_hang_keep_no_probe_out(certificates: Path) -> None:
    """Connections that never finish their handshake are cut, the oldest of many at once, and a probe is answered meanwhile."""
    server = HttpServer(
        "127.0.0.1:0", Told(), WORKER, tls=Tls(certificates / "broker.pem", certificates / "broker.pem")
    )
    hanging = [
        socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(2 * MOST_READING)
    ]
    try:
        started = time.monotonic()
        connection = http.client.HTTPSConnection(
            "127.0.0.1",
            server.port,
            timeout=10,
            context=ssl._create_unverified_context(),
        )
        connection.request("GET", "/livez")
        assert connection.getresponse().status == 200
        connection.close()
        assert hanging[-1].recv(10) == b""
        assert time.monotonic() - started < REQUEST_S + 5
    finally:
        for each in hanging:
            each.close()
        server.close()


def test_a_renewed_certificate_is_used(
    certificates: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the files change, new connections get the new certificate; files that are half written change nothing."""
    monkeypatch.setattr(tls, "LOOK_EVERY_S", 0.0)
    file = tmp_path / "tls.pem"
    file.write_bytes((certificates / "broker.pem").read_bytes())
    server = HttpServer("127.0.0.1:0", Told(), WORKER, tls=Tls(file, file))
    try:
        first = shown(server)
        file.write_bytes(b"half")
        assert shown(server) == first
        other = tmp_path / "other"
        other.mkdir()
        make_certificates(other)
        file.write_bytes((other / "broker.pem").read_bytes())
        assert shown(server) != first
    finally:
        server.close()


def shown(server: HttpServer) -> str:
    return ssl.get_server_certificate(("127.0.0.1", server.port), timeout=10)


def test_files_that_are_no_certificate_are_one_sentence(certificates: Path, tmp_path: Path) -> None:
    """A missing file, one that is not PEM and a key of another certificate each name the setting and the file."""
    good = certificates / "broker.pem"
    other = tmp_path / "other.pem"
    other.write_text("no certificate")
    with pytest.raises(ConfigError, match=r"^metrics\.tls\.certificate: .*missing\.pem cannot be read"):
        Tls(tmp_path / "missing.pem", good)
    with pytest.raises(ConfigError, match=r"^metrics\.tls: .*expected a certificate and its own key"):
        Tls(other, other)
    with pytest.raises(ConfigError, match=r"^metrics\.tls: .*expected a certificate and its own key"):
        Tls(good, certificates / "ca.key")


def document(**more: object) -> dict[str, object]:
    return {
        "input": {"topics": ["in"], "format": "json"},
        "model": {"path": "m.onnx"},
        "output": {"topic": "out"},
        "dead_letter": {"topic": "dead"},
        "kafka": {"bootstrap.servers": "localhost:9092", "group.id": "g"},
        **more,
    }


def test_the_token_is_a_secret() -> None:
    """The token is in no redacted form of the settings, and in the list of what no log line may contain."""
    settings = validate(document(metrics={"token": TOKEN}), Path())
    assert TOKEN not in str(settings.redacted())
    assert TOKEN not in repr(settings)
    assert TOKEN in settings.secrets()


def test_samples_and_encryption_do_not_go_together() -> None:
    """page.samples with encryption is one sentence: the page would show what is encrypted."""
    with pytest.raises(ConfigError, match=r"page\.samples is 5, expected 0 with encryption"):
        validate(document(page={"samples": 5}, encryption={"keys": {"a": "A" * 43 + "="}}), Path())


@pytest.mark.parametrize(
    "metrics", [{"token": ""}, {"token": "two words"}, {"hosts": ["http://x"]}, {"hosts": ["x:80"]}]
)
def test_tokens_and_names_are_checked(metrics: dict[str, object]) -> None:
    """An empty token, one with blanks, and names with a scheme or a port are refused before anything starts."""
    with pytest.raises(ConfigError, match=r"metrics\.(token|hosts)"):
        validate(document(metrics=metrics), Path())
