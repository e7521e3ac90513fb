"""Settings: what a file means, what is refused and how a mistake is named."""

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import ConfigError, StartError
from worker.features.picture import ImageSettings
from worker.postprocess.classification import ClassificationSettings
from worker.postprocess.raw import RawSettings
from worker.settings import (
    MIB,
    Settings,
    check_budget,
    check_model_file,
    check_replicas,
    import_attribute,
    json_schema,
    labels_of,
    load,
    plaintext_hosts,
    validate,
)
from worker.settings.choice import Chosen

ROOT = Path(__file__).parents[2]
BASE = Path("/srv/worker")

MINIMAL: dict[str, Any] = {
    "input": {"topics": ["in"], "format": "json"},
    "model": {"path": "models/small.onnx"},
    "output": {"topic": "out"},
    "dead_letter": {"topic": "dead"},
    "kafka": {"bootstrap.servers": "localhost:9092", "group.id": "g"},
}
PIPELINE_KEYS = ("input", "model", "output")

FULL = """
name: digits
input:
  topics: [digits]
  format: image
  max_bytes: 8388608
  start: earliest
  tombstone: pass
preprocess:
  image: {size: [28, 28], resize: stretch, interpolation: linear, color: gray, layout: nchw, scale: 0.00392157,
          mean: [0.0], std: [1.0]}
model: {path: models/digits.onnx, name: null, version: null, sha256: null, providers: [cpu], threads: auto,
        instances: auto}
batching: {max_size: 64, max_wait_ms: 5}
postprocess:
  classification: {labels: models/digits.txt, top_k: 3}
output: {topic: digits.predictions, format: json, partition: key, headers: trace}
dead_letter: {topic: digits.dead-letter, stop_after: {ratio: 0.5, of_last: 1000}, max_crashes: 3}
metrics: {topic: worker.metrics, interval_s: 5, http: "127.0.0.1:9464"}
delivery: at_least_once
order: partition
limits: {in_flight_bytes: 268435456, prefetch_bytes: 16777216, output_bytes: 67108864, image_pixels: 40000000,
         batch_timeout_s: 60, stall_s: 60, drain_s: 25, revoke_s: 10, max_age_ms: null, expired: dead_letter}
kafka: {bootstrap.servers: "localhost:9092", group.id: digits}
"""


def changed(**sections: Any) -> dict[str, Any]:
    """The minimal document with sections replaced; ``a__b`` stands for ``a.b``."""
    document = copy.deepcopy(MINIMAL)
    for name, value in sections.items():
        section, _, key = name.partition("__")
        if key:
            document.setdefault(section, {})[key] = value
        else:
            document[section] = value
    return document


def checked(**sections: Any) -> Settings:
    return validate(changed(**sections), BASE)


def two_pipelines(**second: Any) -> dict[str, Any]:
    document = copy.deepcopy(MINIMAL)
    first = {key: document.pop(key) for key in PIPELINE_KEYS}
    first["when"] = {"header": "x-model", "equals": "a"}
    return document | {"pipelines": {"a": first, "b": copy.deepcopy(first) | second}}


@pytest.fixture
def written(tmp_path: Path) -> Any:
    """Writes a configuration file and gives its path."""

    def write(text: str) -> Path:
        path = tmp_path / "worker.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


# --- defaults and names


