"""How much random testing a run does: `scripts/test --all` sets THOROUGH and does all of it."""

from __future__ import annotations

import os


def cases(most: int) -> int:
    """How many random cases to try: `most` with THOROUGH set, a third of them without.

    Hypothesis draws other cases in each run, so what a short run misses, one of the next finds.
    """
    return most if os.environ.get("THOROUGH") else max(most // 3, 1)
