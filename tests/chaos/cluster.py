"""Real brokers that can be stopped, killed and frozen: one behind a proxy that can be slow, silent or gone; two with everything."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from confluent_kafka import ElectionType, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from proxy import Proxy
from stream import wait_for

KAFKA = Path(__file__).resolve().parents[2] / "scripts" / "kafka"
PROXIED_DOOR = 3
"""Ports between the broker's first and the one that sends clients on to the proxy."""
GROUPS, TRANSACTIONS = "__consumer_offsets", "__transaction_state"
"""Whoever leads a partition of these coordinates the groups, or the transactions, that are kept in it."""
COORDINATOR_PARTITIONS = 4
"""Of each, as the broker's properties have it."""


class Cluster:
    """One broker of its own. ``direct`` is for the experimenter, ``bootstrap`` for what is tested."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.proxy = Proxy()
        self.bootstrap = f"127.0.0.1:{self.proxy.port}"
        self.direct = self.start()
        self.proxy.upstream = int(self.direct.rpartition(":")[2]) + PROXIED_DOOR

    def start(self) -> str:
        """Start it where it is not running; returns when it answers."""
        return _script("start", "--proxy", str(self.proxy.port), "--dir", str(self._folder))

    def stop(self) -> None:
        """An orderly shutdown."""
        _script("stop", "--dir", str(self._folder))

    def kill(self) -> None:
        _signal(self._folder, signal.SIGKILL)

    def freeze(self) -> None:
        """It keeps its connections and answers nothing."""
        _signal(self._folder, signal.SIGSTOP)

    def thaw(self) -> None:
        _signal(self._folder, signal.SIGCONT)

    def close(self) -> None:
        self.thaw()
        self.stop()
        self.proxy.close()


class Pair:
    """Two brokers with a copy of everything each; all coordinators are on the second one until they are moved.

    The first is the controller besides, and stays.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            self.bootstrap = self._start()
            self._admin = AdminClient({"bootstrap.servers": self.bootstrap})
            self._place_coordinators()
        except BaseException:
            self.close()  # one of them may be running
            raise

    def stop_second(self) -> None:
        """Ask it to leave: it hands over first."""
        _signal(self._second, signal.SIGTERM)

    def kill_second(self) -> None:
        _signal(self._second, signal.SIGKILL)

    def start_second(self) -> None:
        """Back with all it missed, and the leader of nothing until it is given something back."""
        _script("stop", "--dir", str(self._second))  # it may still be leaving
        self._start()
        wait_for(self._in_sync, "the second broker to catch up")

    def give_back(self, topic: str | None = None) -> None:
        """Make the second broker the leader again of this topic, or of all it led at first; nobody is stopped."""
        partitions = topic and [TopicPartition(topic, number) for number in range(COORDINATOR_PARTITIONS)]
        wanted = {topic} if topic else {GROUPS, TRANSACTIONS}

        def led() -> bool:
            self._admin.elect_leaders(ElectionType.PREFERRED, partitions).result(30)
            known = self._admin.list_topics(timeout=10).topics
            return {p.leader for name in wanted for p in known[name].partitions.values()} == {2}

        wait_for(led, f"the second broker to lead {wanted}")

    def coordinator(self, topic: str, name: str) -> int:
        """Of a group, or a transactional id, as the first broker answers whoever asks; -1: none now."""
        kind = (GROUPS, TRANSACTIONS).index(topic)
        key = name.encode()
        find_coordinator = struct.pack(f">h{len(key)}sb", len(key), key, kind)
        answer = _ask(self.bootstrap.partition(",")[0], 10, find_coordinator)
        error, message_bytes = struct.unpack_from(">hh", answer, 8)  # behind correlation and throttling
        (node,) = struct.unpack_from(">i", answer, 12 + max(0, message_bytes))
        return -1 if error else int(node)

    def knows(self, topic: str) -> bool:
        """Whether both brokers have heard of a topic; a client asks any one of them, and one may be behind."""
        every_topic = struct.pack(">i", -1)
        return all(topic.encode() in _ask(broker, 3, every_topic) for broker in self.bootstrap.split(","))

    def close(self) -> None:
        _script("stop", "--dir", str(self._folder))

    @property
    def _second(self) -> Path:
        return self._folder / "node-2"

    def _start(self) -> str:
        return _script("start", "--nodes", "2", "--dir", str(self._folder))

    def _place_coordinators(self) -> None:
        """Make their topics before a broker does, which would put them anywhere."""
        wait_for(lambda: len(self._admin.list_topics(timeout=10).brokers) == 2, "the second broker")
        preferred = [[2, 1]] * COORDINATOR_PARTITIONS
        compact = {"cleanup.policy": "compact"}
        topics = [
            NewTopic(name, len(preferred), replica_assignment=preferred, config=compact)
            for name in (GROUPS, TRANSACTIONS)
        ]
        for future in self._admin.create_topics(topics).values():
            future.result(30)
        wait_for(self._in_sync, "the coordinators' topics")

    def _in_sync(self) -> bool:
        known = self._admin.list_topics(timeout=10).topics
        everything = [p for topic in known.values() for p in topic.partitions.values()]
        return {GROUPS, TRANSACTIONS} <= known.keys() and all(set(p.isrs) == {1, 2} for p in everything)


def _ask(broker: str, api: int, body: bytes) -> bytes:
    """What one broker answers to a request in its version 1, the correlation id in front."""
    host, _, port = broker.rpartition(":")
    request = struct.pack(">hhih", api, 1, 1, -1) + body
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(struct.pack(">i", len(request)) + request)
        with connection.makefile("rb") as answers:
            return answers.read(*struct.unpack(">i", answers.read(4)))


def _signal(folder: Path, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(json.loads((folder / "state.json").read_text())["pid"], number)


def _script(*arguments: str) -> str:
    done = subprocess.run([sys.executable, str(KAFKA), *arguments], capture_output=True, text=True)
    if done.returncode:
        raise OSError(done.stderr.strip())
    return done.stdout.strip()
