"""Where the windows of a sound are, and the windows themselves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from worker.batch import Array


@dataclass(frozen=True)
class Windows:
    """Equal pieces of a sound, in samples.

    Window ``i`` covers samples ``i * hop`` to ``i * hop + length``. In front of it stand the ``context`` samples before
    its start; before the sound there are zeros.
    """

    length: int
    hop: int
    context: int
    pad: bool
    """Whether a last piece shorter than a window counts, with zeros behind it."""

    @property
    def size(self) -> int:
        """Samples of one item: the context and the window."""
        return self.context + self.length

    def count(self, samples: int) -> int:
        """How many windows a sound of so many samples has."""
        if samples <= 0:
            return 0
        if self.pad:
            return 1 + max(0, -(-(samples - self.length) // self.hop))
        return max(0, (samples - self.length) // self.hop + 1)

    def cut(self, sound: Array) -> Array:
        """The windows of a sound: (windows, size), C order."""
        count = self.count(len(sound))
        end = (count - 1) * self.hop + self.length
        whole = np.zeros(self.context + end, sound.dtype)
        used = min(end, len(sound))
        whole[self.context : self.context + used] = sound[:used]
        if not self.context and self.hop == self.length:
            return whole.reshape(count, self.length)
        pieces = np.lib.stride_tricks.sliding_window_view(whole, self.size)[:: self.hop]
        return np.ascontiguousarray(pieces)

    def marks(self, samples: int, rate: int) -> dict[str, Array]:
        """``start_s`` and ``end_s`` of each window, without its context; no end is behind that of the sound."""
        starts = np.arange(self.count(samples), dtype=np.int64) * self.hop
        ends = np.minimum(starts + self.length, samples)
        return {"start_s": starts / rate, "end_s": ends / rate}
