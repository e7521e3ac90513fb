"""``output.offload``: a large result goes to a store, and a small one that names it to the output topic."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import orjson

from worker.batch import Aside, Batch, Run
from worker.outside import Away
from worker.registry import FETCHERS
from worker.stores import Denied, Store
from worker.stores.allow import Allowed
from worker.stores.options import StoreOptions
from worker.stores.url import Url

if TYPE_CHECKING:
    from worker.serving.envelope import Envelope
    from worker.settings.stores import OffloadSettings

_KINDS = {"json": ("json", "application/json"), "npy": ("npy", "application/octet-stream")}


class Offload:
    """See the module. Pool threads and I/O threads use it.

    Args:
        format_: ``output.format``.
        envelope: of the route: ids of the answers; None where nothing is answered.

    Raises:
        ConfigError: the store's client is not installed, or its options do not fit.
    """

    def __init__(self, settings: OffloadSettings, format_: str, envelope: Envelope | None = None) -> None:
        allowed = Allowed([settings.to])
        self.root = allowed.roots[0]
        self.concurrency = settings.concurrency
        options = StoreOptions(allowed, settings.timeout_s, settings.options)
        self.store: Store = FETCHERS.entry(self.root.scheme)(options)
        self._over_bytes = settings.over_bytes
        self._ending, self._content_type = _KINDS.get(format_, ("bin", "application/octet-stream"))
        self._envelope = envelope

    def put_aside(self, batch: Batch) -> None:
        """Take the large results of a finished batch out of its outcomes, and put small ones in their place."""
        outcomes = batch.outcomes
        assert outcomes is not None
        for run in batch.runs:
            for index, row in enumerate(run.rows):
                body = outcomes.bodies[row]
                if body is not None and len(body) > self._over_bytes and row not in outcomes.rejected:
                    outcomes.bodies[row] = self._small(batch, run, index, row, body)

    def _small(self, batch: Batch, run: Run, index: int, row: int, body: bytes) -> bytes:
        (topic, number), offset = batch.columns.partitions[row], batch.columns.offsets[row]
        digest = hashlib.sha256(body).hexdigest()
        # One record has one name. The digest keeps a result true that is on the topic already, should the record be
        # answered again: its latencies differ, and the object is another one.
        name = f"{topic}/{number}/{offset}-{digest[:16]}.{self._ending}"
        url = Url(self.root.scheme, self.root.host, self.root.port, self.root.path + name)
        batch.aside.append(Aside(str(url), f"store {url.place}", len(body), partial(self._put, url, body)))
        own = self._envelope.ids(batch, [row]) if self._envelope is not None else {}
        stages = {
            stage: round(int(us[index] if isinstance(us, np.ndarray) else us) / 1000, 3)
            for stage, us in run.stages_us.items()
        }
        return orjson.dumps(
            {
                "id": own.get(row, f"{topic}/{number}/{offset}"),
                "source": {
                    "topic": topic,
                    "partition": number,
                    "offset": offset,
                    "timestamp_ms": batch.columns.timestamps_ms[row],
                },
                "model": {"name": batch.servable.model_name, "version": batch.servable.model_version},
                "dataref": str(url),
                "bytes": len(body),
                "sha256": digest,
                "latency_ms": stages,
            }
        )

    def _put(self, url: Url, body: bytes) -> None:
        try:
            self.store.put(url, body, self._content_type)
        except Denied as error:
            # No record is to blame: somebody has to give the worker the right to write.
            raise Away(str(error)) from None
