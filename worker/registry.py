"""The components a configuration can name: one line here and one new file make another one.

An entry is imported when a configuration names it, so a worker for JSON never loads OpenCV. From the same table come
the choices in the JSON Schema, the sentence "expected one of", the tables of the documentation and the contract
suite that every entry passes (``tests/unit/test_registry_contract.py``).
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from worker.encode import OutputFormat
    from worker.features import Content
    from worker.payload import FilterEntry
    from worker.postprocess import PostprocessEntry
    from worker.records import InputFormat
    from worker.stores import FetcherEntry
    from worker.stores.trees import TreeEntry

T = TypeVar("T")

CUSTOM_CODE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
"""``module:attribute``: how a configuration names the user's own Python code."""


class Registry(Generic[T]):
    """The components of one kind, by the names that users write.

    Args:
        setting: where a configuration names one of them, such as ``input.format``.
        entries: name -> ``module:class``.
        custom: the ``module:class`` that runs custom code; None where this kind takes none.
    """

    def __init__(self, setting: str, entries: dict[str, str], custom: str | None = None) -> None:
        self.setting = setting
        self._entries = dict(entries)
        self._custom = custom

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def add(self, name: str, place: str) -> None:
        """Add an entry, as one more line of the table would."""
        self._entries[name] = place

    def remove(self, name: str) -> None:
        del self._entries[name]

    def takes_custom(self, name: str) -> bool:
        """Whether ``name`` has the form of custom code and this kind takes it."""
        return self._custom is not None and CUSTOM_CODE.fullmatch(name) is not None

    def entry(self, name: str) -> T:
        """The class behind a name, imported now.

        Raises:
            KeyError: no entry has this name, and it does not name custom code either.
        """
        place = self._entries.get(name)
        if place is None and self.takes_custom(name):
            place = self._custom
        if place is None:
            raise KeyError(name)
        module, _, attribute = place.partition(":")
        found: T = getattr(importlib.import_module(module), attribute)
        return found

    def expected(self) -> str:
        """What may stand in the setting, as a sentence ends: ``json, oip or npy``."""
        choices = [*self._entries, *(['custom code as "module:attribute"'] if self._custom else [])]
        return " or ".join(filter(None, (", ".join(choices[:-1]), choices[-1])))

    def table(self) -> str:
        """The entries as a Markdown table: name, and the first sentence of the class's docstring."""
        lines = [f"| `{self.setting}` | what it is |", "| --- | --- |"]
        for name in self:
            text = " ".join((self.entry(name).__doc__ or "").split("\n\n")[0].split()).replace("``", "`")
            lines.append(f"| `{name}` | {text} |")
        return "\n".join(lines)


INPUT_FORMATS: Registry[InputFormat] = Registry(
    "input.format",
    {
        "image": "worker.records.image:ImageDecoder",
        "json": "worker.records.json:JsonDecoder",
        "bytes": "worker.records.bytes:BytesDecoder",
        "tensor": "worker.records.tensor:TensorDecoder",
        "npy": "worker.records.npy:NpyDecoder",
        "oip": "worker.records.oip:OipDecoder",
        "audio": "worker.records.audio:AudioDecoder",
        "pcm16": "worker.records.pcm16:Pcm16Decoder",
        "video": "worker.records.video:VideoDecoder",
        "avro": "worker.records.avro:AvroDecoder",
        "protobuf": "worker.records.protobuf:ProtobufDecoder",
        "json_schema": "worker.records.json_schema:JsonSchemaDecoder",
        "text": "worker.records.text:TextDecoder",
    },
    custom="worker.records.custom:CustomDecoder",
)
CONTENTS: Registry[Content] = Registry(
    "preprocess",
    {
        "image": "worker.features.picture:Picture",
        "audio": "worker.features.sound:Sound",
        "video": "worker.features.video:Video",
        "numeric": "worker.features.numbers:Numeric",
        "constant": "worker.features.constant:Constant",
        "bytes": "worker.features.byte_values:Bytes",
        "text": "worker.features.text:Text",
    },
)
POSTPROCESSES: Registry[PostprocessEntry] = Registry(
    "postprocess",
    {
        "classification": "worker.postprocess.classification:Classification",
        "detection": "worker.postprocess.detection:Detection",
        "keypoints": "worker.postprocess.keypoints:Keypoints",
        "segmentation": "worker.postprocess.segmentation:Segmentation",
        "regions": "worker.postprocess.regions:Regions",
        "ctc": "worker.postprocess.ctc:Ctc",
        "anomaly": "worker.postprocess.anomaly:Anomaly",
        "regression": "worker.postprocess.regression:Regression",
        "embedding": "worker.postprocess.embedding:Embedding",
        "segments": "worker.postprocess.segments:Segments",
        "tokens": "worker.postprocess.tokens:Tokens",
        "fields": "worker.postprocess.fields:Fields",
        "raw": "worker.postprocess.raw:Raw",
    },
    custom="worker.postprocess.custom:CustomPostprocess",
)
FETCHERS: Registry[FetcherEntry] = Registry(
    "input.reference.allow",
    {
        "s3": "worker.stores.objects:S3",
        "gs": "worker.stores.objects:GoogleCloud",
        "az": "worker.stores.objects:Azure",
        "https": "worker.stores.web:Web",
        "http": "worker.stores.web:Web",
        "file": "worker.stores.files:Files",
    },
)
TREES: Registry[TreeEntry] = Registry(
    "model.repository",
    {
        "s3": "worker.stores.trees:S3Tree",
        "gs": "worker.stores.trees:GoogleTree",
        "az": "worker.stores.trees:AzureTree",
    },
)
OUTPUT_FORMATS: Registry[OutputFormat] = Registry(
    "output.format",
    {
        "json": "worker.encode.json:JsonEncoder",
        "oip": "worker.encode.oip:OipEncoder",
        "tensor": "worker.encode.tensor:TensorEncoder",
        "npy": "worker.encode.tensor:NpyEncoder",
        "avro": "worker.encode.avro:AvroEncoder",
        "protobuf": "worker.encode.protobuf:ProtobufEncoder",
        "json_schema": "worker.encode.json_schema:JsonSchemaEncoder",
    },
)
PAYLOAD_FILTERS: Registry[FilterEntry] = Registry(
    "input.unwrap, output.wrap",
    {
        "gzip": "worker.payload.gzip:Gzip",
        "zstd": "worker.payload.zstd:Zstd",
        "aes-256-gcm": "worker.payload.aes_gcm:AesGcm",
    },
    custom="worker.payload.custom:CustomFilter",
)
