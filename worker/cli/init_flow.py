"""What ``init`` finds out about a model and a record, and the trial of what it has written."""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worker.cli.init_guess import Guess, guess
from worker.cli.init_predictions import RAW, label_file, postprocess
from worker.cli.init_text import Names, configuration
from worker.cli.sources import ENDINGS, opened
from worker.errors import ConfigError, WorkerError
from worker.filesystem import is_dir, is_file, read_text
from worker.local.answers import Answer
from worker.local.pipeline import Pipeline
from worker.model.session import Model
from worker.model.session import load as load_model
from worker.model.signature import Signature
from worker.postprocess.labels import own_names
from worker.settings import validate
from worker.settings.sections import ModelSettings
from worker.settings.yaml_text import parse


@dataclass(frozen=True, slots=True)
class Sample:
    """One record, and the file that it is as it stands; None where it is a part of one."""

    value: bytes
    file: Path | None


def read_sample(name: str) -> Sample:
    """The first record of a file, as ``produce`` would send it.

    Raises:
        ConfigError: it is missing, cannot be read, or holds no record.
    """
    path = Path(name)
    raw = is_file(path) and path.suffix.lower() not in ENDINGS
    first = next(iter(opened(name, None, raw).read()), None)
    if first is None:
        raise ConfigError(f"--sample: {name} holds no record; expected at least one")
    whole = is_file(path) and path.stat().st_size == len(first.value)
    return Sample(first.value, path if whole else None)


def asked(question: str, default: str) -> str:
    """What somebody on the terminal says; the default for an empty line.

    Raises:
        ConfigError: the input ended.
    """
    try:
        said = input(f"{question} [{default}]: ").strip()
    except EOFError:
        raise ConfigError("the input ended; expected an answer, or --yes to take the defaults") from None
    return said or default


