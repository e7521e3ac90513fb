"""The S3 store against moto's server, which keeps S3's semantics: signatures, keys of any letters, missing buckets, sizes.

Needs the extra ``slow``, which ``scripts/test --all`` installs.
"""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stream import wait_for

from worker.outside import NotYet, Sized
from worker.settings.stores import ReferenceSettings
from worker.stores.references import References
from worker.stores.url import Url

pytest.importorskip("moto", reason="no moto: scripts/test --all installs it")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

KEYS = ["a", "cam 1/ü ß.jpg", "a+b=c&d'(e)!*~;,:@$", "deep/er/and/deeper", "x" * 300]


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (tmp_path_factory.mktemp("moto") / "log").open("wb")
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log
    )

    def up() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_for(up, "the S3 server")
        subprocess.run(["curl", "-sf", "-X", "PUT", f"http://127.0.0.1:{port}/frames"], check=True)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()
        log.close()


def references(endpoint: str, bucket: str = "frames", **options: str) -> References:
    given: dict[str, Any] = {
        "allow": [f"s3://{bucket}/"],
        "options": {
            "endpoint": endpoint,
            "region": "us-east-1",
            "access_key_id": "AKIAKEYKEY",
            "secret_access_key": "SECRETSECRET",
            **options,
        },
    }
    return References(ReferenceSettings.model_validate(given), 64 << 20)


def fetch(store: References, url: str) -> bytes:
    need = store.need(None, [("ce_dataref", url.encode())])
    assert need is not None
    found = store.ask(need, 1 << 20)
    data = found.read() if isinstance(found, Sized) else found
    assert isinstance(data, bytes)
    return data


def test_what_is_written_is_read(endpoint: str) -> None:
    """Objects of 0 bytes to 20 MB under keys of any letters, over signed URLs, with their sizes known beforehand."""
    store = references(endpoint)
    for number, key in enumerate(KEYS):
        data = os.urandom([0, 100, 40_000, 3_000_000, 20_000_000][number])
        url = Url("s3", "frames", None, f"/{key}")
        store.store(url).put(url, data, "application/octet-stream")
        assert store.store(url).size(url) == len(data)
        assert fetch(store, f"s3://frames{url.target}") == data
        store.store(url).put(url, data[:50], "application/octet-stream")  # over the one that is there
        assert fetch(store, f"s3://frames{url.target}") == data[:50]
    store.close()


def test_what_is_not_there_is_missing(endpoint: str) -> None:
    """An object, and a whole bucket."""
    for bucket in ("frames", "nobody-has-this"):
        store = references(endpoint, bucket)
        with pytest.raises(NotYet) as missing:
            fetch(store, f"s3://{bucket}/nothing")
        assert missing.value.reject.reason == "reference_missing"
        store.close()


def test_a_public_bucket_needs_no_signature(endpoint: str) -> None:
    """With skip_signature the same object comes without credentials."""
    put = [
        "curl",
        "-sf",
        "-X",
        "PUT",
        "-H",
        "x-amz-acl: public-read",
        "-H",
        "content-type: text/plain",
        "--data-binary",
        "hello",
    ]
    subprocess.run([*put, f"{endpoint}/frames/public"], check=True)
    store = references(endpoint, skip_signature="true")
    assert fetch(store, "s3://frames/public") == b"hello"
    store.close()


def test_versions_of_a_model_are_read(endpoint: str, tmp_path: Path) -> None:
    """A repository in S3: versions are listed, one counts once its checksum is there, and its files are copied whole."""
    from worker.errors import StartError
    from worker.serving.versions import resolved
    from worker.settings import validate

    options = {
        "endpoint": endpoint,
        "region": "us-east-1",
        "access_key_id": "AKIAKEYKEY",
        "secret_access_key": "SECRETSECRET",
    }
    settings = validate(
        {
            "input": {"topics": ["in"], "format": "json"},
            "model": {
                "repository": "s3://frames/a%20fleet",
                "name": "digits",
                "store_options": options,
                "cache": str(tmp_path / "cache"),
            },
            "output": {"topic": "out"},
            "dead_letter": {"topic": "dead"},
            "kafka": {"bootstrap.servers": "localhost:9", "group.id": "g"},
        },
        tmp_path,
    )
    store = references(endpoint)
    files = {"model.onnx": os.urandom(20_000_000), "labels ü.txt": b"a\nb\n", "aside/empty": b""}

    def put(name: str, data: bytes) -> None:
        url = Url("s3", "frames", None, f"/a fleet/digits/{name}")
        store.store(url).put(url, data, "application/octet-stream")

    for name, data in files.items():
        put(f"7/{name}", data)
    with pytest.raises(StartError, match=r"7 is not complete: model.sha256 is not there"):
        resolved(settings)
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items())
    put("7/model.sha256", sums.encode())
    put("aliases.yaml", b"stable: 7\n")
    _, found = resolved(settings)
    folder = found["digits"].folder
    assert found["digits"].version.name == "7"
    assert {name: (folder / name).read_bytes() for name in files} == files
    store.close()
