"""Results of several steps as JSON: ``prediction`` holds one prediction for each step, and ``steps_ms`` stands before the latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import orjson

from worker.batch import Batch, Run
from worker.encode.json import JsonBodies

if TYPE_CHECKING:
    from worker.serving.envelope import Envelope
    from worker.settings import PipelineSettings


class StepsEncoder(JsonBodies):
    """Writes the predictions that a cascade has made, see :attr:`worker.batch.Run.predictions`.

    Args:
        name: of the model in results, and its version.
        models: per step ``name@version`` of its model.
        takes_items: custom code of a step reads more of a record than the outputs.
    """

    def __init__(
        self,
        settings: PipelineSettings,
        name: str,
        version: str,
        models: Mapping[str, str],
        envelope: Envelope,
        takes_items: bool = False,
    ) -> None:
        super().__init__(settings, {"name": name, "version": version, "steps": dict(models)}, envelope)
        self.takes_items = takes_items

    def predict(self, batch: Batch, run: Run) -> Sequence[bytes]:
        """See :meth:`worker.encode.Encoder.predict`."""
        assert run.predictions is not None
        return run.predictions

    def _further(self, run: Run) -> bytes:
        if run.steps is None:  # answered from memory: no step ran
            return super()._further(run)
        parts = {name: part.us / 1000 for name, part in run.steps.items()}
        return super()._further(run) + b'"steps_ms":%b,' % orjson.dumps(parts)
