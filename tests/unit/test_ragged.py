"""Records of unlike length in one run: like lengths together, padding that changes no answer, order and limits kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from encode_support import pipeline
from fakes import FakeRollout, columns_of

from worker import extras
from worker.batch import Array, Batch, Columns, Feed, Item, Lane, Padding, Partition
from worker.encode import encoder as make_encoder
from worker.errors import ConfigError, Reject, Rejection
from worker.model.signature import Signature, TensorSpec
from worker.serving.engine import Engine
from worker.serving.padding_check import ragged_of
from worker.serving.ragged import Ragged
from worker.serving.route import route_of
from worker.serving.servable import Servable
from worker.telemetry.meters import Meters

INTEGERS = np.dtype(np.int64)
IDS = TensorSpec("ids", INTEGERS, "INT64", (None, None))
MASK = TensorSpec("mask", INTEGERS, "INT64", (None, None))
Y = TensorSpec("y", np.dtype(np.float32), "FP32", (None, 1))
EACH = TensorSpec("each", np.dtype(np.float32), "FP32", (None, None, 2))
PADDING = {"ids": Padding(0, 9, 8, group="text"), "mask": Padding(0, 0, 8, group="text")}


class Decoder:
    """A value is a number of positions: ``b"7"``; ``b"2x7"`` is a record of two items of that length."""

    shard_rows, free_bytes, fixed = 0, 1 << 62, False
    padding = PADDING

    def cost(self, value: bytes) -> int:
        return 0

    def decode(
        self, payloads: list[bytes | None], columns: Columns, feed: Feed, start: int, stop: int
    ) -> None:
        for row in range(start, stop):
            text = (payloads[row] or b"").decode()
            if text == "bad":
                feed.rejected[row] = Rejection.of(Reject("no length"), "decode", self)
                continue
            count, _, length = text.rpartition("x")
            items = int(count or 1)
            ids = np.tile(np.arange(int(length)) % 7 + row, (items, 1))
            feed.items[row] = Item({"ids": ids, "mask": np.ones_like(ids)}, items, single=not count)


class Model:
    """y = the masked mean of the ids; each = (id, 2 id) for every position."""

    name, version, provider = "mean", "1", "cpu"
    fixed_batch = None
    needs_canary = False

    def __init__(self, batchable: bool = True, masked: bool = True, outputs: Any = (Y, EACH)) -> None:
        self.signature = Signature((IDS, MASK), tuple(outputs), batchable)
        self.masked = masked
        self.shapes: list[tuple[int, ...]] = []
        self.own: list[int] = []
        self.rows_max = 1000
        self.poison = -1

    def run(self, feeds: dict[str, Array]) -> dict[str, Array]:
        ids, mask = feeds["ids"], feeds["mask"]
        self.shapes.append(ids.shape)
        self.own.append(int(mask.sum()))
        if len(ids) > self.rows_max:
            raise MemoryError("out of memory")
        if (ids[:, 0] == self.poison).any():
            raise RuntimeError("poisoned")
        weights = mask if self.masked else np.ones_like(mask)
        mean = (ids * weights).sum(axis=1, keepdims=True) / np.maximum(weights.sum(axis=1, keepdims=True), 1)
        found = {"y": mean.astype(np.float32), "each": np.stack([ids, 2 * ids], axis=2).astype(np.float32)}
        return {spec.name: found[spec.name] for spec in self.signature.outputs}

    def sickness(self) -> str | None:
        return None

    def close(self) -> None: ...

    def interrupt(self) -> None: ...

    def adopt_canary(self, feeds: dict[str, Array], outputs: dict[str, Array]) -> None: ...

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return np.empty(shape, dtype)


def servable(model: Model, max_size: int = 64, postprocess: Any = "raw", padding: Any = PADDING) -> Servable:
    wanted = pipeline(postprocess)
    envelope = route_of("digits", wanted).envelope
    made = make_encoder(wanted, model.signature, "mean", "1", None, envelope)
    return Servable(
        Decoder(),
        model,  # type: ignore[arg-type]
        made,
        max_size=max_size,
        batch_records=max_size,
        slab_records=max_size,
        lane=Lane("mean"),
        threads=1,
        ragged=ragged_of(model, padding, "mean"),  # type: ignore[arg-type]
    )


def process(one: Servable, values: Sequence[str]) -> Batch:
    columns = columns_of(Partition("in", 0), range(len(values)), [value.encode() for value in values])
    route = FakeRollout().route
    batch = Batch(None, range(len(columns)), columns, route, one, 0, 1_000_000.0)
    engine = Engine()
    for start, stop in engine.shards(batch):
        engine.decode(batch, start, stop)
    one.model.shapes.clear()  # type: ignore[attr-defined]
    one.model.own.clear()  # type: ignore[attr-defined]
    engine.infer(batch)
    engine.finish(batch)
    return batch


def answers(batch: Batch) -> list[Any]:
    """Per row the source's offset with the prediction; None where there is no body."""
    assert batch.outcomes is not None
    found = []
    for body in batch.outcomes.bodies:
        answer = json.loads(body) if body is not None else None
        found.append(
            answer and (answer["source"]["offset"], answer.get("prediction") or answer.get("predictions"))
        )
    return found


