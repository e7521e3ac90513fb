"""A sound file in a record -> samples within the limits -> one item, or one item per window."""

from __future__ import annotations

import math

import numpy as np

from worker.batch import Array, Feed, Padding
from worker.errors import Reject
from worker.features import MARKS, FileFeature, Opened, Place, Record
from worker.features.sound import AudioSettings
from worker.features.sound_decode import BLOCK_SAMPLES, Decoding
from worker.features.sound_features import WINDOWS_AT_A_TIME, OwnGraph, features_of
from worker.features.sound_header import SoundHeader
from worker.features.sound_windows import Windows
from worker.model.signature import TensorSpec
from worker.settings import LimitsSettings

FREE_SCRATCH_BYTES = 8 << 20
"""A decode that needs at most this much memory takes none from the byte budget."""
_SAMPLE = 4
"""Bytes of a sample."""
_FRAMES_MULTIPLE = 10
"""Frames that padded lengths are a multiple of."""
_SOFTWARE_BYTES = 4 << 20
"""What a decoder and a resampler need at most beside the samples."""


class SoundFeature(FileFeature):
    """Fills one model input with a sound, within the limits.

    Args:
        settings: rate, windows and longest sound.
        spec: the model input: floats with one dimension for the samples; further dimensions have length 1.
        place: where in the record the file is: bytes, or base64 text.
        key: the setting's name, for errors.
        lengths: a further input that gets the number of samples, or of frames of features, of each item.
        limits: a sound whose decoding needs more than ``in_flight_bytes`` is refused.

    Raises:
        ConfigError: the input cannot hold samples, or soundfile or soxr is not installed.
    """

    reads_whole = True

    def __init__(
        self,
        settings: AudioSettings,
        spec: TensorSpec,
        place: Place,
        key: str,
        limits: LimitsSettings,
        lengths: TensorSpec | None = None,
    ) -> None:
        super().__init__(spec, place)
        self.lengths = lengths
        self.filled = (spec.name,) if lengths is None else (spec.name, lengths.name)
        self._decoding = Decoding(settings.rate, key)
        self._settings = settings
        self._limit_bytes = limits.in_flight_bytes
        self.rate = settings.rate
        self.sound_key = place.field, settings.rate, "sound"
        """The key under which features that read the same sound share it."""
        self._features = features_of(settings, spec, key)
        self.windows: Windows | None = None
        if settings.window_s is not None:
            self.windows = _windows_of(settings)
            self._features.check(self.windows.size, key, settings.rate)
        self.length = self._features.whole_samples or self._features.length
        """Samples of a sound that is not cut; None = any number."""
        self.windowed = self.windows is not None

    @property
    def padding(self) -> Padding | None:
        """See :class:`worker.features.FileFeature`."""
        if self.windowed or self.length is not None or isinstance(self._features, OwnGraph):
            return None
        multiple = _FRAMES_MULTIPLE if self._settings.features is not None else self._settings.rate // 10
        return Padding(self._features.axis, multiple=multiple)

    def scratch(self, beginning: bytes) -> int:
        """See :class:`worker.features.FileFeature`."""
        needed = self._room(self._decoding.header(beginning))
        return needed if needed > FREE_SCRATCH_BYTES else 0

    def _room(self, header: SoundHeader) -> int:
        """What decoding needs.

        Raises:
            Reject: ``too_large``: longer than ``max_s``, or more than the whole budget.
        """
        needed = self._needed(header)
        if needed > self._limit_bytes:
            raise Reject(
                f"decoding the sound needs {needed} bytes of memory, limits.in_flight_bytes is {self._limit_bytes}",
                "too_large",
            )
        return needed

    def items_in(self, beginning: bytes) -> int:
        """See :class:`worker.features.FileFeature`."""
        if self.windows is None:
            return 1
        header = self._decoding.header(beginning)
        samples = self._decoding.samples(self._most(header), header.rate)
        return max(1, self.windows.count(samples))

    def write(self, record: Record, feed: Feed, row: int, items: dict[str, Array], opened: Opened) -> bool:
        """See :class:`worker.features.Feature`."""
        sound: Array | None = opened.get(self.sound_key)
        if sound is None:
            sound = opened[self.sound_key] = self._decoded(self.file(record))
        if self.windows is not None:
            if not self.windows.count(len(sound)):
                raise Reject(
                    f"{self._length_of(sound)}, expected at least window_s: {self._settings.window_s}"
                )
            items[self.spec.name] = found = self._shaped(self.windows.cut(sound))
            if self.lengths is not None:
                starts = np.arange(len(found)) * self.windows.hop
                used = self.windows.context + np.minimum(self.windows.length, len(sound) - starts)
                items[self.lengths.name] = self._counted(used, found)
            opened[MARKS] = self.windows.marks(len(sound), self._settings.rate)
            return True
        own = len(sound)
        if self.length is not None:
            sound = self._of_length(sound, self.length)
        found = self._shaped(sound[np.newaxis])
        filled = {self.spec.name: found[0]}
        if self.lengths is not None:
            filled[self.lengths.name] = self._counted(np.array([own]), found)[0]
        if feed.arrays is not None:
            for name, item in filled.items():
                feed.arrays[name][row] = item
        else:
            items.update(filled)
        return True

    def _counted(self, samples: Array, found: Array) -> Array:
        """What the model gets as the length of each item: samples, or frames of features."""
        assert self.lengths is not None
        counts = self._features.lengths(samples, found)
        return counts.astype(self.lengths.dtype).reshape(len(found), *(1 for _ in self.lengths.item_shape))

    def _needed(self, header: SoundHeader) -> int:
        """Bytes for decoding a sound and for its items in the batch, besides the slots of one item of length 1."""
        frames = self._most(header)
        samples = self._decoding.samples(frames, header.rate)
        block = min(frames * header.channels, BLOCK_SAMPLES + header.channels)
        if header.rate != self._settings.rate:
            frames += samples
        whole = max(samples, self.length or 0)
        if self.windows is None:
            pieces, count = whole, 1
        else:
            count = max(1, self.windows.count(samples))
            pieces = count * self.windows.size
            whole += self.windows.size
        item = self._features.item_elements(self.windows.size if self.windows else whole)
        further = 2 * count * item  # with its copy in the run, padded up to half again
        if self.windows is not None or self.length is not None:
            further += whole  # the sound with zeros around it
        if self.windows is not None and self._settings.features is not None:
            further += pieces
        answers = 2 * round(count * item * self.spec.dtype.itemsize * self.answer_share)
        own = self._features.nbytes_per_sample * (whole if self.windows is None else self._at_a_time(count))
        return _SAMPLE * (frames + further + 2 * block) + answers + own + _SOFTWARE_BYTES

    def _at_a_time(self, windows: int) -> int:
        """Samples whose features are computed together."""
        assert self.windows is not None
        return min(windows, WINDOWS_AT_A_TIME) * self.windows.size

    def _most(self, header: SoundHeader) -> int:
        """Most samples of each channel.

        Raises:
            Reject: ``too_large``: longer than ``max_s``.
        """
        most = math.floor(self._settings.max_s * header.rate)
        if header.frames is None:
            return most
        if header.kind == "mp3":
            most += 2 * 1152  # the header counts what the encoder put before and behind the sound
        if header.frames > most:
            raise Reject(
                f"the sound is {header.frames / header.rate:.1f} s long, preprocess.audio.max_s is "
                f"{self._settings.max_s:g}",
                "too_large",
            )
        return header.frames

    def _decoded(self, value: bytes) -> Array:
        """Mono samples at the wanted rate.

        Raises:
            Reject: broken, cut short, empty, not finite, or too long.
        """
        header = self._decoding.header(value)
        self._room(header)
        return self._decoding.mono(value, header, self._most(header))

    def _of_length(self, sound: Array, length: int) -> Array:
        """The sound with zeros behind it up to the model's length.

        Raises:
            Reject: ``invalid``: it is longer, or shorter without ``pad``.
        """
        if len(sound) == length:
            return sound
        if len(sound) > length or not self._settings.pad:
            raise Reject(
                f"{self._length_of(sound)}, the model's input {self.spec.name} takes {length / self._settings.rate} s"
            )
        padded = np.zeros(length, np.float32)
        padded[: len(sound)] = sound
        return padded

    def _shaped(self, pieces: Array) -> Array:
        """(items, samples) in the model's shape and dtype.

        Raises:
            Reject: ``invalid``: the features do not have the model's shape.
        """
        found = self._features(pieces)
        expected = self.spec.item_shape
        if found.ndim != len(expected) + 1 or any(
            wanted not in (None, there) for wanted, there in zip(expected, found.shape[1:], strict=True)
        ):
            text = str(list(expected)).replace("None", "?")
            raise Reject(f"the features have shape {list(found.shape[1:])}, the model's input takes {text}")
        with np.errstate(over="ignore"):
            item = found.astype(self.spec.dtype, copy=False)
        if item.dtype == np.float16 and not np.isfinite(item).all():
            raise Reject(
                f"the sound's numbers are too large for the model's input {self.spec.name}, which is FP16"
            )
        return item

    def _length_of(self, sound: Array) -> str:
        return f"the sound is {len(sound) / self._settings.rate} s long"


def _windows_of(settings: AudioSettings) -> Windows:
    assert settings.window_s is not None
    length = round(settings.window_s * settings.rate)
    hop = length if settings.hop_s is None else round(settings.hop_s * settings.rate)
    return Windows(length, hop, round(settings.context_s * settings.rate), settings.pad)
