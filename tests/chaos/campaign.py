"""One run of chaos in one delivery mode: a world, a seeded series of faults, a reckoning."""

from __future__ import annotations

import random
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
from accounts import Topics, add_up, agree, counted
from cluster import Cluster
from confluent_kafka import Message
from crew import Crew
from faults import FAULTS, SESSION_S, World
from outcome import Outcome
from stream import create_topics, judge, place_of, read_all, unique, write_config
from traffic import Traffic, Witness

PARTITIONS = 6
OUTPUT_PARTITIONS = 4
REPLICAS = 3
RATE = 400.0
RECOVERY_S = 60.0
"""Past this after a fault the worker has not recovered by itself."""
SETTLE_S = 120.0
TWO_AT_ONCE = 0.25
"""How often a second fault happens during the first."""
TOLERATED_ENDS = {"exit 3", "exit 5", "exit 6"}
"""Ends a supervisor answers with a restart: no broker at the start, stalled, a client that cannot go on."""

INPUT_FORMAT = '''
"""JSON features with the pace of a model that takes its time, and one record that kills."""
import os, signal, time
import numpy as np
import orjson
from worker import Reject

def decode(value, headers):
    if value == b"kill":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.001)
    try:
        features = orjson.loads(value)["features"]
    except (orjson.JSONDecodeError, KeyError):
        raise Reject("not JSON with features", "undecodable") from None
    if len(features) != 20:
        raise Reject("not 20 features")
    return {"x": np.array(features, np.float32)}
'''


def run(delivery: str, seed: int, minutes: float, protocol: str, say: Callable[[str], None]) -> Outcome:
    """Break things for ``minutes``, then count. The folder with all logs is kept when a promise was broken."""
    folder = Path(tempfile.mkdtemp(prefix="streaminfer-chaos-"))
    outcome = Outcome(delivery, seed, minutes)
    cluster = Cluster(folder / "broker")
    try:
        _Campaign(cluster, folder, outcome, protocol, say).run()
    finally:
        cluster.close()
    if outcome.broken:
        outcome.logs = str(folder)
    else:
        shutil.rmtree(folder)
    return outcome


