"""The replicas under test: as many as asked for at any time, whatever kills them, each end written down."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from stream import Worker

TICK_S = 0.1
RESTART_S = 0.5
ORDERLY_S = 60.0
"""Patience with a replica that was asked to leave; its own budget is 25 s."""


@dataclass(eq=False)
class Replica:
    """One process; ``expected`` is the exit code we caused, None while it should run."""

    worker: Worker
    expected: int | None = None
    frozen: bool = False

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.worker.process.pid, number)


class Crew:
    """``size`` replicas of one configuration; one that ends is replaced at once, as a supervisor does."""

    def __init__(self, config: Path, size: int) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self.ends: Counter[str] = Counter()
        """How replicas ended that nobody had asked to, or otherwise than asked."""
        self.orderly_s: list[float] = []
        """Seconds from SIGTERM to exit 0."""
        self.in_order: list[Path] = []
        """Logs of the replicas that did so: whoever was killed has no last words."""
        self.logs: list[Path] = []
        self.replicas = [self._start() for _ in range(size)]
        self._thread = threading.Thread(target=self._tend, name="crew", daemon=True)
        self._thread.start()

    def pick(self, index: int) -> Replica:
        with self._lock:
            return self.replicas[index % len(self.replicas)]

    def kill(self, replica: Replica) -> None:
        replica.expected = -signal.SIGKILL
        replica.signal(signal.SIGKILL)

    def retire(self, replica: Replica) -> None:
        """SIGTERM; returns when it has left."""
        replica.expected = 0
        replica.signal(signal.SIGTERM)
        began = time.monotonic()
        while replica.worker.process.poll() is None and time.monotonic() - began < ORDERLY_S:
            time.sleep(TICK_S)
        if replica.worker.process.poll() is None:
            self.ends["did not leave"] += 1
            self.kill(replica)
        elif replica.worker.process.returncode == 0:
            self.orderly_s.append(time.monotonic() - began)
            self.in_order.append(replica.worker.log)

    def close(self) -> None:
        """Everybody leaves in order; how each did is in ``ends`` and ``orderly_s``."""
        self._closing.set()
        self._thread.join()
        leaving = [threading.Thread(target=self.retire, args=(replica,)) for replica in self.replicas]
        for thread in leaving:
            thread.start()
        for thread in leaving:
            thread.join()
        for replica in self.replicas:
            self._note_end(replica)

    def kill_all(self) -> None:
        self._closing.set()
        self._thread.join()
        for replica in self.replicas:
            replica.worker.kill()

    def _start(self) -> Replica:
        worker = Worker.start(self._config)
        self.logs.append(worker.log)
        return Replica(worker)

    def _tend(self) -> None:
        while not self._closing.wait(TICK_S):
            for replica in [r for r in self.replicas if r.worker.process.poll() is not None]:
                self._note_end(replica)
                self._closing.wait(RESTART_S)
                with self._lock:
                    self.replicas[self.replicas.index(replica)] = self._start()

    def _note_end(self, replica: Replica) -> None:
        code = replica.worker.process.returncode
        if code != replica.expected:
            self.ends[f"exit {code}" if code >= 0 else f"signal {-code}"] += 1
