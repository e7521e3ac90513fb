"""One optimization from its data to the model that is written."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx

from worker.errors import ConfigError, StartError
from worker.model.opening import import_runtime, specs_of
from worker.model.session import Model
from worker.model.signature import with_wholes
from worker.optimize import reading
from worker.optimize.items import Split, Tensors, split
from worker.optimize.judge import Judge
from worker.optimize.measure import Candidate, Measured, Row, best_of, measure, rows_of
from worker.optimize.methods import Work, attempts
from worker.optimize.pipeline import Pipeline
from worker.optimize.report import About
from worker.quantize.convert import save
from worker.serving.constants import constants_of

ORIGINAL = "original"


class Tries:
    """Makes and measures what may stand in a model's place.

    Args:
        path: the ONNX file.
        folder: for candidates and temporary files; they are gone with it.
        say: is told what is done next.

    Raises:
        StartError: the model cannot be loaded.
    """

    def __init__(
        self,
        path: Path,
        pipeline: Pipeline,
        target: str,
        *,
        seed: int,
        max_loss: float,
        folder: Path,
        say: Callable[[str], None],
    ) -> None:
        self._path, self._pipeline, self._target = path, pipeline, target
        self._seed, self._max_loss, self._folder, self._say = seed, max_loss, folder, say
        self._original = self._load(path)
        settings = pipeline.settings if pipeline.given else None
        self._judge = Judge(self._original, settings, pipeline.encoder(self._original))
        self._split = Split([], [])
        self._notes: list[str] = []
        self._candidates: list[Candidate] = []

    def read(self, data: Path, label_field: str | None, count: int, calibrate: int) -> None:
        """Read the data and divide them.

        Raises:
            ConfigError: they cannot be read, or are too few.
        """
        items, note = reading.within(self._pipeline.items(data, self._original, label_field, count))
        if len(items) < 2:
            raise ConfigError(
                f"--data: {data} has {len(items)} items; expected some to calibrate on and others to measure with"
            )
        self._notes += [note] if note else []
        self._split = split(items, calibrate, self._seed)
        try:
            self._judge.original_score(self._split.calibration)
        except Exception as error:
            raise StartError(f"{self._path} cannot answer the data: {error}") from error

    def run(self, methods: Sequence[str]) -> tuple[list[Row], Measured]:
        """Try the methods; the table, and which model is the best."""
        work = Work(
            self._path,
            self._split.calibration,
            self._constants(),
            self._loss,
            self._max_loss,
            self._seed,
            self._folder,
        )
        self._candidates = [Candidate("", ORIGINAL, self._path)]
        nothing = []
        for attempt in attempts(work, methods, self._say):
            for made in attempt.made:
                path = self._saved(made.model, made.name)
                self._candidates.append(Candidate(attempt.method, made.name, path, made.note))
            if attempt.reason:
                nothing.append(Row(attempt.method, attempt.method, "not made", attempt.reason))
        measured, failed = measure(
            self._candidates, self._load, self._judge, self._original, self._split.held_out, self._say
        )
        chosen = best_of(measured, self._max_loss)
        methods_of = {candidate.name: candidate.method for candidate in self._candidates}
        nothing += [Row(methods_of[name], name, "not made", reason) for name, reason in failed.items()]
        return [*rows_of(measured, chosen, self._max_loss, self._target), *nothing], chosen

    def about(self, data: Path, argv: Sequence[str]) -> About:
        """What was done, for the report."""
        return About(
            argv,
            self._path,
            self._original.sha256,
            data,
            self._judge.kind,
            self._target,
            self._seed,
            self._max_loss,
            [item.name for item in self._split.calibration],
            [item.name for item in self._split.held_out],
            self._notes,
        )

    def write(self, out: Path, chosen: Measured, *, keep_all: bool) -> None:
        """Write the chosen model as ``model.onnx``, whole or not at all; on demand every other one as well."""
        if chosen.candidate.path == self._path:
            _copy(self._path, out / "model.onnx")
        else:
            partial = out / "model.onnx.partial"
            shutil.copyfile(chosen.candidate.path, partial)
            partial.replace(out / "model.onnx")
        if keep_all:
            (out / "candidates").mkdir(exist_ok=True)
            for candidate in self._candidates:
                _copy(candidate.path, out / "candidates" / f"{_file_name(candidate.name)}.onnx")

    def _load(self, path: Path) -> Model:
        return self._pipeline.load(path, self._target)

    def _saved(self, model: onnx.ModelProto, name: str) -> Path:
        path = self._folder / f"{_file_name(name)}.onnx"
        save(model, path, self._path)
        return path

    def _loss(self, model: onnx.ModelProto) -> float:
        loaded = self._load(self._saved(model, "trial"))
        try:
            calibration = self._split.calibration
            score = self._judge.score(loaded, calibration)
            return self._judge.loss(score, self._judge.original_score(calibration))
        finally:
            loaded.close()

    def _constants(self) -> Tensors:
        """Inputs of the model file that are the same in every run: methods run the file itself."""
        if not self._original.signature.constants:
            return {}
        session = import_runtime().InferenceSession(str(self._path), providers=["CPUExecutionProvider"])
        inputs = with_wholes(specs_of("input", session.get_inputs(), self._path.name))
        return dict(constants_of(self._pipeline.settings, self._pipeline.limits)(inputs))


def _file_name(name: str) -> str:
    return name.replace(" ", "-").replace("%", "").replace("+-", "")


def _copy(path: Path, to: Path) -> None:
    """Copy a model; one with external data becomes one file."""
    from worker.model.fingerprint import external_locations

    if external_locations(path):
        save(onnx.load(path), to, path)
    else:
        partial = to.with_name(to.name + ".partial")
        shutil.copyfile(path, partial)
        partial.replace(to)
