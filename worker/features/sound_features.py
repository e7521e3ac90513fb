"""What a model gets of a sound: the samples themselves, log-mel features, or those of a graph of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from worker.batch import Array
from worker.errors import ConfigError
from worker.features.mel import KALDI_80, LogMel, MelRecipe, whisper
from worker.features.sound import AudioSettings, MelSettings
from worker.model.signature import TensorSpec

if TYPE_CHECKING:
    from worker.model.features_graph import FeaturesGraph

WHISPER_SAMPLES = 480_000
"""Whisper makes every sound 30 s long."""
WINDOWS_AT_A_TIME = 64
"""Windows whose features are computed at a time."""


class Samples:
    """The samples as they are.

    Args:
        spec: the model input.
        key: the setting's name, for errors.

    Raises:
        ConfigError: the input cannot hold the samples of one channel.
    """

    nbytes_per_sample = 0
    whole_samples: int | None = None
    """Samples of every sound that is not cut into windows, where the features ask for it."""

    def __init__(self, spec: TensorSpec, key: str) -> None:
        self.spec = spec
        self.axis = _samples_axis(spec, key)
        self.length = spec.item_shape[self.axis]
        """Samples that the model takes; None = any number."""

    def check(self, samples: int, key: str, rate: int) -> None:
        """Refuse windows of another length than the model's.

        Raises:
            ConfigError: names the setting.
        """
        if self.length not in (None, samples):
            raise ConfigError(
                f"{key}.window_s: an item has {samples} samples with its context, but the model's input {self.spec.name} "
                f"takes {self.length}; expected window_s and context_s that make {self.length / rate} s"
            )

    def item_elements(self, samples: int) -> int:
        """Elements of the item made of so many samples."""
        return samples

    def lengths(self, samples: Array, found: Array) -> Array:
        """The length of each item as a model counts it, from its samples without padding and from the items."""
        return samples

    def __call__(self, pieces: Array) -> Array:
        """(items, samples) as the model's items."""
        shape = [1] * len(self.spec.item_shape)
        shape[self.axis] = pieces.shape[1]
        return pieces.reshape(len(pieces), *shape)


class Mel:
    """Log-mel features.

    Raises:
        ConfigError: the input has no place for so many bins, or the rate is another than the features are made for.
    """

    def __init__(self, recipe: MelRecipe, spec: TensorSpec, key: str) -> None:
        self.spec = spec
        self.recipe = recipe
        self._mel = LogMel(recipe)
        self._shape, self._bins_first, self.axis = _mel_shape(spec, recipe, key)
        self.whole_samples = WHISPER_SAMPLES if recipe.kind == "whisper" else None
        frames = spec.item_shape[self.axis]
        self.length = None if frames is None else self._samples_for(frames)
        if self.whole_samples is not None and self.length not in (None, self.whole_samples):
            self.whole_samples = None  # a model for shorter pieces
        self.nbytes_per_sample = 0

    def _samples_for(self, frames: int) -> int:
        r = self.recipe
        return (frames - 1) * r.hop if r.kind == "librosa" else frames * r.hop

    def check(self, samples: int, key: str, rate: int) -> None:
        """See :meth:`Samples.check`."""
        frames = self.spec.item_shape[self.axis]
        if frames is not None and self.recipe.frames(samples) != frames:
            raise ConfigError(
                f"{key}.window_s: a window of {samples} samples has {self.recipe.frames(samples)} frames of features, but the "
                f"model's input {self.spec.name} takes {frames}; expected window_s: {self._samples_for(frames) / rate}"
            )

    def item_elements(self, samples: int) -> int:
        """See :meth:`Samples.item_elements`."""
        return self.recipe.frames(samples) * self.recipe.bins

    def lengths(self, samples: Array, found: Array) -> Array:
        """See :meth:`Samples.lengths`."""
        return np.array([self.recipe.frames(int(count)) for count in samples])

    def __call__(self, pieces: Array) -> Array:
        """(items, samples) as the model's items."""
        found = self._mel(pieces)
        frames = found.shape[1]
        if self._bins_first:
            found = np.ascontiguousarray(found.transpose(0, 2, 1))
        shape = [frames if axis == self.axis else length or 1 for axis, length in enumerate(self._shape)]
        return found.reshape(len(pieces), *shape)


