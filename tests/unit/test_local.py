"""The Python API: what a record becomes without Kafka is what the worker would make of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnxruntime
import pytest
import yaml

import streaminfer
from streaminfer import Answer, ConfigError, Pipeline, Record, Rejected, SickModel, testing

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "examples" / "digits.yaml"
FRAMES = sorted((ROOT / "examples" / "frames").iterdir())


def written(folder: Path, document: dict[str, Any]) -> Path:
    path = folder / "worker.yaml"
    whole = {
        "output": {"topic": "out"},
        "dead_letter": {"topic": "dead"},
        "kafka": {"bootstrap.servers": "localhost:1", "group.id": "g"},
        **document,
    }
    if "pipelines" in whole:
        del whole["output"]
    path.write_text(yaml.safe_dump(whole))
    return path


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    """A configuration of a small network with four numbers in and three scores out."""
    models.write(tmp_path, models.mlp(features=4, classes=3))
    return written(
        tmp_path,
        {"input": {"topics": ["in"], "format": "json"}, "model": {"path": "model.onnx", "threads": 0}},
    )


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    testing.forget()


def test_a_frame_gets_the_prediction_of_the_example() -> None:
    """Each frame of the example gets its own label, without a broker; a second record needs no second load."""
    with Pipeline.load(DIGITS) as pipeline:
        assert pipeline.names == ["digits"]
        for frame in FRAMES:
            assert pipeline(frame.read_bytes()).prediction["label"] == frame.stem


@pytest.mark.parametrize("threads", [0, 2])
def test_many_records_get_the_answers_of_the_runtime(numbers: Path, threads: int) -> None:
    """Many records give, in their order, what ONNX Runtime gives for each alone; bad ones among them are refused."""
    rows = np.random.default_rng(7).normal(size=(5000, 4)).astype(np.float32)
    values: list[Any] = [{"features": row.tolist()} for row in rows]
    values[17], values[4321] = b"{", {"features": [1, 2]}
    with Pipeline.load(numbers, [f"model.threads={threads}", "batching.max_size=32"]) as pipeline:
        answers = pipeline.many(values)
    session = onnxruntime.InferenceSession(numbers.parent / "model.onnx", providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": rows})
    refused = {index: answer.rejected for index, answer in enumerate(answers) if answer.rejected is not None}
    assert {index: found.reason for index, found in refused.items()} == {17: "undecodable", 4321: "invalid"}
    good = [index for index in range(len(rows)) if index not in refused]
    got = np.array([answers[index].prediction["outputs"]["y"] for index in good])
    np.testing.assert_allclose(got, expected[good], rtol=1e-4, atol=1e-5)
    assert [answers[index].result["source"]["offset"] for index in good] == good


def test_records_go_where_the_worker_would_send_them(tmp_path: Path) -> None:
    """Headers and topics choose the pipeline; a record that none takes is unroutable; an unknown topic is a mistake."""
    models.write(tmp_path, models.identity(shape=("N", 2)))
    section = {"model": {"path": "model.onnx"}, "output": {"topic": "out"}}
    config = written(
        tmp_path,
        {
            "pipelines": {
                "a": {
                    "input": {"topics": ["in"], "format": "json"},
                    "when": {"header": "m", "equals": "a"},
                    **section,
                },
                "b": {"input": {"topics": ["other"], "format": "json", "tombstone": "drop"}, **section},
            }
        },
    )
    value = {"features": [1, 2]}
    with Pipeline.load(config) as pipeline:
        taken = pipeline.many(
            [
                Record(value, headers={"m": "a"}),
                Record(value),
                Record(value, topic="other"),
                Record(None, topic="other"),
            ]
        )
        assert [answer.pipeline for answer in taken] == ["a", None, "b", "b"]
        assert [answer.dropped for answer in taken] == [False, False, False, True]
        assert taken[1].rejected is not None
        assert taken[1].rejected.reason == "unroutable"
        with pytest.raises(
            ConfigError, match="topic: got 'elsewhere', expected one that a pipeline reads: in, other"
        ):
            pipeline(value, topic="elsewhere")
    with Pipeline.load(config, pipeline="b") as alone:
        assert alone.names == ["b"]
        assert alone(value).pipeline == "b"


def test_what_needs_no_model_is_decided_as_in_the_worker(numbers: Path) -> None:
    """A tombstone passes, a large record and an expired one are refused, and the copied headers are the result's."""
    with Pipeline.load(numbers, ["input.max_bytes=100", "output.headers=[x-shop]"]) as pipeline:
        good = {"features": [1, 2, 3, 4]}
        assert pipeline(None) == Answer("model")
        assert pipeline("x" * 101).rejected == Rejected(
            "too_large", "decode", "the record has 101 bytes, input.max_bytes is 100"
        )
        late = pipeline(good, headers={"ce_expirytime": "2020-01-01T00:00:00Z"})
        assert late.rejected is not None
        assert late.rejected.reason == "expired"
        assert pipeline(good, headers=[("x-shop", "7"), ("y", b"\0")]).headers == (("x-shop", b"7"),)
        with pytest.raises(TypeError, match="got int, expected bytes"):
            pipeline(7)  # type: ignore[arg-type]


