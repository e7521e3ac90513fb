"""`dlq` on a broker: what it counts, shows and sends back, and what it never sends twice."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition
from stream import create_topics, unique

from worker.batch import Columns, Headers, Partition
from worker.cli import dlq
from worker.cli import main as cli
from worker.dead_letters.compose import compose
from worker.errors import Rejection
from worker.kafka.broker import EmbeddedBroker

TIMESTAMP_MS = int(time.time() * 1000) - 60_000
"""Not older than a topic's retention: the broker deletes by the record's own time, within seconds."""


@dataclass
class Topics:
    """An input topic of three partitions, a dead-letter topic of two, and a configuration that names them."""

    bootstrap: str
    config: str
    source: str
    dead: str

    def fail(
        self,
        offset: int,
        value: bytes | None = b"not a picture",
        reason: str = "undecodable",
        headers: Headers | None = None,
        max_bytes: int = 1_000_000,
        topic: str | None = None,
    ) -> None:
        """The worker's dead letter of record ``offset`` in input partition 2."""
        place = Partition(topic or self.source, 2)
        columns = Columns([value], [b"k%d" % offset], [headers], [TIMESTAMP_MS], [offset], [place])
        rejection = Rejection(reason, "decode", "no\x1b[2J image")  # type: ignore[arg-type]
        letter = compose(columns, 0, rejection, "digits", "client", "digits@1", max_bytes)
        producer = Producer({"bootstrap.servers": self.bootstrap})
        producer.produce(
            self.dead, letter.value, letter.key, offset % 2, headers=[*letter.headers], timestamp=TIMESTAMP_MS
        )
        assert producer.flush(30) == 0

    def returned(self, count: int) -> list[tuple[int, bytes | None, bytes | None, dict[str, bytes], int]]:
        """(partition, key, value, headers, timestamp) of the records sent back; exactly ``count`` of them."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.bootstrap,
                "group.id": "unused",
                "enable.partition.eof": True,
                "fetch.wait.max.ms": 10,
            }
        )
        consumer.assign([TopicPartition(self.source, number, OFFSET_BEGINNING) for number in range(3)])
        found, at_end = [], set()
        while len(at_end) < 3:
            message = consumer.poll(30)
            assert message is not None
            if message.error() is not None:
                at_end.add(message.partition())
                continue
            headers = dict(message.headers() or [])
            found.append(
                (message.partition(), message.key(), message.value(), headers, message.timestamp()[1])
            )
        consumer.close()
        assert len(found) == count
        return found


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def topics(request: pytest.FixtureRequest, tmp_path: Path) -> Topics:
    """The same on the embedded broker and on a real one."""
    names = {unique("digits"): 3, unique("dead"): 2}
    if request.param == "embedded":
        broker: EmbeddedBroker = request.getfixturevalue("embedded_broker")
        bootstrap = broker.bootstrap
        for name, partitions in names.items():
            broker.create_topic(name, partitions)
    else:
        bootstrap = request.getfixturevalue("kafka")
        create_topics(bootstrap, names)
    source, dead = names
    config = tmp_path / "worker.yaml"
    config.write_text(
        f"input: {{topics: [{source}], format: image}}\n"
        "model: {path: digits.onnx}\n"
        "output: {topic: results}\n"
        f"dead_letter: {{topic: {dead}}}\n"
        f'kafka: {{bootstrap.servers: "{bootstrap}", group.id: {unique("group")}}}\n'
    )
    return Topics(bootstrap, str(config), source, dead)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Standard output of a ``dlq`` command that succeeds."""
    capsys.readouterr()
    code = cli.main(["dlq", *arguments])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


def test_list_counts_by_pipeline_reason_and_stage(topics: Topics, capsys: pytest.CaptureFixture[str]) -> None:
    """Every letter is counted once, the largest class first; --where leaves out the others."""
    assert "no dead letters" in run(capsys, "list", topics.config)
    for offset, reason in enumerate(["undecodable", "too_large", "undecodable"]):
        topics.fail(offset, reason=reason)
    lines = [json.loads(line) for line in run(capsys, "list", topics.config, "--json").splitlines()]
    assert [(line["pipeline"], line["reason"], line["stage"], line["count"]) for line in lines] == [
        ("digits", "undecodable", "decode", 2),
        ("digits", "too_large", "decode", 1),
    ]
    assert lines[0]["example"] == {"source": f"{topics.source}/2/2", "message": r"no\x1b[2J image"}
    heading, only = run(capsys, "list", topics.config, "--where", "reason=too_large").splitlines()
    assert heading.split() == [
        *("pipeline", "reason", "stage", "count", "records", "replayed", "first", "last", "example")
    ]
    assert only.split()[:6] == ["digits", "too_large", "decode", "1", "1", "0"]
    assert "\x1b" not in only
    by_partition = run(capsys, "list", topics.config, "--by", "partition", "--json")
    assert [json.loads(line)["partition"] for line in by_partition.splitlines()] == [f"{topics.source}/2"]
    assert "no dead letters" in run(capsys, "list", topics.config, "--until", "1h")
    assert len(run(capsys, "list", topics.config, "--since", "1h").splitlines()) == 3
    assert cli.main(["dlq", "list", topics.config, "--where", "reason=undecodeable"]) == 2
    assert "there is no reason undecodeable; did you mean undecodable?" in capsys.readouterr().err


