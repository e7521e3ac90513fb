"""Answers kept in memory: an equal payload is answered again without decoding it and without a run of the model.

What is kept is the text of a prediction. Everything else of a result (id, source, latency, headers) is the record's own.
A key is the length of the payload and the BLAKE2b digest (16 bytes) of it and of the headers that reading it depends on,
salted by the servable: entries of one version never answer for another.

A batch that holds rows with a known answer is divided: these are one part, the rest is the other part, as a batch of its
own that is decoded and run as usual. Rows with equal payloads in one batch are run once.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from worker.batch import PAYLOAD_HEADERS, Batch, Feed, Headers, Item, Parts, Run
from worker.errors import ConfigError, Rejection
from worker.registry import INPUT_FORMATS
from worker.serving.retrial import part_of

if TYPE_CHECKING:
    from worker.encode import Encoder
    from worker.settings import PipelineSettings
    from worker.settings.sections import CacheSettings

ENTRY_BYTES = 384
"""What an entry takes beside the text of its prediction (measured: 250 to 350)."""
REQUEST_BYTES = 512
"""What it takes more where the format has requests."""
DIGEST_BYTES = 16
LENGTH_BYTES = 8

Entry = tuple[int, bytes, Item | None]
"""Monotonic nanoseconds when it expires (0: never), the prediction, what is known of the request."""


class Entries:
    """The entries of one pipeline, whichever version made them; the ones not used for longest go first. For any thread.

    Args:
        most_bytes: bound of all entries together.
        ttl_s: seconds after which an entry does not count any more; None: it does not age.
        clock_ns: monotonic nanoseconds.
    """

    def __init__(
        self,
        most_bytes: int,
        ttl_s: float | None = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.nbytes = 0
        """What the entries take."""
        self._most_bytes = most_bytes
        self._ttl_ns = round(ttl_s * 1e9) if ttl_s is not None else 0
        self._clock_ns = clock_ns
        self._lock = threading.Lock()
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()
        """The one used last at the end."""

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, keys: Iterable[bytes | None]) -> list[Entry | None]:
        """The entry under each key, or None; a key that is None has no entry."""
        now_ns, found = self._clock_ns() if self._ttl_ns else 0, []
        with self._lock:
            get, used = self._entries.get, self._entries.move_to_end
            for key in keys:
                entry = get(key)  # type: ignore[arg-type]
                if entry is not None:
                    assert key is not None
                    if now_ns > entry[0] > 0:
                        self._drop(key)
                        entry = None
                    else:
                        used(key)
                found.append(entry)
        return found

    def put(self, made: Iterable[tuple[bytes, bytes, Item | None]]) -> None:
        """Keep answers: key, prediction, what is known of the request."""
        expires_ns = self._clock_ns() + self._ttl_ns if self._ttl_ns else 0
        with self._lock:
            entries = self._entries
            for key, prediction, request in made:
                if key in entries:
                    self._drop(key)
                entries[key] = entry = expires_ns, prediction, request
                self.nbytes += _nbytes(entry)
            while self.nbytes > self._most_bytes:
                self.nbytes -= _nbytes(entries.popitem(last=False)[1])

    def _drop(self, key: bytes) -> None:
        self.nbytes -= _nbytes(self._entries.pop(key))


def _nbytes(entry: Entry) -> int:
    return ENTRY_BYTES + len(entry[1]) + (REQUEST_BYTES if entry[2] is not None else 0)


class Cache:
    """What one servable finds in the entries of its pipeline. For any thread.

    Args:
        entries: of the pipeline.
        headers: names (lower case) of the headers that decoding depends on; None: custom code may read any.
        opens: records that are still to be unwrapped are looked for, too.
        joins: equal payloads of one batch are run once. Not where a row may be put off: the others would wait for it.
    """

    def __init__(
        self,
        entries: Entries,
        headers: frozenset[str] | None = frozenset(),
        opens: bool = True,
        joins: bool = True,
    ) -> None:
        self.entries = entries
        self._headers = headers
        self._opens = opens
        self._joins = joins
        self._hash = blake2b(digest_size=DIGEST_BYTES, salt=os.urandom(blake2b.SALT_SIZE))

    def look(self, batch: Batch) -> None:
        """Look for the rows of a new batch. Afterwards it has keys; or it has parts, where some answer is known."""
        keys = self._keys(batch)
        found = self.entries.find(keys)
        rest = [row for row, entry in enumerate(found) if entry is None]
        known = [row for row, entry in enumerate(found) if entry is not None]
        leaders: dict[int, int] = {}
        if self._joins and batch.deadlines is None:  # a deadline is a record's own
            rest, equal = _divided(keys, rest)
            leaders = {len(known) + index: leader for index, leader in enumerate(equal.values())}
            known += equal
        batch.cache_hits, batch.cache_misses = len(known), len(rest)
        if not known:
            batch.keys = keys
            return
        entries = [found[row] for row in known]
        fragments = [entry[1] if entry is not None else None for entry in entries]
        requests = [entry[2] if entry is not None else None for entry in entries]
        batch.parts = Parts(self._known(batch, known, requests), None, fragments, leaders)
        if rest:
            batch.parts.rest = part_of(batch, rest, batch.decode_started_ns)
            batch.parts.rest.keys = [keys[row] for row in rest]

    def _known(self, batch: Batch, rows: list[int], requests: list[Item | None]) -> Batch:
        part = part_of(batch, rows, batch.decode_started_ns)
        items = requests if any(requests) else []
        part.feed = Feed(None, items, [None] * len(rows))
        part.decode_started_ns = part.decode_ended_ns = batch.decode_started_ns
        return part

    def keep(self, batch: Batch, run: Run, fragments: Sequence[Any]) -> None:
        """Keep what the model answered; a row without an answer is not kept."""
        keys = batch.keys
        assert keys is not None
        assert batch.feed is not None
        items = batch.feed.items
        self.entries.put(
            (key, fragment, request_only(items[row]) if items else None)
            for row, fragment in zip(run.rows, fragments, strict=True)
            if isinstance(fragment, bytes) and (key := keys[row]) is not None
        )

    def _keys(self, batch: Batch) -> list[bytes | None]:
        """The key of each row; None where it is not looked for."""
        keys: list[bytes | None] = []
        copy = self._hash.copy
        plain = self._headers == frozenset() and not batch.to_open
        for row, payload in enumerate(batch.payloads):
            if payload is None:
                keys.append(None)
                continue
            digest = copy()
            digest.update(payload)
            if not plain and not self._add_headers(digest, batch, row):
                keys.append(None)
                continue
            keys.append(digest.digest() + len(payload).to_bytes(LENGTH_BYTES))
        return keys

    def _add_headers(self, digest: Any, batch: Batch, row: int) -> bool:
        """Add the headers that reading this row depends on; False where it must not be looked for."""
        headers: Headers = batch.columns.headers[row] or []
        names = self._headers
        if row in batch.to_open:
            opening = batch.route.opening
            if not self._opens or opening is None or opening.is_event(headers):
                return False  # an event has an id of its own inside
            names = names | PAYLOAD_HEADERS if names is not None else None
        for name, value in headers:
            if names is None or name.lower() in names:
                text = value or b""
                digest.update(
                    b"\n%b\n%d\n%b" % (name.lower().encode("utf-8", "surrogateescape"), len(text), text)
                )
        return True


def _divided(keys: Sequence[bytes | None], rows: list[int]) -> tuple[list[int], dict[int, int]]:
    """Rows without those whose key an earlier one has; and these, with the place of that one among the others."""
    ours = [keys[row] for row in rows]
    if len({*ours}) == len(ours):
        return rows, {}
    first: dict[bytes, int] = {}
    others: list[int] = []
    equal: dict[int, int] = {}
    for row, key in zip(rows, ours, strict=True):
        if key is not None and key in first:
            equal[row] = first[key]
            continue
        if key is not None:
            first[key] = len(others)
        others.append(row)
    return others, equal


def follow(parts: Parts) -> None:
    """Tell rows whose payload equals another one's in the batch what request that one is, once it is decoded."""
    rest, known = parts.rest, parts.known
    if not parts.leaders or rest is None or rest.feed is None or not rest.feed.items:
        return
    assert known.feed is not None
    known.feed.items = known.feed.items or [None] * len(known)
    for row, leader in parts.leaders.items():
        known.feed.items[row] = request_only(rest.feed.items[leader])


