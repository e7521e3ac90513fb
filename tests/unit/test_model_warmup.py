"""Whether items may share a run is found by running them."""

from __future__ import annotations

import itertools
from pathlib import Path

import models
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from worker.model.compare import same
from worker.model.session import BACKENDS, load

APART = {
    "mlp": models.mlp(),
    "identity": models.identity(),
    "two inputs": models.add(),
    "two outputs": models.two_outputs(),
    "image": models.image(),
    "image of any size": models.image(size=None),
    "uint8 image": models.image(dtype=np.uint8),
    "any length": models.identity(shape=("N", "length")),
    "one number per item": models.identity(shape=("N",)),
    "strings": models.identity(str),
    "NaN and infinity": models.logarithm(),
}
MIXED = {
    "centred": models.centred(),
    "centred uint8": models.centred(np.uint8),
    "cumulative": models.cumulative(),
    "cumulative int64": models.cumulative(np.int64),
    "softmax over the batch": models.softmax_over_batch(),
    "sorted": models.sorted_over_batch(),
    "sorted int64": models.sorted_over_batch(np.int64),
    "sum kept as a row": models.total(),
    "sum without a row": models.total(keepdims=False),
}
FIXED = {
    "rank 0": models.rank_0(),
    "one row": models.fixed_batch(1),
    "eight rows": models.fixed_batch(8),
    "at most one row": models.raises_above(1),
    "refuses what is made up": models.refuses_small_ids(),
}


@pytest.mark.parametrize("name", APART)
def test_models_that_keep_items_apart_are_batchable(tmp_path: Path, name: str) -> None:
    """Items that do not see their neighbours may share a run."""
    assert load(models.write(tmp_path, APART[name])).signature.batchable


@pytest.mark.parametrize("name", MIXED)
def test_models_that_mix_the_batch_are_not(tmp_path: Path, name: str) -> None:
    """An answer that depends on the neighbours keeps every record alone, whatever the file declares."""
    assert not load(models.write(tmp_path, MIXED[name])).signature.batchable


@pytest.mark.parametrize("name", FIXED)
def test_models_that_take_no_two_items_are_not(tmp_path: Path, name: str) -> None:
    """A model that cannot take two items, or was shown none, runs records alone and is still ready."""
    model = load(models.write(tmp_path, FIXED[name]))
    assert not model.signature.batchable
    assert model.canary()


def test_free_dimensions_are_tried_in_several_sizes(tmp_path: Path) -> None:
    """An image network whose free sides must be 224 is found by trying."""
    model = models.build(
        [
            helper.make_node("Flatten", ["x"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weights"], ["y"]),
        ],
        [models.tensor("x", np.float32, ["N", 1, "height", "width"])],
        [models.tensor("y", np.float32, ["N", 2])],
        {"weights": np.ones((224 * 224, 2), np.float32)},
    )
    assert load(models.write(tmp_path, model)).signature.batchable


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (np.float32([1, 2]), np.float32([1.0005, 2]), True),
        (np.float32([1, 2]), np.float32([1.002, 2]), False),
        (np.float32([0]), np.float32([5e-6]), True),
        (np.float32([0]), np.float32([5e-5]), False),
        (np.float16([60000]), np.float16([60000]), True),
        (np.float32([np.nan, np.inf]), np.float32([np.nan, np.inf]), True),
        (np.float32([np.inf]), np.float32([-np.inf]), False),
        (np.float32([1]), np.float32([[1]]), False),
        (np.float32([1]), np.float64([1]), False),
        (np.array([10**6]), np.array([10**6 + 1]), False),
        (np.array([True]), np.array([False]), False),
        (np.array(["a"], object), np.array(["a"], object), True),
        (np.array(["a"], object), np.array(["b"], object), False),
    ],
)
def test_same_is_exact_but_for_floats(first: np.ndarray, second: np.ndarray, expected: bool) -> None:
    """Integers, booleans and strings must be equal; floats agree to 1e-3 relative, 1e-5 absolute; NaN equals NaN."""
    assert same({"y": first}, {"y": second}) is expected


def test_same_needs_the_same_names() -> None:
    """An output more or less is a difference."""
    one = np.float32([1])
    assert not same({"y": one}, {"y": one, "z": one})


@given(st.integers(1, 5000), st.sampled_from(["cpu", "cuda", "tensorrt"]))
def test_sizes_to_warm_hold_one_and_the_largest_first(max_size: int, provider: str) -> None:
    """From the largest to one, and on a GPU no batch is more than twice a warmed size."""
    sizes = BACKENDS[provider].sizes_to_warm(max_size)
    assert sizes[0] == max_size
    assert sizes[-1] == 1
    assert sizes == sorted(set(sizes), reverse=True)
    if provider != "cpu":
        assert all(larger <= 2 * smaller for larger, smaller in itertools.pairwise(sizes))
