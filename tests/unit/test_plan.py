"""``streaminfer plan`` and what it counts from."""

from __future__ import annotations

import json
import platform
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import orjson
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from worker import settings
from worker.bench import plan as planning
from worker.bench.capacity import Capacity, digest_of, document_of, read_capacity
from worker.bench.plan import HEADROOM, Wanted, limit_of, plan
from worker.bench.search import Found
from worker.bench.trial import Trial
from worker.bench.usage import Interval, Usage, interval_of, usage_of
from worker.cli.bench_usage import Measured
from worker.cli.main import main
from worker.errors import StartError
from worker.kafka import measuring

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "examples" / "digits.yaml"
CAPACITY = Capacity(
    records_per_s=1000.0, p99_ms=20.0, found_p99_ms=18.0,
    end_to_end_ms={"p50": 6.0, "p99": 18.0}, total_ms={"p50": 5.0, "p99": 16.0}, broker_ms={"p50": 1.0, "p99": 2.0},
    infer_ms={"p50": 4.0, "p99": 12.0}, cpu_us_per_record=400.0, cores=8, replicas=1, rss_bytes=200 << 20,
    record_bytes=10_000.0, result_bytes=500.0, generator_limited=False, pipeline="digits", model="digits@1", digest="d",
    time="2026-01-01T00:00:00+00:00",
)  # fmt: skip
WANTED = Wanted("digits", ("digits",), 5000.0, 20.0, 300.0, 12, 344 << 20, 25.0, 10.0)


@given(st.floats(0.5, 1e6), st.floats(1, 1e5), st.integers(1, 400))
def test_the_plan_keeps_the_rate_with_headroom_and_with_one_replica_missing(
    rate: float, keeps: float, partitions: int
) -> None:
    """Counted partition by partition: no replica is above 70 % of what it keeps, and the others bear the loss of one."""
    capacity = replace(CAPACITY, records_per_s=keeps)
    found = plan(capacity, replace(WANTED, rate=rate, partitions=partitions))
    assert found.least_partitions <= found.replicas
    if not found.enough_partitions:
        assert partitions < found.replicas == found.least_partitions
        return
    assert partitions >= found.replicas
    loads = [0.0] * found.replicas
    for partition in range(partitions):  # as Kafka divides them: in turn
        loads[partition % found.replicas] += rate / partitions
    assert max(loads) <= HEADROOM * keeps * 1.000001
    assert found.busiest_per_s == pytest.approx(max(loads))
    assert rate <= (found.replicas - 1) * keeps * 1.000001
    assert found.spare_per_s > 0


def test_a_replica_fewer_would_not_do() -> None:
    """The number is the least: with one fewer, one is above the headroom or the loss of one is too much."""
    for rate in (10.0, 650.0, 700.0, 701.0, 1400.0, 5000.0, 9999.0):
        found = plan(CAPACITY, replace(WANTED, rate=rate, partitions=None))
        fewer = found.replicas - 1
        assert rate > HEADROOM * fewer * 1000 or rate > (fewer - 1) * 1000
        assert found.partitions >= 2 * found.replicas


def test_uneven_partitions_take_more_replicas() -> None:
    """With 10 partitions on 8 replicas one has two of them: as many replicas are taken as make the busiest one fit."""
    even = plan(CAPACITY, replace(WANTED, rate=5000.0, partitions=16))
    uneven = plan(CAPACITY, replace(WANTED, rate=5000.0, partitions=10))
    assert (even.replicas, uneven.replicas) == (8, 10)


@pytest.mark.parametrize(
    ("changes", "wanted", "limit"),
    [
        ({}, {"partitions": 3}, "partitions"),
        ({"cpu_us_per_record": 7000.0}, {}, "processors"),
        ({"cpu_us_per_record": 1000.0}, {}, "main loop"),
        ({"broker_ms": {"p99": 12.0}}, {}, "broker"),
        ({}, {}, "latency"),
        ({"generator_limited": True}, {}, "unknown"),
    ],
)
def test_the_limit_is_named(changes: dict[str, Any], wanted: dict[str, Any], limit: str) -> None:
    """What ends a replica's rate follows from what was measured."""
    found = plan(replace(CAPACITY, **changes), replace(WANTED, **{"partitions": 48, **wanted}))
    assert limit_of(found)[0] == limit


def test_the_values_fit_the_chart() -> None:
    """What is printed for Helm is accepted by the schema of the chart's values, and names the partitions as the most replicas."""
    schema = json.loads((ROOT / "docker/helm/streaminfer/values.schema.json").read_text())
    found = plan(CAPACITY, WANTED)
    values = planning.keda(found)
    assert (values["keda"]["minReplicas"], values["keda"]["maxReplicas"]) == (found.replicas, 12)
    assert values["terminationGracePeriodSeconds"] == 45
    assert values["resources"]["limits"]["memory"] == "576Mi"
    jsonschema.validate(values, {**schema, "required": []})
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**values, "keda": {"minimum": 3}}, {**schema, "required": []})


# -- what was measured -------------------------------------------------------------------------------------


