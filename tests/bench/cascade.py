"""The work of a cascade: a small network for every frame, a large one for about a fifth of them."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import structlog
from steps import settings_for
from workloads import Workload

from worker.cli.sample import answer
from worker.serving.load import load

SHARE = 0.2
TITLE = "JPEG 224 px -> SqueezeNet-sized, {:.0%} also ResNet-50-sized -> JSON"


def joined(small: Workload, large: Workload) -> tuple[Workload, Workload, float]:
    """The cascade of two workloads that have the same records, the records that reach its second step, and their share."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    [rollout] = load(settings_for(small)).values()
    scores = np.array([answer(rollout, value)["prediction"]["score"] for value in small.values])
    rollout.close()
    bound = float(np.quantile(scores, SHARE))
    chosen = [value for value, score in zip(small.values, scores, strict=True) if score < bound]
    settings = {name: small.settings[name] for name in ("input", "batching", "output")}
    settings["steps"] = [
        {"name": "small", **_step(small)},
        {"name": "large", "when": {"small.score": {"below": bound}}, **_step(large)},
    ]
    share = len(chosen) / len(small.values)
    cascade = replace(small, name="cascade", title=TITLE.format(share), settings=settings)
    return cascade, replace(large, name="large", values=chosen), share


def _step(work: Workload) -> dict[str, Any]:
    return {
        name: work.settings[name] for name in ("preprocess", "model", "postprocess") if name in work.settings
    }
