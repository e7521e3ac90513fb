"""Output formats: what the model answered -> the bytes of a result; one module for each format.

An encoder works in two steps, so that something may stand between them: ``predict`` makes the part of each answer that
depends on the model alone (its *fragment*), ``bodies`` puts around it what differs from record to record.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from worker.batch import Batch, Run
from worker.model.signature import Signature
from worker.registry import OUTPUT_FORMATS

if TYPE_CHECKING:
    from worker.serving.envelope import Envelope
    from worker.settings import PipelineSettings


class Encoder(Protocol):
    """Turns the model's answers into the bodies of one servable's results. It keeps nothing between runs."""

    def predict(self, batch: Batch, run: Run) -> Sequence[Any]:
        """The fragments of one run: one for each of its rows, in order.

        A fragment is opaque to everybody but this encoder, except that a row without an answer has a
        :class:`worker.errors.Rejection`, or a :class:`worker.errors.Postponed` where it must be tried again. Never raises for what the model answered.
        """
        ...

    def bodies(self, batch: Batch, run: Run, fragments: Sequence[Any]) -> None:
        """Fill ``batch.outcomes`` (bodies, headers, rejected) for the rows of one run.

        Args:
            run: its ``stages_us`` are filled; a JSON body carries them.
            fragments: of :meth:`predict`, for the same rows.
        """
        ...


class OutputFormat(Protocol):
    """An entry of ``worker.registry.OUTPUT_FORMATS``: a class of :class:`Encoder`."""

    predicts: bool
    """Whether its bodies carry what a postprocess made; the others hold the model's outputs as they are."""
    expires_as_error: bool
    """Whether an expired record that is published is ``{"id", "error"}``, as a refused one is, instead of a JSON result."""
    content_type: str
    """MIME type of its bodies; a body that is of another one has it in a header."""
    reserved: frozenset[str]
    """Names (lower case) of headers that this format writes itself or that describe the input's body."""
    names_source: bool
    """The bodies do not say which record they answer: each output needs a header that does."""

    def __call__(
        self,
        settings: PipelineSettings,
        signature: Signature,
        model_name: str,
        model_version: str,
        labels: Sequence[str] | None,
        envelope: Envelope,
    ) -> Encoder: ...


def encoder(
    settings: PipelineSettings,
    signature: Signature,
    model_name: str,
    model_version: str,
    labels: Sequence[str] | None,
    envelope: Envelope,
) -> Encoder:
    """The encoder of one servable, for its ``output.format`` and ``postprocess``.

    Args:
        envelope: of the route: ids and headers of the answers.

    Raises:
        ConfigError: the postprocess or the format does not fit the model's outputs.
    """
    entry = OUTPUT_FORMATS.entry(settings.output.format)
    return entry(settings, signature, model_name, model_version, labels, envelope)
