"""Commands that know references: check asks the stores, produce fills one, a worker answers, dlq shows what was not there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import models
import orjson
import pytest
from shop import Shop
from stream import Worker, produce, read_all, unique, wait_for_outputs, write_config

from worker.cli.main import main
from worker.kafka.broker import EmbeddedBroker

SECRET = "SECRETSECRETSECRET"


@pytest.fixture
def shop() -> Iterator[Shop]:
    with Shop() as shop:
        yield shop


@pytest.mark.timeout(90)
def test_from_a_folder_through_the_store_and_back(
    embedded_broker: EmbeddedBroker, shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """produce --store, run with offload, check with and without the store, dlq show and replay of a reference."""
    models.write(tmp_path, models.identity())
    source, output, letters = unique("in"), unique("out"), unique("dead")
    for topic in (source, output, letters):
        embedded_broker.create_topic(topic, 1)
    options = {
        "endpoint": shop.url,
        "region": "eu",
        "access_key_id": "AKIAKEYKEY",
        "secret_access_key": SECRET,
    }
    config = write_config(
        tmp_path,
        {
            "input": {
                "topics": [source],
                "format": "json",
                "reference": {"allow": ["s3://frames/"], "appear_s": 0.2, "options": options},
            },
            "model": {"path": "model.onnx", "threads": 1},
            "output": {
                "topic": output,
                "offload": {"to": "s3://results/x", "over_bytes": 50, "options": options},
            },
            "dead_letter": {"topic": letters, "stop_after": "off"},
            "kafka": {"bootstrap.servers": embedded_broker.bootstrap, "group.id": unique("group")},
        },
    )
    assert main(["check", str(config)]) == 0
    printed = capsys.readouterr()
    assert "references  s3://frames/: answers" in printed.out
    assert "s3://results/x/: answers" in printed.out
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(f'{{"features": [{n}, 0, 0, 0]}}' for n in range(5)))
    folder = "s3://frames/test"
    assert main(["produce", str(rows), "--topic", source, "--config", str(config), "--store", folder]) == 0
    assert len(shop.objects) == 5
    produce(
        embedded_broker.bootstrap, source, [{"value": None, "headers": [("ce_dataref", b"s3://frames/gone")]}]
    )
    shop.objects["/frames/event"] = b'{"features": [7, 0, 0, 0]}'
    event = b'{"specversion": "1.0", "id": "e", "source": "s", "type": "t", "dataref": "s3://frames/event"}'
    structured = [("content-type", b"application/cloudevents+json")]
    produce(embedded_broker.bootstrap, source, [{"value": event, "headers": structured}])
    worker = Worker.start(config)
    wait_for_outputs(embedded_broker.bootstrap, [output, letters], 7, [worker])
    assert worker.stop()[0] == 0
    answers = zip((0, 1, 2, 3, 4, 7), read_all(embedded_broker.bootstrap, output), strict=True)
    for n, message in answers:
        small = orjson.loads(message.value())
        stored = orjson.loads(shop.objects["/" + small["dataref"].removeprefix("s3://")])
        assert stored["prediction"]["outputs"]["y"][0] == n
        assert len(orjson.dumps(stored)) == small["bytes"]
    capsys.readouterr()
    assert main(["dlq", "show", str(config)]) == 0
    shown = capsys.readouterr().out
    assert "s3://frames/gone" in shown
    assert "reference_missing" in shown
    shop.objects["/frames/gone"] = b'{"features": [9, 0, 0, 0]}'
    assert main(["dlq", "replay", str(config)]) == 0
    worker = Worker.start(config)
    wait_for_outputs(embedded_broker.bootstrap, [output], 7, [worker])
    assert worker.stop()[0] == 0
    shop.down = 503
    assert main(["check", str(config)]) == 3
    printed = capsys.readouterr()
    assert "the store s3://frames/ cannot be reached: status 503" in printed.out
    assert SECRET not in printed.out + printed.err + worker.text()
    assert main(["check", str(config), "--offline"]) == 0
