"""The embedded broker as a process: prints its address, then obeys `topic NAME PARTITIONS` and `rtt MS` lines."""

import sys

from worker.kafka.broker import EmbeddedBroker

with EmbeddedBroker() as broker:
    print(broker.bootstrap, flush=True)
    for line in sys.stdin:
        match line.split():
            case ["topic", name, partitions]:
                broker.create_topic(name, int(partitions))
            case ["rtt", ms]:
                broker.set_rtt(int(ms))
