"""The section ``tracing`` and the environment variables that count where a setting is absent."""

from __future__ import annotations

from typing import Any

import pytest

from worker.errors import ConfigError
from worker.settings.tracing import Tracing, TracingSettings, tracing_of


def of(environ: dict[str, str] | None = None, **settings: Any) -> Tracing:
    found = tracing_of(TracingSettings.model_validate(settings), environ or {})
    assert found is not None
    return found


def test_nothing_is_traced_unless_the_section_is_there() -> None:
    """Without `tracing` no environment variable switches traces on."""
    assert tracing_of(None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}) is None


@pytest.mark.parametrize(
    ("environ", "settings", "url"),
    [
        ({}, {}, "http://localhost:4318/v1/traces"),
        ({}, {"otlp": "https://c:1/"}, "https://c:1/v1/traces"),
        ({}, {"otlp": "https://c/otlp"}, "https://c/otlp/v1/traces"),
        ({}, {"otlp": "http://c:1/v1/traces"}, "http://c:1/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://e:1/x"}, {}, "http://e:1/x/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, {}, "http://localhost:4318/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://e:1"}, {"otlp": "http://c:1"}, "http://c:1/v1/traces"),
        (
            {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t:1/as-is", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://e"},
            {},
            "http://t:1/as-is",
        ),
    ],
)  # fmt: skip
def test_where_spans_go(environ: dict[str, str], settings: dict[str, Any], url: str) -> None:
    """The setting counts first, then the variable for traces as it is, then the general one with /v1/traces below it."""
    assert of(environ, **settings).url == url


@pytest.mark.parametrize(
    ("environ", "settings", "ratio", "everything"),
    [
        ({}, {}, None, False),
        ({}, {"sample": "parent"}, None, False),
        ({}, {"sample": 0.01}, 0.01, False),
        ({"OTEL_TRACES_SAMPLER": "always_on"}, {"sample": "parent"}, None, False),
        ({"OTEL_TRACES_SAMPLER": "always_on"}, {}, 1.0, True),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_on"}, {}, 1.0, False),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_off"}, {}, None, False),
        ({"OTEL_TRACES_SAMPLER": "parentbased_traceidratio"}, {}, 1.0, False),
        (
            {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"},
            {},
            0.25,
            False,
        ),
    ],
)
def test_which_records_are_traced(
    environ: dict[str, str], settings: dict[str, Any], ratio: float | None, everything: bool
) -> None:
    """`sample` counts before OTEL_TRACES_SAMPLER."""
    found = of(environ, **settings)
    assert (found.ratio, found.everything) == (ratio, everything)


@pytest.mark.parametrize(
    "environ",
    [
        {"OTEL_SDK_DISABLED": "TRUE"},
        {"OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_TRACES_SAMPLER": "always_off"},
    ],
)
def test_the_environment_may_switch_traces_off(environ: dict[str, str]) -> None:
    """OTEL_SDK_DISABLED, the exporter none and the sampler always_off: nothing is traced."""
    assert tracing_of(TracingSettings(), environ) is None


def test_the_exporter_and_the_resource_follow_the_environment() -> None:
    """Time-out, headers, compression, protocol and resource are read; a variable for traces alone counts first."""
    found = of(
        {
            "OTEL_EXPORTER_OTLP_TIMEOUT": "2500",
            "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "500",
            "OTEL_EXPORTER_OTLP_HEADERS": " api-key = a%3Db , x=1,",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json",
            "OTEL_RESOURCE_ATTRIBUTES": "service.name=loses,deployment.environment.name=prod",
            "OTEL_SERVICE_NAME": "shop",
        }
    )
    assert (found.timeout_s, found.gzip, found.protocol) == (0.5, True, "http/json")
    assert found.headers == {"api-key": "a=b", "x": "1"}
    assert found.resource == {"service.name": "shop", "deployment.environment.name": "prod"}


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_PROTOCOL is 'grpc', expected http"),
        ({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"}, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL is 'grpc'"),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER is 'zipkin', expected otlp or none"),
        ({"OTEL_TRACES_SAMPLER": "traceidratio"}, "OTEL_TRACES_SAMPLER is 'traceidratio', expected parentb"),
        (
            {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "2"},
            "OTEL_TRACES_SAMPLER_ARG is '2', expected a share",
        ),
        ({"OTEL_EXPORTER_OTLP_TIMEOUT": "10s"}, "OTEL_EXPORTER_OTLP_TIMEOUT is '10s', expected whole mill"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"}, "OTEL_EXPORTER_OTLP_ENDPOINT: expected an addr"),
        ({"OTEL_EXPORTER_OTLP_COMPRESSION": "zstd"}, "OTEL_EXPORTER_OTLP_COMPRESSION is 'zstd'"),
        (
            {"OTEL_EXPORTER_OTLP_CERTIFICATE": "/no/ca.pem"},
            "OTEL_EXPORTER_OTLP_CERTIFICATE: /no/ca.pem does n",
        ),
        ({"OTEL_EXPORTER_OTLP_HEADERS": "token"}, "OTEL_EXPORTER_OTLP_HEADERS: expected name=value"),
        ({"OTEL_EXPORTER_OTLP_HEADERS": "a=b%0d%0ac"}, "OTEL_EXPORTER_OTLP_HEADERS: expected names and val"),
    ],
)
def test_what_cannot_be_followed_is_refused(environ: dict[str, str], sentence: str) -> None:
    """A variable that counts and cannot be followed is named with what was expected."""
    with pytest.raises(ConfigError) as refused:
        tracing_of(TracingSettings(), environ)
    assert str(refused.value).startswith(sentence)
