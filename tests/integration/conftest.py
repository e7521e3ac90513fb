"""After every integration test the counters of its workers are held to what is on the topics."""

from __future__ import annotations

from collections.abc import Iterator

import accounts
import pytest
import stream


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    for ledger in (stream.STARTED, stream.SENT, stream.ADDRESSES):
        ledger.clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """Within the test and not after it: its brokers are still there, and a difference is its failure."""
    yield
    accounts.settle()
