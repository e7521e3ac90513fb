"""The examples of vision models and of an autoencoder, each with a model that is made here, through `streaminfer check`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import pytest
from onnx import helper
from test_answers_fit import loaded
from test_postprocess_anomaly import reconstruction

from worker.cli.main import main
from worker.cli.sample import answer
from worker.errors import ConfigError

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def answering(size: tuple[int, int], metadata: dict[str, str], **outputs: Any) -> bytes:
    """Pictures (N, 3, height, width) -> these arrays for each, plus the picture's mean times 0."""
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
    ]
    constants: dict[str, Any] = {"axes": np.array([1, 2, 3]), "zero": np.float32(0)}
    for name, value in outputs.items():
        constants[f"{name}_value"] = value[np.newaxis].astype(np.float32)
        constants[f"{name}_shape"] = np.array([-1, *[1] * value.ndim])
        nodes.append(helper.make_node("Reshape", ["nothing", f"{name}_shape"], [f"{name}_column"]))
        nodes.append(helper.make_node("Add", [f"{name}_column", f"{name}_value"], [name]))
    found = [models.tensor(name, np.float32, ["N", *value.shape]) for name, value in outputs.items()]
    made = onnx.load_from_string(
        models.build(nodes, [models.tensor("x", np.float32, ["N", 3, *size])], found, constants)
    )
    helper.set_model_props(made, metadata)
    return bytes(made.SerializeToString())


def candidates(rows: int, *columns: Any) -> Any:
    """A head of 50 candidates, of which the first ones are these."""
    head = np.zeros((rows, 50))
    head[:, : len(columns)] = np.array(columns).T
    return head


NAMES = {"names": "{0: 'person', 1: 'bicycle', 2: 'car'}"}
CELLS = np.stack([np.full((64, 64), 0.5), np.tri(64), np.zeros((64, 64))])
MODELS = {
    "boxes": lambda: answering(
        (64, 64),
        NAMES | {"task": "detect"},
        output0=candidates(
            7, [32, 32, 16, 16, 0.45, 0, 0], [10, 10, 8, 8, 0, 0.9, 0], [50, 50, 8, 8, 0, 0, 0.45]
        ),
    ),
    "masks": lambda: answering(
        (64, 64),
        NAMES | {"task": "segment"},
        output0=candidates(9, [32, 32, 16, 16, 0.9, 0, 0, 1, -1]),
        output1=np.stack([np.full((16, 16), 1.0), np.zeros((16, 16))]),
    ),
    "points": lambda: answering(
        (64, 64),
        {"task": "pose", "names": "{0: 'person'}", "kpt_shape": "[2, 3]"},
        output0=candidates(11, [32, 32, 16, 16, 0.9, 32, 16, 0.75, 64, 64, 0.25]),
    ),
    "segmentation": lambda: answering((512, 512), {}, logits=CELLS),
    "anomaly": reconstruction,
}


@pytest.mark.parametrize(
    ("name", "sample"), [(name, "readings.json" if name == "anomaly" else "frames/7.png") for name in MODELS]
)
def test_the_command_in_an_example_answers(
    name: str,
    sample: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The command in its second line succeeds with such a model and shows a result of the documented shape."""
    path = tmp_path / "model.onnx"
    path.write_bytes(MODELS[name]())
    monkeypatch.setenv("MODEL", str(path))
    told = (EXAMPLES / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[1].split("streaminfer ")[1]
    assert told == f"check examples/{name}.yaml --offline --sample examples/{sample}"
    command = [part.replace("examples/", f"{EXAMPLES}/") for part in told.split()]
    assert main([*command, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    [found] = [line["message"] for line in lines if line["check"] == "sample"]
    SHOWN[name](json.loads(found)["prediction"])


def _boxes(found: Any) -> None:
    """7.png has 8 x 8 pixels, which the model saw as 64 x 64: the bicycle is not asked for, the car scores too little."""
    [box] = found["boxes"]
    assert (box["label"], box["score"]) == ("person", pytest.approx(0.45))
    assert box["xyxy"] == [3, 3, 5, 5]


def _masks(found: Any) -> None:
    [box] = found["boxes"]
    assert found["size"] == [8, 8]
    assert sum(box["rle"]) == 8 * 8
    assert sum(box["rle"][1::2]) == 2 * 2


def _points(found: Any) -> None:
    [box] = found["boxes"]
    assert box["keypoints"] == [[4, 2, 0.75], [8, 8, 0.25]]


def _segmentation(found: Any) -> None:
    assert found["size"] == [8, 8]
    assert sum(found["rle"][1::2]) == 8 * 8
    assert found["shares"] == pytest.approx({"car": 0.5, "road": 0.5}, abs=0.07)


def _anomaly(found: Any) -> None:
    assert found == {"score": 0.25, "anomaly": False}


SHOWN: dict[str, Any] = {
    "boxes": _boxes,
    "masks": _masks,
    "points": _points,
    "segmentation": _segmentation,
    "anomaly": _anomaly,
}


@pytest.mark.parametrize(
    ("imgsz", "pixels"),
    [("[24, 40]", 24 * 40), ("640", None), ("[0, 40]", None), ("[1e9, 40]", None), ("", None)],
)
def test_the_size_in_ultralytics_metadata_is_the_default(
    tmp_path: Path, imgsz: str, pixels: int | None
) -> None:
    """A model of free sides gets pictures of the size that its file says; without one, the settings must give it."""
    nodes = [
        helper.make_node("Cast", ["x"], ["floats"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "one"], ["ones"]),
        helper.make_node("ReduceSum", ["ones", "axes"], ["y"], keepdims=0),
    ]
    constants = {"axes": np.array([1, 2, 3]), "zero": np.float32(0), "one": np.float32(1)}
    given = models.tensor("x", np.uint8, ["N", 3, "H", "W"])
    model = onnx.load_from_string(
        models.build(nodes, [given], [models.tensor("y", np.float32, ["N"])], constants)
    )
    helper.set_model_props(model, {"imgsz": imgsz} if imgsz else {})
    path = EXAMPLES / "frames" / "7.png"
    if pixels is None:
        with pytest.raises(ConfigError, match="size: required"):
            loaded(tmp_path, model.SerializeToString(), "regression", format="image")
        return
    rollout = loaded(tmp_path, model.SerializeToString(), "regression", format="image")
    assert answer(rollout, path.read_bytes())["prediction"] == {"value": 3 * pixels}
