"""Model inputs that the settings make the same for every record and that count no items, such as a sampling rate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from worker.batch import Array
from worker.features import Place
from worker.features.constant import Constant, ConstantSettings
from worker.model.signature import TensorSpec
from worker.model.wiring import Constants
from worker.records.rows import full_rank
from worker.settings import LimitsSettings, PipelineSettings


def constants_of(settings: PipelineSettings, limits: LimitsSettings) -> Constants:
    """What the model gets in every run: constants for inputs whose first dimension counts no items.

    Other constants are items like those of every input: one for each record.
    """
    chosen = {
        name: source.content.options
        for name, source in settings.preprocess.inputs.items()
        if name not in settings.model.state
        and source.content is not None
        and isinstance(source.content.options, ConstantSettings)
    }

    def found(inputs: Sequence[TensorSpec]) -> Mapping[str, Array]:
        return {
            spec.name: full_rank(
                spec,
                Constant.make(
                    chosen[spec.name], spec, Place(), f"preprocess.inputs.{spec.name}.constant", limits
                ).constant,
            )
            for spec in inputs
            if spec.name in chosen and (not spec.has_rows or spec.shape[0] == 1)
        }

    return found
