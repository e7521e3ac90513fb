"""The external data files of a model are found without the onnx package."""

from __future__ import annotations

from pathlib import Path

import models
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from worker.model.fingerprint import external_locations, model_sha256


def test_locations_come_in_name_order(tmp_path: Path) -> None:
    """Files are named in sorted order, not in the order of the tensors."""
    assert external_locations(models.external(tmp_path)) == ["a.bin", "b.bin"]


def test_a_model_without_external_data_names_none(tmp_path: Path) -> None:
    """Weights inside the file are no external data."""
    assert external_locations(models.write(tmp_path, models.mlp())) == []


@pytest.mark.parametrize("place", ["initializer", "attribute", "subgraph", "sparse", "function"])
def test_locations_are_found_wherever_a_tensor_may_stand(tmp_path: Path, place: str) -> None:
    """Initializers, attributes, subgraphs, sparse tensors and functions are all searched; a shared file counts once."""
    constant = helper.make_node("Constant", [], ["c"], value=_outside("deep.bin"))
    graph = helper.make_graph([], "graph", [], [])
    model = helper.make_model(graph)
    if place == "initializer":
        model.graph.initializer.extend([_outside("deep.bin"), _outside("deep.bin")])
    elif place == "attribute":
        model.graph.node.append(constant)
    elif place == "subgraph":
        branch = helper.make_graph([constant], "branch", [], [])
        model.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch))
    elif place == "sparse":
        model.graph.sparse_initializer.add().values.CopyFrom(_outside("deep.bin"))
    else:
        opset = [helper.make_opsetid("", models.OPSET)]
        model.functions.append(helper.make_function("own", "f", [], ["c"], [constant], opset))
    assert external_locations(models.write(tmp_path, model.SerializeToString())) == ["deep.bin"]


def test_hash_changes_with_every_part(tmp_path: Path) -> None:
    """The model file and each data file count."""
    path = models.external(tmp_path)
    seen = {model_sha256(path)}
    for part in ("a.bin", "b.bin"):
        (tmp_path / part).write_bytes(bytes(len((tmp_path / part).read_bytes())))
        seen.add(model_sha256(path))
    path.write_bytes(path.read_bytes() + b"\x18\x00")
    seen.add(model_sha256(path))
    assert len(seen) == 4


@settings(max_examples=200)
@given(content=st.binary(max_size=200) | st.integers(0, 2000).map(lambda cut: models.mlp()[:cut]))
def test_any_bytes_are_survived(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """What is no protobuf has no external data; loading it is what complains."""
    path = tmp_path_factory.mktemp("bytes") / "model.onnx"
    path.write_bytes(content)
    assert external_locations(path) == []


def _outside(location: str) -> TensorProto:
    tensor = onnx.numpy_helper.from_array(np.zeros(4, np.float32), "weights")
    onnx.external_data_helper.set_external_data(tensor, location, offset=0, length=16)
    tensor.ClearField("raw_data")
    return tensor
