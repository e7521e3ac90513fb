"""Objects in S3, Google Cloud Storage and Azure Blob Storage.

Credentials, signatures and the forms of the URLs come from obstore, a client in Rust for all three. Its own transfers
follow redirects to any address, so an S3 object is transferred by :class:`worker.stores.http_client.HttpClient` under
a URL that obstore has signed. The endpoints of the two others are their clouds' own.
"""

from __future__ import annotations

import io
import re
import threading
from datetime import timedelta
from typing import Any, ClassVar

from worker import extras
from worker.errors import ConfigError
from worker.outside import Away
from worker.stores import Denied, Missing, Opened
from worker.stores.http_client import HttpClient, Response
from worker.stores.options import StoreOptions
from worker.stores.url import Endpoint, Url

PIECE_BYTES = 256 << 10
"""A body is read in pieces of about this size: only one of them is in memory twice."""
_STATUS = re.compile(r"status code: (\d{3})")


class Buckets:
    """Clients of obstore, one for each bucket."""

    scheme: ClassVar[str]
    client: ClassVar[str]
    """Name of the class in ``obstore.store``."""

    def __init__(self, options: StoreOptions) -> None:
        why = f"a {self.scheme}:// store"
        self.obstore = extras.load("obstore", extra="stores", why=why)
        self.errors = extras.load("obstore.exceptions", extra="stores", why=why)
        self._make = getattr(extras.load("obstore.store", extra="stores", why=why), self.client)
        self.options = options
        self._lock = threading.Lock()
        self._clients: dict[str, Any] = {}
        for root in options.allowed.roots:
            if root.scheme == self.scheme:
                self.bucket(root.host)  # an option that is not known is told at start

    def bucket(self, name: str) -> Any:
        """The client of a bucket.

        Raises:
            ConfigError: an option is not known, or not enough is known to reach the store.
        """
        with self._lock:
            client = self._clients.get(name)
            if client is None:
                client = self._clients[name] = self._client(name)
            return client

    def config(self) -> dict[str, str]:
        """The options for obstore."""
        return self.options.of(self.scheme)

    def _client(self, bucket: str) -> Any:
        timeout = f"{max(1, round(self.options.timeout_s * 1000))}ms"
        try:
            return self._make(
                bucket,
                config=self.config(),
                client_options={"timeout": timeout, "connect_timeout": timeout, "allow_http": True},
                # The loop asks again by itself; a retry in here would hold a thread without telling anybody.
                retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=self.options.timeout_s)},
            )
        except Exception as error:
            # Its own text may repeat the values.
            found = re.search(r"[Cc]onfiguration key:? '?\"?([\w-]+)", str(error))
            what = f"the option {found[1]} is not known" if found else "they do not fit together"
            raise ConfigError(
                f"options of the {self.scheme}:// store: {what}; expected those of obstore's {self.client}"
            ) from None

    def translated(self, error: Exception) -> Exception:
        """What an error of obstore means. No text of the store's answer goes on: it may repeat a signature."""
        if isinstance(error, ConfigError | Away):
            return error
        if isinstance(error, FileNotFoundError | self.errors.NotFoundError):
            return Missing()
        if isinstance(
            error, PermissionError | self.errors.PermissionDeniedError | self.errors.UnauthenticatedError
        ):
            return Denied("the store refuses the credentials, or they have no right to the object")
        found = _STATUS.search(str(error))
        if found is None:
            return Away(_kind(str(error)))
        return answer(int(found[1]))


