"""A schema registry for tests: the part of its HTTP interface that clients use to read and write, with faults on request.

It knows GUIDs and serialised descriptors, which the registries that run from a jar do not.
"""

from __future__ import annotations

import base64
import json
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

NAMESPACE = uuid.UUID("8d1f9a52-8d7c-4f0e-9f7d-0b1a7b0c5a11")
SCHEMA_NOT_FOUND, SUBJECT_NOT_FOUND, VERSION_NOT_FOUND = 40403, 40401, 40402


def file_of(text: str) -> Any:
    from worker.records import protobuf_schema

    return protobuf_schema.file_of(text)


class RegistryServer:
    """What it holds and how it misbehaves; ``url`` is where it listens."""

    def __init__(self) -> None:
        self.schemas: dict[int, dict[str, Any]] = {}
        self.subjects: dict[str, list[int]] = {}
        self.requests: list[tuple[str, str]] = []
        """Method and path with its query, as they came."""
        self.headers: list[dict[str, str]] = []
        self.fault = ""
        """``500``, ``404`` (without a code), ``slow``, ``cut``, ``nonsense``, ``refuse`` (409 to a new schema); empty: none."""
        self.slow_s = 30.0
        self.resume = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def add(
        self,
        schema: Any,
        kind: str = "AVRO",
        subject: str = "readings-value",
        references: list[dict[str, Any]] | None = None,
        rules: Any = None,
        id_: int | None = None,
    ) -> int:
        """Hold a schema; returns its id, the same one for the same schema."""
        text = schema if isinstance(schema, str) else json.dumps(schema)
        body = {"schema": text, "schemaType": kind, "references": references or []}
        if rules:
            body["ruleSet"] = rules
        number = next((n for n, held in self.schemas.items() if held == body), None)
        if number is None:
            number = id_ or len(self.schemas) + 1
            self.schemas[number] = body
        versions = self.subjects.setdefault(subject, [])
        if number not in versions:
            versions.append(number)
        return number

    def guid(self, number: int) -> str:
        return str(uuid.uuid5(NAMESPACE, json.dumps(self.schemas[number], sort_keys=True)))

    def asked(self, path: str) -> int:
        """How often a path was asked for, whatever its query."""
        return sum(urlsplit(asked).path == path for _, asked in self.requests)

    def close(self) -> None:
        self.resume.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    # -- answers -----------------------------------------------------------------------------------------

    def get(self, path: str, query: dict[str, list[str]]) -> tuple[int, Any]:
        match path.strip("/").split("/"):
            case ["schemas", "ids", number] if int(number) in self.schemas:
                return 200, self._schema(int(number), query)
            case ["schemas", "guids", guid]:
                number = next((n for n in self.schemas if self.guid(n) == guid), None)
                if number is not None:
                    return 200, {"id": number, **self._schema(number, query)}
            case ["schemas", "types"]:
                return 200, ["AVRO", "JSON", "PROTOBUF"]
            case ["subjects"]:
                return 200, [*self.subjects]
            case ["subjects", subject, "versions", version] if unquote(subject) in self.subjects:
                return 200, self._version(unquote(subject), version, query)
            case ["subjects", *_]:
                return 404, {"error_code": SUBJECT_NOT_FOUND, "message": "Subject not found."}
        return 404, {"error_code": SCHEMA_NOT_FOUND, "message": "Schema not found"}

    def post(self, path: str, body: Any) -> tuple[int, Any]:
        match path.strip("/").split("/"):
            case ["subjects", subject, "versions"]:
                if self.fault == "refuse":
                    return 409, {"error_code": 409, "message": "Schema being registered is incompatible"}
                number = self.add(body["schema"], body.get("schemaType", "AVRO"), unquote(subject))
                return 200, {"id": number, "guid": self.guid(number), "version": 1}
            case ["subjects", subject]:
                for number in self.subjects.get(unquote(subject), []):
                    if self.schemas[number]["schema"] == body["schema"]:
                        return 200, self._version(unquote(subject), str(number), {}, by_id=True)
                if unquote(subject) in self.subjects:
                    return 404, {"error_code": SCHEMA_NOT_FOUND, "message": "Schema not found"}
                return 404, {"error_code": SUBJECT_NOT_FOUND, "message": "Subject not found."}
        return 404, {"error_code": SUBJECT_NOT_FOUND, "message": "Subject not found."}

    def _schema(self, number: int, query: dict[str, list[str]]) -> dict[str, Any]:
        held = dict(self.schemas[number])
        if held["schemaType"] == "PROTOBUF" and query.get("format") == ["serialized"]:
            held["schema"] = serialised(file_of(held["schema"]))
        return {**held, "guid": self.guid(number)}

    def _version(
        self, subject: str, version: str, query: dict[str, list[str]], by_id: bool = False
    ) -> dict[str, Any]:
        versions = self.subjects[subject]
        if by_id:
            number = int(version)
        else:
            number = versions[-1] if version in ("latest", "-1") else versions[int(version) - 1]
        return {
            "subject": subject,
            "id": number,
            "version": versions.index(number) + 1,
            **self._schema(number, query),
        }


def _handler(server: RegistryServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            self._answer(json.loads(self.rfile.read(length) or b"null"))

        def log_message(self, *_: Any) -> None:
            pass

        def _answer(self, body: Any) -> None:
            server.requests.append((self.command, self.path))
            server.headers.append({name.lower(): value for name, value in self.headers.items()})
            parts = urlsplit(self.path)
            if server.fault == "slow":
                server.resume.wait(server.slow_s)
            if server.fault == "500":
                self._send(500, json.dumps({"error_code": 50001, "message": "store error"}).encode())
            elif server.fault == "404":
                self._send(404, b"<html>no such page</html>")
            elif server.fault == "nonsense":
                self._send(200, b"<html>hello</html>")
            elif server.fault == "cut":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b'{"schema": "')
                self.close_connection = True
            else:
                query = parse_qs(parts.query)
                code, found = server.post(parts.path, body) if body else server.get(parts.path, query)
                self._send(code, json.dumps(found).encode())

        def _send(self, code: int, body: bytes) -> None:
            try:
                self.send_response(code)
                self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            except OSError:
                pass  # the client has given up

    return Handler


@contextmanager
def registry() -> Iterator[RegistryServer]:
    """A running one."""
    server = RegistryServer()
    try:
        yield server
    finally:
        server.close()


def serialised(file: Any) -> str:
    """A Protobuf file descriptor as a registry gives it."""
    return base64.standard_b64encode(file.SerializeToString()).decode()


def wait_for(condition: Any, timeout_s: float = 10.0) -> None:
    """Until something is so.

    Raises:
        TimeoutError: it never was.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("it did not happen")
        time.sleep(0.005)
