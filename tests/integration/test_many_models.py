"""Many small models of every data type and shape in one worker: each answer is what the model gives that record alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import models
import numpy as np
import oip_client
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from stream import Worker, create_topics, produce, read_all, unique, wait_for_outputs, write_config

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

Array = NDArray[Any]
Shape = list[int | str]

DTYPES: list[Any] = [
    np.float32,
    np.float64,
    np.float16,
    np.int8,
    np.int16,
    np.int32,
    np.int64,
    np.uint8,
    np.uint16,
    np.uint32,
    np.uint64,
    np.bool_,
    str,
]
SHAPES: list[Shape] = [
    ["N", 4],
    [],
    ["N"],
    [4],
    [1, 4],
    ["N", 2, 3],
    ["N", "L"],
    ["N", 1, 2, 2, 1],
]
MAX_SIZE = 8
REQUESTS = 8
ALL = os.environ.get("MANY_MODELS") == "all"
"""Every data type in every shape; otherwise each type in two shapes and each shape in some types."""


@dataclass
class Case:
    """One model and its requests' inputs.

    ``exact``: its answers are the model's own to the last bit. Sums are not: how ONNX Runtime splits one over a
    vector's lanes depends on the shape of the whole batch.
    """

    name: str
    model: bytes
    requests: list[dict[str, Array]]
    exact: bool = True


def cases() -> list[Case]:
    rng = np.random.default_rng(11)
    return [*_identities(rng), *_operators(rng), *_mixing(rng), *_fixed(rng), *_structured(rng)]


@pytest.fixture
def topics(kafka: str) -> tuple[str, str, str]:
    names = unique("many-in"), unique("many-out"), unique("many-dead")
    create_topics(kafka, dict.fromkeys(names, 3))
    return names


@pytest.fixture
def workers() -> Iterator[list[Worker]]:
    started: list[Worker] = []
    yield started
    for worker in started:
        worker.kill()


def test_every_model_answers_each_record_as_it_does_alone(
    kafka: str, topics: tuple[str, str, str], workers: list[Worker], tmp_path: Path
) -> None:
    """Models of all types, ranks and batch behaviours share one worker; every output equals a run on that record alone."""
    source, results, letters = topics
    made = cases()
    config = write_config(tmp_path, _config(kafka, tmp_path, made, *topics))
    worker = Worker.start(config)
    workers.append(worker)
    records, expected = _traffic(tmp_path, made)
    produce(kafka, source, records)
    wait_for_outputs(kafka, [results, letters], len(records), [worker], timeout_s=120)
    code, _ = worker.stop()
    assert code == 0, worker.text()[-3000:]
    refused = [
        (m.key(), dict(m.headers())["__connect.errors.exception.message"]) for m in read_all(kafka, letters)
    ]
    assert not refused, refused[:5]
    answers = {m.key().decode(): m for m in read_all(kafka, results)}
    assert answers.keys() == expected.keys()
    wrong = [
        problem
        for id_, message in answers.items()
        if (problem := _difference(id_, message, *expected[id_])) is not None
    ]
    assert not wrong, wrong[:10]


def _config(kafka: str, folder: Path, made: list[Case], source: str, results: str, letters: str) -> Any:
    for case in made:
        models.write(folder, case.model, f"{case.name}.onnx")
    return {
        "name": "many",
        "pipelines": {
            case.name: {
                "input": {"topics": [source], "format": "oip"},
                "when": {"header": "x-model", "equals": case.name},
                "model": {"path": f"{case.name}.onnx", "threads": 2},
                "batching": {"max_size": MAX_SIZE},
                "output": {"topic": results, "format": "oip"},
            }
            for case in made
        },
        "dead_letter": {"topic": letters},
        "kafka": {"bootstrap.servers": kafka, "group.id": unique("many")},
    }


def _traffic(folder: Path, made: list[Case]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Requests of all models, shuffled together, and what each model alone says to each."""
    records, expected = [], {}
    for case in made:
        session = ort.InferenceSession((folder / f"{case.name}.onnx").read_bytes())
        names = [output.name for output in session.get_outputs()]
        for number, inputs in enumerate(case.requests):
            id_ = f"{case.name}#{number}"
            chosen = names[::-1] if number % 3 == 2 else names[-1:] if number % 4 == 3 else None
            outputs = chosen or names
            expected[id_] = (dict(zip(outputs, session.run(outputs, inputs), strict=True)), case.exact)
            value, headers = oip_client.request(
                inputs,
                binary=number % 2 == 1,
                binary_output=number % 4 in (1, 2),
                nested=number % 4 == 0,
                outputs=chosen,
                id_=id_,
            )
            headers = [*headers, ("x-model", case.name.encode())]
            records.append({"key": id_.encode(), "value": value, "headers": headers})
    order = np.random.default_rng(5).permutation(len(records))
    return [records[i] for i in order], expected


