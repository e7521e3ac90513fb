"""``auto`` picks what is nearly as cheap as the best, within its time, and no larger than it must."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import models
import pytest
import structlog

from worker.model.gpu import Cuda
from worker.model.session import Model, load
from worker.model.tune import (
    HANDOVER_US,
    INLINE_BELOW_US,
    RECORD_US,
    SIZE_WITHOUT_MEASUREMENT,
    Tuning,
    cheapest_size,
    sweep,
    tune,
    usable_cores,
    worthwhile_threads,
)

SIZES = [1 << power for power in range(11)]
COSTS: dict[str, Callable[[int], float]] = {  # batch size -> microseconds
    "tiny network": lambda n: 4.5 + 0.085 * n,
    "wide network": lambda n: 70 + 18 * n,
    "convolutions": lambda n: 3000 * n,
    "convolutions out of cache": lambda n: 2300 * n * (1 + 0.01 * n),
    "best in the middle": lambda n: 800 + 20 * n + 0.5 * n * n,
    "very slow": lambda n: 400_000 * n,
    "free": lambda n: 0.0,
}


class Machine:
    """A clock that only runs advance, by the cost of each plus noise."""

    def __init__(self, cost_us: Callable[[int], float], noise: float = 0.0) -> None:
        self.now = 0.0
        self.cost_us = cost_us
        self.noise = noise
        self.random = random.Random(0)

    def __call__(self) -> float:
        return self.now

    def run(self, size: int) -> None:
        self.now += self.cost_us(size) * (1 + self.noise * self.random.expovariate(1)) / 1e6


@pytest.mark.parametrize("noise", [0.0, 0.02])
@pytest.mark.parametrize("name", COSTS)
def test_choice_is_within_a_tenth_of_the_best(name: str, noise: float) -> None:
    """Whatever the shape of the cost, the chosen size costs a record at most 10 % more than the best."""
    machine = Machine(COSTS[name], noise)
    chosen = cheapest_size(sweep(machine.run, SIZES, deadline=5.0, clock=machine))

    def per_record(size: int) -> float:
        return (COSTS[name](size) + HANDOVER_US) / size + RECORD_US

    assert per_record(chosen) <= 1.1 * min(map(per_record, SIZES))


@pytest.mark.parametrize("name", COSTS)
def test_measuring_keeps_to_its_time(name: str) -> None:
    """The deadline holds for every cost the first size fits into."""
    machine = Machine(COSTS[name])
    sweep(machine.run, SIZES, deadline=5.0, clock=machine)
    assert machine.now <= 5.0


def test_the_smallest_good_size_is_chosen() -> None:
    """Where batching gains nothing, nothing waits for a batch."""
    assert cheapest_size({size: 20_000.0 * size for size in SIZES}) == 1


def test_disturbed_rounds_do_not_decide() -> None:
    """One long pause during a size's run leaves the choice as it was."""
    machine = Machine(COSTS["wide network"])
    calm = cheapest_size(sweep(machine.run, SIZES, deadline=5.0, clock=machine))
    disturbed = Machine(COSTS["wide network"])
    runs = 0

    def run(size: int) -> None:
        nonlocal runs
        runs += 1
        disturbed.run(size)
        if runs in (30, 50, 70):
            disturbed.now += 0.1

    assert cheapest_size(sweep(run, SIZES, deadline=5.0, clock=disturbed)) == calm


def test_planning_for_another_size_is_not_its_cost() -> None:
    """A GPU that plans for 150 ms whenever the size changes chooses as if it did not, and keeps to its time."""
    cost = COSTS["wide network"]
    steady = Machine(cost)
    calm = cheapest_size(sweep(steady.run, SIZES, deadline=5.0, clock=steady))
    machine, last = Machine(cost), 0

    def run(size: int) -> None:
        nonlocal last
        machine.now += 0.15 * (size != last)
        last = size
        machine.run(size)

    assert cheapest_size(sweep(run, SIZES, deadline=5.0, clock=machine, anew=True)) == calm
    assert machine.now <= 5.0


def test_a_size_that_fails_ends_the_ascent() -> None:
    """Sizes the model refuses are not chosen from."""
    machine = Machine(COSTS["tiny network"])

    def run(size: int) -> None:
        if size > 8:
            raise RuntimeError("too many")
        machine.run(size)

    assert list(sweep(run, SIZES, deadline=5.0, clock=machine)) == [1, 2, 4, 8]


