"""Faults of the broker, the network's ends and the topics, one at a time, on a real Kafka of their own.

Several at once, for as long as you like, are in ``scripts/chaos``.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
from chaos.cluster import Cluster
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions
from fault_stage import MODES, PARTITIONS, Stage
from stream import Sent, create_topics, judge, place_of, read_all, unique, wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

THEFTS_MAX = 5
"""Within a minute, as it is promised."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A broker that nobody else uses: it will be stopped."""
    try:
        made = Cluster(tmp_path_factory.mktemp("faults") / "broker")
    except OSError as error:
        (pytest.fail if os.environ.get("REQUIRE_KAFKA") == "1" else pytest.skip)(
            f"no broker to stop: {error}"
        )
    yield made
    made.close()


@pytest.fixture
def make_stage(cluster: Cluster, tmp_path: Path) -> Iterator[Callable[[], Stage]]:
    made: list[Stage] = []

    def make() -> Stage:
        made.append(Stage(cluster.direct, tmp_path / str(len(made))))
        return made[-1]

    yield make
    for stage in made:
        for worker in stage.workers:
            worker.kill()


@pytest.fixture
def stage(make_stage: Callable[[], Stage]) -> Stage:
    return make_stage()


def both_modes(make_stage: Callable[[], Stage], kafka: dict[str, dict[str, Any]]) -> dict[str, Stage]:
    """A stage with a worker for each delivery mode: a broker that goes away does so for both at once."""
    stages = {mode: make_stage() for mode in MODES}
    for mode, stage in stages.items():
        stage.topics()
        stage.start(mode, kafka.get(mode), input={"topics": [stage.input], "format": "own_faults:measured"})
    for stage in stages.values():
        stage.workers[0].wait_ready()
    for stage in stages.values():
        stage.send(2_000)  # 4 s of work
    return stages


def test_a_broker_that_restarts_under_load_is_waited_for(
    cluster: Cluster, make_stage: Callable[[], Stage]
) -> None:
    """Nothing is lost or reordered, with exactly_once nothing doubled; the workers stay and drain with 0."""
    # a session that outlives the outage: else the group waits for the members of before, which are the same workers
    patient = {"session.timeout.ms": 45_000}
    stages = both_modes(make_stage, dict.fromkeys(MODES, patient))
    # Not in order: an only broker that leaves says that there is none, and librdkafka's clients may believe it for good
    # (one in a hundred on a busy machine). A consumer that does ends its worker, which here would be a failure.
    cluster.kill()
    cluster.start()
    for mode, stage in stages.items():
        stage.send(1_000)
        stage.wait_for_everything()
        stage.settle(mode)


def test_a_broker_silent_for_longer_than_a_delivery_may_take_loses_nothing(
    cluster: Cluster, make_stage: Callable[[], Stage]
) -> None:
    """Outputs given up by the producer, transactions given up by the broker: both are done again."""
    short = {
        "at_least_once": {"message.timeout.ms": 2_000},
        "exactly_once": {"transaction.timeout.ms": 3_000},
    }
    stages = both_modes(make_stage, short)
    try:
        cluster.freeze()
        given_up = stages["at_least_once"].workers[0]
        wait_for(lambda: '"rewind"' in given_up.text(), "an output to be given up", 30)
    finally:
        cluster.thaw()
    for mode, stage in stages.items():
        stage.send(500)
        stage.wait_for_everything()
        stage.settle(mode)


