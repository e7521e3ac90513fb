"""``explain``: what it says of one record is what the model was given and answered, and it leaves no trace on the broker."""

from __future__ import annotations

import base64
import gzip
import itertools
import json
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import models
import numpy as np
import onnxruntime
import pytest
import yaml
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from worker.batch import Columns, Headers, Partition
from worker.cli.explain_page import page
from worker.cli.explained import Picture
from worker.cli.main import main
from worker.dead_letters.compose import compose
from worker.errors import Rejection, StartError
from worker.kafka import one_record
from worker.kafka.broker import EmbeddedBroker
from worker.kafka.one_record import RecordReader

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = '</pre><script>alert(1)</script><img src="https://evil.example/x" onerror=alert(2)>\x1b[2J'


class Stand:
    """A broker with topics of its own, a folder, and the command."""

    def __init__(self, bootstrap: str, folder: Path, capsys: pytest.CaptureFixture[str], number: int) -> None:
        self.bootstrap, self.folder = bootstrap, folder
        self.source, self.dead = f"in-{number}", f"dead-{number}"
        self._capsys = capsys
        self._producer = Producer({"bootstrap.servers": bootstrap})

    def configure(self, **document: Any) -> Path:
        whole = {
            "name": "shop",
            "input": {"topics": [self.source], "format": "json"},
            "output": {"topic": "out"},
            "dead_letter": {"topic": self.dead},
            "kafka": {"bootstrap.servers": self.bootstrap, "group.id": "shop"},
        } | document
        if "pipelines" in document:
            del whole["input"], whole["output"]
        path = self.folder / "worker.yaml"
        path.write_text(yaml.safe_dump(whole))
        return path

    def send(
        self, value: bytes | None, key: bytes | None = None, headers: Headers | None = None, topic: str = ""
    ) -> None:
        self._producer.produce(topic or self.source, value, key, 0, headers=[*(headers or [])])
        assert self._producer.flush(20) == 0

    def fail(
        self,
        value: bytes,
        rejection: Rejection,
        headers: Headers | None = None,
        offset: int = 7,
        max_bytes: int = 1_000_000,
    ) -> None:
        """The worker's dead letter of a record that it refused."""
        columns = Columns([value], [b"k"], [headers], [1_700], [offset], [Partition(self.source, 0)])
        letter = compose(columns, 0, rejection, "shop", "client", "shop@old", max_bytes)
        self.send(letter.value, letter.key, letter.headers, self.dead)

    def run(self, config: Path, place: str, *more: str) -> tuple[int, str, str]:
        self._capsys.readouterr()
        code = main(["explain", str(config), place, *more])
        told = self._capsys.readouterr()
        return code, told.out, told.err

    def report(self, config: Path, offset: int = 0, *more: str, topic: str = "") -> dict[str, Any]:
        code, out, err = self.run(config, f"{topic or self.source}/0/{offset}", "--json", *more)
        assert code == 0, err
        found: dict[str, Any] = json.loads(out)
        return found


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as found:
        yield found


NUMBERS = itertools.count()


@pytest.fixture
def stand(broker: EmbeddedBroker, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Stand:
    made = Stand(broker.bootstrap, tmp_path, capsys, next(NUMBERS))
    broker.create_topic(made.source, 2)
    broker.create_topic(made.dead, 1)
    return made


def features(*numbers: float) -> bytes:
    return json.dumps({"features": numbers}).encode()


def test_tensors_and_prediction_are_those_of_the_runtime(stand: Stand) -> None:
    """Shape, type, min, mean and max of inputs and outputs equal what ONNX Runtime and numpy say of the same picture."""
    file = (ROOT / "examples" / "frames" / "7.png").read_bytes()
    stand.send(file, b"camera", [("trace", b"1"), ("none", None)])
    document = yaml.safe_load((ROOT / "examples" / "digits.yaml").read_text())
    path = ROOT / "worker" / "demo_data" / "digits.onnx"
    document["postprocess"]["classification"]["labels"] = str(path.with_suffix(".txt"))
    config = stand.configure(
        input={"topics": [stand.source], "format": "image"},
        preprocess=document["preprocess"],
        postprocess=document["postprocess"],
        model={"path": str(path)},
    )
    report = stand.report(config)
    decoded = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_GRAYSCALE)
    assert decoded is not None
    pixels = cv2.resize(decoded, (28, 28))
    given = (pixels * np.float32(0.00392157))[np.newaxis, np.newaxis].astype(np.float32)
    session = onnxruntime.InferenceSession(str(path))
    (answer,) = session.run(None, {session.get_inputs()[0].name: given})
    (run,) = report["runs"]
    for told, array in ((run["inputs"][0], given), (run["outputs"][0], answer)):
        assert told["shape"] == [*array.shape]
        assert told["dtype"] == "float32"
        for name, value in (("low", array.min()), ("mean", array.mean()), ("high", array.max())):
            assert told[name] == pytest.approx(float(value), rel=1e-4, abs=1e-6)
        assert (told["nan"], told["infinite"]) == (0, 0)
    assert report["result"]["prediction"]["label"] == str(answer.argmax())
    assert report["record"]["headers"][0][0] == "trace"
    assert report["record"]["headers"][1] == ["none", None]
    assert report["decode"]["picture"] == {"height": 8, "width": 8}
    assert set(report["us"]) == {"queue", "decode", "wait", "infer", "encode"}


