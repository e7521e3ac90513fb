"""Options of the simulation."""

import pytest

CI_SCHEDULES = 1_100


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--sim-seed", type=int, default=None, help="play exactly this schedule")
    parser.addoption("--sim-count", type=int, default=CI_SCHEDULES, help="how many schedules to play")


@pytest.fixture
def seeds(request: pytest.FixtureRequest) -> range:
    """Which schedules to play."""
    # the options are known only when pytest is pointed at this folder
    seed = request.config.getoption("--sim-seed", None)
    if seed is not None:
        return range(seed, seed + 1)
    return range(request.config.getoption("--sim-count", CI_SCHEDULES))
