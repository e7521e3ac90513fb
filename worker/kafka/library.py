"""librdkafka's C functions, from the shared library inside the confluent-kafka package.

The Python binding exposes clients only. The library also lists every property with its scope, checks a value without
a client, and contains a broker for tests (:mod:`worker.kafka.broker`).
"""

from __future__ import annotations

import ctypes
import ctypes.util
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import confluent_kafka

PATTERNS = ("../confluent_kafka.libs/librdkafka*.so*", ".dylibs/librdkafka*.dylib", "librdkafka*.so*")
"""Where wheels keep the library, relative to the package: repaired Linux and macOS wheels, then files beside it."""


@cache
def library() -> Any | None:
    """The loaded library (a ``ctypes.CDLL``), or None if it cannot be found."""
    package = Path(confluent_kafka.__file__).parent
    found = [str(path) for pattern in PATTERNS for path in sorted(package.glob(pattern))]
    for path in found:
        with suppress(OSError):
            return ctypes.CDLL(path)
    # The package was built against the system's library. find_library runs a compiler, which needs a temporary
    # folder: hence the OSError.
    with suppress(OSError):
        path_found = ctypes.util.find_library("rdkafka")
        return ctypes.CDLL(path_found) if path_found else None
    return None


class Property(NamedTuple):
    """Scope and accepted values of one client property."""

    scope: str
    """``C`` (consumer only), ``P`` (producer only) or ``*`` (both)."""
    expected: str
    """The range or the values that it accepts, as text; empty for free text."""


@cache
def known_properties() -> dict[str, Property]:
    """Every property by name, from the table that the library prints; empty if the library cannot be found."""
    known: dict[str, Property] = {}
    for line in _property_table().splitlines():
        cells = [cell.strip() for cell in line.split("|", 3)]
        if len(cells) == 4 and cells[1] in ("C", "P", "*"):
            known[cells[0]] = Property(cells[1], cells[2])
    return known


def _property_table() -> str:
    rdkafka = library()
    if rdkafka is None:
        return ""
    libc = ctypes.CDLL(None)
    libc.open_memstream.restype = ctypes.c_void_p
    text, size = ctypes.c_void_p(), ctypes.c_size_t()
    stream = ctypes.c_void_p(libc.open_memstream(ctypes.byref(text), ctypes.byref(size)))
    rdkafka.rd_kafka_conf_properties_show(stream)
    libc.fclose(stream)
    table = ctypes.string_at(text, size.value).decode()
    libc.free(text)
    return table


def property_fault(name: str, value: str) -> str | None:
    """Why the library refuses this value of this property; None if it accepts it."""
    rdkafka = library()
    if rdkafka is None:
        return None
    rdkafka.rd_kafka_conf_new.restype = ctypes.c_void_p
    conf = ctypes.c_void_p(rdkafka.rd_kafka_conf_new())
    reason = ctypes.create_string_buffer(512)
    try:
        refused = rdkafka.rd_kafka_conf_set(conf, name.encode(), value.encode(), reason, ctypes.c_size_t(512))
    finally:
        rdkafka.rd_kafka_conf_destroy(conf)
    return reason.value.decode(errors="replace") if refused else None


def versions() -> dict[str, str]:
    """Versions of the Python package and of librdkafka, and what librdkafka was built with."""
    return {
        "confluent_kafka": str(confluent_kafka.__version__),
        "librdkafka": confluent_kafka.libversion()[0],
        "features": _default_of("builtin.features").replace(",", " "),
    }


def _default_of(name: str) -> str:
    """A property's value where nobody has set it; empty if the library cannot be found."""
    rdkafka = library()
    if rdkafka is None:
        return ""
    rdkafka.rd_kafka_conf_new.restype = ctypes.c_void_p
    conf = ctypes.c_void_p(rdkafka.rd_kafka_conf_new())
    value, size = ctypes.create_string_buffer(512), ctypes.c_size_t(512)
    try:
        rdkafka.rd_kafka_conf_get(conf, name.encode(), value, ctypes.byref(size))
        return value.value.decode(errors="replace")
    finally:
        rdkafka.rd_kafka_conf_destroy(conf)
