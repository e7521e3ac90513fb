"""What the predictions of a postprocess hold, for settings that name a member of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from worker.registry import POSTPROCESSES
from worker.settings.choice import Chosen

if TYPE_CHECKING:
    from worker.settings.sections import StepSettings

Kind = Literal["text", "number", "truth", "list", "object", "any"]
Members = Mapping[str, Kind]
"""Name -> what its value is. An entry of ``worker.registry.POSTPROCESSES`` has it as ``members``, or makes it of its options by
``members_of``; an entry without both, such as custom code, may give anything."""
BOXES = ("boxes", "regions")
"""Members that are lists of boxes of a picture."""


def members_of(chosen: Chosen) -> Members | None:
    """The members of the predictions that a postprocess makes; None if nobody can say before it runs."""
    entry: Any = POSTPROCESSES.entry(chosen.name)
    if (made := getattr(entry, "members_of", None)) is not None:
        found: Members = made(chosen.options)
        return found
    return getattr(entry, "members", None)


def members_of_step(step: StepSettings) -> Members | None:
    """The same for a step; custom model code without a postprocess may give anything."""
    if step.model.code is not None and step.postprocess.name == "raw":
        return None
    return members_of(step.postprocess)


def boxes_of(chosen: Chosen) -> str | None:
    """The member that holds boxes; None if the predictions have no such member."""
    members = members_of(chosen)
    if members is None:
        return "boxes"
    return next((name for name in BOXES if name in members), None)
