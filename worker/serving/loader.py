"""New versions of models: looked for, loaded beside those that answer, checked, and offered. On a thread of its own.

A version that cannot answer the pipeline is refused: one log line, a counted reason, and the one that answers goes on. It
is tried again only when its files have changed, so what was refused is not loaded every few seconds.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import structlog

from worker.errors import StartError, WorkerError
from worker.model.headroom import memory_left, resident_bytes
from worker.model.repository import Candidate, Damaged, Fingerprint, RepositoryAway, Versions
from worker.serving.growth import Growth
from worker.serving.moves import Meant
from worker.serving.ordered import Delivery, Ordered
from worker.serving.rollout import Rollout
from worker.serving.servable import Model, Servable
from worker.serving.successor import Reason, Refused, check_memory, successor
from worker.serving.versions import at, check_signed, repository_of, wanted
from worker.settings import Settings, memory_bound

CLOSE_S = 5.0
LOOK_S = 0.2
"""How often the loader sees whether a repository is due, or a retired model can be closed."""
REST_S = 60.0
"""After a version's files could not be had for another reason than a store that is away."""
NICE = 10
"""Added to the loader thread's nice value: loading gives way to answering."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Swap:
    """Another version answers a pipeline from now on."""

    pipeline: str
    servable: Servable


@dataclass(frozen=True, slots=True)
class Refusal:
    """A version was refused."""

    pipeline: str
    reason: Reason


@dataclass(frozen=True, slots=True)
class Overgrown:
    """Memory of versions that were closed was not given back: a fresh process should go on. Comes once."""


@dataclass(slots=True)
class _Watched:
    """One pipeline whose model comes from a repository; the loader's thread alone changes it."""

    name: str
    rollout: Rollout
    repository: Versions
    answers: Candidate
    """The version that answers, or was offered last."""
    bytes_per_byte: float
    """Memory that the first load took, for each byte of the version's files."""
    refused: dict[str, Fingerprint] = field(default_factory=dict)
    """Versions that were refused, with their files as they were."""
    labels: int | None = None
    """How many labels the version that answers has, where the settings name them."""
    due_s: float = 0.0
    rest_s: float = 0.0
    """Least time until the next look."""
    away: bool = False
    """Whether the repository could not be reached at the last look."""
    trouble: str = ""
    """What the repository said last, so that it is logged once."""

    def local(self, candidate: Candidate) -> Candidate:
        """See :meth:`worker.model.repository.Versions.local`."""
        self.rest_s = REST_S  # a full disk would have the files read again every few seconds
        try:
            candidate = self.repository.local(candidate)
        except (Damaged, RepositoryAway):
            self.rest_s = 0.0
            raise
        self.rest_s = 0.0
        return candidate

    def complain(self, error: StartError) -> None:
        """Log once that the repository is away, or has no version to follow."""
        if isinstance(error, RepositoryAway):
            if not self.away:
                self.away = True
                log.warning(
                    "the model repository is away, the version that answers goes on",
                    pipeline=self.name,
                    reason=str(error),
                )
        elif self.trouble != str(error):
            self.trouble = str(error)
            log.warning(
                "the model repository has no version to follow", pipeline=self.name, reason=str(error)
            )


