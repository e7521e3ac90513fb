"""Counters and their snapshots: they add up at every moment, as totals and by interval."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import orjson
import pytest
from fakes import FakeRollout
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from worker.batch import STAGES, Batch, Columns, Partition, Run
from worker.telemetry.meters import Meters, ModelLabel, PartitionState, Snapshot
from worker.telemetry.prometheus import Exposition
from worker.telemetry.topic import MetricsReporter, WorkerInfo, metrics_record

ROLLOUT = FakeRollout()
DIGITS = {"digits": ModelLabel("digits", "3f9c2a71", "cpu")}
WORKER = WorkerInfo("digits-host-1", "digits", "host", 1, "0.1.0")


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def batch_of(*runs: Run) -> Batch:
    rows = sum(len(run.rows) for run in runs)
    return Batch(
        None, range(rows), Columns([b""] * rows), ROLLOUT.route, ROLLOUT.choose(), 0, 0.0, runs=list(runs)
    )


def run_of(rows: int, counts: list[int] | None = None, **stages_us: object) -> Run:
    return Run(range(rows), {}, counts, stages_us=stages_us)  # type: ignore[arg-type]


def balanced(snapshot: Snapshot) -> bool:
    return all(
        counts.taken == counts.ok + counts.dead_letter + counts.dropped + counts.in_flight
        for counts in snapshot.pipelines.values()
    )


@given(st.lists(st.tuples(st.sampled_from("tods"), st.integers(0, 50), st.sampled_from(["digits", "other"]))))
def test_in_is_ok_and_dead_letter_and_dropped_and_in_flight(events: list[tuple[str, int, str]]) -> None:
    """In every snapshot records in = ok + dead letters + dropped + in flight, also for records that no pipeline took."""
    meters = Meters(DIGITS)
    for kind, records, pipeline in events:
        match kind:
            case "t":
                meters.taken(pipeline, records)
            case "o":
                meters.counted(pipeline, ok=records)
            case "d":
                meters.counted(pipeline, dead_letter=records)
            case "s":
                meters.counted(pipeline, dropped=records)
        assert balanced(meters.snapshot())


def test_a_snapshot_does_not_change_afterwards() -> None:
    """Another thread may read a snapshot while the conductor counts on."""
    meters = Meters(DIGITS)
    meters.taken("digits", 3, nbytes=10)
    snapshot = meters.snapshot()
    before = metrics_record(snapshot, WORKER)
    meters.taken("digits", 3)
    meters.error("digits", "invalid", "decode")
    meters.batch("digits", batch_of(run_of(3, infer=5)))
    meters.loop("poll", 1.0)
    assert metrics_record(snapshot, WORKER) == before


def test_items_and_batches_are_what_the_model_saw() -> None:
    """Each run of the model counts as one batch, and each item of a record as one item."""
    meters = Meters(DIGITS)
    meters.batch("digits", batch_of(run_of(4), run_of(2, [3, 5]), run_of(1, [1])))
    counts = meters.snapshot().pipelines["digits"]
    assert (counts.items, counts.batches) == (4 + 8 + 1, 3)
    assert counts.batch_size.cumulative([1, 4, 8]) == [1, 2, 3]


def test_a_stage_counts_once_per_record() -> None:
    """A stage counts each record of a run once, whether its time is given once for the run or once per row."""
    meters = Meters(DIGITS)
    meters.batch("digits", batch_of(run_of(64, infer=900, total=np.arange(64))))
    meters.hold_us("digits", 10, 64)
    meters.publish_us("digits", np.full(64, 20))
    stages = meters.snapshot().pipelines["digits"].stages_us
    assert {stage: stages[stage].count for stage in ("infer", "total", "hold", "publish", "decode")} == {
        "infer": 64,
        "total": 64,
        "hold": 64,
        "publish": 64,
        "decode": 0,
    }
    assert stages["infer"].sum == 64 * 900


def test_the_metrics_record_has_exactly_the_promised_keys() -> None:
    """The metrics record of a worker that answered records has the promised keys and no other."""
    clock = Clock()
    meters = Meters(DIGITS, clock, wall=lambda: 1763676000.5)
    start = meters.snapshot()
    meters.taken("digits", 5, nbytes=50)
    meters.batch("digits", batch_of(run_of(4, infer=2000)))
    meters.error("digits", "undecodable", "decode")
    meters.counted("digits", ok=3, dead_letter=1)
    meters.sent(70)
    meters.loop("poll", 2.5)
    clock.now_s += 5
    partitions = {Partition("digits", 0): PartitionState(position=9, committed=7, end=12)}
    record = orjson.loads(metrics_record(meters.snapshot(33, partitions).since(start), WORKER))

    process = record.pop("process")
    assert process.keys() == {"cpu_s", "rss_bytes"}
    assert process["rss_bytes"] > 1_000_000
    digits = record["pipelines"]["digits"]
    latency_ms = digits.pop("latency_ms")
    assert set(latency_ms) == {*STAGES, "total", "hold", "publish"}
    assert latency_ms["infer"] == {
        "count": 4,
        **dict.fromkeys(["p50", "p90", "p99", "p999"], pytest.approx(2, rel=0.03)),
        "max": 2.0,
    }
    errors = digits.pop("errors")
    assert errors.pop("undecodable") == 1
    assert set(errors.values()) == {0}
    assert record == {
        "type": "streaminfer.metrics",
        "schema": 1,
        "time_ms": 1763676000500,
        "interval_s": 5.0,
        "worker": {"id": "digits-host-1", "group": "digits", "host": "host", "pid": 1, "version": "0.1.0"},
        "pipelines": {
            "digits": {
                "model": {"name": "digits", "version": "3f9c2a71", "provider": "cpu"},
                "records": {"in": 5, "out": 3, "dead_letter": 1, "dropped": 0},
                "items": 4,
                "batches": 1,
                "mean_batch": 4.0,
            }
        },
        "bytes": {"in": 50, "out": 70, "in_flight": 33},
        "partitions": {"digits/0": {"position": 9, "committed": 7, "end": 12, "lag": 5}},
        "loop_ratio": {"poll": 0.5, "submit": 0.0, "publish": 0.0, "commit": 0.0, "wait": 0.0},
    }


def test_the_intervals_add_up_to_the_totals() -> None:
    """The counters of consecutive metrics records add up to the totals: nothing twice, nothing left out."""
    clock = Clock()
    meters = Meters(DIGITS, clock)
    sent: list[tuple[bytes, bytes]] = []
    reporter = MetricsReporter(WORKER, 5.0, lambda key, value: sent.append((key, value)), meters.snapshot())
    for records in (3, 0, 7):
        meters.taken("digits", records)
        meters.counted("digits", ok=records)
        meters.batch("digits", batch_of(run_of(records, infer=records)))
        clock.now_s += 5
        assert clock() >= reporter.due_s
        reporter.report(meters.snapshot())
        assert clock() < reporter.due_s
    said = [orjson.loads(value)["pipelines"]["digits"] for _key, value in sent]
    assert {key for key, _value in sent} == {b"digits-host-1"}
    assert [one["records"]["out"] for one in said] == [3, 0, 7]
    assert [one["latency_ms"]["infer"]["count"] for one in said] == [3, 0, 7]
    assert [one["latency_ms"]["infer"]["max"] for one in said] == [0.003, 0.0, 0.007]


@pytest.mark.parametrize(
    ("state", "lag"),
    [
        (PartitionState(9, 7, 12), 5),
        (PartitionState(9, None, 12), 3),
        (PartitionState(None, None, 12), None),
        (PartitionState(9, 7, None), None),
        (PartitionState(9, 9, 8), 0),
    ],
)
def test_lag_is_what_is_not_committed(state: PartitionState, lag: int | None) -> None:
    """Lag counts from the committed offset, from the position before the first commit, and is never negative."""
    assert state.lag == lag


def of_version(version: str) -> Batch:
    batch = batch_of(run_of(4, infer=1_000))
    batch.servable = replace(ROLLOUT.choose(), model_version=version)
    return batch


def shown(meters: Meters) -> dict[tuple[str, ...], float]:
    """Counters of /metrics by name and version."""
    text = Exposition(meters.snapshot).render().decode()
    return {
        (
            sample.name.removeprefix("streaminfer_"),
            *map(sample.labels.get, ("outcome", "version")),
        ): sample.value  # type: ignore[misc]
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "version" in sample.labels and "stage" not in sample.labels
    }


def test_what_each_version_did_is_told_apart() -> None:
    """In /metrics by the label `version`, in the metrics record under `versions`; the sums stay what they were."""
    meters = Meters(DIGITS)
    meters.taken("digits", 8)
    meters.batch("digits", of_version("1"))
    meters.counted("digits", ok=4, version="1")
    (alone,) = orjson.loads(metrics_record(meters.snapshot(), WORKER))["pipelines"].values()
    assert "versions" not in alone
    meters.batch("digits", of_version("2"))
    meters.counted("digits", ok=3, version="2")
    meters.counted("digits", dead_letter=1, version="2")
    meters.error("digits", "invalid", "decode", 1, "2")
    found = shown(meters)
    assert found["records_total", "ok", "1"] == 4
    assert (found["records_total", "ok", "2"], found["records_total", "dead_letter", "2"]) == (3, 1)
    assert found["records_total", "dropped", ""] == 0
    assert (found["items_total", None, "1"], found["batches_total", None, "2"]) == (4, 1)  # type: ignore[index]
    assert ("records_total", "ok", "") not in found
    (both,) = orjson.loads(metrics_record(meters.snapshot(), WORKER))["pipelines"].values()
    assert both["records"]["out"] == 7
    assert both["versions"]["2"]["records"] == {"out": 3, "dead_letter": 1}
    assert both["versions"]["1"]["infer_ms"]["count"] == 4


def test_versions_that_were_idle_for_longest_lose_their_series() -> None:
    """What they did moves to an empty version, so that no sum goes back."""
    meters = Meters(DIGITS)
    for number in range(12):
        for version in ("stable", str(number)):
            meters.batch("digits", of_version(version))
            meters.counted("digits", ok=4, version=version)
    found = {
        labels[2]: value for labels, value in shown(meters).items() if labels[:2] == ("records_total", "ok")
    }
    assert found == {"stable": 48, "": 20} | {str(number): 4 for number in range(5, 12)}