def test_show_finds_a_letter_by_either_place(topics: Topics, capsys: pytest.CaptureFixture[str]) -> None:
    """One letter in full, by where it lies or by where its record was read; nothing in it steers the terminal."""
    topics.fail(10, b'{"a": 1}')
    topics.fail(12, b"\x1b[2Jsecond", headers=[("trace", b"abc")])
    for place in (f"{topics.dead}/0/1", f"{topics.source}/2/12"):
        shown = run(capsys, "show", topics.config, "--at", place)
        assert f"from: {topics.source}/2/12" in shown
        assert "reason: undecodable in stage decode" in shown
        assert "header trace: abc" in shown
        assert "second" in shown
        assert "\x1b" not in shown
    letter = json.loads(run(capsys, "show", topics.config, "--json"))
    assert (letter["partition"], letter["offset"], letter["key"], letter["value"]) == (0, 0, "k10", {"a": 1})
    assert letter["timestamp_ms"] == TIMESTAMP_MS
    assert cli.main(["dlq", "show", topics.config, "--at", f"{topics.dead}/0/99"]) == 2


def test_replay_sends_the_original_back_to_its_partition(
    topics: Topics, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bytes, key, headers, timestamp and partition are the original's; the id it had goes with it."""
    topics.fail(41, b"\x00\xff", headers=[("trace", b"abc")])
    assert run(capsys, "replay", topics.config).splitlines() == ["replayed 1 record"]
    [(partition, key, value, headers, timestamp_ms)] = topics.returned(1)
    assert (partition, key, value, timestamp_ms) == (2, b"k41", b"\x00\xff", TIMESTAMP_MS)
    assert headers == {
        "trace": b"abc",
        "x-request-id": f"{topics.source}/2/41".encode(),
        "streaminfer.replay": b"1",
    }


def test_a_second_replay_sends_only_what_is_new(topics: Topics, capsys: pytest.CaptureFixture[str]) -> None:
    """Progress outlives the command, also after --count; --all and a rehearsal do not change that."""
    for offset in range(4):
        topics.fail(offset)
    assert "would replay 4 records" in run(capsys, "replay", topics.config, "--dry-run")
    topics.returned(0)
    assert "replayed 3 records" in run(capsys, "replay", topics.config, "--count", "3")
    assert "replayed 1 record" in run(capsys, "replay", topics.config)
    assert "replayed 0 records" in run(capsys, "replay", topics.config)
    topics.fail(4)
    assert json.loads(run(capsys, "replay", topics.config, "--json"))["replayed"] == 1
    assert {key for _, key, *_ in topics.returned(5)} == {b"k0", b"k1", b"k2", b"k3", b"k4"}
    assert "replayed 5 records" in run(capsys, "replay", topics.config, "--all")
    topics.returned(10)


def test_what_cannot_go_back_is_counted(topics: Topics, capsys: pytest.CaptureFixture[str]) -> None:
    """A value that was cut off and a record of another topic stay, are said, and are no failure."""
    topics.fail(0, b"x" * 5000, max_bytes=1000)
    topics.fail(1, topic="elsewhere")
    topics.fail(2, None)
    assert json.loads(run(capsys, "replay", topics.config, "--json")) == {
        "replayed": 1,
        "skipped": {"trimmed": 1, "foreign": 1},
        "dry_run": False,
    }
    assert [(key, value) for _, key, value, *_ in topics.returned(1)] == [(b"k2", None)]


def test_a_selection_keeps_no_progress_and_says_so(
    topics: Topics, capsys: pytest.CaptureFixture[str]
) -> None:
    """--where sends only what matches; a later run without it starts where it would have."""
    topics.fail(0, reason="undecodable")
    topics.fail(1, reason="too_large")
    said = run(capsys, "replay", topics.config, "--where", "reason=too_large")
    assert said.splitlines() == [
        "replayed 1 record",
        "with --where no progress is kept: the same command would send them again",
    ]
    assert [key for _, key, *_ in topics.returned(1)] == [b"k1"]
    assert "replayed 2 records" in run(capsys, "replay", topics.config)


def test_an_interrupt_keeps_what_was_sent(
    topics: Topics, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in a slow replay settles it: the next run sends the rest and nothing twice."""
    for offset in range(3):
        topics.fail(offset)
    handle = dlq.Replay.handle

    def handle_two(replay: dlq.Replay, *arguments: object) -> None:
        if replay.sent == 2:
            raise KeyboardInterrupt
        handle(replay, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(dlq.Replay, "handle", handle_two)
    assert cli.main(["dlq", "replay", topics.config, "--rate", "1000"]) == 130
    assert "replayed 2 records" in capsys.readouterr().out
    monkeypatch.undo()
    assert "replayed 1 record" in run(capsys, "replay", topics.config)
    assert len({key for _, key, *_ in topics.returned(3)}) == 3


def test_a_missing_topic_cannot_start(topics: Topics, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the dead-letter topic or an input topic to send to, the command ends with 3 and names it."""
    missing = ["--set", "dead_letter.topic=nowhere"]
    assert cli.main(["dlq", "list", topics.config, *missing]) == 3
    assert "dead_letter.topic: topic nowhere does not exist" in capsys.readouterr().err
    assert cli.main(["dlq", "replay", topics.config, "--set", "input.topics=[gone]"]) == 3
    assert "topic gone does not exist" in capsys.readouterr().err
