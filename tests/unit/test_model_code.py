"""Models that are the user's own Python: what they get, what becomes of what they give, and of what they raise."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fakes import columns_of

from worker.batch import Batch, Partition
from worker.cli.main import main
from worker.errors import ConfigError, StartError, WorkerError
from worker.serving.engine import Engine
from worker.serving.load import load
from worker.serving.loader import Loader, Refusal, Swap
from worker.serving.rollout import Rollout
from worker.serving.versions import resolved
from worker.settings import validate

CODE = textwrap.dedent(
    '''
    import json
    import numpy as np
    from worker import Reject

    CALLS = []

    class Sums:
        """Gives values for JSON."""

        def load(self, path):
            self.factor = json.loads((path / "factor.json" if path.is_dir() else path).read_text())

        def forward(self, items):
            CALLS.append([each.tolist() for each in items])
            if any(each[0] == 666 for each in items):
                raise RuntimeError("the number of the beast")
            return [self.answer(each) for each in items]

        def answer(self, item):
            if item[0] == 13:
                return Reject("unlucky")
            if item[0] == 99:
                return {"sum": float("nan")}
            return {"sum": item.sum() * self.factor, "mine": np.float32(0.5)}

    class Scores(Sums):
        """Gives arrays."""

        inputs = {"x": ("float32", (3,))}

        def answer(self, item):
            return Reject("unlucky") if item[0] == 13 else item * self.factor

    class Pairs(Sums):
        """Gives two arrays, of two inputs."""

        inputs = {"a": ("float32", (2,)), "b": ("int64", ())}

        def forward(self, items):
            return [{"y": each["a"] * each["b"], "z": np.array(["z"])} for each in items]

    class Wordy(Sums):
        def load(self, path): ...

        def forward(self, items):
            return [{"text": each.upper()} for each in items]

    class Shapes(Wordy):
        def forward(self, items):
            return [{"shape": list(each.shape), "type": str(each.dtype), "max": each.max()} for each in items]

    class Short(Wordy):
        def forward(self, items):
            return ["only one"]

    class Sick(Wordy):
        def forward(self, items):
            if any(each[0] == 7 for each in items):
                self.broken = True
            return [{"sum": -1.0 if hasattr(self, "broken") else each.sum()} for each in items]

    class Falls(Wordy):
        def load(self, path):
            raise OSError("no weights")

    class Spoils(Wordy):
        def forward(self, items):
            items[0][0] = 1
            return items

    class Odd(Wordy):
        inputs = {"x": "float32"}

    class NoLoad: ...
    '''
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's module, and a file for its model."""
    name = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(CODE)
    (tmp_path / "factor.json").write_text("2")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def configured(folder: Path, name: str, model: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    (module,) = folder.glob("own_*.py")
    return {
        "input": {"topics": ["in"], "format": "json"},
        "model": {"code": f"{module.stem}:{name}", "path": "factor.json", **(model or {})},
        "output": {"topic": "out"},
        "dead_letter": {"topic": "dead"},
        "kafka": {"bootstrap.servers": "localhost:9", "group.id": "g"},
        **more,
    }


def rollout_of(folder: Path, name: str, model: dict[str, Any] | None = None, **more: Any) -> Rollout:
    with_files, _ = resolved(validate(configured(folder, name, model, **more), folder))
    (rollout,) = load(with_files).values()
    return rollout


def answered(rollout: Rollout, values: Sequence[bytes]) -> Batch:
    """The batch of these records, finished."""
    columns = columns_of(Partition("in", 0), range(len(values)), [*values])
    servable = rollout.choose()
    batch = Batch(
        None, range(len(values)), columns, rollout.route, servable, time.monotonic_ns(), time.time() * 1000
    )
    engine = Engine()
    for start, stop in engine.shards(batch):
        engine.decode(batch, start, stop)
    engine.infer(batch)
    if batch.sick is None:
        engine.finish(batch)
    return batch


def predictions(rollout: Rollout, values: Sequence[bytes]) -> list[Any]:
    """By record: its prediction, or the reason of its rejection."""
    batch = answered(rollout, values)
    assert batch.outcomes is not None
    rejected = batch.outcomes.rejected
    return [
        rejected[row].reason if row in rejected else json.loads(body or b"")["prediction"]
        for row, body in enumerate(batch.outcomes.bodies)
    ]


def numbers(*rows: list[float]) -> list[bytes]:
    return [json.dumps({"features": row}).encode() for row in rows]


def test_values_are_the_predictions(folder: Path) -> None:
    """Without a postprocess any value that JSON can hold is the prediction, numpy's numbers included; records share a call."""
    rollout = rollout_of(folder, "Sums")
    calls = sys.modules[type(rollout.choose().model._sessions._calling.made).__module__].CALLS  # type: ignore[attr-defined]
    calls.clear()
    assert predictions(rollout, numbers([1, 2], [3, 4])) == [
        {"sum": 6.0, "mine": 0.5},
        {"sum": 14.0, "mine": 0.5},
    ]
    assert calls == [[[1.0, 2.0], [3.0, 4.0]]]


def test_the_guilty_record_stands_alone(folder: Path) -> None:
    """A record that makes the call fail is a ``model_error``; one with NaN is ``non_finite``; a Reject refuses its record; all others
    are answered."""
    rollout = rollout_of(folder, "Sums")
    found = predictions(rollout, numbers(*([number, 1] for number in (1, 666, 2, 13, 99, 3))))
    assert [each if isinstance(each, str) else each["sum"] for each in found] == [
        4.0,
        "model_error",
        6.0,
        "invalid",
        "non_finite",
        8.0,
    ]


def test_arrays_go_through_a_postprocess(folder: Path) -> None:
    """Arrays are the outputs of a model like any other: classified, or as they are; a Reject among them refuses its record."""
    (folder / "labels.txt").write_text("a\nb\nc\n")
    more = {"postprocess": {"classification": {"labels": "labels.txt"}}}
    found = predictions(rollout_of(folder, "Scores", **more), numbers([1, 5, 2], [13, 0, 0], [3, 1, 1]))
    assert [each if isinstance(each, str) else each["label"] for each in found] == ["b", "invalid", "a"]
    raw = predictions(rollout_of(folder, "Scores"), numbers([1, 5, 2]))
    assert raw == [{"outputs": {"output": [2.0, 10.0, 4.0]}}]


def test_several_inputs_are_a_dict(folder: Path) -> None:
    """Of several inputs an item is a dict of arrays by name; several outputs come back the same way."""
    rollout = rollout_of(
        folder,
        "Pairs",
        preprocess={"inputs": {"a": {"from": "features"}, "b": {"from": "times"}}},
    )
    value = b'{"features": [1, 2], "times": 3}'
    assert predictions(rollout, [value]) == [{"outputs": {"y": [3.0, 6.0], "z": ["z"]}}]


@pytest.mark.parametrize(
    ("format_", "preprocess", "shape", "kind"),
    [
        ("json", {}, [4], "float32"),
        ("image", {"image": {"size": [8, 6]}}, [3, 8, 6], "float32"),
        ("image", {"image": {"size": [8, 6], "color": "gray", "layout": "nhwc"}}, [8, 6, 1], "float32"),
        ("bytes", {"bytes": {"length": 5}}, [5], "uint8"),
    ],
)
def test_an_item_follows_from_the_record(
    folder: Path, format_: str, preprocess: dict[str, Any], shape: list[int], kind: str
) -> None:
    """A class that does not say its inputs gets what the format and the preprocess make of a record."""
    value = {
        "json": numbers([1, 2, 3, 4])[0],
        "image": cv2.imencode(".png", np.full((20, 20, 3), 9, np.uint8))[1].tobytes(),
        "bytes": b"hello",
    }[format_]
    rollout = rollout_of(folder, "Shapes", input={"topics": ["in"], "format": format_}, preprocess=preprocess)
    (found,) = predictions(rollout, [value])
    assert (found["shape"], found["type"]) == (shape, kind)


def test_text_is_text(folder: Path) -> None:
    """Of texts an item is a str."""
    rollout = rollout_of(folder, "Wordy", input={"topics": ["in"], "format": "text"})
    assert predictions(rollout, [b"over", "dür".encode()]) == [{"text": "OVER"}, {"text": "DÜR"}]


def test_records_of_unlike_length_are_all_answered(folder: Path) -> None:
    """Items of unlike shapes go into calls of their own."""
    found = predictions(rollout_of(folder, "Sums"), numbers([1], [1, 1, 1], [2], [2, 2, 2]))
    assert [each["sum"] for each in found] == [2.0, 6.0, 4.0, 12.0]


def test_code_that_is_no_longer_itself_is_sick(folder: Path) -> None:
    """Where the known item gets another answer the model is sick, and no record is blamed."""
    rollout = rollout_of(folder, "Sick")
    assert rollout.choose().model.sickness() is None
    answered(rollout, numbers([7, 1, 1, 1]))
    assert rollout.choose().model.sickness() is not None


def test_items_cannot_be_changed(folder: Path) -> None:
    """What a call got is whole when the call is repeated with fewer items: writing into an item fails."""
    rollout = rollout_of(folder, "Spoils", {"version": "1"})
    assert predictions(rollout, numbers([5, 1])) == ["model_error"]


@pytest.mark.parametrize(
    ("name", "more", "sentence"),
    [
        ("NoLoad", {}, r"expected a class with load\(path\) and forward\(items\)"),
        ("Falls", {}, r"cannot load .*factor.json: OSError: no weights"),
        ("Odd", {}, r"inputs: expected names with the type and shape of one item"),
        ("Nothing", {}, r"has no attribute Nothing"),
        ("Short", {}, r"answers one made-up item and not two of them: .*gave 1 results for 2 items"),
        ("Sums", {"postprocess": "classification"}, r"gives values for JSON; expected arrays"),
        (
            "Scores",
            {"model": {"path": "nothing.bin"}},
            r"nothing.bin does not exist; expected a file or a folder",
        ),
        ("Scores", {"model": {"providers": ["cuda"]}}, r"model.providers: got \['cuda'\], expected nothing"),
        (
            "Scores",
            {"model": {"state": {"a": "b"}}},
            r"model.state: expected not to be set beside model.code",
        ),
        ("Sums", {"input": {"topics": ["in"], "format": "npy"}}, r"does not tell what an item is"),
        ("Sums", {"model": {"sha256": "0" * 64}}, r"model.sha256: .* expected 0000"),
    ],
)
def test_a_mistake_is_one_sentence(folder: Path, name: str, more: dict[str, Any], sentence: str) -> None:
    """What does not go together is said at the start, with the setting's name."""
    with pytest.raises(WorkerError, match=sentence) as error:
        rollout_of(folder, name, **more)
    assert isinstance(error.value, ConfigError | StartError)


def test_a_module_that_is_no_class_name(folder: Path) -> None:
    """The setting's form is checked before anything is imported."""
    document = configured(folder, "Sums")
    document["model"]["code"] = "own.Sums"
    with pytest.raises(ConfigError, match=r"model.code: got 'own.Sums', expected \"module:Class\""):
        validate(document, folder)


def test_versions_of_code_take_over(folder: Path) -> None:
    """A version in a repository is a folder of any files; a new one has an object of its own; one that cannot be loaded is refused."""

    def put(version: str, text: str) -> None:
        part = folder / "models" / "sums" / f".{version}"
        part.mkdir(parents=True)
        (part / "factor.json").write_text(text)
        (part / "model.sha256").write_bytes(
            subprocess.run(["sha256sum", "factor.json"], cwd=part, check=True, capture_output=True).stdout
        )
        part.rename(folder / "models" / "sums" / version)

    put("1", "2")
    settings = validate(
        configured(
            folder,
            "Sums",
            {"path": None, "repository": "models", "name": "sums", "poll_s": 1e-9},
        ),
        folder,
    )
    with_files, found = resolved(settings)
    took: dict[str, int] = {}
    rollouts = load(with_files, took)
    (rollout,) = rollouts.values()
    loader = Loader(settings, rollouts, {name: (each, took[name]) for name, each in found.items()})
    assert predictions(rollout, numbers([1, 2]))[0]["sum"] == 6.0
    put("2", "no number")
    loader.look()
    assert loader.turn() == [Refusal(rollout.route.name, "unloadable")]
    put("3", "10")
    loader.look()
    (event,) = loader.turn()
    assert isinstance(event, Swap)
    assert rollout.choose().model_version == "3"
    assert predictions(rollout, numbers([1, 2]))[0]["sum"] == 30.0


def test_no_runtime_is_loaded(folder: Path) -> None:
    """A worker whose only model is custom code loads no ONNX Runtime."""
    (folder / "config.yaml").write_text(json.dumps(configured(folder, "Sums")))
    script = (
        "import sys; from worker.cli.main import main; code = main(['check', 'config.yaml', '--offline']); "
        "print(code, 'onnxruntime' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1] == "0 False", done.stdout + done.stderr


def test_a_step_may_be_custom_code(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Steps whose models are classes answer a record one after the other, and a condition may look at any value of the first."""
    document = configured(folder, "Sums")
    model = document.pop("model")
    document["steps"] = [
        {"name": "first", "model": model},
        {"name": "second", "model": model, "when": {"first.sum": {"above": 5}}},
    ]
    (folder / "config.yaml").write_text(json.dumps(document))
    for features, steps in (([1, 2], ["first", "second"]), ([1, 1], ["first"])):
        (folder / "record.json").write_text(json.dumps({"features": features}))
        sample = ["--offline", "--sample", str(folder / "record.json")]
        assert main(["check", str(folder / "config.yaml"), *sample, "--json"]) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        (message,) = [line["message"] for line in lines if line["check"] == "sample"]
        prediction = json.JSONDecoder().raw_decode(message)[0]["prediction"]
        assert [name for name, each in prediction.items() if each is not None] == steps
