"""The cache: equal payloads are answered from memory, as the model answers them, and nothing else is."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import models
import numpy as np
import orjson
import pytest
from fakes import columns_of

from worker.batch import Batch, Headers, Partition
from worker.cli.sample import answer
from worker.deadlines import Deadlines
from worker.errors import ConfigError
from worker.serving.cache import ENTRY_BYTES, Entries
from worker.serving.engine import Engine
from worker.serving.load import load, load_servable
from worker.serving.servable import Servable
from worker.settings import Settings, validate
from worker.telemetry.meters import Meters

FEATURES = 20


def settings_of(tmp_path: Path, **pipeline: Any) -> Settings:
    """A pipeline of JSON numbers for a small MLP, with a cache, and what a test changes."""
    models.write(tmp_path, models.mlp(FEATURES), "mlp.onnx")
    document = {
        "input": {"topics": ["in"], "format": "json"},
        "model": {"path": "mlp.onnx"},
        "output": {"topic": "out"},
        "cache": {},
        "dead_letter": {"topic": "dead"},
        "kafka": {"bootstrap.servers": "localhost:9092", "group.id": "g"},
    }
    return validate({**document, **pipeline}, tmp_path)


class Pipeline:
    """A pipeline whose batches a test makes; ``ran`` are the items of each model run."""

    def __init__(self, settings: Settings, **engine: Any) -> None:
        self.settings = settings
        (self.rollout,) = load(settings).values()
        self.route, self.servable = self.rollout.route, self.rollout.stable
        self.engine = Engine(**engine)
        self.meters = Meters({"p": None})
        self.ran: list[int] = []
        self._offset = 0
        self.watch(self.servable)

    def watch(self, servable: Servable) -> None:
        model, run = servable.model, servable.model.run
        name = model.signature.inputs[0].name

        def counted(feeds: Any) -> Any:
            self.ran.append(len(feeds[name]))
            return run(feeds)

        model.run = counted  # type: ignore[method-assign]

    def batch(
        self,
        *values: bytes,
        headers: Sequence[Headers | None] | None = None,
        servable: Servable | None = None,
        **batch: Any,
    ) -> Batch:
        """One batch through all steps."""
        columns = columns_of(Partition("in", 0), range(self._offset, self._offset + len(values)), [*values])
        self._offset += len(values)
        if headers is not None:
            columns.headers = [*headers]
        whole = Batch(
            None, range(len(values)), columns, self.route, servable or self.servable, 0, 1e12, **batch
        )
        self.run(whole)
        self.meters.batch("p", whole)
        return whole

    def run(self, batch: Batch) -> None:
        for start, stop in self.engine.shards(batch):
            self.engine.decode(batch, start, stop)
        self.engine.infer(batch)
        self.engine.finish(batch)

    @property
    def counted(self) -> tuple[int, int]:
        """Hits and misses."""
        cache = self.meters.snapshot().pipelines["p"].cache
        return cache["hit"], cache["miss"]


def features(seed: int) -> bytes:
    return orjson.dumps({"features": np.random.default_rng(seed).normal(size=FEATURES).round(4).tolist()})


def results(batch: Batch) -> list[Any]:
    assert batch.outcomes is not None
    return [orjson.loads(body) if body is not None else None for body in batch.outcomes.bodies]


def predictions(batch: Batch) -> list[Any]:
    return [result["prediction"] for result in results(batch)]


def cached(batch: Batch) -> list[bool]:
    return [result is not None and result.get("cached", False) for result in results(batch)]


def test_an_equal_payload_is_answered_from_memory(tmp_path: Path) -> None:
    """The second time no model runs; the prediction is the same, and id, source and headers are the record's own."""
    pipeline = Pipeline(settings_of(tmp_path))
    first = pipeline.batch(features(1), features(2))
    pipeline.ran.clear()
    second = pipeline.batch(features(2), features(1), headers=[[("traceparent", b"t")], [("ce_id", b"mine")]])
    assert pipeline.ran == []
    assert predictions(second) == predictions(first)[::-1]
    assert [result["id"] for result in results(second)] == ["in/0/2", "mine"]
    assert [result["source"]["offset"] for result in results(second)] == [2, 3]
    assert second.outcomes is not None
    assert second.outcomes.headers == [[("traceparent", b"t")], None]
    assert (cached(first), cached(second)) == ([False, False], [True, True])
    assert pipeline.counted == (2, 2)
    assert pipeline.meters.snapshot().pipelines["p"].items == 2


