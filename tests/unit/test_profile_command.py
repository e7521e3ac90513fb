"""``profile`` and ``drift`` as users meet them: what is written, what fires, and one sentence for each mistake."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import models
import numpy as np
import orjson
import pytest
import yaml
from confluent_kafka import Producer
from fakes import columns_of

from worker.batch import Batch, Partition
from worker.cli.main import main
from worker.cli.spans import span_of
from worker.drift.profile import Profile
from worker.errors import ConfigError
from worker.kafka.broker import EmbeddedBroker
from worker.serving.engine import Engine
from worker.serving.load import load
from worker.serving.rollout import Rollout
from worker.settings import load as settings_of

PLACE = Partition("in-0", 0)


@pytest.fixture(scope="module")
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker({"in-0": 2}) as made:
        yield made


def configure(folder: Path, bootstrap: str = "localhost:9", **document: Any) -> Path:
    """A pipeline of four numbers."""
    models.write(folder, models.mlp(4))
    whole = {
        "name": "houses",
        "input": {"topics": ["in-0"], "format": "json"},
        "model": {"path": "model.onnx", "threads": 1},
        "postprocess": {"classification": {}},
        "output": {"topic": "out"},
        "dead_letter": {"topic": "dead"},
        "kafka": {"bootstrap.servers": bootstrap, "group.id": "g"},
    } | document
    path = folder / "worker.yaml"
    path.write_text(yaml.safe_dump(whole))
    return path


def rows(count: int, seed: int = 0, shift: float = 0.0) -> list[bytes]:
    found = np.random.default_rng(seed).normal(size=(count, 4))
    found[:, 2] += shift
    return [orjson.dumps({"features": row.tolist()}) for row in found]


def write_rows(path: Path, values: list[bytes]) -> Path:
    path.write_bytes(b"\n".join(values) + b"\n")
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    told = capsys.readouterr()
    return code, told.out, told.err


def live(rollout: Rollout, values: list[bytes]) -> None:
    """Records that the loop's batches hold, through the engine."""
    engine = Engine()
    for start in range(0, len(values), 64):
        part = values[start : start + 64]
        slab: Any = object()
        batch = Batch(
            slab,
            range(len(part)),
            columns_of(PLACE, range(len(part)), part),
            rollout.route,
            rollout.stable,
            time.monotonic_ns(),
            0.0,
        )
        rollout.route.drift._due_ns = 0  # type: ignore[union-attr]  # no test waits for a second's rate
        for first, stop in engine.shards(batch):
            engine.decode(batch, first, stop)
        engine.infer(batch)
        engine.finish(batch)


def test_a_profile_is_written_and_a_shifted_feature_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From lines of a file to a profile; records like those are silent, and a feature that shifts is found by its name."""
    config = configure(tmp_path)
    code, out, err = run(
        capsys,
        "profile",
        config,
        "--from",
        write_rows(tmp_path / "a.jsonl", rows(2000)),
        "--out",
        tmp_path / "p.json",
    )
    assert (code, err) == (0, "")
    assert out.startswith(f"{tmp_path / 'p.json'}: 2000 records of houses, 6 features\n")
    assert Profile.read(tmp_path / "p.json").model == "houses"
    configure(tmp_path, drift={"profile": "p.json", "window_s": 1})
    (rollout,) = load(settings_of(config)).values()
    watch = rollout.route.drift
    assert watch is not None
    watch._slice_due_ns = 0
    live(rollout, rows(2000, 1))
    assert watch.measured > 500
    quiet = watch.look()
    assert not quiet.drifted
    assert max(quiet.psi.values()) < 0.1
    watch._credit_ns = 1e9
    live(rollout, rows(4000, 2, 3.0))
    assert "features[2]" in watch.look().drifted


def test_a_span_of_a_topic_is_profiled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], broker: EmbeddedBroker
) -> None:
    """Records of a topic, of a partition, and between two offsets are measured, and nothing else of it."""
    config = configure(tmp_path, broker.bootstrap)
    producer = Producer({"bootstrap.servers": broker.bootstrap})
    for number, value in enumerate(rows(600)):
        producer.produce("in-0", value, None, number % 2)
    producer.produce("in-0", b"no JSON", None, 0)
    assert producer.flush(20) == 0
    for span, records in (("", 600), ("/1@100..250", 150), ("/0@50..", 250)):
        code, out, err = run(
            capsys, "profile", config, "--from", f"topic:in-0{span}", "--out", tmp_path / "p.json"
        )
        assert code == 0, err
        assert Profile.read(tmp_path / "p.json").records == records, span
        assert ("1 undecodable" in out) == (span in ("", "/0@50.."))
    code, out, err = run(capsys, "profile", config, "--from", "topic:in-0/7")
    assert (code, err) == (3, "streaminfer: in-0 has 2 partitions, expected one of 0 to 1\n")
    code, out, err = run(capsys, "profile", config, "--from", "topic:nowhere")
    assert code == 3
    code, out, err = run(capsys, "profile", config, "--from", "topic:in-0@-2h..")
    assert code == 2
    assert "finds no records by their time" in err


def test_a_long_source_is_measured_evenly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With --records the records that are measured come from the whole source."""
    config = configure(tmp_path)
    values = [orjson.dumps({"features": [number, 0, 0, 0]}) for number in range(1000)]
    source = write_rows(tmp_path / "a.jsonl", values)
    code, _, err = run(
        capsys, "profile", config, "--from", source, "--records", 200, "--out", tmp_path / "p.json"
    )
    assert code == 0, err
    profile = Profile.read(tmp_path / "p.json")
    assert profile.records == 200
    edges: Any = profile.features["features[0]"].bins
    assert edges.edges.tolist()[:2] == [0, 95]
    assert edges.edges[-1] == pytest.approx(995)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("topic:a", ("a", None, None, None, None, None)),
        ("topic:a.b-c/3", ("a.b-c", 3, None, None, None, None)),
        ("topic:a/3@5..9", ("a", 3, 5, None, 9, None)),
        ("topic:a@-2h..-30m", ("a", None, None, 1_000_000_000 - 7_200_000, None, 1_000_000_000 - 1_800_000)),
        ("topic:a@1970-01-01..", ("a", None, None, 0, None, None)),
        ("topic:a@..1970-01-01T01:00+01:00", ("a", None, None, None, None, 0)),
        ("topic:a/0@..", ("a", 0, None, None, None, None)),
    ],
)
def test_spans(text: str, expected: tuple[Any, ...]) -> None:
    """A span has offsets of a partition, or times: an age, or a moment, which is UTC unless it says another zone."""
    span = span_of("--from", text, lambda: 1_000_000.0)
    assert (
        span.topic, span.partition, span.start_offset, span.start_ms, span.stop_offset, span.stop_ms
    ) == expected  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("topic:", "expected topic:NAME"),
        ("topic:a/b", "expected topic:NAME"),
        ("topic:a@5", "expected topic:NAME"),
        ("topic:a@5..9", "5 is an offset, which counts in one partition; expected topic:a/PARTITION@..."),
        ("topic:a@soon..", "soon is no offset and no time"),
    ],
)
def test_wrong_spans(text: str, says: str) -> None:
    """A text that is no span is refused in a sentence that says what was expected."""
    with pytest.raises(ConfigError, match="--from") as raised:
        span_of("--from", text)
    assert says in str(raised.value)


