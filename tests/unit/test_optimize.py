"""`optimize`: the table is what anyone measures again, the best model is written, and each mistake is one sentence."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import cv2
import models
import numpy as np
import onnxruntime
import pytest
from optimize_support import RANDOM, residual, weights
from sklearn.metrics import r2_score

from worker.batch import Array
from worker.cli import main as cli
from worker.model import session
from worker.optimize import judge, measure
from worker.optimize.items import Item, split
from worker.optimize.table import METHODS

DEMO = Path(session.__file__).parents[1] / "demo_data"


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "SECONDS", 0.01)
        patch.setattr(measure, "SIZES", (2, 16))
        yield


def optimize(model: Path, data: Path, out: Path, *options: str) -> int:
    return cli.main(["optimize", str(model), "--data", str(data), "--out", str(out), *options])


def refused(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> str:
    """The one sentence of a command that ends with this exit code."""
    assert cli.main(["optimize", *arguments]) == code
    said = [line for line in capsys.readouterr().err.splitlines() if "streaminfer" in line]
    assert len(said) == 1
    return said[0]


# the digits: everything about the table, from one run


class Run:
    """One run over the demo's model and the scans it never saw."""

    def __init__(self, folder: Path) -> None:
        self.digits, self.out = folder / "digits", folder / "out"
        with np.load(DEMO / "digits.npz") as held_out:
            frames, labels = held_out["frames"], held_out["labels"]
        for index, (frame, label) in enumerate(zip(frames, labels, strict=True)):
            (self.digits / str(label)).mkdir(exist_ok=True, parents=True)
            cv2.imwrite(str(self.digits / str(label) / f"{index}.png"), frame)
        arguments = ["--config", str(DEMO / "digits.yaml"), "--keep-all", "--seed", "1"]
        assert optimize(DEMO / "digits.onnx", self.digits, self.out, *arguments) == 0
        self.report = json.loads((self.out / "report.json").read_text())
        self.rows = {row["name"]: row for row in self.report["rows"]}

    def measured_again(self, model: Path) -> tuple[float, Array]:
        """Accuracy on the held-out part, and the classes, by ONNX Runtime alone: no code of the worker."""
        names = self.report["data"]["held_out"]
        frames = [cv2.imread(str(self.digits / name), cv2.IMREAD_GRAYSCALE) for name in names]
        pixels = np.stack([cv2.resize(f, (28, 28), interpolation=cv2.INTER_LINEAR) for f in frames])
        x = pixels[:, np.newaxis].astype(np.float32) * np.float32(0.00392157)
        one = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
        source = one.get_inputs()[0].name
        scores = np.concatenate([one.run(None, {source: row[np.newaxis]})[0] for row in x])
        classes = scores.argmax(axis=1)
        return float(np.mean(classes == [int(name.split("/")[0]) for name in names])), classes


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory, _quick: None) -> Run:
    return Run(tmp_path_factory.mktemp("optimize"))


