"""The keys of encrypted payloads: read at start and again when asked, while pool threads use them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from worker.errors import ConfigError

if TYPE_CHECKING:
    from worker.settings.encryption import EncryptionSettings


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Ring:
    """The keys of one moment. A new one takes its place as a whole."""

    keys: Mapping[str, bytes]
    use: str | None
    """Id of the key that encrypts."""


class Keys:
    """The keys that count now.

    Args:
        settings: gives them.

    Raises:
        ConfigError: a key cannot be read, or is none.
    """

    def __init__(self, settings: EncryptionSettings) -> None:
        self.ring = Ring(settings.read(), settings.use)

    def follow(self, settings: EncryptionSettings | None) -> Ring:
        """The keys of other settings, those in files read now. They count once they are :attr:`ring`.

        Raises:
            ConfigError: a key cannot be read, is none, or the key that encrypted results is not followed by one.
        """
        if settings is None:
            raise ConfigError("encryption: expected the section to be there still")
        if self.ring.use is not None and settings.use is None:
            raise ConfigError("encryption.use: expected the id of the key that encrypts results")
        return Ring(settings.read(), settings.use)