class S3(Buckets):
    """Amazon S3 and stores that speak its language (MinIO, Ceph, R2): ``s3://bucket/key``."""

    scheme = "s3"
    client = "S3Store"

    def __init__(self, options: StoreOptions) -> None:
        own = options.of(self.scheme)
        self._unsigned = own.get("skip_signature", "").lower() == "true"
        super().__init__(options)
        self._client_http = HttpClient(options.timeout_s, options.ca_file)
        self._for = timedelta(seconds=max(60.0, 2 * options.timeout_s))

    def config(self) -> dict[str, str]:
        config = self.options.of(self.scheme)
        if self._unsigned:
            # A URL is signed with these, and the signature then left out.
            config |= {"access_key_id": "none", "secret_access_key": "none"}
            config.pop("skip_signature", None)
        return config

    def open(self, url: Url) -> Opened:
        response = self._ask("GET", url)
        if response.status == 200:
            return response
        response.close()
        raise answer(response.status)

    def size(self, url: Url) -> int | None:
        """Bytes of an object; raises as :meth:`open`."""
        response = self._ask("HEAD", url)
        response.close()
        if response.status != 200:
            raise answer(response.status)
        return response.size

    def put(self, url: Url, data: bytes, content_type: str) -> None:
        response = self._ask("PUT", url, {"Content-Type": content_type}, data)
        try:
            if response.status not in (200, 201, 204):
                raise answer(response.status)
            response.read(1 << 16)
        finally:
            response.close()

    def close(self) -> None:
        self._client_http.close()

    def _ask(
        self, method: str, url: Url, headers: dict[str, str] | None = None, body: bytes | None = None
    ) -> Response:
        try:
            signed = self.obstore.sign(self.bucket(url.host), method, url.key, self._for)
        except Exception as error:
            text = str(error).lower()
            if "credential" in text or "metadata" in text:
                raise Away("no credentials for the store could be got") from None
            raise self.translated(error) from None
        # The endpoint is the operator's: it may well be on the inner network.
        return self._client_http.ask(
            method, Endpoint.of(signed, not self._unsigned), lambda _address: True, headers, body
        )


class _Native(Buckets):
    """Transfers by obstore itself."""

    def open(self, url: Url) -> Opened:
        try:
            return _Object(self.obstore.get(self.bucket(url.host), url.key), self)
        except Exception as error:
            raise self.translated(error) from None

    def size(self, url: Url) -> int | None:
        """Bytes of an object; raises as :meth:`open`."""
        try:
            return int(self.obstore.head(self.bucket(url.host), url.key)["size"])
        except Exception as error:
            raise self.translated(error) from None

    def put(self, url: Url, data: bytes, content_type: str) -> None:
        attributes = {"Content-Type": content_type}
        try:
            self.obstore.put(self.bucket(url.host), url.key, data, attributes=attributes)
        except Exception as error:
            raise self.translated(error) from None

    def close(self) -> None:
        """Nothing is kept that needs it."""


class GoogleCloud(_Native):
    """Google Cloud Storage: ``gs://bucket/key``."""

    scheme = "gs"
    client = "GCSStore"


class Azure(_Native):
    """Azure Blob Storage: ``az://container/key``."""

    scheme = "az"
    client = "AzureStore"


class _Object:
    """See :class:`worker.stores.Opened`."""

    def __init__(self, found: Any, client: Buckets) -> None:
        self._found = found
        self._client = client
        self.size: int | None = found.meta["size"]

    def read(self, most: int) -> bytes:
        body, left = io.BytesIO(), most
        try:
            for chunk in self._found.stream(min_chunk_size=PIECE_BYTES):
                piece = memoryview(chunk)[: max(0, left)]
                body.write(piece)
                left -= len(piece)
                if left <= 0:
                    break
        except Exception as error:
            raise self._client.translated(error) from None
        finally:
            self._found = None
        return body.getvalue()

    def close(self) -> None:
        self._found = None


def answer(status: int) -> Exception:
    """What a status other than success means."""
    if status in (404, 410):
        return Missing()
    if status in (401, 403):
        return Denied("the store refuses the credentials, or they have no right to the object")
    if 300 <= status < 400:
        return Denied(f"the store redirects elsewhere (status {status}): check its region and endpoint")
    if status >= 500 or status in (408, 425, 429):
        return Away(f"status {status}")
    return Denied(f"the store answers with status {status}")


def _kind(text: str) -> str:
    lowered = text.lower()
    for words, kind in (
        (("timed out", "timeout", "timedout"), "time-out"),
        (("connectionrefused", "connection refused"), "connection refused"),
        (("dns", "lookup address"), "its name is not resolved"),
        (("credential",), "no credentials for the store could be got"),
        (("response body", "end of file", "incomplete"), "the transfer broke off"),
    ):
        if any(word in lowered for word in words):
            return kind
    return "no connection"
