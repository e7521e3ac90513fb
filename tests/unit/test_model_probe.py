"""Whether items may share a run is found by running them."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import models
import numpy as np
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from worker import settings
from worker.cli.sample import answer
from worker.errors import ConfigError
from worker.model.backend import Tensors
from worker.model.compare import same
from worker.model.probe import probe
from worker.model.session import BACKENDS, load
from worker.model.signature import TensorSpec
from worker.serving.load import load as load_pipelines

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
    "an output declared with one row": models.best_class(),
    "names of one batch that differ": models.add_of_two_names(),
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
COUPLED = {
    "a range over the batch behind a softmax": (
        models.dynamic(), "DynamicQuantizeLinear takes the range of its numbers from the whole batch"
    ),
    "a maximum over the batch behind a softmax": (models.scaled_by_the_batch(), r"output y differs by .* for item \d of 2"),
    "a maximum over the batch behind a sign": (models.scaled_by_the_batch("Round"), r"output y differs.* for item \d of 2"),
    "batch normalisation in training": (models.normalised_in_training(), "BatchNormalization is in training mode"),
    "a constant": (models.constant_answer(), "same answer, which shows nothing"),
    "two counts": (models.two_counts(), "ids by batch, images by num_images"),
    "a fixed input": (models.fixed_batch(8), "input x is fixed to 8"),
    "a state": (models.recurrent(), "the first dimension of input state counts no items"),
    "random": (models.noise(), "answers one item differently each time"),
}  # fmt: skip
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


@pytest.mark.parametrize("name", COUPLED)
def test_why_records_run_alone_is_told(tmp_path: Path, name: str) -> None:
    """A model whose items may not share a run says why, also if most answers hide it: ones behind a softmax or a
    rounding, which are alike for all items of one scale."""
    content, said = COUPLED[name]
    with structlog.testing.capture_logs():
        model = load(models.write(tmp_path, content))
    assert not model.signature.batchable
    assert re.search(said, model.why_alone), model.why_alone


def test_what_is_seen_of_a_batch_is_told(tmp_path: Path) -> None:
    """The largest difference between alone and in a batch is known of a batchable model; here there is some."""
    model = load(models.write(tmp_path, models.leaky()))
    assert model.signature.batchable
    assert model.why_alone == ""
    assert 1e-8 < model.largest_difference < 1e-3


def test_a_declared_output_shape_does_not_stand_against_what_running_shows(tmp_path: Path) -> None:
    """An output that the file declares as one row is one row for each item, and its signature says so."""
    signature = load(models.write(tmp_path, models.best_class())).signature
    assert signature.batchable
    assert [spec.shape for spec in signature.outputs] == [(None,), (None, 3)]


def test_a_known_length_is_tried_first(tmp_path: Path) -> None:
    """A model whose free length must be 7 refuses the likely lengths, and takes the one that the settings know."""
    path = models.write(tmp_path, models.of_length(7))
    with structlog.testing.capture_logs():
        assert load(path).needs_canary
    assert load(path, sizes=[7]).signature.batchable


def test_text_that_must_be_a_number_is_found(tmp_path: Path) -> None:
    """A model that turns strings into numbers refuses an empty string and takes a zero."""
    assert load(models.write(tmp_path, models.parsed_text())).signature.batchable


def test_a_slow_model_is_not_probed_for_long() -> None:
    """Beyond two items in both orders no run begins that does not fit the time."""
    now, runs = 0.0, 0

    def run(feeds: Tensors) -> Tensors:
        nonlocal now, runs
        now += 5.0 * len(feeds["x"])
        runs += 1
        return {"y": feeds["x"] * 2}

    spec = TensorSpec.of("x", "tensor(float)", ["N", 4])
    found = probe(run, [spec], max_size=64, clock=lambda: now)
    assert found.batchable
    assert runs == 5  # twice alone, another one alone, both together in both orders


def test_a_large_batch_is_tried(tmp_path: Path) -> None:
    """A model that mixes items only from three on is found with the sizes beyond two."""
    spec = TensorSpec.of("x", "tensor(float)", ["N", 4])

    def run(feeds: Tensors) -> Tensors:
        x = feeds["x"]
        return {"y": x if len(x) < 17 else x - x.mean(axis=0)}

    assert probe(run, [spec], max_size=16).batchable
    found = probe(run, [spec], max_size=64)
    assert re.search(r"output y differs by .* for item \d+ of 64", found.reason)


def test_rounding_of_large_numbers_is_no_difference() -> None:
    """Items of a hundred times the scale may differ by a hundred times the absolute tolerance, and items of one may not."""
    spec = TensorSpec.of("x", "tensor(float)", ["N", 4])

    def off_by(share: float) -> bool:
        def run(feeds: Tensors) -> Tensors:
            y = feeds["x"] - feeds["x"].mean(axis=1, keepdims=True)
            return {"y": y + (share * np.abs(y).max(axis=1, keepdims=True) if len(y) > 1 else 0)}

        return probe(run, [spec], max_size=8).batchable

    assert off_by(1e-5)
    assert not off_by(1e-2)


def test_a_sample_joins_the_probe(tmp_path: Path) -> None:
    """A record whose answer differs beside others is told, if made-up items have not shown that: here the model looks
    at its neighbours for values beyond any that is made up."""
    models.write(tmp_path, models.coupled_above(5000.0))
    config = tmp_path / "worker.yaml"
    config.write_text(CONFIG)
    rollout = load_pipelines(settings.load(config))["model"]
    assert rollout.choose().model.signature.batchable
    assert answer(rollout, b'{"features": [1, 2, 3, 4]}')
    with pytest.raises(ConfigError, match=r"--sample: output y differs by .* expected batching\.max_size: 1"):
        answer(rollout, b'{"features": [100, 200, 300, 400]}')


# Inputs that one item gives whole


def test_a_state_is_given_whole(tmp_path: Path) -> None:
    """Beside audio [batch, samples], an item's state [2, batch, 3] is [2, 1, 3], however the file names the batch."""
    for batch in ("batch", "n"):
        with structlog.testing.capture_logs():
            model = load(models.write(tmp_path, models.recurrent(batch)))
        audio, state = model.signature.inputs
        assert (audio.item_shape, audio.has_rows) == ((None,), True)
        assert (state.item_shape, state.fixed, state.has_rows) == ((2, 1, 3), True, False)
        assert model.canary()


