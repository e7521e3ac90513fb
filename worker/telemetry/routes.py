"""What each path of ``metrics.http`` answers: metrics, health, and where they are on the page and what it shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Protocol

import orjson

from worker.telemetry.meters import Snapshot
from worker.telemetry.prometheus import CONTENT_TYPE, Exposition
from worker.telemetry.topic import WorkerInfo, metrics_record

PAGE = "/"
"""The path of the page. It holds no numbers, so it also answers those who have yet to give the token."""


@dataclass(frozen=True, slots=True)
class Health:
    """The three answers, and the reasons for the person who asks."""

    alive: bool
    ready: bool
    progressing: bool
    detail: dict[str, Any] = field(default_factory=dict)
    """Added to the bodies of `alive` and `ready`."""
    waits: str | None = None
    """What progress waits for: a partition that does not progress, or brokers; None while nothing is unusual."""


class Provider(Protocol):
    """Gives the server what it shows. Request threads call both methods."""

    def health(self) -> Health:
        """The health as already known, without waiting: it must answer even if nothing else does."""

    def snapshot(self) -> Snapshot:
        """A recent consistent snapshot since the start of the process."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    status: HTTPStatus
    content_type: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class Stream(Protocol):
    """An answer that goes on: server-sent events."""

    def parts(self) -> Iterator[bytes]:
        """The events, each when it is there; ends when the server closes."""

    def close(self) -> None:
        """Nobody reads it any more."""


Route = Callable[[], "Answer | Stream"]


def routes(
    provider: Provider, worker: WorkerInfo, last_minute: Callable[[], Snapshot] | None = None
) -> dict[str, Route]:
    """Metrics and health by path.

    Args:
        last_minute: a recent snapshot whose counters cover the last minute; None: it is not told.
    """
    exposition = Exposition(provider.snapshot)

    def metrics() -> Answer:
        return Answer(HTTPStatus.OK, CONTENT_TYPE, exposition.render())

    def alive() -> Answer:
        health = provider.health()
        return _health(health.alive, orjson.dumps({"live": health.alive, **health.detail}, default=str))

    def ready() -> Answer:
        health = provider.health()
        return _health(health.ready, orjson.dumps({"ready": health.ready, **health.detail}, default=str))

    def progressing() -> Answer:
        health = provider.health()
        minute = last_minute() if last_minute is not None else None
        return _health(health.progressing, metrics_record(provider.snapshot(), worker, health.waits, minute))

    return {
        "/metrics": metrics,
        "/livez": alive,
        "/readyz": ready,
        "/progressz": progressing,
        "/v2/health/live": alive,
        "/v2/health/ready": ready,
    }


def sentence(status: HTTPStatus, text: str, headers: Mapping[str, str] | None = None) -> Answer:
    """An answer in words."""
    return Answer(status, "text/plain; charset=utf-8", f"{text}\n".encode(), headers or {})


def _health(good: bool, body: bytes) -> Answer:
    return Answer(HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE, "application/json", body)
