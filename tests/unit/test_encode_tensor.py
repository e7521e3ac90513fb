"""Bare tensors and .npy files as results."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from encode_support import batch_of, encode, make_encoder, request_item

from worker.batch import Item
from worker.errors import ConfigError

pytestmark = pytest.mark.usefixtures("both_batch_paths")

Y = {"y": ("float", ["N", 2, 2]), "other": ("int64", ["N"])}
OUTPUTS = {"y": np.arange(12, dtype=np.float32).reshape(3, 2, 2), "other": np.arange(3)}


def load(body: bytes | None) -> Any:
    assert body is not None
    return np.load(io.BytesIO(body), allow_pickle=False)


def test_a_tensor_is_the_first_outputs_item() -> None:
    """A tensor result is the item's little-endian C-order bytes, with its source in a header."""
    outcomes = encode(make_encoder(Y, format="tensor"), batch_of(3), OUTPUTS)
    assert outcomes.bodies == [OUTPUTS["y"][i].astype("<f4").tobytes() for i in range(3)]
    assert outcomes.headers == [[("streaminfer.source", b"digits/3/%d" % (1042 + i))] for i in range(3)]


def test_an_npy_result_loads_without_pickle() -> None:
    """NumPy reads an npy result back as the same array, without the batch dimension."""
    outcomes = encode(make_encoder(Y, format="npy"), batch_of(3), OUTPUTS)
    for i, body in enumerate(outcomes.bodies):
        np.testing.assert_array_equal(load(body), OUTPUTS["y"][i], strict=True)


def test_npy_keeps_a_batch_dimension_that_the_record_had() -> None:
    """A record of k items is answered by k items, even for k = 1."""
    items = [Item({}, 2, single=False), Item({}), Item({}, 1, single=False)]
    values = np.arange(8, dtype=np.float64).reshape(4, 2)
    outcomes = encode(
        make_encoder({"y": ("double", ["N", 2])}, format="npy"), batch_of(3, items=items), {"y": values}
    )
    assert [load(body).tolist() for body in outcomes.bodies] == [
        values[:2].tolist(),
        values[2].tolist(),
        values[3:].tolist(),
    ]


@pytest.mark.parametrize("whole", [np.float32([[1, 2]]), np.array(3.5)])
def test_a_model_that_is_not_batchable_keeps_its_shape(whole: Any) -> None:
    """The npy result of a model that is not batchable is the array that the model gave, rank 0 included."""
    encoder = make_encoder({"y": ("float", [1, 2])}, batchable=False, format="npy")
    [body] = encode(encoder, batch_of(1), {"y": whole}, alone=True).bodies
    np.testing.assert_array_equal(load(body), whole, strict=True)


def test_nan_and_infinity_travel_in_binary() -> None:
    """NaN and infinity are published as they are in binary formats."""
    y = np.array([[np.nan, -np.inf]], np.float32)
    outcomes = encode(make_encoder({"y": ("float", ["N", 2])}, format="tensor"), batch_of(1), {"y": y})
    assert (outcomes.bodies, outcomes.rejected) == ([y.tobytes()], {})


def test_a_request_chooses_the_output() -> None:
    """A request gets the first output that it names; where that holds strings, the record is refused and the others are answered."""
    model = {**Y, "words": ("string", ["N"])}
    outputs = {**OUTPUTS, "words": np.array(["a", "b", "c"], object)}
    items = [request_item(), request_item(outputs=["other", "y"]), request_item(outputs=["words"])]
    outcomes = encode(make_encoder(model, format="tensor"), batch_of(3, items=items), outputs)
    assert outcomes.bodies == [OUTPUTS["y"][0].tobytes(), (1).to_bytes(8, "little"), None]
    assert [row[0][0] if row else None for row in outcomes.headers or ()] == [
        "streaminfer.source",
        "streaminfer.source",
        None,
    ]
    assert (outcomes.rejected[2].reason, outcomes.rejected[2].stage) == ("invalid", "encode")


def test_headers_none_means_none() -> None:
    """With `output.headers: none` a result has no header, not even its source."""
    outcomes = encode(make_encoder(Y, format="tensor", headers="none"), batch_of(3), OUTPUTS)
    assert outcomes.headers is None


def test_the_source_header_is_not_doubled_by_a_copied_one() -> None:
    """The source header of a record that another worker published is replaced."""
    batch = batch_of(1, headers=[[("streaminfer.source", b"a/0/1"), ("a", b"1")]])
    outcomes = encode(make_encoder(Y, format="npy", headers="all"), batch, {"y": OUTPUTS["y"][:1]})
    assert outcomes.headers == [[("streaminfer.source", b"digits/3/1042"), ("a", b"1")]]


def test_strings_have_no_tensor_form() -> None:
    """A model whose first output holds strings is refused at start, naming the key and the output."""
    with pytest.raises(ConfigError, match=r"output\.format: npy .*'y'"):
        make_encoder({"y": ("string", ["N"])}, format="npy")
