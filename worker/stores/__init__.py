"""Payloads that lie in a store and not in the record: who keeps them, by the scheme of their URL."""

from __future__ import annotations

from typing import Protocol

from worker.stores.options import StoreOptions
from worker.stores.url import Url


class Missing(Exception):
    """The store has no object of this name."""


class Denied(Exception):
    """The store has answered, and does not give the object.

    Args:
        message: why, for people, without secrets.
    """


class Opened(Protocol):
    """An object whose size is known, or bounded, and of which nothing has been read."""

    @property
    def size(self) -> int | None:
        """Bytes of the object; None where the store does not say."""

    def read(self, most: int) -> bytes:
        """The whole object. Called once.

        Args:
            most: read no more than this; a longer object comes back cut, so that the caller sees that it is too long.

        Raises:
            Away: the transfer broke off.
        """

    def close(self) -> None:
        """Give it up unread. Quick, from any thread, and harmless after :meth:`read`."""


class Store(Protocol):
    """One kind of store. Several threads at once."""

    def open(self, url: Url) -> Opened:
        """Ask for an object.

        Raises:
            Missing: it is not there.
            Denied: the store refuses.
            Away: the store cannot be reached, or is not well.
            Reject: the URL leads where it must not (``reference_refused``).
        """

    def size(self, url: Url) -> int | None:
        """Bytes of an object, without its content; raises as :meth:`open`."""

    def put(self, url: Url, data: bytes, content_type: str) -> None:
        """Write an object, whole or not at all, over one that may be there.

        Raises:
            Denied: the store refuses.
            Away: the store cannot be reached, or is not well.
        """

    def close(self) -> None:
        """Close the connections that are kept."""


class FetcherEntry(Protocol):
    """An entry of the registry: a class that is made from what every store is told."""

    def __call__(self, options: StoreOptions) -> Store:
        """Make the client of one kind of store.

        Raises:
            ConfigError: a library is not installed, or an option does not fit.
        """