class Loader:
    """Keeps every pipeline of a repository at the version that its settings mean.

    Args:
        settings: as configured, not yet with the files of a version.
        running: the version that answers each pipeline now, and the memory that loading it took in bytes.
        memory_left: bytes that the process may still take; None if nobody knows.
        by_order: pipelines whose versions are not followed but ordered, see :meth:`order`.
        resident: bytes that the process has.
        took: memory that the first load of each pipeline took in bytes.
    """

    def __init__(
        self,
        settings: Settings,
        rollouts: Mapping[str, Rollout],
        running: Mapping[str, tuple[Candidate, int]],
        memory_left: Callable[[], int | None] = memory_left,
        by_order: Collection[str] = (),
        resident: Callable[[], int] = resident_bytes,
        took: Mapping[str, int] | None = None,
    ) -> None:
        self._settings = settings
        self._rollouts = rollouts
        self._took = took or {}
        self._anew = False
        """Other settings came: what was refused under the old ones is tried again."""
        self._memory_left = memory_left
        self._growth = Growth(resident)
        self._events: deque[Swap | Refusal | Overgrown] = deque()
        self._closable: deque[Model] = deque()
        """Models of versions that no batch is pinned to any more."""
        self._stop = threading.Event()
        self._ordered: dict[str, Ordered] = {}
        self._watched: list[_Watched] = []
        for rollout in rollouts.values():
            rollout.on_swap, rollout.on_retire = self._swapped, self._retire
        for name, (candidate, took_bytes) in running.items():
            repository = repository_of(settings, name)
            assert repository is not None
            rollout = rollouts[name]
            swap_bytes = settings.pipelines[name].model.swap_bytes
            took_bytes = took_bytes if swap_bytes == "auto" else swap_bytes
            share = max(1.0, took_bytes / max(1, candidate.nbytes))
            labels = at(settings, name, candidate).pipelines[name].labels
            count = len(labels) if labels is not None else None
            watched = _Watched(name, rollout, repository, candidate, share, labels=count)
            self._watched.append(watched)
            if name in by_order:
                self._ordered[name] = Ordered(repository, partial(self._load_or_refuse, watched))
        self._thread = threading.Thread(target=self._run, name="model-loader", daemon=True)

    def start(self) -> None:
        """Look at the repositories from now on, if there are any. Called when the process is warm, before any record."""
        kept = sum(int(each.bytes_per_byte * each.answers.nbytes) for each in self._watched)
        watched = {each.name for each in self._watched}
        kept += sum(took for name, took in self._took.items() if name not in watched)
        self._growth.begin(memory_bound(self._settings) + kept)
        if self._watched:
            self._thread.start()

    def close(self) -> None:
        """Stop looking. A load in progress is left behind with the process."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(CLOSE_S)

    @property
    def overgrown(self) -> str | None:
        """Why a fresh process should go on; None while memory is as it should be."""
        return self._growth.why

    def turn(self) -> list[Swap | Refusal | Overgrown]:
        """What happened since the last call; on the loop's thread, between two slabs. Takes over what was offered."""
        for rollout in self._rollouts.values():
            if rollout.waiting:
                rollout.choose()
        found: list[Swap | Refusal | Overgrown] = []
        while self._events:
            found.append(self._events.popleft())
        return found

    def made_anew(self, settings: Settings, pipeline: str) -> Servable:
        """Who answers a pipeline whose model is a file, by other settings; nobody has offered it yet. Not for the loop's thread.

        Raises:
            Refused: it does not answer this pipeline.
        """
        check_memory(self._took.get(pipeline, 0), self._memory_left)
        return successor(settings, self._rollouts[pipeline])

    def follow(self, settings: Settings) -> None:
        """These settings count from the next look on, which is due now; on the loop's thread."""
        self._settings, self._anew = settings, True
        if not self._thread.is_alive() and not self._stop.is_set():
            self._thread.start()  # from now on there are models to close

    def order(self, pipeline: str, version: str) -> None:
        """Have a version loaded; one at a time for each pipeline. For any thread."""
        self._ordered[pipeline].order = version

    def delivered(self, pipeline: str) -> Delivery | None:
        """What became of the order, once; None while it is worked on. For the thread that ordered."""
        ordered = self._ordered[pipeline]
        delivery, ordered.delivery = ordered.delivery, None
        return delivery

    def meant(self, pipeline: str) -> Meant | None:
        """The version that the settings mean; None: there is none, or nobody has looked yet. For any thread."""
        return self._ordered[pipeline].meant

    def look(self) -> None:
        """Close what nobody uses any more, and look at every repository that is due; on the loader's thread."""
        if self._closable:
            while self._closable:
                self._closable.popleft().close()
            if self._growth.look():
                self._events.append(Overgrown())
        if self._anew:
            self._anew = False
            for watched in self._watched:
                watched.refused.clear()
                watched.due_s = 0.0
        for watched in self._watched:
            ordered = self._ordered.get(watched.name)
            if ordered is not None:
                ordered.deliver()
            if time.monotonic() >= watched.due_s and not watched.rollout.waiting:
                self._follow(watched)
                poll_s = self._settings.pipelines[watched.name].model.poll_s
                watched.due_s = time.monotonic() + max(poll_s, watched.rest_s)

    def _run(self) -> None:
        with suppress(OSError, AttributeError):  # Linux counts threads like processes here
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        while not self._stop.wait(LOOK_S):
            self.look()

    def _follow(self, watched: _Watched) -> None:
        """Offer the version that is wanted now, if it is another one and not refused before."""
        try:
            candidate = self._wanted(watched)
            if watched.away:
                watched.away = False
                log.info("the model repository is back", pipeline=watched.name)
            watched.trouble = ""
            ordered = self._ordered.get(watched.name)
            if ordered is not None:
                ordered.note(candidate or watched.answers, wanted(self._settings, watched.name))
                return
            if candidate is None or watched.refused.get(candidate.version.name) == candidate.fingerprint:
                return
            candidate = watched.local(candidate)
        except Damaged:
            self._follow(watched)  # it does not count any more
            return
        except StartError as error:
            watched.complain(error)
            return
        servable = self._load_or_refuse(watched, candidate)
        if isinstance(servable, str):
            return
        watched.refused.pop(candidate.version.name, None)
        watched.answers = candidate
        watched.rollout.offer(servable)

    def _load_or_refuse(self, watched: _Watched, candidate: Candidate) -> Servable | str:
        """The servable of a version, or the reason why it is refused."""
        try:
            return self._load(watched, candidate)
        except Refused as error:
            self._refuse(watched, candidate, error.reason, str(error))
            return f"{error.reason}: {error}"

    def _wanted(self, watched: _Watched) -> Candidate | None:
        """The version that the settings mean; None if it answers already.

        A version whose files do not match its checksum does not count. It is refused once, so that somebody sees it.
        """
        found = watched.repository.versions()
        for each in found:
            if each.damaged and watched.refused.get(each.version.name) != each.fingerprint:
                self._refuse(watched, each, "checksum", each.incomplete or "")
        candidate = watched.repository.find(wanted(self._settings, watched.name), found=found)
        if candidate.version.name == watched.answers.version.name:
            if candidate.fingerprint != watched.answers.fingerprint:
                watched.answers = candidate
                log.warning(
                    "the files of the version that answers have changed: they count at the next start; "
                    "expected a new version instead",
                    pipeline=watched.name,
                    version=candidate.version.name,
                )
            return None
        return candidate

    def _load(self, watched: _Watched, candidate: Candidate) -> Servable:
        """The servable of a version, loaded, checked and warm.

        Raises:
            Refused: it does not answer this pipeline.
        """
        check_memory(int(candidate.nbytes * watched.bytes_per_byte), self._memory_left)
        try:
            check_signed(self._settings, watched.name, candidate)
        except WorkerError as error:
            raise Refused("unsigned", str(error)) from None
        settings = at(self._settings, watched.name, candidate)
        return successor(settings, watched.rollout, partial(self._other_labels, watched))

    def _other_labels(self, watched: _Watched, settings: Settings) -> str:
        """Why a version's labels do not fit; empty if they do."""
        labels = settings.pipelines[watched.name].labels
        count = len(labels) if labels is not None else None
        if count != watched.labels:
            return f"it has {count or 'no'} labels, the version that answers {watched.labels or 'none'}"
        return ""

    def _refuse(self, watched: _Watched, candidate: Candidate, reason: Reason, message: str) -> None:
        watched.refused[candidate.version.name] = candidate.fingerprint
        self._events.append(Refusal(watched.name, reason))
        log.error(
            "model version refused",
            pipeline=watched.name,
            version=candidate.version.name,
            reason=reason,
            message=message,
            answers=watched.rollout.stable.label,
        )

    def _swapped(self, rollout: Rollout, before: Servable) -> None:
        """Tell that another servable answers."""
        name = rollout.route.name
        self._events.append(Swap(name, rollout.stable))
        ordered = self._ordered.get(name)
        if ordered is not None and (loaded := ordered.loaded.get(rollout.stable.model_version)) is not None:
            next(each for each in self._watched if each.name == name).answers = loaded
        if rollout.stable.label == before.label:  # by a changed configuration
            log.info(
                "the same model version answers with changed settings", pipeline=name, model=before.label
            )
            return
        log.info(
            "another model version answers", pipeline=name, model=rollout.stable.label, before=before.label
        )

    def _retire(self, _rollout: Rollout, servable: Servable) -> None:
        """Remember a servable that gets no further batch: it is closed once no batch is pinned to it."""
        weakref.finalize(servable, self._closable.append, servable.model).atexit = False
