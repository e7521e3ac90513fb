"""All replicas of a group as the metrics topic tells of them: for the page and for ``streaminfer top``.

Each replica writes one record per interval. The newest one of each is kept, with the positions of a minute, so
nothing here grows with time.
"""

from __future__ import annotations

from typing import Any

import orjson

from worker.batch import Partition
from worker.telemetry.drain import DrainRates, drain_fields

SILENT_AFTER = 3
"""A replica without a record for so many of its intervals is shown as silent."""
FORGOTTEN_AFTER_S = 60.0
"""A silent replica is shown for this long, or for ten of its intervals."""


class _Replica:
    """The newest record of one replica, and the rates of its partitions."""

    def __init__(self) -> None:
        self.record: dict[str, Any] = {}
        self.rates = DrainRates()

    def add(self, record: dict[str, Any]) -> None:
        if record["time_ms"] < self.record.get("time_ms", 0):
            return
        self.record = record
        partitions = record["partitions"].items()
        done = ((_partition(name), _done(state)) for name, state in partitions)
        self.rates.look(record["time_ms"] / 1000, done)

    @property
    def interval_s(self) -> float:
        """The longest interval with which it can be expected to write again: its first and last ones are short."""
        return max(1.0, float(self.record["interval_s"]))

    def row(self, now_ms: int) -> dict[str, Any]:
        """What is shown of the replica."""
        record, interval_s = self.record, self.record["interval_s"]
        pipelines = record["pipelines"].values()
        per_s = 1 / interval_s if interval_s > 0 else 0.0
        totals = [each["latency_ms"].get("total", {}) for each in pipelines]
        answered = [each for each in totals if each.get("count")]
        lags = [state["lag"] for state in record["partitions"].values() if state["lag"] is not None]
        age_s = max(0.0, (now_ms - record["time_ms"]) / 1000)
        return {
            **record["worker"],
            "time_ms": record["time_ms"],
            "age_s": round(age_s, 1),
            "silent": age_s > SILENT_AFTER * self.interval_s,
            "interval_s": interval_s,
            "rates": {
                name: round(sum(each["records"][name] for each in pipelines) * per_s, 2)
                for name in ("in", "out", "dead_letter", "dropped")
            },
            "p50_ms": max((each["p50"] for each in answered), default=None),
            "p99_ms": max((each["p99"] for each in answered), default=None),
            "lag": sum(lags) if lags else (0 if record["partitions"] else None),
            "partitions": len(record["partitions"]),
            "rss_bytes": record["process"]["rss_bytes"],
            "cpu": round(record["process"]["cpu_s"] * per_s, 3),
            "in_flight_bytes": record["bytes"]["in_flight"],
            "pipelines": record["pipelines"],
        }


class GroupView:
    """The replicas of one consumer group.

    Args:
        group: records of other groups on the same topic are left out.
    """

    def __init__(self, group: str) -> None:
        self._group = group
        self._replicas: dict[str, _Replica] = {}

    def add(self, value: bytes | None) -> None:
        """Take in a value of the metrics topic; one that is no metrics record of this group is left out."""
        try:
            record = orjson.loads(value or b"null")
            if record["type"] != "streaminfer.metrics" or record["worker"]["group"] != self._group:
                return
            trial = _Replica()
            trial.add(record)
            trial.row(record["time_ms"])  # whoever passes this is whole
            self._replicas.setdefault(record["worker"]["id"], _Replica()).add(record)
        except (KeyError, TypeError, AttributeError, ValueError):
            return  # anyone may write to the topic

    def state(self, now_ms: int) -> dict[str, Any]:
        """Everything that is known.

        Args:
            now_ms: Unix milliseconds; decides who is silent, and who is forgotten.
        """
        for name, replica in [*self._replicas.items()]:
            kept_s = max(FORGOTTEN_AFTER_S, 10 * replica.interval_s) if replica.record else 0.0
            if not replica.record or now_ms - replica.record["time_ms"] > 1000 * kept_s:
                del self._replicas[name]
        rows = [self._replicas[name].row(now_ms) for name in sorted(self._replicas)]
        awake = [row for row in rows if not row["silent"]]
        partitions = self._partitions()
        lags = [state["lag"] for state in partitions.values() if state["lag"] is not None]
        return {
            "replicas": rows,
            "partitions": partitions,
            "totals": {
                "replicas": len(awake),
                **{
                    name: round(sum(row["rates"][name] for row in awake), 2)
                    for name in ("in", "out", "dead_letter", "dropped")
                },
                "lag": sum(lags) if lags else None,
                "rss_bytes": sum(row["rss_bytes"] for row in awake),
            },
        }

    def _partitions(self) -> dict[str, dict[str, Any]]:
        """Each partition as the replica says that wrote of it last."""
        found: dict[str, tuple[int, dict[str, Any]]] = {}
        for name, replica in self._replicas.items():
            time_ms = replica.record["time_ms"]
            for place, state in replica.record["partitions"].items():
                if place in found and found[place][0] >= time_ms:
                    continue
                drain = drain_fields(replica.rates.seconds(_partition(place), state["lag"]))
                found[place] = (time_ms, {**state, **drain, "worker": name})
        return {place: found[place][1] for place in sorted(found, key=_order)}


def _partition(name: str) -> Partition:
    topic, _, number = name.rpartition("/")
    return Partition(topic, int(number))


def _order(name: str) -> tuple[str, int]:
    return _partition(name)


def _done(state: dict[str, Any]) -> int | None:
    done: int | None = state["position"] if state["committed"] is None else state["committed"]
    return done
