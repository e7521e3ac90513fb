"""`output.kafka`: results on another cluster. What is refused, what is hidden, which producer gets which row."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from worker.batch import Partition
from worker.errors import ConfigError
from worker.kafka.acls import rights_of
from worker.kafka.clusters import clusters_of
from worker.kafka.needed import commands, needed
from worker.kafka.properties import check_clients, producer_properties
from worker.kafka.several_sinks import SeveralSinks
from worker.sending import Sending
from worker.settings import Settings, load, validate

THERE = {"bootstrap.servers": "there:9092", "linger.ms": 7}


def document(output: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {
        "name": "two",
        "input": {"topics": ["in"], "format": "json"},
        "model": {"path": "m.onnx"},
        "output": {"topic": "out", "kafka": THERE, **(output or {})},
        "dead_letter": {"topic": "dead"},
        "kafka": {"bootstrap.servers": "here:9092", "group.id": "g", "client.id": "me"},
        **more,
    }


def settings(output: dict[str, Any] | None = None, **more: Any) -> Settings:
    return validate(document(output, **more), Path.cwd())


@pytest.mark.parametrize(
    ("output", "more", "sentence"),
    [
        ({}, {"delivery": "exactly_once"}, "output.kafka: does not go with delivery: exactly_once"),
        ({"kafka": {"linger.ms": 5}}, {}, "output.kafka.bootstrap.servers is required"),
        ({"kafka": {**THERE, "group.id": "x"}}, {}, "output.kafka.group.id: expected not to be set"),
        (
            {"kafka": {**THERE, "partitioner": "random"}},
            {},
            "output.kafka.partitioner: expected not to be set",
        ),
        (
            {"topic": "dead"},
            {},
            "output.topic: got 'dead', expected another name than that of dead_letter.topic",
        ),
        (
            {"topic": "in", "kafka": {"bootstrap.servers": "here:9092"}},
            {},
            "output.topic: got 'in', expected a topic that is not in input.topics",
        ),
        (
            {
                "kafka": {
                    **THERE,
                    "security.protocol": "sasl_plaintext",
                    "sasl.mechanism": "PLAIN",
                    "sasl.password": "sparrow",
                }
            },
            {},
            "output.kafka.security.protocol: SASL PLAIN would send the password to there:9092 unencrypted",
        ),
    ],
)
def test_a_mistake_names_the_setting_of_the_other_cluster(
    output: dict[str, Any], more: dict[str, Any], sentence: str
) -> None:
    """What two clusters cannot hold, and what is missing or refused there, is a sentence that begins with its setting."""
    with pytest.raises(ConfigError) as caught:
        settings(output, **more)
    assert sentence in str(caught.value)
    assert "sparrow" not in str(caught.value)


def test_a_property_that_nobody_knows_is_named_with_its_section() -> None:
    """librdkafka's objection to a property of the other cluster names `output.kafka`."""
    with pytest.raises(ConfigError, match=r"^output\.kafka\.linger\.mss: librdkafka knows no such property"):
        check_clients(settings({"kafka": {"bootstrap.servers": "there:9092", "linger.mss": 1}}))


def test_the_producer_of_results_has_the_properties_of_their_cluster() -> None:
    """Results are sent with the properties given there, the worker's own and its client id; nothing is inherited from `kafka`."""
    (cluster,) = clusters_of(settings(kafka={**document()["kafka"], "compression.type": "gzip"}))
    properties = producer_properties(cluster.settings)
    assert (cluster.section, cluster.topics) == ("output.kafka", {"out"})
    assert properties["bootstrap.servers"] == "there:9092"
    assert (properties["linger.ms"], properties["client.id"]) == ("7", "me")
    assert (properties["compression.type"], properties["acks"]) == ("lz4", "all")


def test_a_topic_of_the_other_cluster_may_have_the_name_of_an_input() -> None:
    """A mirror of the same name is no loop when the results' brokers are others."""
    assert settings({"topic": "in"}).pipelines["two"].output.topic == "in"


def test_secrets_of_the_other_cluster_are_hidden(tmp_path: Path) -> None:
    """A secret under `output.kafka` is neither dumped nor told in a mistake, and dots after the section are one key."""
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(document()))
    found = load(tmp_path / "c.yaml", ["output.kafka.sasl.password=sparrow-7", "output.kafka.acks=all"])
    assert found.pipelines["two"].output.kafka == {
        "bootstrap.servers": "there:9092",
        "linger.ms": "7",
        "sasl.password": "sparrow-7",
        "acks": "all",
    }
    assert "sparrow-7" in found.secrets()
    assert "sparrow" not in str(found.redacted())
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "c.yaml", ["output.kafka=sparrow-8"])
    assert "sparrow" not in str(caught.value)


def test_rights_and_topics_are_listed_where_they_are_needed() -> None:
    """The results' topic needs its right and its making on the other cluster, everything else on the input's."""
    found = settings()
    here = {(right.operation, right.name) for right in rights_of(found) if not right.optional}
    there = {
        (right.operation, right.name) for right in rights_of(found, "output.kafka") if not right.optional
    }
    assert here == {("READ", "in"), ("WRITE", "dead"), ("READ", "g")}
    assert there == {("WRITE", "out")}
    made = {line.split("--topic ")[1].split()[0]: line for line in commands(found, needed(found), 1, -1)}
    assert "--bootstrap-server there:9092" in made["out"]
    assert "--bootstrap-server here:9092" in made["dead"]


class Sink:
    """A sink of one cluster that writes down what it is asked."""

    def __init__(self, name: str) -> None:
        self.errors = Counter({name: 1})
        self.last_error = ""
        self.said: list[Any] = []

    def send(self, sending: Sending, on_delivery: Any) -> int:
        self.said.append(sending.topic)
        return len(sending)

    def max_bytes(self, topic: str) -> int:
        return len(topic)

    def needs_key(self, topic: str) -> bool:
        return "key" in topic

    def poll(self, timeout_s: float = 0.0) -> None:
        self.said.append(timeout_s)

    def purge(self) -> None:
        self.said.append("purge")

    def close(self, budget_s: float) -> None:
        self.said.append(("close", budget_s))


def test_each_row_goes_to_the_cluster_of_its_topic() -> None:
    """Results go to their cluster and dead letters home; every cluster is polled, purged and closed, and one of them waits."""
    home, there = Sink("home"), Sink("there")
    both = SeveralSinks(home, {"out": there})  # type: ignore[dict-item,arg-type]
    place = Partition("in", 0)
    for topic in ("out", "dead", "out"):
        assert both.send(Sending(topic, place, [None], [b"x"], None, "key"), None) == 1
    assert (home.said, there.said) == (["dead"], ["out", "out"])
    assert both.errors == {"home": 1, "there": 1}
    both.poll(0.5)
    both.purge()
    both.close(2.0)
    assert home.said[1:] == [0.0, "purge", ("close", 1.0)]
    assert there.said[2:] == [0.5, "purge", ("close", 1.0)]