def test_minimal_file_has_the_documented_defaults() -> None:
    """With only the required keys every other setting has its documented default."""
    settings = checked()
    pipeline = settings.pipelines["small"]
    assert (settings.name, settings.delivery, settings.order) == ("small", "at_least_once", "partition")
    assert (pipeline.input.max_bytes, pipeline.input.start, pipeline.input.tombstone) == (
        8 * MIB,
        "earliest",
        "pass",
    )
    assert (pipeline.batching.max_size, pipeline.batching.max_wait_ms) == (64, 5.0)
    assert (pipeline.model.providers, pipeline.model.threads, pipeline.model.instances) == (
        ["cpu"],
        "auto",
        "auto",
    )
    assert pipeline.postprocess == Chosen("raw", RawSettings())
    assert (pipeline.output.format, pipeline.output.partition, pipeline.output.headers) == (
        "json",
        "key",
        "trace",
    )
    assert (settings.dead_letter.stop_after.ratio, settings.dead_letter.stop_after.of_last) == (0.5, 1000)
    assert (settings.dead_letter.max_crashes, settings.metrics.interval_s) == (3, 5.0)
    assert (settings.metrics.topic, settings.metrics.http, settings.security.allow_plaintext) == (
        None,
        None,
        False,
    )
    limits = settings.limits
    assert (limits.in_flight_bytes, limits.prefetch_bytes, limits.output_bytes) == (
        256 * MIB,
        16 * MIB,
        64 * MIB,
    )
    assert (limits.batch_timeout_s, limits.stall_s, limits.drain_s, limits.revoke_s) == (60, 60, 25, 10)
    assert (limits.image_pixels, limits.max_age_ms, limits.expired) == (40_000_000, None, "dead_letter")


def test_image_and_classification_defaults() -> None:
    """Preprocessing and classification named without options take their documented defaults."""
    pipeline = checked(preprocess={"image": {}}, postprocess={"classification": None}).pipelines["small"]
    image, best = pipeline.preprocess.options(ImageSettings), pipeline.postprocess.options
    assert image == ImageSettings()
    assert (image.size, image.layout, image.color, image.scale) == (None, None, "rgb", 1.0)
    assert (image.mean, image.std, image.pad_value, image.orientation) == ([0.0], [1.0], 114, "exif")
    assert image is not None
    assert isinstance(best, ClassificationSettings)
    assert (best.labels, best.top_k, best.activation, best.threshold) == (None, 1, "none", None)


def test_the_full_example_loads(written: Any) -> None:
    """A file with every section loads, its paths relative to itself."""
    path = written(FULL)
    pipeline = load(path).pipelines["digits"]
    assert pipeline.model.path == path.parent / "models/digits.onnx"
    assert pipeline.label_file == path.parent / "models/digits.txt"
    image = pipeline.preprocess.options(ImageSettings)
    assert image is not None
    assert image.size == (28, 28)


def test_names_follow_the_pipeline_then_the_worker_then_the_file() -> None:
    """The model's name is its own, else its pipeline's key, else the worker's, else the file's stem."""
    assert checked().pipelines["small"].model.name == "small"
    assert checked(name="w").pipelines["w"].model.name == "w"
    assert checked(name="w", model__name="m").pipelines["w"].model.name == "m"
    several = validate(two_pipelines(), BASE)
    assert several.name == "small"
    assert [pipeline.model.name for pipeline in several.pipelines.values()] == ["a", "b"]


def test_relative_paths_start_at_the_file() -> None:
    """An absolute path stays; a relative one starts at the file's directory, wherever the process runs."""
    assert checked(model__path="/m/x.onnx").pipelines["x"].model.path == Path("/m/x.onnx")
    assert checked(model__path="../x.onnx").pipelines["x"].model.path == BASE.parent / "x.onnx"
    assert checked(**{"kafka__ssl.ca.location": "ca.pem"}).kafka["ssl.ca.location"] == str(BASE / "ca.pem")
    assert checked(**{"kafka__ssl.ca.location": "probe"}).kafka["ssl.ca.location"] == "probe"


def test_kafka_values_become_text() -> None:
    """A client property reaches librdkafka as text, whatever type YAML reads from the file."""
    kafka = checked(
        **{"kafka__enable.idempotence": True, "kafka__linger.ms": 5, "kafka__sasl.username": None}
    ).kafka
    assert (kafka["enable.idempotence"], kafka["linger.ms"]) == ("true", "5")
    assert "sasl.username" not in kafka


