"""Every run's counters, held to what is on its topics: taken = ok + dead letters + dropped, difference 0.

After each integration test (``integration/conftest.py``) for all its workers, and after each campaign of
``scripts/chaos`` for every replica that ended in order.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import yaml
from confluent_kafka import Consumer, TopicPartition
from stream import ADDRESSES, SENT, STARTED, Worker, read_all, unique

from worker.kafka.tools import range_of

DISTURBED = re.compile(r'"(rewind|given_back|lost)"|"finished": false|commit failed|"commits_failed": [1-9]')
"""In the log of a worker that may have answered records, or given some back, that were read once more."""
DIED = '"replica died"'
"""In the log of a supervisor: one of its processes had no last words."""


@dataclass(frozen=True)
class Counted:
    """What one process said last."""

    client_id: str
    taken: int = 0
    ok: int = 0
    dead_letter: int = 0
    dropped: int = 0
    in_flight: int = 0

    @property
    def difference(self) -> int:
        """0, and nothing in flight, in every process that ended in order."""
        return self.taken - self.ok - self.dead_letter - self.dropped

    @property
    def equation(self) -> str:
        """taken = ok + dead letters + dropped, in numbers."""
        sides = f"{self.taken:,} = {self.ok:,} + {self.dead_letter:,} + {self.dropped:,}"
        return f"{sides}, difference {self.difference}"


@dataclass(frozen=True)
class Topics:
    """What the broker has, after a run."""

    results: int
    dead_letters: int
    read: int | None
    """Input records below the group's positions; None where that cannot be told by counting."""


def counted(log: Path) -> list[Counted]:
    """The last words of every process that wrote to this log and lived to say them."""
    found = []
    for line in log.read_text(errors="replace").splitlines():
        if "counted" in line and "client_id" in line:
            fields = dict(re.findall(r'"?(\w+)"?[=:] ?"?([\w.-]+)', line))
            numbers = {name: int(fields[name]) for name in Counted.__annotations__ if name != "client_id"}
            found.append(Counted(fields["client_id"], **numbers))
    return found


def add_up(said: Iterable[Counted]) -> list[str]:
    """What is wrong with the counters of processes that ended in order, each by itself."""
    return [f"does not add up: {each}" for each in said if each.difference or each.in_flight]


def agree(said: Sequence[Counted], topics: Topics, once: bool, drops: bool) -> list[str]:
    """What is wrong between the counters of all processes of a run and its topics.

    Args:
        once: nothing was answered twice, so the numbers are the same; else there may be more on the topics.
        drops: records may be dropped because the configuration says so; else dropped ones were given back.
    """
    ok, dead_letter = sum(each.ok for each in said), sum(each.dead_letter for each in said)
    wrong = []
    if topics.results != ok and (once or topics.results < ok):
        wrong.append(f"counted {ok} as ok, there are {topics.results} results")
    if topics.dead_letters != dead_letter and (once or topics.dead_letters < dead_letter):
        wrong.append(f"counted {dead_letter} as dead letters, there are {topics.dead_letters}")
    answered = ok + dead_letter + sum(each.dropped for each in said if drops)
    if topics.read is not None and once and topics.read != answered:
        wrong.append(f"counted {answered} as answered, {topics.read} inputs were read")
    return wrong


def total(said: Sequence[Counted]) -> Counted:
    """The sum of all of them."""
    sums = {
        name: sum(getattr(each, name) for each in said)
        for name in Counted.__annotations__
        if name != "client_id"
    }
    return Counted("all", **sums)


def settle() -> None:
    """Let the workers of this test that still run leave in order, then hold all of them to their counters.

    Left out is a process that was killed or ended otherwise than with 0; then, and where records may have been answered
    twice, its group's topics must hold no less than what was counted, else the same. One line per group says which.
    """
    groups: defaultdict[str, list[Worker]] = defaultdict(list)
    for worker in STARTED:
        if worker.process.poll() is None:
            code, _ = worker.stop()
            assert code == 0, f"ended with {code} after the test:\n{worker.text()[-4000:]}"
        groups[_settings(worker)["kafka"]["group.id"]].append(worker)
    for group, workers in groups.items():
        in_order = [worker for worker in workers if not worker.killed and worker.process.returncode == 0]
        whole = len(in_order) == len(workers) and not any(DIED in worker.text() for worker in workers)
        said = [each for worker in in_order for each in counted(worker.log)]
        wrong = add_up(said)
        wrong += [f"said nothing: {w.log}" for w in in_order if not counted(w.log)]
        if said:
            wrong += _against_topics(group, said, workers, whole)
        assert not wrong, f"group {group}: {wrong}\n" + "\n".join(w.text()[-3000:] for w in workers)