def test_of_a_mixed_batch_only_the_rest_is_run(tmp_path: Path) -> None:
    """Known, new, equal and refused records in one batch each have their own outcome, in their own row."""
    pipeline = Pipeline(settings_of(tmp_path))
    alone = [predictions(pipeline.batch(features(seed)))[0] for seed in range(3)]
    pipeline.ran.clear()
    bad = b'{"features": [1, 2]}'
    batch = pipeline.batch(features(0), features(7), bad, features(1), features(7), bad, features(8))
    assert pipeline.ran == [2]  # 7 and 8
    found = results(batch)
    assert [found[0]["prediction"], found[3]["prediction"]] == alone[:2]
    assert found[4]["prediction"] == found[1]["prediction"]
    assert cached(batch) == [True, False, False, True, True, False, False]
    assert batch.outcomes is not None
    assert {row: why.reason for row, why in batch.outcomes.rejected.items()} == {2: "invalid", 5: "invalid"}
    assert batch.finished_ns > 0


def test_the_stages_of_a_cached_answer_add_up(tmp_path: Path) -> None:
    """Nothing was decoded or run for it: these stages are 0, and the sum is still the total."""
    pipeline = Pipeline(settings_of(tmp_path))
    pipeline.batch(features(1))
    for result in results(pipeline.batch(features(1), features(2), features(1))):
        latency = result["latency_ms"]
        assert round(sum(ms for stage, ms in latency.items() if stage != "total"), 3) == latency["total"]
        if result.get("cached"):
            assert (latency["decode"], latency["infer"]) == (0, 0)


def test_a_refused_record_is_refused_again(tmp_path: Path) -> None:
    """Only answers are kept: a record that was refused is looked at anew."""
    pipeline = Pipeline(settings_of(tmp_path))
    for _ in range(2):
        batch = pipeline.batch(b'{"features": "no"}')
        assert batch.outcomes is not None
        assert [*batch.outcomes.rejected] == [0]
    assert pipeline.counted == (0, 2)


def test_another_version_never_answers_from_the_entries_of_the_first(tmp_path: Path) -> None:
    """Two versions at once, as in a canary, keep answers apart and share one bound."""
    settings = settings_of(tmp_path)
    pipeline = Pipeline(settings)
    models.write(tmp_path, models.mlp(FEATURES, hidden=8), "mlp.onnx")
    other = load_servable(settings, pipeline.route, 0.0, like=pipeline.servable)
    first = pipeline.batch(features(1))
    second = pipeline.batch(features(1), servable=other)
    again = pipeline.batch(features(1)), pipeline.batch(features(1), servable=other)
    assert cached(second) == [False]
    assert predictions(second) != predictions(first)
    assert [cached(batch) for batch in again] == [[True], [True]]
    assert [predictions(batch) for batch in again] == [predictions(first), predictions(second)]
    assert pipeline.servable.cache is not None
    assert other.cache is not None
    assert pipeline.servable.cache.entries is other.cache.entries
    other.close()


def test_without_the_setting_nothing_is_looked_for(tmp_path: Path) -> None:
    """A pipeline without a cache runs every record, counts nothing and says nothing of it."""
    pipeline = Pipeline(settings_of(tmp_path, cache=None))
    pipeline.batch(features(1))
    batch = pipeline.batch(features(1), features(1))
    assert cached(batch) == [False, False]
    assert pipeline.meters.snapshot().pipelines["p"].cache == {}
    assert sum(pipeline.ran[-1:]) == 2


def test_headers_that_reading_depends_on_belong_to_the_payload(tmp_path: Path) -> None:
    """The same bytes with another header length are another request of the Open Inference Protocol; a trace is not."""
    settings = settings_of(tmp_path, input={"topics": ["in"], "format": "oip"})
    pipeline = Pipeline(settings)
    request = orjson.dumps(
        {"id": "a", "inputs": [{"name": "x", "shape": [2, FEATURES], "datatype": "FP32", "data": [0.5] * 40}]}
    )
    name = pipeline.servable.model.signature.inputs[0].name
    request = request.replace(b'"name":"x"', b'"name":"%b"' % name.encode())
    length: Headers = [("Inference-Header-Content-Length", b"%d" % len(request))]
    first = pipeline.batch(request, headers=[[("traceparent", b"1")]])
    second = pipeline.batch(request, headers=[[("traceparent", b"2")]])
    other = pipeline.batch(request, headers=[length])
    assert results(first)[0]["id"] == results(second)[0]["id"] == "a"
    assert len(results(second)[0]["predictions"]) == 2
    assert results(first)[0]["predictions"] == results(second)[0]["predictions"]
    assert (cached(first), cached(second), cached(other)) == ([False], [True], [False])


