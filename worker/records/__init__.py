"""Codecs: a record's bytes -> a batch's arrays, and what the model answered -> a record's bytes.

:func:`decoder` is the registry of input formats, :func:`encoder` of output formats. A format's module is imported only when a pipeline asks for
it, so a worker for JSON never loads OpenCV.
"""

from __future__ import annotations

import os
from typing import Protocol

from worker.batch import Columns, Feed
from worker.encode import Encoder, encoder
from worker.errors import ConfigError
from worker.model.signature import Signature
from worker.settings import LimitsSettings, PipelineSettings, import_attribute

__all__ = ["Decoder", "Encoder", "decoder", "encoder"]


class Decoder(Protocol):
    """Bytes -> arrays, for one pipeline. Called from pool threads, on different rows side by side."""

    fixed: bool
    """True: fills ``feed.arrays[name][row]``; False: fills ``feed.items[row]``."""
    shard_rows: int
    """Rows per decode task; 0 = never split a batch, because decoding holds the GIL anyway."""

    def cost(self, value: bytes) -> int:
        """Scratch bytes of a decode that needs more than 8 MiB, else 0; from the header only.

        Raises:
            Reject: the header already says that the record cannot be decoded.
        """
        ...

    def decode(self, columns: Columns, feed: Feed, start: int, stop: int) -> None:
        """Decode rows start..stop; what is wrong with a row goes to ``feed.rejected[row]``."""
        ...


def decoder(settings: PipelineSettings, signature: Signature, limits: LimitsSettings) -> Decoder:
    """The decoder of a pipeline's input format.

    Raises:
        ConfigError: format, preprocessing and the model's inputs cannot go together.
    """
    _check_inputs(settings, signature)
    name = settings.input.format
    if name == "image" or any(source.image for source in settings.preprocess.inputs.values()):
        # Read once, when OpenCV is imported; the header check before every decode is what the user's limit means.
        os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(max(limits.image_pixels, 40_000_000)))
    if name == "image":
        from worker.records.image import ImageDecoder

        return ImageDecoder(settings, signature, limits)
    if name == "json":
        from worker.records.json import JsonDecoder

        return JsonDecoder(settings, signature, limits)
    if name == "tensor":
        from worker.records.tensor import TensorDecoder

        return TensorDecoder(signature)
    if name == "npy":
        from worker.records.npy import NpyDecoder

        return NpyDecoder(signature)
    if name == "oip":
        from worker.records.oip import OipDecoder

        return OipDecoder(signature)
    from worker.records.own import OwnDecoder

    return OwnDecoder(import_attribute(name, "input.format"), signature)


def _check_inputs(settings: PipelineSettings, signature: Signature) -> None:
    """``preprocess.inputs``, where given, names every model input and nothing else."""
    given, names = settings.preprocess.inputs, [spec.name for spec in signature.inputs]
    if given and set(given) != set(names):
        odd = next((name for name in given if name not in names), None)
        missing = next((name for name in names if name not in given), None)
        problem = f"{odd} is no input of the model" if odd else f"{missing} is missing"
        raise ConfigError(f"preprocess.inputs: {problem}; expected exactly {', '.join(names)}")
