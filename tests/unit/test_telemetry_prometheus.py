"""What Prometheus' own linter says of ``/metrics``: by ``promtool`` where it is on the PATH, and by its rules always."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest
from fakes import FakeRollout

from worker.batch import Batch, Columns, Partition, Run
from worker.telemetry.meters import Meters, ModelLabel, PartitionState
from worker.telemetry.prometheus import Exposition

ROLLOUT = FakeRollout()
SUFFIXES = {"histogram": ("_bucket", "_count", "_sum"), "summary": ("_count", "_sum")}
TYPES = ("counter", "gauge", "histogram", "summary")
ABBREVIATIONS = {
    "ms",
    "us",
    "ns",
    "sec",
    "secs",
    "s",
    "min",
    "hr",
    "b",
    "kb",
    "mb",
    "gb",
    "kib",
    "mib",
    "gib",
}
OTHER_UNITS = {"milliseconds", "microseconds", "minutes", "hours", "days", "kilobytes", "megabytes", "bits"}


def exposed() -> str:
    """The text of a worker to which everything has happened."""
    meters = Meters({"digits": ModelLabel("digits", "3f9c2a71", "cpu")})
    meters.taken("digits", 10)
    meters.counted("digits", ok=6, dead_letter=1, dropped=1)
    meters.error("digits", "invalid", "decode", 1)
    run = Run(range(8), {}, stages_us={"infer": 1000})
    meters.batch(
        "digits", Batch(None, range(8), Columns(), ROLLOUT.route, ROLLOUT.choose(), 0, 0.0, runs=[run])
    )
    meters.rebalance()
    meters.transaction("committed")
    meters.rewind("aborted")
    snapshot = meters.snapshot(77, {Partition("digits", 3): PartitionState(1, 1, 5)})
    return Exposition(lambda: snapshot).render().decode()


def faults(text: str) -> Iterator[str]:
    """The linter's rules on names, types and help; one sentence per fault."""
    lines = text.splitlines()
    kinds = dict(line.split()[2:4] for line in lines if line.startswith("# TYPE"))
    helps = {line.split()[2]: line.split(maxsplit=3)[3:] for line in lines if line.startswith("# HELP")}
    for name, kind in kinds.items():
        words = set(name.split("_"))
        if not helps.get(name):
            yield f"{name}: no help text"
        if (kind == "counter") != name.endswith("_total"):
            yield f"{name}: counters, and only they, end in _total"
        if any(name.endswith(f"_{type_}") for type_ in TYPES):
            yield f"{name}: the type is no part of the name"
        if kind not in SUFFIXES and name.endswith(("_bucket", "_count", "_sum")):
            yield f"{name}: a suffix of histograms"
        if words & ABBREVIATIONS or words & OTHER_UNITS:
            yield f"{name}: base units, written out"
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            yield f"{name}: not in snake case"
    for line in lines:
        if line and not line.startswith("#"):
            name, _, labels = line.partition("{")
            base = next(
                (n for n in kinds if name.split()[0] in (n, *(n + s for s in SUFFIXES.get(kinds[n], ())))),
                None,
            )
            if base is None:
                yield f"{name}: no type"
            for label in re.findall(r'(\w+)="', labels):
                if not re.fullmatch(r"[a-z][a-z0-9_]*", label) or (
                    label == "le" and not name.endswith("_bucket")
                ):
                    yield f"{name}: label {label}"


PLANTED = {
    "a counter without _total": ("streaminfer_rebalances_total", "streaminfer_rebalances"),
    "no help": ("# HELP streaminfer_batch_size Items per batch.\n", ""),
    "milliseconds": ("streaminfer_stage_duration_seconds", "streaminfer_stage_duration_milliseconds"),
    "a gauge called total": ("streaminfer_in_flight_bytes", "streaminfer_in_flight_bytes_total"),
}


def test_the_linters_rules_are_kept() -> None:
    """The exposition keeps the rules of Prometheus' linter."""
    assert not list(faults(exposed()))


@pytest.mark.parametrize("name", PLANTED)
def test_the_rules_find_what_is_planted(name: str) -> None:
    """Each planted fault in an exposition is found by our rules, and by the real linter if it is there."""
    text = exposed().replace(*PLANTED[name])
    assert list(faults(text))
    if shutil.which("promtool"):
        assert promtool(text).returncode


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (of Prometheus) is not on the PATH")
def test_promtool_finds_nothing() -> None:
    """promtool, if it is installed, finds nothing to complain about in the exposition."""
    done = promtool(exposed())
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def promtool(text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=30
    )
