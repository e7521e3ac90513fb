"""scikit-learn pipelines, exported with the converter's default options: answers are those of predict and predict_proba."""

from __future__ import annotations

import json
import locale
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_iris
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from text_support import Pipeline

from worker.errors import ConfigError, StartError

JSON: dict[str, Any] = {"input": {"format": "json"}}
SCORES = {"classification": {"from": "output_probability", "top_k": 3}}


def write(folder: Path, exported: Any) -> None:
    models.write(folder, exported.SerializeToString())


def as_scores(found: dict[str, Any]) -> dict[str, float]:
    return {each["label"]: each["score"] for each in found["top"]}


@pytest.fixture(scope="module")
def iris() -> Any:
    """(model, data, exported): numbers, with texts as classes."""
    data = load_iris()
    names = np.array(data.target_names)[data.target]
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(data.data, names)
    return model, data.data, to_onnx(model, data.data[:1].astype(np.float32))


def test_a_classifier_of_numbers_needs_nothing_but_the_outputs_name(iris: Any, tmp_path: Path) -> None:
    """`classification: {from: output_probability}` gives classes and probabilities of predict_proba, by the model's own names."""
    model, data, exported = iris
    write(tmp_path, exported)
    pipeline = Pipeline(tmp_path, postprocess=SCORES, **JSON)
    assert pipeline.servable.model.signature.batchable
    rows = data[::15]
    found = pipeline.predictions(*(json.dumps({"features": row.tolist()}) for row in rows))
    assert len(pipeline.runs) == 1
    for ours, shares in zip(found, model.predict_proba(rows.astype(np.float32)), strict=True):
        expected = dict(zip(model.classes_, shares, strict=True))
        assert as_scores(ours) == pytest.approx(expected, abs=1e-5)
        assert ours["label"] == max(expected, key=lambda name: expected[name])


def test_the_label_output_or_none_serves_as_well(iris: Any, tmp_path: Path) -> None:
    """`from: output_label` gives the model's own label with its score, and without `from` the probabilities are found."""
    model, data, exported = iris
    write(tmp_path, exported)
    values = [json.dumps({"features": row.tolist()}) for row in data[::40]]
    said = model.predict(data[::40])
    for settings in ({"from": "output_label"}, {}, {"labels": {"from": "output_label"}}):
        found = Pipeline(tmp_path, postprocess={"classification": settings}, **JSON).predictions(*values)
        assert [each["label"] for each in found] == said.tolist()
        assert all(each["score"] > 1 / 3 for each in found)


def test_fields_give_label_and_probabilities_by_name(iris: Any, tmp_path: Path) -> None:
    """`fields` puts several outputs under names of one's own: a scalar, and a mapping of classes to probabilities; raw too."""
    model, data, exported = iris
    write(tmp_path, exported)
    fields = {"species": "output_label", "probabilities": "output_probability"}
    value = json.dumps({"features": data[77].tolist()})
    (found,) = Pipeline(tmp_path, postprocess={"fields": fields}, **JSON).predictions(value)
    (shares,) = model.predict_proba(data[77:78].astype(np.float32))
    assert found["species"] == model.predict(data[77:78])[0]
    assert found["probabilities"] == pytest.approx(dict(zip(model.classes_, shares, strict=True)), abs=1e-5)
    (raw,) = Pipeline(tmp_path, **JSON).predictions(value)
    assert raw["outputs"]["output_probability"] == found["probabilities"]
    with pytest.raises(
        ConfigError,
        match=r"postprocess\.fields\.a: the model has no output 'b'; expected one of output_label",
    ):
        Pipeline(tmp_path, postprocess={"fields": {"a": "b"}}, **JSON)


