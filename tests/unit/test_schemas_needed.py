"""Schemas as what records wait for outside: which record needs which, and takes that need none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fakes import FakeRollout, columns_of
from registry_server import RegistryServer, registry

from worker.batch import Columns, Fetched, Partition, Span
from worker.loop.admission import Admission
from worker.loop.budget import Budget
from worker.loop.openslab import OpenSlab
from worker.outside import Away, Outside
from worker.schema_registry.client import RegistryClient, open_schemas
from worker.schema_registry.frame import HEADER, header_of
from worker.schema_registry.outside import SchemasNeeded
from worker.settings.schema_registry import RegistrySettings
from worker.telemetry import names
from worker.telemetry.meters import KafkaState, Meters
from worker.telemetry.prometheus import _samples as samples

READING = {"type": "record", "name": "Reading", "fields": [{"name": "value", "type": "double"}]}


@pytest.fixture
def server() -> Iterator[RegistryServer]:
    with registry() as found:
        yield found


@pytest.fixture
def needed(server: RegistryServer) -> Iterator[SchemasNeeded]:
    settings = RegistrySettings(url=server.url)
    client = RegistryClient(settings)
    shelf = open_schemas(settings, client).shelf("AVRO", lambda schema: schema)
    yield SchemasNeeded(
        shelf, "schema registry x", lambda headers: bool(headers) and headers[0][0] == "wrapped"
    )
    client.close()


def take(*values: bytes | None, headers: Any = None) -> Columns:
    columns = columns_of(Partition("in", 0), range(len(values)), values)
    if headers is not None:
        columns.headers = headers
    return columns


def test_a_record_needs_its_schema_until_it_is_known(server: RegistryServer, needed: SchemasNeeded) -> None:
    """Records of one schema have one need; once it was asked for nobody needs it, and neither does one that is unknown."""
    outside: Outside = needed
    number = server.add(READING)
    value = number.to_bytes(5, "big") + b"data"
    need = outside.need(value, None)
    assert need is not None
    assert (need, need.what, need.place) == (outside.need(value[:5], []), "schema 1", "schema registry x")
    assert outside.ask(need, 0) is None
    assert outside.need(value, None) is None
    other = outside.need(b"\0\0\0\0\7", None)
    assert other is not None
    outside.ask(other, 0)
    assert outside.need(b"\0\0\0\0\7", None) is None


def test_a_registry_that_does_not_answer_is_away(server: RegistryServer, needed: SchemasNeeded) -> None:
    """Whatever is no answer means that it must be asked again."""
    server.fault = "500"
    need = needed.need(b"\0\0\0\0\1", None)
    assert need is not None
    with pytest.raises(Away, match="store error"):
        needed.ask(need, 0)
    assert needed.need(b"\0\0\0\0\1", None) == need


def test_what_names_no_schema_needs_none(needed: SchemasNeeded) -> None:
    """Records without a value or a frame, and wrapped ones whose frame cannot be seen, go on at once."""
    assert needed.need(None, None) is needed.need(b"text", None) is None
    assert needed.need(b"\0\0\0\0\1", [("wrapped", b"")]) is None


def test_a_take_of_known_schemas_passes_whole(server: RegistryServer, needed: SchemasNeeded) -> None:
    """A take passes as soon as all of its schemas are known, in the prefix or in a header, and not before."""
    number = server.add(READING)
    value = number.to_bytes(5, "big")
    header = [(HEADER, header_of(server.guid(number)))]
    assert needed.here(take())
    assert not needed.here(take(value, value))
    need = needed.need(value, None)
    assert need is not None
    needed.ask(need, 0)
    assert needed.here(take(value, value + b"x", None))
    assert needed.here(take(value, b"text"))
    assert not needed.here(take(value, b"\0\0\0\0\7"))
    assert not needed.here(take(value, b"data", headers=[None, header]))
    need = needed.need(b"data", header)
    assert need is not None
    needed.ask(need, 0)
    assert needed.here(take(value, b"data", headers=[None, header]))


def test_takes_that_pass_and_takes_that_waited_share_a_slab() -> None:
    """In whichever order they come, each record keeps its place, its own time and what was fetched for it."""
    for order in ("wpw", "pwp", "pw", "wp"):
        slab = OpenSlab(Budget(1 << 20).shares[0])
        offset = 0
        for number, kind in enumerate(order):
            columns = take(b"a", b"b")
            columns.offsets = [offset, offset + 1]
            if kind == "w":
                columns.fetched = [Fetched(1000, 7, b"payload"), Fetched(1000)]
            slab.append(columns, [Span(Partition("in", 0), 0, 2, offset + 2)], 10_000 + number * 1000, 7.0)
            offset += 2
        closed = slab.close(Admission([FakeRollout()], None, "drop", 10_000), 10_000, 0.0, 100, False)
        assert closed is not None
        (batch,) = closed.batches
        assert batch.columns.offsets == [*range(offset)]
        assert batch.payloads == [
            part for kind in order for part in (b"payload" if kind == "w" else b"a", b"b")
        ]
        assert batch.late_us is not None
        taken_us = [batch.taken_ns // 1000 + int(late) for late in batch.late_us]
        assert taken_us == [
            1 if kind == "w" else 10 + number for number, kind in enumerate(order) for _ in "ab"
        ]


@pytest.mark.parametrize("away", [False, True])
def test_a_metric_says_that_someone_outside_is_away(away: bool) -> None:
    """``outside_available`` is 0 while records wait for someone who does not answer, else 1."""
    meters = Meters({"m": None})
    snapshot = meters.snapshot(kafka=KafkaState(True, 1, outside=not away))
    found = [value for metric, _, value in samples(snapshot) if metric is names.OUTSIDE_AVAILABLE]
    assert found == [not away]
