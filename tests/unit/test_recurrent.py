"""Recurrent models: the items of a record in order, records side by side, nothing kept between records."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnxruntime
import pytest
import sounds
import yaml
from test_windows import answers

from worker.batch import Array
from worker.errors import ConfigError
from worker.serving.load import load as load_rollouts
from worker.serving.rollout import Rollout
from worker.settings import load

SAMPLES, CONTEXT = 512, 64
VAD = {"rate": 16_000, "window_s": SAMPLES / 16_000, "context_s": CONTEXT / 16_000}


def silero(name: str) -> str:
    return str(metadata.distribution("silero-vad").locate_file(f"silero_vad/data/{name}.onnx"))


def rollout_of(folder: Path, file: str, **sections: Any) -> Rollout:
    document: dict[str, Any] = {
        "input": {"topics": ["in"], "format": "audio"},
        "output": {"topic": "out"},
        "dead_letter": {"topic": "dead"},
        "kafka": {"bootstrap.servers": "localhost:9092", "group.id": "g"},
        **sections,
    }
    document["model"] = {"path": file, **sections.get("model", {})}
    path = folder / "worker.yaml"
    path.write_text(yaml.safe_dump(document))
    (found,) = load_rollouts(load(path)).values()
    return found


def vad(folder: Path, name: str, **sections: Any) -> Rollout:
    """Silero's detector of speech."""
    inputs: dict[str, Any] = {"input": {"from": "value", "audio": VAD}, "sr": {"constant": 16_000}}
    if name in ("silero_vad_half", "silero_vad_openvino_16k"):
        del inputs["sr"]
    return rollout_of(
        folder,
        silero(name),
        preprocess={"inputs": inputs},
        model={"state": {"state": "stateN"}},
        postprocess="regression",
        **sections,
    )


def by_hand(session: Any, samples: Array) -> list[float]:
    """The detector driven as its own package does: 64 samples before each chunk of 512, the state handed on."""
    state = np.zeros((2, 1, 128), np.float32)
    context = np.zeros((1, CONTEXT), np.float32)
    padded = np.concatenate([samples, np.zeros(-len(samples) % SAMPLES, np.float32)])
    names = {value.name for value in session.get_inputs()}
    found = []
    for start in range(0, len(padded), SAMPLES):
        chunk = np.concatenate([context, padded[np.newaxis, start : start + SAMPLES]], axis=1)
        feeds = {"input": chunk, "state": state}
        if "sr" in names:
            feeds["sr"] = np.array(16_000, np.int64)
        output, state = session.run(["output", "stateN"], feeds)
        context = chunk[:, -CONTEXT:]
        found.append(float(output[0, 0]))
    return found


def clips(seconds: Sequence[float]) -> tuple[list[bytes], list[Array]]:
    values = [sounds.file(sounds.speech(s, seed=n), 16_000) for n, s in enumerate(seconds)]
    return values, [np.frombuffer(value[44:], "<i2").astype(np.float32) / 32_768 for value in values]


@pytest.mark.parametrize(
    ("name", "batchable"),
    [
        ("silero_vad", True),
        ("silero_vad_16k_op15", True),
        ("silero_vad_half", True),
        ("silero_vad_openvino_16k", False),
    ],
)
def test_silero_answers_as_its_package_drives_it(tmp_path: Path, name: str, batchable: bool) -> None:
    """Each window's probability is that of the model driven by hand, to 1e-5, however many records run side by side."""
    rollout = vad(tmp_path, name)
    servable: Any = rollout.choose()
    assert servable.model.signature.batchable is batchable
    assert [spec.name for spec in servable.model.signature.inputs] == ["input"]
    values, heard = clips([0.9, 0.032, 2.05, 0.5, 1.4])
    session = onnxruntime.InferenceSession(silero(name))
    found = answers(rollout, values)
    probabilities: list[float] = []
    for answer, samples in zip(found, heard, strict=True):
        expected = by_hand(session, samples)
        got = [window["value"] for window in answer["predictions"]]
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
        assert answer["predictions"][-1]["end_s"] == len(samples) / 16_000
        probabilities += expected
    assert max(probabilities) > 0.5
    assert min(probabilities) < 0.1