def test_text_stays_as_written(written: Any) -> None:
    """A version 1.10, a password `no` and a header value `yes` are what was written, not what YAML 1.1 makes of them."""
    settings = load(
        written(FULL),
        ["model.version=1.10", "kafka.sasl.password=no", "when={header: h, equals: yes}", "name=0123"],
    )
    pipeline = settings.pipelines["0123"]
    assert pipeline.model.version == "1.10"
    assert pipeline.when is not None
    assert pipeline.when.equals == "yes"
    assert settings.kafka["sasl.password"] == "no"


# --- the environment and --set


def test_environment_variables_are_expanded(written: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables are replaced inside text, take defaults, and become numbers, lists or null where these belong."""
    monkeypatch.setenv("SIZE", "32")
    monkeypatch.setenv("TOPICS", "[a, b]")
    monkeypatch.delenv("HOST", raising=False)
    monkeypatch.setenv("PASSWORD", "[x]{")
    settings = load(
        written(FULL),
        [
            "batching.max_size=${SIZE}",
            "input.topics=${TOPICS}",
            "kafka.bootstrap.servers=${HOST:-localhost}:${PORT:-9092}",
            "kafka.sasl.password=${PASSWORD}",
            "limits.max_age_ms=${AGE:-null}",
        ],
    )
    assert settings.pipelines["digits"].batching.max_size == 32
    assert settings.pipelines["digits"].input.topics == ["a", "b"]
    assert settings.kafka["bootstrap.servers"] == "localhost:9092"
    assert settings.kafka["sasl.password"] == "[x]{"
    assert settings.limits.max_age_ms is None


def test_unset_variable_is_named_with_its_key(written: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unset variable without a default is refused by name and key."""
    monkeypatch.delenv("NOT_THERE", raising=False)
    with pytest.raises(ConfigError, match=r"model\.path.*NOT_THERE"):
        load(written(FULL), ["model.path=${NOT_THERE}"])


def test_overrides_lie_over_the_file(written: Any) -> None:
    """--set takes YAML values at dotted keys; behind `kafka.` the rest is one key."""
    overrides = [
        "input.topics=[x, y]",
        "kafka.group.id=other",
        "limits.max_age_ms=100",
        "metrics.http=null",
        "preprocess.image.mean=[0.5]",
    ]
    settings = load(written(FULL), overrides)
    assert settings.pipelines["digits"].input.topics == ["x", "y"]
    assert settings.kafka == {"bootstrap.servers": "localhost:9092", "group.id": "other"}
    assert (settings.limits.max_age_ms, settings.metrics.http) == (100, None)


def test_override_of_a_key_with_dots(written: Any) -> None:
    """--set reaches a tensor whose own name holds a dot, when the file has it."""
    document = two_pipelines(preprocess={"inputs": {"input.1": {"from": "a"}}})
    path = written(yaml.safe_dump(document))
    pipeline = load(path, ["pipelines.b.preprocess.inputs.input.1.from=z"]).pipelines["b"]
    assert pipeline.preprocess.inputs["input.1"].from_ == "z"


@pytest.mark.parametrize(
    "override", ["batching.max_size", "=3", "a..b=3", "input.topics=[x", "input.format.x=1"]
)
def test_malformed_override_is_one_sentence(written: Any, override: str) -> None:
    """A --set option that cannot be read is refused in one sentence."""
    with pytest.raises(ConfigError, match="--set"):
        load(written(FULL), [override])


# --- mistakes


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"input__topix": ["a"]}, "unknown key input.topix; the nearest known key is input.topics"),
        ({"topics": ["a"]}, "unknown key topics; the nearest known key is input.topics"),
        ({"limit": {}}, "unknown key limit; the nearest known key is limits"),
        ({"postprocess": {"clasification": {}}}, "the nearest known key is postprocess.classification"),
        ({"preprocess": {"radar": {}}}, "key preprocess.radar; expected one of "),
        (
            {"preprocess": {"image": {"letterbox": True}}},
            "the nearest known key is preprocess.image.resize: letterbox",
        ),
        ({"postprocess": {"detection": {"treshold": 1}}}, "known key is postprocess.detection.threshold"),
        (
            {"metrics__port": 1},
            "unknown key metrics.port; expected one of hosts, http, interval_s, tls, token, topic",
        ),
        ({"postprocess": {"regression": {"x": 1}}}, "key postprocess.regression.x; no key is expected there"),
        ({"postprocess": {"detection": {"iou": {"A": "0.5"}}}}, "got {A: 0.5}, expected a number"),
        (
            {"postprocess": {"detection": {"score": {"A": 2}}}},
            "detection.score: got {A: 2}, expected a number from",
        ),
        ({"postprocess": {"detection": {"score": "x"}}}, "got 'x', expected a number from 0 to 1, or such"),
        ({"batching__max_size": "abc"}, "batching.max_size: got 'abc', expected a whole number or 'auto'"),
        ({"batching__max_size": 0}, "batching.max_size: got 0, expected a number of at least 1 or 'auto'"),
        ({"batching__max_wait_ms": -1}, "batching.max_wait_ms: got -1, expected a number of at least 0"),
        ({"input__topics": "in"}, "input.topics: got 'in', expected a list"),
        ({"input__topics": []}, "input.topics: got [], expected at least one entry"),
        ({"input__topics": ["in.*"]}, "input.topics.0: got 'in.*', expected a topic name"),
        ({"input__format": "jpeg"}, "input.format: got 'jpeg', expected image, "),
        ({"delivery": "once"}, "delivery: got 'once', expected 'at_least_once', 'exactly_once' or 'queue'"),
        ({"model__providers": ["gpu"]}, "model.providers.0: got 'gpu', expected 'cpu', 'cuda' or 'tensorrt'"),
        ({"model__sha256": "abc"}, "model.sha256: got 'abc', expected 64 hexadecimal digits"),
        (
            {"preprocess": {"image": {"size": [28]}}},
            "preprocess.image.size: got [28], expected [height, width]",
        ),
        ({"preprocess": {"image": {"std": 0}}}, "preprocess.image.std: got 0, expected numbers other than 0"),
        ({"metrics": {"http": "9464"}}, "metrics.http: got '9464', expected \"host:port\""),
        (
            {"postprocess": {"raw": None, "regression": None}},
            "postprocess: got raw and regression, expected exactly",
        ),
        ({"postprocess": "regresion"}, "postprocess: got 'regresion', expected one of classification"),
        ({"input": None}, "input.topics is required"),
        ({"model": {}}, "model.path is required"),
        ({"dead_letter": None}, "dead_letter.topic is required"),
        ({"kafka__group.id": None}, "kafka.group.id is required"),
        ({"kafka": None}, "kafka.bootstrap.servers is required"),
        ({"input": 3}, "input: got 3, expected a mapping"),
        ({"preprocess": {"inputs": {"x": {}}}}, "preprocess.inputs.x.from is required"),
        (
            {"output__format": "oip", "postprocess": "regression"},
            "output.format: 'oip' goes with postprocess raw only",
        ),
        ({"input__fields": ["a"], "input__format": "npy"}, "input.fields: goes with input.format json or "),
        ({"preprocess": {"numeric": {}}, "input__format": "tensor"}, "preprocess.numeric: does not go with"),
        (
            {"preprocess": {"numeric": {}, "image": {}}},
            "preprocess: got numeric and image, expected exactly one of them",
        ),
        ({"output__topic": "in"}, "output.topic: got 'in', expected a topic that is not in input.topics"),
        (
            {"dead_letter__topic": "in"},
            "dead_letter.topic: got 'in', expected a topic that is not in input.topics",
        ),
        (
            {"metrics": {"topic": "in"}},
            "metrics.topic: got 'in', expected a topic that is not in input.topics",
        ),
        (
            {"input__max_bytes": 300 * MIB},
            "limits.in_flight_bytes: got 268435456, expected at least 331350016",
        ),
        ({"pipelines": {"a": {}}}, "input: expected under pipelines.<name>"),
    ],
)
def test_a_mistake_is_one_sentence_naming_the_key(change: dict[str, Any], sentence: str) -> None:
    """Every mistake names the key, what was there and what was expected."""
    with pytest.raises(ConfigError) as caught:
        checked(**change)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def paths_in(document: Any, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(document, dict):
        return [above]
    return [above, *(path for key, value in document.items() for path in paths_in(value, (*above, key)))]


def mistake_in(document: dict[str, Any]) -> str | None:
    try:
        validate(document, BASE)
    except ConfigError as error:
        return str(error)
    return None


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(st.sampled_from([path for path in paths_in(yaml.safe_load(FULL)) if path]), VALUES)
def test_whatever_stands_at_a_key_is_taken_or_named(path: tuple[str, ...], value: Any) -> None:
    """Any value at any key either makes settings or is one line that names a key."""
    document = yaml.safe_load(FULL)
    at = document
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    mistake = mistake_in(document)
    assert mistake is None or (path[0] in mistake and len(mistake.splitlines()) == 1)


def test_a_mistake_in_one_of_several_pipelines_is_named_in_full() -> None:
    """With several pipelines a mistake is named together with its pipeline's key."""
    with pytest.raises(
        ConfigError, match=r"unknown key pipelines\.b\.wen; the nearest known key is pipelines\.b\.when"
    ):
        validate(two_pipelines(wen={}), BASE)
    with pytest.raises(ConfigError, match=r"pipelines\.b\.output\.topic: got 'in'"):
        validate(two_pipelines(output={"topic": "in"}), BASE)


@pytest.mark.parametrize(
    "name",
    [
        "transactional.id",
        "plugin.library.paths",
        "sasl.kerberos.kinit.cmd",
        "ssl.engine.location",
        "enable.auto.commit",
        "enable.auto.offset.store",
        "partitioner",
        "auto.offset.reset",
    ],
)
def test_refused_client_properties_say_why(name: str) -> None:
    """A client property that would break a promise or run code is refused with the reason."""
    with pytest.raises(ConfigError, match=rf"kafka\.{name}: expected not to be set, because \w+"):
        checked(**{f"kafka__{name}": "x"})


def test_group_instance_id_belongs_to_one_process() -> None:
    """A static membership id is refused with several replicas only."""
    settings = checked(**{"kafka__group.instance.id": "me"})
    check_replicas(settings, 1)
    with pytest.raises(ConfigError, match=r"kafka\.group\.instance\.id.*--replicas 2"):
        check_replicas(settings, 2)


SASL_PLAIN = {"kafka__security.protocol": "SASL_PLAINTEXT", "kafka__sasl.mechanisms": "PLAIN"}


def test_sasl_plain_needs_encryption_to_another_host() -> None:
    """A password goes unencrypted to another host only when that is allowed in so many words."""
    elsewhere = SASL_PLAIN | {"kafka__bootstrap.servers": "localhost:9092,kafka.example.org:9092"}
    with pytest.raises(ConfigError, match=r"kafka\.example\.org:9092 unencrypted.*security\.allow_plaintext"):
        checked(**elsewhere)
    assert checked(**elsewhere, security={"allow_plaintext": True}).security.allow_plaintext
    assert checked(**SASL_PLAIN, **{"kafka__bootstrap.servers": "127.0.0.9:9092,[::1]:9092,LOCALHOST"})
    assert checked(**elsewhere | {"kafka__security.protocol": "sasl_ssl"})


@pytest.mark.parametrize(
    "said",
    [
        {"kafka__security.protocol": " sasl_plaintext", "kafka__sasl.mechanisms": "PLAIN"},
        {"kafka__security.protocol": "sasl_plaintext", "kafka__sasl.mechanism": "plain "},
    ],
)
def test_no_spelling_passes_by_the_rule(said: dict[str, str]) -> None:
    """Blanks, another case and librdkafka's second name of a property mean what they mean there."""
    with pytest.raises(ConfigError, match=r"security\.allow_plaintext"):
        checked(**said, **{"kafka__bootstrap.servers": "kafka.example.org:9092"})


def test_two_names_of_one_property_are_refused() -> None:
    """A client property given under both of its names is refused; one alone is kept under the name that the worker uses."""
    twice = {"kafka__bootstrap.servers": "localhost:1", "kafka__metadata.broker.list": "elsewhere:1"}
    with pytest.raises(ConfigError, match=r"only one of bootstrap\.servers and metadata\.broker\.list"):
        checked(**twice)
    assert checked(**{"kafka__queue.buffering.max.ms": "7"}).kafka["linger.ms"] == "7"
    with pytest.raises(ConfigError, match=r"kafka\.enable\.auto\.commit: expected not to be set"):
        checked(**{"kafka__auto.commit.enable": "true"})


@pytest.mark.parametrize("wrong", ['a"b', "a\\b", "a\tb", "a\x1bb", "a\u202eb"])
def test_names_that_break_the_clients_statistics_are_refused(wrong: str) -> None:
    """A quotation mark, a backslash or a control character in name or client.id is exit 2 and names the character."""
    kafka = {"bootstrap.servers": "localhost:9092", "group.id": "g"}
    for key, sections in (
        ("name", {"name": wrong}),
        ("kafka.client.id", {"kafka": {**kafka, "client.id": wrong}}),
    ):
        with pytest.raises(ConfigError, match=f"^{key}: got .*, expected no quotation mark"):
            checked(**sections)
    assert checked(name="Zähler 1/a", kafka={**kafka, "client.id": "edge-1"}).name == "Zähler 1/a"


def test_a_transaction_must_end_before_the_broker_aborts_it() -> None:
    """transaction.max_ms at or above transaction.timeout.ms, given or default, is exit 2 with exactly_once only."""
    kafka = {"bootstrap.servers": "localhost:9092", "group.id": "g"}
    for max_ms, timeout in ((10_000, {}), (7000, {"transaction.timeout.ms": 7000})):
        sections = {"transaction": {"max_ms": max_ms}, "kafka": {**kafka, **timeout}}
        with pytest.raises(ConfigError, match=f"^transaction.max_ms: got {max_ms}, expected less than"):
            checked(delivery="exactly_once", **sections)
        checked(**sections)
    checked(delivery="exactly_once", transaction={"max_ms": 9999})


def test_plaintext_hosts_are_told_for_a_warning() -> None:
    """Hosts reached without encryption are listed, loopback left out."""
    assert plaintext_hosts(checked(**{"kafka__bootstrap.servers": "PLAINTEXT://k1:9092, localhost:1"})) == [
        "PLAINTEXT://k1:9092"
    ]
    assert (
        plaintext_hosts(checked(**{"kafka__bootstrap.servers": "k1:9092", "kafka__security.protocol": "SSL"}))
        == []
    )


def test_the_budget_holds_the_largest_record_an_item_and_working_room() -> None:
    """In-flight bytes hold exactly one largest record, one item's tensors and 16 MiB, or are refused."""
    settings = checked(input__max_bytes=MIB, limits={"in_flight_bytes": 17 * MIB + 100})
    check_budget(settings, "small", 100)
    with pytest.raises(ConfigError, match=r"limits\.in_flight_bytes.*one item's tensors 101"):
        check_budget(settings, "small", 101)


def test_pipelines_that_share_a_topic_start_at_one_place() -> None:
    """Two pipelines with different input.start on one topic are refused."""
    second = {"input": MINIMAL["input"] | {"start": "latest"}}
    with pytest.raises(ConfigError, match=r"pipelines\.b\.input\.start"):
        validate(two_pipelines(**second), BASE)


# --- files


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("input: [", "line 1"),
        ("name: a\nname: b\n", "line 2, column 1: the key name is there twice"),
        ("", "got nothing"),
        ("- a\n", "got a list"),
        ("a: &a [*a]\n", "contains itself"),
        ("a: 1\n---\nb: 2\n", "single document"),
        ("kafka: {sasl.password: *hunter2}\n", "undefined alias"),
        ("[" * 3000, "nested too deeply"),
    ],
)
def test_bad_yaml_is_one_sentence(written: Any, text: str, sentence: str) -> None:
    """Text that is no mapping of settings is refused with its place, and nothing secret in it is quoted."""
    with pytest.raises(ConfigError) as caught:
        load(written(text))
    assert sentence in str(caught.value)
    assert "worker.yaml" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_say_which_and_what_was_expected(tmp_path: Path) -> None:
    """A config, labels or model path that is missing, a directory or no text is named; only the model exits 3."""
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty").write_text("\n\n")
    for path, found in [("none", "no such file"), (".", "directory"), ("binary", "UTF-8")]:
        with pytest.raises(ConfigError, match=found):
            load(tmp_path / path)
    for path, found in [
        ("none", "does not exist"),
        (".", "directory"),
        ("binary", "UTF-8"),
        ("empty", "empty"),
    ]:
        with pytest.raises(ConfigError, match=found):
            labels_of(tmp_path / path)
    for path, found in [("none", "does not exist"), (".", "directory")]:
        settings = checked(name="w", model__path=str(tmp_path / path))
        with pytest.raises(StartError, match=rf"model\.path: .*{found}"):
            check_model_file(settings, "w")


