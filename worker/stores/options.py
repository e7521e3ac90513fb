"""What every kind of store is told: time-outs, the allow list, credentials."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from worker.stores.allow import Allowed

_PUBLIC = frozenset(
    {
        "endpoint",
        "endpoint_url",
        "region",
        "default_region",
        "account_name",
        "skip_signature",
        "virtual_hosted_style_request",
        "imdsv1_fallback",
        "ca_file",
        "use_emulator",
    }
)
"""Options that may be shown. Of every other one only the name is."""


@dataclass(frozen=True)
class StoreOptions:
    """See the module."""

    allowed: Allowed
    timeout_s: float = 10.0
    options: Mapping[str, str | Mapping[str, str]] = field(default_factory=dict)
    """As configured: by name for the one kind of store in use, or by scheme and name."""

    def of(self, scheme: str) -> dict[str, str]:
        """The options of one kind of store."""
        found: dict[str, str] = {}
        for name, value in self.options.items():
            if isinstance(value, Mapping):
                if name == scheme:
                    found |= value
            elif name != "ca_file":
                found[name] = value
        return found

    @property
    def ca_file(self) -> str | None:
        """Certificates to trust beside those of the system's own."""
        value = self.options.get("ca_file")
        return value if isinstance(value, str) else None


def is_public(name: str) -> bool:
    """Whether the value of an option may be shown."""
    return name.lower().removeprefix("aws_").removeprefix("azure_storage_").removeprefix("google_") in _PUBLIC
