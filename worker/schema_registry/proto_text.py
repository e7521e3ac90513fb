"""The text of a ``.proto`` file -> its descriptor, for registries that give Protobuf schemas as text alone.

Syntax proto2, proto3 and the editions, as far as it says how records are read: messages, fields, enums, oneofs, maps and
imports. Options, services, extensions and reserved names say nothing of that and are passed over. Types are left to be
resolved by the library, as ``protoc`` does it.
"""

from __future__ import annotations

import re
from typing import Any

from worker.errors import Reject

_TOKEN = re.compile(
    r"""\s+ | //[^\n]* | /\*.*?\*/
    | (?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
    | (?P<word>\.?[A-Za-z_][\w.]*|[-+]?[0-9][\w.]*(?:[-+][0-9]+)?|[-+]?\.[0-9]\w*)
    | (?P<sign>[{}\[\]()<>=;,:/+-])""",
    re.VERBOSE | re.DOTALL,
)
_SCALARS = {
    "double": 1, "float": 2, "int64": 3, "uint64": 4, "int32": 5, "fixed64": 6, "fixed32": 7, "bool": 8, "string": 9,
    "bytes": 12, "uint32": 13, "sfixed32": 15, "sfixed64": 16, "sint32": 17, "sint64": 18,
}  # fmt: skip
"""Names of the scalar types -> their numbers in ``FieldDescriptorProto.Type``."""
_LABELS = {"optional": 1, "required": 2, "repeated": 3}
_EDITIONS = {"2023": 1000, "2024": 1001}
_DEEPEST = 50
_CLOSING = {"{": "}", "[": "]", "(": ")", "<": ">"}


def parse(text: str) -> Any:
    """The ``FileDescriptorProto`` of a ``.proto`` file.

    Raises:
        Reject: ``invalid``: it is no such file; says where.
    """
    return _Parser(text).file()


