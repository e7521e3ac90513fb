"""What a worker's memory comes to when everything that can pile up does, against the bound its configuration states.

Two phases on a real Kafka, 100 partitions, frames of 8 MB: a model slower than its input, then outputs that nobody
acknowledges (a proxy keeps every connection that produces from getting through). The same again with a worker whose
byte budget is ignored shows that the measurement would see a broken bound.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "chaos")]

import models  # noqa: E402
import numpy as np  # noqa: E402
from cluster import Cluster  # noqa: E402
from confluent_kafka import Consumer, Producer, TopicPartition  # noqa: E402
from stream import create_topics, unique, wait_for, write_config  # noqa: E402

MIB = 1 << 20
PARTITIONS = 100
SHAPE = (3, 1632, 1632)
FRAME_BYTES = int(np.prod(SHAPE))
FRAMES = 200
"""1.6 GB: many times what may pile up."""
TOPIC_BYTES = 9_000_000
LIMITS = {"in_flight_bytes": 128 * MIB, "prefetch_bytes": 16 * MIB, "output_bytes": 32 * MIB}
BOUND_BYTES = sum(LIMITS.values()) + FRAME_BYTES
SLOW_S = 0.1
"""What own code adds to each frame."""
SAMPLE_S = 0.1
SETTLE_S = 3.0
PHASES_S = {"slow model": 6.0, "no acks": 20.0, "healed": 30.0}

INPUT_FORMAT = f"""
import time
import numpy as np

def frame(value, headers):
    time.sleep({SLOW_S})
    return {{"x": np.frombuffer(value, np.uint8).reshape{SHAPE}}}
