"""Streams of which half of the records repeat earlier ones, for the rows about the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import orjson
from workloads import FEATURES, Workload, frames

OFTEN = 20
"""Values that make up every other record."""
ONCE = {"jpeg": 200, "json": 100_000}
"""Values of which each comes once; a topic is filled by going round them, and until one comes again it is forgotten."""
CACHE = {"jpeg": {"bytes": 45_000}, "json": {"bytes": 1_000_000}}
"""Some 60 and 1,900 entries: enough for the values that come often."""


def half_repeated(work: Workload) -> Workload:
    """The same workload with values of which every other one is among a few."""
    once = ONCE[work.name]
    values = frames(once + OFTEN, 224) if work.name == "jpeg" else _numbers(once + OFTEN)
    often, rare = values[:OFTEN], values[OFTEN:]
    mixed = [value for i, each in enumerate(rare) for value in (often[i % OFTEN], each)]
    return replace(work, values=mixed)


def _numbers(count: int) -> Sequence[bytes]:
    rows = np.random.default_rng(7).random((count, FEATURES), np.float32)
    return [orjson.dumps({"features": row}, option=orjson.OPT_SERIALIZE_NUMPY) for row in rows]
