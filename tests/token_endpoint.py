"""The token endpoint of an identity provider: client credentials in, a token for the broker out (RFC 6749, section 4.4)."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class TokenEndpoint:
    """Gives tokens to one client; counts what it was asked.

    Args:
        secret: the client's, whose id is its principal.
        lives_s: how long a token is good.
    """

    def __init__(self, client: str, secret: str, lives_s: float) -> None:
        self.client = client
        self.given = 0
        """Tokens given."""
        self.refused = 0
        self._expected = base64.b64encode(f"{client}:{secret}".encode()).decode()
        self._lives_s = lives_s
        handler = type("Handler", (_Handler,), {"endpoint": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/token"

    def properties(self, secret: str) -> dict[str, str]:
        """Client properties that get tokens here."""
        return {
            "sasl.mechanism": "OAUTHBEARER",
            "sasl.oauthbearer.method": "oidc",
            "sasl.oauthbearer.token.endpoint.url": self.url,
            "sasl.oauthbearer.client.id": self.client,
            "sasl.oauthbearer.client.secret": secret,
            "sasl.oauthbearer.scope": "kafka",
        }

    def answer(self, authorization: str, form: str) -> tuple[int, dict[str, Any]]:
        if authorization != f"Basic {self._expected}" or "grant_type=client_credentials" not in form:
            self.refused += 1
            return 401, {"error": "invalid_client"}
        self.given += 1
        now = time.time()
        claims = {"sub": self.client, "iat": now, "exp": now + self._lives_s, "scope": "kafka"}
        token = f"{_part({'alg': 'none'})}.{_part(claims)}."
        return 200, {"access_token": token, "token_type": "Bearer", "expires_in": self._lives_s}

    @contextmanager
    def serving(self) -> Iterator[TokenEndpoint]:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    endpoint: TokenEndpoint

    def do_POST(self) -> None:
        form = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        status, said = self.endpoint.answer(self.headers.get("Authorization", ""), form)
        body = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Tests read standard error."""


def _part(value: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()