def test_rows_past_their_deadline_are_not_answered_from_memory(tmp_path: Path) -> None:
    """An expired record is settled as expired whether or not its answer is known; the others are answered."""
    pipeline = Pipeline(settings_of(tmp_path))
    pipeline.batch(features(1), features(2))
    late = Deadlines("dead_letter", {0: 1.0, 2: 1.0})
    batch = pipeline.batch(features(1), features(2), features(3), features(4), deadlines=late)
    assert batch.outcomes is not None
    assert {row: why.reason for row, why in batch.outcomes.rejected.items()} == {0: "expired", 2: "expired"}
    assert [body is not None for body in batch.outcomes.bodies] == [False, True, False, True]


def test_a_sick_model_leaves_nothing_behind(tmp_path: Path) -> None:
    """Where the model is sick the whole batch has no outcome, the rows with a known answer included."""
    pipeline = Pipeline(settings_of(tmp_path))
    pipeline.batch(features(1))
    model = pipeline.servable.model
    model.run = lambda feeds: (_ for _ in ()).throw(RuntimeError("broken"))  # type: ignore[method-assign]
    model.sickness = lambda: "it is ill"  # type: ignore[method-assign]
    batch = pipeline.batch(features(1), features(2))
    assert batch.sick is not None
    assert "it is ill" in batch.sick
    assert results(batch) == [None, None]


CODE = """
from worker import Retry
tries = 0

def post(outputs):
    global tries
    tries += 1
    if tries == 1:
        raise Retry("not yet", after_s=0.01)
    return {"tries": tries}

def with_item(outputs, item):
    return {}

def decode(value, headers):
    import numpy as np
    return {INPUT: np.full(20, float(dict(headers)["n"]), np.float32)}
"""


def test_a_record_that_is_tried_again_keeps_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that custom code puts off is answered by its further try; the known rows beside it are answered at once."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "cache_code_a.py").write_text(CODE)
    pipeline = Pipeline(settings_of(tmp_path, postprocess="cache_code_a:post"), retry_s=10.0)
    first = pipeline.batch(features(1))
    assert first.again is not None
    pipeline.run(first.again.batch)
    first = pipeline.batch(features(2))
    import cache_code_a

    cache_code_a.tries = 0
    batch = pipeline.batch(features(2), features(3), features(4))
    assert batch.again is not None
    pipeline.run(batch.again.batch)
    assert [result["prediction"]["tries"] for result in results(batch)] == [3, 3, 2]
    assert cached(batch) == [True, False, False]


def test_custom_code_as_input_format_counts_every_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may read any header, so a record with another one is another payload."""
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = settings_of(tmp_path, input={"topics": ["in"], "format": "cache_code_b:decode"})
    name = load(settings_of(tmp_path))["mlp"].stable.model.signature.inputs[0].name
    (tmp_path / "cache_code_b.py").write_text(CODE.replace("INPUT", repr(name)))
    pipeline = Pipeline(settings)
    batches = [pipeline.batch(b"x", headers=[[("n", n)]]) for n in (b"1", b"2", b"1")]
    assert [cached(batch) for batch in batches] == [[False], [False], [True]]
    assert predictions(batches[0]) != predictions(batches[1])


def test_compressed_payloads_are_found_too(tmp_path: Path) -> None:
    """Equal bytes with an equal content-encoding are one payload; the same bytes without it are another one."""
    import gzip

    pipeline = Pipeline(settings_of(tmp_path))
    value = gzip.compress(features(1), mtime=0)
    packed: Headers = [("content-encoding", b"gzip")]

    def send(headers: Headers) -> Batch:
        return pipeline.batch(value, headers=[headers], to_open={0} if headers else set())

    first, second, plain = send(packed), send(packed), send([])
    assert (cached(first), cached(second)) == ([False], [True])
    assert predictions(first) == predictions(second)
    assert plain.outcomes is not None
    assert [*plain.outcomes.rejected] == [0]


def test_fields_of_the_record_are_its_own(tmp_path: Path) -> None:
    """`output.copy` and `output.body` make a cached result of the record at hand, and a path may say that it is cached."""
    body = {"label": "prediction", "known": "cached", "at": "source.offset", "who": "who"}
    pipeline = Pipeline(settings_of(tmp_path, output={"topic": "out", "body": body}))
    record = orjson.dumps({**orjson.loads(features(1)), "who": "me"})
    first, second = results(pipeline.batch(record)) + results(pipeline.batch(record))
    assert (first["known"], second["known"]) == (None, True)
    assert (first["at"], second["at"], second["who"]) == (0, 1, "me")
    assert first["label"] == second["label"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"output": {"topic": "out", "format": "npy"}},
            "cache: goes with output.format json only, got 'npy'",
        ),
        (
            {"input": {"topics": ["in"], "format": "json", "window": {"size": 3}}},
            "cache: does not go with input.window",
        ),
        (
            {
                "input": {"topics": ["in"], "format": "json", "unwrap": ["aes-256-gcm"]},
                "encryption": {"keys": {"k": "A" * 43 + "="}, "use": "k"},
            },
            "cache: does not go with encrypted records",
        ),
        (
            {"output": {"topic": "out", "wrap": ["cache_code_c:f"]}},
            "cache: does not go with custom code in output.wrap",
        ),
        ({"postprocess": "cache_code_c:with_item"}, "cache: does not go with custom code f(outputs, item)"),
        ({"cache": {"bytes": 0}}, "cache.bytes"),
        ({"cache": {"size": 1}}, "cache.size"),
    ],
)
def test_what_a_cache_cannot_answer_is_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], sentence: str
) -> None:
    """At the start, by the name of the setting."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "cache_code_c.py").write_text(CODE)
    with pytest.raises(ConfigError) as refused:
        load(settings_of(tmp_path, **change))
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_steps_are_answered_as_one(tmp_path: Path) -> None:
    """The whole answer of a cascade is kept: no step runs for a payload that came before, and none has a time."""
    models.write(tmp_path, models.mlp(FEATURES, 4), "first.onnx")
    models.write(tmp_path, models.mlp(4, 3), "second.onnx")
    steps = [
        {"name": "first", "model": {"path": "first.onnx"}, "postprocess": {"embedding": {}}},
        {"name": "second", "from": "first.embedding", "model": {"path": "second.onnx"}},
    ]
    pipeline = Pipeline(settings_of(tmp_path, model=None, steps=steps, name="two"))
    first = pipeline.batch(features(1), features(2))
    pipeline.ran.clear()
    second = pipeline.batch(features(2), features(1), features(2))
    assert pipeline.ran == []
    assert predictions(second) == [predictions(first)[i] for i in (1, 0, 1)]
    assert set(predictions(second)[0]) == {"first", "second"}
    assert cached(second) == [True] * 3
    timed = ["steps_ms" in result for result in results(first) + results(second)]
    assert timed == [True, True, False, False, False]
    assert cached(pipeline.batch(features(1), features(3))) == [True, False]


