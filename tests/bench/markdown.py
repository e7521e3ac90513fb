"""What some runs found as Markdown, for the benchmarks page: medians by group, latency at fixed rates, promises."""

from __future__ import annotations

from typing import Any

NAMES = {
    "worker": "streaminfer",
    "limit": "decode + batched run + encode by hand in Python, without Kafka",
    "bare": "bare consume and produce of the same payloads",
    "one_by_one": "one record at a time, flush and commit each (the tutorial loop)",
    "improved": "the same, improved: batch consume, no flush",
    "java": "a loop by hand in Java",
    "rust": "a loop by hand in Rust",
    "quix": "Quix Streams",
    "bytewax": "Bytewax, batched by hand",
}


def tables(documents: list[dict[str, Any]]) -> str:
    """All of the documents of ``scripts/bench --json``; a table that would be empty is left out."""

    def every(what: str) -> list[Any]:
        return [row for document in documents for row in document[what]]

    parts = [_measured(every("measured")), _paced(every("paced")), _promises(every("rows"))]
    parts += [f"Note: {note}." for note in every("notes")]
    return "\n\n".join(part for part in parts if part)


def _measured(measured: list[dict[str, Any]]) -> str:
    rows = []
    for each in measured:
        per_s = each["records_per_s"]
        rows.append(
            [
                each["group"],
                NAMES.get(each["name"], each["name"]),
                _figure(each["cpu_us_per_record"]["median"]),
                f"{_three_digits(per_s['median']):,}" if per_s else "",
            ]
        )
    return _table(["group", "what", "CPU µs/record", "records/s"], rows)


def _paced(paced: list[dict[str, Any]]) -> str:
    rows = []
    for each in paced:
        held = ["does not keep up", "", ""]
        if each["held"]:
            held = [_figure(each["latency_ms"][name]) for name in ("p50", "p99", "p99_9")]
        stages = ", ".join(f"{stage} {values['p50']:.2f}" for stage, values in each["stages_ms"].items())
        name = NAMES.get(each["name"], each["name"])
        rows.append(
            [f"{each['per_s']:,}", name, *held, f"{each['cores']:.2f}" if each["cores"] else "", stages]
        )
    heads = ["records/s", "what", "p50 ms", "p99 ms", "p99.9 ms", "of a core", "its own stages, p50 ms"]
    return _table(heads, rows)


def _promises(rows: list[dict[str, Any]]) -> str:
    told = [
        [
            f"{row['group']}: {row['what']}",
            _figure(row["value"]),
            f"{row['sense']} {row['bound']:g}" + ("" if row["holds"] else " (missed)"),
        ]
        for row in rows
    ]
    return _table(["promise", "measured", "bound"], told)


def _table(heads: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return ""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _figure(value: float) -> str:
    return f"{_three_digits(value):,}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _three_digits(value: float) -> int:
    """More digits than the rounds agree in would only look exact."""
    return int(float(f"{value:.3g}"))