def test_labels_are_lines(tmp_path: Path) -> None:
    """Line n of a label file is class n; a byte order mark, any kind of line end and blank lines at the end do not count."""
    path = tmp_path / "labels.txt"
    path.write_bytes(b"\xef\xbb\xbfcat\r\n\r\nwild dog\n\n")
    assert labels_of(path) == ["cat", "", "wild dog"]


# --- own code


def test_own_code_beside_the_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`module:attribute` is imported from the configuration file's folder."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own_code_of_a_test.py").write_text("class A:\n    def f(self): ...\nnumber = 3\n")
    settings = validate(changed(postprocess="own_code_of_a_test:A.f"), tmp_path)
    [(key, name)] = settings.custom_code()
    assert key == "postprocess"
    assert import_attribute(name, key).__name__ == "f"
    (tmp_path / "own_code_that_leaves.py").write_text("import sys; sys.exit(3)\n")
    for bad, why in [
        ("own_code_of_a_test:g", "no attribute g"),
        ("own_code_of_a_test:number", "something to call"),
        ("no_such_module_at_all:f", "cannot be imported"),
        ("own_code_that_leaves:f", "cannot be imported: SystemExit"),
        ("f", "module:attribute"),
    ]:
        with pytest.raises(ConfigError, match=f"^postprocess: .*{why}"):
            import_attribute(bad, key)