def test_nothing_is_kept_between_records(tmp_path: Path) -> None:
    """A record's answer is the same after other records, beside others and alone."""
    rollout = vad(tmp_path, "silero_vad_16k_op15")
    values, _ = clips([1.0, 0.7, 1.3])
    first = [answer["predictions"] for answer in answers(rollout, values)]
    again = [answers(rollout, [value])[0]["predictions"] for value in values]
    turned = [answer["predictions"] for answer in answers(rollout, values[::-1])][::-1]
    for one, two, three in zip(first, again, turned, strict=True):
        for a, b, c in zip(one, two, three, strict=True):
            assert a == pytest.approx(b, rel=0, abs=1e-6)
            assert a == pytest.approx(c, rel=0, abs=1e-6)


def test_states_of_several_records_run_in_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step is one run over the records that still have an item, and the batch's size counts records."""
    rollout = vad(tmp_path, "silero_vad_16k_op15", batching={"max_size": 2})
    servable: Any = rollout.choose()
    inner: Any = servable.model._sessions._sessions
    sizes: list[int] = []
    run = inner.run

    def counted(feeds: dict[str, Array]) -> Any:
        sizes.append(len(feeds["input"]))
        return run(feeds)

    monkeypatch.setattr(inner, "run", counted)
    values, _ = clips([0.096, 0.16, 0.032])
    answers(rollout, values)
    assert sizes == [2, 2, 2, 1, 1, 1]


def test_a_state_that_sums_up(tmp_path: Path) -> None:
    """A model that adds its state to each item's sum gives the running sums of each record, by names of its dimensions or not."""
    model = models.write(tmp_path, models.running_sum())
    rollout = rollout_of(
        tmp_path,
        str(model),
        input={"topics": ["in"], "format": "oip"},
        model={"state": {"before": "after"}},
        postprocess="regression",
    )
    assert rollout.choose().model.signature.batchable  # type: ignore[attr-defined]

    def request(rows: list[list[float]]) -> bytes:
        data = {"name": "x", "datatype": "FP32", "shape": [len(rows), 2], "data": rows}
        return json.dumps({"inputs": [data]}).encode()

    found = answers(
        rollout, [request([[1, 2], [3, 4], [5, 6]]), request([[10, 0]]), request([[1, 1], [1, 1]])]
    )
    sums = [[p["value"] for p in answer["predictions"]] for answer in found]
    assert sums == [[3.0, 10.0, 21.0], [10.0], [2.0, 4.0]]


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        (
            {"sate": "stateN"},
            r"model\.state\.sate: the model has no such input; expected one of input, state, sr",
        ),
        (
            {"state": "stat"},
            r"model\.state\.state: the model has no output stat; expected one of output, stateN",
        ),
        ({"sr": "output"}, r"model\.state\.sr: the output output holds FP32, the input INT64"),
    ],
)
def test_a_state_that_is_not_there_is_refused_at_start(
    tmp_path: Path, state: dict[str, str], sentence: str
) -> None:
    """model.state names inputs and outputs that the model has, of one type."""
    with pytest.raises(ConfigError, match=sentence):
        rollout_of(tmp_path, silero("silero_vad"), model={"state": state}, preprocess={"audio": VAD})


def test_a_state_is_no_input_of_records(tmp_path: Path) -> None:
    """An input that model.state fills cannot be filled from records, too."""
    inputs = {
        "input": {"from": "value", "audio": VAD},
        "sr": {"constant": 16_000},
        "state": {"constant": 0},
    }
    with pytest.raises(ConfigError, match=r"preprocess\.inputs\.state: model\.state fills this input"):
        rollout_of(
            tmp_path,
            silero("silero_vad"),
            model={"state": {"state": "stateN"}},
            preprocess={"inputs": inputs},
        )
