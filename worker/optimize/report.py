"""The table for people, and the report: report.json and report.md."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker import __version__
from worker.optimize.measure import Row

HEADINGS = (
    "model",
    "accuracy",
    "agreement",
    "cosine",
    "loss",
    "bytes",
    "us alone",
    "us best",
    "batch",
    "verdict",
)
PACKAGES = ("onnxruntime", "onnxruntime-gpu", "onnx", "onnxslim", "onnx-ir", "numpy")


@dataclass(frozen=True, slots=True)
class About:
    """What was measured, and how it can be measured again."""

    argv: Sequence[str]
    model: Path
    sha256: str
    data: Path
    judge: str
    """What two answers agree in."""
    target: str
    seed: int
    max_loss: float
    calibration: Sequence[str]
    """Names of the items that methods looked at."""
    held_out: Sequence[str]
    """Names of the items that everything was measured on."""
    notes: Sequence[str] = ()

    @property
    def command(self) -> str:
        return shlex.join(["streaminfer", *self.argv])


def document(about: About, rows: Sequence[Row]) -> dict[str, Any]:
    """The report as JSON has it."""
    chosen = next(row for row in rows if row.verdict == "chosen")
    return {
        "type": "streaminfer.optimize",
        "schema": 1,
        "command": about.command,
        "model": {"path": str(about.model), "sha256": about.sha256},
        "target": about.target,
        "seed": about.seed,
        "max_loss": about.max_loss,
        "loss": loss_words(about, rows),
        "chosen": chosen.name,
        "rows": [row.as_dict() for row in rows],
        "data": {
            "path": str(about.data),
            "calibration": [*about.calibration],
            "held_out": [*about.held_out],
        },
        "versions": versions(),
        "machine": machine(),
        "notes": [*about.notes],
    }


def write(folder: Path, about: About, rows: Sequence[Row]) -> None:
    """Write report.json and report.md into a folder."""
    found = document(about, rows)
    (folder / "report.json").write_text(
        json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    (folder / "report.md").write_text(markdown(about, rows), encoding="utf-8")


def markdown(about: About, rows: Sequence[Row]) -> str:
    """The report for people."""
    cells = [HEADINGS, *(_cells(row) for row in rows)]
    table = [f"| {' | '.join(line)} |" for line in cells]
    table.insert(1, "| --- " + "| ---: " * 8 + "| --- |")
    details = [f"- **{row.name}**: {'; '.join(filter(None, (row.note, row.reason)))}" for row in rows]
    return "\n".join(
        [
            f"# {about.model.name}, optimized for {about.target}",
            "",
            *table,
            "",
            *footnotes(about, rows),
            "",
            *(line for line in details if not line.endswith(": ")),
            "",
            "```sh",
            about.command,
            "```",
            "",
            f"Seed {about.seed}; "
            + ", ".join(f"{name} {version}" for name, version in versions().items())
            + ".",
            f"Machine: {', '.join(f'{key} {value}' for key, value in machine().items())}.",
            "",
        ]
    )


def table(about: About, rows: Sequence[Row]) -> list[str]:
    """The lines for a terminal; the chosen row is marked."""
    cells = [HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for index, line in enumerate(cells):
        mark = "*" if index and rows[index - 1].verdict == "chosen" else " "
        middle = "  ".join(map(str.rjust, line[1:-1], widths[1:-1]))
        lines.append(f"{mark} {line[0].ljust(widths[0])}  {middle}  {line[-1]}".rstrip())
    return lines


def footnotes(about: About, rows: Sequence[Row]) -> list[str]:
    """What the columns mean, one sentence each."""
    time = "CPU time on one thread" if about.target == "cpu" else f"wall-clock time on {about.target}"
    return [
        f"{len(about.held_out)} items that no method saw; loss: {loss_words(about, rows)}.",
        f"agreement with the original: {about.judge}, mean over the items; cosine: of the first output, mean.",
        f"us: microseconds per item, {time}; best: in the batch size that is best for the model.",
        *(f"{note}." for note in about.notes),
    ]


def loss_words(about: About, rows: Sequence[Row]) -> str:
    """What the loss is."""
    if rows[0].accuracy is not None:
        return "accuracy of the original minus accuracy"
    return f"1 minus agreement with the original ({about.judge})"


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.name,
        _shown(row.accuracy, ".2%"),
        _shown(row.agreement, ".2%"),
        _shown(row.similarity, ".5f"),
        _shown(row.loss, ".4f"),
        _shown(row.bytes, ","),
        _shown(row.alone_us, ",.1f"),
        _shown(row.best_us, ",.1f"),
        _shown(row.best_size, ""),
        ": ".join(filter(None, (_VERDICTS.get(row.verdict), row.reason))),
    )


_VERDICTS = {"chosen": "chosen", "original": "the original", "not made": "not made"}
"""Verdicts that are shown before their reason; of the others the reason says enough."""


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def versions() -> dict[str, str]:
    """Versions of everything that has a part in the figures."""
    found = {"streaminfer": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, str]:
    """Where the times were measured."""
    model = ""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        pass
    return {"processor": model or platform.processor() or platform.machine(), "cores": str(os.cpu_count())}
