"""Settings of labels that come later than results, and of what is said of both together."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from worker.settings.kinds import HostAndPort, Positive, Text, Topic
from worker.settings.section import Section

HEADER = "header:"


def _names_a_header(text: str) -> str:
    if text.startswith(HEADER) and not text.removeprefix(HEADER).strip():
        raise ValueError("expected key, header:<name>, or a field's name or dotted path")
    return text


class LabelsSettings(Section):
    """Labels, and how each finds its result."""

    topic: Topic
    """Topic of labels: JSON objects. It has as many partitions as the output topics, and a label is in the partition of its result; the same key puts it there."""
    id: Annotated[Text, AfterValidator(_names_a_header)] = "key"
    """What says which result a label belongs to. key: the label's key is the result's key (the result's `id`, if the result has no key). `header:<name>`, or a field's name or dotted path: what the label has there is the result's `id`."""
    label: Text = "label"
    """The label's field with what is true: a class, a number, or a list of boxes as in results; a name or dotted path."""
    wait_s: Annotated[float, Field(gt=0, le=100_000_000)] = 86_400.0
    """How far a label's timestamp may be from its result's, in either direction. A result without a label until then counts as unlabelled."""
    max_pending: Positive = 1_000_000
    """Most results and labels of one process that wait; beyond it the oldest are given up."""
    window_s: Annotated[float, Field(ge=1, le=100_000_000)] = 600.0
    """Length of a window; a result counts in the window of its own timestamp, whenever its label comes."""
    http: HostAndPort | None = None
    """host:port for the metrics of `streaminfer score`; default: `metrics.http`, or a free port if that is in use."""