# --- secrets


SECRETS = {
    "kafka__sasl.username": "user-in-clear",
    "kafka__sasl.password": "hunter2-password",
    "kafka__sasl.oauthbearer.client.secret": "hunter2-oauth",
    "kafka__ssl.key.password": "hunter2-key",
    "kafka__ssl.keystore.password": "hunter2-store",
    "kafka__ssl.key.pem": "BEGIN\nhunter2-pem\nEND",
}


def test_secrets_are_redacted_and_known_by_value() -> None:
    """No secret is in the redacted settings; every one is in the list that the log redactor gets."""
    settings = checked(**SECRETS, **{"kafka__sasl.mechanisms": "SCRAM-SHA-512"})
    shown = json.dumps(settings.redacted())
    assert "hunter2" not in shown
    assert "user-in-clear" not in shown
    assert "SCRAM-SHA-512" in shown
    values = settings.secrets()
    assert values == sorted(values, key=len, reverse=True)
    assert {"hunter2-password", "hunter2-oauth", "hunter2-key", "hunter2-store", "hunter2-pem"} <= set(values)
    assert "SCRAM-SHA-512" not in values


@pytest.mark.parametrize(
    "kafka", [["hunter2"], {"sasl.password": ["hunter2"]}, {"sasl.password": {"hunter2": 1}}]
)
def test_a_mistake_under_kafka_never_shows_the_value(kafka: Any) -> None:
    """What is wrong under kafka may be a secret: the sentence names the property only."""
    with pytest.raises(ConfigError) as caught:
        checked(kafka=kafka)
    assert "hunter2" not in str(caught.value)
    assert "kafka" in str(caught.value)


