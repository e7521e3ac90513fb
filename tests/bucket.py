"""A small S3 server on the loopback interface: objects that are listed, read in ranges and changed, with every fault of a shop."""

from __future__ import annotations

import hashlib
import http.server
import re
from dataclasses import dataclass, field
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from shop import Shop

BUCKET = "models"


@dataclass
class Bucket(Shop):
    """One bucket. Keys of ``objects`` are ``/models/<key>``; :meth:`put` and :meth:`remove` know that."""

    page: int = 1000
    """Most objects in one answer to a listing."""
    after: dict[str, bytes] = field(default_factory=dict)
    """By key: what the object holds once it was asked for."""

    def put(self, key: str, data: bytes) -> None:
        self.objects[f"/{BUCKET}/{key}"] = data

    def remove(self, key: str) -> None:
        del self.objects[f"/{BUCKET}/{key}"]

    @property
    def options(self) -> dict[str, str]:
        """For ``model.store_options``."""
        return {
            "endpoint": self.url,
            "region": "us-east-1",
            "access_key_id": "AKIAKEYKEY",
            "secret_access_key": "SECRETSECRET",
        }

    def _give(self, request: http.server.BaseHTTPRequestHandler) -> None:
        parts = urlsplit(request.path)
        path, query = unquote(parts.path), parse_qs(parts.query)
        if self.down:
            self._answer(request, self.down, b"", {})
        elif path.strip("/") == BUCKET and "list-type" in query:
            self._answer(request, 200, self._listing(query), {"Content-Type": "application/xml"})
        elif (body := self.objects.get(path)) is None:
            self._answer(request, 404, b"<Error><Code>NoSuchKey</Code></Error>", {})
        else:
            self._object(request, path, body)

    def _object(self, request: http.server.BaseHTTPRequestHandler, path: str, body: bytes) -> None:
        headers = {"ETag": _etag(body), "Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}
        if request.headers.get("If-Match", headers["ETag"]) != headers["ETag"]:
            self._answer(request, 412, b"", headers)
            return
        status, found = 200, re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))
        piece = body
        if found:
            start, stop = int(found[1]), min(int(found[2]) + 1, len(body))
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(body)}"
            status, piece = 206, body[start:stop]
        if (key := path.removeprefix(f"/{BUCKET}/")) in self.after:
            self.put(key, self.after.pop(key))
        cut = self.cut.get(path, 0)
        if cut:
            self.cut[path] = cut - 1
        self._answer(request, status, piece, headers, cut=bool(cut))

    def _answer(
        self,
        request: http.server.BaseHTTPRequestHandler,
        status: int,
        body: bytes,
        headers: dict[str, str],
        cut: bool = False,
    ) -> None:
        request.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command == "HEAD":
            return
        request.wfile.write(body[: len(body) // 2] if cut else body)
        request.close_connection = cut

    def _listing(self, query: dict[str, list[str]]) -> bytes:
        prefix, after = query.get("prefix", [""])[0], query.get("continuation-token", [""])[0]
        keys = sorted(key.removeprefix(f"/{BUCKET}/") for key in self.objects)
        keys = [key for key in keys if key.startswith(prefix) and key > after]
        more = len(keys) > self.page
        keys = keys[: self.page]
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2015-10-21T07:28:00.000Z</LastModified>"
            f"<ETag>{escape(_etag(self.objects[f'/{BUCKET}/{key}']))}</ETag>"
            f"<Size>{len(self.objects[f'/{BUCKET}/{key}'])}</Size></Contents>"
            for key in keys
        )
        token = f"<NextContinuationToken>{escape(keys[-1])}</NextContinuationToken>" if more else ""
        return (
            f"<ListBucketResult><Name>{BUCKET}</Name><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(keys)}</KeyCount>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{entries}</ListBucketResult>"
        ).encode()


def _etag(body: bytes) -> str:
    return f'"{hashlib.sha256(body).hexdigest()[:32]}"'
