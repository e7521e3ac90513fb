"""What a postprocess is told of a record's text: which positions are tokens, and where in the text each stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TextContext:
    """The tokens of one text, as the model got them, without padding."""

    text: str
    """The text; of a pair the first one."""
    tokens: int
    """How many tokens there are."""
    before: bool = False
    """Padding comes before the tokens, not behind them."""
    offsets: Sequence[tuple[int, int]] | None = None
    """Per token where it begins and ends in ``text``, in characters; (0, 0) for a special token. None unless the
    postprocess reads them."""
