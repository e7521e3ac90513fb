"""A client's half of the Open Inference Protocol v2 on Kafka, written from the protocol alone: requests out, answers in."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
from confluent_kafka import Message
from numpy.typing import NDArray

Array = NDArray[Any]
LENGTH = "inference-header-content-length"

DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "object": "BYTES",
}
DTYPES = {datatype: np.dtype(name) for name, datatype in DATATYPES.items()}


def request(
    inputs: dict[str, Array],
    *,
    binary: bool = False,
    binary_output: bool = False,
    nested: bool = False,
    outputs: list[str] | None = None,
    id_: str | None = None,
) -> tuple[bytes, list[tuple[str, bytes]]]:
    """(value, headers) of one request."""
    entries, tensors = [], []
    for name, array in inputs.items():
        entry: dict[str, Any] = {
            "name": name,
            "datatype": DATATYPES[array.dtype.name],
            "shape": list(array.shape),
        }
        if binary or array.dtype == np.float16:
            tensors.append(raw(array))
            entry["parameters"] = {"binary_data_size": len(tensors[-1])}
        else:
            entry["data"] = array.tolist() if nested else array.reshape(-1).tolist()
        entries.append(entry)
    body: dict[str, Any] = {"inputs": entries}
    if id_ is not None:
        body["id"] = id_
    if outputs is not None:
        body["outputs"] = [{"name": name} for name in outputs]
    if binary_output:
        body["parameters"] = {"binary_data_output": True}
    text = json.dumps(body).encode()
    headers = [(LENGTH, str(len(text)).encode())] if tensors else []
    return b"".join([text, *tensors]), headers


def raw(array: Array) -> bytes:
    """Little-endian, row-major; strings with their length."""
    if array.dtype == object:
        texts = [text.encode() for text in array.reshape(-1)]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)
    return array.astype(array.dtype.newbyteorder("<")).tobytes()


def answer(message: Message) -> tuple[dict[str, Any], dict[str, Array]]:
    """(the JSON part, outputs by name in the answer's order) of one response."""
    value = message.value()
    headers = dict(message.headers() or [])
    length = int(headers[LENGTH]) if LENGTH in headers else len(value)
    assert headers["content-type"] == (
        b"application/octet-stream" if LENGTH in headers else b"application/json"
    )
    body = json.loads(value[:length])
    outputs, position = {}, length
    for output in body["outputs"]:
        dtype, shape = DTYPES[output["datatype"]], output["shape"]
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            flat = np.array(output["data"], dtype)
        else:
            flat = _from_raw(value[position : position + size], dtype)
            position += size
        outputs[output["name"]] = flat.reshape(shape)
    assert position == len(value), "the tensors must end exactly where the record does"
    return body, outputs


def _from_raw(data: bytes, dtype: np.dtype[Any]) -> Array:
    if dtype.kind != "O":
        return np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype)
    texts, position = [], 0
    while position < len(data):
        (size,) = struct.unpack_from("<I", data, position)
        texts.append(data[position + 4 : position + 4 + size].decode())
        position += 4 + size
    return np.array(texts, object)
