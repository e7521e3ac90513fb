"""The image, built by scripts/image, and containers of it: with podman, which needs no daemon, or Docker."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TAG = "streaminfer:test"
PODMAN = """\
[containers]
netns = "host"
default_ulimits = ["nofile=20000:20000", "nproc=30000:30000"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
"""What podman needs where it is root without systemd and with mixed control groups."""
LOCKED_DOWN = ["--network", "host", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL"]
LOCKED_DOWN += ["--security-opt", "no-new-privileges", "--memory", "2g"]
"""As docker/compose.yaml has it."""


class CannotBuildError(Exception):
    """What is missing on this machine, in one sentence."""


@dataclass
class Engine:
    """What builds and runs: ``docker``, or ``buildah`` and ``podman``."""

    builder: str
    runner: str
    environment: dict[str, str]

    @classmethod
    def find(cls, folder: Path) -> Engine:
        """The one of this machine.

        Raises:
            CannotBuildError: there is none.
        """
        if shutil.which("docker") and not subprocess.run(["docker", "info"], capture_output=True).returncode:
            return cls("docker", "docker", dict(os.environ))
        for program in ("buildah", "podman", "runc", "mmdebstrap"):
            if not shutil.which(program):
                raise CannotBuildError(f"no Docker daemon answers, and {program} is not installed")
        if Path(sys.base_prefix) == Path("/usr"):
            raise CannotBuildError("the Python of the tests is the system's, which no base can be made of")
        settings = folder / "containers.conf"
        settings.write_text(PODMAN)
        return cls("buildah", "podman", {**os.environ, "CONTAINERS_CONF": str(settings)})

    def __call__(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.runner, *arguments], capture_output=True, text=True, timeout=timeout, env=self.environment
        )

    def build(self) -> Image:
        """The CPU image, by ``scripts/image``; some 90 s the first time."""
        base = ["--base-from-debian"] if self.builder == "buildah" else []
        command = [
            sys.executable,
            str(ROOT / "scripts" / "image"),
            "cpu",
            "--tag",
            TAG,
            "--builder",
            self.builder,
        ]
        done = subprocess.run([*command, *base], capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        out = ROOT / "build" / "image"
        sizes, bill = (json.loads((out / name).read_text()) for name in ("cpu.json", "cpu.cdx.json"))
        [inspected] = json.loads(self("inspect", "--type", "image", TAG).stdout)
        return Image(self, sizes, bill, inspected, done.stdout)


@dataclass
class Image:
    """A built image and what ``scripts/image`` said of it."""

    engine: Engine
    sizes: dict[str, Any]
    bill: dict[str, Any]
    inspected: dict[str, Any]
    printed: str

    def output(self, *command: str, user: str = "10001:10001") -> str:
        """What a program prints in a container of its own."""
        program, *arguments = command
        done = self.engine(
            "run", "--rm", *LOCKED_DOWN, "--user", user, "--entrypoint", program, TAG, *arguments
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, *arguments: str, options: tuple[str, ...] = ()) -> Container:
        """``streaminfer ARGUMENTS`` in the background, locked down."""
        name = f"streaminfer-test-{uuid.uuid4().hex[:8]}"
        done = self.engine("run", "--detach", "--name", name, *LOCKED_DOWN, *options, TAG, *arguments)
        assert done.returncode == 0, done.stderr
        return Container(self.engine, name)


@dataclass
class Container:
    """A running container; to be removed by whoever started it."""

    engine: Engine
    name: str
    removed: bool = field(default=False)

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self.engine("inspect", self.name).stdout)[0]["State"]
        return state

    def text(self) -> str:
        """Standard output and error so far, without what podman itself says of a missing systemd."""
        done = self.engine("logs", self.name)
        return "".join(re.sub(r'^time=".*systemd.*\n', "", done.stdout + done.stderr, flags=re.MULTILINE))

    def processes(self) -> list[int]:
        """Ids, as this machine sees them, of its process 1 and of those below it."""
        found = [self.state()["Pid"]]
        for parent in found:
            found += map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())
        return found

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return self.engine("exec", self.name, *command)

    def stop(self, grace_s: int) -> int:
        """SIGTERM, and SIGKILL after so many seconds; returns the exit code."""
        self.engine("stop", "--time", str(grace_s), self.name, timeout=grace_s + 30)
        code: int = self.state()["ExitCode"]
        return code

    def remove(self) -> None:
        self.engine("rm", "--force", self.name)
