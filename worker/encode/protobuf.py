"""Results as Protobuf, with the message ``Result`` of ``schemas/result.proto``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import orjson

from worker import extras
from worker.encode.registered import RegisteredEncoder, Writer
from worker.encode.result_shape import shaped
from worker.schema_registry.schema import Kind

if TYPE_CHECKING:
    from worker.schema_registry.opening import Registry


class ProtobufWriter(Writer):
    """See :class:`worker.encode.registered.Writer`."""

    kind: ClassVar[Kind] = "PROTOBUF"
    file = "result.proto"
    indexes = b"\0"
    """``Result`` is the first message of the file."""

    def __init__(self, registry: Registry, topic: str) -> None:
        extras.load("google.protobuf", extra="registry", why="output.format: protobuf")
        super().__init__(registry, topic)
        self._message = result_message(self.text)
        self._tensor = message_class(
            self._message.DESCRIPTOR.file.message_types_by_name["Prediction"].nested_types_by_name["Tensor"]
        )

    def encoded(self, body: bytes) -> bytes:
        """See :class:`worker.encode.registered.Writer`."""
        result = shaped(orjson.loads(body))
        predictions = [result.get("prediction"), *result.get("predictions", ())]
        for prediction in filter(None, predictions):
            for box in prediction.get("boxes", ()):
                if "keypoints" in box:
                    box["keypoints"] = [{"values": point} for point in box["keypoints"]]
            if "outputs" in prediction:  # a map takes messages, not their members
                tensors = prediction["outputs"].items()
                prediction["outputs"] = {name: self._tensor(**members) for name, members in tensors}
        message: bytes = self._message(**result).SerializeToString()
        return message

    def decoded(self, data: bytes) -> Any:
        """See :class:`worker.encode.registered.Writer`."""
        from google.protobuf import json_format

        return json_format.MessageToDict(self._message.FromString(data), preserving_proto_field_name=True)


def result_message(text: str) -> Any:
    """The class of the first message in a ``.proto`` text."""
    from google.protobuf import descriptor_pool

    from worker.schema_registry import proto_text

    file = proto_text.parse(text)
    file.name = "streaminfer/result.proto"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_class(pool.FindMessageTypeByName(f"{file.package}.{file.message_type[0].name}"))


def message_class(descriptor: Any) -> Any:
    """The class of a type of message."""
    from google.protobuf import message_factory

    return message_factory.GetMessageClass(descriptor)


class ProtobufEncoder(RegisteredEncoder):
    """``protobuf``: the JSON result as a Protobuf message, one for all kinds of prediction, registered at start."""

    content_type = "application/protobuf"
    writer = ProtobufWriter