def test_mistakes_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Too few records, refused records, no such file or folder, an unknown pipeline: one sentence, exit 2, and no file."""
    config = configure(tmp_path)
    few = write_rows(tmp_path / "few.jsonl", rows(50) + [b"no JSON"] * 70)
    good = write_rows(tmp_path / "good.jsonl", rows(150))
    for arguments, says in (
        (
            ["--from", few],
            "expected at least 100 records that are answered, got 50; 70 undecodable were refused",
        ),
        (["--from", tmp_path / "none.jsonl"], "no such file or folder"),
        (["--from", good, "--out", tmp_path / "no" / "p.json"], "is no folder"),
        (["--from", good, "--pipeline", "other"], "there is no other; expected one of houses"),
        (["--from", good, "--out", tmp_path], "cannot be written"),
    ):
        code, out, err = run(capsys, "profile", config, *arguments)
        assert (code, out) == (2, ""), err
        assert says in err
        assert err.count("\n") == 1
    assert not [*tmp_path.glob("*.json")]


def test_a_profile_that_does_not_fit_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No file, another pipeline's profile, one of another model: `check` says which in one sentence and ends with 2; where it
    fits, it says what is compared."""
    config = configure(tmp_path, drift={"profile": "p.json"})
    code, out, err = run(capsys, "check", config, "--offline")
    assert code == 2
    assert f"drift.profile: {tmp_path / 'p.json'} does not exist" in err
    source = write_rows(tmp_path / "a.jsonl", rows(150))
    assert run(capsys, "profile", config, "--from", source, "--out", tmp_path / "p.json")[0] == 0
    code, out, err = run(capsys, "check", config, "--offline")
    assert code == 0, err
    assert "6 features of 150 records" in out
    document = orjson.loads((tmp_path / "p.json").read_bytes())
    for change, says in (
        ({"pipeline": "other"}, "it is of the pipeline other, expected one of houses"),
        ({"model": {"name": "old", "version": "1"}}, "it is of the model old, expected one of houses"),
        (
            {"inputs": {"x": "5 numbers"}},
            "it has 5 numbers of the model's input x, and the pipeline gives 4 numbers",
        ),
    ):
        (tmp_path / "p.json").write_bytes(orjson.dumps(document | change))
        code, out, err = run(capsys, "check", config, "--offline")
        assert code == 2
        assert says in err
        assert err.count("\n") == 1


def test_drift_does_not_go_with_windows(tmp_path: Path) -> None:
    """Records that are single samples cannot be compared with a profile: that is refused."""
    config = configure(
        tmp_path,
        input={"topics": ["in-0"], "format": "json", "window": {"size": 4}},
        drift={"profile": "p.json"},
    )
    with pytest.raises(ConfigError, match=r"drift: does not go with input\.window"):
        settings_of(config)
