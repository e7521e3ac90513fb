"""Fields of the record in its result, and bodies of a shape of one's own."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from encode_support import batch_of, encode, make_encoder, pipeline
from jsonschema import Draft202012Validator

from worker.batch import Batch, Outcomes
from worker.errors import ConfigError
from worker.records.json_text import parsed
from worker.settings import json_schema

pytestmark = pytest.mark.usefixtures("both_batch_paths")

RECORDS = [
    b'{"features": [1], "ticket_id": 17, "user": {"name": "ann", "tags": [1, 2.5, null]}}',
    b'{"features": [1], "ticket_id": null, "user": "bob"}',
    b'{"features": [1], "model": "mine", "ticket_id": 18446744073709551615, "user": {"name": "\\u00e9"}}',
]


@dataclasses.dataclass
class ReadsJson:
    """A servable whose records are JSON, as :class:`worker.serving.servable.Servable` reads them."""

    model_name: str = "digits"

    def fields(self, payload: bytes, headers: Any = None) -> dict[str, Any]:
        return parsed(payload)


def batch(*values: bytes) -> Batch:
    made = batch_of(len(values or RECORDS), values=values or RECORDS)
    made.servable = ReadsJson()  # type: ignore[assignment]
    return made


def outcomes(batch: Batch, postprocess: Any = "regression", **output: Any) -> Outcomes:
    encoder = make_encoder({"y": ("float", ["N", 1])}, postprocess=postprocess, **output)
    return encode(encoder, batch, {"y": np.linspace(0.1, 0.3, len(batch), dtype=np.float32)[:, None]})


def results(**output: Any) -> list[Any]:
    return [json.loads(body or b"") for body in outcomes(batch(), **output).bodies]


def test_copied_fields_stand_beside_the_prediction() -> None:
    """`output.copy` puts fields of the record under `fields`, by the path as configured; what a record lacks is null."""
    plain, copied = results(), results(copy=["ticket_id", "user.name", "user.tags[1]"])
    fields = [result.pop("fields") for result in copied]
    assert copied == plain
    assert fields == [
        {"ticket_id": 17, "user.name": "ann", "user.tags[1]": 2.5},
        {"ticket_id": None, "user.name": None, "user.tags[1]": None},
        {"ticket_id": 18446744073709551615, "user.name": "é", "user.tags[1]": None},
    ]


def test_a_body_of_ones_own_has_what_it_names_and_nothing_else() -> None:
    """`output.body` makes the whole value: paths into the result and the record, objects inside, null for what is not there."""
    body = {
        "id": "ticket_id",
        "value": "prediction.value",
        "origin": {"at": "source.offset", "by": {"model": "model.name", "said": "record.model"}},
        "tag": "user.tags[0]",
    }
    plain = results()
    assert results(body=body) == [
        {
            "id": json.loads(record).get("ticket_id"),
            "value": result["prediction"]["value"],
            "origin": {"at": 1042 + i, "by": {"model": "digits", "said": ["mine", None][i < 2]}},
            "tag": [None, 1][i == 0],
        }
        for i, (record, result) in enumerate(zip(RECORDS, plain, strict=True))
    ]


def test_numbers_of_the_model_stay_as_they_are() -> None:
    """A body of one's own does not change a number: it reads back as the same float32."""
    numbers = np.random.default_rng(0).standard_normal(50).astype(np.float32)
    numbers *= np.float32(10) ** np.arange(-25, 25).astype(np.float32)
    made = batch(*[RECORDS[0]] * 50)
    encoder = make_encoder(
        {"y": ("float", ["N", 1])}, postprocess="regression", body={"v": "prediction.value"}
    )
    bodies = encode(encoder, made, {"y": numbers[:, None]}).bodies
    assert [np.float32(json.loads(body or b"")["v"]) for body in bodies] == numbers.tolist()


