"""A servable that tells what goes through it: what its models are given, what they answer, what each step predicts.

A tapped servable is another object around the same model. The one that answers traffic has no tap and pays nothing for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import orjson

from worker.batch import Array, Batch, Columns, Feed, Run
from worker.encode import Encoder
from worker.records import Decoder
from worker.serving.cascade import Cascade
from worker.serving.servable import Model, Servable

RUNS_MAX = 64
"""Runs told of one record; it may have a thousand boxes."""
PREDICTIONS_MAX = 64
"""Predictions told of one step."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What a tensor holds. ``low``, ``mean`` and ``high`` are those of its finite numbers; None where it has none."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    low: float | None = None
    mean: float | None = None
    high: float | None = None
    nan: int = 0
    infinite: int = 0


@dataclass(slots=True)
class ToldRun:
    """One run of a model."""

    step: str | None
    """The step of a cascade; None where there is one model."""
    inputs: list[Figures]
    outputs: list[Figures] = field(default_factory=list)
    error: str | None = None
    """What the model raised instead of an answer."""


@dataclass(slots=True)
class Told:
    """What a tap has seen."""

    runs: list[ToldRun] = field(default_factory=list)
    untold: int = 0
    """Further runs, beyond ``RUNS_MAX``."""
    predictions: dict[str, list[Any]] = field(default_factory=dict)
    """By step of a cascade, what it predicted for each of its items."""
    payload: bytes | None = None
    """What the decoder was given: fetched, unwrapped, taken out of its event."""
    pixels: Array | None = None
    """The first picture that was decoded, upright, uint8: (height, width) or (height, width, 3)."""
    flags: int = 0
    """Those of OpenCV that it was decoded with."""


def figures_of(name: str, tensor: Any) -> Figures:
    """The figures of a tensor; of text its shape alone."""
    array = np.asarray(tensor)
    if array.dtype.kind not in "biuf":
        kind = "string" if array.dtype.kind in "OUS" else str(array.dtype)
        return Figures(name, kind, array.shape)
    numbers = array.astype(np.float64)
    finite = numbers[np.isfinite(numbers)]
    nan = int(np.isnan(numbers).sum())
    told = Figures(name, str(array.dtype), array.shape, nan=nan, infinite=array.size - finite.size - nan)
    if not finite.size:
        return told
    low, high = float(finite.min()), float(finite.max())
    mean = float(finite.mean())
    if not math.isfinite(mean):  # the sum is beyond float64
        mean = float((finite / finite.size).sum())
    return replace(told, low=low, mean=mean, high=high)


def tapped(servable: Servable, told: Told) -> Servable:
    """The servable with a tap, without a cache, without a store for large results, and not measured."""
    decoder = cast("Decoder", _TappedDecoder(servable.decoder, told))
    if not isinstance(servable, Cascade):
        model = cast("Model", _TappedModel(servable.model, told, None))
        return replace(servable, model=model, decoder=decoder, cache=None, offload=None, gauge=None)
    steps = []
    for step in servable.steps:
        model = cast("Model", _TappedModel(step.servable.model, told, step.name))
        encoder = cast("Encoder", _TappedEncoder(step.servable.encoder, told, step.name))
        steps.append(replace(step, servable=replace(step.servable, model=model, encoder=encoder)))
    return replace(servable, steps=steps, decoder=decoder, cache=None, offload=None, gauge=None)


class _Around:
    """Whatever is not told is asked of the object inside."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _TappedModel(_Around):
    def __init__(self, inner: Model, told: Told, step: str | None) -> None:
        super().__init__(inner)
        self._told, self._step = told, step

    def run(self, feeds: dict[str, Array]) -> dict[str, Array]:
        return self._ran(feeds, lambda: self._inner.run(feeds))

    def run_in_order(self, feeds: dict[str, Array], counts: Sequence[int]) -> dict[str, Array]:
        return self._ran(feeds, lambda: self._inner.run_in_order(feeds, counts))

    def _ran(self, feeds: Mapping[str, Array], run: Any) -> dict[str, Array]:
        if len(self._told.runs) >= RUNS_MAX:
            self._told.untold += 1
            return cast("dict[str, Array]", run())
        seen = ToldRun(self._step, [figures_of(name, tensor) for name, tensor in feeds.items()])
        self._told.runs.append(seen)
        try:
            outputs: dict[str, Array] = run()
        except Exception as error:
            seen.error = f"{type(error).__name__}: {error}"
            raise
        seen.outputs = [figures_of(name, tensor) for name, tensor in outputs.items()]
        return outputs


class _TappedEncoder(_Around):
    """The encoder of a step: what it makes of the step's answers is the step's prediction."""

    def __init__(self, inner: Encoder, told: Told, step: str) -> None:
        super().__init__(inner)
        self._said = told.predictions.setdefault(step, [])

    def predict(self, batch: Batch, run: Run) -> Sequence[Any]:
        fragments: Sequence[Any] = self._inner.predict(batch, run)
        for fragment in fragments[: PREDICTIONS_MAX - len(self._said)]:
            if isinstance(fragment, bytes):
                self._said.append(orjson.loads(fragment))
        return fragments


class _TappedDecoder(_Around):
    """Keeps the payload and the decoded picture of the first row."""

    def __init__(self, inner: Decoder, told: Told) -> None:
        super().__init__(inner)
        self._told = told

    def decode(
        self, payloads: list[bytes | None], columns: Columns, feed: Feed, start: int, stop: int
    ) -> None:
        if feed.opened is None:
            feed.opened = [{} for _ in payloads]
        self._told.payload = payloads[start]
        self._inner.decode(payloads, columns, feed, start, stop)
        for key, found in feed.opened[start].items():
            if isinstance(found, np.ndarray) and found.dtype == np.uint8 and isinstance(key, tuple):
                self._told.pixels, self._told.flags = found, key[1]
                return
