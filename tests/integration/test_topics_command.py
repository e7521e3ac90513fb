"""``streaminfer topics``, ``broker --config`` and what is said of missing topics."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient
from kafka_support import Cluster
from stream import unique

from worker.cli.main import main
from worker.errors import NotReady
from worker.kafka.broker import EmbeddedBroker
from worker.kafka.topics import open_topics
from worker.settings import load


def configuration(folder: Path, bootstrap: str, **topics: Any) -> str:
    """A configuration with topics of its own names; returns its path."""
    names = {role: unique(role) for role in ("in", "out", "dead", "metrics", "control")} | topics
    create = names.pop("create", None)
    output = {"topic": names["out"], **({"create": create} if create else {})}
    settings = {
        "input": {"topics": [names["in"], "^cams-.*"], "format": "json"},
        "model": {"repository": "models", "name": "m"},
        "output": output,
        "dead_letter": {"topic": names["dead"]},
        "metrics": {"topic": names["metrics"]},
        "control": {"topic": names["control"]},
        "kafka": {"bootstrap.servers": bootstrap, "group.id": "g"},
    }
    path = folder / "w.yaml"
    path.write_text(json.dumps(settings))
    return str(path)


def listed(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_what_is_missing_is_listed_and_is_exit_3(
    embedded_broker: EmbeddedBroker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every topic has its state, partitions and the settings that name it; a pattern has no row."""
    given = Cluster(embedded_broker.bootstrap, embedded_broker).topic(3)
    path = configuration(tmp_path, embedded_broker.bootstrap, **{"in": given})
    assert main(["topics", path]) == 3
    out, err = capsys.readouterr()
    rows = {line.split()[1]: line.split() for line in out.splitlines()}
    assert len(rows) == 5
    assert rows[given] == ["there", given, "3", "partitions", "read:", "input.topics"]
    assert [row[0] for topic, row in rows.items() if topic != given] == ["missing"] * 4
    assert f"4 of 5 topics missing; make them by streaminfer broker --config {path}" in err
    assert main(["topics", path, "--json"]) == 3
    (control,) = [each for each in listed(capsys) if each["compacted"]]
    assert (control["use"], control["settings"], control["partitions"]) == (
        "read and written",
        ["control.topic"],
        None,
    )


def test_the_embedded_broker_makes_none_and_says_so(
    embedded_broker: EmbeddedBroker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`create` on the embedded broker is exit 3 and names the command that helps."""
    path = configuration(tmp_path, embedded_broker.bootstrap)
    assert main(["topics", path, "create", "--partitions", "2"]) == 3
    assert "streaminfer broker --config CONFIG" in capsys.readouterr().err


def test_all_missing_topics_are_told_at_once(
    embedded_broker: EmbeddedBroker, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A start names every missing topic with its setting; `check` says which command makes them."""
    path = configuration(tmp_path, embedded_broker.bootstrap)
    with pytest.raises(NotReady) as caught:
        open_topics(load(path))
    told = [each.sentence.partition(":")[0] for each in caught.value.mistakes]
    assert told == ["input.topics", "output.topic", "dead_letter.topic", "metrics.topic", "control.topic"]
    assert main(["check", path]) == 3
    out = capsys.readouterr().out
    assert "FAIL topics" in out
    assert f"streaminfer topics {path}" in out


@pytest.mark.kafka
def test_create_makes_what_is_missing(kafka: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Missing topics get the partitions that are asked for, or those of the input; control is compacted, with one."""
    path = configuration(tmp_path, kafka)
    assert main(["topics", path, "create"]) == 2
    assert "--partitions: expected a number" in capsys.readouterr().err
    assert main(["topics", path, "create", "--partitions", "2", "--replication", "1", "--json"]) == 0
    made = listed(capsys)
    assert [(each["partitions"], each["made"]) for each in made] == [(2, True)] * 3 + [(1, True)] * 2
    assert main(["topics", path, "create", "--json"]) == 0
    assert not any(each["made"] for each in listed(capsys))
    open_topics(load(path))  # refuses a control topic that is not compacted
    other = configuration(tmp_path, kafka, **{"in": made[0]["topic"]})
    assert main(["topics", other, "create", "--json"]) == 0
    assert listed(capsys)[1]["partitions"] == 2
    admin = AdminClient({"bootstrap.servers": kafka})
    for answer in admin.delete_topics([each["topic"] for each in made]).values():
        answer.result()


def test_commands_are_printed_without_a_broker(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`commands` asks no broker: a line of kafka-topics.sh for each topic, with what the options and the file say."""
    path = configuration(tmp_path, "nowhere:1", control="c", create={"partitions": 4, "replication": 3})
    assert main(["topics", path, "commands"]) == 0
    *_, metrics, control = capsys.readouterr().out.splitlines()
    assert metrics.endswith("--partitions 1 --replication-factor 3")
    assert control == (
        "kafka-topics.sh --bootstrap-server nowhere:1 --create --if-not-exists --topic c --partitions 1 "
        "--replication-factor 3 --config cleanup.policy=compact"
    )
    assert (
        main(["topics", path, "commands", "--partitions", "9", "--set", "kafka.security.protocol=SSL"]) == 0
    )
    first, *_ = capsys.readouterr().out.splitlines()
    assert "--partitions 9 " in first
    assert "--command-config admin.properties" in first


def test_the_topic_of_labels_is_needed_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where `labels` is configured, the topic that `score` reads has a row, with the setting that names it."""
    path = configuration(tmp_path, "here:1")
    assert (
        main(
            [
                "topics",
                path,
                "commands",
                "--json",
                "--set",
                "labels={topic: truth}",
                "--set",
                "postprocess=regression",
            ]
        )
        == 0
    )
    found = {each["topic"]: each for each in listed(capsys)}
    assert (found["truth"]["settings"], found["truth"]["use"]) == (["labels.topic"], "read")


def test_the_broker_makes_the_topics_of_a_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`broker --config` makes every topic that the file names, with 6 partitions, or one for metrics and control."""
    path = configuration(tmp_path, "localhost:9092")
    command = [sys.executable, "-m", "worker", "broker", "--config", path, "--port", "0", "--topic", "more:2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        bootstrap = process.stdout.readline().strip()
        assert main(["topics", path, "--json", "--set", f"kafka.bootstrap.servers={bootstrap}"]) == 0
    finally:
        process.kill()
        process.communicate()
    assert [each["partitions"] for each in listed(capsys)] == [6, 6, 6, 1, 1]
    assert main(["broker", "--partitions", "3"]) == 2
    assert "--partitions: expected" in capsys.readouterr().err
