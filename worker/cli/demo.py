"""``streaminfer demo``: scanned digits through an embedded broker and real replicas, nothing else needed."""

from __future__ import annotations

import argparse
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from types import FrameType
from typing import IO

import numpy as np
import orjson
from numpy.typing import NDArray

from worker.cli.demo_view import Frame, Tally, View, view_for
from worker.errors import StartError, WorkerError
from worker.kafka.broker import EmbeddedBroker
from worker.kafka.properties import Connection
from worker.kafka.tools import Record, TopicReader, TopicWriter

FOLDER = Path(__file__).resolve().parent.parent / "demo_data"
CONFIG = FOLDER / "digits.yaml"

INPUT, RESULTS, DEAD_LETTERS, METRICS = "digits", "digits.predictions", "digits.dead-letter", "worker.metrics"
PARTITIONS = 6
"""Of the input topic, at least: a multiple of two and of three replicas, so that they share it evenly."""

PER_SECOND = 60
"""Digits sent per second: all of them take ten seconds, and an eye can follow."""
TICK_S = 0.01
START_S = 60.0
"""How long the replicas may take to share the input topic among them."""
ANSWER_S = 15.0
"""How long the last answers may take after the last digit was sent."""
DRAIN_S = 40.0
"""How long the replicas may take to stop; more than their own drain budget."""
LAST_METRICS_S = 3.0


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Stream scanned digits through an embedded broker and real replicas: each prediction as it comes, "
        "then accuracy, latency by stage and each replica's share. Needs no service, no Docker and no Java."
    )
    parser.epilog = "example: streaminfer demo --seconds 20 --replicas 2"
    parser.add_argument(
        "--seconds", type=positive(float), metavar="S", help="how long to stream (default: every digit once)"
    )
    parser.add_argument(
        "--replicas", type=positive(int), default=2, metavar="N", help="worker processes (default: 2)"
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object per prediction, the summary last"
    )


def run(args: argparse.Namespace) -> int:
    """Stream, show, sum up. The first Ctrl-C or SIGTERM ends the streaming and still gives the summary.

    Raises:
        StartError: the broker or the replicas did not come up.
        WorkerError: the replicas ended, or digits stayed unanswered.
    """
    digits, tally, view = Digits.load(), Tally(), view_for(args.json)
    topics = {INPUT: max(PARTITIONS, args.replicas), RESULTS: PARTITIONS, DEAD_LETTERS: 1, METRICS: 1}
    with (
        view,
        EmbeddedBroker(topics) as broker,
        Replicas(broker.bootstrap, args.replicas) as replicas,
        Traffic(broker.bootstrap, topics, digits, view, tally) as traffic,
    ):
        with interrupted_by_sigterm(), suppress(KeyboardInterrupt):
            view.starting(f"starting a broker and {args.replicas} worker processes ...")
            traffic.wait_until_shared(replicas)
            traffic.stream(replicas, round((args.seconds or len(digits) / PER_SECOND) * PER_SECOND))
        replicas.drain()
        traffic.read_last_metrics()
    view.summary(tally)
    return 0


class Traffic:
    """The demo's own clients: digits go out at a steady rate; results and metrics come in."""

    def __init__(
        self, bootstrap: str, topics: dict[str, int], digits: Digits, view: View, tally: Tally
    ) -> None:
        client = Connection("demo", {"bootstrap.servers": bootstrap, "linger.ms": "0"})
        self.writer = TopicWriter(client, INPUT)
        self.reader = TopicReader(client, [name for name in topics if name != INPUT], "earliest")
        self.partitions = topics[INPUT]
        self.digits, self.view, self.tally = digits, view, tally
        self.owned: dict[str, int] = {}
        """client.id of a replica -> how many partitions of the input topic it said it has."""

    def __enter__(self) -> Traffic:
        return self

    def __exit__(self, *exception: object) -> None:
        self.reader.close()

    def wait_until_shared(self, replicas: Replicas) -> None:
        """Return once every replica owns a part of the input topic, so that no latency is a start-up's."""
        deadline = time.monotonic() + START_S
        while not self._shared(replicas.count):
            replicas.check()
            self._read()
            if time.monotonic() > deadline:
                raise StartError(
                    f"{replicas.count} replicas did not share the topic {INPUT} within {START_S:.0f} s"
                )

    def _shared(self, replicas: int) -> bool:
        """Whether nothing is left to hand over: for a while the first replica to join has everything."""
        shares = self.owned.values()
        return len(shares) == replicas and min(shares) > 0 and sum(shares) == self.partitions

    def stream(self, replicas: Replicas, total: int) -> None:
        """Send ``total`` digits at ``PER_SECOND``, over and over the same ones, and wait for their answers."""
        started, sent = time.monotonic(), 0
        deadline = started + total / PER_SECOND + ANSWER_S
        while self.tally.records < total:
            now = time.monotonic()
            due = min(int((now - started) * PER_SECOND) + 1, total)
            for number in range(sent, due):
                self._send(number % len(self.digits))
            sent = due
            self._read()
            replicas.check()
            if now > deadline:
                raise WorkerError(
                    f"{total - self.tally.records} of {total} digits were not answered within {ANSWER_S:.0f} s"
                )

    def read_last_metrics(self) -> None:
        """Read on until the replicas' own counts, of which the last comes as they stop, cover every answer."""
        deadline = time.monotonic() + LAST_METRICS_S
        while sum(self.tally.by_replica.values()) < self.tally.records and time.monotonic() < deadline:
            self._read()

    def _send(self, index: int) -> None:
        """One digit: its number as the key, its true label as a header the result will carry too."""
        self.writer.send(
            key=str(index).encode(),
            value=png(self.digits.frames[index]),
            headers=[("label", str(self.digits.labels[index]).encode())],
        )

    def _read(self) -> None:
        for record in self.reader.read(TICK_S):
            if record.topic == RESULTS:
                self._show(record)
            elif record.topic == METRICS:
                self._count(record)
            else:
                why = dict(record.headers).get("__connect.errors.exception.message") or b"unknown"
                raise WorkerError(f"a digit became a dead letter: {why.decode()}")
        self.view.tick(self.tally)

    def _show(self, record: Record) -> None:
        result = orjson.loads(record.value or b"")
        true_label = dict(record.headers)["label"] or b""
        frame = self.digits.frames[int(record.key or b"")]
        answer = self.tally.add(result, frame, true_label.decode())
        if answer is not None:
            self.view.answered(result, answer)

    def _count(self, record: Record) -> None:
        replica, metrics = (record.key or b"").decode(), orjson.loads(record.value or b"")
        self.tally.add_metrics(replica, metrics)
        self.owned[replica] = sum(name.startswith(f"{INPUT}/") for name in metrics["partitions"])


