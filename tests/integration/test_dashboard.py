"""Each panel of the dashboard and each alert, asked of a real Prometheus that scrapes a running worker."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import models
import orjson
import pytest
import yaml
from stream import Worker, produce, unique, wait_for, write_config

from worker.kafka.broker import EmbeddedBroker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]
BOARD: dict[str, Any] = json.loads((ROOT / "docker/grafana/streaminfer.json").read_text(encoding="utf-8"))
RULES = yaml.safe_load((ROOT / "docker/prometheus/alerts.yaml").read_text(encoding="utf-8"))["groups"][0][
    "rules"
]
NOT_HERE = {
    "streaminfer_step_": "only a pipeline with steps has it",
    "streaminfer_rollout": "only a model with a rollout has it",
    "streaminfer_model_refused": "only a refused version begins it",
    "streaminfer_drift": "only a pipeline with a profile has it",
    "streaminfer_rewinds": "only a rewind begins it",
    "streaminfer_spans": "only a worker with tracing has it",
    "streaminfer_transactions": "only delivery: exactly_once has it",
    "streaminfer_kafka_errors": "only an error of a client begins it",
}
"""Series that this worker cannot have, with why."""
Ask = Callable[[str], list[Any]]


def tool(name: str) -> str:
    found = shutil.which(name) or str(ROOT / "build" / "helm" / name)
    if not Path(found).exists():
        pytest.skip(f"{name} is not there: scripts/helm gets it")
    return found


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@pytest.fixture
def worker(
    embedded_broker: EmbeddedBroker, tmp_path: Path
) -> Iterator[tuple[Worker, int, Callable[[], None]]]:
    """A worker with a cache, the port of its metrics, and what sends it 40 records, one of them bad."""
    topic, out, dead, port = unique("in"), unique("out"), unique("dead"), free_port()
    for name in (topic, out, dead):
        embedded_broker.create_topic(name, 2)
    models.write(tmp_path, models.identity())
    config = write_config(
        tmp_path,
        {
            "input": {"topics": [topic], "format": "json", "fields": ["a", "b", "c", "d"]},
            "model": {"path": "model.onnx"},
            "cache": {},
            "output": {"topic": out},
            "dead_letter": {"topic": dead, "stop_after": "off"},
            "metrics": {"http": f"127.0.0.1:{port}"},
            "kafka": {"bootstrap.servers": embedded_broker.bootstrap, "group.id": unique("group")},
        },
    )
    started = Worker.start(config)
    good = orjson.dumps(dict.fromkeys("abcd", 1.5))

    def send() -> None:
        values = [good] * 39 + [b"not json"]
        produce(embedded_broker.bootstrap, topic, [{"value": value} for value in values])

    try:
        started.wait_ready()
        yield started, port, send
        assert started.stop()[0] == 0
    finally:
        started.kill()


@pytest.fixture
def ask(worker: tuple[Worker, int, Callable[[], None]], tmp_path: Path) -> Iterator[Ask]:
    """What Prometheus answers to an expression: series with their values."""
    port = free_port()
    scrape = {"job_name": "streaminfer", "static_configs": [{"targets": [f"127.0.0.1:{worker[1]}"]}]}
    shutil.copy(ROOT / "docker/prometheus/alerts.yaml", tmp_path)
    settings = {
        "global": {"scrape_interval": "1s"},
        "rule_files": ["alerts.yaml"],
        "scrape_configs": [scrape],
    }
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(settings))
    command = [
        tool("prometheus"),
        f"--config.file={tmp_path / 'prometheus.yaml'}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (tmp_path / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)

    def answer(expression: str) -> list[Any]:
        query = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?{query}", timeout=10) as got:
            result: list[Any] = json.load(got)["data"]["result"]
            return result

    def up() -> bool:
        assert process.poll() is None, (tmp_path / "prometheus.log").read_text()
        try:
            return bool(answer("streaminfer_assigned_partitions"))
        except OSError:
            return False

    try:
        wait_for(up, "Prometheus to scrape the worker")
        yield answer
    finally:
        process.terminate()
        process.wait(20)


def filled(expression: str) -> str:
    """With what Grafana puts in the place of its variables."""
    return re.sub(r"\$(job|pipeline)\b", ".*", expression).replace("$__rate_interval", "10s")


def test_every_panel_has_an_answer_on_a_running_worker(
    worker: tuple[Worker, int, Callable[[], None]], ask: Ask
) -> None:
    """While records come, each query of each panel has at least one series, but those of what this worker does not do."""
    queries = {
        target["expr"]: panel["title"]
        for panel in BOARD["panels"]
        for target in panel.get("targets", [])
        if not any(name in target["expr"] for name in NOT_HERE)
    }
    assert len(queries) > 30
    empty = dict(queries)

    def answered() -> bool:
        worker[2]()
        for query in list(empty):
            if ask(filled(query)):
                del empty[query]
        return not empty

    try:
        wait_for(answered, "every panel")
    except AssertionError:
        pytest.fail(f"no series for {empty}")


def test_queries_of_what_this_worker_does_not_do_are_at_least_valid(ask: Ask) -> None:
    """Prometheus understands them; each name under NOT_HERE still stands for a panel."""
    queries = [target["expr"] for panel in BOARD["panels"] for target in panel.get("targets", [])]
    for name in NOT_HERE:
        for query in [query for query in queries if name in query]:
            assert ask(filled(query)) == [], query
        assert any(name in query for query in queries), name


def test_no_alert_fires_for_a_worker_that_is_well(
    worker: tuple[Worker, int, Callable[[], None]], ask: Ask
) -> None:
    """Apart from the alert on dead letters, of which there are many here, no condition is true once all is answered."""
    worker[2]()
    wait_for(lambda: ask('streaminfer_records_total{outcome="ok"} > 30'), "answers")
    wait_for(lambda: not ask("sum(streaminfer_consumer_lag_records) > 0"), "an end of the lag")
    true = [rule["alert"] for rule in RULES if ask(rule["expr"])]
    assert set(true) <= {"StreaminferManyDeadLetters"}
