"""The compiled batch path under the compiler's sanitizers: a read or write beside its memory ends the process.

A process that imports this module, or names it to pytest with ``-p``, takes the compiled modules of the folder in
``STREAMINFER_SANITIZED`` in place of its own.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "sanitized"
SWITCH = "STREAMINFER_SANITIZED"
SANITIZERS = "-fsanitize=address,undefined"
COMPILE = f"{SANITIZERS} -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g"
LIBRARIES = ("libasan.so", "libubsan.so", "libstdc++.so.6")
"""What is loaded before Python itself, which is compiled without sanitizers; the C++ library so that exceptions work."""


def missing() -> str:
    """What there is not to build with; empty if there is all."""
    compiler = shutil.which("g++")
    if compiler is None or not sys.platform.startswith("linux"):
        return "the sanitizers need Linux and g++"
    found = [name for name in LIBRARIES if not Path(_library(name)).is_absolute()]
    return f"g++ has no {found[0]}" if found else ""


def build() -> Path:
    """Compile the modules as setup.py does, with sanitizers; returns their folder.

    Raises:
        subprocess.CalledProcessError: they do not compile.
    """
    command = [sys.executable, "setup.py", "-q", "build_ext", "--force"]
    folders = ["--build-lib", str(FOLDER), "--build-temp", str(FOLDER / "objects")]
    flags = {"CFLAGS": COMPILE, "CXXFLAGS": COMPILE, "LDFLAGS": SANITIZERS, "CC": "g++", "CXX": "g++"}
    subprocess.run([*command, *folders], cwd=ROOT, env={**os.environ, **flags}, check=True)
    return FOLDER / "worker" / "native"


def environment(folder: Path) -> dict[str, str]:
    """For a process of Python that takes the modules of a folder. Python's own leftovers at its end are no finding."""
    return {
        **os.environ,
        SWITCH: str(folder),
        "LD_PRELOAD": " ".join(map(_library, LIBRARIES)),
        "ASAN_OPTIONS": "detect_leaks=0:quarantine_size_mb=16:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",  # each object of Python has red zones around it, too
        "PYTHONPATH": str(Path(__file__).parent),
    }


def modules(folder: Path) -> dict[str, Path]:
    """The compiled modules of a folder by their names in the package."""
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    return {f"worker.native.{path.name.removesuffix(suffix)}": path for path in folder.glob(f"*{suffix}")}


def install() -> None:
    """Put the modules where importing them finds them, before the package is imported."""
    for name, path in modules(Path(os.environ[SWITCH])).items():
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[name] = module


def _library(name: str) -> str:
    found = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


if os.environ.get(SWITCH):
    install()