class Replicas:
    """``streaminfer run --replicas N`` on the demo's own configuration, as a user would start it."""

    def __init__(self, bootstrap: str, count: int) -> None:
        self.count = count
        overrides = ["--set", f"kafka.bootstrap.servers={bootstrap}"]
        self._log: IO[bytes] = TemporaryFile()  # noqa: SIM115, closed by __exit__
        self._process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, "run", str(CONFIG), "--replicas", str(count), *overrides],
            env={**os.environ, "LOG_FORMAT": "console", "NO_COLOR": "1"},
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            process_group=0,  # a Ctrl-C in the terminal is the demo's to pass on
        )

    def __enter__(self) -> Replicas:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process.poll() is None:
            self._stop_now()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._log.close()

    def check(self) -> None:
        """Raise when the replicas have ended by themselves."""
        code = self._process.poll()
        if code is not None:
            error = StartError if code in (2, 3) else WorkerError
            raise error(f"the replicas ended with exit code {code}: {self._last_words()}")

    def drain(self) -> None:
        """Stop the replicas as a user would: each finishes its records in flight, commits and leaves the group."""
        self._process.terminate()
        try:
            code = self._process.wait(DRAIN_S)
        except subprocess.TimeoutExpired:
            raise WorkerError(f"the replicas did not stop within {DRAIN_S:.0f} s") from None
        if code not in (0, -signal.SIGTERM):  # stopped before they could handle a signal at all
            raise WorkerError(f"the replicas stopped with exit code {code}: {self._last_words()}")

    def _stop_now(self) -> None:
        # The second signal of a run means "now"; two of the same kind could arrive as one.
        self._process.send_signal(signal.SIGTERM)
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _last_words(self) -> str:
        """The last sentence a replica ended with; else the last line logged."""
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().decode(errors="replace").splitlines()]
        sentences = [line.removeprefix(SENTENCE) for line in lines if line.startswith(SENTENCE)]
        return (sentences or [line for line in lines if line] or ["they said nothing"])[-1]


SENTENCE = "streaminfer: "
"""What every command puts before the one sentence it ends with."""

LAUNCH = """
import sys
from worker.cli.main import main
from worker.process.replica import drain_with_parent
drain_with_parent()
sys.exit(main())
"""
"""``streaminfer`` that stops with the demo, however that ends."""


@dataclass(frozen=True, slots=True)
class Digits:
    """Scanned digits the model was not trained on."""

    frames: NDArray[np.uint8]
    """(n, 8, 8) grey values, 0..255."""
    labels: NDArray[np.uint8]
    """(n,) what they are, 0..9."""

    @classmethod
    def load(cls) -> Digits:
        with np.load(FOLDER / "digits.npz") as held_out:
            return cls(held_out["frames"], held_out["labels"])

    def __len__(self) -> int:
        return len(self.frames)


def png(frame: Frame) -> bytes:
    """A grey frame (rows, columns) of uint8 as a PNG file."""
    height, width = frame.shape
    rows = np.insert(frame, 0, 0, axis=1)  # each row starts with its filter: none
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)  # 8 bits, grey, no interlace
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Make SIGTERM act like Ctrl-C, and make Ctrl-C work even if a shell started us with SIGINT ignored."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def positive(number: Callable[[str], float]) -> Callable[[str], float]:
    """An argument's type that takes only values above zero."""

    def parse(text: str) -> float:
        value = number(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
        return value

    parse.__name__ = number.__name__  # argparse names the type when a text is no number at all
    return parse
