"""What can go wrong. Every fault returns once it is healed; how long it took before that is its own affair."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from cluster import Cluster
from confluent_kafka import Consumer
from crew import Crew, Replica
from stream import wait_for
from traffic import QUIET, Traffic, Witness

SESSION_S = 6.0
TRANSACTION_S = 10.0
KILLER = b"kill"
"""A record on which the process dies; see the input format in :mod:`campaign`."""
QUARANTINE_S = 90.0


@dataclass
class World:
    """Everything there is to break."""

    cluster: Cluster
    crew: Crew
    traffic: Traffic
    witness: Witness
    topic: str
    group: str
    killers: int = 0


Fault = Callable[[World, random.Random], None]


def kill_replica(world: World, rng: random.Random) -> None:
    world.crew.kill(_anyone(world, rng))


def kill_all_replicas(world: World, rng: random.Random) -> None:
    for replica in list(world.crew.replicas):
        world.crew.kill(replica)


def replace_replica(world: World, rng: random.Random) -> None:
    world.crew.retire(_anyone(world, rng))


def freeze_replica_briefly(world: World, rng: random.Random) -> None:
    """Shorter than its session: nobody should notice."""
    _freeze(_anyone(world, rng), rng.uniform(0.5, SESSION_S - 2))


def zombie(world: World, rng: random.Random) -> None:
    """Longer than its session, or its transaction too: others own its partitions when it wakes."""
    _freeze(_anyone(world, rng), rng.uniform(SESSION_S + 1, SESSION_S + TRANSACTION_S + 4))


def restart_broker(world: World, rng: random.Random) -> None:
    world.cluster.stop()
    time.sleep(rng.uniform(0, 5))
    world.cluster.start()


def kill_broker(world: World, rng: random.Random) -> None:
    world.cluster.kill()
    time.sleep(rng.uniform(0, 5))
    world.cluster.start()


def freeze_broker(world: World, rng: random.Random) -> None:
    world.cluster.freeze()
    time.sleep(rng.uniform(2, SESSION_S + TRANSACTION_S))
    world.cluster.thaw()


def storm_of_rebalances(world: World, rng: random.Random) -> None:
    """Somebody joins or leaves the group every two seconds."""
    for _ in range(rng.randrange(3, 7)):
        member = Consumer(
            {
                "bootstrap.servers": world.cluster.bootstrap,
                "group.id": world.group,
                "partition.assignment.strategy": "cooperative-sticky",
                "session.timeout.ms": int(SESSION_S * 1000),
                "enable.auto.commit": False,
                **QUIET,
            }
        )
        member.subscribe([world.topic])
        until = time.monotonic() + 2
        while time.monotonic() < until:
            member.poll(0.1)
        leaving = threading.Thread(target=member.close, daemon=True)
        leaving.start()
        leaving.join(5)


def slow_network(world: World, rng: random.Random) -> None:
    world.cluster.proxy.latency_s = rng.uniform(0.02, 0.3)
    time.sleep(rng.uniform(5, 12))
    world.cluster.proxy.latency_s = 0.0


def cut_network(world: World, rng: random.Random) -> None:
    """Connections are reset and refused."""
    world.cluster.proxy.gone = True
    world.cluster.proxy.cut()
    time.sleep(rng.uniform(0, SESSION_S + 4))
    world.cluster.proxy.gone = False


def silent_network(world: World, rng: random.Random) -> None:
    """Nothing gets through and no connection ends; what was on its way arrives late."""
    world.cluster.proxy.silent = True
    time.sleep(rng.uniform(1, SESSION_S + TRANSACTION_S))
    world.cluster.proxy.silent = False


def poison_that_kills(world: World, rng: random.Random) -> None:
    """One record on which every process dies: healed when it is a dead letter."""
    world.killers += 1
    before = len(world.witness.crashed)
    world.traffic.send(KILLER, None, rng.randrange(len(world.traffic.newest)))
    wait_for(lambda: len(world.witness.crashed) > before, "the dead letter of a killer", QUARANTINE_S)


FAULTS: dict[Fault, int] = {
    kill_replica: 4,
    kill_all_replicas: 1,
    replace_replica: 2,
    freeze_replica_briefly: 1,
    zombie: 3,
    restart_broker: 2,
    kill_broker: 2,
    freeze_broker: 2,
    storm_of_rebalances: 2,
    slow_network: 2,
    cut_network: 2,
    silent_network: 2,
    poison_that_kills: 1,
}
"""With how often each is drawn, relative to the others."""


def _anyone(world: World, rng: random.Random) -> Replica:
    return rng.choice(world.crew.replicas)


def _freeze(replica: Replica, seconds: float) -> None:
    replica.signal(signal.SIGSTOP)
    time.sleep(seconds)
    replica.signal(signal.SIGCONT)
