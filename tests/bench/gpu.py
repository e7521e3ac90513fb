"""What a GPU does with a ResNet-50 in half precision: alone, behind the engine, and behind a topic of raw frames.

    .venv/bin/python tests/bench/gpu.py                    on the first GPU, about two minutes
    .venv/bin/python tests/bench/gpu.py --provider cpu --side 32 --frames 512 --seconds 1    a rehearsal without one

Three tables. "Runs": images/s of ``session.run``, of one thread and of two through the worker's model, by batch size,
and with batches of changing size. "Engine": raw frames in memory -> decode, infer, finish on the pool, no Kafka. "Topic": a
whole worker on the embedded broker, which keeps 5 MB per partition: the topic is filled first, over many partitions,
and then read as fast as it goes. GPU busy is nvidia-smi's share of time in which a kernel ran.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import resnet
import yaml
from confluent_kafka import Consumer, Producer, TopicPartition
from stage import Broker, embedded_broker

from worker.batch import Batch, Columns, Partition
from worker.loop.pool import Mailbox, ThreadPool
from worker.model.session import Model, load
from worker.serving.engine import Engine
from worker.serving.load import load as load_rollouts
from worker.serving.rollout import Rollout
from worker.settings import load as load_settings

SIZES = (1, 8, 64, 256)
FRAMES_PER_PARTITION_BYTES = 4_800_000
OUTPUTS = 16
PATIENCE_S = 120.0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--provider", default="cuda", choices=["cpu", "cuda", "tensorrt"])
    parser.add_argument("--side", type=int, default=224, help="of the square frames, in pixels")
    parser.add_argument("--max-size", type=int, default=64, help="batching.max_size of engine and topic")
    parser.add_argument("--max-wait-ms", type=float, default=5, help="batching.max_wait_ms of the topic")
    parser.add_argument("--prefetch-mib", type=int, default=64, help="limits.prefetch_bytes of the topic")
    parser.add_argument("--frames", type=int, default=32_768, help="in the topic")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each rate")
    parser.add_argument("--threads", default="auto", help="model.threads")
    parser.add_argument("--only", default="runs,engine,topic")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    found: dict[str, Any] = {
        "device": device_name(),
        "options": {k: str(v) for k, v in vars(options).items()},
    }
    with tempfile.TemporaryDirectory() as name:
        bench = Bench(options, Path(name))
        for part in options.only.split(","):
            found[part] = getattr(bench, part)()
            if options.json:
                options.json.write_text(json.dumps(found, indent=1))
    return 0


class Bench:
    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.folder = folder
        self.path = resnet.write(folder / "resnet50.onnx", options.side)
        self.frames = pictures(max(SIZES), options.side)
        self.providers = [options.provider] if options.provider == "cpu" else [options.provider, "cpu"]
        print(f"{device_name()}; {self.path.stat().st_size / 1e6:.0f} MB, {self.frames[0].nbytes} B a frame")

    # -- the model alone ---------------------------------------------------------------------------------

    def runs(self) -> dict[str, Any]:
        started = time.perf_counter()
        model = load(self.path, providers=self.providers, max_size=max(SIZES))
        loaded_s = time.perf_counter() - started
        sizes = SIZES if self.options.provider != "cpu" else (1, 2)
        usable = model.warm(max(sizes), 1 << 30)
        print(f"loaded in {loaded_s:.1f} s, warm after {time.perf_counter() - started:.1f} s, up to {usable}")
        found: dict[str, Any] = {"error": self._error(model), "sizes": {}}
        print(f"relative error against the CPU {found['error']:.2e}")
        print(f"{'batch':>8} {'session.run':>12} {'one thread':>12} {'two threads':>12}   images/s")
        for size in sizes:
            found["sizes"][size] = self._rates(model, [size])
        mixed = [int(size) for size in np.random.default_rng(7).integers(1, min(64, max(sizes)) + 1, 64)]
        found["sizes"]["mixed"] = self._rates(model, mixed)
        return found

    def _rates(self, model: Model, sizes: list[int]) -> dict[str, float]:
        plain = plain_session(self.path, self.options.provider)

        def ask(run: Callable[[Any], object]) -> Callable[[int], int]:
            def once(turn: int) -> int:
                size = sizes[turn % len(sizes)]
                run({"frames": staged[:size]})
                return size

            return once

        staged = model.empty((max(sizes), *self.frames.shape[1:]), np.dtype(np.uint8))
        staged[:] = self.frames[: max(sizes)]
        seconds = self.options.seconds
        rates = {
            "session.run": rate([ask(lambda feeds: plain.run(None, feeds))], seconds),
            "one thread": rate([ask(model.run)], seconds),
            "two threads": rate([ask(model.run), ask(model.run)], seconds),
        }
        label = f"1-{max(sizes)}" if len(sizes) > 1 else str(sizes[0])
        print(f"{label:>8} " + " ".join(f"{value:12,.0f}" for value in rates.values()), flush=True)
        return rates

    def _error(self, model: Model) -> float:
        few = {"frames": self.frames[:4]}
        right = load(self.path).run(few)["scores"].astype(np.float64)
        answer = model.run(few)["scores"].astype(np.float64)
        return float(np.linalg.norm(answer - right) / np.linalg.norm(right))

    # -- the engine and its pool, no Kafka ---------------------------------------------------------------

    def engine(self) -> dict[str, Any]:
        rollout = load_rollouts(load_settings(self._config("localhost:1")))["gpu"]
        servable = rollout.choose()
        threads = max(servable.threads, 1)
        pool = ThreadPool(Engine(), threads, [servable.lane], Mailbox())
        values = [frame.tobytes() for frame in self.frames]
        done, finished = 0, []
        with Busy() as busy:
            for phase_s in (1.0, self.options.seconds + 1.0):
                done, started = 0, time.perf_counter()
                busy.begin()
                while time.perf_counter() < started + phase_s or not finished:
                    while pool.free:
                        pool.submit(raw_batch(rollout, values))
                    for back in pool.collect(0.05):
                        if back.error is not None:
                            raise back.error
                        done += len(back.batch)
                        finished.append(back.batch)
                took = time.perf_counter() - started
            share = busy.share()
        pool.close(10)
        stages = {
            name: statistics.median(batch_stage(batch, name) for batch in finished[-50:])
            for name in ("decode", "wait", "infer", "encode")
        }
        found = {"images_per_s": done / took, "gpu_busy": share, "threads": threads, "ms": stages}
        print(f"engine: {done / took:,.0f} images/s, GPU busy {share}, {threads} threads, ms {stages}")
        return found

    # -- a worker on a topic -----------------------------------------------------------------------------

    def topic(self) -> dict[str, Any]:
        nbytes = self.frames[0].nbytes
        per_partition = max(1, min(FRAMES_PER_PARTITION_BYTES // nbytes, self.options.frames))
        partitions = max(1, self.options.frames // per_partition)
        total = partitions * per_partition
        with embedded_broker() as broker:
            broker.create({"frames": partitions, "predictions": OUTPUTS, "dead": 1, "metrics": 1})
            filled = fill(broker, [frame.tobytes() for frame in self.frames], partitions, per_partition)
            print(
                f"topic: {total:,} frames in {partitions} partitions, filled at {filled:,.0f}/s", flush=True
            )
            with Busy() as busy, self._worker(broker) as process:
                records = follow(broker, process, total, busy)
                share = busy.share()
        found = {"frames": total, "gpu_busy": share, **summary(records)}
        print(f"worker: {found['images_per_s']:,.0f} images/s, GPU busy {share}")
        for key in ("mean_batch", "cpu_cores", "latency_ms_p50", "loop_ratio"):
            print(f"  {key}: {found[key]}")
        return found

    @contextmanager
    def _worker(self, broker: Broker) -> Iterator[subprocess.Popen[bytes]]:
        log = self.folder / "worker.log"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "worker", "run", str(self._config(broker.bootstrap))],
                stdout=stream,
                stderr=stream,
            )
        try:
            yield process
        except BaseException:
            print(log.read_text(errors="replace")[-3000:])
            raise
        finally:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()

    def _config(self, bootstrap: str) -> Path:
        threads = self.options.threads
        config = {
            "name": "gpu",
            "input": {"topics": ["frames"], "format": "tensor"},
            "model": {
                "path": str(self.path),
                "providers": self.providers,
                "threads": int(threads) if threads.isdigit() else threads,
            },
            "batching": {"max_size": self.options.max_size, "max_wait_ms": self.options.max_wait_ms},
            "postprocess": {"classification": {"top_k": 1}},
            "output": {"topic": "predictions", "headers": "none"},
            "dead_letter": {"topic": "dead"},
            "metrics": {"topic": "metrics", "interval_s": 0.5},
            "limits": {"in_flight_bytes": 1 << 30, "prefetch_bytes": self.options.prefetch_mib << 20},
            "kafka": {"bootstrap.servers": bootstrap, "group.id": "gpu"},
        }
        path = self.folder / "gpu.yaml"
        path.write_text(yaml.safe_dump(config))
        return path


def pictures(count: int, side: int) -> np.ndarray:
    """Smooth shapes with some texture, uint8 (count, side, side, 3); no two alike."""
    random = np.random.default_rng(3)
    coarse = random.integers(0, 256, (count, 7, 7, 3), np.uint8)
    repeat = -(-side // 7)
    large = coarse.repeat(repeat, 1).repeat(repeat, 2)[:, :side, :side].astype(np.int16)
    return (large + random.integers(-8, 8, large.shape, np.int16)).clip(0, 255).astype(np.uint8)


def plain_session(path: Path, provider: str) -> Any:
    """What one gets without thinking: a session, its defaults, ``run``."""
    import onnxruntime

    wanted = {"cpu": [], "cuda": ["CUDAExecutionProvider"], "tensorrt": ["TensorrtExecutionProvider"]}
    return onnxruntime.InferenceSession(str(path), providers=[*wanted[provider], "CPUExecutionProvider"])


def rate(workers: list[Callable[[int], int]], seconds: float) -> float:
    """Images/s of these loops side by side, each in a thread, after a first round."""
    for worker in workers:
        for turn in range(2):
            worker(turn)
    done = [0] * len(workers)
    end = time.perf_counter() + seconds

    def loop(index: int) -> None:
        turn = 0
        while time.perf_counter() < end:
            done[index] += workers[index](turn)
            turn += 1

    started = time.perf_counter()
    threads = [threading.Thread(target=loop, args=(index,)) for index in range(len(workers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (time.perf_counter() - started)


def raw_batch(rollout: Rollout, values: list[bytes]) -> Batch:
    servable = rollout.choose()
    count = servable.batch_records
    chosen = [values[row % len(values)] for row in range(count)]
    now_ms = time.time() * 1000
    columns = Columns(
        chosen, [None] * count, [None] * count, [int(now_ms)] * count, list(range(count)), [Partition("frames", 0)] * count
    )  # fmt: skip
    return Batch(None, range(count), columns, rollout.route, servable, time.monotonic_ns(), now_ms)


def batch_stage(batch: Batch, name: str) -> float:
    """Milliseconds."""
    us = np.asarray(batch.runs[0].stages_us[name]).reshape(-1)[0]
    return round(float(us) / 1000, 2)


def fill(broker: Broker, values: list[bytes], partitions: int, per_partition: int) -> float:
    producer = Producer(
        {
            "bootstrap.servers": broker.bootstrap,
            "linger.ms": 5,
            "message.max.bytes": 10_000_000,
            "batch.size": 2_000_000,
            "queue.buffering.max.kbytes": 1 << 20,
            "log_level": 2,
        }
    )
    started = time.perf_counter()
    for partition in range(partitions):
        rows = [{"value": values[row % len(values)]} for row in range(per_partition)]
        sent = 0
        while (sent := sent + producer.produce_batch("frames", rows[sent:], partition=partition)) < len(rows):
            producer.poll(0.01)
    if producer.flush(PATIENCE_S):
        raise RuntimeError("the topic could not be filled")
    return partitions * per_partition / (time.perf_counter() - started)


def follow(broker: Broker, process: subprocess.Popen[bytes], total: int, busy: Busy) -> list[dict[str, Any]]:
    """The worker's metrics records until it has answered everything."""
    consumer = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": "follow", "log_level": 2})
    consumer.assign([TopicPartition("metrics", 0, 0)])
    records: list[dict[str, Any]] = []
    answered = 0
    deadline = time.perf_counter() + PATIENCE_S
    while answered < total:
        if process.poll() is not None:
            raise RuntimeError(f"the worker ended with exit code {process.returncode}")
        if time.perf_counter() > deadline:
            raise RuntimeError(f"only {answered} of {total} frames answered after {PATIENCE_S:.0f} s")
        message = consumer.poll(0.2)
        if message is None or message.error() is not None:
            continue
        record = orjson.loads(message.value())
        counts = record["pipelines"]["gpu"]["records"]
        if counts["dead_letter"]:
            raise RuntimeError(f"{counts['dead_letter']} dead letters")
        if not answered and counts["out"]:
            busy.begin()
        answered += counts["out"]
        records.append(record)
    busy.end()
    consumer.close()
    return records


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The intervals in which the worker had work from beginning to end, as one."""
    working = [r for r in records if r["pipelines"]["gpu"]["records"]["out"]]
    whole = working[1:-1] or working
    interval_s = sum(r["interval_s"] for r in whole)
    counts = [r["pipelines"]["gpu"] for r in whole]
    stages = counts[len(counts) // 2]["latency_ms"]
    return {
        "images_per_s": sum(c["records"]["out"] for c in counts) / interval_s,
        "mean_batch": sum(c["items"] for c in counts) / max(1, sum(c["batches"] for c in counts)),
        "cpu_cores": round(sum(r["process"]["cpu_s"] for r in whole) / interval_s, 2),
        "latency_ms_p50": {name: value["p50"] for name, value in stages.items()},
        "loop_ratio": {
            name: round(sum(r["loop_ratio"][name] * r["interval_s"] for r in whole) / interval_s, 3)
            for name in whole[0]["loop_ratio"]
        },
        "seconds": interval_s,
    }


class Busy:
    """The share of time in which a kernel ran, as nvidia-smi samples it; None without a GPU."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, float]] = []
        self._process: subprocess.Popen[str] | None = None
        self._begun, self._ended = 0.0, float("inf")

    def __enter__(self) -> Busy:
        query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "100"]
        with suppress(OSError):
            self._process = subprocess.Popen(query, stdout=subprocess.PIPE, text=True)
            threading.Thread(target=self._read, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def begin(self) -> None:
        self._begun = time.perf_counter()

    def end(self) -> None:
        self._ended = time.perf_counter()

    def share(self) -> str:
        """Mean over the time between ``begin`` and ``end``; the first half second still shows what was before."""
        within = [value for at, value in self._samples if self._begun + 0.5 < at <= self._ended]
        return f"{statistics.mean(within):.0f} %" if within else "not known"

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with suppress(ValueError):
                self._samples.append((time.perf_counter(), float(line)))


def device_name() -> str:
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    with suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    return "no GPU"


if __name__ == "__main__":
    sys.exit(main())
