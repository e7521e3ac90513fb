"""The process of one target under Atheris; see :mod:`fuzz_atheris`. Nothing of ours is imported before it is watched."""

from __future__ import annotations

import ctypes
import sys
import warnings
from pathlib import Path

import atheris

name, corpus, *options = sys.argv[1:]
# the worker sends C's stderr to nowhere, for the decoders' sake; libFuzzer speaks there
stream = ctypes.c_void_p.in_dll(ctypes.CDLL(None), "stderr")
speaking = stream.value
with atheris.instrument_imports(include=["worker"]):
    from fuzz_run import keep, tried
    from fuzz_targets import TARGETS
stream.value = speaking
warnings.simplefilter("error")
warnings.simplefilter("ignore", DeprecationWarning)
target = TARGETS[name]
seen: set[str] = set()


def try_one(data: bytes) -> None:
    kind = tried(target, data)
    if kind is not None and kind not in seen:  # and on: the next one may be another
        seen.add(kind)
        print(f"FOUND {kind} ({keep(data, Path(corpus) / name)})", file=sys.stderr, flush=True)


atheris.Setup([sys.argv[0], *options], try_one)
atheris.Fuzz()
