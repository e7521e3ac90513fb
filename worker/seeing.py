"""What a worker shows over HTTP, put together: the server, and behind the page its recorder, samples and group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from worker.serving.rollout import Rollout
from worker.settings import Settings, memory_bound
from worker.telemetry import logs, page
from worker.telemetry.access import Access
from worker.telemetry.follower import Follower
from worker.telemetry.http import HttpServer, parse_address
from worker.telemetry.last_seen import LastLetters, LastResults, Picture
from worker.telemetry.observer import Observer
from worker.telemetry.recorder import Recorder
from worker.telemetry.routes import Provider
from worker.telemetry.state import About
from worker.telemetry.tls import Tls
from worker.telemetry.topic import WorkerInfo

if TYPE_CHECKING:
    from worker.kafka.tools import TopicReader

log = logs.get("worker")


class Seeing:
    """Serves from its construction until `close`.

    Args:
        address: ``metrics.http``.
        index: which replica this is.

    Raises:
        ConfigError: a file of ``metrics.tls`` cannot be used.
        StartError: the address cannot be bound.
    """

    def __init__(
        self, settings: Settings, address: str, index: int, provider: Provider, info: WorkerInfo
    ) -> None:
        self.letters = LastLetters()
        upright = _upright(settings)
        kept = settings.page.samples
        results = LastResults(kept, lambda file: _small(file, upright)) if kept else None
        self.observers: Sequence[Observer] = [results] if results is not None else []
        self._recorder = Recorder(
            _about(settings, info), provider, self.letters, results, _group(settings, info)
        )
        host, _ = parse_address(address)
        metrics = settings.metrics
        tls = Tls(metrics.tls.certificate, metrics.tls.key) if metrics.tls is not None else None
        access = Access(host, metrics.hosts, metrics.token)
        paths = {**page.routes(), **self._recorder.routes()}
        self._http = HttpServer(
            address, provider, info, index, access, tls, paths, self._recorder.last_minute
        )
        scheme = "http" if tls is None else "https"
        shown = f"[{host}]" if ":" in host else host
        self.url = f"{scheme}://{shown}:{self._http.port}"
        """Where the page is."""
        if access.asks and tls is None and not _loopback(host):
            log.warning(
                "metrics.token is sent unencrypted to other hosts; metrics.tls encrypts it", host=host
            )
        self._recorder.start()

    def warm(self, rollouts: Sequence[Rollout]) -> None:
        """The models are loaded.

        Args:
            rollouts: one for each pipeline.
        """
        self._recorder.trials = lambda: dict(_trials(rollouts))
        self._recorder.warm()

    def close(self) -> None:
        self._recorder.close()
        self._http.close()


def _trials(rollouts: Sequence[Rollout]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rollouts that run, by pipeline; for any thread."""
    for rollout in rollouts:
        plan, candidate = rollout.plan, rollout.candidate
        if plan is not None and candidate is not None:
            yield (
                rollout.route.name,
                {
                    "id": plan.id,
                    "state": "running",
                    "mode": plan.mode,
                    "share": plan.share if plan.mode == "canary" else None,
                    "candidate": candidate.model_version,
                },
            )


def _about(settings: Settings, info: WorkerInfo) -> About:
    return About(
        info,
        {name: each.input.topics for name, each in settings.pipelines.items()},
        {name: each.output.topic for name, each in settings.pipelines.items()},
        settings.dead_letter.topic,
        settings.metrics.topic,
        settings.kafka["bootstrap.servers"],
        settings.metrics.interval_s,
        settings.limits.in_flight_bytes,
        memory_bound(settings),
        settings.page.samples,
    )


def _group(settings: Settings, info: WorkerInfo) -> Follower | None:
    topic = settings.metrics.topic
    if topic is None:
        return None

    def reader(since_ms: int) -> TopicReader:
        from worker.kafka.tools import TopicReader

        return TopicReader(settings, [topic], since_ms)

    return Follower(info.group, topic, reader)


def _small(file: bytes, upright: bool) -> Picture | None:
    from worker.features.thumbnail import thumbnail  # loads OpenCV

    made = thumbnail(file, upright)
    return Picture(*made) if made is not None else None


def _upright(settings: Settings) -> bool:
    """Whether the boxes of results are those of pictures that follow the camera's orientation."""
    contents = (content for each in settings.pipelines.values() for content in each.preprocess.contents)
    return all(getattr(content.options, "orientation", "exif") == "exif" for content in contents)


def _loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")
