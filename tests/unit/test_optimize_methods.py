"""The methods of `optimize`: what each makes of small networks, against ONNX Runtime and numpy."""

from __future__ import annotations

from pathlib import Path

import models
import numpy as np
import onnx
import pytest
from onnx import helper
from optimize_support import (
    RANDOM,
    answers,
    branching,
    operators,
    products,
    residual,
    shape_of,
    weights,
    with_an_outlier,
    work_of,
)

from worker.optimize import (
    dynamic,
    half,
    int4,
    int8_weights,
    least_squares,
    mixed,
    prune,
    prune_int8,
    simplify,
    static,
)
from worker.optimize.methods import DoesNotApply, attempts


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(((ours - theirs) ** 2).sum() / (theirs**2).sum())


# pruning


def test_channels_that_say_the_same_are_cut_and_the_answers_stay(tmp_path: Path) -> None:
    """Of 16, 16 and 24 channels that repeat 4 each, at most 8, 8 and 8 remain, through batch norm, depthwise, Concat and
    Flatten; answers to records that calibrated nothing stay the same."""
    x = RANDOM.normal(size=(230, 2, 6, 6)).astype(np.float32)
    work = work_of(branching(), tmp_path, x[:200], max_loss=1e-6)
    made = next(iter(prune.make(work))).model
    onnx.checker.check_model(made)
    assert [node.op_type for node in made.graph.node].count("Conv") == 4
    sizes = [tensor.dims[0] for tensor in made.graph.initializer if len(tensor.dims) == 4]
    assert all(size <= 8 for size in sizes)
    assert relative_error(answers(made, x[200:]), answers(work.path, x[200:])) < 1e-4


def test_without_the_refit_the_answers_would_be_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same cut with the layers behind left as they were changes the answers: the refit is what keeps them."""
    x = RANDOM.normal(size=(40, 2, 6, 6)).astype(np.float32)
    monkeypatch.setattr(prune.Pruner, "_refit", lambda *_: None)
    work = work_of(branching(), tmp_path, x, max_loss=1.0, loss=lambda _: 0.0)
    made = next(iter(prune.make(work))).model
    assert relative_error(answers(made, x), answers(work.path, x)) > 0.01


def test_channels_of_a_residual_sum_stay(tmp_path: Path) -> None:
    """Both ends of a residual sum keep their 16 channels; the layer inside, of which 3 differ, does not."""
    x = RANDOM.normal(size=(40, 3, 4, 4)).astype(np.float32)
    work = work_of(residual(), tmp_path, x, max_loss=1e-6)
    names = [node.name for node in work.base.graph.node if node.op_type == "Conv"]
    made = next(iter(prune.make(work))).model
    before = [shape_of(work.base, name)[0] for name in names]
    after = [shape_of(made, name)[0] for name in names]
    assert before == [16, 16, 16]
    assert after[0] == after[2] == 16
    assert after[1] <= 8
    assert relative_error(answers(made, x), answers(work.path, x)) < 1e-4


def test_a_network_whose_channels_all_meet_is_not_pruned(tmp_path: Path) -> None:
    """One layer whose output is the answer has nothing to cut; the reason says so."""
    model = models.build(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [models.tensor("x", np.float32, ["N", 8])],
        [models.tensor("y", np.float32, ["N", 8])],
        {"w": weights(8, 8)},
    )
    with pytest.raises(DoesNotApply, match="no layer's channels end in other layers"):
        list(prune.make(work_of(model, tmp_path, weights(10, 8))))


def test_the_error_of_a_cut_is_what_least_squares_leave() -> None:
    """The error that is foretold for leaving channels out equals that of numpy's least squares without them."""
    x = RANDOM.normal(size=(400, 12)) @ RANDOM.normal(size=(12, 12))
    w = RANDOM.normal(size=(12, 5))
    y = x @ w
    scale = float(((y - y.mean(axis=0)) ** 2).sum())
    centred = x - x.mean(axis=0)
    part = least_squares.Part(centred.T @ centred, w, np.arange(12).reshape(6, 2), scale)
    order, errors = least_squares.elimination([part], 1)
    for gone in (1, 3, 5):
        left = [c for c in range(12) if c // 2 not in set(order[:gone].tolist())]
        design = np.column_stack([x[:, left], np.ones(len(x))])
        rest = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
        assert errors[gone - 1] == pytest.approx(float((rest**2).sum()) / scale, rel=0.02, abs=1e-9)
    assert np.all(np.diff(errors) >= 0)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((4, 3, 3, 3), {"pads": [1, 0, 2, 1], "strides": [2, 1]}),
        ((5, 3, 2, 3), {"dilations": [2, 2], "pads": [0, 1, 0, 1]}),
        ((4, 3, 1, 1), {}),
    ],
)
def test_rows_of_a_convolution_are_what_it_multiplies(
    shape: tuple[int, ...], options: dict[str, list[int]]
) -> None:
    """Rows of inputs times the weights as a matrix are ONNX Runtime's outputs, for any stride, padding and dilation."""
    w = weights(*shape)
    node = helper.make_node("Conv", ["x", "w"], ["y"], **options)
    x = RANDOM.normal(size=(2, 3, 9, 8)).astype(np.float32)
    model = models.build(
        [node],
        [models.tensor("x", np.float32, ["N", 3, 9, 8])],
        [models.tensor("y", np.float32, None)],
        {"w": w},
    )
    wanted = np.moveaxis(answers(onnx.load_from_string(model), x), 1, -1).reshape(-1, shape[0])
    rows = least_squares.rows_of(node, w, x, len(wanted), np.random.default_rng(0))
    assert rows @ least_squares.as_matrix(node, w) == pytest.approx(wanted, abs=1e-4)


