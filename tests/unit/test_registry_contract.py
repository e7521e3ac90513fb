"""What every component keeps to, whichever it is: one suite over the registries."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contract_samples import FORMATS, ITEM, OUTPUT_FORMATS, POSTPROCESSES
from decode_support import Decoding
from encode_support import batch_of, encode, make_encoder, pipeline, signature

from worker import registry
from worker.errors import ConfigError, Reject, Rejection
from worker.postprocess import postprocess
from worker.settings import json_schema

pytestmark = pytest.mark.usefixtures("both_batch_paths")

KINDS = {
    "float16": np.float16,
    "float": np.float32,
    "double": np.float64,
    "int8": np.int8,
    "int16": np.int16,
    "int32": np.int32,
    "int64": np.int64,
    "uint8": np.uint8,
    "uint16": np.uint16,
    "uint32": np.uint32,
    "uint64": np.uint64,
    "bool": np.bool_,
    "string": np.object_,
}
REASONS = {"undecodable", "invalid", "too_large", "too_many_pixels"}
ALL_FORMATS = [*registry.INPUT_FORMATS, "custom"]
ALL_POSTPROCESSES = [*registry.POSTPROCESSES, "custom"]


def decoding(name: str, kind: str = "", **settings: Any) -> Decoding:
    sample = FORMATS[name]
    inputs = {"x": (kind or sample.kind, ("N", *sample.shape))}
    return Decoding(
        sample.name or name, inputs, preprocess=sample.preprocess, schemas=sample.schemas, **settings
    )


def item_of(kind: str, seed: int = 0, shape: tuple[int, ...] = ITEM) -> Any:
    numbers = np.random.default_rng(seed).integers(0, 2 if kind == "bool" else 100, shape)
    if kind == "string":
        return np.array([f"{number}é" for number in numbers.ravel()], object).reshape(shape)
    return numbers.astype(KINDS[kind])


def rows_of(feed: Any, name: str = "x") -> list[Any]:
    """Per row what the decoder gave: the item's values, or the rejection's reason."""
    found: list[Any] = []
    for row in range(len(feed.contexts)):
        if row in feed.rejected:
            found.append(feed.rejected[row].reason)
        elif feed.arrays is not None:
            found.append(feed.arrays[name][row].tolist())
        else:
            found.append(feed.items[row].arrays[name].tolist())
    return found


def cost_of(one: Decoding, value: bytes) -> Any:
    try:
        return one.decoder.cost(value)
    except Reject as error:
        return error.reason


# -- input formats -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ALL_FORMATS)
def test_an_item_arrives_in_the_models_dtype(name: str, kind: str) -> None:
    """An item arrives exactly and in the model's dtype; a dtype that a format cannot carry is refused with a sentence."""
    sample = FORMATS[name]
    try:
        one = decoding(name, kind)
    except ConfigError as error:
        refused = str(error)
    else:
        refused = ""
    if refused:
        assert kind not in sample.kinds
        assert re.match(r"(input\.format|preprocess)", refused)
        return
    item = item_of(kind, shape=sample.shape)
    feed = one.decode(sample.write(item))
    if feed.rejected:
        assert kind not in sample.kinds, feed.rejected[0].message
        assert feed.rejected[0].reason == "invalid"
        return
    found = feed.arrays["x"][0] if feed.arrays is not None else feed.items[0].arrays["x"][0]  # type: ignore[union-attr]
    assert found.dtype == KINDS[kind]
    assert np.array_equal(found, sample.read(item))