def alone(values: Sequence[str], row: int) -> Any:
    """The answer of a model that runs each record alone, unpadded."""
    columns = ["bad"] * len(values)
    columns[row] = values[row]
    return answers(process(servable(Model(), padding=None), columns))[row]


LENGTHS = [*map(str, np.random.default_rng(5).integers(5, 200, 60).tolist())]


@pytest.mark.parametrize("outputs", [(Y, EACH), (Y,), (EACH,)])
def test_answers_are_those_of_each_record_alone_in_the_records_order(outputs: Any) -> None:
    """However records are sorted and padded, each gets what it gets alone, under its own offset, without padded positions."""
    values = [*LENGTHS[:20], "bad", *LENGTHS[20:40]]
    found = answers(process(servable(Model(outputs=outputs)), values))
    assert found[20] is None
    for row, answer in enumerate(found):
        if row == 20:
            continue
        offset, prediction = answer
        assert offset == row
        if EACH in outputs:
            assert len(prediction["outputs"]["each"]) == int(values[row])
        expected = alone(values, row)[1]["outputs"]
        for name, value in prediction["outputs"].items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-6)


def test_like_lengths_share_a_run_and_padding_costs_at_most_half_again() -> None:
    """Runs hold records of like length: their positions, padding included, are at most 1.5 times those of the records alone."""
    model = Model()
    process(servable(model), LENGTHS)
    assert sum(rows for rows, _ in model.shapes) == len(LENGTHS)
    assert 1 < len(model.shapes) <= 6
    rounded = sum(-(-int(length) // 8) * 8 for length in LENGTHS)
    assert sum(rows * length for rows, length in model.shapes) <= 1.5 * rounded
    assert all(length % 8 == 0 for _, length in model.shapes)
    lengths = [length for _, length in model.shapes]
    assert lengths == sorted(lengths, reverse=True)


def test_a_run_has_at_most_max_size_items() -> None:
    """The run limit holds for records of like length, and a record of more items than it runs alone."""
    model = Model()
    process(servable(model, max_size=4), ["8"] * 10 + ["6x8"])
    assert sorted(rows for rows, _ in model.shapes) == [2, 4, 4, 6]


def test_a_run_has_at_most_so_many_positions() -> None:
    """Where the padding names a limit of positions, no run of several records has more."""
    model = Model()
    padding = {name: Padding(0, one.value, 8, group="text", positions=64) for name, one in PADDING.items()}
    process(servable(model, padding=padding), ["16"] * 9 + ["100"])
    assert sorted(model.shapes) == [(1, 16), (1, 104), (4, 16), (4, 16)]


def test_records_of_several_items_keep_them_together() -> None:
    """The items of one record stay in one run and give one list of predictions, beside records of other lengths."""
    values = ["2x9", "12", "3x40", "38"]
    found = answers(process(servable(Model()), values))
    assert [len(answer[1]) for answer in found if isinstance(answer[1], list)] == [2, 3]
    for row, answer in enumerate(found):
        assert answer == alone(values, row)


def test_the_guilty_record_is_found_among_padded_ones() -> None:
    """A record that the model refuses costs itself alone, whatever it was padded with."""
    model = Model()
    model.poison = 7
    batch = process(servable(model), LENGTHS[:30])
    assert batch.outcomes is not None
    assert set(batch.outcomes.rejected) == {7}
    assert sum(answer is not None for answer in answers(batch)) == 29


def test_out_of_memory_halves_padded_runs() -> None:
    """After a padded run is out of memory, later runs have fewer items, and every record is answered."""
    model = Model()
    one = servable(model)
    model.rows_max = 5
    found = answers(process(one, ["8"] * 40))
    assert None not in found
    assert one.run_limit.items <= 5


def test_a_model_that_is_not_batchable_gets_no_padding() -> None:
    """A model that is not batchable runs each record alone, as long as it is."""
    model = Model(batchable=False)
    process(servable(model), ["5", "9"])
    assert model.shapes == [(1, 5), (1, 9)]


def test_a_model_whose_answers_padding_changes_gets_records_of_one_length() -> None:
    """A model that ignores its mask is not padded: only records of the same length share a run, and answers stay exact."""
    model = Model(masked=False)
    one = servable(model)
    values = ["5", "9", "5", "12"]
    found = answers(process(one, values))
    assert one.ragged is None
    assert sorted(model.shapes) == [(1, 9), (1, 12), (2, 5)]
    for row, answer in enumerate(found):
        assert answer == alone(values, row)


@pytest.mark.parametrize("before", [False, True])
def test_padding_may_come_before_the_items_own_positions(before: bool) -> None:
    """Positions added before or behind an item's own are cut from the outputs alike."""
    padding = {name: Padding(0, one.value, 8, before=before, group="text") for name, one in PADDING.items()}
    values = ["5", "9", "7", "12"]
    found = answers(process(servable(Model(), padding=padding), values))
    for row, answer in enumerate(found):
        assert answer == alone(values, row)


def test_each_model_run_is_counted_once() -> None:
    """Metrics count the runs and the items that the model saw, although a padded run is encoded by length."""
    meters = Meters({"digits": None})
    model = Model()
    batch = process(servable(model), LENGTHS)
    meters.batch("digits", batch)
    counts = meters._of("digits")
    assert (counts.batches, counts.items) == (len(model.shapes), len(LENGTHS))


def test_runs_of_interleaved_shapes_keep_their_records_apart() -> None:
    """Runs of several shapes that are encoded together give each record its own answer, however their rows interleave."""
    values = ["5", "9", "5", "9"]
    found = answers(process(servable(Model(masked=False, outputs=(Y,))), values))
    assert [offset for offset, _ in found] == [0, 1, 2, 3]
    for row, (_, prediction) in enumerate(found):
        assert prediction["outputs"]["y"] == alone(values, row)[1]["outputs"]["y"]


def test_an_extra_that_is_not_installed_is_one_sentence() -> None:
    """A pipeline that needs a missing package says which setting needs it and what to install."""
    with pytest.raises(
        ConfigError, match=r"^preprocess\.text needs absent_package: pip install 'streaminfer\[text\]'$"
    ):
        extras.load("absent_package", extra="text", why="preprocess.text")
    assert extras.load("json", extra="text", why="x") is json


def test_the_ragged_seam_is_off_by_default() -> None:
    """A decoder without padding gives a servable that pads nothing."""
    assert ragged_of(Model(), None, "mean") is None  # type: ignore[arg-type]
    assert isinstance(ragged_of(Model(), PADDING, "mean"), Ragged)  # type: ignore[arg-type]
