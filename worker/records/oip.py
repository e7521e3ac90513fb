"""Open Inference Protocol v2 requests: JSON, and JSON followed by binary tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
import structlog

from worker.batch import CONTENT_LENGTH, Array, Columns, Feed, Headers, Item, Request
from worker.errors import Reject
from worker.features.values import TYPE_NAMES, missing_for, stack
from worker.model.signature import Signature, TensorSpec
from worker.records.fields import check_missing
from worker.records.json_text import parsed
from worker.records.memory import WORST_FACTOR, check_empty, check_room, further_items_bytes, json_bytes
from worker.records.rows import decode_each
from worker.settings import LimitsSettings, PipelineSettings

WITHOUT_EFFECT = ("priority", "timeout", "sequence_id", "sequence_start", "sequence_end")
"""Parameters of a request that other servers act on."""
_STRING_FACTOR = 14
"""A BYTES element of two characters takes 6 bytes in the record, and about 80 as a string with its pointer."""

log = structlog.get_logger()


class OipDecoder:
    """One Open Inference Protocol request per record; its tensors are the model's inputs, by name, datatype and shape."""

    contents = ()
    has_fields = False
    takes_missing = True
    fixed = False
    shard_rows = 0
    free_bytes = 0
    reads_headers = frozenset({CONTENT_LENGTH})

    def __init__(self, settings: PipelineSettings, signature: Signature, limits: LimitsSettings) -> None:
        self.signature = signature
        self.limits = limits
        self.missing = {
            spec.name: missing_for(spec.dtype, settings.input.missing) for spec in signature.inputs
        }
        check_missing(settings, [*self.missing.values()])
        self.takes_nan = settings.input.missing != "reject"
        self.itemsize = min(
            (4 if s.dtype == object else s.dtype.itemsize for s in signature.inputs), default=1
        )
        self.strings = any(spec.dtype == object for spec in signature.inputs)
        self.outputs = frozenset(spec.name for spec in signature.outputs)
        self._untold = {*WITHOUT_EFFECT}

    def cost(self, value: bytes) -> int:
        """What parsing JSON or strings takes, and the tensors of all items but one."""
        elements = max(value.count(b",") + 1, len(value) // self.itemsize)
        scratch = max(json_bytes(value), _STRING_FACTOR * len(value) if self.strings else 0)
        scratch += 2 * len(value) + further_items_bytes(elements, self.signature)
        return check_room(value, scratch, self.signature, self.limits)

    def cost_of_length(self, nbytes: int) -> int:
        """As :meth:`cost`, of a record of which only the length is known: the most it can be."""
        return WORST_FACTOR * nbytes + further_items_bytes(nbytes // 2, self.signature)

    def decode(
        self, payloads: list[bytes | None], columns: Columns, feed: Feed, start: int, stop: int
    ) -> None:
        def decode_row(row: int) -> None:
            feed.items[row] = self._item(payloads[row] or b"", columns.headers[row] or [])

        decode_each(self, feed, range(start, stop), decode_row)

    @staticmethod
    def request_id(value: bytes, headers: Headers | None) -> str | None:
        """The id of a request that was refused or never decoded, as far as it can be read."""
        length = next((text for name, text in headers or () if name.lower() == CONTENT_LENGTH), None)
        try:
            request = orjson.loads(value[: int(length) if length else None])
        except ValueError:
            return None
        found = request.get("id") if isinstance(request, dict) else None
        return found if isinstance(found, str) else None

    def _item(self, value: bytes, headers: Headers) -> Item:
        json_length = _json_length(value, headers)
        if json_length == 0:
            arrays = self._raw(value)
            return Item(arrays, self._count(arrays), single=False, request=Request(binary=True))
        body = parsed(value if json_length is None else value[:json_length], self.takes_nan)
        request = self._request(body)
        arrays = self._arrays(_list_of(body, "inputs"), value, json_length)
        return Item(arrays, self._count(arrays), single=False, request=request)

    def _request(self, body: dict[str, Any]) -> Request:
        """What the request asks of its answer."""
        id_ = body.get("id")
        if id_ is not None and not isinstance(id_, str):
            raise Reject(f"id: expected a string, got {TYPE_NAMES[type(id_)]}")
        parameters = _parameters(body, "the request")
        for name in self._untold.intersection(parameters):
            self._tell(name)
        binary = _flag(parameters, "binary_data_output", "the request")
        request = Request(id_, None, bool(binary))
        for output in _list_of(body, "outputs") if body.get("outputs") is not None else ():
            name = _name(output, "outputs")
            if name not in self.outputs:
                raise Reject(
                    f'outputs: "{_short(name)}" is no output of the model; it has {_names(self.outputs)}'
                )
            if name in (request.outputs or ()):
                raise Reject(f'outputs: "{name}" is there twice')
            request.outputs = [*(request.outputs or ()), name]
            parameters = _parameters(output, f'output "{name}"')
            if parameters.get("classification"):
                raise Reject(
                    f'output "{name}": parameters.classification is not supported; expected the tensor'
                )
            own = _flag(parameters, "binary_data", f'output "{name}"')
            if own is not None:
                request.binary_outputs[name] = own
        return request

    def _tell(self, parameter: str) -> None:
        """Log, once for each name, that a parameter of a request changes nothing here."""
        try:
            self._untold.remove(parameter)  # of several threads, one succeeds
        except KeyError:
            return
        log.warning("a parameter of requests has no effect in this worker", parameter=parameter)

    def _arrays(self, inputs: Sequence[Any], value: bytes, json_length: int | None) -> dict[str, Array]:
        """The request's tensors in the model's order."""
        found: dict[str, Array] = {}
        position = len(value) if json_length is None else json_length
        for tensor in inputs:
            name = _name(tensor, "inputs")
            spec = self.signature.input(name)
            if spec is None:
                expected = _names(s.name for s in self.signature.inputs)
                raise Reject(f'inputs: "{_short(name)}" is no input of the model; it has {expected}')
            if name in found:
                raise Reject(f'inputs: "{name}" is there twice')
            try:
                size = _binary_size(tensor)
                if size is None:
                    found[name] = _from_json(tensor, spec, self.missing[name])
                else:
                    found[name] = _from_bytes(value[position : position + size], size, tensor, spec)
                    position += size
            except Reject as error:
                raise Reject(f'input "{name}": {error}', error.reason) from None
        missing = [spec.name for spec in self.signature.inputs if spec.name not in found]
        if missing:
            raise Reject(f"inputs: {_names(missing)} missing")
        if position != len(value):
            raise Reject(f"the binary tensors end at byte {position}, the record at {len(value)}")
        return {spec.name: found[spec.name] for spec in self.signature.inputs}

    def _raw(self, value: bytes) -> dict[str, Array]:
        """The whole value as the model's only input; its shape follows from the number of bytes."""
        inputs = self.signature.inputs
        if len(inputs) != 1:
            raise Reject(f"a record without JSON feeds one model input, the model has {len(inputs)}")
        spec = inputs[0]
        if spec.dtype == object:
            return {spec.name: _one_string(value).reshape(_raw_shape(spec, 1, self.signature.batchable))}
        count, rest = divmod(len(value), spec.dtype.itemsize)
        if rest:
            raise Reject(f"the record has {len(value)} bytes, which are no whole {spec.datatype} elements")
        shape = _raw_shape(spec, count, self.signature.batchable)
        return {spec.name: _elements(value, spec).reshape(shape)}

    def _count(self, arrays: dict[str, Array]) -> int:
        """Items in the request: the first dimension where the model takes several together, else 1."""
        if not self.signature.batchable:
            return 1
        counts = {name: len(array) for name, array in arrays.items()}
        count = next(iter(counts.values()))
        if set(counts.values()) != {count} or count < 1:
            shown = str(counts).replace("'", "")
            raise Reject(f"the inputs' first dimensions are {shown}; expected all to be the same, at least 1")
        return count


# -- tensors --------------------------------------------------------------------------------------------


def _from_json(tensor: dict[str, Any], spec: TensorSpec, missing: float | None) -> Array:
    shape = _shape(tensor, spec)
    if spec.datatype == "FP16":
        raise Reject("FP16 has no JSON form; expected binary_data_size and binary data")
    if "data" not in tensor:
        raise Reject("expected data, or parameters.binary_data_size")
    return stack([tensor["data"]], spec.dtype, shape, missing).reshape(shape)


def _from_bytes(data: bytes, size: int, tensor: dict[str, Any], spec: TensorSpec) -> Array:
    """A tensor from the binary part; ``data`` is shorter than ``size`` where the record ends before it."""
    if "data" in tensor:
        raise Reject("expected data or parameters.binary_data_size, not both")
    shape = _shape(tensor, spec)
    if len(data) != size:
        raise Reject(f"parameters.binary_data_size is {size}, but the record has {len(data)} bytes left")
    count = math.prod(shape)
    if spec.dtype == object:
        return _strings(data, count).reshape(shape)
    if size != count * spec.dtype.itemsize:
        raise Reject(
            f"parameters.binary_data_size is {size}, expected {count * spec.dtype.itemsize} "
            f"for {spec.datatype} {list(shape)}"
        )
    return _elements(data, spec).reshape(shape)


def _elements(data: bytes, spec: TensorSpec) -> Array:
    """The elements of a numeric tensor in its binary form."""
    if spec.dtype == bool:
        levels = np.frombuffer(data, np.uint8)
        if (levels > 1).any():
            raise Reject("a BOOL is a byte of 0 or 1")
        return levels.astype(bool)
    array = np.frombuffer(data, spec.dtype.newbyteorder("<"))
    return np.require(array, spec.dtype, ("C", "A"))


def _one_string(data: bytes) -> Array:
    """A record that is one BYTES element, without a length in front of it."""
    array = np.empty(1, object)
    try:
        array[0] = data.decode()
    except UnicodeDecodeError:
        raise Reject("the BYTES element is not UTF-8") from None
    return array


def _raw_shape(spec: TensorSpec, count: int, batchable: bool) -> tuple[int, ...]:
    """The only shape that so many elements can have; items of a known shape may be several.

    Raises:
        Reject: ``invalid``: there is none, or more than one.
    """
    free = [place for place, d in enumerate(spec.shape) if d is None]
    shape = [1 if d is None else d for d in spec.shape]
    inner = [place for place in free if place]
    if len(inner) > 1 or (free and not batchable and len(free) > 1):
        raise Reject("a record without JSON needs a model input with at most one dimension of any length")
    if free:
        known = math.prod(shape)
        shape[(inner or free)[0]] = count // known if known else 0
    if math.prod(shape) != count or not count:
        expected = str(list(spec.shape)).replace("None", "any")
        raise Reject(f"the record has {count} {spec.datatype} elements, which fit no shape {expected}")
    return tuple(shape)


def _strings(data: bytes, count: int) -> Array:
    """``count`` BYTES elements, each a 4-byte little-endian length and that many bytes of UTF-8."""
    if count > len(data) // 4:
        raise Reject(f"expected {count} BYTES elements, got {len(data)} bytes")
    strings: list[str] = []
    position = 0
    while position < len(data):
        start = position + 4
        position = start + int.from_bytes(data[start - 4 : start], "little")
        if start > len(data) or position > len(data):
            raise Reject(f"BYTES element {len(strings)} ends beyond parameters.binary_data_size")
        try:
            strings.append(data[start:position].decode())
        except UnicodeDecodeError:
            raise Reject(f"BYTES element {len(strings)} is not UTF-8") from None
    if len(strings) != count:
        raise Reject(f"expected {count} BYTES elements, got {len(strings)}")
    array = np.empty(count, object)
    array[:] = strings
    return array


def _shape(tensor: dict[str, Any], spec: TensorSpec) -> tuple[int, ...]:
    """The request's shape, once datatype and shape agree with the model's."""
    datatype, shape = tensor.get("datatype"), tensor.get("shape")
    if datatype != spec.datatype:
        got = f'"{_short(datatype)}"' if isinstance(datatype, str) else TYPE_NAMES[type(datatype)]
        raise Reject(f"datatype is {got}, expected {spec.datatype}")
    if not isinstance(shape, list) or any(type(d) is not int or d < 0 for d in shape):
        raise Reject("shape: expected a list of integers from 0")
    if len(shape) != len(spec.shape) or any(
        e not in (None, d) for d, e in zip(shape, spec.shape, strict=True)
    ):
        expected = str(list(spec.shape)).replace("None", "any")
        raise Reject(f"shape is {shape[:16]}, expected {expected}")
    check_empty(shape)
    return tuple(shape)


def _binary_size(tensor: dict[str, Any]) -> int | None:
    size = _parameters(tensor, "the tensor").get("binary_data_size")
    if size is not None and (type(size) is not int or size < 0):
        raise Reject("parameters.binary_data_size: expected a number of bytes")
    return size


# -- the request's frame --------------------------------------------------------------------------------


def _json_length(value: bytes, headers: Headers) -> int | None:
    """Bytes of JSON before the binary tensors; None = all of the record is JSON."""
    found: bytes | None = None
    given = False
    for name, content in headers:
        if name.lower() == CONTENT_LENGTH:
            found, given = content, True
    if not given:
        return None
    if not found or not found.isdigit() or len(found) > 18:
        raise Reject(f"header {CONTENT_LENGTH}: expected a decimal number")
    length = int(found)
    if length > len(value):
        raise Reject(f"header {CONTENT_LENGTH} is {length}, but the record has {len(value)} bytes")
    return length


def _list_of(body: dict[str, Any], key: str) -> list[Any]:
    value = body.get(key)
    if not isinstance(value, list):
        raise Reject(f"{key}: expected a list")
    return value


def _name(tensor: Any, key: str) -> str:
    name = tensor.get("name") if isinstance(tensor, dict) else None
    if not isinstance(name, str):
        raise Reject(f"{key}: expected objects with a name")
    return name


def _parameters(owner: dict[str, Any], what: str) -> dict[str, Any]:
    parameters = owner.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise Reject(f"{what}: expected parameters to be an object")
    return parameters


def _flag(parameters: dict[str, Any], name: str, what: str) -> bool | None:
    flag = parameters.get(name)
    if flag is not None and not isinstance(flag, bool):
        raise Reject(f"{what}: expected parameters.{name} to be true or false")
    return flag


def _names(names: Any) -> str:
    return ", ".join(f'"{name}"' for name in sorted(names))


def _short(text: str) -> str:
    return text if len(text) <= 64 else text[:64] + "..."
