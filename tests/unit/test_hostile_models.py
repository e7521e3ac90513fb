"""Model files that mean harm, or are broken: the worker refuses them at its start in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from worker.cli.main import main

CONFIG = """name: w
input: {{topics: [a], format: json}}
model: {{path: {model}}}
output: {{topic: o}}
dead_letter: {{topic: d}}
limits: {{batch_timeout_s: 0.2}}
kafka: {{bootstrap.servers: "localhost:1", group.id: g}}
"""


def checked(folder: Path, model: bytes, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and sentences of `check --offline` with a model."""
    models.write(folder, model)
    file = folder / "c.yaml"
    file.write_text(CONFIG.format(model="model.onnx"))
    code = main(["check", "--offline", str(file)])
    told = capsys.readouterr()
    assert "Traceback" not in told.out + told.err
    return code, told.out + told.err


def endless() -> bytes:
    """y = x after a loop of 2^62 turns."""
    turn = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["still"]), helper.make_node("Identity", ["v"], ["w"])],
        "turn",
        [
            models.tensor("turn", np.int64, []),
            models.tensor("on", np.bool_, []),
            models.tensor("v", np.float32, ["N", 4]),
        ],
        [models.tensor("still", np.bool_, []), models.tensor("w", np.float32, ["N", 4])],
    )
    return models.build(
        [helper.make_node("Loop", ["turns", "yes", "x"], ["y"], body=turn)],
        [models.tensor("x", np.float32, ["N", 4])],
        [models.tensor("y", np.float32, ["N", 4])],
        {"turns": np.array(2**62), "yes": np.array(True)},
    )


def beside(location: str) -> bytes:
    """y = x + w, whose weights are four floats in another file."""
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
    weights.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        weights.external_data.add(key=key, value=value)
    whole = onnx.load_from_string(models.identity())
    graph: Any = whole.graph
    graph.node[0].CopyFrom(helper.make_node("Add", ["x", "w"], ["y"]))
    graph.initializer.append(weights)
    return bytes(whole.SerializeToString())


def test_a_loop_without_end_does_not_hang_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A made-up item that runs for longer than a batch may ends the start with exit code 3."""
    code, told = checked(tmp_path, endless(), capsys)
    assert code == 3
    assert "runs for more than 0.2 s on one made-up item (limits.batch_timeout_s)" in told


def test_an_item_beyond_the_limits_is_never_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model whose one item takes 16 TiB is refused by the limit before memory for one is asked for."""
    code, told = checked(tmp_path, models.identity(shape=("N", 1 << 20, 1 << 20)), capsys)
    assert code == 2
    assert "limits.in_flight_bytes: got 268435456, expected at least" in told


@pytest.mark.parametrize("location", ["/etc/hostname", "../outside.bin", "link.bin"])
def test_weights_outside_the_folder_are_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], location: str
) -> None:
    """External data at an absolute path, above the model's folder or behind a link out of it is refused."""
    (tmp_path / "outside.bin").write_bytes(bytes(16))
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    code, told = checked(folder, beside(location), capsys)
    assert code == 3
    assert "External data path validation failed" in told
    (folder / "inside.bin").write_bytes(bytes(16))
    assert checked(folder, beside("inside.bin"), capsys)[0] == 0


def test_a_broken_file_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A truncated, an empty and a random file each end the start with exit code 3."""
    whole = models.mlp()
    for content in (whole[: len(whole) // 2], b"", np.random.default_rng(1).bytes(5000)):
        code, told = checked(tmp_path, content, capsys)
        assert code == 3
        assert "model.onnx cannot be loaded on cpu" in told
