"""What ``auto`` means: batch size, threads and instances, measured on made-up batches of the model itself.

On a CPU, batches make a small network fifty times faster and a large one no faster, or even slower. No constant is
right for both.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from worker.model.session import Model

Clock = Callable[[], float]

LARGEST_AUTO_SIZE = 1024
SIZE_WITHOUT_MEASUREMENT = 64
HANDOVER_US = 300.0
"""What one batch costs around the model, in microseconds, whatever its size: to take it, hand it over, count it, and publish
it with a request for each partition. Records of 1 KB on 12 partitions cost 400 at full load, 20 features on one thread 100."""
RECORD_US = 2.0
"""What one record costs around the model, in microseconds. Without it, gains too small to notice would make batches larger."""
GOOD_ENOUGH = 1.05
"""The smallest batch within this factor of the cheapest is chosen: a smaller one waits less."""
INLINE_BELOW_US = 1000.0
"""A batch of less work than this is not worth a thread: threads that run Python delay each other by more than that."""
_ROUNDS = 11


@dataclass(frozen=True, slots=True)
class Tuning:
    """The figures a pipeline runs with."""

    max_size: int
    threads: int
    """0 = batches run on the loop's own thread."""
    instances: int
    figures: dict[str, Any] = field(default_factory=dict)
    """What was measured, for one log line; empty if nothing was."""


