"""A store as unpleasant as a real one: slow, away for a while, late with a payload, without it, or refusing it.

Records whose value is ``get <name>`` need the payload of that name. Every payload ends with the place of its record, so
that whoever answers it can see whether it got the right one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

from fakes import FakeClock, Record

from worker.batch import Headers
from worker.errors import Reject
from worker.loop.io_threads import Back
from worker.outside import Away, Need, NotYet, Sized

APPEAR_S = 0.5


class Store:
    """See the module, and :class:`worker.outside.Outside`.

    Args:
        too_large: payloads from this size on are too large.
    """

    concurrency = 4
    shared = False

    def __init__(self, clock: FakeClock, rng: Random, too_large: int, cases: Counter[str]) -> None:
        self.up = True
        self._clock = clock
        self._rng = rng
        self._too_large = too_large
        self._cases = cases
        self._things: dict[str, tuple[bytes, int, str]] = {}
        """Name -> payload, when it appears, fate."""

    def put(self, record: Record, fate: str) -> str:
        """Take a record's value away and leave a reference; returns what must become of the record now."""
        rng = self._rng
        name = f"{len(self._things)}"
        value = record.value or b""
        payload = value + b"@%s/%d/%d" % (
            record.partition.topic.encode(),
            record.partition.number,
            record.offset,
        )
        appears_ns = self._clock() + int(rng.choice([0, 0, 0, 0.2]) * 1e9)
        if fate == "result" and rng.random() < 0.1:
            fate = rng.choice(["reference_missing", "reference_denied"])
        self._things[name] = value if fate == "too_large" else payload, appears_ns, fate
        record.value = b"get " + name.encode()
        return fate

    def need(self, payload: bytes | None, headers: Headers | None) -> Need | None:
        if payload is None or not payload.startswith(b"get "):
            return None
        return Need(payload[4:].decode(), "store")

    def ask(self, need: Need, allowed_bytes: int) -> bytes | Sized | None:
        self._perhaps_away()
        payload, appears_ns, fate = self._things[need.what]
        if fate == "reference_denied":
            raise Reject("not for you", "reference_denied")
        if fate == "reference_missing" or self._clock() < appears_ns:
            self._cases["payload not there"] += 1
            raise NotYet(Reject("not there", "reference_missing"), APPEAR_S)
        if len(payload) >= self._too_large:
            raise Reject("too large", "too_large")
        if len(payload) <= allowed_bytes:
            return payload
        self._cases["payload that waits for bytes"] += 1
        return Sized(len(payload), lambda: self._read(payload), lambda: None)

    def _read(self, payload: bytes) -> bytes:
        self._perhaps_away()
        return payload

    def _perhaps_away(self) -> None:
        if not self.up or self._rng.random() < 0.05:
            self._cases["store away"] += 1
            raise Away("the store is away")


class SlowCalls:
    """Calls that end after a random time, in any order. See :class:`worker.loop.io_threads.Calls`."""

    def __init__(self, clock: FakeClock, rng: Random) -> None:
        self._clock = clock
        self._rng = rng
        self._slowest_ns = int(rng.choice([0, 0.005, 0.05]) * 1e9)
        self._running: list[tuple[int, Any, Callable[[], Any]]] = []

    def start(self, job: Any, call: Callable[[], Any]) -> None:
        self._running.append((self._clock() + self._rng.randint(0, self._slowest_ns), job, call))

    def back(self) -> list[Back]:
        now_ns = self._clock()
        over = [entry for entry in self._running if entry[0] <= now_ns]
        self._running = [entry for entry in self._running if entry[0] > now_ns]
        return [_called(job, call) for _, job, call in over]

    def close(self) -> None: ...


def _called(job: Any, call: Callable[[], Any]) -> Back:
    try:
        return Back(job, call())
    except Exception as error:
        return Back(job, error=error)
