"""The profile of a pipeline: how the figures of its records are spread, as a file that ``streaminfer profile`` writes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from worker.batch import Array
from worker.drift.bins import Bins, NumberBins, TextBins
from worker.drift.measured import Gathered
from worker.errors import ConfigError
from worker.filesystem import MADE_MAX, read_bytes

TYPE = "streaminfer.profile"
SCHEMA = 1
LEAST_RECORDS = 100
"""A profile of fewer records says too little of how they are spread."""
FEATURES_MAX = 500
"""Features of one profile."""


@dataclass(frozen=True, slots=True, eq=False)
class Feature:
    """How one figure is spread."""

    bins: Bins
    counts: Array
    """int64: values per bin of the profile's records; at the end the records that have no such figure."""


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """See the module."""

    pipeline: str
    model: str
    """The model's name."""
    version: str
    """The version that answered; another one may answer now."""
    source: str
    """What the records came from, for people."""
    created: str
    """ISO 8601, UTC."""
    records: int
    inputs: Mapping[str, str]
    """What is measured of each model input; see :attr:`worker.serving.measures.Measures.kinds`."""
    features: Mapping[str, Feature]

    def write(self, path: Path) -> None:
        """Write the file; a reader sees the old one or the whole new one.

        Raises:
            ConfigError: it cannot be written.
        """
        document = {
            "type": TYPE,
            "schema": SCHEMA,
            "pipeline": self.pipeline,
            "model": {"name": self.model, "version": self.version},
            "source": self.source,
            "created": self.created,
            "records": self.records,
            "inputs": dict(self.inputs),
            "features": {name: _written(feature) for name, feature in self.features.items()},
        }
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            beside.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2) + b"\n")
            beside.replace(path)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise ConfigError(f"{path} cannot be written: {error.strerror or error}") from None

    def check(self, pipeline: str, model: str, inputs: Mapping[str, str]) -> None:
        """Refuse a profile of something else.

        Args:
            pipeline: its name. model: its model's name. inputs: what is measured of each model input.

        Raises:
            ConfigError: says what differs.
        """
        for what, ours, wanted in (
            ("the pipeline", self.pipeline, pipeline),
            ("the model", self.model, model),
        ):
            if ours != wanted:
                raise ConfigError(f"it is of {what} {ours}, expected one of {wanted}")
        for name in sorted({*self.inputs, *inputs}):
            ours, wanted = self.inputs.get(name, "nothing"), inputs.get(name, "nothing")
            if ours != wanted:
                raise ConfigError(
                    f"it has {ours} of the model's input {name}, and the pipeline gives {wanted}; expected a profile "
                    "made with this model and preprocess"
                )

    @classmethod
    def read(cls, path: Path) -> Profile:
        """The profile in a file.

        Raises:
            ConfigError: there is none, or it is no profile that this version reads.
        """
        try:
            document = orjson.loads(read_bytes(path, MADE_MAX))
        except FileNotFoundError:
            raise ConfigError(
                f"{path} does not exist; expected a file that streaminfer profile has written"
            ) from None
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "it is not JSON"
            raise ConfigError(f"{path} cannot be read: {why}; {_EXPECTED}") from None
        if not isinstance(document, dict) or document.get("type") != TYPE:
            raise ConfigError(f"{path} is no profile; {_EXPECTED}")
        if document.get("schema") != SCHEMA:
            raise ConfigError(f"{path} has schema {document.get('schema')!r}, expected {SCHEMA}; {_EXPECTED}")
        try:
            model = document["model"]
            return cls(
                pipeline=str(document["pipeline"]),
                model=str(model["name"]),
                version=str(model["version"]),
                source=str(document["source"]),
                created=str(document["created"]),
                records=int(document["records"]),
                inputs={str(name): str(kind) for name, kind in document["inputs"].items()},
                features={str(name): _feature(held) for name, held in document["features"].items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ConfigError(f"{path} is damaged ({type(error).__name__}: {error}); {_EXPECTED}") from None


_EXPECTED = "expected a file that streaminfer profile has written"


def features_of(gathered: Gathered) -> dict[str, Feature]:
    """How the figures of these records are spread. A text that is another one in most records is left out."""
    features: dict[str, Feature] = {}
    for name, numbers in gathered.columns():
        if (bins := NumberBins.of(numbers)) is not None:
            features[name] = _counted(bins, bins.places(numbers), gathered.records)
    for name, texts in gathered.texts.items():
        if name not in features and (kinds := TextBins.of(texts)) is not None:
            features[name] = _counted(kinds, kinds.places(texts), gathered.records)
    return dict(list(features.items())[:FEATURES_MAX])


def _counted(bins: Bins, places: Array, records: int) -> Feature:
    counts = np.bincount(places, minlength=bins.size)
    return Feature(bins, np.append(counts, records - len(places)))


def _written(feature: Feature) -> dict[str, Any]:
    bins, counts = feature.bins, feature.counts.tolist()
    if isinstance(bins, NumberBins):
        return {"edges": bins.edges.tolist(), "counts": counts[:-1], "missing": counts[-1]}
    return {
        "values": list(bins.values),
        "counts": counts[:-2],
        "other": counts[-2],
        "missing": counts[-1],
    }


def _feature(held: Any) -> Feature:
    """A feature of a file.

    Raises:
        KeyError, TypeError, ValueError: it is damaged.
    """
    counts = [*held["counts"]]
    bins: Bins
    if "edges" in held:
        edges = np.array(held["edges"], np.float64)
        if edges.ndim != 1 or not len(edges) or not (np.diff(edges) > 0).all():
            raise ValueError("edges that do not ascend")
        bins = NumberBins(edges)
    else:
        bins = TextBins(tuple(map(str, held["values"])))
        counts.append(held["other"])
    counts.append(held["missing"])
    found = np.array(counts, np.int64)
    if len(found) != bins.size + 1 or (found < 0).any() or not found.any():
        raise ValueError("counts that do not fit the bins")
    return Feature(bins, found)
