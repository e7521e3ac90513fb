"""The compiled batch path touches no memory but its own: the corpus, new inputs and its own tests under sanitizers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import fuzz_sanitized
import pytest
from fuzz_run import run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(fuzz_sanitized.missing()), reason=fuzz_sanitized.missing() or "-"),
]
TARGETS = ("json", "tensor", "npy", "oip", "text", "result", "vision", "event", "avro", "protobuf")
"""Those whose records or results go through compiled code."""
OVERRUN = "import ctypes; libc = ctypes.CDLL(None); libc.malloc.restype = ctypes.c_void_p; ctypes.memset(libc.malloc(8), 1, 64)"


@pytest.fixture(scope="module")
def folder() -> Path:
    """The compiled modules with sanitizers."""
    return fuzz_sanitized.build()


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=fuzz_sanitized.ROOT,
        env=fuzz_sanitized.environment(folder),
        capture_output=True,
        text=True,
        errors="replace",
    )


def test_the_sanitizers_are_there_and_find_what_is_planted(folder: Path) -> None:
    """Both modules are compiled with them, a process takes these modules, and a write beside its memory ends it."""
    built = fuzz_sanitized.modules(folder)
    assert sorted(built) == ["worker.native._producer", "worker.native._records"]
    for path in built.values():
        content = path.read_bytes()
        assert b"__asan_report_load" in content
        assert b"__ubsan_handle" in content
    script = "import fuzz_sanitized; from worker import native; print(native.records.__file__, native.producer.__file__)"
    done = python(folder, "-c", script)
    assert done.stdout.split() == [
        str(built["worker.native._records"]),
        str(built["worker.native._producer"]),
    ]
    planted = python(folder, "-c", OVERRUN)
    assert planted.returncode != 0
    assert "heap-buffer-overflow" in planted.stderr


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_makes_compiled_code_leave_its_memory(folder: Path, name: str, tmp_path: Path) -> None:
    """Seeds, corpus and mutated inputs of a target end no process and break no rule of the language."""
    findings = run(name, 2000, None, 11, tmp_path, fuzz_sanitized.environment(folder))
    assert not findings.found, findings.found
    assert findings.cases == 2000


@pytest.mark.parametrize("tests", ["tests/unit/test_native.py", "tests/integration/test_native_producer.py"])
def test_the_tests_of_compiled_code_pass_under_sanitizers(folder: Path, tests: str) -> None:
    """What the compiled modules' own tests do, on random and on embedded brokers' records, stays inside their memory."""
    done = python(folder, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "fuzz_sanitized", tests)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