def test_a_sequence_before_its_batch_is_given_whole(tmp_path: Path) -> None:
    """A first dimension that is not called a batch, with one behind it that is, counts steps and not items."""
    model = load(models.write(tmp_path, models.identity(shape=("steps", "batch", 4))))
    (x,) = model.signature.inputs
    assert (x.item_shape, x.has_rows) == ((None, 1, 4), False)
    assert not model.signature.batchable


def test_a_record_feeds_a_state(tmp_path: Path) -> None:
    """One JSON record with audio and state runs as the model wants them, nested or flat."""
    models.write(tmp_path, models.recurrent())
    config = tmp_path / "worker.yaml"
    config.write_text(CONFIG)
    with structlog.testing.capture_logs():
        rollout = load_pipelines(settings.load(config))["model"]
    for state in ([[[1, 2, 3]], [[4, 5, 6]]], [1, 2, 3, 4, 5, 6]):
        record = json.dumps({"audio": [1, 1], "state": state}).encode()
        outputs = answer(rollout, record)["prediction"]["outputs"]
        assert outputs["next"] == [[[3.0, 4.0, 5.0]], [[6.0, 7.0, 8.0]]]


CONFIG = """
input: {topics: [in], format: json}
model: {path: model.onnx}
output: {topic: out}
dead_letter: {topic: dead}
kafka: {bootstrap.servers: "localhost:1", group.id: g}
"""


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