def test_numbers_that_are_none_are_counted(stand: Stand) -> None:
    """Of the logarithm of two negative numbers, zero and one: two NaN, one infinity, and the dead letter's reason."""
    models.write(stand.folder, models.logarithm())
    stand.send(features(-1, -2, 0, 1))
    config = stand.configure(model={"path": "model.onnx"})
    report = stand.report(config)
    (output,) = report["runs"][0]["outputs"]
    assert (output["nan"], output["infinite"], output["low"], output["high"]) == (2, 1, 0.0, 0.0)
    assert report["refused"]["reason"] == "non_finite"
    text = stand.run(config, f"{stand.source}/0/0")[1]
    assert "2 NaN, 1 infinite" in text
    assert "refused as non_finite in stage" in text


def test_it_only_reads(stand: Stand) -> None:
    """No topic is made, nothing is committed for the group, nothing is sent."""
    models.write(stand.folder, models.mlp(3, 2))
    stand.send(features(1, 2, 3))
    admin = AdminClient({"bootstrap.servers": stand.bootstrap})
    before = {*admin.list_topics(timeout=20).topics}
    stand.report(stand.configure(model={"path": "model.onnx"}))
    assert {*admin.list_topics(timeout=20).topics} == before
    consumer = Consumer({"bootstrap.servers": stand.bootstrap, "group.id": "shop"})
    (place,) = consumer.committed([TopicPartition(stand.source, 0)], timeout=20)
    assert place.offset < 0
    assert consumer.get_watermark_offsets(TopicPartition(stand.dead, 0), timeout=20) == (0, 0)
    consumer.close()


def test_a_dead_letter_says_why_and_its_record_is_explained(stand: Stand) -> None:
    """The letter's reason comes from its headers; the record goes by its old headers to the pipeline that takes it now."""
    models.write(stand.folder, models.mlp(3, 2))
    shared = {"model": {"path": "model.onnx"}, "output": {"topic": "out"}}
    taken = {"topics": [stand.source], "format": "json"}
    config = stand.configure(
        pipelines={
            "a": {**shared, "input": taken, "when": {"header": "x-model", "equals": "a"}},
            "b": {**shared, "input": taken, "when": {"header": "x-model", "equals": "b"}},
        }
    )
    stand.fail(features(1, 2, 3), Rejection("invalid", "decode", "too \x1b[2J short"), [("x-model", b"b")])
    report = stand.report(config, topic=stand.dead)
    assert (report["dead_letter"]["reason"], report["dead_letter"]["model"]) == ("invalid", "shop@old")
    assert report["record"]["place"] == f"{stand.source}/0/7"
    assert [name for name, _ in report["record"]["headers"]] == ["x-model"]
    assert report["route"]["pipeline"] == "b"
    assert report["route"]["asked"][0]["why"] == "expected header x-model is a; it is b"
    assert report["refused"] is None
    text = stand.run(config, f"{stand.dead}/0/0")[1]
    assert "invalid in stage decode" in text
    assert "\x1b" not in text
    stand.send(features(1, 2, 3))
    assert stand.report(config)["refused"]["reason"] == "unroutable"


def test_a_letter_without_its_value_is_explained_from_its_topic(stand: Stand) -> None:
    """Where the value did not fit the dead-letter topic, the record is read where it came from; gone from there, that is told."""
    models.write(stand.folder, models.mlp(3, 2))
    config = stand.configure(model={"path": "model.onnx"})
    whole = features(1, 2, 3) + b" " * 3000
    stand.send(whole)
    why = Rejection("invalid", "decode", "no")
    stand.fail(whole, why, offset=0, max_bytes=2000)
    stand.fail(whole, why, offset=9, max_bytes=2000)
    assert stand.report(config, topic=stand.dead)["result"]["prediction"]
    report = stand.report(config, 1, topic=stand.dead)
    assert "not there yet" in report["dead_letter"]["missing"]
    assert "record" not in report
    assert stand.run(config, f"{stand.dead}/0/1", "--html", str(stand.folder / "gone.html"))[0] == 0