def answered(parts: Parts, made: dict[int, Any], now_ns: int) -> None:
    """Give the part whose answers are known its one run.

    Args:
        made: by row of the rest, what the model's answer became.
        now_ns: monotonic clock.
    """
    known, rest = parts.known, parts.rest
    assert known.feed is not None
    for row, leader in parts.leaders.items():
        assert rest is not None
        assert rest.outcomes is not None
        fragment = made.get(leader)
        if isinstance(fragment, bytes):
            parts.fragments[row] = fragment
        elif (why := rest.outcomes.rejected.get(leader)) is not None:
            known.feed.rejected[row] = why
        elif isinstance(fragment, Rejection):
            known.feed.rejected[row] = fragment
    rows: Sequence[int] = range(len(known))
    if known.feed.rejected:
        rows = [row for row in rows if row not in known.feed.rejected]
    fragments = [parts.fragments[row] for row in rows]
    known.runs = [Run(rows, {}, started_ns=now_ns, ended_ns=now_ns, fragments=fragments)] if rows else []


def request_only(item: Item | None) -> Item | None:
    """What the answers need of a decoded record, without its tensors."""
    if item is None or (item.single and item.request is None):
        return None
    return Item({}, item.count, item.single, item.request)


def entries_of(settings: CacheSettings | None) -> Entries | None:
    """The entries of a pipeline, where it has a cache."""
    return Entries(settings.bytes, settings.ttl_s) if settings is not None else None


def cache_of(settings: PipelineSettings, entries: Entries | None, encoder: Encoder, key: str) -> Cache | None:
    """What a servable with this encoder finds in the entries; None without any.

    Args:
        key: the setting's name, as its user wrote it.

    Raises:
        ConfigError: the postprocess reads more of a record than its payload.
    """
    if entries is None:
        return None
    if getattr(encoder, "takes_items", False):
        raise ConfigError(
            f"{key}: does not go with custom code f(outputs, item) as postprocess, which reads more of a record than its "
            "payload; expected f(outputs)"
        )
    entry = INPUT_FORMATS.entry(settings.input.format)
    read: frozenset[str] | None = getattr(entry, "reads_headers", frozenset())
    if settings.input.format not in INPUT_FORMATS or settings.custom_unwrap:
        read = None
    own_body = settings.output.body is not None or settings.output.copy_ is not None
    puts_off = settings.custom_code or getattr(entry, "needs_schemas", False)
    return Cache(entries, read, opens=not own_body, joins=not puts_off)
