"""Stores whose objects are listed, below a beginning that the operator names: where models come from.

What records name goes through :mod:`worker.stores.objects`, which follows no redirect. Here nobody but the operator says where to
go, so obstore transfers the objects itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, Protocol

from worker.outside import Away
from worker.stores import Denied
from worker.stores.allow import Allowed
from worker.stores.objects import S3, Azure, Buckets, GoogleCloud
from worker.stores.options import StoreOptions
from worker.stores.url import Url

PIECE_BYTES = 8 << 20
"""An object is read in pieces of this size, each by a request of its own: a time-out says nothing of large objects then."""
TIMEOUT_S = 30.0
MOST_OBJECTS = 100_000
"""More objects below one beginning are not listed."""


Options = Mapping[str, str | Mapping[str, str]]


class Changed(Exception):
    """The object is another one than when it was listed."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One object of a listing."""

    name: str
    """Behind the beginning."""
    size: int
    stamp: str
    """Another one when the content changes."""


class Tree(Protocol):
    """The objects below one beginning.

    Every method raises :class:`worker.stores.Denied` where the store refuses, and :class:`worker.outside.Away` where it cannot be
    reached.
    """

    def entries(self) -> list[Entry]:
        """Every object below the beginning; none where there is no such folder."""

    def read(self, name: str, most: int) -> bytes:
        """A small object; one of more than ``most`` bytes comes back cut.

        Raises:
            Missing: it is not there.
        """

    def pieces(self, entry: Entry) -> Iterator[bytes]:
        """A large object.

        Raises:
            Missing, Changed: it is not the one that was listed.
        """


class TreeEntry(Protocol):
    """An entry of the registry: a class that is made from a beginning and the options of its store."""

    def __call__(self, root: Url, options: Options) -> Tree:
        """Make the client.

        Raises:
            ConfigError: a library is not installed, or an option does not fit.
        """


class BucketTree(Buckets):
    """Objects of S3, Google Cloud Storage or Azure.

    Args:
        root: the beginning; its path ends with a slash.
        options: credentials and the like, by the names of obstore's configuration.
    """

    def __init__(self, root: Url, options: Options) -> None:
        allowed = Allowed([str(root)])
        super().__init__(StoreOptions(allowed, TIMEOUT_S, options))
        self._root = root

    def entries(self) -> list[Entry]:
        prefix = self._root.key
        try:
            chunks = self.obstore.list(self.bucket(self._root.host), prefix or None, chunk_size=1000)
            metas = [*islice((meta for chunk in chunks for meta in chunk), MOST_OBJECTS + 1)]
        except self.errors.InvalidPathError:
            raise Denied(
                f"an object below {self._root} has a name with an empty part, . or .., which no file can have"
            ) from None
        except Exception as error:
            raise self.translated(error) from None
        if len(metas) > MOST_OBJECTS:
            raise Denied(f"more than {MOST_OBJECTS} objects lie below {self._root}")
        return [
            Entry(meta["path"][len(prefix) :], int(meta["size"]), f"{meta['e_tag'] or meta['last_modified']}")
            for meta in metas
            if meta["path"].startswith(prefix)
        ]

    def read(self, name: str, most: int) -> bytes:
        try:
            found = self.obstore.get(self.bucket(self._root.host), self._root.key + name)
            if found.meta["size"] == 0:
                return b""
            return bytes(next(iter(found.stream(min_chunk_size=most))))[:most]
        except Exception as error:
            raise self.translated(error) from None

    def pieces(self, entry: Entry) -> Iterator[bytes]:
        options = {"if_match": entry.stamp} if entry.stamp.startswith('"') else {}
        for start in range(0, entry.size, PIECE_BYTES):
            stop = min(start + PIECE_BYTES, entry.size)
            try:
                found = self.obstore.get(
                    self.bucket(self._root.host),
                    self._root.key + entry.name,
                    options={**options, "range": (start, stop)},
                )
                if found.meta["size"] != entry.size:
                    raise Changed
                piece = bytes(found.bytes())
            except Changed:
                raise
            except self.errors.PreconditionError:
                raise Changed from None
            except Exception as error:
                raise self.translated(error) from None
            if len(piece) != stop - start:
                raise Away("the transfer broke off")
            yield piece


class S3Tree(BucketTree):
    """Amazon S3 and stores that speak its language."""

    scheme: ClassVar[str] = S3.scheme
    client: ClassVar[str] = S3.client


class GoogleTree(BucketTree):
    """Google Cloud Storage."""

    scheme: ClassVar[str] = GoogleCloud.scheme
    client: ClassVar[str] = GoogleCloud.client


class AzureTree(BucketTree):
    """Azure Blob Storage."""

    scheme: ClassVar[str] = Azure.scheme
    client: ClassVar[str] = Azure.client
