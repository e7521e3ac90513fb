"""Scores to classes, against a plain reference."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from encode_support import pipeline, signature
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from worker.errors import ConfigError, Rejection
from worker.postprocess import postprocess

pytestmark = pytest.mark.usefixtures("both_batch_paths")


def classify(
    scores: Any, labels: Any = None, shape: Any = None, alone: bool = False, **options: Any
) -> list[Any]:
    """Predictions, or the rejection's reason, for scores (count, classes)."""
    scores = np.asarray(scores)
    kinds = {"f": f"float{scores.itemsize * 8}".replace("32", "").replace("float64", "double"), "i": "int64"}
    kind = kinds.get(scores.dtype.kind, str(scores.dtype))
    outputs = {"y": (kind, shape or ["N", *[None] * (scores.ndim - 1)])}
    settings = pipeline({"classification": options}).postprocess
    step = postprocess(settings, signature(outputs, not alone), labels)
    found = step.predictions({"y": scores}, len(scores), [None] * len(scores), alone)
    return [one.reason if isinstance(one, Rejection) else json.loads(one) for one in found]


def top(prediction: Any) -> list[tuple[str, float]]:
    return [(entry["label"], entry["score"]) for entry in prediction["top"]]


@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 6), st.integers(1, 25)),
        elements=st.sampled_from([0, -0.0, 0.25, 0.5, 1]),
    ),
    st.integers(1, 30),
    st.sampled_from([-1, 0.25, 0.3, 2]),
)
def test_top_k_is_by_score_then_by_lower_class(scores: Any, top_k: int, threshold: float) -> None:
    """Whatever k, ties and threshold: sort by descending score and ascending class, keep what reaches it."""
    for row, prediction in zip(scores, classify(scores, top_k=top_k, threshold=threshold), strict=True):
        order = sorted(range(len(row)), key=lambda i: (-row[i], i))
        expected = [(str(i), float(row[i])) for i in order if row[i] >= threshold][:top_k]
        assert top(prediction) == expected
        assert (prediction["label"], prediction["score"]) == (expected[0] if expected else (None, None))


@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 6), st.integers(3, 8)),
        elements=st.sampled_from([-1, 0, 0.25, 0.5, 1]),
    ),
    st.integers(1, 9),
    st.dictionaries(
        st.sampled_from(["default", "0", "1", "2"]), st.sampled_from([0.25, 0.3, -2, 2]), min_size=1
    ),
)
def test_a_class_may_have_a_threshold_of_its_own(
    scores: Any, top_k: int, thresholds: dict[str, float]
) -> None:
    """A class below its threshold is left out, and never takes the place of one that is above."""
    least = [thresholds.get(str(i), thresholds.get("default", -np.inf)) for i in range(scores.shape[1])]
    for row, prediction in zip(scores, classify(scores, top_k=top_k, threshold=thresholds), strict=True):
        order = sorted(range(len(row)), key=lambda i: (-row[i], i))
        assert top(prediction) == [(str(i), float(row[i])) for i in order if row[i] >= least[i]][:top_k]


def test_thresholds_are_named_by_label() -> None:
    """A label that the model does not have is refused at start, with those it has."""
    options = {"threshold": {"default": 0.5, "dog": 0.9}}
    assert classify(np.float32([[0.6, 0.8]]), labels=["cat", "dog"], **options)[0]["label"] == "cat"
    with pytest.raises(ConfigError, match=r"classification\.threshold: got 'dog', expected one of cat, cow"):
        classify(np.float32([[0.6, 0.8]]), labels=["cat", "cow"], **options)


def test_the_default_is_the_best_class_by_its_index() -> None:
    """Without labels the label is the class index as a string, and top holds one class."""
    assert classify(np.float32([[0.1, 0.7, 0.2]])) == [
        {"label": "1", "score": 0.7, "top": [{"label": "1", "score": 0.7}]}
    ]


def test_labels_are_text_of_any_kind() -> None:
    """Quotes, percent signs and other scripts survive."""
    [prediction] = classify(np.float32([[0.1, 0.9]]), labels=["plain", '50 % "Ōsaka"'], top_k=2)
    assert [label for label, _ in top(prediction)] == ['50 % "Ōsaka"', "plain"]


