"""A stream that repeats itself, answered from memory over a real broker, while the model changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from stream import Worker, produce, read_all, wait_for_outputs
from test_model_swap import Place, answers_with

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

DISTINCT, REPEATS = 5, 40


@pytest.fixture
def started() -> Iterator[list[Worker]]:
    workers: list[Worker] = []
    yield workers
    for worker in workers:
        worker.kill()


def test_a_new_version_never_answers_from_what_the_old_one_said(
    kafka: str, tmp_path: Path, started: list[Worker]
) -> None:
    """Of five payloads sent over and over each version runs each once or twice; every result is that of the version it
    names, with the record's own id."""
    place = Place(kafka, tmp_path, cache={})
    worker = Worker.start(place.config)
    started.append(worker)
    worker.wait_ready()
    sent, number_at = 0, dict[tuple[int, int], int]()
    for version in (1, 2):
        if version > 1:
            place.put(version)
            answers_with(worker, version)
        for _ in range(4):
            numbers = [number % DISTINCT for number in range(DISTINCT * REPEATS // 4)]
            records = [{"value": b'{"features": [%d, 0, 0, 0]}' % n} for n in numbers]
            for record in produce(kafka, place.source, records):
                number_at[record.partition, record.offset] = orjson.loads(record.value or b"")["features"][0]
            sent += len(numbers)
            wait_for_outputs(kafka, [place.results], sent, [worker])
    ran = Counter[int]()
    ids = set()
    for message in read_all(kafka, place.results):
        result = orjson.loads(message.value())
        version, source = int(result["model"]["version"]), result["source"]
        first, *others = result["prediction"]["outputs"]["y"]
        assert others == [version] * 3, result
        assert first - version == number_at[source["partition"], source["offset"]], result
        assert result["id"] == f"{source['topic']}/{source['partition']}/{source['offset']}"
        ids.add(result["id"])
        ran[version] += "cached" not in result
    assert len(ids) == sent
    assert set(ran) == {1, 2}
    assert all(DISTINCT <= count <= 4 * DISTINCT for count in ran.values()), ran