# --- the schema


def test_schema_file_is_current() -> None:
    """schemas/config.schema.json is what the settings say; scripts/schema writes it anew."""
    path = ROOT / "schemas/config.schema.json"
    assert json.loads(path.read_text(encoding="utf-8")) == json_schema()


def test_schema_agrees_with_the_settings() -> None:
    """The schema takes what the settings take and refuses the same slips."""
    schema = jsonschema.Draft202012Validator(json_schema())
    jsonschema.Draft202012Validator.check_schema(json_schema())
    good = [
        yaml.safe_load(FULL),
        MINIMAL,
        two_pipelines(),
        changed(postprocess="own:code", preprocess={"image": {"mean": 0.5, "size": [1, 2]}}),
        changed(preprocess={"inputs": {"x": {"from": "value", "numeric": {}}}}, output__headers=["a"]),
    ]
    for document in good:
        schema.validate(document)
        validate(document, BASE)
    schema.validate(changed(batching__max_size="${SIZE}", delivery="${DELIVERY:-exactly_once}"))
    bad = [
        changed(input__topix=["a"]),
        changed(batching__max_size="abc"),
        changed(postprocess={"raw": {}, "regression": {}}),
        changed(pipelines={}),
        changed(delivery="once"),
        {key: value for key, value in MINIMAL.items() if key != "model"},
    ]
    for document in bad:
        assert not schema.is_valid(document), document
        with pytest.raises(ConfigError):
            validate(document, BASE)


