"""Processes that score, over logs that grow: killed, moved, refused; and judges of what they have published.

One schedule is one seed. The world has logs of results and labels, committed positions with notes, and what was published
with them: each publication is one step, or does not happen. The real joiner, notes and records are played.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson
from sim_world import Violation

from worker.scoring import notes
from worker.scoring.joiner import Mark
from worker.scoring.reading import Rules
from worker.scoring.records import Before, before
from worker.scoring.scorer import Bounds, Due, Scorer

LABELS = "labels"
WAIT_MS = 60_000
WINDOW_MS = 20_000


@dataclass(frozen=True)
class Sent:
    """A record of a log, as the client would give it."""

    log: str
    number: int
    at: int
    time_ms: int
    id: str
    text: str

    def topic(self) -> str:
        return self.log

    def partition(self) -> int:
        return self.number

    def offset(self) -> int:
        return self.at

    def timestamp(self) -> tuple[int, int]:
        return 1, self.time_ms

    def key(self) -> bytes:
        return self.id.encode()

    def value(self) -> bytes:
        if self.log == LABELS:
            return orjson.dumps({"label": self.text})
        model = {"name": "digits", "version": "v1" if self.at % 3 else "v2"}
        return orjson.dumps({"id": self.id, "model": model, "prediction": {"label": self.text}})

    def headers(self) -> None:
        return None


@dataclass
class Cluster:
    """Logs, positions and publications."""

    partitions: int
    topics: list[str]
    logs: dict[tuple[str, int], list[Sent]] = field(default_factory=dict)
    committed: dict[tuple[str, int], tuple[int, str]] = field(default_factory=dict)
    published: list[bytes] = field(default_factory=list)

    def append(self, topic: str, number: int, time_ms: int, id_: str, text: str, gap: int) -> None:
        log = self.logs.setdefault((topic, number), [])
        at = (log[-1].at + 1 if log else 0) + gap  # marks of transactions leave gaps
        log.append(Sent(topic, number, at, time_ms, id_, text))

    def end(self, topic: str, number: int) -> int:
        log = self.logs.get((topic, number))
        return log[-1].at + 1 if log else 0


class Process:
    """One process with the partitions that it has now."""

    def __init__(self, cluster: Cluster, rules: Rules, remembered: int) -> None:
        self.cluster = cluster
        self.remembered = remembered
        self.scorer = Scorer(rules, Bounds(WAIT_MS, WINDOW_MS, 1_000_000), {"id": "sim"})
        self.positions: dict[tuple[str, int], int] = {}

    def own(self, numbers: list[int]) -> None:
        self.scorer.disown()
        self.positions = {}
        for number in numbers:
            committed: dict[str, tuple[Mark, str]] = {}
            starts = {}
            for topic in (*self.cluster.topics, LABELS):
                position, note = self.cluster.committed.get((topic, number), (0, ""))
                committed[topic] = notes.read(position, note)
                starts[topic] = self.scorer.start(topic, position, self.remembered)
                self.positions[topic, number] = starts[topic]
            last = committed[LABELS][1]
            found = before(self.cluster.published[int(last.partition("/")[2])], number) if last else None
            self.scorer.own(number, committed, starts, found or Before(), max(1, self.remembered))

    def read(self, topic: str, number: int, most: int) -> None:
        if topic in self.scorer.ahead(number, lambda _topic: False):
            return
        position = self.positions[topic, number]
        log = self.cluster.logs.get((topic, number), [])
        records = [record for record in log if record.at >= position][:most]
        self.scorer.take(records)
        if records:
            self.positions[topic, number] = records[-1].at + 1

    def expire(self, now_ms: int) -> None:
        for number in {number for _, number in self.positions}:
            self.scorer.expire(
                number,
                now_ms,
                lambda topic, number=number: self.positions[topic, number] >= self.cluster.end(topic, number),
            )

    def publish(self, now_ms: int, outcome: str) -> None:
        """Outcomes: done; refused (nothing happens, all begins anew); killed before it, or right after it."""
        due = self.scorer.due(now_ms)
        numbers = sorted({number for _, number in self.positions})
        if outcome in ("done", "killed after"):
            self._commit(due)
        if outcome != "done":
            self.own(numbers)

    def _commit(self, due: list[Due]) -> None:
        places = {}
        for each in due:
            place = None
            if each.value is not None:
                places[each.number] = place = f"0/{len(self.cluster.published)}"
                self.cluster.published.append(each.value)
            for topic, (position, note) in each.commits(LABELS, place).items():
                self.cluster.committed[topic, each.number] = (position, note)
        self.scorer.published(places)


class Schedule:
    """One seeded schedule: records come, processes read, publish, die and swap partitions; at the end all is read."""

    def __init__(self, seed: int, cases: Counter[str] | None = None) -> None:
        self.random = random.Random(seed)
        self.cases = Counter[str]() if cases is None else cases
        pick = self.random
        partitions = pick.choice([1, 2, 3])
        topics = ["results"] if pick.random() < 0.7 else ["results", "others"]
        self.cluster = Cluster(partitions, topics)
        rules = Rules({topic: {"": topic} for topic in topics}, LABELS, "key", "label")
        remembered = 1_000
        self.processes = [Process(self.cluster, rules, remembered) for _ in range(pick.choice([1, 2]))]
        self.now_ms = 1_000_000
        self.truth: dict[str, str] = {}
        self.coming: list[tuple[int, str, int, str, str]] = []
        """Records that will be written: (time, topic, partition, id, text)."""
        self._plan()
        self._share()

    def play(self) -> None:
        for _ in range(self.random.randrange(40, 160)):
            self._step()
        self._finish()
        judge(self)

    def _plan(self) -> None:
        pick = self.random
        for n in range(pick.randrange(10, 80)):
            id_, number = f"id{n}", pick.randrange(self.cluster.partitions)
            at = self.now_ms + pick.randrange(90_000)
            true = self.truth[id_] = str(pick.randrange(3))
            for topic in self.cluster.topics:
                if pick.random() < 0.9:
                    guess = true if pick.random() < 0.8 else str(pick.randrange(3))
                    self.coming.append((at, topic, number, id_, guess))
                    if pick.random() < 0.1:
                        self.cases["result twice"] += 1
                        self.coming.append((at + pick.randrange(3_000), topic, number, id_, guess))
            case = pick.choice(["late", "late", "late", "early", "never", "too late"])
            self.cases[f"label {case}"] += 1
            delay = {
                "late": pick.randrange(WAIT_MS - 4_000),
                "early": -pick.randrange(WAIT_MS - 4_000),
                "too late": 2 * WAIT_MS,
                "never": None,
            }[case]
            if delay is not None:
                self.coming.append((at + delay, LABELS, number, id_, true))
                if pick.random() < 0.5:
                    self.cases["label twice"] += 1
                    wrong = "9" if pick.random() < 0.5 else true
                    self.coming.append((at + delay + pick.randrange(1, 9_000), LABELS, number, id_, wrong))
        self.coming.sort(key=lambda record: record[0])
        self.now_ms = min(self.now_ms, self.coming[0][0])

    def _step(self) -> None:
        pick = self.random
        action = pick.choice(
            ["time", "time", "read", "read", "read", "read", "publish", "expire", "share", "kill"]
        )
        process = pick.choice(self.processes)
        places = sorted(process.positions)
        if action == "time":
            self._advance(pick.randrange(6_000))
        elif action == "read" and places:
            for topic, number in pick.sample(places, pick.randrange(1, len(places) + 1)):
                process.read(topic, number, pick.randrange(1, 20))
        elif action == "publish":
            outcome = pick.choice(["done", "done", "refused", "killed before", "killed after"])
            self.cases[outcome] += 1
            process.publish(self.now_ms, outcome)
        elif action == "expire":
            process.expire(self.now_ms)
        elif action == "share" and len(self.processes) > 1:
            self.cases["partitions move"] += 1
            for each in self.processes:
                if pick.random() < 0.5:
                    each.publish(self.now_ms, "done")
            self._share()
        elif action == "kill":
            self.cases["killed"] += 1
            process.own(sorted({number for _, number in process.positions}))

    def _share(self) -> None:
        owners = [self.random.randrange(len(self.processes)) for _ in range(self.cluster.partitions)]
        for index, process in enumerate(self.processes):
            process.own([number for number, owner in enumerate(owners) if owner == index])

    def _advance(self, by_ms: int) -> None:
        self.now_ms += by_ms
        while self.coming and self.coming[0][0] <= self.now_ms:
            time_ms, topic, number, id_, text = self.coming.pop(0)
            self.cluster.append(topic, number, time_ms, id_, text, self.random.choice([0, 0, 0, 1]))

    def _finish(self) -> None:
        """Everything comes, is read and has waited long enough."""
        self._advance(10 * WAIT_MS)
        for process in self.processes:
            for topic, number in sorted(process.positions, key=lambda place: place[0] == LABELS):
                process.read(topic, number, 1_000_000)
            process.expire(self.now_ms)
            process.publish(self.now_ms, "done")


def judge(schedule: Schedule) -> None:
    """What was published against what the logs hold.

    Raises:
        Violation: a pair was counted twice or not at all, or says something else than its records.
    """
    cluster = schedule.cluster
    expected: Counter[tuple[str, ...]] = Counter()
    for topic in cluster.topics:
        for number in range(cluster.partitions):
            for version, outcome in _outcomes(cluster, topic, number):
                expected[topic, version, *outcome] += 1
    windows: Counter[tuple[str, ...]] = Counter()
    totals: dict[int, Counter[tuple[str, ...]]] = {}
    for value in cluster.published:
        record = orjson.loads(value)
        totals[record["partition"]] = Counter()
        for topic, versions in record["pipelines"].items():
            for version, each in versions.items():
                for window in each["windows"]:
                    windows.update(_counted(topic, version, window))
                totals[record["partition"]].update(_counted(topic, version, each["total"]))
    _same("the windows", expected, windows)
    _same("the totals", expected, sum(totals.values(), Counter()))
    if len(cluster.topics) == 1:
        _each_has_one_outcome(cluster, windows)
    for (topic, number), (position, _) in cluster.committed.items():
        if topic != LABELS and position != cluster.end(topic, number):
            raise Violation("position", f"{topic}/{number} is committed at {position}, though nothing waits")


def _each_has_one_outcome(cluster: Cluster, counted: Counter[tuple[str, ...]]) -> None:
    """Every record of every log is part of a pair, or counted as what it is, once."""
    beside: Counter[str] = Counter()
    for value in cluster.published:
        for what, count in orjson.loads(value)["counts"].items():
            beside[what.partition("_")[0]] += count
    pairs = sum(count for key, count in counted.items() if key[2] == "pair")
    for kind, there, made in (("results", counted.total(), cluster.topics[0]), ("labels", pairs, LABELS)):
        logged = sum(len(log) for (topic, _), log in cluster.logs.items() if topic == made)
        if there + beside[kind] != logged:
            raise Violation("outcomes", f"{logged} {kind} have {there} + {beside[kind]} outcomes")


def _outcomes(cluster: Cluster, topic: str, number: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(version, outcome) of each result: its first label within the wait decides."""
    seen: set[str] = set()
    for result in cluster.logs.get((topic, number), []):
        if result.id in seen:
            continue
        seen.add(result.id)
        labels = [label for label in cluster.logs.get((LABELS, number), []) if label.id == result.id]
        near = [label for label in labels if abs(label.time_ms - result.time_ms) <= WAIT_MS]
        version = "v1" if result.at % 3 else "v2"
        yield version, ("pair", near[0].text, result.text) if near else ("unlabelled",)


def _counted(topic: str, version: str, part: dict[str, Any]) -> Counter[tuple[str, ...]]:
    found: Counter[tuple[str, ...]] = Counter({(topic, version, "unlabelled"): part["unlabelled"]})
    for true, predicted, count in part.get("confusion", []):
        found[topic, version, "pair", true, predicted] += count
    return found


def _same(what: str, expected: Counter[tuple[str, ...]], found: Counter[tuple[str, ...]]) -> None:
    for key in expected.keys() | found.keys():
        if expected[key] != found[key]:
            much = "counted too often" if found[key] > expected[key] else "lost"
            raise Violation("counts", f"{what}: {key} {much}: {found[key]}, expected {expected[key]}")