def _difference(id_: str, message: Any, outputs: dict[str, Array], exact: bool) -> str | None:
    """What is wrong with an answer; None when nothing is."""
    body, got = oip_client.answer(message)
    if body["id"] != id_ or body["model_name"] != id_.partition("#")[0]:
        return f"{id_}: answered as {body['id']} by {body['model_name']}"
    if list(got) != list(outputs):
        return f"{id_}: outputs {list(got)}, expected {list(outputs)}"
    for name, wanted in outputs.items():
        wanted = np.asarray(wanted)
        if got[name].dtype != wanted.dtype or got[name].shape != wanted.shape:
            return f"{id_}: {name} is {got[name].dtype}{got[name].shape}, not {wanted.dtype}{wanted.shape}"
        same = (
            got[name].tolist() == wanted.tolist() if wanted.dtype == object else _same_bits(got[name], wanted)
        )
        if not same and (exact or not np.allclose(got[name], wanted, rtol=1e-5, atol=1e-6)):
            return f"{id_}: {name} is {got[name].tolist()}, the model alone gives {wanted.tolist()}"
    return None


def _same_bits(a: Array, b: Array) -> bool:
    return a.tobytes() == b.tobytes()


# -- the models ---------------------------------------------------------------------------------------------


def _identities(rng: np.random.Generator) -> Iterator[Case]:
    for index, dtype in enumerate(DTYPES):
        picked = SHAPES if ALL else [SHAPES[0], SHAPES[1 + index % (len(SHAPES) - 1)]]
        for shape in picked:
            name = f"identity-{np.dtype(dtype).name if dtype is not str else 'str'}-{_slug(shape)}"
            yield Case(name, models.identity(dtype, shape), [{"x": x} for x in _inputs(rng, dtype, shape)])


def _operators(rng: np.random.Generator) -> Iterator[Case]:
    """Operators whose answers for an item do not depend on its neighbours."""
    floats = [np.float32, np.float64]
    for operator in ("Neg", "Abs", "Exp", "Sigmoid", "Tanh", "Erf", "Floor"):
        yield _unary(rng, operator, np.float32)
    for dtype in (np.float16, np.float64, np.int8, np.int64) if ALL else (np.float16, np.int64):
        yield _unary(rng, "Neg", dtype)
    yield _unary(rng, "Not", np.bool_)
    yield _unary(rng, "Softmax", np.float32, exact=False)
    for operator, dtype in (("Add", np.float32), ("Mul", np.int64), ("Xor", np.bool_), ("Sub", np.float64)):
        shape: Shape = ["N", 4]
        model = models.build(
            [helper.make_node(operator, ["a", "b"], ["y"])],
            [models.tensor("a", dtype, shape), models.tensor("b", dtype, shape)],
            [models.tensor("y", dtype, shape)],
        )
        first, second = (_tame(_inputs(rng, dtype, shape, seed=1)) for _ in range(2))
        pairs = zip(first, second, strict=True)
        yield Case(f"{operator.lower()}-{np.dtype(dtype).name}", model, [{"b": b, "a": a} for a, b in pairs])
    for dtype in floats if ALL else floats[:1]:
        yield _reduction(rng, "ReduceMean", dtype)
        yield _reduction(rng, "ReduceSum", dtype)
    yield Case(
        "mlp", models.mlp(), [{"x": x} for x in _tame(_inputs(rng, np.float32, ["N", 20]))], exact=False
    )
    yield Case(
        "image",
        models.image(size=8),
        [{"x": x} for x in _tame(_inputs(rng, np.float32, ["N", 3, 8, 8]))],
        exact=False,
    )
    yield Case(
        "argmax",
        models.build(
            [helper.make_node("ArgMax", ["x"], ["y"], axis=1, keepdims=0)],
            [models.tensor("x", np.float32, ["N", 4])],
            [models.tensor("y", np.int64, ["N"])],
        ),
        [{"x": x} for x in _inputs(rng, np.float32, ["N", 4])],
    )
    yield Case(
        "cast",
        models.build(
            [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)],
            [models.tensor("x", np.uint8, ["N", 4])],
            [models.tensor("y", np.float32, ["N", 4])],
        ),
        [{"x": x} for x in _inputs(rng, np.uint8, ["N", 4])],
    )


