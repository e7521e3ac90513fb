"""Takes a changed configuration over while the worker runs: all that may change, or nothing where something is wrong.

The file is read, checked, and models that it names are loaded on a thread of its own, while records go on. The loop's
thread then puts everything into force at once, between two slabs.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Protocol

from worker.errors import WorkerError
from worker.filesystem import LIST_MAX, read_bytes
from worker.serving.successor import Refused
from worker.settings import Settings
from worker.settings.changes import Changes, changes
from worker.settings.current import Current
from worker.telemetry import logs

if TYPE_CHECKING:
    from worker.payload.keys import Keys, Ring
    from worker.serving.rollout import Rollout
    from worker.serving.servable import Servable
    from worker.serving.steward import Steward
    from worker.telemetry.configured import Configured

CLOSE_S = 5.0

log = logs.get("worker")


class Models(Protocol):
    """Who loads models; see :class:`worker.serving.loader.Loader`."""

    def made_anew(self, settings: Settings, pipeline: str) -> Servable: ...

    def follow(self, settings: Settings) -> None: ...


@dataclass(frozen=True, slots=True)
class _Ready:
    """A configuration that was read again, and what becomes of it."""

    result: str
    current: Current | None = None
    changes: Changes | None = None
    servables: Mapping[str, Servable] = field(default_factory=dict)
    ring: Ring | None = None


class Reloader:
    """See the module.

    Args:
        now: the configuration in force at the start.
        read: reads it as it is at a later time.
        models: loads what is made anew.
        rollouts: by pipeline.
        follow: puts limits into force; on the loop's thread.
        configured: told what is in force.
        keys: of encrypted payloads; None without any.
        steward: of rollouts; None without a control topic.
    """

    def __init__(
        self,
        now: Current,
        read: Callable[[], Current],
        models: Models,
        rollouts: Mapping[str, Rollout],
        follow: Callable[[Settings], None],
        configured: Configured,
        keys: Keys | None = None,
        steward: Steward | None = None,
    ) -> None:
        self._settings = now.settings
        self._read = read
        self._models = models
        self._rollouts = rollouts
        self._follow = follow
        self._configured = configured
        self._keys = keys
        self._steward = steward
        self._marks = {name: _mark(now.settings, name) for name in now.settings.pipelines}
        self._ready: deque[_Ready] = deque()
        self._asked = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="configuration", daemon=True)
        configured.digest = now.digest

    # -- for any thread --------------------------------------------------------------------------------------

    def ask(self) -> None:
        """Read the configuration again soon; returns at once."""
        self._asked.set()

    def start(self) -> None:
        """Answer from now on; what was asked for before is done now."""
        self._thread.start()

    def close(self) -> None:
        """Answer no more. A load in progress is left behind with the process."""
        self._closing = True
        self._asked.set()
        if self._thread.is_alive():
            self._thread.join(CLOSE_S)

    # -- on the thread of its own ------------------------------------------------------------------------------

    def look(self) -> None:
        """Read the configuration again, check it, and load what it needs."""
        try:
            ready = self._prepare()
        except (WorkerError, Refused) as error:
            log.error("configuration refused, the old one goes on", why=str(error))
            ready = _Ready("refused")
        self._ready.append(ready)

    def _run(self) -> None:
        while True:
            self._asked.wait()
            self._asked.clear()
            if self._closing:
                return
            try:
                self.look()
            except Exception as error:  # records go on, and the next change is looked at
                log.error("bug", exc_info=error)
                self._ready.append(_Ready("refused"))

    def _prepare(self) -> _Ready:
        current = self._read()
        logs.hide(current.settings.secrets())
        found = changes(self._settings, current.settings)
        marks = {name: _mark(found.settings, name) for name in found.settings.pipelines}
        touched = [name for name, mark in marks.items() if mark != self._marks[name]]
        ring = self._keys.follow(found.settings.encryption) if self._keys is not None else None
        servables: dict[str, Servable] = {}
        try:
            for name in dict.fromkeys((*found.models, *touched)):
                servables[name] = self._made_anew(found.settings, name)
        except BaseException:
            for servable in servables.values():
                servable.close()
            raise
        self._settings, self._marks = found.settings, marks
        result = "changed" if found.live or touched else "unchanged"
        return _Ready(result, current, found, servables, ring)

    def _made_anew(self, settings: Settings, pipeline: str) -> Servable:
        try:
            return self._models.made_anew(settings, pipeline)
        except Refused as error:
            if len(settings.pipelines) == 1:
                raise
            raise Refused(error.reason, f"{settings.key(pipeline, 'model')}: {error}") from None

    # -- on the loop's thread ----------------------------------------------------------------------------------

    def turn(self) -> None:
        """Put into force what is ready."""
        while self._ready:
            ready = self._ready.popleft()
            self._configured.reloads[ready.result] += 1
            if ready.current is not None and ready.changes is not None:
                self._take_over(ready, ready.current, ready.changes)

    def _take_over(self, ready: _Ready, current: Current, found: Changes) -> None:
        if ready.result == "changed":
            logs.show_from(found.settings.log.level)
            self._follow(found.settings)
            self._models.follow(found.settings)
            if self._steward is not None:
                self._steward.follow(found.settings)
        for name, servable in ready.servables.items():
            self._rollouts[name].offer(servable)
        if self._keys is not None and ready.ring is not None:
            self._keys.ring = ready.ring
            log.info("keys read again", keys=sorted(ready.ring.keys), use=ready.ring.use)
        self._configured.digest, self._configured.restart = current.digest, found.restart
        _tell(ready, current, found)


def _tell(ready: _Ready, current: Current, found: Changes) -> None:
    """What changed, and what needs a restart, each in one line."""
    if ready.result == "changed":
        more: dict[str, Any] = {"models": [*ready.servables]} if ready.servables else {}
        log.info("configuration changed", digest=current.digest, changed=dict(found.live), **more)
    else:
        log.info("configuration read again, nothing changed", digest=current.digest)
    if found.restart:
        log.warning("configuration needs a restart for some changes", settings=[*found.restart])


def _mark(settings: Settings, pipeline: str) -> tuple[Any, ...]:
    """Changes when the files change of which a pipeline's answers are made: its model and its labels. None of a repository's."""
    wanted = settings.pipelines[pipeline]
    if wanted.steps is not None or wanted.model.repository is not None:
        return ()
    try:
        found = wanted.model.file.stat()
        labels = read_bytes(wanted.label_file, LIST_MAX) if wanted.label_file is not None else b""
    except OSError:
        return (None,)
    return found.st_mtime_ns, found.st_size, sha256(labels).hexdigest()
