"""What every section of settings is, whoever owns it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


class Section(BaseModel):
    """A mapping of settings: no other keys, nothing there = all defaults, read-only once made."""

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