"""
WORKER = "from worker.__main__ import main; import sys; sys.exit(main())"
BROKEN = f"""
import worker.assembly
from worker.loop.budget import Budget
worker.assembly.Budget = lambda limit_bytes, shares: Budget(1 << 40, shares)  # planted: the budget is not looked at
{WORKER}
"""


@dataclass
class Course:
    """Resident bytes of one worker from its start."""

    name: str
    warm_bytes: int = 0
    bound_bytes: int = 0
    peaks: dict[str, int] = field(default_factory=dict)
    """Phase -> the most that was ever resident in it."""
    samples: list[tuple[float, str, int]] = field(default_factory=list)
    """(second, phase, resident bytes)"""
    answered: int = 0

    @property
    def kept(self) -> bool:
        return max(self.peaks.values()) <= self.warm_bytes + self.bound_bytes


def main(say: Callable[[str], None], json_file: Path | None = None) -> int:
    """Measure; 0 when the bound was kept and the planted bug broke it."""
    with tempfile.TemporaryDirectory(prefix="streaminfer-memory-") as folder:
        cluster = Cluster(Path(folder) / "broker")
        try:
            courses = [
                _run(cluster, Path(folder), name, code, say)
                for name, code in (("streaminfer", WORKER), ("planted: no byte budget", BROKEN))
            ]
        finally:
            cluster.close()
    print(table(courses))
    if json_file:
        json_file.write_text(json.dumps([vars(course) for course in courses], indent=2) + "\n")
    return int(not courses[0].kept or courses[1].kept)


def table(courses: list[Course]) -> str:
    """Markdown: the bound, the peaks, and RSS over time."""
    lines = [
        f"{PARTITIONS} partitions, {FRAMES} frames of {FRAME_BYTES / 1e6:.1f} MB, in and out; in_flight_bytes "
        f"{LIMITS['in_flight_bytes'] // MIB} + prefetch_bytes {LIMITS['prefetch_bytes'] // MIB} + output_bytes "
        f"{LIMITS['output_bytes'] // MIB} + one frame {FRAME_BYTES / MIB:.1f} = {BOUND_BYTES / MIB:.1f} MiB",
        "",
        "| RSS in MiB | warm | bound | "
        + " | ".join(f"peak, {phase}" for phase in courses[0].peaks)
        + " | kept |",
        "| --- | --- | --- | " + "--- | " * len(courses[0].peaks) + "--- |",
    ]
    for course in courses:
        bound = course.warm_bytes + course.bound_bytes
        peaks = " | ".join(f"{peak / MIB:.0f}" for peak in course.peaks.values())
        kept = f"{'yes' if course.kept else 'no'} ({max(course.peaks.values()) / bound:.0%})"
        lines.append(
            f"| {course.name} | {course.warm_bytes / MIB:.0f} | {bound / MIB:.0f} | {peaks} | {kept} |"
        )
    for course in courses:
        lines += ["", f"{course.name}, {course.answered} of {FRAMES} answered; second: RSS in MiB"]
        for phase in course.peaks:
            own = [(at, rss) for at, named, rss in course.samples if named == phase]
            step = max(1, len(own) // 10)
            lines.append(
                f"  {phase:13} " + "  ".join(f"{at:.0f}: {rss / MIB:.0f}" for at, rss in own[::step])
            )
    return "\n".join(lines)


def _run(cluster: Cluster, folder: Path, name: str, code: str, say: Callable[[str], None]) -> Course:
    """A worker without records for what a warm one takes, then one that meets a backlog."""
    course = Course(name, bound_bytes=BOUND_BYTES)
    with _worker(cluster, folder, code, _topics(cluster)) as idle:
        time.sleep(SETTLE_S)
        course.warm_bytes = _status(idle.pid, "VmRSS")
    topics = _topics(cluster)
    _fill(cluster.direct, topics[0])
    with _worker(cluster, folder, code, topics) as process:
        began = time.monotonic()
        try:
            for phase, deaf in (("slow model", False), ("no acks", True), ("healed", False)):
                cluster.proxy.deaf_to_produce = deaf
                Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # the peak begins anew
                until = time.monotonic() + PHASES_S[phase]
                while time.monotonic() < until:
                    if process.poll() is not None:
                        raise OSError(f"the worker ended with {process.returncode}")
                    at = round(time.monotonic() - began, 1)
                    course.samples.append((at, phase, _status(process.pid, "VmRSS")))
                    time.sleep(SAMPLE_S)
                course.peaks[phase] = _status(process.pid, "VmHWM")
                bound = course.warm_bytes + course.bound_bytes
                say(f"{name}: {phase}: peak {course.peaks[phase] / MIB:.0f} MiB of {bound / MIB:.0f}")
        finally:
            cluster.proxy.heal()
    course.answered = sum(_ends(cluster.direct, topics[1]))
    return course


def _topics(cluster: Cluster) -> list[str]:
    topics = {unique("in"): PARTITIONS, unique("out"): PARTITIONS, unique("dead"): 1}
    create_topics(cluster.direct, topics, **{"max.message.bytes": str(TOPIC_BYTES)})
    return list(topics)


@contextmanager
def _worker(
    cluster: Cluster, folder: Path, code: str, topics: list[str]
) -> Iterator[subprocess.Popen[bytes]]:
    """A worker that has its partitions; killed at the end."""
    config = _configure(folder, cluster.bootstrap, topics)
    log = config.with_suffix(".log")
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", code, "run", str(config)], stdout=stream, stderr=stream, cwd=folder
        )
    try:
        wait_for(lambda: '"assigned"' in log.read_text(errors="replace"), "the worker to join")
        yield process
    except BaseException:
        print(log.read_text(errors="replace")[-3000:], file=sys.stderr)
        raise
    finally:
        process.kill()
        process.wait()


def _ends(bootstrap: str, topic: str) -> Iterator[int]:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": unique("ends")})
    for number in range(PARTITIONS):
        yield consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=10)[1]
    consumer.close()


def _configure(folder: Path, bootstrap: str, topics: list[str]) -> Path:
    models.write(folder, models.identity(np.uint8, ("N", *SHAPE)))
    (folder / "memory_input.py").write_text(INPUT_FORMAT)
    return write_config(
        folder,
        {
            "name": "memory",
            "input": {"topics": [topics[0]], "format": "memory_input:frame"},
            "model": {"path": "model.onnx", "threads": 2},
            "output": {"topic": topics[1], "format": "tensor"},
            "dead_letter": {"topic": topics[2]},
            "limits": LIMITS,
            "kafka": {"bootstrap.servers": bootstrap, "group.id": unique("memory")},
        },
    )


def _fill(bootstrap: str, topic: str) -> None:
    """Noise that no compression makes smaller, the same in every frame but for its beginning."""
    noise = np.random.default_rng(1).bytes(FRAME_BYTES - 8)
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "message.max.bytes": TOPIC_BYTES,
            "queue.buffering.max.kbytes": 65536,
        }
    )
    for number in range(FRAMES):
        while True:
            try:
                producer.produce(topic, number.to_bytes(8, "big") + noise, partition=number % PARTITIONS)
                break
            except BufferError:
                producer.poll(0.05)
    if producer.flush(120):
        raise OSError("the frames could not be sent")


def _status(pid: int, name: str) -> int:
    """A figure of the process in bytes: VmRSS, or VmHWM, its peak."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) << 10