@dataclass
class Found:
    """Everything that is known before the file is written."""

    signature: Signature
    guess: Guess
    model_text: str
    """The model's path, relative to the configuration."""
    labels: Path | None
    named: int | None
    """Names of classes that the model file itself has."""
    said: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, model: Path, sample: Sample | None, labels: Path | None, out: Path) -> Found:
        """Load the model, look at its answers to made-up items, and compare both with the record.

        Raises:
            StartError: the model cannot be loaded. ConfigError: the labels do not fit.
        """
        base = out.absolute().parent
        settings = ModelSettings.model_validate({"path": model}, context={"base": Path.cwd()})
        if not is_file(settings.file):
            wrong = "holds no model.onnx" if is_dir(model) else "does not exist"
            raise ConfigError(
                f"--model: {model} {wrong}; expected an ONNX file or a folder in Hugging Face's layout"
            )
        loaded: Model = load_model(settings.file, described_by=settings.folder)
        try:
            signature = loaded.described or loaded.signature
            folder = settings.file.parent
            tokenizer = folder / "tokenizer.json"
            outside = _relative(tokenizer, base) if is_file(tokenizer) and settings.folder is None else None
            made = guess(signature, sample.value if sample is not None else None, outside)
            file = labels if labels is not None else _labels_beside(signature, settings.file)
            if file is not None and not is_file(file):
                raise ConfigError(
                    f"--labels: {file} does not exist; expected a text file with one label per line"
                )
            names = own_names(signature)
            found = cls(
                signature, made, str(_relative(model, base)), file, len(names) if names is not None else None
            )
            given = _relative(file, base) if file is not None else None
            made.postprocess = postprocess(signature, given, made, found.outputs(sample, out))
            return found
        finally:
            loaded.close()

    def outputs(self, sample: Sample | None, out: Path) -> dict[str, Any] | None:
        """What the model gives for the sample, by output; None where that cannot be known."""
        if sample is None:
            return None
        names = Names("init", "init", "localhost:9092", self.model_text, "")
        try:
            answer = self.answered(configuration(names, self.guess, self.signature, None), out, sample)
        except WorkerError:
            return None  # said when the whole configuration is tried
        prediction = answer.prediction if answer is not None else None
        return prediction.get("outputs") if isinstance(prediction, dict) else None

    def use_custom_code(self, module: str) -> None:
        """Put the stub in the place of the postprocess, and of the input format where no other was found."""
        self._forget_postprocess()
        self.guess.postprocess = f"{module}:postprocess"
        self.guess.why["postprocess"] = f"custom code in {module}.py, beside this file"
        if any(each.startswith("input.format:") for each in self.guess.edit):
            self.guess.format = f"{module}:decode"
            self.guess.why["format"] = f"custom code in {module}.py, beside this file"
            self.guess.preprocess, self.guess.fields = {}, []

    def without_postprocess(self, error: WorkerError) -> bool:
        """Fall back to the outputs as they are, if what was guessed for them does not fit; False if something else is wrong."""
        if not isinstance(self.guess.postprocess, dict) or "postprocess" not in str(error):
            return False
        name = next(iter(self.guess.postprocess))
        self._forget_postprocess()
        self.guess.edit.append(f"postprocess: {name} does not fit: {error}")
        self.guess.postprocess = None
        self.guess.why["postprocess"] = RAW
        return True

    def _forget_postprocess(self) -> None:
        self.guess.edit = [each for each in self.guess.edit if not each.startswith("postprocess")]

    def answered(self, text: str, out: Path, sample: Sample | None) -> Answer | None:
        """Load the configuration, and answer the sample if there is one.

        Raises:
            ConfigError: the configuration is wrong. StartError: the model cannot be loaded.
        """
        document = parse(text.replace("${KAFKA_BOOTSTRAP_SERVERS:-localhost:9092}", "localhost:9092"))
        settings = validate(document, out.absolute().parent)
        with redirect_stdout(sys.stderr), Pipeline.of(settings) as pipeline:  # custom code may print
            return pipeline(sample.value) if sample is not None else None

    def test_of(self, answer: Answer | None, sample: Sample | None, out: Path) -> dict[str, Any] | None:
        """A test that keeps what the sample gives; None where that is no label, or the sample no file of its own."""
        if answer is None or sample is None or sample.file is None or not isinstance(answer.prediction, dict):
            return None
        label = answer.prediction.get("label")
        if not isinstance(label, str):
            return None
        file = str(_relative(sample.file, out.absolute().parent))
        return {"name": "the sample", "record": {"file": file}, "expect": {"label": label}}

    def lines(self) -> list[str]:
        """What was found, for people."""
        post = self.guess.postprocess
        kind = "raw" if post is None else post if isinstance(post, str) else next(iter(post))
        why = {key: f" ({text})" for key, text in self.guess.why.items()}
        found = [f"input        {self.guess.format}{why.get('format', '')}"]
        if self.labels is not None and post is not None:
            found.append(f"labels       {_relative(self.labels, Path.cwd())}")
        elif self.named is not None:
            found.append(f"labels       {self.named} in the model file")
        return [*found, f"postprocess  {kind}{why.get('postprocess', '')}"]

    def topic(self, out: Path) -> str:
        """The input topic as it was written."""
        document = parse(read_text(out))
        return str(document["input"]["topics"][0])


def _labels_beside(signature: Signature, model: Path) -> Path | None:
    """A file with names of the classes, unless the model has some itself."""
    if own_names(signature) is not None:
        return None
    spec = next((each for each in signature.outputs if each.dtype.kind == "f"), signature.outputs[0])
    shape = spec.item_shape
    counts = (
        [shape[0]] if len(shape) in (1, 3) else [side - 4 for side in shape if side is not None and side > 5]
    )
    return next((found for count in counts if (found := label_file(model.parent, model.stem, count))), None)


def _relative(path: Path, base: Path) -> Path:
    return Path(os.path.relpath(path.absolute(), base))