def test_a_sample_of_check_is_answered_with_a_cache(tmp_path: Path) -> None:
    """`check --sample` shows the result as without a cache, also for a format whose items have no fixed shape."""
    (rollout,) = load(settings_of(tmp_path)).values()
    shown = [answer(rollout, features(1), []) for _ in range(2)]
    assert shown[0]["prediction"] == shown[1]["prediction"]


# -- the entries -----------------------------------------------------------------------------------------


def put(entries: Entries, *keys: bytes, prediction: bytes = b"{}") -> None:
    entries.put((key, prediction, None) for key in keys)


def found(entries: Entries, *keys: bytes) -> list[bool]:
    return [entry is not None for entry in entries.find(keys)]


def test_bytes_are_bounded_and_the_longest_unused_go_first() -> None:
    """Three entries of room: what was just used stays, what was not goes."""
    entries = Entries(3 * (ENTRY_BYTES + 2))
    put(entries, b"a", b"b", b"c")
    assert found(entries, b"a") == [True]
    put(entries, b"d")
    assert found(entries, b"a", b"b", b"c", b"d") == [True, False, True, True]
    put(entries, b"e", prediction=b"x" * 10_000)
    assert (len(entries), entries.nbytes) == (0, 0), "what is larger than everything is not kept"


def test_putting_an_entry_again_takes_no_more_bytes() -> None:
    """The bytes are those of what is kept."""
    entries = Entries(1_000_000)
    for size in (10, 500, 20):
        put(entries, b"a", prediction=b"x" * size)
    assert entries.nbytes == ENTRY_BYTES + 20


def test_an_entry_ages_by_the_monotonic_clock() -> None:
    """After `ttl_s` it does not count, however often it was used meanwhile."""
    now = SimpleNamespace(ns=1)
    entries = Entries(1_000_000, 2.0, lambda: now.ns)
    put(entries, b"a")
    now.ns += int(1.9e9)
    assert found(entries, b"a") == [True]
    now.ns += int(0.2e9)
    assert found(entries, b"a") == [False]
    assert entries.nbytes == 0


def test_entries_take_no_more_memory_than_is_counted() -> None:
    """What Python takes for twenty thousand entries of 200 bytes is within what the bound counts."""
    entries = Entries(1 << 30, 60.0)
    gc.collect()
    tracemalloc.start()
    for number in range(20_000):
        put(entries, number.to_bytes(24), prediction=b"%200d" % number)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken <= entries.nbytes <= 1.4 * taken
