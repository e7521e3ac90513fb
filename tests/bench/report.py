"""Medians of interleaved rounds, the ratios that are promised, and how both are shown."""

from __future__ import annotations

import platform
import statistics
import sys
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stage import Round

VERSIONS = ("confluent-kafka", "onnxruntime", "numpy", "orjson", "pysimdjson", "opencv-python-headless")


@dataclass
class Measured:
    """All rounds of one subject."""

    group: str
    name: str
    rounds: list[Round] = field(default_factory=list)
    note: str = ""

    @property
    def cpu_us(self) -> float:
        return statistics.median(r.cpu_us for r in self.rounds)

    @property
    def per_s(self) -> float:
        return statistics.median(r.per_s for r in self.rounds)


@dataclass(frozen=True)
class Paced:
    """One subject at a fixed rate: medians of its trials by `streaminfer bench`."""

    name: str
    per_s: int
    held: bool
    """Whether it kept up with the rate."""
    cores: float
    """Share of a core its processes used."""
    latency_ms: dict[str, float]
    stages_ms: dict[str, dict[str, float]]
    """Empty for one that reports none."""

    @property
    def group(self) -> str:
        return f"latency at {self.per_s:,} records/s"

    @staticmethod
    def keeps_up(trial: dict[str, Any]) -> bool:
        return bool(trial["answered_per_s"] > 0.97 * trial["wanted_per_s"] and trial["records"]["lost"] == 0)

    @classmethod
    def of(cls, name: str, per_s: int, trials: list[dict[str, Any]], cores: float) -> Paced:
        return cls(
            name,
            per_s,
            all(map(cls.keeps_up, trials)),
            cores,
            _medians([trial["latency_ms"] for trial in trials]),
            {
                stage: _medians([trial["stages_ms"][stage] for trial in trials])
                for stage in trials[0]["stages_ms"]
            },
        )

    def line(self) -> str:
        """For the table."""
        known = [
            self.latency_ms.get(name, float("nan")) for name in ("p50", "p99", "p99_9")
        ]  # no answer in time
        times = " ".join(f"{ms:9.2f}" for ms in known)
        stages = " ".join(f"{stage} {times['p50']:.2f}" for stage, times in self.stages_ms.items())
        cores = f"{self.cores:7.3f}" if self.cores else " " * 7
        told = f"  {self.name:18} {self.per_s:>6,} {times} {cores}  {stages}"
        return told if self.held else told + "  does not keep up"


@dataclass(frozen=True)
class Row:
    """One promise: a ratio of two medians of the same run, beside its bound."""

    group: str
    what: str
    value: float
    sense: str
    """``<=`` or ``>=``."""
    bound: float

    @property
    def holds(self) -> bool:
        return self.value <= self.bound if self.sense == "<=" else self.value >= self.bound


@dataclass
class Report:
    """Everything one run found."""

    broker: str
    measured: list[Measured] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    paced: list[Paced] = field(default_factory=list)
    titles: dict[str, str] = field(default_factory=dict)
    """Group -> one line of what it does, where its name does not say."""
    notes: list[str] = field(default_factory=list)
    disturbed: dict[str, float] = field(default_factory=dict)
    """Group -> most cores that others kept busy just before one of its rounds."""

    def at_most(self, group: str, what: str, value: float, bound: float) -> None:
        self.rows.append(Row(group, what, value, "<=", bound))

    def at_least(self, group: str, what: str, value: float, bound: float) -> None:
        self.rows.append(Row(group, what, value, ">=", bound))

    def document(self) -> dict[str, Any]:
        """The report as JSON."""
        return {
            "machine": _machine(),
            "broker": self.broker,
            "measured": [
                {
                    "group": m.group,
                    "name": m.name,
                    "cpu_us_per_record": _spread([r.cpu_us for r in m.rounds]),
                    "records_per_s": _spread([r.per_s for r in m.rounds if r.per_s]),
                    **({"note": m.note} if m.note else {}),
                }
                for m in self.measured
            ],
            "paced": [asdict(paced) for paced in self.paced],
            "rows": [{**asdict(row), "value": round(row.value, 4), "holds": row.holds} for row in self.rows],
            "notes": self._notes(),
        }

    def table(self) -> str:
        """The report for a terminal or a pipe."""
        lines = [f"{'':44} {'CPU us/record':>13} {'(min..max)':>18} {'records/s':>11}"]
        group = ""
        for m in self.measured:
            if m.group != group:
                group = m.group
                lines.append(f"{self.titles.get(group, group)} ({self.broker})")
            cpu = sorted(r.cpu_us for r in m.rounds)
            spread = f"({_short(cpu[0])}..{_short(cpu[-1])})"
            per_s = f"{m.per_s:,.0f}" if m.per_s else ""
            lines.append(f"  {m.name + m.note:42} {_short(m.cpu_us):>13} {spread:>18} {per_s:>11}")
        if self.paced:
            names = " ".join(f"{name:>9}" for name in ("p50 ms", "p99 ms", "p99.9 ms"))
            lines += ["", f"{'latency, due to read':20} {'rate':>6} {names} {'cores':>7}  median stages"]
            lines += [paced.line() for paced in self.paced]
        lines += ["", f"{'promise':60} {'value':>8}    bound"]
        for row in self.rows:
            verdict = "" if row.holds else "   MISSED"
            lines.append(
                f"{row.group + ': ' + row.what:60} {row.value:8.2f} {row.sense:>3} {row.bound:g}{verdict}"
            )
        return "\n".join([*lines, *(f"note: {note}" for note in self._notes())])

    def _notes(self) -> list[str]:
        busy = [
            f"{group}: measured beside other work (up to {cores:.1f} cores): trust its CPU figures to 10 %, "
            "its records/s and latencies not at all"
            for group, cores in self.disturbed.items()
        ]
        return [*self.notes, *busy]


def _medians(percentiles: list[dict[str, float]]) -> dict[str, float]:
    if not all(percentiles):
        return {}
    return {name: statistics.median(each[name] for each in percentiles) for name in percentiles[0]}


def _spread(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    spread = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {name: round(value, 3) for name, value in spread.items()}


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" if value < 1 else f"{value:.2f}"


def _machine() -> dict[str, Any]:
    models = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    ]
    return {
        "cpu": models[0].partition(":")[2].strip() if models else platform.machine(),
        "cores": len(models),
        "python": sys.version.split()[0],
        **{name: version(name) for name in VERSIONS},
    }
