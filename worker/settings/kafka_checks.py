"""Checks of the Kafka client's properties: what is missing, what the worker sets itself, what would show a secret."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping

from worker.errors import ConfigError, Mistake
from worker.settings.hosts import is_loopback, open_hosts, protocol_of
from worker.settings.sections import Settings

_SLIP = 0.75
"""From this likeness on a client property is a required one, misspelt."""
_REFUSED = {
    "transactional.id": "it is made per process",
    "plugin.library.paths": "it loads code into the worker",
    "sasl.kerberos.kinit.cmd": "it runs a shell command",
    "enable.auto.commit": "offsets are committed when results are acknowledged",
    "enable.auto.offset.store": "offsets are committed when results are acknowledged",
    "delivery.report.only.error": "offsets are committed when results are acknowledged",
    "partitioner": "output.partition decides the partition",
    "auto.offset.reset": "input.start decides where a new group begins",
}


REQUIRED = ("bootstrap.servers", "group.id")
TOKEN_ENDPOINT = "sasl.oauthbearer.token.endpoint.url"


def check_kafka(settings: Settings) -> None:
    """The properties of every client."""
    plain = settings.security.allow_plaintext
    found = [Mistake(sentence) for sentence in kafka_mistakes(settings.kafka)]
    found += [Mistake(sentence) for sentence in exposures(settings.kafka, "kafka", plain)]
    if found:
        raise ConfigError.of(found)


def exposures(properties: Mapping[str, str], section: str, allowed: bool) -> Iterator[str]:
    """Properties by which a secret would go over the network unencrypted, or a token come from a file."""
    endpoint = properties.get(TOKEN_ENDPOINT, "").strip().lower()
    scheme, _, rest = endpoint.partition("://")
    local = is_loopback(rest.partition("/")[0])
    if endpoint and scheme != "https" and not (scheme == "http" and (local or allowed)):
        yield (
            f"{section}.{TOKEN_ENDPOINT}: expected an address that begins with https://, because the client's secret is sent "
            "there; http:// goes with this machine, or with security.allow_plaintext: true"
        )
    mechanism = properties.get("sasl.mechanisms", "").strip().upper()
    over_sasl = protocol_of(properties) == "sasl_plaintext"
    if properties.get("bootstrap.servers") and over_sasl and mechanism == "PLAIN" and not allowed:
        for server in open_hosts(properties)[:1]:
            yield (
                f"{section}.security.protocol: SASL PLAIN would send the password to {server} unencrypted; "
                "expected sasl_ssl, or security.allow_plaintext: true"
            )


def kafka_mistakes(
    properties: Mapping[str, str], section: str = "kafka", wanted: Collection[str] = REQUIRED
) -> Iterator[str]:
    """Client properties that are missing, and those that the worker sets itself."""
    for required in wanted:
        if properties.get(required, "").strip():
            continue
        as_dots = {name.replace("_", "."): name for name in properties}
        near = difflib.get_close_matches(required, as_dots, n=1, cutoff=_SLIP)
        if near:
            yield f"unknown key {section}.{as_dots[near[0]]}; the nearest known key is {section}.{required}"
        else:
            yield f"{section}.{required} is required"
    for name in properties:
        reason = "it loads code into the worker" if name.startswith("ssl.engine.") else _REFUSED.get(name)
        if reason:
            yield f"{section}.{name}: expected not to be set, because {reason}"


def check_results_clusters(settings: Settings) -> None:
    """The clusters of ``output.kafka``: what is missing there, and what cannot hold across two clusters."""
    found: list[str] = []
    places: dict[str, tuple[str, dict[str, str] | None]] = {
        settings.dead_letter.topic: ("dead_letter.topic", None)
    }
    for name, pipeline in settings.pipelines.items():
        properties, section = pipeline.output.kafka, settings.key(name, "output.kafka")
        topic, key = pipeline.output.topic, settings.key(name, "output.topic")
        other, there = places.setdefault(topic, (key, properties))
        if there != properties:
            found.append(
                f"{key}: got '{topic}', expected another name than that of {other}, which is on another cluster"
            )
        if properties is None:
            continue
        if settings.delivery == "exactly_once":
            found.append(
                f"{section}: does not go with delivery: exactly_once, because a transaction belongs to one cluster; expected "
                "delivery: at_least_once"
            )
        found += kafka_mistakes(properties, section, ("bootstrap.servers",))
        found += exposures(properties, section, settings.security.allow_plaintext)
        for refused, why in (("group.id", "nothing is read there"), ("client.id", "kafka.client.id counts")):
            if refused in properties:
                found.append(f"{section}.{refused}: expected not to be set, because {why}")
    if found:
        raise ConfigError.of([Mistake(sentence) for sentence in found])
