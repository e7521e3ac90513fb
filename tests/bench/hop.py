"""One way through the broker and nothing else: the sender of `streaminfer bench` to a reader of the same topic.

What a record and its result each need at least on this machine, whatever stands between them.

    python tests/bench/hop.py BOOTSTRAP TOPIC PARTITIONS RATE SECONDS SOURCE FETCH_WAIT_MS

Prints one trial as `streaminfer bench --json` writes it.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from pathlib import Path

import numpy as np
from confluent_kafka import Consumer, TopicPartition

from worker.bench.load import SendPlan, send
from worker.bench.trial import STAGES, Answers, evaluate, place_code, warm_up_s

PATIENCE_S = 10.0
WARM_UP_S = 1.0


def main(
    bootstrap: str, topic: str, partitions: str, rate: str, seconds: str, source: str, fetch_wait_ms: str
) -> int:
    per_s, duration_s = float(rate), float(seconds)
    reader = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "unused",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": int(fetch_wait_ms),
            "log_level": 2,
        }
    )
    reader.assign([TopicPartition(topic, number, 0) for number in range(int(partitions))])
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    plan = SendPlan(
        {"bootstrap.servers": bootstrap}, topic, int(partitions), Path(source).read_bytes().splitlines(), None
    )
    sender = context.Process(target=send, args=(plan, theirs), daemon=True)
    sender.start()
    for length_s in (WARM_UP_S, duration_s):
        pipe.send((per_s, int(per_s * length_s)))
        places, read_ns = _read(reader, int(per_s * length_s))
        sent = pipe.recv()
        if isinstance(sent, str):
            raise SystemExit(sent)
    pipe.close()
    reader.close()
    count = len(places)
    untimed = {stage: np.full(count, np.nan) for stage in (*STAGES, "total")}
    answers = Answers(np.array(places, np.int64), np.array(read_ns, np.int64), np.zeros(count, bool), untimed)
    print(json.dumps(evaluate(sent, answers, per_s, warm_up_s(duration_s)).document()))
    return 0


def _read(reader: Consumer, count: int) -> tuple[list[int], list[int]]:
    """Places and times of so many records, or of those that came before nothing came any more."""
    places: list[int] = []
    read_ns: list[int] = []
    deadline = time.monotonic() + PATIENCE_S
    while len(places) < count and time.monotonic() < deadline:
        first = reader.poll(0.005)
        if first is None:
            continue
        messages = [first, *reader.consume(10_000, 0)]
        now_ns = time.monotonic_ns()
        good = [message for message in messages if message.error() is None]
        places += [place_code(message.partition() or 0, message.offset() or 0) for message in good]
        read_ns += [now_ns] * len(good)
        deadline = time.monotonic() + PATIENCE_S
    return places, read_ns


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
