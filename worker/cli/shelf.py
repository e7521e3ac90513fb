"""``produce --store``: the values of records go to a store, and the records name them."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator

from worker.cli.sources import Item
from worker.errors import ConfigError, StartError
from worker.outside import Away
from worker.settings import Settings
from worker.stores import Denied
from worker.stores.references import SHA256, References
from worker.stores.url import BadUrl, Url, parse


class Shelf:
    """A folder of a store that one call of the command fills.

    Args:
        references: of the pipeline that reads the topic.
        folder: the beginning of the objects' URLs.
        header: the header that names an object.
    """

    def __init__(self, references: References, folder: Url, header: str) -> None:
        self._references = references
        self._folder = folder
        self._header = header
        self._run = uuid.uuid4().hex[:8]

    def stored(self, items: Iterator[Item]) -> Iterator[Item]:
        """The items with their values written to the store.

        Raises:
            StartError: the store refuses, or cannot be reached.
        """
        try:
            yield from self._stored(items)
        finally:
            self._references.close()

    def _stored(self, items: Iterator[Item]) -> Iterator[Item]:
        folder, store = self._folder, self._references.store(self._folder)
        for number, item in enumerate(items):
            value = item.value
            url = Url(folder.scheme, folder.host, folder.port, f"{folder.path}{self._run}-{number:06}")
            try:
                store.put(url, value, "application/octet-stream")
            except (Denied, Away) as error:
                raise StartError(f"--store: {url} cannot be written: {error}") from None
            digest = hashlib.sha256(value).hexdigest()
            named = [(self._header, str(url).encode()), (SHA256, digest.encode())]
            yield item._replace(value=b"", headers=[*item.headers, *named])


def shelf_of(folder: str | None, settings: Settings | None, topic: str) -> Shelf | None:
    """Where the values of records go; None without ``--store``.

    Raises:
        ConfigError: no pipeline reads references by a header from the topic, or the folder is not one it may read.
    """
    if folder is None:
        return None
    for pipeline in settings.pipelines.values() if settings is not None else ():
        wanted = pipeline.input
        if topic in wanted.names and wanted.reference and wanted.reference.from_.startswith("header:"):
            references = References(wanted.reference, wanted.max_bytes)
            name = folder if folder.endswith("/") else f"{folder}/"
            try:
                probe = parse(f"{name}x")
            except BadUrl as error:
                raise ConfigError(f"--store: got {folder}: {error}") from None
            if probe not in references.allowed:
                raise ConfigError(f"--store: {folder} is not under input.reference.allow of the pipeline")
            root = Url(probe.scheme, probe.host, probe.port, probe.path[:-1])
            return Shelf(references, root, wanted.reference.from_.removeprefix("header:"))
    raise ConfigError(
        f"--store: expected --config with a pipeline that reads {topic} and has input.reference.from: header:<name>"
    )
