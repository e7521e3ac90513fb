"""Models on a GPU with TensorRT, which builds an engine of the model first and keeps it for the next start."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import structlog

from worker.errors import StartError
from worker.model.backend import Opened, Opening
from worker.model.gpu import Cuda, GpuSession, OpenedOnGpu
from worker.model.opening import described_inputs, open_session
from worker.model.providers import Engines, engine_cache, provider_options, shape_profile

log = structlog.get_logger()

_PROFILE_REFUSED = "explicitly set profiles"
"""TensorRT takes only parts of the model, and asks for the shapes between them. Without any profile it finds out shapes
as they come. INT8 with zero points, as ``quantize`` writes it for processors, is such a model."""


class TensorRt(Cuda):
    """Sessions of the TensorRT provider; what it leaves over runs on the next provider."""

    name = "tensorrt"

    def open(self, opening: Opening) -> Opened:
        driver = self._driver(opening)
        inputs = described_inputs(opening.runtime, opening.path)
        engines = Engines(engine_cache(opening.sha256, driver.label), shape_profile(inputs, opening.max_size))
        one_shape = bool(inputs) and not any(None in spec.shape for spec in inputs)
        if not any(engines.cache.glob("*.engine")):
            log.info(
                "TensorRT builds its engines, which can take minutes",
                model=opening.path.stem,
                kept=str(engines.cache),
            )

        def open_with(engines: Engines, stream: int) -> Any:
            options = provider_options(opening.providers, stream, engines, opening.device)
            return open_session(opening.runtime, opening.path, opening.providers, options)

        def open_on(stream: int) -> Any:
            nonlocal engines
            try:
                return open_with(engines, stream)
            except StartError as error:
                if not engines.profile or _PROFILE_REFUSED not in str(error):
                    raise
            engines = replace(engines, profile={})
            return open_with(engines, stream)

        # A run that meets a size beyond the engine's builds another engine, and drops the one that may still compute.
        return OpenedOnGpu(GpuSession(opening, driver, open_on), lambda: bool(engines.profile) or one_shape)

    def refuses_the_model(self, refusal: str) -> bool:
        """An engine that cannot be built is no fault of the item."""
        return "TensorRT" in refusal
