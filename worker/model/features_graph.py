"""A graph of one's own that turns samples into features before the model, such as a log-mel graph of a speech toolkit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from worker.batch import Array
from worker.errors import ConfigError
from worker.filesystem import instead_of_file, is_file
from worker.model.opening import import_runtime, one_line, open_session

PROBE_SAMPLES = 16_000
"""Samples of the silence whose features are looked at when the graph is opened."""


class FeaturesGraph:
    """An ONNX graph from samples to features. It runs on the processor, in the thread that calls it; several threads may.

    Its first input of floats takes (sounds, samples); an input of integers, if there is one, the number of samples of each
    sound. Its first output of floats is the features, with a row for each sound.

    Args:
        path: the graph.
        key: the setting's name, for errors.

    Raises:
        ConfigError: the graph has another form, or does not run.
        StartError: it cannot be loaded.
    """

    def __init__(self, path: Path, key: str) -> None:
        runtime = import_runtime()
        if not is_file(path):
            raise ConfigError(f"{key}: {path} {instead_of_file(path)}; expected an ONNX file")
        self._session: Any = open_session(runtime, path, ["cpu"], [("CPUExecutionProvider", {})])
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        floats = [value.name for value in inputs if value.type == "tensor(float)"]
        integers = [value for value in inputs if value.type in ("tensor(int64)", "tensor(int32)")]
        features = [value.name for value in outputs if value.type == "tensor(float)"]
        if len(floats) != 1 or not features or len(inputs) != 1 + len(integers) or len(integers) > 1:
            raise ConfigError(
                f"{key}: {path} has another form; expected one input of float32 samples, at most one of integers for "
                "the number of samples, and an output of float32"
            )
        self._samples, self._features = floats[0], features[0]
        self._lengths = (integers[0].name, integers[0].type.partition("(")[2][:-1]) if integers else None
        try:
            self.probe = self(np.zeros((1, PROBE_SAMPLES), np.float32)).shape[1:]
        except Exception as error:
            raise ConfigError(
                f"{key}: {path} does not run on a second of silence: {one_line(str(error))}"
            ) from None

    def __call__(self, sounds: Array) -> Array:
        """Features of sounds of one length.

        Args:
            sounds: (sounds, samples), float32.

        Returns:
            (sounds, ...), float32.

        Raises:
            ValueError: the features do not follow the sounds.
        """
        feeds = {self._samples: sounds}
        if self._lengths is not None:
            name, dtype = self._lengths
            feeds[name] = np.full(len(sounds), sounds.shape[1], dtype)
        found: Array = self._session.run([self._features], feeds)[0]
        if not found.ndim or len(found) != len(sounds):
            raise ValueError(f"the features have shape {list(found.shape)} for {len(sounds)} sounds")
        return found