def test_a_version_of_the_repository_can_be_chosen(stand: Stand) -> None:
    """Without --version the configured one answers; with it that one; one that is not there is exit 3."""
    for version in ("1", "2"):
        folder = stand.folder / "models" / "shop" / version
        folder.mkdir(parents=True)
        model = models.identity() if version == "1" else models.logarithm()
        models.write(folder, model)
    stand.send(features(2, 2, 2, 2))
    config = stand.configure(model={"repository": "models", "name": "shop"})
    assert stand.report(config)["model"]["version"] == "2"
    old = stand.report(config, 0, "--version", "1")
    assert old["model"]["version"] == "1"
    assert old["runs"][0]["outputs"][0]["mean"] == 2.0
    code, _, said = stand.run(config, f"{stand.source}/0/0", "--version", "3")
    assert (code, said.count("\n")) == (3, 1)


def test_each_step_shows_its_tensors_and_its_prediction(stand: Stand) -> None:
    """Of two models in a row each run names its step, the second is given what the first predicted; times name both."""
    models.write(stand.folder, models.identity())
    steps = [
        {"name": "first", "model": {"path": "model.onnx"}, "postprocess": {"embedding": {}}},
        {"name": "second", "from": "first.embedding", "model": {"path": "model.onnx"}},
    ]
    stand.send(features(0, 3, 0, 4))
    report = stand.report(stand.configure(steps=steps))
    assert [run["step"] for run in report["runs"]] == ["first", "second"]
    assert report["steps"]["first"] == [{"embedding": [0, 3, 0, 4]}]
    assert report["runs"][1]["inputs"][0]["high"] == 4.0
    assert {"infer: first", "infer: second"} <= set(report["us"])


def test_a_record_is_opened_as_the_worker_opens_it(stand: Stand) -> None:
    """A compressed record is decoded from what is inside; an encrypted one with a key that is not there is refused in words."""
    models.write(stand.folder, models.mlp(3, 2))
    stand.send(gzip.compress(features(1, 2, 3)), headers=[("content-encoding", b"gzip")])
    stand.send(
        b"x" * 80, headers=[("streaminfer.encryption", b"v1;alg=A256GCM;kid=b;salt=MDEyMzQ1Njc4OWFiY2RlZg")]
    )
    key = base64.b64encode(bytes(32)).decode()
    report = stand.report(stand.configure(model={"path": "model.onnx"}))
    assert report["decode"]["unwrapped"]
    assert report["decode"]["payload"]["text"] == features(1, 2, 3).decode()
    config = stand.configure(
        model={"path": "model.onnx"},
        input={"topics": [stand.source], "format": "json", "unwrap": ["aes-256-gcm"]},
        encryption={"keys": {"a": key}},
    )
    assert stand.report(config, 1)["refused"]["reason"] == "undecodable"


@pytest.mark.parametrize(
    ("place", "more", "code", "said"),
    [
        ("{source}/0/5", (), 3, "not there yet; the newest record of the partition is at offset 0"),
        ("{source}/1/0", (), 3, "there is no record in partition 1"),
        ("{source}/9/0", (), 3, "has 2 partitions, expected one of 0 to 1"),
        ("other/0/0", (), 2, "does not read other; expected {source}, or dead_letter.topic {dead}"),
        ("{source}/0", (), 2, "expected TOPIC/PARTITION/OFFSET"),
        ("{source}/0/0", ("--version", "1"), 2, "is one file; expected model.repository"),
        ("{source}/0/0", ("--html", "no/such/folder.html"), 2, "no/such is no folder"),
        ("{dead}/0/0", (), 3, "no dead letter of a worker"),
    ],
)
def test_a_mistake_is_one_sentence(
    stand: Stand, place: str, more: tuple[str, ...], code: int, said: str
) -> None:
    """It names the place or the option and what was expected; the exit code is that of the contract."""
    models.write(stand.folder, models.mlp(3, 2))
    stand.send(features(1, 2, 3))
    stand.send(b"somebody else's", topic=stand.dead)
    names = {"source": stand.source, "dead": stand.dead}
    found = stand.run(stand.configure(model={"path": "model.onnx"}), place.format(**names), *more)
    assert (found[0], found[1], found[2].count("\n")) == (code, "", 1)
    assert said.format(**names) in found[2]