def test_custom_code_refuses_and_asks_for_another_try(numbers: Path) -> None:
    """A Reject of custom code is the answer's refusal, without the payload; a Retry is tried again until it works."""
    (numbers.parent / "shop_code.py").write_text(
        "from streaminfer import Reject, Retry\n"
        "seen = []\n"
        "def best(outputs):\n"
        "    seen.append(1)\n"
        "    if len(seen) == 1:\n"
        "        raise Retry('away', after_s=0.01)\n"
        "    if len(seen) == 2:\n"
        "        return {'best': int(outputs['y'].argmax())}\n"
        "    if len(seen) == 3:\n"
        "        raise Reject('nothing is good enough')\n"
        "    raise ValueError('secret-of-the-record')\n"
    )
    record = {"features": [1, 2, 3, 4], "note": "secret-of-the-record"}
    with Pipeline.load(numbers, ["postprocess=shop_code:best"]) as pipeline:
        assert pipeline(record).prediction["best"] in (0, 1, 2)
        assert pipeline(record).rejected == Rejected("invalid", "postprocess", "nothing is good enough")
        assert pipeline(record).rejected == Rejected("model_error", "postprocess", "[payload]")
    sys.modules.pop("shop_code")


def test_payloads_are_opened_and_results_shown_as_they_were(
    numbers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With compression on both ends a plain value is answered as a wrapped one is, and the result is readable."""
    with Pipeline.load(numbers, ["input.unwrap=[gzip]", "output.wrap=[gzip]"]) as pipeline:
        answer = pipeline({"features": [1, 2, 3, 4]})
    assert answer.rejected is None
    assert len(answer.prediction["outputs"]["y"]) == 3
    assert ("content-encoding", b"gzip") in answer.headers


def test_no_store_is_written(numbers: Path) -> None:
    """A result that `output.offload` would put into a store is returned whole, and the store stays empty."""
    store = numbers.parent / "store"
    store.mkdir()
    offload = json.dumps({"to": f"file://{store}/", "over_bytes": 1})
    with Pipeline.load(numbers, [f"output.offload={offload}"]) as pipeline:
        assert "outputs" in pipeline({"features": [1, 2, 3, 4]}).prediction
    assert list(store.iterdir()) == []


def test_a_reference_is_followed(numbers: Path) -> None:
    """A record that names a file is answered with the file's content; one that is not allowed is refused."""
    (numbers.parent / "allowed").mkdir()
    (numbers.parent / "allowed" / "one.json").write_text('{"features": [1, 2, 3, 4]}')
    reference = json.dumps(
        {"from": "header:ref", "allow": [f"file://{numbers.parent}/allowed/"], "appear_s": 0}
    )
    with Pipeline.load(numbers, [f"input.reference={reference}"]) as pipeline:
        whole = pipeline({"features": [1, 2, 3, 4]})
        named = pipeline(b"", headers={"ref": f"file://{numbers.parent}/allowed/one.json"})
        assert named.prediction == whole.prediction
        refused = pipeline(b"", headers={"ref": f"file://{numbers}"}).rejected
        assert refused is not None
        assert (refused.reason, refused.stage) == ("reference_refused", "fetch")


def test_windows_over_records_are_refused(numbers: Path) -> None:
    """Records that are answered together with earlier ones cannot be answered alone: one sentence that names the setting."""
    with pytest.raises(ConfigError, match=r"input\.window: a record is answered together with earlier ones"):
        Pipeline.load(numbers, ["input.window={size: 4}"])


def test_a_sick_model_ends_the_pipeline_and_a_closed_one_answers_nobody(
    numbers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that no longer gives its known answer raises SickModel; a closed pipeline says that it is closed."""
    pipeline = Pipeline.load(numbers, ["model.threads=1"])
    model = pipeline._rollouts[0].stable.model
    monkeypatch.setattr(type(model), "run", lambda *_: (_ for _ in ()).throw(RuntimeError("broken")))
    monkeypatch.setattr(type(model), "sickness", lambda _: "it gives other answers")
    with pytest.raises(SickModel, match=r"is sick: .*it gives other answers"):
        pipeline({"features": [1, 2, 3, 4]})
    pipeline.close()
    pipeline.close()
    with pytest.raises(ValueError, match="this Pipeline is closed"):
        pipeline({"features": [1, 2, 3, 4]})


def test_tests_of_users_load_a_model_once(numbers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`testing.answer` loads a file once, and again when the file has changed."""
    loads: list[Any] = []
    load = Pipeline.load
    monkeypatch.setattr(
        Pipeline, "load", classmethod(lambda _, *args, **named: loads.append(args) or load(*args, **named))
    )
    rejected = testing.answer(numbers, value=b"{}", headers={"x-model": "a"}, key="k").rejected
    assert rejected is not None
    assert rejected.reason == "invalid"
    assert testing.answer(numbers, {"features": [1, 2, 3, 4]}).rejected is None
    assert len(loads) == 1
    numbers.write_text(numbers.read_text() + "order: none\n")
    os.utime(numbers, ns=(1, 1))
    assert testing.answer(numbers, {"features": [1, 2, 3, 4]}).rejected is None
    assert len(loads) == 2


def test_the_public_names_are_there_and_import_is_light() -> None:
    """Every public name can be imported from `streaminfer`; importing the package alone loads no runtime and no client."""
    for name in streaminfer.__all__:
        assert getattr(streaminfer, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Pipelines'"):
        streaminfer.Pipelines  # noqa: B018
    script = "import sys, streaminfer; print(*{'numpy', 'worker', 'onnxruntime', 'confluent_kafka'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_hidden_worker_package_is_an_import_error(tmp_path: Path) -> None:
    """`from streaminfer import Pipeline` beside a file worker.py of the user's says which file is in the way."""
    (tmp_path / "worker.py").write_text("raise RuntimeError('this must not run')\n")
    done = subprocess.run(
        [sys.executable, "-c", "from streaminfer import Pipeline"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert f"another Python module named worker comes first: {tmp_path / 'worker.py'}" in done.stderr
    assert "this must not run" not in done.stderr


def test_custom_code_in_a_file_called_worker_is_named(numbers: Path) -> None:
    """Custom code `worker:...` is refused with the reason: the package of streaminfer has that name."""
    with pytest.raises(
        ConfigError, match="custom code worker:best: worker is the package of streaminfer itself"
    ):
        Pipeline.load(numbers, ["postprocess=worker:best"])
