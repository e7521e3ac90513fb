"""The base class of every section of settings."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


class Section(BaseModel):
    """A mapping of settings. Unknown keys are refused; an empty section has all defaults; a section is immutable."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        coerce_numbers_to_str=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )

    @model_validator(mode="before")
    @classmethod
    def _nothing_is_all_defaults(cls, data: Any) -> Any:
        return {} if data is None else data


class ContentSettings(Section):
    """Options of one content: how a field of a record becomes a model input."""

    @property
    def one_shape(self) -> bool:
        """Whether every record is made to fit one shape given here, whatever shapes the model would take."""
        return False

    @property
    def sizes(self) -> list[int]:
        """Lengths that the free dimensions of a model's input are known to take, for the made-up items."""
        return []