def hostile(good: bytes) -> Iterator[bytes]:
    """Bytes that are no record, and records that were damaged."""
    yield from (b"", b"\0", b"null", b"[]", b"{}", b"{", b"\xff" * 40, b"\xef\xbb\xbf", b"[" * 200_000)
    yield from (b'{"a":' * 100_000, b"\x1f\x8b\x08\0", b"\0\0\0\0\1" + good, good + good, b"NaN", b"9" * 5000)
    yield from (good[:length] for length in range(0, len(good), max(1, len(good) // 25)))
    random = np.random.default_rng(3)
    for _ in range(60):
        damaged = bytearray(good)
        for place in random.integers(0, len(good), 1 + random.integers(0, 3)):
            damaged[place] = random.integers(0, 256)
        yield bytes(damaged)
    yield from (random.bytes(int(length)) for length in random.integers(1, 300, 40))


@pytest.mark.parametrize("name", ALL_FORMATS)
def test_hostile_bytes_cost_their_own_row_alone(name: str) -> None:
    """No bytes make a decoder raise; what is wrong with a row is its own rejection, and its neighbours are unmoved."""
    sample, one = FORMATS[name], decoding(name)
    first, last = (sample.write(item_of("uint8", seed, sample.shape)) for seed in (1, 2))
    expected = rows_of(one.decode(first, last))
    refused = 0
    for value in hostile(sample.write(item_of("uint8", shape=sample.shape))):
        found = rows_of(one.decode(first, value, last))
        assert [found[0], found[2]] == expected
        if isinstance(found[1], str):
            assert found[1] in REASONS
            refused += 1
    assert refused > sample.refuses


@pytest.mark.parametrize("name", ALL_FORMATS)
def test_a_record_without_a_value_is_refused_not_fatal(name: str) -> None:
    """A decoder refuses a row that has no value, should one ever reach it."""
    sample, one = FORMATS[name], decoding(name)
    good = sample.write(item_of("uint8", shape=sample.shape))
    found = rows_of(one.decode(good, None, good))  # type: ignore[arg-type]
    assert found[1] in REASONS
    assert found[0] == found[2] != found[1]


@pytest.mark.parametrize("name", ALL_FORMATS)
def test_rows_do_not_depend_on_each_other(name: str) -> None:
    """A row gives the same alone, in any order, and beside rows that are refused."""
    sample, one = FORMATS[name], decoding(name)
    values = [sample.write(item_of("uint8", seed, sample.shape)) for seed in range(7)]
    values[2], values[5] = b"nonsense", values[5][:-3]
    alone = [rows_of(one.decode(value))[0] for value in values]
    random = np.random.default_rng(1)
    for _ in range(20):
        order = random.permutation(len(values))[: random.integers(1, len(values) + 1)].tolist()
        assert rows_of(one.decode(*[values[i] for i in order])) == [alone[i] for i in order]


@pytest.mark.parametrize("name", ALL_FORMATS)
def test_the_cost_is_known_before_anything_is_decoded(name: str) -> None:
    """The cost of any bytes is a number of bytes or a refusal, and nothing of the record is kept for it."""
    sample = FORMATS[name]
    for one in (decoding(name), decoding(name, limits={"in_flight_bytes": 100})):
        for value in hostile(sample.write(item_of("uint8", shape=sample.shape))):
            assert cost_of(one, value) in REASONS or cost_of(one, value) >= 0


MEASURE = """
import json, os, sys
sys.path[:0] = [sys.argv[1], os.path.dirname(sys.argv[1])]
import numpy as np
from contract_samples import FORMATS
from decode_support import Decoding
from worker.errors import Reject

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))

sample = FORMATS[sys.argv[2]]
small = sample.write(np.zeros(sample.shape, np.uint8))
for case, (shape, value) in sample.memory().items():
    kind = sample.kind if sample.preprocess else "float"
    one = Decoding(
        sample.name or sys.argv[2], {"x": (kind, shape)}, preprocess=sample.preprocess, schemas=sample.schemas
    )
    one.decode(small)  # what is made once is no part of a record's cost
    sys.stdout.flush()
    child = os.fork()
    if not child:
        slots = sum(2 * spec.item_nbytes for spec in one.signature.inputs)
        charged = 0 if len(value) <= one.decoder.free_bytes else one.decoder.cost(value)
        with open("/proc/self/clear_refs", "w") as refs:
            refs.write("5")
        before = peak()
        feed = one.decode(value)
        print(json.dumps([case, charged + slots, peak() - before, str(feed.rejected.get(0, ""))]), flush=True)
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        sys.exit(f"{case}: the decoder raised")
"""
FREE_BYTES = 8 << 20
"""What each thread may take for the record at hand without saying so."""


@pytest.mark.parametrize("name", ALL_FORMATS)
def test_what_reading_takes_is_charged(name: str) -> None:
    """Reading a record takes no more memory than it was charged for before, whatever it holds, and 8 MiB."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak of a process's memory is read from Linux' /proc")
    command = [sys.executable, "-c", MEASURE, str(Path(__file__).parent), name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    cases = [json.loads(line) for line in done.stdout.splitlines()]
    assert cases
    for case, charged, taken, _ in cases:
        assert taken <= charged + FREE_BYTES, f"{case}: charged {charged}, took {taken}"


# -- postprocesses -------------------------------------------------------------------------------------


def predictions(name: str, outputs: dict[str, Any]) -> list[Any]:
    settings = POSTPROCESSES[name].settings or name
    shapes = {key: ("float", ["N", *value.shape[1:]]) for key, value in outputs.items()}
    wanted = pipeline(settings, POSTPROCESSES[name].input_format)
    step = postprocess(wanted.postprocess, signature(shapes), None)
    count = len(next(iter(outputs.values())))
    return step.predictions(outputs, count, POSTPROCESSES[name].contexts(count), False)


@pytest.mark.parametrize("name", ALL_POSTPROCESSES)
def test_a_postprocess_gives_one_json_value_per_item(name: str) -> None:
    """There are as many predictions as items, each is valid JSON, and none depends on its neighbours."""
    outputs = POSTPROCESSES[name].outputs(9)
    found = predictions(name, outputs)
    assert len(found) == 9
    assert all(json.loads(text) is not None for text in found)
    order = np.random.default_rng(2).permutation(9)[:6]
    assert predictions(name, {key: value[order] for key, value in outputs.items()}) == [
        found[i] for i in order
    ]


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ALL_POSTPROCESSES)
def test_what_json_cannot_say_costs_its_own_item(name: str, wrong: float) -> None:
    """NaN or infinity in an item's output refuses that item as non_finite and no other."""
    outputs = POSTPROCESSES[name].outputs(5)
    expected = predictions(name, outputs)
    broken = {key: value.copy() for key, value in outputs.items()}
    for value in broken.values():
        value[3].reshape(-1)[-1] = wrong
    found = predictions(name, broken)
    assert isinstance(found[3], Rejection)
    assert (found[3].reason, found[3].stage) in {("non_finite", "postprocess"), ("non_finite", "encode")}
    assert found[:3] + found[4:] == expected[:3] + expected[4:]


# -- output formats ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*registry.OUTPUT_FORMATS])
def test_a_body_reads_back_as_what_the_model_gave(name: str) -> None:
    """Every body of an output format holds the model's numbers, exactly, each in its own row."""
    values = np.random.default_rng(4).normal(size=(6, 2, 3)).astype(np.float32)
    one = make_encoder({"y": ("float", ["N", 2, 3])}, format=name)
    outcomes = encode(one, batch_of(6), {"y": values})
    assert not outcomes.rejected
    for body, expected in zip(outcomes.bodies, values, strict=True):
        assert body is not None
        assert np.array_equal(OUTPUT_FORMATS[name](body), expected)


# -- all of them ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [registry.INPUT_FORMATS, registry.CONTENTS, registry.POSTPROCESSES, registry.OUTPUT_FORMATS]
)
def test_every_entry_can_be_told_about(kind: registry.Registry[Any]) -> None:
    """Every component has a sentence for the documentation and stands in the JSON Schema and in error messages."""
    schema = json.dumps(json_schema())
    for name in kind:
        assert f"| `{name}` | " in kind.table()
        assert re.search(rf"\| `{name}` \| .{{20,}} \|", kind.table()), name
        assert f'"{name}"' in schema
        assert name in kind.expected()