class _Campaign:
    def __init__(
        self, cluster: Cluster, folder: Path, outcome: Outcome, protocol: str, say: Callable[[str], None]
    ) -> None:
        self._outcome = outcome
        self._say = say
        self._rng = random.Random(outcome.seed)
        self._began = time.monotonic()
        source, group = unique("in"), unique("chaos")
        self._outputs = [unique("out"), unique("dead")]
        create_topics(
            cluster.direct, {source: PARTITIONS, self._outputs[0]: OUTPUT_PARTITIONS, self._outputs[1]: 2}
        )
        config = _configure(folder, cluster, source, self._outputs, group, outcome.delivery, protocol)
        traffic = Traffic(cluster.direct, source, PARTITIONS, RATE, outcome.seed)
        witness = Witness(cluster.direct, self._outputs, source, group, traffic)
        self._world = World(cluster, Crew(config, REPLICAS), traffic, witness, source, group)
        self._protocol = protocol

    def run(self) -> None:
        world = self._world
        try:
            if world.witness.wait_for_news(RECOVERY_S) is None:
                raise OSError("the replicas did not begin to work")
            until = time.monotonic() + self._outcome.minutes * 60
            while time.monotonic() < until:
                time.sleep(self._rng.uniform(0.5, 3))
                self._break_something()
            self._settle()
            world.crew.close()
            self._reckon()
        finally:
            world.crew.kill_all()
            world.witness.close()

    def _break_something(self) -> None:
        """One fault, or two at once; then wait until everything moves again."""
        kinds, weights = list(FAULTS), list(FAULTS.values())
        chosen = {self._rng.choices(kinds, weights)[0]}
        if self._rng.random() < TWO_AT_ONCE:
            chosen.add(self._rng.choices(kinds, weights)[0])
        ordered = sorted(chosen, key=lambda fault: fault.__name__)
        name = " + ".join(fault.__name__.replace("_", " ") for fault in ordered)
        self._say(f"{time.monotonic() - self._began:6.1f} s  {name}")
        failures: list[BaseException] = []

        def inject(fault: Any, seed: float) -> None:
            try:
                fault(self._world, random.Random(seed))
            except BaseException as error:
                failures.append(error)

        running = [threading.Thread(target=inject, args=(fault, self._rng.random())) for fault in ordered]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        for failure in failures:
            self._outcome.broken.append(f"{name}: {failure}")
        for fault in ordered:
            self._outcome.faults[fault.__name__.replace("_", " ")] += 1
        took_s = self._world.witness.wait_for_news(RECOVERY_S)
        if took_s is None:
            self._outcome.broken.append(f"no recovery within {RECOVERY_S:g} s after: {name}")
            self._say("          not recovered")
        else:
            self._outcome.recovery_s.setdefault(name, []).append(took_s)
            self._say(f"          recovered after {took_s:.1f} s")

    def _settle(self) -> None:
        """No more faults, no more input: everything must be answered."""
        self._world.cluster.start()
        self._world.traffic.close()
        deadline = time.monotonic() + SETTLE_S
        while self._world.witness.missing() and time.monotonic() < deadline:
            time.sleep(0.2)

    def _reckon(self) -> None:
        world, outcome = self._world, self._outcome
        outputs: list[Message] = [m for topic in self._outputs for m in read_all(world.cluster.direct, topic)]
        verdict = judge(
            world.traffic.sent, outputs, lambda m: world.traffic.tombstones.get(m.key()) or place_of(m)
        )
        outcome.records = len(world.traffic.sent)
        outcome.lost, outcome.doubled = len(verdict.lost), len(verdict.doubled)
        outcome.reordered = len(verdict.reordered)
        outcome.early_commits, outcome.commits_looked_at = (
            len(world.witness.early_commits),
            world.witness.audits,
        )
        outcome.counted = [said for log in world.crew.in_order for said in counted(log)]
        topics = Topics(*(sum(m.topic() == topic for m in outputs) for topic in self._outputs), read=None)
        outcome.drain_s, outcome.ends = world.crew.orderly_s, world.crew.ends
        expected_ends = Counter({"signal 9": outcome.ends["signal 9"]}) if world.killers else Counter()
        found = {
            "lost": verdict.lost,
            "reordered": verdict.reordered,
            "answers to nothing": verdict.unknown,
            "commits beyond outputs": world.witness.early_commits,
            "doubled": verdict.doubled if outcome.delivery == "exactly_once" else [],
            # what was killed has counted for itself, and cannot say so
            "counters": [*add_up(outcome.counted), *agree(outcome.counted, topics, once=False, drops=False)],
            # who was asked to leave before it had begun has nothing to say
            "left without last words": [
                log for log in world.crew.in_order if not counted(log) and "assigned" in log.read_text()
            ],
            "ends": [end for end in outcome.ends if end not in TOLERATED_ENDS and end not in expected_ends],
        }
        outcome.broken += [f"{what}: {len(items)}, {items[:5]}" for what, items in found.items() if items]


def _configure(
    folder: Path,
    cluster: Cluster,
    source: str,
    outputs: list[str],
    group: str,
    delivery: str,
    protocol: str,
) -> Path:
    models.write(folder, models.mlp())
    (folder / "chaos_input.py").write_text(INPUT_FORMAT)
    kafka: dict[str, Any] = {
        "bootstrap.servers": cluster.bootstrap,
        "group.id": group,
        "group.protocol": protocol,
    }
    if protocol == "classic":
        kafka["session.timeout.ms"] = int(SESSION_S * 1000)
    return write_config(
        folder,
        {
            "name": "chaos",
            "input": {"topics": [source], "format": "chaos_input:decode"},
            "model": {"path": "model.onnx", "threads": 1},
            "postprocess": {"classification": {"top_k": 1}},
            "output": {"topic": outputs[0]},
            "dead_letter": {"topic": outputs[1]},
            "delivery": delivery,
            "kafka": kafka,
        },
    )
