"""The section ``tracing``: which records leave spans, and where the spans go.

What is not set here is read from the environment, by the names of the OpenTelemetry specification
(https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/ and .../protocol/exporter/).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import unquote, urlsplit, urlunsplit

from pydantic import AfterValidator

from worker.errors import ConfigError
from worker.filesystem import instead_of_file, is_file
from worker.settings.kinds import Fraction, Positive
from worker.settings.section import Section

DEFAULT_URL = "http://localhost:4318"
DEFAULT_TIMEOUT_MS = "10000"
PATH = "/v1/traces"
"""Where a collector takes spans, below its address (OTLP 1.0)."""
WAITING_BYTES = 8 << 20
"""Most memory of spans that wait for the collector."""
_EXPORTER = "OTEL_EXPORTER_OTLP_"


def _address(text: str) -> str:
    """A collector's address.

    Raises:
        ValueError: it is none, or holds a password, which would be shown.
    """
    try:
        parts = urlsplit(text)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        good = False
    if not good or parts.query or parts.fragment:
        raise ValueError('expected an address of a collector, such as "http://localhost:4318"')
    if "@" in parts.netloc:
        raise ValueError("expected an address without a user; OTEL_EXPORTER_OTLP_HEADERS may authorise")
    return text


class TracingSettings(Section):
    """Spans of sampled records, sent by OTLP over HTTP. `OTEL_*` environment variables count where a setting is absent."""

    otlp: Annotated[str, AfterValidator(_address)] | None = None
    """Address of the collector, spans go to `/v1/traces` below it; unset: OTEL_EXPORTER_OTLP_ENDPOINT, else `http://localhost:4318`."""
    sample: Literal["parent"] | Fraction | None = None
    """Which records leave spans. parent: those whose traceparent has the sampled flag; a number: also this share of the records without a traceparent; unset: OTEL_TRACES_SAMPLER, else parent."""
    max_per_s: Positive = 200
    """Most records per second and process that leave spans; the spans of further ones are dropped and counted."""


@dataclass(frozen=True, slots=True)
class Tracing:
    """How spans are made and sent, settings and environment together."""

    url: str
    ratio: float | None
    """Share of the records without a traceparent that are traced; None: none of them."""
    everything: bool
    """Every record is traced, whatever its traceparent says (OTEL_TRACES_SAMPLER=always_on)."""
    max_per_s: int
    protocol: Literal["http/protobuf", "http/json"]
    gzip: bool
    timeout_s: float
    """Of one request."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Of every request; their values may be secrets."""
    authority: Path | None = None
    """PEM file of the certificate authorities; None: the system's."""
    certificate: Path | None = None
    """PEM file of the client's certificate."""
    key: Path | None = None
    """PEM file of its key; None: in the same file."""
    resource: Mapping[str, str] = field(default_factory=dict)
    """Attributes of the process that the environment gives."""


def tracing_of(settings: TracingSettings | None, environ: Mapping[str, str]) -> Tracing | None:
    """How spans are made and sent; None where there are to be none.

    Raises:
        ConfigError: a variable that counts has a value that cannot be followed.
    """
    if settings is None or environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    if exporter == "none":
        return None
    if exporter != "otlp":
        raise ConfigError(f"OTEL_TRACES_EXPORTER is '{exporter}', expected otlp or none")
    sampler = _sampler(settings, environ)
    if sampler is None:
        return None
    name, protocol = _exporter(environ, "PROTOCOL", "http/protobuf")
    if protocol not in ("http/protobuf", "http/json"):
        raise ConfigError(f"{name} is '{protocol}', expected http/protobuf or http/json")
    name, compression = _exporter(environ, "COMPRESSION", "none")
    if compression not in ("none", "gzip"):
        raise ConfigError(f"{name} is '{compression}', expected gzip or none")
    return Tracing(
        _url(settings, environ),
        *sampler,
        settings.max_per_s,
        "http/json" if protocol == "http/json" else "http/protobuf",
        compression == "gzip",
        _timeout_s(environ),
        _headers(environ),
        _file(environ, "CERTIFICATE"),
        _file(environ, "CLIENT_CERTIFICATE"),
        _file(environ, "CLIENT_KEY"),
        _resource(environ),
    )