def tune(
    model: Model,
    *,
    max_size: int | Literal["auto"],
    threads: int | Literal["auto"],
    instances: int | Literal["auto"],
    cores: int,
    max_bytes: int,
    deadline: float,
    decode_us: float = 0.0,
    clock: Clock = time.perf_counter,
) -> Tuning:
    """Replace each ``auto`` by a figure that follows from what the model costs on this machine.

    Args:
        model: measured alone, so nothing else should be busy.
        max_size, threads, instances: as configured.
        cores: how many this process may use, see :func:`usable_cores`.
        max_bytes: no batch whose tensors take more is tried.
        deadline: reading of ``clock`` at which measuring ends.
        decode_us: what decoding one record costs outside the interpreter lock, in microseconds: there threads help.
        clock: seconds.
    """
    affordable = max(1, max_bytes // max(1, model.sample_nbytes))
    costs: dict[int, float] = {}
    if max_size == "auto":
        costs = batch_costs(model, _powers_of_two(min(LARGEST_AUTO_SIZE, affordable)), deadline, clock)
        max_size = cheapest_size(costs)
    if threads == "auto":
        costs = costs or _costs_for_threads(model, min(max_size, affordable), deadline, clock)
        threads = worthwhile_threads(_cost_of(max_size, costs) + decode_us * max_size, cores)
    figures = {"cores": cores, "us_per_item": {size: round(us / size, 2) for size, us in costs.items()}}
    return Tuning(
        max_size,
        threads,
        instances if instances != "auto" else model.backend.runs_at_once(threads),
        figures if costs else {},
    )


def cheapest_size(costs: dict[int, float]) -> int:
    """The smallest batch size that is as good as the cheapest per record.

    Args:
        costs: size -> microseconds of the model for one batch of it; empty if the model could not be measured.
    """
    if not costs:
        return SIZE_WITHOUT_MEASUREMENT
    per_record = {size: _per_record_us(size, us) for size, us in costs.items()}
    limit = min(per_record.values()) * GOOD_ENOUGH
    return min(size for size, us in per_record.items() if us <= limit)


def worthwhile_threads(batch_us: float, cores: int) -> int:
    """Pool threads for batches of ``batch_us`` microseconds of work outside the interpreter lock.

    At least one if a batch takes long, even on one core: the loop must go on polling meanwhile.
    """
    return 0 if batch_us < INLINE_BELOW_US else max(1, cores)


def batch_costs(
    model: Model, sizes: list[int], deadline: float, clock: Clock = time.perf_counter
) -> dict[int, float]:
    """Size -> median microseconds of the model for a batch of it; empty if it refuses made-up items.

    If the model is not batchable, a batch is that many single runs.
    """
    together = model.signature.batchable
    batch = model.sample(max(sizes) if together else 1)
    if batch is None:
        return {}

    def run(size: int) -> None:
        model.run({name: array[:size] for name, array in batch.items()} if together else batch)

    if together:
        return sweep(run, sizes, deadline, clock, anew=model.backend.plans_each_size)
    one = sweep(run, [1], deadline, clock)[1]
    return {size: one * size for size in sizes}


def sweep(
    run: Callable[[int], object],
    sizes: list[int],
    deadline: float,
    clock: Clock = time.perf_counter,
    *,
    anew: bool = False,
) -> dict[int, float]:
    """Median microseconds of ``run(size)`` for as many of the ascending ``sizes`` as time allows; the first always.

    The rounds go over all sizes in turn, so that a disturbance falls on all of them. A size that fails ends the ascent.
    With ``anew`` each is run once before it is timed: a GPU plans for another size than the last, and a worker does not
    pay for that, see :mod:`worker.model.gpu`.
    """

    def timed(size: int) -> float:
        if anew:
            run(size)
        start = clock()
        run(size)
        return (clock() - start) * 1e6

    timings: dict[int, list[float]] = {}
    lasts: dict[int, float] = {}  # seconds that measuring a size once takes, planning included
    for size in sizes:
        started = clock()
        try:
            run(size)  # the first run of a size claims memory: not counted
            timings[size] = [timed(size)]
            lasts[size] = clock() - started
        except Exception:
            break
        now = clock()
        if now + 2 * (now - started) > started + (deadline - started) / 2:
            break  # the next size would leave no time to measure any of them properly
    for _ in range(_ROUNDS):
        medians = {size: statistics.median(times) for size, times in timings.items()}
        for size in _contenders(medians):
            begun = clock()
            if begun + (lasts[size] if anew else medians[size] / 1e6) > deadline:
                return medians
            timings[size].append(timed(size))
            lasts[size] = clock() - begun
    return {size: statistics.median(times) for size, times in timings.items()}


def quickest_s(run: Callable[[], object], most_s: float, clock: Clock = time.perf_counter) -> float:
    """Seconds of the quickest of a few runs.

    One run alone may have waited for another process, and a process that starts with small slabs pays for each of them as
    long as it lives.

    Args:
        most_s: no further run begins once the runs took so long together.
    """
    took: list[float] = []
    while len(took) < 7 and sum(took) < most_s:
        started = clock()
        run()
        took.append(clock() - started)
    return min(took)


def usable_cores(
    affinity: int | None = None,
    cgroups: Path = Path("/sys/fs/cgroup"),
    membership: Path = Path("/proc/self/cgroup"),
) -> int:
    """Cores this process may use: its CPU affinity, or a container's CPU quota if that is lower.

    A quota of 1.5 cores is one: the second thread would mostly be throttled.
    """
    cores = affinity if affinity is not None else len(os.sched_getaffinity(0))
    return max(1, int(min([cores, *_cpu_quotas(cgroups, membership)])))


def _powers_of_two(largest: int) -> list[int]:
    return [1 << power for power in range(largest.bit_length())]


def _per_record_us(size: int, batch_us: float) -> float:
    return (batch_us + HANDOVER_US) / size + RECORD_US


def _contenders(medians: dict[int, float]) -> list[int]:
    """Sizes worth another look: those far above the cheapest will not become it."""
    per_record = {size: _per_record_us(size, us) for size, us in medians.items()}
    best = min(per_record.values(), default=0.0)
    return [size for size, us in per_record.items() if us <= 1.5 * best]


def _costs_for_threads(model: Model, max_size: int, deadline: float, clock: Clock) -> dict[int, float]:
    """As :func:`batch_costs`; the full batch is measured only if one item does not decide it, so that slow models start sooner."""
    costs = batch_costs(model, [1], deadline, clock)
    if costs and costs[1] < INLINE_BELOW_US:
        costs |= batch_costs(model, [max_size], deadline, clock)
    return costs


def _cost_of(size: int, costs: dict[int, float]) -> float:
    """Microseconds of a batch of ``size``, from the nearest smaller size measured; unknown counts as long."""
    measured = max((known for known in costs if known <= size), default=None)
    return INLINE_BELOW_US if measured is None else costs[measured] * size / measured


def _cpu_quotas(cgroups: Path, membership: Path) -> Iterator[float]:
    """Yields each CPU quota, in cores, of this process' control group and of those around it (versions 1 and 2)."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = cgroups / "cpu" if controllers else cgroups
        # Inside a container the path may be the host's: then only the top exists, and it is the container's own.
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            yield from _quota_in(folder)
            if folder == top:
                break


def _quota_in(folder: Path) -> Iterator[float]:
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
    except (OSError, ValueError):
        return
    if quota not in ("max", "-1"):
        yield int(quota) / int(period)
