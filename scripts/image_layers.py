"""What is in an image, layer by layer: read from the archive that both Docker and buildah can write."""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

PARTS_SHOWN = 6
PACKAGES = re.compile(r"^opt/streaminfer/(?:lib/python[^/]+/site-packages|app)/")
KEPT = re.compile(
    r"\.dist-info/(METADATA|WHEEL|RECORD|top_level\.txt|licenses/.*)$|^var/lib/dpkg/status$|^usr/share/doc/[^/]+/copyright$"
    r"|^usr/local/lib/python[^/]+/PYTHON_VERSION$"
)
"""Files whose text the bill of materials is made of."""
OPENSSL = re.compile(rb"OpenSSL (\d+\.\d+\.\d+[a-z]?) +(?:FIPS )?\d+ [A-Z][a-z]{2} \d{4}")
CHUNK = 1 << 20


@dataclass
class Layer:
    """One layer: what made it, unpacked bytes, and bytes by part."""

    made_by: str
    bytes: int = 0
    parts: Counter[str] = field(default_factory=Counter)


@dataclass
class Contents:
    """An image: its layers, its own configuration, all paths, and what the bill needs."""

    layers: list[Layer]
    config: dict[str, Any]
    paths: set[str] = field(default_factory=set)
    texts: dict[str, bytes] = field(default_factory=dict)
    """Path -> content of the files of `KEPT`."""
    openssl: dict[str, str] = field(default_factory=dict)
    """Path of a shared library -> version of the OpenSSL that it holds."""

    @property
    def bytes(self) -> int:
        """Unpacked bytes of all layers."""
        return sum(layer.bytes for layer in self.layers)

    def text(self) -> str:
        lines = []
        for layer in self.layers:
            lines.append(f"{layer.bytes / 1e6:8.1f} MB  {layer.made_by[:120]}")
            lines += [f"{size / 1e6:16.1f} MB  {part}" for part, size in layer.parts.most_common(PARTS_SHOWN)]
        return "\n".join([*lines, f"{self.bytes / 1e6:8.1f} MB  in all"])

    def json(self) -> str:
        layers = [
            {"made_by": each.made_by, "bytes": each.bytes, "parts": dict(each.parts.most_common())}
            for each in self.layers
        ]
        return json.dumps({"bytes": self.bytes, "layers": layers}, indent=2) + "\n"


def read(builder: str, tag: str, out: Path) -> Contents:
    """Save the image, read all of it once, and remove the archive.

    Raises:
        CalledProcessError: the builder could not save it.
    """
    archive = out / "image.tar"
    archive.unlink(missing_ok=True)
    if builder == "docker":
        subprocess.run(["docker", "save", "--output", str(archive), tag], check=True)
    else:
        subprocess.run(["buildah", "push", "--quiet", tag, f"docker-archive:{archive}"], check=True)
    try:
        with tarfile.open(archive) as saved:
            return _read(saved)
    finally:
        archive.unlink()


def _read(saved: tarfile.TarFile) -> Contents:
    [manifest] = json.load(_file(saved, "manifest.json"))
    config = json.load(_file(saved, manifest["Config"]))
    made = [
        _shortened(step.get("created_by", "")) for step in config["history"] if not step.get("empty_layer")
    ]
    contents = Contents([Layer(by) for by in made], config)
    for layer, name in zip(contents.layers, manifest["Layers"], strict=True):
        with tarfile.open(fileobj=_file(saved, name)) as files:
            _add(contents, layer, files)
    return contents


def _add(contents: Contents, layer: Layer, files: tarfile.TarFile) -> None:
    for entry in files:
        path = entry.name.removeprefix("./").strip("/")
        contents.paths.add(path)
        if not entry.isfile():
            continue
        layer.bytes += entry.size
        layer.parts[_part(path)] += entry.size
        if KEPT.search(path):
            contents.texts[path] = _file(files, entry).read()
        elif ".so" in path and (version := _openssl(_file(files, entry))):
            contents.openssl[path] = version


def _part(path: str) -> str:
    """What a file is counted under: its package, or its first folders."""
    if found := PACKAGES.match(path):
        return path[found.end() :].split("/")[0]
    return "/" + "/".join(path.split("/")[:3])


def _openssl(file: IO[bytes]) -> str | None:
    """The version that a library says it has, if it holds OpenSSL."""
    before = b""
    for chunk in iter(lambda: file.read(CHUNK), b""):
        if found := OPENSSL.search(before + chunk):
            return found.group(1).decode()
        before = chunk[-64:]
    return None


def _file(archive: tarfile.TarFile, entry: str | tarfile.TarInfo) -> IO[bytes]:
    file = archive.extractfile(entry)
    assert file is not None, entry
    return file


def _shortened(step: str) -> str:
    return " ".join(re.sub(r"^/bin/sh -c (#\(nop\) )?", "", step).split())


def binaries(contents: Contents) -> Iterator[str]:
    """Paths of all shared libraries."""
    return (path for path in sorted(contents.paths) if ".so" in path.rsplit("/", 1)[-1])