def _mixing(rng: np.random.Generator) -> Iterator[Case]:
    """Models whose answer depends on the batch: they must be found out and run one record at a time."""
    mixed = {
        "centred": models.centred(),
        "centred-int32": models.centred(np.int32),
        "centred-bool": models.centred(np.bool_),
        "cumulative": models.cumulative(),
        "cumulative-int64": models.cumulative(np.int64),
        "softmax-over-batch": models.softmax_over_batch(),
        "sorted-over-batch": models.sorted_over_batch(),
        "sorted-over-batch-int32": models.sorted_over_batch(np.int32),
        "total": models.total(),
        "total-flat": models.total(keepdims=False),
    }
    for name, model in mixed.items():
        dtype = {"int32": np.int32, "int64": np.int64, "bool": np.bool_}.get(
            name.rpartition("-")[2], np.float32
        )
        yield Case(name, model, [{"x": x} for x in _tame(_inputs(rng, dtype, ["N", 4]))])
    reverse = models.build(
        [helper.make_node("Slice", ["x", "from", "to", "axis", "step"], ["y"])],
        [models.tensor("x", np.float32, ["N", 4])],
        [models.tensor("y", np.float32, ["N", 4])],
        {k: np.array([v]) for k, v in {"from": -1, "to": -(1 << 40), "axis": 0, "step": -1}.items()},
    )
    yield Case("reversed", reverse, [{"x": x} for x in _inputs(rng, np.float32, ["N", 4])])
    non_zero = models.build(
        [helper.make_node("NonZero", ["x"], ["y"])],
        [models.tensor("x", np.int32, ["N", 4])],
        [models.tensor("y", np.int64, [2, "M"])],
    )
    yield Case("non-zero", non_zero, [{"x": x} for x in _inputs(rng, np.int32, ["N", 4])])
    transposed = models.build(
        [helper.make_node("Transpose", ["x"], ["y"])],
        [models.tensor("x", np.float32, ["N", 4])],
        [models.tensor("y", np.float32, [4, "N"])],
    )
    yield Case("transposed", transposed, [{"x": x} for x in _inputs(rng, np.float32, ["N", 4])])


def _fixed(rng: np.random.Generator) -> Iterator[Case]:
    for size in (1, 2, 4):
        inputs = [rng.normal(size=(size, 4)).astype(np.float32) for _ in range(REQUESTS)]
        yield Case(f"fixed-batch-{size}", models.fixed_batch(size), [{"x": x} for x in inputs])


def _structured(rng: np.random.Generator) -> Iterator[Case]:
    """Several outputs, outputs of other types and ranks than the input, a model that refuses made-up input."""
    yield Case(
        "two-outputs", models.two_outputs(), [{"x": x} for x in _tame(_inputs(rng, np.float32, ["N", 4]))]
    )
    top = models.build(
        [helper.make_node("TopK", ["x", "k"], ["values", "indices"], axis=1)],
        [models.tensor("x", np.float32, ["N", 4])],
        [models.tensor("values", np.float32, ["N", 2]), models.tensor("indices", np.int64, ["N", 2])],
        {"k": np.array([2])},
    )
    yield Case("top-k", top, [{"x": x} for x in _inputs(rng, np.float32, ["N", 4])])
    joined = models.build(
        [
            helper.make_node("Cast", ["number"], ["text"], to=TensorProto.STRING),
            helper.make_node("StringConcat", ["word", "text"], ["both"]),
            helper.make_node("Identity", ["flag"], ["same"]),
        ],
        [
            models.tensor("word", str, ["N", 4]),
            models.tensor("number", np.int64, ["N", 4]),
            models.tensor("flag", np.bool_, ["N"]),
        ],
        [models.tensor("both", str, ["N", 4]), models.tensor("same", np.bool_, ["N"])],
    )
    words, numbers = _inputs(rng, str, ["N", 4], seed=2), _inputs(rng, np.int64, ["N", 4], seed=2)
    flags = _inputs(rng, np.bool_, ["N"], seed=2)
    rows = zip(words, numbers, flags, strict=True)
    yield Case("joined", joined, [{"number": n, "flag": f, "word": w} for w, n, f in rows])
    ids = [
        np.array([5 + (i + j) % 5 + 5 * (j % 2) for j in range(1 + i % 3)], np.int64) for i in range(REQUESTS)
    ]
    yield Case("refuses-small-ids", models.refuses_small_ids(), [{"x": x} for x in ids])


