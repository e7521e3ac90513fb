"""The same targets under Atheris, whose mutations are led by the branches of our own code that an input reaches.

What lies behind a C function (a picture's decoder, the JSON parser) is one step to it: there the other engine, which
knows the formats, finds more. Memory is bounded by libFuzzer's own limit; a process that dies of an input names it.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fuzz_mutate import LARGEST
from fuzz_run import CORPUS, SLOW_S, START_S, Findings, inputs, keep

RSS_LIMIT_MIB = 1024
"""A warm process takes about 250."""
FOUND = "FOUND "
CHILD = Path(__file__).with_name("fuzz_atheris_child.py")


def run(name: str, cases: int | None, seconds: float | None, seed: int, corpus: Path = CORPUS) -> Findings:
    """As :func:`fuzz_run.run`; inputs that reach something new are kept only as long as the run."""
    findings = Findings()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="streaminfer-atheris-") as folder:
        grown, crashes = Path(folder, "corpus"), Path(folder, "crashes")
        grown.mkdir()
        crashes.mkdir()
        for number, data in enumerate(inputs(name)):
            (grown / f"seed-{number}").write_bytes(data)
        options = [
            f"-seed={seed + 1}",  # 0 means: another one each time
            f"-max_len={LARGEST}",
            f"-rss_limit_mb={RSS_LIMIT_MIB}",
            f"-timeout={int(SLOW_S) * 4}",
            f"-artifact_prefix={crashes}/",
            "-print_final_stats=1",
            *([f"-runs={cases}"] if cases else []),
            *([f"-max_total_time={int(seconds)}"] if seconds else []),
        ]
        done = subprocess.run(
            [sys.executable, str(CHILD), name, str(corpus), *options, str(grown)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds + 10 * START_S if seconds else None,
        )
        said = done.stderr + done.stdout
        for line in said.splitlines():
            if line.startswith(FOUND):
                kind = line.removeprefix(FOUND)
                findings.found[kind] = findings.found.get(kind, 0) + 1
        if done.returncode:
            kept = [keep(path.read_bytes(), corpus / name) for path in crashes.iterdir()]
            last = next((line for line in said.splitlines() if "ERROR" in line), said.strip()[-200:])
            findings.found[f"ended with {done.returncode}: {last} ({', '.join(map(str, kept))})"] = 1
    findings.cases = _figure("number_of_executed_units", said)
    findings.peak_bytes = _figure("peak_rss_mb", said) << 20
    findings.seconds = round(time.monotonic() - started, 1)
    return findings


def _figure(name: str, said: str) -> int:
    found = re.search(rf"stat::{name}:\s+(\d+)", said)
    return int(found[1]) if found else 0