@pytest.mark.parametrize(
    ("protocol", "compiled"), [("classic", "1"), pytest.param("consumer", "0", marks=pytest.mark.slow)]
)
def test_a_zombie_publishes_nothing_twice(
    stage: Stage, protocol: str, compiled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen for longer than its session and awake again: a read_committed reader sees every record once.

    With the compiled producer and with the client's own binding, which is there where nothing is compiled.
    """
    monkeypatch.setenv("STREAMINFER_NATIVE", compiled)
    stage.topics()
    sections: dict[str, Any] = {"input": {"topics": [stage.input], "format": "own_faults:measured"}}
    kafka = {"group.protocol": protocol, "transaction.timeout.ms": 60_000}
    if protocol == "classic":
        kafka |= {"session.timeout.ms": 2_000, "heartbeat.interval.ms": 500}
    zombie = stage.start("exactly_once", kafka, **sections)
    zombie.wait_ready()
    stage.send(2_000)
    wait_for(lambda: len(read_all(stage.kafka, stage.output)) > 100, "the first results")
    zombie.process.send_signal(signal.SIGSTOP)
    successor = stage.start("exactly_once", kafka, **sections)
    wait_for(lambda: f'"{stage.input}/0"' in successor.text(), "the successor to get the partitions")
    zombie.process.send_signal(signal.SIGCONT)
    stage.send(500)
    stage.wait_for_everything()
    stage.settle("exactly_once")


def test_a_stolen_transactional_id_is_taken_back_until_it_is_stolen_too_often(stage: Stage) -> None:
    """Whoever initialises last has it. The thief publishes nothing; at the fifth theft within a minute the worker ends,
    with commits between them or not, and its successor goes on under an id of its own."""
    stage.topics()
    worker = stage.start("exactly_once")
    stage.send(40)
    stage.wait_for_everything()
    [name] = stage.transactional_ids(1)
    for _ in range(THEFTS_MAX - 1):
        thief = _steal(stage, name)
        thief.begin_transaction()
        thief.produce(stage.output, b"stolen")
        stage.send(40)
        stage.wait_for_everything()
        with pytest.raises(KafkaException, match="fenced"):
            thief.commit_transaction(30)
    assert worker.text().count('"rewind"') == THEFTS_MAX - 1
    _steal(stage, name)
    stage.send(40)
    assert worker.process.wait(60) == 6, worker.text()
    sentence = f"streaminfer: kafka: another producer keeps taking the transactional.id {name}"
    assert worker.text().splitlines()[-1].startswith(sentence), worker.text()
    _succeed(stage)


def test_two_owners_of_a_transactional_id_do_not_fight_for_ever(stage: Stage) -> None:
    """Fenced again before it could commit anything, the worker ends; nothing is lost, doubled or reordered."""
    stage.topics()
    worker = stage.start("exactly_once", input={"topics": [stage.input], "format": "own_faults:measured"})
    worker.wait_ready()
    stage.send(2_000)
    [name] = stage.transactional_ids(1)
    over = threading.Event()

    def fight() -> None:
        while not over.is_set():
            with suppress(KafkaException):
                _steal(stage, name)

    rival = threading.Thread(target=fight)
    rival.start()
    try:
        assert worker.process.wait(60) == 6, worker.text()
    finally:
        over.set()
        rival.join()
    last = worker.text().splitlines()[-1]
    assert last.startswith("streaminfer: "), worker.text()
    # whoever notices first: a transactional call names the fence, an output is just refused after it
    assert "fenced" in last or "the producer refuses an output" in last, last
    _succeed(stage)


def _steal(stage: Stage, name: str) -> Producer:
    thief = Producer({"bootstrap.servers": stage.kafka, "transactional.id": name, "log_level": 0})
    thief.init_transactions(30)
    return thief


def _succeed(stage: Stage) -> None:
    """Another worker does what the one that ended has left."""
    stage.workers.clear()
    stage.start("exactly_once")
    stage.wait_for_everything()
    assert stage.workers[0].stop()[0] == 0, stage.logs()
    assert judge(stage.sent, stage.outputs()).clean, stage.logs()


def test_an_output_its_topic_would_refuse_is_a_dead_letter(stage: Stage) -> None:
    """`too_large_output` for the one record whose result does not fit; its transaction and the others go on."""
    stage.topics(**{"max.message.bytes": "3000"})
    stage.start("exactly_once", postprocess="own_faults:wordy")
    for first in (10.0, 5000.0, 10.0):
        stage.send(20 if first < 100 else 1, first)
    stage.wait_for_everything()
    letters = read_all(stage.kafka, stage.letters)
    [refused] = [s for s in stage.sent if b"5000" in (s.value or b"")]
    assert [place_of(letter) for letter in letters] == [(refused.partition, refused.offset)]
    assert dict(letters[0].headers())["streaminfer.error.reason"] == b"too_large_output"
    stage.settle("exactly_once")


def test_a_full_producer_queue_holds_up_and_loses_nothing(stage: Stage) -> None:
    """Ten messages may be queued: everything arrives, once and in order."""
    stage.topics()
    stage.start("at_least_once", {"queue.buffering.max.messages": 10})
    stage.send(3_000)
    stage.wait_for_everything()
    assert judge(stage.sent, stage.outputs()).clean, stage.logs()
    stage.settle("at_least_once")


def test_a_position_the_broker_no_longer_has_becomes_the_earliest(stage: Stage) -> None:
    """Records deleted below the committed position and beyond: reading goes on at the first one left, and says so."""
    stage.topics()
    stage.send(400)
    before = Counter(s.partition for s in stage.sent)
    _commit(stage, dict.fromkeys(before, 5))
    admin = AdminClient({"bootstrap.servers": stage.kafka})
    cut = [TopicPartition(stage.input, number, 20) for number in before]
    for future in admin.delete_records(cut).values():
        future.result(10)
    worker = stage.start("at_least_once")
    stage.sent = [s for s in stage.sent if s.offset >= 20]
    stage.wait_for_everything()
    assert judge(stage.sent, stage.outputs()).clean
    assert "no longer on the broker" in worker.text()


def test_topics_that_are_deleted_end_the_worker_with_one_sentence(make_stage: Callable[[], Stage]) -> None:
    """Exit 6 for an input that is gone or another one under its name, and for an output that is gone.

    Started again, the worker reads the whole of the new topic: its positions went with the old one.
    """
    gone, anew, outless = make_stage(), make_stage(), make_stage()
    for stage, delivery in ((gone, "exactly_once"), (anew, "at_least_once"), (outless, "exactly_once")):
        stage.topics()
        stage.start(delivery)
    for stage in (gone, anew, outless):
        stage.workers[0].wait_ready()
        stage.send(100)
        stage.wait_for_everything()
    admin = AdminClient({"bootstrap.servers": gone.kafka})
    for future in admin.delete_topics([gone.input, anew.input, outless.output]).values():
        future.result(10)
    wait_for(lambda: anew.input not in admin.list_topics(timeout=10).topics, "the topic to be gone")
    create_topics(anew.kafka, {anew.input: PARTITIONS})
    outless.send(10)
    expected = {
        gone: f"input.topics: topic {gone.input} does not exist any more",
        anew: f"input.topics: topic {anew.input} was deleted and made anew",
        outless: f"output.topic: topic {outless.output} does not exist any more",
    }
    for stage, sentence in expected.items():
        [worker] = stage.workers
        assert worker.process.wait(60) == 6, worker.text()
        assert worker.text().splitlines()[-1].startswith(f"streaminfer: {sentence}"), worker.text()
    for future in admin.delete_topics([anew.output]).values():
        future.result(10)
    wait_for(lambda: anew.output not in admin.list_topics(timeout=10).topics, "the topic to be gone")
    create_topics(anew.kafka, {anew.output: PARTITIONS})
    anew.sent.clear()
    anew.workers.clear()
    anew.send(100)
    anew.start("at_least_once")
    anew.wait_for_everything()


def test_partitions_added_under_load_are_read_from_their_beginning(stage: Stage) -> None:
    """All of them, in order, soon after the client looks at the topic again (a minute unless it is told)."""
    stage.topics()
    worker = stage.start("exactly_once", {"topic.metadata.refresh.interval.ms": 500})
    worker.wait_ready()
    stage.send(1_000)
    admin = AdminClient({"bootstrap.servers": stage.kafka})
    for future in admin.create_partitions([NewPartitions(stage.input, PARTITIONS + 2)]).values():
        future.result(10)
    wait_for(
        lambda: len(admin.list_topics(timeout=10).topics[stage.input].partitions) == PARTITIONS + 2,
        "the new partitions",
    )
    stage.send(2_000)  # keys spread over all of them now
    assert {PARTITIONS, PARTITIONS + 1} <= {s.partition for s in stage.sent}
    stage.wait_for_everything()
    stage.settle("exactly_once")


def test_only_what_was_committed_upstream_is_answered(stage: Stage) -> None:
    """An aborted transaction is passed over, an open one waited for; gaps in the offsets disturb nothing."""
    stage.topics()
    stage.start("exactly_once")
    upstream = Producer({"bootstrap.servers": stage.kafka, "transactional.id": unique("upstream")})
    upstream.init_transactions(30)
    for ending in (upstream.commit_transaction, upstream.abort_transaction, upstream.commit_transaction):
        upstream.begin_transaction()
        _feed(stage, upstream, 200, kept=ending == upstream.commit_transaction)
        ending(30)
    stage.wait_for_everything()
    upstream.begin_transaction()
    _feed(stage, upstream, 100, kept=True)
    answered = len(stage.sent) - 100
    stage.send(100)  # behind an open transaction: not to be seen yet
    assert len(stage.outputs()) == answered
    upstream.commit_transaction(30)
    stage.wait_for_everything()
    stage.settle("exactly_once")


def test_what_was_aborted_is_neither_lag_nor_a_standstill(stage: Stage) -> None:
    """An upstream that only aborts moves the end of the topic on for as long as it likes; nothing there can be read."""
    stage.topics()
    worker = stage.start(
        "at_least_once",
        limits={"stall_s": 2},
        metrics={"topic": stage.metrics, "interval_s": 0.5, "http": "127.0.0.1:0"},
    )
    worker.wait_ready()
    port = wait_for(lambda: re.search(r'"port": (\d+)', worker.text()), "the port in the log")[1]
    upstream = Producer({"bootstrap.servers": stage.kafka, "transactional.id": unique("upstream")})
    upstream.init_transactions(30)
    upstream.begin_transaction()
    _feed(stage, upstream, 40, kept=True)
    upstream.commit_transaction(30)
    stage.wait_for_everything()
    aborting_until = time.monotonic() + 4
    while time.monotonic() < aborting_until:
        upstream.begin_transaction()
        _feed(stage, upstream, 20, kept=False)
        upstream.abort_transaction(30)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/progressz", timeout=10) as answer:
            assert answer.status == 200

    def lag() -> int:
        last = orjson.loads(read_all(stage.kafka, stage.metrics)[-1].value())
        return sum(state["lag"] for state in last["partitions"].values())

    wait_for(lambda: lag() == 0, "the lag to be none")
    stage.settle("at_least_once")


def test_connections_that_break_cost_no_transaction(
    cluster: Cluster, make_stage: Callable[[], Stage]
) -> None:
    """The producer finds its coordinator again and finishes what it had begun: nothing is done anew."""
    stage = make_stage()
    stage.topics()
    through = {"bootstrap.servers": cluster.bootstrap, "session.timeout.ms": 45_000}
    worker = stage.start("exactly_once", through)
    worker.wait_ready()
    for _ in range(5):
        stage.send(300)
        cluster.proxy.cut()
        stage.wait_for_everything()
    stage.settle("exactly_once")
    assert '"rewind"' not in worker.text(), worker.text()


def _feed(stage: Stage, producer: Producer, count: int, kept: bool) -> None:
    """Send with this producer; what will be kept is expected to be answered."""

    def delivered(error: Any, message: Any) -> None:
        assert error is None, error
        if kept:
            stage.sent.append(Sent(message.partition(), message.offset(), None, message.value(), []))

    value = orjson.dumps({"features": [1.0, 0.0, 0.0, 0.0]})
    for number in range(count):
        producer.produce(stage.input, value, partition=number % PARTITIONS, on_delivery=delivered)
    assert producer.flush(30) == 0


def _commit(stage: Stage, positions: dict[int, int]) -> None:
    consumer = Consumer({"bootstrap.servers": stage.kafka, "group.id": stage.group})
    offsets = [TopicPartition(stage.input, number, offset) for number, offset in positions.items()]
    consumer.commit(offsets=offsets, asynchronous=False)
    consumer.close()