def test_every_setting_is_described() -> None:
    """Each setting has a description of its own, or holds a section that has one."""
    assert undescribed(json_schema()) == []


def test_a_setting_that_loses_its_description_is_found() -> None:
    """The check of descriptions reports each setting whose description is taken away, and no other."""
    schema = json_schema()
    described = [
        (f"{name}.{key}", setting)
        for name, section in schema["$defs"].items()
        for key, setting in section.get("properties", {}).items()
        if "description" in setting and not sections_in(setting)
    ]
    assert len(described) > 60
    for name, setting in described:
        line = setting.pop("description")
        assert undescribed(schema) == [name]
        setting["description"] = line


def undescribed(schema: dict[str, Any]) -> list[str]:
    """Sections and settings of a schema for which an editor has nothing to show."""
    sections = {name: section for name, section in schema["$defs"].items() if name != "Variable"}
    found = [name for name, section in sections.items() if not section.get("description")]
    for name, section in sections.items():
        for key, setting in section.get("properties", {}).items():
            if not setting.get("description") and not sections_in(setting):
                found.append(f"{name}.{key}")
    return found


def sections_in(setting: dict[str, Any]) -> list[str]:
    """Names of the sections that a setting may hold; a `${ENV}` in place of a plain value is none."""
    names = re.findall(r'"#/\$defs/(\w+)"', json.dumps(setting))
    return [name for name in names if name != "Variable"]


def test_importing_settings_needs_no_runtime() -> None:
    """The settings can be checked without ONNX Runtime, OpenCV or a Kafka client."""
    heavy = "{'onnxruntime', 'cv2', 'confluent_kafka', 'numpy'}"
    code = f"import sys, worker.settings; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ, check=False).returncode == 0


def test_aliases_that_multiply_are_refused(tmp_path: Path) -> None:
    """A file whose nested aliases stand for a thousand million values is one sentence, at once."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=r"more than 100,000 values once its aliases are followed"):
        load(path)
