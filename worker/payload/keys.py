"""The keys of encrypted payloads: read at start and again when asked, while pool threads use them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
        settings: gives them now.
        reread: gives the section ``encryption`` as the configuration has it at a later time.

    Raises:
        ConfigError: a key cannot be read, or is none.
    """

    def __init__(
        self,
        settings: EncryptionSettings,
        reread: Callable[[], EncryptionSettings | None] | None = None,
    ) -> None:
        self._settings = settings
        self._reread = reread or (lambda: self._settings)
        self.ring = _ring(settings)

    def read_again(self) -> list[str]:
        """Take over the keys as they are configured now; all of them or, where one is wrong, none.

        Returns:
            Their ids.

        Raises:
            ConfigError: a key cannot be read, is none, or the key that encrypted results is not followed by one.
        """
        settings = self._reread()
        if settings is None:
            raise ConfigError("encryption: expected the section to be there still")
        ring = _ring(settings)
        if self.ring.use is not None and ring.use is None:
            raise ConfigError("encryption.use: expected the id of the key that encrypts results")
        self._settings, self.ring = settings, ring
        return sorted(ring.keys)


def _ring(settings: EncryptionSettings) -> Ring:
    return Ring(settings.read(), settings.use)
