"""One model on several devices: each has sessions, buffers and streams of its own, and a run goes to the one with the fewest.

The devices are data parallel: every one holds the whole model. To the pool they are one lane that takes as many runs as
all devices together.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np

from worker.batch import Array
from worker.errors import StartError
from worker.model.backend import Backend, Opened, Opening, Sessions, Tensors
from worker.model.providers import provider_in_use
from worker.model.signature import TensorSpec


class OpenedOnDevices:
    """A model file, opened on each of several devices.

    Args:
        devices: numbers among those that ``CUDA_VISIBLE_DEVICES`` leaves visible; at least one.

    Raises:
        StartError: it cannot be opened on one of them, which the message names.
    """

    def __init__(self, backend: Backend, opening: Opening, devices: Sequence[int]) -> None:
        self._instances = opening.instances
        self._opened: list[Opened] = []
        try:
            for device in devices:
                self._opened.append(_open(backend, opening, device))
        except BaseException:
            self.close()
            raise

    @property
    def described(self) -> Any:
        return self._opened[0].described

    def bind(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Sessions:
        return OnDevices([each.bind(inputs, outputs) for each in self._opened], self._instances)

    def close(self) -> None:
        for each in self._opened:
            each.close()


def _open(backend: Backend, opening: Opening, device: int) -> Opened:
    try:
        opened = backend.open(replace(opening, device=device))
    except StartError as error:
        raise StartError(f"{error} (device {device} of model.devices)") from error
    try:
        provider_in_use(opening.providers, opened.described.get_providers())
    except BaseException:
        opened.close()
        raise
    return opened


class OnDevices:
    """Sessions on several devices behind one ``run``. Safe to use from several threads.

    After a run that failed, the same thread's next run is on the same device. So the canary, which follows a failure, tests
    the device that failed, and not one that is healthy.

    Args:
        places: the sessions, one for each device.
        instances: runs at once on each.
    """

    def __init__(self, places: Sequence[Sessions], instances: int) -> None:
        self._places = places
        self.lookahead = sum(instances + place.lookahead for place in places) - instances
        """See :class:`worker.model.backend.Sessions`: the runs of the further devices are among them."""
        self.ahead = sum(place.ahead for place in places)
        self._lock = threading.Lock()
        self._running = [0] * len(places)
        """Runs of each place that have begun and not ended."""
        self._last = -1
        """The place that was taken last."""
        self._failed = threading.local()
        """Where this thread's last run was, if it failed."""

    def run(self, feeds: Tensors) -> Tensors:
        """See :meth:`worker.model.session.Model.run`."""
        place = self._take()
        self._failed.place = place
        try:
            outputs = self._places[place].run(feeds)
            self._failed.place = None
            return outputs
        finally:
            with self._lock:
                self._running[place] -= 1

    def _take(self) -> int:
        """The place for a run of this thread: the one with the fewest, of equals the next one in turn."""
        place: int | None = getattr(self._failed, "place", None)
        with self._lock:
            if place is None:
                count = len(self._running)
                turn = ((self._last + 1 + step) % count for step in range(count))
                place = min(turn, key=self._running.__getitem__)
            self._last = place
            self._running[place] += 1
        return place

    def interrupt(self) -> None:
        for place in self._places:
            place.interrupt()

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """An array of undefined content. Page-locked memory is so for every device."""
        return self._places[0].empty(shape, dtype)

    def warm(self, sizes: Sequence[int], sample: Callable[[int], Tensors], largest: int) -> None:
        for place in self._places:
            place.warm(sizes, sample, largest)

    def close(self) -> None:
        """Close every place, whatever one of them says."""
        with ExitStack() as stack:
            for place in self._places:
                stack.callback(place.close)