def test_copied_fields_are_there_for_a_body() -> None:
    """`fields` of a body of one's own are those of `output.copy`."""
    found = results(copy=["ticket_id"], body={"all": "fields", "one": "fields.ticket_id"})
    assert found[0] == {"all": {"ticket_id": 17}, "one": 17}


def test_a_row_without_an_answer_stays_without_one() -> None:
    """A rejected row has no body, and its neighbours have theirs."""
    encoder = make_encoder({"y": ("float", ["N", 1])}, postprocess="regression", copy=["ticket_id"])
    found = encode(encoder, batch(), {"y": np.float32([[1], [np.nan], [3]])})
    assert list(found.rejected) == [1]
    assert found.bodies[1] is None
    assert [json.loads(found.bodies[row] or b"")["fields"]["ticket_id"] for row in (0, 2)] == [17, 2**64 - 1]


def test_what_the_parser_takes_can_be_written() -> None:
    """Large integers, deep lists and what `missing: nan` lets in are copied or null, never an error of the worker."""
    values = [
        b'{"features": [1], "a": [123456789012345678901234567890, NaN]}',
        b'{"features": [1], "a": ' + b"[" * 300 + b"]" * 300 + b"}",
    ]
    made = batch(*values)
    made.servable.fields = lambda payload, headers: parsed(payload, takes_nan=True)  # type: ignore[method-assign, assignment]
    found = outcomes(made, copy=["a"])
    assert not found.rejected
    fields = [json.loads(body or b"")["fields"]["a"] for body in found.bodies]
    assert fields[0] == [123456789012345678901234567890, None]
    assert json.dumps(fields[1]) == "[" * 300 + "]" * 300


def test_the_source_of_a_body_of_ones_own_is_in_a_header() -> None:
    """Which record a body of one's own answers is in header streaminfer.source, unless `headers: none`."""
    found = outcomes(batch(), body={"v": "prediction.value"}).headers
    assert found is not None
    assert found[1] == [("streaminfer.source", b"digits/3/1043")]
    assert outcomes(batch(), body={"v": "prediction.value"}, headers="none").headers is None
    assert outcomes(batch(), copy=["ticket_id"]).headers is None


def test_a_format_without_fields_still_takes_paths_into_the_result() -> None:
    """For a picture `output.body` may name parts of the result; a field of the record is refused at start."""
    encoder = make_encoder({"y": ("float", ["N", 1])}, input_format="image", body={"v": "prediction.outputs"})
    made = encode(encoder, batch_of(1), {"y": np.float32([[1]])})
    assert json.loads(made.bodies[0] or b"") == {"v": {"y": [1]}}
    with pytest.raises(ConfigError, match=r"^output\.body\.a\.b: got 'ticket_id', expected a path into"):
        make_encoder({"y": ("float", ["N", 1])}, input_format="image", body={"a": {"b": "ticket_id"}})
    with pytest.raises(ConfigError, match=r"^output\.copy: records of input.format image have no fields"):
        make_encoder({"y": ("float", ["N", 1])}, input_format="image", copy=["ticket_id"])


@pytest.mark.parametrize("given", [{"copy": ["a"]}, {"body": {"a": "id"}}])
def test_other_formats_have_bodies_of_their_own(given: Any) -> None:
    """`copy` and `body` go with JSON results only, and a sentence says so."""
    with pytest.raises(ConfigError, match=r"^output\.(copy|body): goes with output\.format json only, got"):
        pipeline(format="npy", **given)


def test_the_schema_takes_bodies_of_any_depth() -> None:
    """The JSON Schema of the configuration takes objects inside a body, and no lists."""
    schema = json_schema()
    output = Draft202012Validator({"$ref": "#/$defs/OutputSettings", "$defs": schema["$defs"]})
    assert output.is_valid({"topic": "t", "body": {"a": "id", "b": {"c": {"d": "prediction"}}}})
    assert not output.is_valid({"topic": "t", "body": {"a": ["id"]}})
    assert not output.is_valid({"topic": "t", "body": {}})
