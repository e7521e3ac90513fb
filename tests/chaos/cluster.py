"""A real broker that can be stopped, killed and frozen, behind a proxy that can be slow, silent or gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from proxy import Proxy

KAFKA = Path(__file__).resolve().parents[2] / "scripts" / "kafka"
PROXIED_DOOR = 3
"""Ports between the broker's first and the one that sends clients on to the proxy."""


class Cluster:
    """One broker of its own. ``direct`` is for the experimenter, ``bootstrap`` for what is tested."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.proxy = Proxy()
        self.bootstrap = f"127.0.0.1:{self.proxy.port}"
        self.direct = self.start()
        self.proxy.upstream = int(self.direct.rpartition(":")[2]) + PROXIED_DOOR

    def start(self) -> str:
        """Start it where it is not running; returns when it answers."""
        return self._script("start", "--proxy", str(self.proxy.port))

    def stop(self) -> None:
        """An orderly shutdown."""
        self._script("stop")

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def freeze(self) -> None:
        """It keeps its connections and answers nothing."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        self.thaw()
        self.stop()
        self.proxy.close()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(json.loads((self._folder / "state.json").read_text())["pid"], number)

    def _script(self, *arguments: str) -> str:
        command = [sys.executable, str(KAFKA), *arguments, "--dir", str(self._folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise OSError(done.stderr.strip())
        return done.stdout.strip()
