"""What stands around the model: a pipeline of the user's configuration, or one that the kind of the data implies."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.encode import Encoder
from worker.encode import encoder as make_encoder
from worker.errors import ConfigError
from worker.filesystem import exists, is_dir, is_file
from worker.model.session import Model
from worker.model.session import load as load_model
from worker.optimize import reading
from worker.optimize.items import Item
from worker.records import decoder as make_decoder
from worker.serving.constants import constants_of
from worker.serving.route import Route, route_of
from worker.settings import LimitsSettings, PipelineSettings, validate
from worker.settings.sections import OutputSettings

PROVIDERS = {"cpu": ["cpu"], "cuda": ["cuda", "cpu"], "tensorrt": ["tensorrt", "cuda", "cpu"]}
"""Target -> model.providers. A CPU takes what a device cannot run: a model in pieces is slow, and the table shows it."""
BESIDE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "sentence_bert_config.json",
    "config.json",
    "1_Pooling/config.json",
)
"""Files of a folder in Hugging Face's layout that say what the model's numbers mean."""
IMPLIED = {
    ".txt": "text",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".npy": "npy",
    ".bin": "tensor",
}
"""Ending of the data -> input format, without a configuration. Pictures: image."""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A pipeline as far as it concerns the model: from a record to its input, from its outputs to a prediction."""

    settings: PipelineSettings
    limits: LimitsSettings
    labels: list[str] | None
    given: bool
    """The user configured it, so that its postprocess says what an answer means."""

    @classmethod
    def of(cls, settings: PipelineSettings, limits: LimitsSettings) -> Pipeline:
        """Of a configured pipeline, without what lies around its records and results.

        Raises:
            ConfigError: its records cannot be answered one by one.
        """
        if settings.model.state:
            raise ConfigError(
                "--config: model.state makes each item depend on those before; expected a model without state"
            )
        if settings.input.window is not None:
            raise ConfigError(
                "--config: input.window makes items of several records; expected --data as .npz tensors"
            )
        plain = settings.input.model_copy(update={"unwrap": None, "reference": None})
        bare = {"input": plain, "output": OutputSettings(topic="out")}
        return cls(settings.model_copy(update=bare), limits, settings.labels, True)

    @classmethod
    def implied(
        cls, model: Path, data: Path, image: dict[str, Any] | None, labels: list[str] | None
    ) -> Pipeline:
        """For data without a configuration: pictures, texts, lines of JSON."""
        ending = data.suffix.lower()
        if is_dir(data):
            files = sorted(
                path.suffix.lower() for path in data.rglob("*") if path.suffix.lower() in reading.WHOLE
            )
            ending = files[0] if files else ""
        name = IMPLIED.get(ending, "image")
        document: dict[str, Any] = {
            "name": "optimize",
            "input": {"topics": ["in"], "format": name},
            "model": {"path": str(model)},
            "output": {"topic": "out"},
            "dead_letter": {"topic": "dead"},
            "kafka": {"bootstrap.servers": "localhost:9092", "group.id": "optimize"},
        }
        if name == "image":
            document["preprocess"] = {"image": image or {}}
        settings = validate(document, Path.cwd())
        return cls(settings.pipelines["optimize"], settings.limits, labels, False)

    def load(self, path: Path, target: str) -> Model:
        """A model as the pipeline runs it on the target.

        Raises:
            StartError: it cannot be loaded.
        """
        return load_model(
            path,
            providers=PROVIDERS[target],
            described_by=self.settings.model.folder,
            one_shape=self.settings.preprocess.one_shape,
            shapes=self.settings.model.shapes,
            sizes=[*self.settings.preprocess.sizes],
            constants=constants_of(self.settings, self.limits),
        )

    def items(self, data: Path, model: Model, label_field: str | None, most: int) -> list[Item]:
        """The data as the model gets them.

        Raises:
            ConfigError: data that cannot be read, or that the pipeline refuses.
        """
        if is_file(data) and data.suffix.lower() in reading.TENSORS:
            return reading.tensors(data, model, most)
        found = reading.records(data, label_field, most)
        decoder = make_decoder(self.settings, model.signature, self.limits)
        return [*reading.decoded(found, self._route(), decoder, model, self._names(model))]

    def encoder(self, model: Model) -> Encoder | None:
        """What makes predictions of outputs, where the user configured it."""
        if not self.given:
            return None
        signature = model.described or model.signature
        return make_encoder(
            self.settings, signature, model.name, model.version, self.labels, self._route().envelope
        )

    def copy_beside(self, folder: Path, model: Path) -> list[str]:
        """Copy what the model is used with beside it: labels, tokenizer; returns the names."""
        copied = []
        wanted = {
            path.name: path for path in (self.settings.label_file, *self._tokenizers()) if path is not None
        }
        source = self.settings.model.folder or model.parent
        if self.given or self.settings.model.folder is not None:
            wanted |= {name: source / name for name in BESIDE if name not in wanted}
        for name, path in wanted.items():
            if is_file(path):
                (folder / name).parent.mkdir(exist_ok=True)
                if not exists(folder / name) or not (folder / name).samefile(path):
                    shutil.copyfile(path, folder / name)
                copied.append(name)
        return copied

    def _tokenizers(self) -> Sequence[Path | None]:
        return [getattr(content.options, "tokenizer", None) for content in self.settings.preprocess.contents]

    def _route(self) -> Route:
        return route_of("optimize", self.settings)

    def _names(self, model: Model) -> Sequence[str] | None:
        return self.labels or [*model.signature.shown.class_names] or None