def _unary(rng: np.random.Generator, operator: str, dtype: Any, exact: bool = True) -> Case:
    shape: Shape = ["N", 4]
    model = models.build(
        [helper.make_node(operator, ["x"], ["y"])],
        [models.tensor("x", dtype, shape)],
        [models.tensor("y", dtype, shape)],
    )
    name = f"{operator.lower()}-{np.dtype(dtype).name}"
    return Case(name, model, [{"x": x} for x in _tame(_inputs(rng, dtype, shape))], exact)


def _reduction(rng: np.random.Generator, operator: str, dtype: Any) -> Case:
    """Over everything but the items."""
    model = models.build(
        [helper.make_node(operator, ["x", "axes"], ["y"], keepdims=0)],
        [models.tensor("x", dtype, ["N", 5, 7])],
        [models.tensor("y", dtype, ["N"])],
        {"axes": np.array([1, 2])},
    )
    inputs = [rng.normal(size=(1 + i % 3, 5, 7)).astype(dtype) for i in range(REQUESTS)]
    return Case(f"{operator.lower()}-{np.dtype(dtype).name}", model, [{"x": x} for x in inputs], exact=False)


# -- the numbers --------------------------------------------------------------------------------------------


def _inputs(rng: np.random.Generator, dtype: Any, shape: Shape, seed: int | None = None) -> list[Array]:
    """Requests for one input: 1 to 3 items, one of more than a batch; extremes of the type among the numbers.

    With the same ``seed`` two inputs of one model get the same shapes.
    """
    sizes = np.random.default_rng(rng.integers(1 << 30) if seed is None else seed)
    made = []
    for number in range(REQUESTS):
        items = 2 * MAX_SIZE + 3 if number == 5 else int(sizes.integers(1, 4))
        inner = int(sizes.integers(1, 5))
        real = [items if d == "N" else inner if isinstance(d, str) else d for d in shape]
        made.append(_numbers(rng, dtype, real))
    return made


def _numbers(rng: np.random.Generator, dtype: Any, shape: list[int]) -> Array:
    count = int(np.prod(shape, dtype=int))
    if dtype is str:
        words = ["", "a", "häßlich", '"quoted"\n', "日本語", "x" * 300, "\\u0000"]
        flat = np.array([words[i] for i in rng.integers(len(words), size=count)], object)
    elif dtype is np.bool_:
        flat = rng.random(count) < 0.5
    elif np.dtype(dtype).kind == "f":
        flat = (rng.normal(size=count) * 10.0 ** rng.integers(-3, 4, size=count)).astype(dtype)
        edges = np.array(
            [np.finfo(dtype).max, np.finfo(dtype).tiny, np.finfo(dtype).smallest_subnormal, -0.0], dtype
        )
        flat[:: max(1, count // 2)] = edges[rng.integers(len(edges))]
    else:
        limits = np.iinfo(dtype)
        flat = rng.integers(limits.min, limits.max, size=count, dtype=dtype, endpoint=True)
        flat[:: max(1, count // 2)] = rng.choice(np.array([limits.min, limits.max], dtype))
    return flat.reshape(shape)


def _tame(arrays: list[Array]) -> list[Array]:
    """The same where no operator makes an infinity of them."""
    return [np.clip(x, -50, 50) if x.dtype.kind == "f" else x for x in arrays]


def _slug(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "scalar"
