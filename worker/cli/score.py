"""``streaminfer score``: joins results with labels that come later, and says how good the model is on live records."""

from __future__ import annotations

import argparse
import os
import socket
import sys
import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from worker import __version__
from worker.cli.main import add_set_option
from worker.errors import ClientFatal, ConfigError, StartError

if TYPE_CHECKING:
    from worker.kafka.scored import Place, ScoredTopics
    from worker.process.signals import Stop
    from worker.scoring.scorer import Scorer
    from worker.settings import Settings
    from worker.telemetry.http import HttpServer
    from worker.telemetry.quality import View

READ_S = 0.1
LOOK_S = 1.0
"""Seconds between two looks at what waits, and between two views for HTTP."""
SILENT_S = 30.0
"""With --once: how long the group may take to give this process partitions."""

EXAMPLE = """\
examples:
  streaminfer score digits.yaml
  streaminfer score digits.yaml --once --json"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Join the results of CONFIG's pipelines with the labels of its labels.topic, whichever come first, and report how "
        "good each model version is. Several processes share the partitions. A table is printed at the end."
    )
    parser.epilog = EXAMPLE
    parser.add_argument("config", metavar="CONFIG", type=Path, help="the worker's YAML file, with labels")
    parser.add_argument("--json", action="store_true", help="print the table as one JSON object per line")
    parser.add_argument(
        "--once", action="store_true", help="end once everything that is there at the start was read"
    )
    add_set_option(parser)


def run(args: argparse.Namespace) -> int:
    """Score until a signal comes, or what is there was read.

    Raises:
        ConfigError: the configuration has no labels.
        StartError: no broker, a missing topic or right, or topics with unlike numbers of partitions.
        ClientFatal: the client cannot go on.
    """
    from worker.process.signals import listening

    with listening() as stop:
        return _run(args, stop)


def _run(args: argparse.Namespace, stop: Stop) -> int:
    import orjson

    from worker.cli.text import harmless
    from worker.process import runtime
    from worker.settings import load
    from worker.telemetry import logs, quality

    settings = load(args.config, args.overrides)
    if settings.labels is None:
        raise ConfigError(f"{args.config}: labels is required for score: labels.topic says where labels come")
    logs.configure(settings.secrets())
    runtime.prepare()
    session = Session(settings, args.once)
    stop.drain_then_leave(session.ask_to_stop)
    try:
        view = session.run()
    finally:
        session.close()
    window_ms = int(settings.labels.window_s * 1000)
    if args.json:
        for line in quality.lines(view, window_ms):
            sys.stdout.buffer.write(harmless(orjson.dumps(line)) + b"\n")
    else:
        from worker.cli.score_table import table

        print("\n".join(table(view)))
    return 0


class Session:
    """One process that scores, from its start to its table.

    Args:
        once: end once what is there was read.
    """

    def __init__(self, settings: Settings, once: bool) -> None:
        from worker.kafka.properties import client_id
        from worker.kafka.scored import ScoredTopics, find_topics, score_group
        from worker.scoring.reading import Rules
        from worker.scoring.scorer import Bounds, Scorer
        from worker.settings import scored_pipelines
        from worker.telemetry import logs
        from worker.telemetry.quality import View
        from worker.telemetry.topic import WorkerInfo

        assert settings.labels is not None
        self._log = logs.get(__name__)
        labels = settings.labels
        results, left_out = scored_pipelines(settings)
        for name, why in left_out.items():
            self._log.warning("a pipeline is not scored", pipeline=name, because=why)
        self._metrics_topic = settings.metrics.topic
        found = find_topics(settings, [*results], labels.topic, self._metrics_topic)
        self.info = WorkerInfo(
            client_id(settings), score_group(settings), socket.gethostname(), os.getpid(), __version__
        )
        bounds = Bounds(int(labels.wait_s * 1000), int(labels.window_s * 1000), labels.max_pending)
        rules = Rules(results, labels.topic, labels.id, labels.label)
        described = {name: getattr(self.info, name) for name in ("id", "group", "host", "pid", "version")}
        self._scorer: Scorer = Scorer(rules, bounds, described)
        self._bounds = bounds
        self._interval_s = settings.metrics.interval_s
        self._once = once
        self._stop = threading.Event()
        self._view: View = View()
        self._joined = False
        self._leaving = False
        """Whether the partitions leave, so that nothing of them begins anew."""
        self._publishing = False
        self._turned_s = time.monotonic()
        self._stall_s = settings.limits.stall_s
        self._http: HttpServer | None = _serve(settings, self)
        self._topics: ScoredTopics = ScoredTopics(
            settings, [*results, labels.topic], found, self._metrics_topic, self
        )
        if self._metrics_topic is None:
            self._log.warning(
                "metrics.topic is not set: after a restart the figures begin anew, though no result is counted twice"
            )

    # -- for other threads ---------------------------------------------------------------------------------------

    def ask_to_stop(self) -> None:
        """Publish what is known, and end; called on another thread."""
        self._stop.set()

    def view(self) -> View:
        """What was known at the last look."""
        return self._view

    def joined(self) -> bool:
        """Whether the group has given partitions, or said that there are none."""
        return self._joined

    def alive(self) -> bool:
        """Whether the loop turns, or waits for a broker: to be started again would not bring one back."""
        if self._publishing:
            quality = self._topics.quality
            return quality is None or not quality.hung
        return time.monotonic() - self._turned_s < self._stall_s

    # -- the loop ------------------------------------------------------------------------------------------------

    def run(self) -> View:
        """Read, join and publish until asked to stop. Returns what is known at the end."""
        now_s = time.monotonic()
        publish_s, look_s = now_s + self._interval_s, now_s
        give_up_s = now_s + SILENT_S
        while not self._stop.is_set():
            messages = self._topics.read(READ_S)
            self._scorer.take(messages)
            self._note_ends()
            self._topics.hold_back()
            now_s = self._turned_s = time.monotonic()
            if now_s >= publish_s or self._scorer.crowded:
                self._publish()
                publish_s = now_s + self._interval_s
            if now_s >= look_s:
                look_s = now_s + LOOK_S
                self._look()
            if self._once and self._joined and self._all_read():
                break
            if self._once and not self._joined and now_s > give_up_s:
                raise StartError(f"kafka: the group {self.info.group} gave no partitions in {SILENT_S:.0f} s")
        self._stop.set()
        self._expire()
        self._publish()
        self._look()
        return self._view

    def close(self) -> None:
        """Leave the group; what can be published was."""
        self._stop.set()
        self._scorer.disown()
        self._topics.close()
        if self._http is not None:
            self._http.close()

    def _note_ends(self) -> None:
        for topic, number in self._topics.at_end:
            self._scorer.ended(topic, number, self._topics.ends[topic, number])

    def _all_read(self) -> bool:
        places = [
            (topic, n, place) for n, each in self._topics.assigned.items() for topic, place in each.items()
        ]
        return all(
            (topic, number) in self._topics.at_end or self._scorer.position(topic, number) >= place.high
            for topic, number, place in places
        )

    def _look(self) -> None:
        """Give up what has waited too long, and take a new view."""
        from worker.telemetry.quality import View

        self._expire()
        self._view = View(
            self._scorer.totals(),
            self._scorer.windows(),
            dict(sorted(self._scorer.counts().items())),
            self._scorer.waiting(),
            int(time.time() * 1000) - self._bounds.window_ms,
        )

    def _expire(self) -> None:
        now_ms = int(time.time() * 1000)
        for number in self._topics.assigned:
            if self._scorer.expiring(number, now_ms):
                self._scorer.expire(number, now_ms, partial(self._topics.really_ended, number))

    def _publish(self) -> None:
        """Publish and commit; if that fails, all partitions begin anew where they are committed."""
        from worker.kafka.quality import Publication

        labels = self._scorer.rules.labels
        publications = [
            Publication(each.number, each.value, partial(each.commits, labels))
            for each in self._scorer.due(int(time.time() * 1000))
        ]
        if not publications:
            return
        self._publishing = True
        try:
            places = self._topics.publish(publications)
            if places is not None:
                self._scorer.published(places)
            elif not self._leaving and not self._stop.is_set():
                self._scorer.disown()
                self._topics.begin_anew()
        finally:
            self._publishing = False

    # -- partitions ----------------------------------------------------------------------------------------------

    def on_own(self, places: Mapping[int, Mapping[str, Place]]) -> dict[int, dict[str, int]]:
        """See :class:`worker.kafka.scored.Owner`."""
        from worker.scoring import notes
        from worker.scoring.records import Before, before

        self._scorer.disown()
        self._joined = True
        starts: dict[int, dict[str, int]] = {}
        remembered = self._scorer.remembered(len(places))
        for number, topics in places.items():
            committed = {
                topic: notes.read(place.low if place.committed is None else place.committed, place.note)
                for topic, place in topics.items()
            }
            starts[number] = {
                topic: max(topics[topic].low, self._scorer.start(topic, mark.position, remembered))
                for topic, (mark, _) in committed.items()
            }
            last = committed[self._scorer.rules.labels][1]
            quality = self._topics.quality
            value = quality.read(last) if last and quality is not None else None
            counted = before(value, number) if value is not None else None
            if last and counted is None:
                self._log.warning(
                    "the last quality record is not there any more: figures begin anew",
                    partition=number,
                    place=last,
                )
            self._scorer.own(number, committed, starts[number], counted or Before(), remembered)
        return starts

    def ahead(self, number: int) -> list[str]:
        """See :class:`worker.kafka.scored.Owner`."""
        return self._scorer.ahead(number, partial(self._topics.ended, number))

    def stopping(self) -> bool:
        """See :class:`worker.kafka.scored.Owner`."""
        return self._stop.is_set()

    def on_leave(self) -> None:
        """See :class:`worker.kafka.scored.Owner`."""
        self._leaving = True
        try:
            self._publish()
        except ClientFatal as error:
            self._log.warning("the partitions leave without a last commit", because=str(error))
        self._leaving = False
        self._scorer.disown()

    def on_lost(self) -> None:
        """See :class:`worker.kafka.scored.Owner`."""
        self._scorer.disown()


def _serve(settings: Settings, session: Session) -> HttpServer | None:
    """Metrics over HTTP; on a free port if the worker's own is in use."""
    from worker.telemetry import logs, quality
    from worker.telemetry.access import Access
    from worker.telemetry.http import HttpServer, parse_address
    from worker.telemetry.tls import Tls

    assert settings.labels is not None
    metrics = settings.metrics
    address = settings.labels.http or metrics.http
    if address is None:
        return None
    host, port = parse_address(address)
    pages = quality.routes(session.view, session.joined, session.alive, int(settings.labels.window_s * 1000))
    tls = Tls(metrics.tls.certificate, metrics.tls.key) if metrics.tls is not None else None
    access = Access(host, metrics.hosts, metrics.token)

    def serve(at: str) -> HttpServer:
        return HttpServer(at, None, session.info, 0, access, tls, pages)

    try:
        return serve(address)
    except StartError:
        if settings.labels.http is not None or port == 0:
            raise
    server = serve(f"{address.rpartition(':')[0]}:0")
    logs.get(__name__).warning(
        "metrics.http is in use, so the metrics of score are on another port; labels.http gives them one of their own",
        in_use=port,
        port=server.port,
    )
    return server
