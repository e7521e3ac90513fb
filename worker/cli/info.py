"""``streaminfer info``: versions and abilities of this installation, for a report of a bug."""

from __future__ import annotations

import argparse
import json
import os
import platform
import ssl
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from worker import __version__
from worker.errors import StartError

LIBRARIES = ("numpy", "opencv-python-headless", "pydantic", "orjson", "structlog", "PyYAML")
"""Packages that every worker uses, besides the runtime and the Kafka client."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Print versions and abilities of this installation: what a report of a bug needs. It shows no configuration "
        "and asks no broker."
    )
    parser.epilog = "example: streaminfer info --json"
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")


def run(args: argparse.Namespace) -> int:
    """Print it."""
    found = information()
    if args.json:
        print(json.dumps(found))
        return 0
    width = max(map(len, found))
    for name, value in found.items():
        print(f"{name.replace('_', ' '):<{width}}  {_shown(value)}")
    return 0


def information() -> dict[str, Any]:
    """By name: a text, a number, a list, or a mapping of texts; None for what is not installed."""
    from worker import native

    return {
        "streaminfer": __version__,
        "package": str(Path(__file__).parents[1]),
        "python": f"{platform.python_version()} ({platform.python_implementation()}, {sys.executable})",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}, {'-'.join(platform.libc_ver())}",
        "cpus": _cpus(),
        "onnxruntime": _onnxruntime(),
        "kafka_client": _kafka_client(),
        "openssl": ssl.OPENSSL_VERSION,
        "batch_path": f"{native.batch_path}, producer {native.producer_path}",
        "libraries": {name: _version(name) for name in LIBRARIES},
        "extras": _extras(),
        "preloaded": os.environ.get("LD_PRELOAD") or None,
    }


def _cpus() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _onnxruntime() -> dict[str, Any] | None:
    from worker.model.opening import import_runtime

    try:
        runtime = import_runtime()
    except StartError:  # not installed, or a library of it cannot be loaded
        return None
    return {"version": runtime.__version__, "providers": runtime.get_available_providers()}


def _kafka_client() -> dict[str, Any] | None:
    try:
        from worker.kafka.library import versions
    except ImportError:
        return None
    return dict(versions())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _extras() -> list[str]:
    """Extras of this distribution of which every package is installed."""
    wanted: dict[str, list[str]] = {}
    try:
        lines = requires("streaminfer") or []
    except PackageNotFoundError:
        return []
    for line in lines:
        requirement, _, condition = line.partition(";")
        if "extra ==" in condition:
            extra = condition.rpartition("==")[2].strip(" \"'")
            name = requirement.partition("[")[0]
            for sign in "<>=!~ ":
                name = name.partition(sign)[0]
            wanted.setdefault(extra, []).append(name)
    return [
        extra
        for extra, packages in sorted(wanted.items())
        if "streaminfer" not in packages and all(_version(each) is not None for each in packages)
    ]


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(inner)}" for name, inner in value.items())
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)