def test_a_threshold_is_compared_in_the_models_own_precision() -> None:
    """A float32 score that reads 0.7 is not under a threshold of 0.7."""
    [prediction] = classify(np.float32([[0.7, 0.3]]), threshold=0.7)
    assert top(prediction) == [("0", 0.7)]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_activations_match_a_float64_reference(dtype: Any) -> None:
    """softmax and sigmoid agree with double precision, far out as well, without a warning."""
    logits = np.array([[-200, 0, 1, 200], [3, 3, 3, 3], [-20, -3, 0.5, 9]], dtype)
    exact = logits.astype(np.float64)
    powers = np.exp(exact - exact.max(axis=1, keepdims=True))
    softmax = powers / powers.sum(axis=1, keepdims=True)
    sigmoid = 1 / (1 + np.exp(-exact))
    for activation, expected in (("softmax", softmax), ("sigmoid", sigmoid)):
        for row, prediction in zip(expected, classify(logits, activation=activation, top_k=4), strict=True):
            for label, score in top(prediction):
                assert score == pytest.approx(row[int(label)], rel=1e-6, abs=1e-37)


def test_masked_logits_have_a_softmax() -> None:
    """Minus infinity is probability 0; only where no answer is left is the record non_finite."""
    inf = np.inf
    found = classify(
        np.float32([[-inf, 0, 0], [-inf, -inf, -inf], [inf, 0, 0]]), activation="softmax", top_k=3
    )
    assert top(found[0]) == [("1", 0.5), ("2", 0.5), ("0", 0.0)]
    assert found[1:] == ["non_finite", "non_finite"]


def test_nan_in_any_class_is_non_finite() -> None:
    """A score that cannot be compared makes the order meaningless."""
    found = classify(np.float32([[0.9, np.nan], [0.9, 0.1]]))
    assert found[0] == "non_finite"
    assert found[1]["label"] == "0"


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        (np.array([[2**53 + 1, 2**53]], np.int64), [("0", 2**53 + 1), ("1", 2**53)]),
        (np.array([[0, 255, 255]], np.uint8), [("1", 255), ("2", 255)]),
        (np.array([[False, True]]), [("1", 1), ("0", 0)]),
        (np.array([[0.5, 0.25]], np.float16), [("0", 0.5), ("1", 0.25)]),
    ],
)
def test_scores_of_other_types_stay_what_they_are(scores: Any, expected: Any) -> None:
    """Integers are exact and stay integers; unsigned ones do not wrap."""
    [prediction] = classify(scores, top_k=2)
    assert top(prediction) == expected


def test_dimensions_of_one_do_not_matter() -> None:
    """(N, C, 1, 1), and (1, 1, C) of a model that is not batchable, are one vector per item."""
    assert classify(np.float32([0.1, 0.9]).reshape(1, 2, 1, 1))[0]["label"] == "1"
    assert classify(np.float32([0.1, 0.9]).reshape(1, 1, 2), shape=[1, 2], alone=True)[0]["label"] == "1"


def test_the_first_floating_output_is_read() -> None:
    """A classifier that also gives labels is read by its probabilities."""
    outputs = {"label": ("int64", ["N"]), "p": ("float", ["N", 2])}
    step = postprocess(pipeline("classification").postprocess, signature(outputs), None)
    [text] = step.predictions({"label": np.array([7]), "p": np.float32([[0.2, 0.8]])}, 1, [None], False)
    assert isinstance(text, bytes)
    assert json.loads(text)["label"] == "1"


def test_a_wrong_number_of_labels_is_refused_at_start() -> None:
    """The sentence names the key and both counts."""
    with pytest.raises(ConfigError, match=r"postprocess\.classification\.labels names 3 classes, .* has 2"):
        classify(np.float32([[0, 1]]), labels=["a", "b", "c"], shape=["N", 2])


def test_a_wrong_number_of_labels_shows_at_run_time_where_the_model_hides_it() -> None:
    """With a free class dimension the run is refused, never labelled wrongly."""
    with pytest.raises(ValueError, match=r"2 classes, postprocess\.classification\.labels names 3"):
        classify(np.float32([[0, 1]]), labels=["a", "b", "c"], shape=["N", "C"])


@pytest.mark.parametrize(
    ("output", "said"), [(("string", ["N"]), "strings"), (("float", ["N", 3, 4]), "one vector per item")]
)
def test_outputs_without_scores_are_refused_at_start(output: Any, said: str) -> None:
    """Strings and matrices are no class scores."""
    with pytest.raises(ConfigError, match=said):
        postprocess(pipeline("classification").postprocess, signature({"y": output}), None)


def test_scores_below_zero_have_a_best_class() -> None:
    """Without a threshold every score counts, also those of a model that gives raw scores below zero."""
    [prediction] = classify(np.float32([[-5, -1, -9]]))
    assert (prediction["label"], prediction["score"]) == ("1", -1.0)
    [prediction] = classify(np.int64([[-5, -1, -9]]), top_k=3)
    assert [best["label"] for best in prediction["top"]] == ["1", "0", "2"]
