"""The bill of materials of an image: CycloneDX, from cyclonedx-py and what no Python tool sees.

cyclonedx-py lists the Python packages. Added here: Debian's packages, CPython, and each OpenSSL that a wheel has inside.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from image_layers import PACKAGES, Contents

ROOT = Path(__file__).resolve().parent.parent
LICENSES = ROOT / "requirements" / "licenses.toml"
SPEC = "1.6"
PYTHON_VERSION = re.compile(r"^usr/local/lib/python[^/]+/PYTHON_VERSION$")


@dataclass
class Bill:
    """A CycloneDX document."""

    document: dict[str, Any]

    @property
    def components(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.document["components"]
        return found

    def json(self) -> str:
        return json.dumps(self.document, indent=2) + "\n"


def make(contents: Contents, tag: str, version: str) -> Bill:
    """The bill of an image's contents.

    Raises:
        CalledProcessError: cyclonedx-py could not be installed, or failed.
    """
    bill = Bill(_python_packages(contents))
    for component in bill.components:
        if bundled := _bundled(contents, component):
            component["components"] = bundled
    bill.components.extend([*_cpython(contents), *_debian(contents)])
    bill.document["metadata"]["component"] = {
        "type": "container",
        "bom-ref": "image",
        "name": tag.rsplit(":", 1)[0],
        "version": version,
        "description": f"container image {tag}",
        "licenses": [{"license": {"id": "Apache-2.0"}}],
    }
    return bill


def refused(bill: Bill, image: str) -> list[str]:
    """One sentence for each Python package whose licence nobody has looked at, or that may not be in this image."""
    names = [each["name"] for each in bill.components if each.get("purl", "").startswith("pkg:pypi/")]
    looked_at = tomllib.loads(LICENSES.read_text(encoding="utf-8"))
    sentences = []
    for name in (re.sub(r"[-_.]+", "-", name).lower() for name in names if name != "streaminfer"):
        licence = looked_at["packages"].get(name)
        if licence is None:
            sentences.append(f"{name}: no licence in {LICENSES.relative_to(ROOT)}; read it and name it there")
        elif wrong := sorted(set(licence.split(" AND ")) - allowed(looked_at, image)):
            sentences.append(f"{name}: its licence may not be in the image {image}: {', '.join(wrong)}")
    return sentences


def allowed(looked_at: dict[str, Any], image: str) -> set[str]:
    """Licences that may be in an image: ``cpu``, ``cpu-all`` or ``gpu``."""
    groups = {"cpu": ["cpu"], "cpu-all": ["cpu", "extras"], "gpu": ["cpu", "extras", "gpu"]}[image]
    return {licence for group in groups for licence in looked_at["allowed"][group]}


def _python_packages(contents: Contents) -> dict[str, Any]:
    """What cyclonedx-py finds in a copy of the packages' metadata. It asks a Python for its path, so it is given a
    program that answers with the copy's."""
    tools = subprocess.run(
        [ROOT / "scripts" / "tools"], check=True, capture_output=True, text=True
    ).stdout.strip()
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder, "site")
        for path, content in contents.texts.items():
            if found := PACKAGES.match(path):
                file = site / path[found.end() :]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
        python = Path(folder, "python")
        python.write_text(f"#!/bin/sh\necho '{json.dumps([str(site)])}'\n")
        python.chmod(0o755)
        command = [
            f"{tools}/cyclonedx-py",
            "environment",
            python,
            "--spec-version",
            SPEC,
            "--output-format",
            "JSON",
        ]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def _bundled(contents: Contents, component: dict[str, Any]) -> list[dict[str, Any]]:
    """The OpenSSLs inside the libraries that a wheel brings along."""
    folder = re.sub(r"[-.]+", "_", component["name"]).lower()
    found: dict[str, list[str]] = {}
    for path, version in sorted(contents.openssl.items()):
        inside = PACKAGES.match(path)
        if inside and path[inside.end() :].split("/")[0] in (f"{folder}.libs", folder):
            found.setdefault(version, []).append(path)
    return [
        {
            "type": "library",
            "bom-ref": f"{component['bom-ref']}#openssl@{version}",
            "name": "openssl",
            "version": version,
            "purl": f"pkg:generic/openssl@{version}",
            "properties": [{"name": "streaminfer:path", "value": f"/{path}"} for path in paths],
        }
        for version, paths in found.items()
    ]


def _cpython(contents: Contents) -> list[dict[str, Any]]:
    return [
        {
            "type": "platform",
            "bom-ref": "cpython",
            "name": "cpython",
            "version": (version := text.decode().strip()),
            "purl": f"pkg:generic/python@{version}",
            "licenses": [{"license": {"id": "Python-2.0.1"}}],
        }
        for path, text in contents.texts.items()
        if PYTHON_VERSION.match(path)
    ]


def _debian(contents: Contents) -> list[dict[str, Any]]:
    components = []
    for block in contents.texts.get("var/lib/dpkg/status", b"").decode().strip().split("\n\n"):
        fields = dict(re.findall(r"^([A-Z][\w-]*): (.*)$", block, re.MULTILINE))
        if not fields.get("Status", "").endswith(" installed"):
            continue
        name, version, machine = fields["Package"], fields["Version"], fields["Architecture"]
        purl = f"pkg:deb/debian/{name}@{version.replace(':', '%3A').replace('+', '%2B')}?arch={machine}"
        licences = _debian_licences(contents.texts.get(f"usr/share/doc/{name}/copyright", b""))
        components.append(
            {
                "type": "library",
                "bom-ref": purl,
                "name": name,
                "version": version,
                "purl": purl,
                **({"licenses": [{"license": {"name": each}} for each in licences]} if licences else {}),
            }
        )
    return components


def _debian_licences(copyright_file: bytes) -> list[str]:
    """The short names in a copyright file of Debian's machine-readable form; none for others."""
    text = copyright_file.decode("utf-8", "replace")
    if not text.startswith("Format:"):
        return []
    return sorted(set(re.findall(r"^License: +(\S.*?) *$", text, re.MULTILINE)))