def _against_topics(group: str, said: list[Counted], workers: list[Worker], whole: bool) -> list[str]:
    settings = _settings(workers[0])
    pipelines = [*settings.get("pipelines", {"": settings}).values()]
    inputs = {topic for pipeline in pipelines for topic in pipeline["input"]["topics"]}
    outputs = {pipeline["output"]["topic"] for pipeline in pipelines}
    letters = settings["dead_letter"]["topic"]
    address = next((ADDRESSES[topic] for topic in (*inputs, *outputs) if topic in ADDRESSES), None)
    if address is None:
        return []
    exactly_once = settings.get("delivery") == "exactly_once"
    queue = settings.get("delivery") == "queue"
    disturbed = queue or any(DISTURBED.search(worker.text()) for worker in workers)
    drops = settings.get("limits", {}).get("expired") == "drop"
    drops |= any(pipeline["input"].get("tombstone") == "drop" for pipeline in pipelines)
    drops |= any(pipeline["input"].get("keep", "all") != "all" for pipeline in pipelines)
    consumer = Consumer({"bootstrap.servers": address, "group.id": group})
    try:
        topics = Topics(
            sum(_results(ADDRESSES.get(topic, address), topic, exactly_once, pipelines) for topic in outputs),
            _results(address, letters, exactly_once, []),
            None
            if queue or not _countable(consumer, inputs)
            else sum(_read(consumer, topic) for topic in inputs),
        )
    finally:
        consumer.close()
    once = whole and (exactly_once or not disturbed)
    print(f"accounts of {group}: {total(said).equation}; {topics}, {'exactly' if once else 'at least'} that")
    return agree(said, topics, once, drops)


def _results(address: str, topic: str, transactions: bool, pipelines: list[Any]) -> int:
    """Records a worker put there; what the test did itself, and errors beside a dead letter, left out."""
    if not transactions and not any(pipeline["output"].get("errors") for pipeline in pipelines):
        consumer = Consumer({"bootstrap.servers": address, "group.id": unique("accounts")})
        try:
            return sum(high for _, high in _ends(consumer, topic).values()) - SENT[topic]
        finally:
            consumer.close()
    return sum(not _is_error(message.value()) for message in read_all(address, topic)) - SENT[topic]


def _is_error(value: bytes | None) -> bool:
    """An answer of ``output.errors``; an expired record's that is published has a prediction, null."""
    try:
        body = orjson.loads(value or b"")
    except orjson.JSONDecodeError:
        return False
    return isinstance(body, dict) and "error" in body and "prediction" not in body


def _countable(consumer: Consumer, inputs: set[str]) -> bool:
    """Whether every offset of the inputs is a record that the test sent through :func:`stream.produce`."""
    if any(topic.startswith("^") for topic in inputs):
        return False
    ends = {topic: _ends(consumer, topic).values() for topic in inputs}
    return all(
        not any(low for low, _ in ends[topic]) and sum(high for _, high in ends[topic]) == SENT[topic]
        for topic in inputs
    )


def _read(consumer: Consumer, topic: str) -> int:
    asked = [TopicPartition(topic, number) for number in _ends(consumer, topic)]
    return sum(max(0, place.offset) for place in consumer.committed(asked, timeout=10))


def _ends(consumer: Consumer, topic: str) -> dict[int, tuple[int, int]]:
    partitions = consumer.list_topics(timeout=10).topics[topic].partitions
    return {n: range_of(consumer, TopicPartition(topic, n), 30) for n in partitions}


def _settings(worker: Worker) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(worker.config.read_text())
    return found