class OwnGraph:
    """Features of an ONNX graph of one's own.

    Raises:
        ConfigError: the graph's features are not what the input takes.
    """

    whole_samples: int | None = None
    length: int | None = None

    def __init__(self, graph: FeaturesGraph, spec: TensorSpec, key: str) -> None:
        from worker.model.features_graph import PROBE_SAMPLES

        self.spec = spec
        self._graph = graph
        self._ratio = max(1.0, np.prod(graph.probe) / PROBE_SAMPLES)
        """Elements of the features for each sample, at least."""
        self._least = int(np.prod(graph.probe))
        self.nbytes_per_sample = 32  # what the graph's own tensors take is not known
        if len(graph.probe) != len(spec.item_shape):
            raise ConfigError(
                f"{key}.features: the graph's features have {len(graph.probe)} dimensions for each sound, an item of the "
                f"model's input {spec.name} has {len(spec.item_shape)}"
            )
        free = [axis for axis, length in enumerate(spec.item_shape) if length is None]
        self.axis = free[-1] if free else len(spec.item_shape) - 1

    def check(self, samples: int, key: str, rate: int) -> None:
        """Only a run tells how long features are."""

    def item_elements(self, samples: int) -> int:
        """See :meth:`Samples.item_elements`."""
        return max(self._least, round(samples * self._ratio))

    def lengths(self, samples: Array, found: Array) -> Array:
        """See :meth:`Samples.lengths`: the graph's own frames, padded ones included."""
        return np.full(len(samples), found.shape[1 + self.axis])

    def __call__(self, pieces: Array) -> Array:
        """(items, samples) as the model's items."""
        parts = [
            self._graph(pieces[start : start + WINDOWS_AT_A_TIME])
            for start in range(0, len(pieces), WINDOWS_AT_A_TIME)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def features_of(settings: AudioSettings, spec: TensorSpec, key: str) -> Samples | Mel | OwnGraph:
    """What the settings ask for.

    Raises:
        ConfigError: the model's input cannot hold it.
    """
    if spec.dtype.kind != "f":
        raise ConfigError(
            f"{key}: sound is made of floats, the model's input {spec.name} holds {spec.datatype}"
        )
    wanted = settings.features
    if wanted is None:
        return Samples(spec, key)
    if isinstance(wanted, Path):
        from worker.model.features_graph import FeaturesGraph

        return OwnGraph(FeaturesGraph(wanted, f"{key}.features"), spec, key)
    recipe = _recipe(wanted, settings.rate)
    if recipe.rate != settings.rate:
        raise ConfigError(
            f"{key}.rate: {wanted} features are made for {recipe.rate} samples per second, got {settings.rate}"
        )
    return Mel(recipe, spec, key)


def frames_of(settings: AudioSettings) -> list[int]:
    """How many frames an item has, where the settings say so."""
    wanted, samples = settings.features, settings.item_samples
    if wanted is None or isinstance(wanted, Path):
        return []
    recipe = _recipe(wanted, settings.rate)
    if samples is None and recipe.kind == "whisper":
        samples = WHISPER_SAMPLES
    return [] if samples is None else [recipe.frames(samples), recipe.bins]


def _recipe(wanted: str | MelSettings, rate: int) -> MelRecipe:
    if isinstance(wanted, MelSettings):
        top = rate / 2 if wanted.f_max is None else wanted.f_max
        return MelRecipe(
            "librosa", rate, wanted.n_fft, wanted.n_fft, wanted.hop, wanted.bins, wanted.f_min, top,
            wanted.log, wanted.norm == "slaney", wanted.scale,
        )  # fmt: skip
    return KALDI_80 if wanted == "kaldi80" else whisper(int(wanted.removeprefix("whisper")))


def _samples_axis(spec: TensorSpec, key: str) -> int:
    """The axis of an item that counts samples: the only one that is longer than 1, else the last free one.

    Raises:
        ConfigError: the input has no such axis, or several.
    """
    shape = spec.item_shape
    longer = [axis for axis, length in enumerate(shape) if length != 1]
    if len(longer) == 1:
        return longer[0]
    if longer and all(shape[axis] is None for axis in longer):
        return longer[-1]  # [batch, channels, samples] with nothing known
    if shape and not longer:
        return len(shape) - 1
    text = str(list(shape)).replace("None", "?")
    raise ConfigError(
        f"{key}: an item of the model's input {spec.name} has shape {text}, which cannot hold the samples of one channel; "
        "expected features, or one dimension longer than 1"
    )


def _mel_shape(spec: TensorSpec, recipe: MelRecipe, key: str) -> tuple[list[int | None], bool, int]:
    """(the item's shape, whether the bins come before the frames, the axis of the frames).

    The axis of the bins has their number, or any. Where either order would do, Kaldi's features have the frames first, the
    others the bins.

    Raises:
        ConfigError: the input has no two such axes.
    """
    shape = [*spec.item_shape]
    for bins_first in (False, True) if recipe.kind == "kaldi" else (True, False):
        for first in range(len(shape) - 1):
            for second in range(first + 1, len(shape)):
                bins, frames = (first, second) if bins_first else (second, first)
                others = [length for axis, length in enumerate(shape) if axis not in (first, second)]
                free = shape[bins] is None and shape[frames] is None
                known = shape[bins] == recipe.bins or free
                if known and all(length in (1, None) for length in others):
                    fitted = [1 if axis not in (bins, frames) else shape[axis] for axis in range(len(shape))]
                    fitted[bins] = recipe.bins
                    return fitted, bins_first, frames
    text = str(shape).replace("None", "?")
    raise ConfigError(
        f"{key}.features: an item of the model's input {spec.name} has shape {text}; "
        f"expected a dimension of {recipe.bins} bins and one of frames"
    )
