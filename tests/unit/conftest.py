"""What decodes and encodes is tested twice: with the compiled batch path and without."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from worker import native


@pytest.fixture(scope="module", params=["python", "compiled"])
def both_batch_paths(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test of a module that uses this runs on both; where nothing was compiled, one of them is skipped.

    ``REQUIRE_NATIVE=1`` makes that a failure.
    """
    if request.param == "compiled":
        if native.records is None:
            if os.environ.get("REQUIRE_NATIVE") == "1":
                pytest.fail(f"REQUIRE_NATIVE=1, but the batch path is {native.batch_path}")
            pytest.skip(f"the batch path is {native.batch_path}")
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "records", None)
        yield