def heard(replica: str, records: int, cpu_s: float, **changes: Any) -> Interval:
    return replace(Interval(replica, "here", 5.0, records, cpu_s, 100 << 20, True), **changes)


def test_usage_counts_the_intervals_near_the_rate() -> None:
    """CPU per record is that of intervals under the load in question: idle and flooded ones, and idle replicas, are left out."""
    found = usage_of(
        [
            heard("a", 10, 1.0),
            heard("a", 5000, 2.0),
            heard("b", 5000, 3.0, rss_bytes=7),
            heard("b", 50_000, 9.0),
            heard("c", 0, 0.5, owns=False),
        ],
        2000.0,
    )
    assert found == Usage(2, 500.0, 100 << 20, ("here",))
    assert usage_of([heard("a", 10, 1.0, owns=False)], 100.0) is None
    assert usage_of([heard("a", 100, 1.0)], 1e6) == Usage(1, 10_000.0, 100 << 20, ("here",))


def test_only_metrics_of_the_group_are_heard() -> None:
    """A record of another group, of another kind, or no JSON at all is left out."""
    record: dict[str, Any] = {
        "type": "streaminfer.metrics",
        "worker": {"id": "w", "group": "g", "host": "h"},
        "interval_s": 5.0,
        "pipelines": {"a": {"records": {"in": 3}}, "b": {"records": {"in": 4}}},
        "process": {"cpu_s": 0.5, "rss_bytes": 9},
        "partitions": {},
    }
    assert interval_of(orjson.dumps(record), "g") == Interval("w", "h", 5.0, 7, 0.5, 9, False)
    assert interval_of(orjson.dumps(record), "other") is None
    assert interval_of(orjson.dumps({**record, "type": "x"}), "g") is None
    assert interval_of(b"{", "g") is interval_of(None, "g") is None


def measured(config: Path, **changes: Any) -> dict[str, Any]:
    """The document of a search that found 2,000 records/s for two replicas."""
    latency = {"p50": 4.0, "p90": 6.0, "p99": 12.0, "p99_9": 20.0, "max": 30.0}
    stages = {"broker": latency, "infer": latency, "total": latency}
    best = Trial(2000.0, 8000, 2000.0, 2000.0, 8000, 0, 0, 0, 0, latency, stages, 0.1)
    loaded = settings.load(config)
    pipeline = next(iter(loaded.pipelines))
    usage = Usage(2, 400.0, 150 << 20, ("elsewhere",))
    model = {"name": "digits", "version": "5b199e47"}
    arguments: dict[str, Any] = {"usage": usage, "members": None, **changes}
    return document_of(
        loaded, pipeline, 20.0, best, (11.0, 12.0), record_bytes=(116.0, 122), result_bytes=424.0, model=model,
        partitions=6, generator_limited=False, **arguments,
    )  # fmt: skip


def test_what_a_search_writes_can_be_read(tmp_path: Path) -> None:
    """capacity.json has the rate of one replica, and what it was measured with; another machine's cores are not ours."""
    path = tmp_path / "capacity.json"
    path.write_bytes(orjson.dumps(measured(DIGITS)))
    found = read_capacity(path)
    assert found.records_per_s == 1000.0
    assert (found.replicas, found.cpu_us_per_record, found.cores) == (2, 400.0, None)
    assert found.model == "digits@5b199e47"
    path.write_bytes(orjson.dumps(measured(DIGITS, usage=None, members=4)))
    assert read_capacity(path).records_per_s == 500.0


def test_the_digest_follows_what_decides_speed() -> None:
    """Another batch size is another configuration; another topic, broker, metrics address or folder is not."""

    def digest(*overrides: str) -> str:
        return digest_of(settings.load(DIGITS, overrides), "digits")

    same = [
        "input.topics=[other]",
        "kafka.bootstrap.servers=x:1",
        "metrics.http=127.0.0.1:1",
        "output.topic=o",
    ]
    assert {digest(each) for each in same} == {digest()}
    assert (
        len(
            {digest(each) for each in ("batching.max_size=8", "order=none", "limits.output_bytes=1000000")}
            | {digest()}
        )
        == 4
    )


@pytest.fixture
def capacity(tmp_path: Path) -> Path:
    path = tmp_path / "capacity.json"
    path.write_bytes(orjson.dumps(measured(DIGITS)))
    return path


