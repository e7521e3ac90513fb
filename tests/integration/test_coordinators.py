"""Coordinators that move to another broker while replicas work, on a real Kafka of two."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chaos.cluster import GROUPS, TRANSACTIONS, Pair
from chaos.traffic import Traffic, Witness
from fault_stage import MODES, PARTITIONS, Stage
from stream import place_of, wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]

REPLICAS = 2
RATE = 100.0
RECOVERY_S = 60.0


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    try:
        made = Pair(tmp_path / "brokers")
    except OSError as error:
        (pytest.fail if os.environ.get("REQUIRE_KAFKA") == "1" else pytest.skip)(f"no two brokers: {error}")
    yield made
    made.close()


class Act:
    """A delivery mode: two replicas at work, records that keep coming, and one who watches the answers."""

    def __init__(self, pair: Pair, folder: Path, delivery: str, protocol: str) -> None:
        self.delivery = delivery
        self.stage = stage = Stage(pair.bootstrap, folder, copies=2)
        stage.topics()
        wait_for(lambda: pair.knows(stage.output), "both brokers to know the topics")
        section = {"topics": [stage.input], "format": "own_faults:measured"}
        for _ in range(REPLICAS):
            stage.start(delivery, {"group.protocol": protocol}, input=section)
        self._traffic = Traffic(pair.bootstrap, stage.input, PARTITIONS, RATE, seed=1)
        outputs = [stage.output, stage.letters]
        self._witness = Witness(pair.bootstrap, outputs, stage.input, stage.group, self._traffic)

    def coordinated(self) -> list[tuple[str, str]]:
        """What has a coordinator: the group, and the transactions of each replica."""
        ids = self.stage.transactional_ids(REPLICAS) if self.delivery == "exactly_once" else []
        return [(GROUPS, self.stage.group), *((TRANSACTIONS, name) for name in ids)]

    def goes_on(self) -> None:
        """Until every partition has the answer to a record sent after now, by the replicas there were."""
        assert self._witness.wait_for_news(RECOVERY_S) is not None, self.stage.logs()
        ends = [worker.process.poll() for worker in self.stage.workers]
        assert ends == [None] * REPLICAS, self.stage.logs()

    def settle(self) -> None:
        stage, traffic, witness = self.stage, self._traffic, self._witness
        traffic.close()
        wait_for(lambda: not witness.missing(), "an answer to every record")
        assert not witness.early_commits
        stage.sent = traffic.sent
        stage.place = lambda output: traffic.tombstones.get(output.key()) or place_of(output)
        stage.settle(self.delivery)

    def close(self) -> None:
        for worker in self.stage.workers:
            worker.kill()
        self._traffic.close()
        self._witness.close()


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_coordinators_that_move_are_found_again(pair: Pair, tmp_path: Path, protocol: str) -> None:
    """Nothing is lost or reordered, with exactly_once nothing doubled; the workers stay and drain with 0."""
    acts = [Act(pair, tmp_path / mode, mode, protocol) for mode in MODES]
    try:
        for act in acts:
            for worker in act.stage.workers:
                worker.wait_ready()
            act.goes_on()
        coordinated = [each for act in acts for each in act.coordinated()]

        def on(groups: int, transactions: int) -> bool:
            """Whether that is where they all are, by the word of the first broker."""
            expected = {GROUPS: groups, TRANSACTIONS: transactions}
            return all(pair.coordinator(topic, name) == expected[topic] for topic, name in coordinated)

        def move(how: Callable[[], None], groups: int, transactions: int) -> None:
            how()
            wait_for(lambda: on(groups, transactions), "the coordinators to move")
            for act in acts:
                act.goes_on()

        assert on(2, 2)
        move(pair.stop_second, 1, 1)
        pair.start_second()
        move(lambda: pair.give_back(GROUPS), 2, 1)
        move(lambda: pair.give_back(TRANSACTIONS), 2, 2)
        if (
            protocol == "classic"
        ):  # to transactions it is all the same, and to groups no more than being stopped
            pair.give_back()  # and the records it led, which nobody can read or write for a while now
            move(pair.kill_second, 1, 1)
        for act in acts:
            act.settle()
    finally:
        for act in acts:
            act.close()