@pytest.mark.parametrize(
    ("batch_us", "cores", "threads"),
    [
        (10, 8, 0),
        (INLINE_BELOW_US - 1, 8, 0),
        (INLINE_BELOW_US, 8, 8),
        (1e6, 2, 2),
        (1e6, 1, 1),
    ],
)
def test_threads_only_where_a_batch_is_worth_one(batch_us: float, cores: int, threads: int) -> None:
    """Short batches run inline; long ones get every core, and a thread of their own even on one."""
    assert worthwhile_threads(batch_us, cores) == threads


# On real models


def test_given_figures_are_kept(tmp_path: Path) -> None:
    """What is configured is not measured."""
    model = load(models.write(tmp_path, models.mlp()))
    assert tuned(model, max_size=7, threads=3, instances=2) == Tuning(7, 3, 2, {})


def test_small_network_runs_inline_in_large_batches(tmp_path: Path) -> None:
    """A network of microseconds is worth batches, and no threads."""
    tuning = tuned(load(models.write(tmp_path, models.mlp())))
    assert tuning.max_size >= 16
    assert (tuning.threads, tuning.instances) == (0, 1)
    assert tuning.figures["us_per_item"].keys() >= {1, tuning.max_size}


def test_decode_work_makes_threads_worthwhile(tmp_path: Path) -> None:
    """Images whose network is small still need their decode spread over the cores."""
    tuning = tuned(load(models.write(tmp_path, models.mlp())), max_size=64, decode_us=1000.0)
    assert (tuning.threads, tuning.instances) == (4, 4)


def test_memory_bounds_the_sizes_tried(tmp_path: Path) -> None:
    """No batch above the byte limit is made up."""
    tuning = tuned(load(models.write(tmp_path, models.mlp())), max_bytes=120 * 16)
    assert max(tuning.figures["us_per_item"]) == 16


def test_model_that_refuses_made_up_items_gets_the_defaults(tmp_path: Path) -> None:
    """What cannot be measured counts as slow."""
    with structlog.testing.capture_logs():
        model = load(models.write(tmp_path, models.refuses_small_ids()))
    assert tuned(model) == Tuning(SIZE_WITHOUT_MEASUREMENT, 4, 4, {})


def test_not_batchable_costs_every_record_a_run(tmp_path: Path) -> None:
    """Records that run alone cost the same in a batch of any size."""
    figures = tuned(load(models.write(tmp_path, models.centred()))).figures["us_per_item"]
    assert len(set(figures.values())) == 1


def test_one_gpu_runs_one_batch_at_a_time(tmp_path: Path) -> None:
    """On a GPU more runs at once would only queue."""
    model = load(models.write(tmp_path, models.mlp()))
    model.backend = Cuda()
    assert tuned(model, threads=8).instances == 1


def tuned(
    model: Model,
    *,
    max_size: int | str = "auto",
    threads: int | str = "auto",
    instances: int | str = "auto",
    max_bytes: int = 1 << 26,
    decode_us: float = 0.0,
) -> Tuning:
    """Tuned for four cores with time to spare."""
    return tune(
        model,
        max_size=max_size,
        threads=threads,
        instances=instances,
        cores=4,
        max_bytes=max_bytes,
        deadline=float("inf"),
        decode_us=decode_us,
    )


# Cores


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 1), ("20000 100000", 1)]
)
def test_quota_of_a_container_counts(tmp_path: Path, quota: str, cores: int) -> None:
    """With control groups version 2 the process' own or any enclosing group's quota bounds the cores."""
    membership = tmp_path / "cgroup"
    membership.write_text("0::/pod/container\n")
    (tmp_path / "pod" / "container").mkdir(parents=True)
    (tmp_path / "pod" / "cpu.max").write_text(quota + "\n")
    (tmp_path / "pod" / "container" / "cpu.max").write_text("max 100000\n")
    assert usable_cores(8, tmp_path, membership) == cores


def test_quota_of_version_1_counts(tmp_path: Path) -> None:
    """With control groups version 1 the cpu controller's quota counts, the container's own where the path is the host's."""
    membership = tmp_path / "cgroup"
    membership.write_text("4:memory:/host/path\n1:cpuacct,cpu:/host/path\n")
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("300000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_cores(8, tmp_path, membership) == 3
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert usable_cores(8, tmp_path, membership) == 8


def test_without_control_groups_the_affinity_counts(tmp_path: Path) -> None:
    """Nothing to read is no limit."""
    assert usable_cores(8, tmp_path, tmp_path / "absent") == 8