@pytest.mark.parametrize("next_offset", [8, None], ids=["a later record", "the end"])
def test_an_offset_without_a_record_is_told(monkeypatch: pytest.MonkeyPatch, next_offset: int | None) -> None:
    """Where the broker gives a later record, or the partition's end, the one asked for was compacted away or is a mark."""
    error = None if next_offset is not None else SimpleNamespace(code=lambda: KafkaError._PARTITION_EOF)
    message = SimpleNamespace(
        error=lambda: error,
        offset=lambda: next_offset,
    )
    consumer = SimpleNamespace(
        get_watermark_offsets=lambda place, timeout: (2, 10),
        assign=lambda places: None,
        poll=lambda timeout: message,
        close=lambda: None,
    )
    monkeypatch.setattr(one_record, "look_up", lambda *_args, **_named: ({"t": 1}, False))
    monkeypatch.setattr(one_record, "build", lambda *_args: consumer)
    client: Any = SimpleNamespace(kafka={"bootstrap.servers": "h:1"}, name="x")
    with RecordReader(client, ["t"]) as reader, pytest.raises(StartError, match=r"t/0/7: .*compacted away"):
        reader.read(Partition("t", 0), 7)
    with RecordReader(client, ["t"]) as reader, pytest.raises(StartError, match=r"oldest .* offset 2"):
        reader.read(Partition("t", 0), 1)


# -- the page ------------------------------------------------------------------------------------------------


class Elements(HTMLParser):
    """Which elements and attributes a page has, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


def harmless(text: str) -> Elements:
    found = Elements(text)
    assert not found.tags & {"script", "img", "iframe", "object", "link", "base", "form"}
    assert not any(name.startswith("on") or name == "style" for name, _ in found.attributes)
    links = [value for name, value in found.attributes if name in ("src", "href", "xlink:href")]
    assert all(value.startswith("data:image/") for value in links)
    assert "\x1b" not in text
    return found


def test_what_a_record_says_is_no_markup(stand: Stand) -> None:
    """Names and values of headers, the key and a message that hold HTML are text on the page, which has no script at all."""
    models.write(stand.folder, models.mlp(3, 2))
    stand.send(b'{"features": "' + HOSTILE.encode() + b'"}', HOSTILE.encode(), [(HOSTILE, HOSTILE.encode())])
    file = stand.folder / "why.html"
    code, _, said = stand.run(
        stand.configure(model={"path": "model.onnx"}), f"{stand.source}/0/0", "--html", str(file)
    )
    assert code == 0, said
    assert file.stat().st_mode & 0o077 == 0
    assert harmless(file.read_text()).text.count("<script>alert(1)</script>") >= 3


def test_boxes_stand_on_the_picture_and_labels_are_text() -> None:
    """Each box is drawn in pixels of the record's own picture; a label, a tensor or a step that holds HTML stays text."""
    box = {"label": HOSTILE, "score": 0.5, "xyxy": [10.0, 20.0, 110.0, 70.0]}
    region = {"score": 0.5, "points": [[0, 0], [4, 0], [4, 2], [0, 2]]}
    tensor = {
        "name": HOSTILE,
        "dtype": "float32",
        "shape": [1, HOSTILE],
        "low": 0.0,
        "mean": None,
        "high": 1.0,
    }
    tensor |= {"nan": 1, "infinite": 0}
    run = {"step": HOSTILE, "model": HOSTILE, "inputs": [tensor], "outputs": [], "error": HOSTILE}
    report = {
        "record": {"place": HOSTILE, "timestamp_ms": 0, "key": None, "headers": [], "value": None},
        "route": {"pipeline": HOSTILE, "asked": [], "output": HOSTILE},
        "notes": [HOSTILE],
        "model": {"name": HOSTILE, "version": HOSTILE, "provider": "cpu"},
        "runs": [run],
        "steps": {HOSTILE: [HOSTILE]},
        "refused": None,
        "result": {
            "prediction": {"find": {"boxes": [box, {"xyxy": ["<", 1, 2, 3]}]}, "read": {"regions": [region]}}
        },
        "us": {HOSTILE: 5},
    }
    text = page(report, Picture(b"\xff\xd8", "image/jpeg", 640, 480))
    found = harmless(text)
    assert '<svg class="picture" viewBox="0 0 640 480"' in text
    assert '<rect x="10.00" y="20.00" width="100.00" height="50.00"' in text
    assert 'points="0.00,0.00 4.00,0.00 4.00,2.00 0.00,2.00"' in text
    assert HOSTILE.replace("\x1b", "\\x1b")[:60] in found.text


def test_the_page_stands_alone_and_has_both_themes() -> None:
    """Its policy lets nothing be loaded and no script run; its style has dark colours and is the one that the policy names."""
    text = page({"dead_letter": {"place": "d/0/1", "reason": None, "stage": None, "message": "", "pipeline": None,
                                 "model": None, "class": None, "attempts": None, "missing": "gone"}}, None)  # fmt: skip
    assert "default-src 'none'" in text
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text
    assert "not explained: gone" in Elements(text).text
