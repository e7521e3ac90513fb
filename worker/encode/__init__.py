"""Output formats: what the model answered -> the bytes of a result; one module per format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from worker.batch import Batch, Columns, Headers, Run
from worker.errors import Rejection
from worker.model.signature import Signature
from worker.registry import OUTPUT_FORMATS

if TYPE_CHECKING:
    from worker.settings import PipelineSettings


class Encoder(Protocol):
    """Turns what the model gave into the bodies of one pipeline's results. Stateless between runs."""

    def encode(self, batch: Batch, run: Run, stamp: Callable[[], None]) -> None:
        """Fill ``batch.outcomes`` (bodies, headers, rejected) for the rows of one run.

        Args:
            stamp: called exactly once, when as much is done as the stage ``encode`` can count; it fills
                ``run.stages_us``, which a JSON body then carries.
        """
        ...

    def error_body(self, columns: Columns, row: int, rejection: Rejection) -> bytes:
        """What a rejected record puts on the output topic where ``output.errors`` is on."""
        ...

    def expired_body(self, columns: Columns, row: int, message: str) -> bytes:
        """What a record past its deadline puts on the output topic where ``limits.expired`` is ``publish``."""
        ...

    def travelling(self, columns: Columns, row: int) -> Headers | None:
        """Headers of an output that no result was made for (a tombstone, an expired record); None where there are none."""
        ...


class OutputFormat(Protocol):
    """An entry of ``worker.registry.OUTPUT_FORMATS``: a class of :class:`Encoder`."""

    predicts: bool
    """Whether its bodies carry what a postprocess made; the others hold the model's outputs as they are."""

    def __call__(
        self,
        settings: PipelineSettings,
        signature: Signature,
        model_name: str,
        model_version: str,
        labels: Sequence[str] | None,
    ) -> Encoder: ...


def encoder(
    settings: PipelineSettings,
    signature: Signature,
    model_name: str,
    model_version: str,
    labels: Sequence[str] | None,
) -> Encoder:
    """The encoder of one pipeline, for its ``output.format`` and ``postprocess``.

    Raises:
        ConfigError: the postprocess or the format cannot go with the model's outputs.
    """
    entry = OUTPUT_FORMATS.entry(settings.output.format)
    return entry(settings, signature, model_name, model_version, labels)