def test_the_command_tells_people_and_programs_the_same(
    capacity: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The text has replicas, partitions, limit, memory and values for the chart; --json has the same figures."""
    command = [
        "plan",
        str(DIGITS),
        "--rate",
        "5000",
        "--p99-ms",
        "20",
        "--capacity",
        str(capacity),
        "--offline",
    ]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert "replicas    8   one keeps 1,000 records/s" in text
    assert "partitions  at least 8, 16 advised" in text
    assert "measure again" not in text
    values = yaml.safe_load(text.partition("Values for the Helm chart:")[2])
    assert main([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["replicas"], document["partitions"]["advised"]) == (8, 16)
    assert document["keda"] == values
    assert document["outage"] == {"seconds": 300.0, "backlog_records": 1_500_000, "seconds_to_drain": 500.0}
    assert document["cores"] == pytest.approx(5000 * 400e-6)


@pytest.mark.parametrize(("swap", "bytes_more", "noted"), [("auto", 0, True), (1 << 20, 1 << 20, False)])
def test_new_versions_of_models_take_memory(
    capacity: Path, capsys: pytest.CaptureFixture[str], swap: Any, bytes_more: int, noted: bool
) -> None:
    """With a repository the memory of a replica has room for a new version beside the running one, or a note says that it has not."""
    command = [
        "plan",
        str(DIGITS),
        "--rate",
        "50",
        "--p99-ms",
        "25",
        "--capacity",
        str(capacity),
        "--offline",
        "--json",
    ]
    assert main(command) == 0
    before = json.loads(capsys.readouterr().out)["replica"]["memory_bound_bytes"]
    model = f"model={{repository: models, name: digits, swap_bytes: {swap}}}"
    assert main([*command, "--set", model]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["replica"]["memory_bound_bytes"] == before + bytes_more
    assert any("a new version of a model takes more" in note for note in document["notes"]) == noted


class OneTopic:
    """Stands for a broker that has one topic of two partitions."""

    bootstrap = "here:1"

    def __init__(self, _settings: Any) -> None:
        pass

    def __enter__(self) -> OneTopic:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def cluster(self) -> Any:
        return SimpleNamespace(topics={"cam-1": SimpleNamespace(partitions=[0, 1])})


def test_partitions_are_those_of_all_topics_that_match(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pattern stands for the topics that are there; one sentence says that none is."""
    monkeypatch.setattr(measuring, "Admin", OneTopic)
    configured: Any = None
    assert measuring.partitions_of(configured, ["^cam-.*"]) == {"cam-1": 2}
    with pytest.raises(StartError, match=r"^no topic on here:1 matches \^mic-\.\*$"):
        measuring.partitions_of(configured, ["cam-1", "^mic-.*"])
    with pytest.raises(StartError, match=r"^topic cam does not exist on here:1$"):
        measuring.partitions_of(configured, ["cam"])


def test_a_measurement_of_something_else_is_said(capacity: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A changed configuration and another model version weaken the plan; both are notes."""
    command = [
        "plan",
        str(DIGITS),
        "--rate",
        "50",
        "--p99-ms",
        "25",
        "--capacity",
        str(capacity),
        "--offline",
    ]
    assert main([*command, "--set", "batching.max_size=1", "--set", "model.version=other"]) == 0
    text = capsys.readouterr().out
    assert "the configuration is not the one that was measured" in text
    assert "the model is digits@other, digits@5b199e47 was measured" in text
    assert "the search kept 20 ms; with 25 ms a replica may keep more" in text


@pytest.mark.parametrize(
    ("content", "arguments", "sentence"),
    [
        (None, [], "does not exist; make it on a group that is like the one you plan: streaminfer bench CONFIG --search"),
        (b"{", [], "is not JSON"),
        (b'{"type": "x"}', [], "is no streaminfer.capacity of schema 1"),
        (b'{"type": "streaminfer.capacity", "schema": 1}', [], "lacks a figure or has a wrong one"),
        ("good", ["--p99-ms", "10"], "--p99-ms: got 10, but the search kept 20 ms"),
        ("good", ["--pipeline", "x"], "--pipeline: got x, expected one of digits"),
        ("good", ["--rate", "0"], "--rate"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any, arguments: list[str], sentence: str
) -> None:
    """Without a measurement, with a broken one, or with a bound that it did not keep there is no plan: exit 2."""
    path = tmp_path / "capacity.json"
    if content is not None:
        path.write_bytes(orjson.dumps(measured(DIGITS)) if content == "good" else content)
    command = ["plan", str(DIGITS), "--rate", "5", "--p99-ms", "20", "--capacity", str(path), "--offline"]
    assert main([*command, *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert sentence in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("cpu_us", "host", "doubted"), [(100.0, None, True), (2e4, None, False), (100.0, "elsewhere", False)]
)
def test_a_machine_that_others_fill_has_no_figure(
    monkeypatch: pytest.MonkeyPatch, cpu_us: float, host: str | None, doubted: bool
) -> None:
    """Where the search ends because everybody is late, and the workers take little of this machine, something else fills it."""
    best = Trial(100.0, 400, 100.0, 100.0, 400, 0, 0, 0, 0, {"p50": 9.0, "p99": 12.0}, {}, 0.1)
    found = Found([best], best, (12.0, 12.0), True, "", True)
    usage = Usage(1, cpu_us, 0, (host or platform.node(),))
    measured = Measured(settings.load(DIGITS), "digits", [b"x"])
    monkeypatch.setattr(Measured, "_usage", lambda _self, _per_s: usage)
    judged = measured.doubted(found)
    assert (judged.best is None) == doubted
    assert ("the workers take 0.01 processors" in judged.noisy) == doubted
    assert measured.doubted(replace(found, full=False)).best is best
