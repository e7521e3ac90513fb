"""A workload whose records are compared with a profile, which is made of the very same records."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from workloads import Workload

SOURCE_RECORDS = 400


def settings_of(work: Workload, folder: Path) -> dict[str, Any]:
    """What a configuration of this workload needs more, to be compared.

    Raises:
        RuntimeError: the profile could not be made.
    """
    config, profile = folder / f"{work.name}.profile.yaml", folder / f"{work.name}.profile.json"
    source = folder / f"{work.name}.records"
    source.mkdir(exist_ok=True)
    ending = "jpg" if work.values[0].startswith(b"\xff\xd8") else "json"
    for number in range(SOURCE_RECORDS):
        (source / f"{number}.{ending}").write_bytes(work.values[number % len(work.values)])
    document = {
        **work.settings,
        "input": {**work.settings["input"], "topics": ["in"]},
        "output": {**work.settings["output"], "topic": "out"},
        "dead_letter": {"topic": "dead"},
        "kafka": {"bootstrap.servers": "nobody:9", "group.id": "bench"},
    }
    config.write_text(yaml.safe_dump(document))
    command = [sys.executable, "-m", "worker", "profile", config, "--from", source, "--out", profile]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"profile: {done.stderr.strip()}")
    return {"drift": {"profile": str(profile), "window_s": 60}}