def test_classes_that_are_numbers_keep_their_order(tmp_path: Path) -> None:
    """Integer classes of several digits are named by their numbers, each with its own probability."""
    data = load_iris()
    target = np.array([100, 9, 20])[data.target]
    model = LogisticRegression(max_iter=500).fit(data.data, target)
    write(tmp_path, to_onnx(model, data.data[:1].astype(np.float32)))
    pipeline = Pipeline(tmp_path, postprocess=SCORES, **JSON)
    rows = data.data[::30]
    found = pipeline.predictions(*(json.dumps({"features": row.tolist()}) for row in rows))
    for ours, shares in zip(found, model.predict_proba(rows.astype(np.float32)), strict=True):
        assert as_scores(ours) == pytest.approx(
            dict(zip(map(str, model.classes_), shares, strict=True)), abs=1e-5
        )


def test_a_pipeline_of_texts_and_numbers_takes_each_from_its_field(tmp_path: Path) -> None:
    """A pipeline with a one-hot encoded column and a number has an input for each, filled by the field of its name."""
    cities = np.array(["Paris", "Rome", "Oslo"])[np.arange(60) % 3].reshape(-1, 1)
    ages = np.random.default_rng(0).normal(40, 9, (60, 1)).astype(np.float32)
    table: Any = np.empty((60, 2), object)
    table[:, :1], table[:, 1:] = cities, ages
    target = (ages[:, 0] > 40) ^ (cities[:, 0] == "Rome")
    columns = ColumnTransformer([("city", OneHotEncoder(), [0]), ("age", StandardScaler(), [1])])
    model = make_pipeline(columns, LogisticRegression()).fit(table, target.astype(int))
    inputs = [("city", StringTensorType([None, 1])), ("age", FloatTensorType([None, 1]))]
    write(tmp_path, to_onnx(model, initial_types=inputs))
    pipeline = Pipeline(tmp_path, postprocess=SCORES, **JSON)
    values = [{"city": str(row[0]), "age": float(row[1])} for row in table[:12]]
    found = pipeline.predictions(*map(json.dumps, values), '{"city": "Rome"}', '{"city": 5, "age": 1}')
    for ours, shares in zip(found[:12], model.predict_proba(table[:12]), strict=True):
        assert as_scores(ours) == pytest.approx({"0": shares[0], "1": shares[1]}, abs=1e-5)
    assert [each[0] for each in found[12:]] == ["invalid", "invalid"]


def has_locale() -> bool:
    before = locale.setlocale(locale.LC_CTYPE)
    try:
        locale.setlocale(locale.LC_CTYPE, "en_US.UTF-8")
    except locale.Error:
        return False
    locale.setlocale(locale.LC_CTYPE, before)
    return True


TEXTS = [
    "good bread and soup",
    "bad soup",
    "good cheese",
    "bad bread, bad rice",
    "good rice",
    "bad cheese",
] * 3


def test_a_tf_idf_classifier_takes_text(tmp_path: Path) -> None:
    """TF-IDF and a linear model take a text record; where the locale en_US.UTF-8 is missing, one sentence says so and how to install it."""
    model = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(
        TEXTS, [text[:4].strip() for text in TEXTS]
    )
    write(tmp_path, to_onnx(model, initial_types=[("text", StringTensorType([None, 1]))]))
    if not has_locale():
        with pytest.raises(
            StartError, match=r"needs the locale en_US\.UTF-8, which this system does not have: install it"
        ):
            Pipeline(tmp_path, postprocess=SCORES)
        return
    pipeline = Pipeline(tmp_path, postprocess=SCORES)
    texts = ["good soup and cheese", "bad rice", "", "bread"]
    for ours, shares in zip(pipeline.predictions(*texts), model.predict_proba(texts), strict=True):
        assert as_scores(ours) == pytest.approx(dict(zip(model.classes_, shares, strict=True)), abs=1e-5)


def test_maps_are_read_where_a_zipmap_names_their_keys(tmp_path: Path) -> None:
    """The sequence of maps of a ZipMap alone is an output of one column per key."""
    models.write(tmp_path, models.zipmap())
    (found,) = Pipeline(tmp_path, **JSON).predictions('{"features": [0.25, 0.75]}')
    assert found == {"outputs": {"probabilities": {"0": 0.25, "1": 0.75}}}
