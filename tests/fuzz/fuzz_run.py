"""Runs targets on many inputs, each target in a process of its own, and keeps what it finds.

A finding is an exception, a process that dies or hangs, a case that takes ``SLOW_S`` seconds, or memory that grows by
more than ``GROWTH_BYTES``. The input goes to the corpus, which every run of the tests replays.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import resource
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random

import fuzz_sanitized  # noqa: F401 - before the package: it may bring compiled modules of its own
from fuzz_mutate import LARGEST, mutated
from fuzz_targets import TARGETS, Target

CORPUS = Path(__file__).parent / "corpus"
SLOW_S = 5.0
GROWTH_BYTES = 192 << 20
START_S = 30.0
"""For a process to start, beyond its time of fuzzing."""


@dataclass
class Findings:
    """What a run came to."""

    cases: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    """Largest resident size of the process."""
    found: dict[str, int] = field(default_factory=dict)
    """One line per kind of finding -> how many inputs showed it."""


def inputs(name: str) -> list[bytes]:
    """Seeds and corpus of a target."""
    kept = sorted((CORPUS / name).glob("*")) if (CORPUS / name).is_dir() else []
    return [*TARGETS[name].seeds, *(path.read_bytes() for path in kept)]


def run(
    name: str,
    cases: int | None,
    seconds: float | None,
    seed: int,
    corpus: Path = CORPUS,
    environment: Mapping[str, str] | None = None,
) -> Findings:
    """Fuzz one target in a process of its own, which may die of it.

    Args:
        name: of the target.
        cases: most inputs to try; None = no bound.
        seconds: longest time; None = no bound.
        seed: the same seed gives the same inputs.
        corpus: where inputs with findings go.
        environment: of the process; default: this one's.
    """
    with tempfile.NamedTemporaryFile(prefix="streaminfer-fuzz-") as shared:
        shared.truncate(LARGEST + 8)
        command = [sys.executable, __file__, name, str(cases or 0), str(seconds or 0), str(seed), str(corpus)]
        process = subprocess.Popen(
            [*command, shared.name],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=environment,
        )
        try:
            said, errors = process.communicate(timeout=seconds + START_S if seconds else None)
        except subprocess.TimeoutExpired:
            process.kill()
            said, errors = process.communicate()
        if process.returncode == 0:
            return Findings(**json.loads(said))
        current = shared.read()
        data = current[8 : 8 + int.from_bytes(current[:8], "little")]
        last = errors.strip().splitlines() or ["no last words"]
        end = next((line for line in last if "Sanitizer: " in line or "runtime error: " in line), last[-1])
        return Findings(found={f"ended with {process.returncode}: {end} ({keep(data, corpus / name)})": 1})


def fuzz(
    target: Target, random: Random, seeds: list[bytes], corpus: Path, current: mmap.mmap, until: Iterator[int]
) -> Findings:
    """Try mutated inputs in this process as long as ``until`` gives numbers."""
    findings = Findings()
    started, warm = time.monotonic(), peak_bytes()
    for _ in until:
        data = mutated(random, seeds, target.tokens)
        if target.repair is not None and random.random() < 0.5:
            data = target.repair(data)
        current[:8] = len(data).to_bytes(8, "little")
        current[8 : 8 + len(data)] = data
        findings.cases += 1
        kind = tried(target, data)
        if kind is None and peak_bytes() > warm + GROWTH_BYTES:
            kind = f"memory grew from {warm >> 20} to {peak_bytes() >> 20} MiB"
            warm = peak_bytes()
        if kind is not None:
            if kind not in findings.found:
                kept = keep(data, corpus)
                print(f"{kind} ({kept})", file=sys.stderr)
            findings.found[kind] = findings.found.get(kind, 0) + 1
    findings.seconds = round(time.monotonic() - started, 1)
    findings.peak_bytes = peak_bytes()
    return findings


def tried(target: Target, data: bytes) -> str | None:
    """What is wrong with how one input is taken, in one line; None = nothing."""
    started = time.monotonic()
    try:
        target.check(data)
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}:{last.lineno}"
        return f"{type(error).__name__} at {place}: {' '.join(str(error).split())[:200]}"
    took = time.monotonic() - started
    return f"took {took:.1f} s" if took > SLOW_S else None


def keep(data: bytes, corpus: Path) -> Path:
    """Put an input into the corpus."""
    corpus.mkdir(parents=True, exist_ok=True)
    path = corpus / hashlib.sha256(data).hexdigest()[:16]
    path.write_bytes(data)
    return path


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def turns(cases: int, seconds: float) -> Iterator[int]:
    """0, 1, 2, ... up to so many cases or seconds; 0 = no bound."""
    deadline = time.monotonic() + seconds if seconds else float("inf")
    for turn in range(cases) if cases else count():
        if time.monotonic() > deadline:
            return
        yield turn


def child() -> None:
    """The process of one target: see :func:`run`."""
    name, cases, seconds, seed, corpus, shared = sys.argv[1:]
    # a warning would be a log line per record; deprecations are hidden outside tests too
    warnings.simplefilter("error")
    warnings.simplefilter("ignore", DeprecationWarning)
    with open(shared, "r+b") as file, mmap.mmap(file.fileno(), 0) as current:
        findings = fuzz(
            TARGETS[name],
            Random(f"{name} {seed}"),
            inputs(name),
            Path(corpus) / name,
            current,
            turns(int(cases), float(seconds)),
        )
    print(json.dumps(vars(findings)))


if __name__ == "__main__":
    child()
