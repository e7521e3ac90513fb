"""The installed command beside files of the user's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("name", ["worker.py", "worker/__init__.py"])
def test_a_module_of_the_user_that_hides_ours_is_one_sentence(tmp_path: Path, name: str) -> None:
    """A file or package named worker that Python finds first is exit 2; the sentence says where it is."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("raise RuntimeError('this must not run')\n")
    done = subprocess.run(
        [sys.executable, "-m", "streaminfer", "--version"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert f"another Python module named worker comes first: {tmp_path / name}" in done.stderr


def test_the_command_is_also_a_module(tmp_path: Path) -> None:
    """``python -m streaminfer`` is the same command."""
    command = [sys.executable, "-m", "streaminfer", "--version"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout.startswith("streaminfer ")
