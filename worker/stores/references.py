"""Payloads by reference (claim check): the record names an object, and the object is what is decoded."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import TYPE_CHECKING

import orjson

from worker.batch import Headers
from worker.errors import Reject
from worker.outside import Need, NotYet, Sized
from worker.records.paths import ABSENT, Path
from worker.registry import FETCHERS
from worker.stores import Denied, Missing, Opened, Store
from worker.stores.allow import Allowed
from worker.stores.options import StoreOptions
from worker.stores.url import Url

if TYPE_CHECKING:
    from worker.settings.stores import ReferenceSettings

SHA256 = "streaminfer.reference.sha256"
"""Header: the SHA-256 of the object in hexadecimal digits."""
FOR_EVER_S = 1e9
_HEADER = "header:"
_EVENT = b"application/cloudevents+json"


class References:
    """An :class:`worker.outside.Outside`: the stores under an allow list.

    Args:
        settings: ``input.reference``.
        max_bytes: ``input.max_bytes``: a larger object is not read.

    Raises:
        ConfigError: a store's client is not installed, or its options do not fit.
    """

    shared = False

    def __init__(self, settings: ReferenceSettings, max_bytes: int) -> None:
        self.concurrency = settings.concurrency
        self._allowed = Allowed(settings.allow)
        self._max_bytes = max_bytes
        self._appear_s = settings.appear_s
        self._attempts = settings.attempts
        source = settings.from_
        self._header = source[len(_HEADER) :].lower() if source.lower().startswith(_HEADER) else None
        self._path = Path.of(source)
        options = StoreOptions(self._allowed, settings.timeout_s, settings.options)
        schemes = dict.fromkeys(root.scheme for root in self._allowed.roots)
        self._stores: dict[str, Store] = {scheme: FETCHERS.entry(scheme)(options) for scheme in schemes}

    @property
    def allowed(self) -> Allowed:
        return self._allowed

    def close(self) -> None:
        """Close the connections that are kept."""
        for store in self._stores.values():
            store.close()

    def store(self, url: Url) -> Store:
        """Who keeps an allowed object."""
        return self._stores[url.scheme]

    def need(self, payload: bytes | None, headers: Headers | None) -> Need | None:
        """See :meth:`worker.outside.Outside.need`: None where the record has no such header, and is its own payload."""
        text = self._in_headers(payload, headers) if self._header is not None else self._in_value(payload)
        if text is None:
            return None
        url = self._allowed.checked(text)
        return Need(str(url), f"store {url.place}", (url, self._digest(headers)))

    def ask(self, need: Need, allowed_bytes: int) -> bytes | Sized | None:
        """See :meth:`worker.outside.Outside.ask`."""
        url, digest = need.ticket
        try:
            opened = self._stores[url.scheme].open(url)
        except Missing:
            missing = Reject(f"there is no object {url}", "reference_missing")
            raise NotYet(missing, self._appear_s) from None
        except Denied as error:
            raise Reject(f"{url}: {error}", "reference_denied") from None
        size = self._max_bytes if opened.size is None else opened.size
        if size > self._max_bytes:
            opened.close()
            raise self._too_large(url, f"{size}")
        if size > allowed_bytes:
            return Sized(size, partial(self._read, opened, url, digest), opened.close)
        return self._read(opened, url, digest)

    def _read(self, opened: Opened, url: Url, digest: str | None) -> bytes:
        data = opened.read(self._max_bytes + 1)
        if len(data) > self._max_bytes:
            raise self._too_large(url, "more")
        if digest is not None and (found := hashlib.sha256(data).hexdigest()) != digest:
            mismatch = Reject(
                f"{url} has the SHA-256 {found}, the header {SHA256} says {digest}", "reference_mismatch"
            )
            raise NotYet(mismatch, FOR_EVER_S, self._attempts)
        return data

    def _too_large(self, url: Url, size: str) -> Reject:
        return Reject(f"{url} has {size} bytes, input.max_bytes is {self._max_bytes}", "too_large")

    # -- what the record says -------------------------------------------------------------------------------

    def _in_headers(self, payload: bytes | None, headers: Headers | None) -> str | None:
        value = header(headers, self._header or "")
        if value is None:
            return self._in_event(payload, headers)
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise Reject("the reference is not UTF-8", "reference_refused") from None

    def _in_event(self, payload: bytes | None, headers: Headers | None) -> str | None:
        """The attribute of a CloudEvent in structured mode, where that is what the record is."""
        name = (self._header or "").removeprefix("ce_")
        kind = header(headers, "content-type")
        if name == self._header or kind is None or not kind.lower().startswith(_EVENT):
            return None
        try:
            event = orjson.loads(payload or b"")
        except orjson.JSONDecodeError:
            return None  # the decoder says what is wrong with it
        found = event.get(name) if isinstance(event, dict) else None
        return found if isinstance(found, str) else None

    def _in_value(self, payload: bytes | None) -> str | None:
        if payload is None:
            return None
        try:
            record = orjson.loads(payload)
        except orjson.JSONDecodeError as error:
            raise Reject(f"expected JSON with the field {self._path}: {error}", "undecodable") from None
        if not isinstance(record, dict):
            raise Reject(f"expected a JSON object with the field {self._path}", "invalid")
        found = self._path.find(record)
        if found is ABSENT or found is None:
            raise Reject(f"the field {self._path} is not there; expected the URL of an object", "invalid")
        if not isinstance(found, str):
            raise Reject(f"the field {self._path} is no text; expected the URL of an object", "invalid")
        return found

    def _digest(self, headers: Headers | None) -> str | None:
        value = header(headers, SHA256)
        if value is None:
            return None
        text = value.decode("ascii", "replace").strip().lower()
        if len(text) != 64 or set(text) - set("0123456789abcdef"):
            raise Reject(f"the header {SHA256} is no SHA-256: expected 64 hexadecimal digits", "invalid")
        return text


def header(headers: Headers | None, name: str) -> bytes | None:
    """The last header of this name (in lower case), matched without case; None where there is none or it is null."""
    for key, value in reversed(headers or ()):
        if key.lower() == name:
            return value
    return None
