"""Sound as a content: the settings and the entry; soundfile and soxr are imported only if a pipeline has sound."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from worker.errors import ConfigError
from worker.features import Place
from worker.model.signature import TensorSpec
from worker.records.paths import ABSENT
from worker.settings import LimitsSettings
from worker.settings.kinds import Seconds, Text, from_file
from worker.settings.section import ContentSettings, Section

if TYPE_CHECKING:
    from worker.features.sound_file import SoundFeature
    from worker.settings import PipelineSettings

Rate = Annotated[int, Field(ge=1_000, le=768_000)]
Length = Annotated[int, Field(ge=2, le=1 << 16)]


def _graph_file(path: Path) -> Path:
    if path.suffix != ".onnx":
        raise ValueError("expected whisper80, whisper128, kaldi80, a file *.onnx")
    return path


class MelSettings(Section):
    """Log-mel features as librosa's ``melspectrogram`` (power 2, Hann window, centred frames, zeros beyond the ends)."""

    n_fft: Length = 400
    """Samples of one frame and of its Fourier transform."""
    hop: Length = 160
    """Samples from the start of one frame to the next."""
    bins: Annotated[int, Field(ge=1, le=1024)] = 80
    """Mel filters."""
    f_min: Annotated[float, Field(ge=0)] = 0.0
    """Hertz at which the lowest filter begins."""
    f_max: Annotated[float, Field(gt=0)] | None = None
    """Hertz at which the highest filter ends; default: half the rate."""
    log: Literal["natural", "log10", "db", "none"] = "natural"
    """The logarithm of the power, at least 1e-10; db: 10 log10, at most 80 below the loudest of the item, as `power_to_db`."""
    norm: Literal["slaney", "none"] = "slaney"
    """slaney: filters of equal area; none: of equal height."""
    scale: Literal["slaney", "htk"] = "slaney"
    """The mel scale."""


Features = (
    Literal["whisper80", "whisper128", "kaldi80"]
    | MelSettings
    | Annotated[Path, AfterValidator(_graph_file), AfterValidator(from_file)]
    | None
)


class AudioSettings(ContentSettings):
    """From a sound file to mono samples of one rate, whole or in windows."""

    from_: Text = Field(default="value", alias="from")
    """`value` for the record's value, or the name or dotted path of the field that holds the sound."""
    rate: Rate = 16_000
    """Samples per second that the model wants; other sounds are resampled."""
    window_s: Seconds | None = None
    """Seconds of one item: a record has as many items as windows, each with a prediction of its own; none: one item."""
    hop_s: Seconds | None = None
    """Seconds from the start of one window to the next; default: window_s."""
    context_s: Annotated[float, Field(ge=0)] = 0.0
    """Seconds before each window that stand in front of it in the same item; zeros before the sound."""
    pad: bool = True
    """Whether a shorter end of the sound counts as a window, with zeros behind it."""
    max_s: Seconds = 600.0
    """A longer sound is a dead letter, undecoded."""
    features: Features = None
    """What the model gets instead of samples: log-mel as Whisper or Kaldi compute it, as librosa with these parameters, or the output of an .onnx file of one's own that is run before the model."""

    @model_validator(mode="after")
    def _windows_first(self) -> AudioSettings:
        if self.window_s is None and (self.hop_s is not None or self.context_s):
            raise ValueError("expected window_s beside hop_s and context_s")
        for name, seconds in (("window_s", self.window_s), ("hop_s", self.hop_s)):
            if seconds is not None and round(seconds * self.rate) < 1:
                raise ValueError(f"expected {name} of at least one sample: {1 / self.rate} s")
        if isinstance(self.features, MelSettings):
            top = self.rate / 2
            if not self.features.f_min < (self.features.f_max or top) <= top:
                raise ValueError(f"expected f_min below f_max, and f_max at most half the rate: {top:g}")
        return self

    @property
    def item_samples(self) -> int | None:
        """Samples of one item; None where that is the whole sound."""
        if self.window_s is None:
            return None
        return round(self.window_s * self.rate) + round(self.context_s * self.rate)

    @property
    def one_shape(self) -> bool:
        return self.window_s is not None

    @property
    def sizes(self) -> list[int]:
        """Lengths that a free dimension of the model's input is known to have."""
        if self.features is None:
            return [] if self.item_samples is None else [self.item_samples]
        from worker.features.sound_features import frames_of

        return frames_of(self)


class Sound:
    """Sound: mono samples of one rate from a WAV, FLAC, OGG or MP3 file; in a JSON field as base64 text."""

    settings: ClassVar[type[ContentSettings]] = AudioSettings

    @staticmethod
    def fills(
        options: AudioSettings, inputs: Sequence[TensorSpec], named: TensorSpec | None, key: str
    ) -> list[TensorSpec]:
        """See :class:`worker.features.WideContent`: the input of the sound, and that of its length if the model has one."""
        sounds = [spec for spec in inputs if spec.dtype.kind == "f" and spec.item_shape]
        if named is None and len(inputs) > 1 and len(sounds) != 1:
            names = ", ".join(spec.name for spec in inputs)
            raise ConfigError(
                f"{key}: the model has {len(inputs)} inputs ({names}); expected preprocess.inputs to say where each comes from"
            )
        first = named or (inputs[0] if len(inputs) == 1 else sounds[0])
        lengths = [spec for spec in inputs if _is_length(spec) and spec is not first]
        return [first, *lengths[:1]]

    @staticmethod
    def make_wide(
        options: AudioSettings,
        specs: Sequence[TensorSpec],
        places: Callable[[str], Place],
        key: str,
        settings: PipelineSettings,
        limits: LimitsSettings,
    ) -> SoundFeature:
        """See :class:`worker.features.WideContent`."""
        from worker.features.sound_file import SoundFeature

        place = places(options.from_)
        if place.default is not ABSENT:
            raise ConfigError(f"{key.rpartition('.')[0]}.default: does not go with audio")
        return SoundFeature(options, specs[0], place, key, limits, specs[1] if len(specs) > 1 else None)


def _is_length(spec: TensorSpec) -> bool:
    """Whether a model input is the number of samples or frames of an item: one integer, called a length."""
    return spec.dtype.kind in "iu" and spec.item_shape in ((), (1,)) and "len" in spec.name.lower()