class _Parser:
    """Reads one file from its tokens."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)
        self._at = 0
        self._syntax = "proto2"

    # -- tokens ------------------------------------------------------------------------------------------

    def _peek(self) -> str:
        return self._tokens[self._at][0] if self._at < len(self._tokens) else ""

    def _next(self) -> str:
        token = self._peek()
        if not token:
            raise Reject("the .proto text ends too early")
        self._at += 1
        return token

    def _expect(self, *wanted: str) -> str:
        line = self._tokens[min(self._at, len(self._tokens) - 1)][1] if self._tokens else 1
        token = self._next()
        if token not in wanted:
            raise Reject(f"line {line} of the .proto text: got {token!r}, expected {' or '.join(wanted)}")
        return token

    def _name(self) -> str:
        token = self._next()
        if not re.fullmatch(r"\.?[A-Za-z_][\w.]*", token):
            raise Reject(f"the .proto text: got {token!r}, expected a name")
        return token

    def _number(self) -> int:
        token = self._next()
        if token == "-":
            token += self._next()
        try:
            return int(token, 0) if not re.fullmatch(r"-?0[0-7]+", token) else int(token, 8)
        except ValueError:
            raise Reject(f"the .proto text: got {token!r}, expected a number") from None

    def _string(self) -> str:
        found = ""
        while self._peek()[:1] in ("'", '"') and self._peek():
            found += self._next()[1:-1]
        return found

    def _pass_over(self, stop: str) -> None:
        """Go behind ``stop``, over whatever stands between brackets."""
        waiting: list[str] = []
        while True:
            token = self._next()
            if not waiting and token == stop:
                return
            if token in _CLOSING and token != "<":
                waiting.append(_CLOSING[token])
            elif waiting and token == waiting[-1]:
                waiting.pop()

    def _block(self) -> None:
        """Pass over a name and a block in braces."""
        while self._next() != "{":
            pass
        self._pass_over("}")

    # -- the file ----------------------------------------------------------------------------------------

    def file(self) -> Any:
        from google.protobuf import descriptor_pb2

        file = descriptor_pb2.FileDescriptorProto()
        while self._peek():
            word = self._next()
            if word in ("syntax", "edition"):
                self._expect("=")
                self._set_syntax(file, word, self._string())
                self._expect(";")
            elif word == "import":
                kind = self._next() if self._peek() in ("public", "weak", "option") else ""
                file.dependency.append(self._string())
                if kind == "public":
                    file.public_dependency.append(len(file.dependency) - 1)
                self._expect(";")
            elif word == "package":
                file.package = self._name()
                self._expect(";")
            elif word == "option":
                self._pass_over(";")
            elif word == "message":
                self._message(file.message_type.add(), 0)
            elif word == "enum":
                self._enum(file.enum_type.add())
            elif word in ("service", "extend"):
                self._block()
            elif word not in (";", "export", "local"):
                raise Reject(f"the .proto text: got {word!r}, expected message, enum or import")
        return file

    def _set_syntax(self, file: Any, word: str, value: str) -> None:
        if word == "edition":
            if value not in _EDITIONS:
                raise Reject(f"the .proto text: edition {value} is not known")
            file.syntax, file.edition = "editions", _EDITIONS[value]
            self._syntax = "editions"
            return
        if value not in ("proto2", "proto3"):
            raise Reject(f"the .proto text: syntax {value!r} is not known")
        self._syntax = value
        if value == "proto3":
            file.syntax = value

    def _message(self, message: Any, depth: int) -> None:
        if depth > _DEEPEST:
            raise Reject(f"the .proto text: messages are nested deeper than {_DEEPEST} levels")
        message.name = self._name()
        self._expect("{")
        synthetic: list[Any] = []
        while self._peek() != "}":
            word = self._peek()
            after = self._tokens[self._at + 1][0] if self._at + 1 < len(self._tokens) else ""
            names_block = re.fullmatch(r"[A-Za-z_]\w*", after) and self._opens_block()
            if word in ("message", "enum", "oneof") and names_block:
                self._next()
                if word == "message":
                    self._message(message.nested_type.add(), depth + 1)
                elif word == "enum":
                    self._enum(message.enum_type.add())
                else:
                    self._oneof(message)
            elif word == "option" or (word in ("reserved", "extensions") and not self._is_field()):
                self._next()
                self._pass_over(";")
            elif word == "extend" and not self._is_field():
                self._next()
                self._block()
            elif word == ";":
                self._next()
            else:
                self._field(message, synthetic)
        self._next()
        for field in synthetic:  # behind the others, as protoc puts them
            field.oneof_index = len(message.oneof_decl)
            message.oneof_decl.add(name=f"_{field.name}")

    def _opens_block(self) -> bool:
        return self._at + 2 < len(self._tokens) and self._tokens[self._at + 2][0] == "{"

    def _is_field(self) -> bool:
        """Whether the word here is the type of a field: a name and an equals sign follow."""
        return self._at + 2 < len(self._tokens) and self._tokens[self._at + 2][0] == "="

    def _oneof(self, message: Any) -> None:
        index = len(message.oneof_decl)
        message.oneof_decl.add(name=self._name())
        self._expect("{")
        while self._peek() != "}":
            if self._peek() == "option":
                self._pass_over(";")
            elif self._peek() == ";":
                self._next()
            else:
                field = self._field(message, [])
                field.oneof_index = index
        self._next()

    def _field(self, message: Any, synthetic: list[Any]) -> Any:
        label = ""
        if self._peek() in _LABELS and not self._is_field():
            label = self._next()
        kind = self._name()
        if kind == "map" and self._peek() == "<":
            return self._map(message)
        if kind == "group":
            raise Reject("the .proto text: groups are not read")
        field = message.field.add(name=self._name(), label=_LABELS.get(label, 1))
        _set_type(field, kind)
        self._ending(field)
        if label == "optional" and self._syntax == "proto3":
            field.proto3_optional = True
            synthetic.append(field)
        return field

    def _map(self, message: Any) -> Any:
        self._expect("<")
        key = self._name()
        self._expect(",")
        value = self._name()
        self._expect(">")
        name = self._name()
        entry = message.nested_type.add(
            name=f"{''.join(part[:1].upper() + part[1:] for part in name.split('_'))}Entry"
        )
        entry.options.map_entry = True
        _set_type(entry.field.add(name="key", number=1, label=1), key)
        _set_type(entry.field.add(name="value", number=2, label=1), value)
        field = message.field.add(name=name, label=3, type=11, type_name=entry.name)
        self._ending(field)
        return field

    def _ending(self, field: Any) -> None:
        """The number of a field, its options and the semicolon."""
        self._expect("=")
        field.number = self._number()
        if self._peek() == "[":
            self._next()
            self._pass_over("]")
        self._expect(";")

    def _enum(self, enum: Any) -> None:
        enum.name = self._name()
        self._expect("{")
        while self._peek() != "}":
            word = self._next()
            if word in ("option", "reserved") and self._peek() != "=":
                if word == "option" and "allow_alias" in self._peek():
                    enum.options.allow_alias = True
                self._pass_over(";")
            elif word != ";":
                self._expect("=")
                enum.value.add(name=word, number=self._number())
                if self._peek() == "[":
                    self._next()
                    self._pass_over("]")
                self._expect(";")
        self._next()


def _set_type(field: Any, kind: str) -> None:
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type_name = kind  # a message or an enum: the pool finds out


def _tokens(text: str) -> list[tuple[str, int]]:
    """The words, texts and signs of a file, each with its line."""
    found: list[tuple[str, int]] = []
    position, line = 0, 1
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise Reject(f"line {line} of the .proto text: got {text[position]!r}")
        if match.lastgroup:
            found.append((match.group(), line))
        line += match.group().count("\n")
        position = match.end()
    return found
