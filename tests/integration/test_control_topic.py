"""The control topic on a real broker: how it is made, what is refused, and that every reader sees one order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from stream import create_topics, unique, wait_for

from worker.errors import StartError
from worker.kafka.control import ControlTopic, open_control
from worker.kafka.topics import check_broker, open_topics
from worker.settings import Settings, validate

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]


def settings_of(kafka: str, control: str, **output: Any) -> Settings:
    names = [unique(name) for name in ("in", "out", "dead")]
    create_topics(kafka, dict.fromkeys(names, 1))
    document = {
        "name": "control",
        "input": {"topics": [names[0]], "format": "json"},
        "model": {"repository": "models", "name": "digits"},
        "output": {"topic": names[1], **output},
        "dead_letter": {"topic": names[2]},
        "control": {"topic": control},
        "kafka": {"bootstrap.servers": kafka, "group.id": unique("control")},
    }
    return validate(document, Path.cwd())


def test_a_control_topic_that_is_missing_is_made_or_named(kafka: str) -> None:
    """Without output.create the sentence gives the command that makes it; with it the topic is compacted, with one partition."""
    topic = unique("control")
    command = f"kafka-topics.sh .* --create --topic {topic} --partitions 1 --config cleanup.policy=compact"
    for open_it in (open_control, open_topics):
        with pytest.raises(
            StartError, match=rf"^control\.topic: topic {topic} does not exist on .*{command}$"
        ):
            open_it(settings_of(kafka, topic))
    settings = settings_of(kafka, topic, create={"partitions": 3})
    assert f"{topic} (1 partition, to be created)" in dict(check_broker(settings))["topics"]
    open_control(settings).close(1.0)
    assert open_topics(settings).partitions[topic] == 1
    with pytest.raises(StartError, match="does not exist"):
        open_control(settings_of(kafka, unique("control"), create={"partitions": 3}), make=False)


@pytest.mark.parametrize("policy", ["delete", "compact,delete"])
def test_a_control_topic_that_forgets_is_refused(kafka: str, policy: str) -> None:
    """Old decisions must stay: the sentence says what is set, and the command that sets it right."""
    topic = unique("control")
    create_topics(kafka, {topic: 1}, **{"cleanup.policy": policy})
    expected = rf"^control\.topic: topic {topic} has cleanup\.policy={policy}, expected compact, .*--add-config cleanup"
    for open_it in (open_control, open_topics):
        with pytest.raises(StartError, match=expected):
            open_it(settings_of(kafka, topic))


def test_a_control_topic_with_several_partitions_is_refused(kafka: str) -> None:
    """There would be no first decision."""
    topic = unique("control")
    create_topics(kafka, {topic: 2}, **{"cleanup.policy": "compact"})
    for open_it in (open_control, open_topics):
        with pytest.raises(
            StartError, match=rf"^control\.topic: topic {topic} has 2 partitions, expected one"
        ):
            open_it(settings_of(kafka, topic))


def test_every_reader_sees_the_same_order(kafka: str) -> None:
    """Two writers at once: both read all records, in one order, and know when they have reached the end."""
    topic = unique("control")
    settings = settings_of(kafka, topic, create={"partitions": 1})
    both = [open_control(settings), open_control(settings)]
    for number in range(20):
        for name, control in zip("ab", both, strict=True):
            control.write(f"{name}/{number}", b"%s%d" % (name.encode(), number))

    def read(control: ControlTopic, found: list[bytes | None]) -> bool:
        found += control.read(0.05)
        return len(found) >= 40

    seen: list[list[bytes | None]] = [[], []]
    for control, found in zip(both, seen, strict=True):
        wait_for(lambda control=control, found=found: read(control, found), "40 records")
    assert seen[0] == seen[1]
    end = both[0].end()
    assert end is not None
    assert both[0].reached(end)
    assert not both[0].reached(end + 1)
    for control in both:
        control.close(1.0)


def test_the_end_is_reached_behind_what_holds_no_record(kafka: str) -> None:
    """A program may write in a transaction: the mark at its end takes an offset, and holds no record."""
    topic = unique("control")
    settings = settings_of(kafka, topic, create={"partitions": 1})
    control = open_control(settings)
    wait_for(lambda: control.end() == 0 and control.reached(0), "the end of an empty topic")
    producer = Producer({"bootstrap.servers": kafka, "transactional.id": unique("program")})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(topic, b"x", b"key")
    producer.commit_transaction(30)
    found: list[bytes | None] = []

    def read() -> bool:
        found.extend(control.read(0.05))
        return control.end() == 2 and control.reached(2)

    wait_for(read, "the end behind the mark")
    assert found == [b"x"]
    control.close(1.0)
