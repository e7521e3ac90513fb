"""Static INT8 of the networks that pruning left."""

from __future__ import annotations

import copy
from collections.abc import Iterator

from worker.optimize.methods import DoesNotApply, Made, Work
from worker.optimize.static import calibrate
from worker.quantize.convert import name_nodes


def make(work: Work) -> Iterator[Made]:
    """One model for each that pruning made."""
    if not work.made.get("prune"):
        raise DoesNotApply(
            "there is no pruned network" if "prune" in work.made else "it needs prune among --methods"
        )
    for pruned in work.made["prune"]:
        model = copy.deepcopy(pruned.model)
        name_nodes(model.graph)
        made = calibrate(model, work.feeds(), work.folder).quantized()
        yield Made(f"{pruned.name} + int8", made)