def _exporter(environ: Mapping[str, str], name: str, default: str) -> tuple[str, str]:
    """A variable of the exporter and its value: the one for traces alone, else the one for all signals."""
    for variable in (f"{_EXPORTER}TRACES_{name}", f"{_EXPORTER}{name}"):
        if value := environ.get(variable, "").strip():  # an empty one is as good as none
            return variable, value
    return f"{_EXPORTER}{name}", default


def _url(settings: TracingSettings, environ: Mapping[str, str]) -> str:
    variable, whole = f"{_EXPORTER}TRACES_ENDPOINT", environ.get(f"{_EXPORTER}TRACES_ENDPOINT", "").strip()
    base = settings.otlp
    if base is None and not whole:
        variable, base = _exporter(environ, "ENDPOINT", DEFAULT_URL)
    try:
        if base is None:
            return _address(whole)  # as it is: the specification adds nothing to it
        parts = urlsplit(_address(base))
    except ValueError as error:
        raise ConfigError(f"{variable}: {error}") from None
    path = parts.path.rstrip("/")
    return urlunsplit(parts._replace(path=path if path.endswith(PATH) else path + PATH))


def _sampler(settings: TracingSettings, environ: Mapping[str, str]) -> tuple[float | None, bool] | None:
    """Ratio, and whether every record counts; None where no record does."""
    if settings.sample is not None:
        return (None if settings.sample == "parent" else settings.sample), False
    name = environ.get("OTEL_TRACES_SAMPLER", "").strip()
    match name:
        case "" | "parentbased_always_off":
            return None, False
        case "parentbased_always_on":
            return 1.0, False
        case "always_on":
            return 1.0, True
        case "always_off":
            return None
        case "parentbased_traceidratio":
            return _ratio(environ.get("OTEL_TRACES_SAMPLER_ARG", "").strip()), False
    raise ConfigError(
        f"OTEL_TRACES_SAMPLER is '{name}', expected parentbased_traceidratio, parentbased_always_on, "
        "parentbased_always_off, always_on or always_off, or tracing.sample in the configuration"
    )


def _ratio(text: str) -> float:
    try:
        ratio = float(text or 1)
    except ValueError:
        ratio = -1.0
    if not 0 <= ratio <= 1:
        raise ConfigError(f"OTEL_TRACES_SAMPLER_ARG is '{text}', expected a share from 0 to 1")
    return ratio


def _timeout_s(environ: Mapping[str, str]) -> float:
    name, text = _exporter(environ, "TIMEOUT", DEFAULT_TIMEOUT_MS)
    if not text.isdecimal() or int(text) == 0:
        raise ConfigError(f"{name} is '{text}', expected whole milliseconds above 0")
    return int(text) / 1000


def _file(environ: Mapping[str, str], which: str) -> Path | None:
    name, text = _exporter(environ, which, "")
    if not text:
        return None
    if not is_file(Path(text)):
        raise ConfigError(f"{name}: {text} {instead_of_file(Path(text))}; expected a PEM file")
    return Path(text)


def _headers(environ: Mapping[str, str]) -> dict[str, str]:
    variable, text = _exporter(environ, "HEADERS", "")
    found = _pairs(variable, text)
    for name, value in found.items():
        if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name) or not re.fullmatch(
            r"[\t\x20-\x7e]*", value
        ):
            raise ConfigError(f"{variable}: expected names and values that an HTTP header may have")
    return found


def _resource(environ: Mapping[str, str]) -> dict[str, str]:
    found = _pairs("OTEL_RESOURCE_ATTRIBUTES", environ.get("OTEL_RESOURCE_ATTRIBUTES", ""))
    if name := environ.get("OTEL_SERVICE_NAME", "").strip():
        found["service.name"] = name
    return found


def _pairs(variable: str, text: str) -> dict[str, str]:
    """``a=b,c=d``, percent-encoded, as the specification writes headers and attributes. No value is ever shown."""
    found = {}
    for entry in text.split(","):
        if not entry.strip():
            continue
        name, equals, value = entry.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"{variable}: expected name=value, several with commas between them")
        found[unquote(name.strip())] = unquote(value.strip())
    return found
