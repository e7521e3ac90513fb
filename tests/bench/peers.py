"""Somebody else's way of doing the same: frameworks, and loops written by hand in faster languages.

Each lies in a folder under ``peers`` and is made once (``scripts/bench --peers``, ``--anchors``); one that is not there
is left out. All take the path of a job file as their only argument and run until SIGTERM.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

HERE = Path(__file__).resolve().parent / "peers"
MAVEN_GOAL = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"


class Peer(Protocol):
    """One of them."""

    @property
    def announces(self) -> bool:
        """Whether it says that it has its partitions, as the worker does."""

    @property
    def warm_up(self) -> int:
        """Records before its rounds; 0 = as many as everybody."""

    @property
    def only_kafka(self) -> bool:
        """Whether it cannot speak to the embedded broker."""

    @property
    def there(self) -> bool: ...

    def make(self) -> None:
        """Fetch and build it.

        Raises:
            RuntimeError: a tool is missing or fails.
        """

    def command(self, job: Path) -> list[str]: ...

    @property
    def environment(self) -> dict[str, str]: ...


@dataclass(frozen=True)
class Framework:
    """A Python framework in an environment of its own, from pinned requirements."""

    folder: Path
    announces: bool = False
    warm_up: int = 0
    only_kafka: bool = False
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def _python(self) -> Path:
        return self.folder / ".venv" / "bin" / "python"

    @property
    def there(self) -> bool:
        return self._python.exists()

    def make(self) -> None:
        _run([sys.executable, "-m", "venv", str(self.folder / ".venv")])
        _run([str(self._python), "-m", "pip", "install", "-q", "-r", str(self.folder / "requirements.txt")])

    def command(self, job: Path) -> list[str]:
        return [str(self._python), str(self.folder / "app.py"), str(job)]


@dataclass(frozen=True)
class Java:
    """A loop in Java, its jars by Maven."""

    folder: Path = HERE / "java"
    announces: bool = True
    warm_up: int = 1_500_000  # until then the compiler takes as much CPU as the work
    only_kafka: bool = True
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def _classpath(self) -> str:
        return f"{self.folder}/build/classes:{self.folder}/build/libs/*"

    @property
    def there(self) -> bool:
        return (
            shutil.which("java") is not None and (self.folder / "build" / "classes" / "Loop.class").exists()
        )

    def make(self) -> None:
        build = self.folder / "build"
        into = f"-DoutputDirectory={build / 'libs'}"
        _run(
            [
                "mvn",
                "-q",
                "-B",
                "-f",
                str(self.folder / "pom.xml"),
                MAVEN_GOAL,
                into,
                "-DincludeScope=runtime",
            ]
        )
        source = str(self.folder / "Loop.java")
        _run(["javac", "-nowarn", "-cp", self._classpath, "-d", str(build / "classes"), source])

    def command(self, job: Path) -> list[str]:
        return ["java", "-Xms1g", "-Xmx1g", "-XX:+UseParallelGC", "-cp", self._classpath, "Loop", str(job)]


@dataclass(frozen=True)
class Rust:
    """A loop in Rust on librdkafka, built by Cargo; ONNX Runtime is this Python environment's own library."""

    folder: Path = HERE / "rust"
    announces: bool = True
    warm_up: int = 0
    only_kafka: bool = False

    @property
    def _program(self) -> Path:
        return self.folder / "build" / "release" / "loop"

    @property
    def there(self) -> bool:
        return self._program.exists()

    def make(self) -> None:
        build = ["cargo", "build", "-q", "--release", "--locked", "--target-dir", str(self.folder / "build")]
        _run([*build, "--manifest-path", str(self.folder / "Cargo.toml")])

    def command(self, job: Path) -> list[str]:
        return [str(self._program), str(job)]

    @property
    def environment(self) -> dict[str, str]:
        import onnxruntime

        (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
        return {"ORT_DYLIB_PATH": str(library)}


FRAMEWORKS: dict[str, Peer] = {name: Framework(HERE / name) for name in ("quix", "bytewax")}
ANCHORS: dict[str, Peer] = {"java": Java(), "rust": Rust()}
PEERS = FRAMEWORKS | ANCHORS


def make(peers: dict[str, Peer]) -> None:
    """Make what is not there yet; a missing tool leaves its peer out and says so."""
    for name, peer in peers.items():
        if peer.there:
            continue
        print(f"making {name}", file=sys.stderr)
        try:
            peer.make()
        except RuntimeError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)


def _run(command: list[str]) -> None:
    if shutil.which(command[0]) is None:
        raise RuntimeError(f"{command[0]} is missing")
    if subprocess.run(command, stdout=sys.stderr, env=os.environ).returncode:
        raise RuntimeError(f"{command[0]} failed; its output is above")