def test_the_pruned_network_is_made_in_int8_as_well(tmp_path: Path) -> None:
    """`prune-int8` quantises what pruning left; without that it does not apply."""
    x = RANDOM.normal(size=(40, 3, 4, 4)).astype(np.float32)
    work = work_of(residual(), tmp_path, x, max_loss=1e-6)
    with pytest.raises(DoesNotApply, match="needs prune among --methods"):
        list(prune_int8.make(work))
    work.made["prune"] = []
    with pytest.raises(DoesNotApply, match="no pruned network"):
        list(prune_int8.make(work))
    work.made["prune"] = list(prune.make(work))
    made = next(iter(prune_int8.make(work)))
    assert made.name == f"{work.made['prune'][0].name} + int8"
    assert "QuantizeLinear" in operators(made.model)
    assert relative_error(answers(made.model, x), answers(work.path, x)) < 0.01


# quantisation


def test_mixed_precision_keeps_the_worst_layer_in_float(tmp_path: Path) -> None:
    """Of three matrix products the one with an outlier among its inputs stays in float, and the loss is kept."""
    x = RANDOM.normal(size=(40, 16)).astype(np.float32)
    work = work_of(with_an_outlier(), tmp_path, x, max_loss=0.01)
    whole = next(iter(static.make(work))).model
    assert work.loss(whole) > 0.1
    errors = mixed.layer_errors(work)
    products_in_order = [node.name for node in work.base.graph.node if node.op_type == "MatMul"]
    assert max(errors, key=lambda name: errors[name]) == products_in_order[1]
    (made,) = mixed.make(work)
    assert "1 of 3 layers in float" in made.note
    assert work.loss(made.model) <= 0.005


def test_mixed_precision_says_when_int8_is_good_enough(tmp_path: Path) -> None:
    """Where INT8 in every layer keeps the loss, no layer stays in float."""
    work = work_of(models.mlp(), tmp_path, weights(40, 20), max_loss=0.1)
    with pytest.raises(DoesNotApply, match="no layer has to stay in float"):
        list(mixed.make(work))


@pytest.mark.parametrize("gemm", [False, True])
def test_large_matrix_products_get_int4_weights(tmp_path: Path, gemm: bool) -> None:
    """Of a large and a small product only the large one has INT4 weights, whether it is a MatMul or a Gemm."""
    x = weights(20, 300, scale=17.0)
    work = work_of(products(gemm=gemm), tmp_path, x)
    (made,) = int4.make(work)
    assert operators(made.model).count("MatMulNBits") == 1
    assert operators(made.model).count("MatMul") == 1
    assert "1 of 2 matrix products" in made.note
    assert relative_error(answers(made.model, x), answers(work.path, x)) < 0.03
    assert made.model.ByteSize() < work.original.ByteSize() / 4
    (finer,) = int8_weights.make(work)
    assert operators(finer.model).count("MatMulNBits") == 1
    assert relative_error(answers(finer.model, x), answers(work.path, x)) < 3e-4


def test_small_matrix_products_do_not_get_int4_weights(tmp_path: Path) -> None:
    """A network without a large matrix product says so."""
    with pytest.raises(DoesNotApply, match="no matrix product with 65,536 weights"):
        list(int4.make(work_of(products(60), tmp_path, weights(4, 60))))


def test_each_other_method_answers_nearly_as_the_original(tmp_path: Path) -> None:
    """Simplified, FP16, dynamic and static INT8 models give the original's answers within their precision."""
    x = weights(40, 20, scale=4.0)
    work = work_of(models.mlp(), tmp_path, x)
    for method, error in ((simplify, 1e-9), (half, 1e-5), (dynamic, 1e-3), (static, 1e-2)):
        (made,) = method.make(work)
        assert relative_error(answers(made.model, x), answers(work.path, x)) < error, made.name


def test_methods_that_do_not_apply_say_why(tmp_path: Path) -> None:
    """A network without weights gives no model, and every method but simplification a reason."""
    work = work_of(models.identity(), tmp_path, weights(10, 4))
    found = {
        each.method: each
        for each in attempts(work, ["fp16", "int8-dynamic", "int8-static", "int4", "prune"], str)
    }
    assert all(not each.made for each in found.values())
    assert found["fp16"].reason == "the model has no float32 weights"
    assert found["int8-dynamic"].reason == "the model has no matrix product with weights"
    assert found["int8-static"].reason == "the model has no convolution and no matrix product with weights"


def test_the_same_seed_makes_the_same_models(tmp_path: Path) -> None:
    """Pruning twice with one seed gives the same bytes."""
    x = RANDOM.normal(size=(30, 3, 4, 4)).astype(np.float32)
    model = residual()
    first, second = (
        next(iter(prune.make(work_of(model, tmp_path, x, seed=3)))).model.SerializeToString()
        for _ in range(2)
    )
    assert first == second