def test_every_row_is_what_is_measured_again(digits: Run) -> None:
    """Accuracy, agreement, bytes and SHA-256 of each row are those of its file, measured without the worker."""
    _, classes = digits.measured_again(DEMO / "digits.onnx")
    measured = [row for row in digits.rows.values() if row["loss"] is not None]
    assert {row["method"] for row in measured} >= {
        "",
        "simplify",
        "fp16",
        "int8-dynamic",
        "int8-static",
        "prune",
    }
    for row in measured:
        name = row["name"].replace(" ", "-").replace("%", "").replace("+-", "")
        file = digits.out / "candidates" / f"{name}.onnx"
        accuracy, again = digits.measured_again(file)
        assert row["accuracy"] == pytest.approx(
            accuracy, abs=0.003
        )  # a batch rounds otherwise than a record alone
        assert row["agreement"] == pytest.approx(float(np.mean(again == classes)), abs=0.003)
        assert row["loss"] == pytest.approx(digits.rows["original"]["accuracy"] - row["accuracy"])
        assert row["bytes"] == file.stat().st_size
        assert row["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        assert 0 < row["best_us"] <= row["alone_us"]


def test_the_fastest_that_keeps_the_loss_is_written(digits: Run) -> None:
    """model.onnx is the file of the chosen row; no row within the loss is faster by more than the tie."""
    chosen = digits.rows[digits.report["chosen"]]
    assert chosen["verdict"] == "chosen"
    assert hashlib.sha256((digits.out / "model.onnx").read_bytes()).hexdigest() == chosen["sha256"]
    kept = [row for row in digits.rows.values() if row["loss"] is not None and row["loss"] <= 0.01]
    assert chosen["best_us"] <= min(row["best_us"] for row in kept) * measure.ALIKE
    assert chosen["loss"] <= 0.01


def test_no_method_sees_what_is_measured(digits: Run) -> None:
    """Calibration and held-out part share no record, and are all records; every class is in both."""
    calibration, held_out = digits.report["data"]["calibration"], digits.report["data"]["held_out"]
    assert not set(calibration) & set(held_out)
    assert len(calibration) == 200
    assert len(calibration) + len(held_out) == 599
    assert {name.split("/")[0] for name in calibration} == {name.split("/")[0] for name in held_out}


def test_every_method_has_a_row_and_says_why_it_does_not_help(digits: Run) -> None:
    """Each method of the table has a row; one that is slower, or was not made, gives a reason."""
    assert {row["method"] for row in digits.rows.values()} == {"", *METHODS}
    for row in digits.rows.values():
        if row["verdict"] in ("does not help", "not made", "lost"):
            assert row["reason"]
    assert "65,536" in digits.rows["int4"]["reason"]
    assert "each record runs alone" in digits.rows["int8-dynamic"]["reason"]


def test_the_written_model_runs_in_the_worker(
    digits: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`check --sample` with the written model and the labels beside it answers a scan with its digit."""
    text = (DEMO / "digits.yaml").read_text().replace("path: digits.onnx", "path: model.onnx")
    (digits.out / "digits.yaml").write_text(text)
    capsys.readouterr()
    sample = sorted((digits.digits / "7").iterdir())[0]
    assert (
        cli.main(["check", str(digits.out / "digits.yaml"), "--offline", "--json", "--sample", str(sample)])
        == 0
    )
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(line["ok"] for line in lines)
    assert '"label": "7"' in next(line["message"] for line in lines if line["check"] == "sample")


def test_the_report_says_how_to_measure_again(digits: Run) -> None:
    """Both reports have seed, versions, machine and the table."""
    assert digits.report["seed"] == 1
    assert digits.report["versions"]["onnxruntime"] == onnxruntime.__version__
    text = (digits.out / "report.md").read_text()
    assert f"| {digits.report['chosen']} |" in text
    assert "Seed 1; streaminfer" in text


# data


def test_prepared_inputs_with_classes_are_measured_by_accuracy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An .npz file with an array for each input and `labels` needs no configuration; --json prints rows and a summary."""
    model = models.write(tmp_path, models.mlp())
    x = weights(60, 20, scale=4.0)
    one = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    labels = one.run(None, {"x": x})[0].argmax(axis=1)
    labels[:6] = (labels[:6] + 1) % 10
    np.savez(tmp_path / "data.npz", x=x, labels=labels)
    assert optimize(model, tmp_path / "data.npz", tmp_path / "out", "--methods", "int8-static", "--json") == 0
    first, second, summary = map(json.loads, capsys.readouterr().out.splitlines())
    held_out = [
        int(name.partition(":")[2])
        for name in json.loads((tmp_path / "out/report.json").read_text())["data"]["held_out"]
    ]
    assert first["accuracy"] == pytest.approx(np.mean([row >= 6 for row in held_out]))
    assert (first["type"], second["method"], summary["type"]) == ("row", "int8-static", "summary")
    assert summary["chosen"] in (first["name"], second["name"])


def test_records_pass_through_the_pipeline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lines of JSON are read as the pipeline reads them, and the field that --label names has the class."""
    models.write(tmp_path, models.mlp(features=3, classes=2), "rows.onnx")
    (tmp_path / "rows.yaml").write_text(
        "input: {topics: [in], format: json, fields: [a, b, c]}\n"
        "model: {path: rows.onnx}\n"
        "postprocess: {classification: {labels: [good, bad]}}\n"
        "output: {topic: out}\n"
        "dead_letter: {topic: dead}\n"
        'kafka: {bootstrap.servers: "localhost:9092", group.id: g}\n'
    )
    rows = [{"a": float(i), "b": -i / 7, "c": 1.5, "was": "bad" if i % 3 else "good"} for i in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    options = ["--config", str(tmp_path / "rows.yaml"), "--label", "was", "--methods", "fp16", "--json"]
    assert optimize(tmp_path / "rows.onnx", tmp_path / "rows.jsonl", tmp_path / "out", *options) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[0])
    one = onnxruntime.InferenceSession(str(tmp_path / "rows.onnx"), providers=["CPUExecutionProvider"])
    report = json.loads((tmp_path / "out/report.json").read_text())
    held_out = [rows[int(name.partition(":")[2]) - 1] for name in report["data"]["held_out"]]
    x = np.array([[row["a"], row["b"], row["c"]] for row in held_out], np.float32)
    expected = one.run(None, {"x": x})[0].argmax(axis=1) == [row["was"] == "bad" for row in held_out]
    assert first["accuracy"] == pytest.approx(expected.mean())
    assert first["agreement"] == 1


def test_where_nothing_helps_the_original_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A network that no method can change is written as it was, and the command succeeds."""
    model = models.write(tmp_path, models.identity(), "model.onnx")
    np.save(tmp_path / "data.npy", weights(10, 4))
    assert optimize(model, tmp_path / "data.npy", tmp_path / "out", "--methods", "fp16,int4,prune") == 0
    assert (tmp_path / "out" / "model.onnx").read_bytes() == model.read_bytes()
    assert "chosen: nothing else keeps the loss" in capsys.readouterr().out


def test_a_missing_package_costs_one_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without onnxslim the row of `simplify` says what to install; the other methods go on."""
    monkeypatch.setitem(sys.modules, "onnxslim", None)
    model = models.write(tmp_path, models.mlp())
    np.save(tmp_path / "data.npy", weights(10, 20))
    assert optimize(model, tmp_path / "data.npy", tmp_path / "out", "--methods", "simplify,fp16") == 0
    rows = {row["method"]: row for row in json.loads((tmp_path / "out/report.json").read_text())["rows"]}
    assert rows["simplify"]["reason"] == "needs onnxslim: pip install 'streaminfer[optimize]'"
    assert rows["fp16"]["loss"] is not None


def test_external_data_are_read_and_one_file_is_written(tmp_path: Path) -> None:
    """A model with external data is tried with every method; each file of the table stands alone."""
    model = models.external(tmp_path)
    width = session.load(model).signature.inputs[0].shape[1]
    np.save(tmp_path / "data.npy", weights(12, width or 1))
    options = ["--methods", "fp16,int8-static", "--keep-all", "--max-loss", "0.9"]
    assert optimize(model, tmp_path / "data.npy", tmp_path / "out", *options) == 0
    rows = json.loads((tmp_path / "out" / "report.json").read_text())["rows"]
    assert [row["name"] for row in rows if row["loss"] is not None] == ["original", "fp16", "int8-static"]
    for file in (tmp_path / "out").rglob("*.onnx"):
        onnxruntime.InferenceSession(file.read_bytes(), providers=["CPUExecutionProvider"])


def test_a_model_whose_answers_are_not_finite_is_no_bug(tmp_path: Path) -> None:
    """The original loses nothing whatever it answers: NaN agrees with NaN."""
    model = models.write(tmp_path, models.logarithm())
    width = session.load(model).signature.inputs[0].shape[1]
    np.save(tmp_path / "data.npy", -np.abs(weights(12, width or 1)))
    assert optimize(model, tmp_path / "data.npy", tmp_path / "out", "--methods", "simplify") == 0
    assert json.loads((tmp_path / "out" / "report.json").read_text())["rows"][0]["loss"] == 0


def test_a_network_of_pictures_with_fixed_batch_is_measured(tmp_path: Path) -> None:
    """A model that takes four items at once is fed four, and its time is per item."""
    model = models.write(tmp_path, models.fixed_batch(4))
    np.save(tmp_path / "data.npy", weights(12, 4))
    assert optimize(model, tmp_path / "data.npy", tmp_path / "out", "--methods", "simplify") == 0
    row = json.loads((tmp_path / "out/report.json").read_text())["rows"][0]
    assert row["best_size"] == 4
    assert row["best_us"] == pytest.approx(row["alone_us"] / 4)


# choosing, judging, dividing


def measured(name: str, loss: float, best_us: float, nbytes: int, alone_us: float = 10.0) -> Any:
    """A row's figures without a model."""
    score = judge.Score(None, 1 - loss, 1 - loss)
    times = measure.Times(alone_us, best_us, 8)
    return measure.Measured(measure.Candidate(name, name, Path(name)), None, score, loss, nbytes, times)  # type: ignore[arg-type]


def test_the_choice() -> None:
    """The fastest within the loss; among those as fast the smallest; else the original."""
    original = measured("original", 0, 5.0, 100)
    fast, lossy = measured("fast", 0.009, 2.0, 50), measured("lossy", 0.011, 1.0, 10)
    as_fast, slow_alone = (
        measured("as fast", 0.0, 2.04, 40),
        measured("slow alone", 0.0, 2.0, 10, alone_us=20),
    )
    assert measure.best_of([original, fast, lossy], 0.01).candidate.name == "fast"
    assert measure.best_of([original, fast, lossy], 0.02).candidate.name == "lossy"
    assert measure.best_of([original, fast, as_fast, slow_alone], 0.01).candidate.name == "as fast"
    assert measure.best_of([original, measured("slower", 0, 6.0, 100)], 0.01).candidate.name == "original"


def box(label: str, *xyxy: float) -> dict[str, Any]:
    return {"label": label, "score": 0.5, "xyxy": [*xyxy]}


def test_boxes_agree_by_label_and_overlap() -> None:
    """F1 counts a box once, of the same label, from half of the union on."""
    ours = {"boxes": [box("a", 0, 0, 10, 10), box("b", 20, 20, 30, 30)]}
    assert judge.boxes(ours, ours) == 1
    assert judge.boxes(ours, {"boxes": [box("a", 0, 0, 10, 9)]}) == pytest.approx(2 / 3)
    assert judge.boxes(ours, {"boxes": [box("b", 0, 0, 10, 10)]}) == 0
    assert judge.boxes(ours, {"boxes": [box("a", 0, 0, 10, 4), box("b", 20, 20, 30, 30)]}) == 0.5
    assert judge.boxes({"boxes": []}, {"boxes": []}) == 1
    assert judge.boxes(ours, {"boxes": []}) == 0


def test_a_single_number_is_judged_by_the_variance_that_is_kept(tmp_path: Path) -> None:
    """One number for each item has no class and no direction: the agreement is R2, as scikit-learn has it."""
    random = np.random.default_rng(0)
    ours, theirs = random.normal(size=(2, 30, 1, 1))
    compare = judge.explained([*ours])
    found = np.mean([compare(a, b) for a, b in zip(ours, theirs, strict=True)])
    assert found == pytest.approx(r2_score(ours.reshape(-1), theirs.reshape(-1)))
    model = models.write(tmp_path, models.mlp(classes=1))
    np.save(tmp_path / "data.npy", weights(40, 20, scale=4.0))
    assert optimize(model, tmp_path / "data.npy", tmp_path / "out", "--methods", "int8-static") == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["loss"] == "1 minus agreement with the original (R2)"
    assert 0.95 < report["rows"][1]["agreement"] < 1


def test_pictures_need_no_configuration(tmp_path: Path, digits: Run) -> None:
    """--image gives the preprocessing of a folder of pictures; the folders' names are the classes."""
    image = "{size: [28, 28], color: gray, scale: 0.00392157}"
    options = ["--image", image, "--methods", "fp16", "--count", "200", "--seed", "1"]
    assert optimize(DEMO / "digits.onnx", digits.digits, tmp_path, *options) == 0
    row = json.loads((tmp_path / "report.json").read_text())["rows"][0]
    assert row["accuracy"] > 0.94


def test_answers_that_are_not_finite_agree_with_nothing() -> None:
    """A NaN or an infinity in a candidate's answer is no agreement, by class and by cosine."""
    ours = np.array([[1.0, 2.0]])
    assert judge.same_class(ours, np.array([[np.nan, 3.0]])) == 0
    assert judge.cosine(ours, np.array([[np.inf, 2.0]])) == 0
    assert judge.cosine(ours, 3 * ours) == pytest.approx(1)
    assert judge.same_class(ours, np.array([[0.1, 0.2]])) == 1


def test_the_split_is_by_seed_and_each_class_has_its_share() -> None:
    """The same seed gives the same parts, another one others; 10 of 40 items of four classes are 2 or 3 of each."""
    items = [Item(str(i), {"x": np.zeros((1, 1))}, label=i % 4) for i in range(40)]
    names = [[item.name for item in split(items, 10, seed).calibration] for seed in (0, 0, 1)]
    assert names[0] == names[1] != names[2]
    assert sorted(sum(int(name) % 4 == label for name in names[0]) for label in range(4)) == [2, 2, 3, 3]
    assert len(split(items, 100, 0).calibration) == 20


def test_a_detector_is_judged_by_its_boxes(tmp_path: Path) -> None:
    """With a detection pipeline the agreement is F1 of the boxes that the pipeline's own postprocess finds."""
    head = np.zeros((6, 20), np.float32)  # layout yolov8: 4 coordinates and 2 classes, of 20 boxes
    head[:4] = np.array([[16, 16, 8, 8]]).T
    head[4, 3] = head[5, 7] = 0.9
    head[0, 7] = 5
    models.write(tmp_path, models.detector(head), "boxes.onnx")
    (tmp_path / "boxes.yaml").write_text(
        "input: {topics: [in], format: image}\n"
        "preprocess: {image: {size: [32, 32]}}\n"
        "model: {path: boxes.onnx}\n"
        "postprocess: {detection: {layout: yolov8, labels: [cat, dog]}}\n"
        "output: {topic: out}\n"
        "dead_letter: {topic: dead}\n"
        'kafka: {bootstrap.servers: "localhost:9092", group.id: g}\n'
    )
    (tmp_path / "pictures").mkdir()
    for index in range(6):
        cv2.imwrite(str(tmp_path / "pictures" / f"{index}.png"), np.full((32, 32, 3), 40 * index, np.uint8))
    options = ["--config", str(tmp_path / "boxes.yaml"), "--methods", "fp16"]
    assert optimize(tmp_path / "boxes.onnx", tmp_path / "pictures", tmp_path / "out", *options) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["loss"] == "1 minus agreement with the original (F1 of boxes)"
    assert [row["agreement"] for row in report["rows"] if row["loss"] is not None] == [1, 1]


# mistakes


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--data", "nowhere"], 2, "--data: nowhere does not exist"),
        (["--methods", "simplify,magic"], 2, "magic is none of simplify, fp16"),
        (["--max-loss", "7"], 2, "expected a share from 0 to 1"),
        (["--out", "data.npy"], 2, "--out: data.npy is a file, expected a folder"),
        (["--out", "data.npy/out"], 3, "data.npy/out: Not a directory"),
        (["--out", "."], 2, "where MODEL itself is"),
        (["--set", "name=x"], 2, "--set goes with --config"),
        (["--target", "cuda"], 3, "--target cuda: the installed ONNX Runtime cannot use it"),
        (["--data", "other.npy"], 2, "an item of x is float32 [7], expected float32 [4]"),
        (["--data", "wrong.npz"], 2, "has no array x"),
        (["--data", "empty"], 2, "empty has 0 records"),
        (
            ["--data", "lines.jsonl", "--label", "kind"],
            2,
            "lines.jsonl line 1: expected a JSON object with a class",
        ),
    ],
)
def test_a_mistake_is_one_sentence(
    options: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each mistake ends with its exit code and names what was wrong."""
    monkeypatch.chdir(tmp_path)
    models.write(tmp_path, models.identity())
    np.save("data.npy", weights(10, 4))
    np.save("other.npy", weights(10, 7))
    np.savez("wrong.npz", z=weights(10, 4))
    Path("empty").mkdir()
    Path("lines.jsonl").write_text("[1, 2, 3, 4]\n[1, 2, 3, 4]\n")
    arguments = {"--data": "data.npy", "--out": "out"} | dict(zip(options[::2], options[1::2], strict=True))
    flat = [part for pair in arguments.items() for part in pair]
    assert said in refused(capsys, code, "model.onnx", *flat)


@pytest.mark.parametrize(
    ("model", "window", "said"),
    [
        ("{path: model.onnx, state: {h: y}}", "", "model.state makes each item depend on those before"),
        (
            "{path: model.onnx}",
            ", fields: [a], window: {size: 4}",
            "input.window makes items of several records",
        ),
    ],
)
def test_pipelines_whose_records_are_not_answered_one_by_one_are_refused(
    model: str, window: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """State and windows over records are one sentence that names the setting."""
    models.write(tmp_path, models.identity())
    np.save(tmp_path / "data.npy", weights(4, 4))
    (tmp_path / "c.yaml").write_text(
        f"input: {{topics: [in], format: json{window}}}\nmodel: {model}\n"
        "output: {topic: out}\ndead_letter: {topic: dead}\n"
        'kafka: {bootstrap.servers: "localhost:9092", group.id: g}\n'
    )
    arguments = ["--data", str(tmp_path / "data.npy"), "--out", str(tmp_path / "out")]
    config = ["--config", str(tmp_path / "c.yaml")]
    assert said in refused(capsys, 2, str(tmp_path / "model.onnx"), *arguments, *config)


def test_a_record_that_the_pipeline_refuses_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A picture that cannot be decoded ends the command with its name."""
    models.write(tmp_path, residual())
    (tmp_path / "pictures").mkdir()
    for name in ("a", "b"):
        picture = RANDOM.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / "pictures" / f"{name}.png"), picture)
    (tmp_path / "pictures" / "c.png").write_bytes(b"no picture")
    arguments = [
        str(tmp_path / "model.onnx"),
        "--data",
        str(tmp_path / "pictures"),
        "--out",
        str(tmp_path / "out"),
    ]
    assert "--data: c.png: undecodable" in refused(capsys, 2, *arguments)
