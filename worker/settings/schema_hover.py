"""What an editor shows beside the JSON Schema's rules: a name for each value, and the most used client properties of Kafka."""

from __future__ import annotations

from typing import Any

ID = "urn:streaminfer:configuration"
"""Names the schema, wherever its file lies."""

KAFKA: dict[str, dict[str, Any]] = {
    "bootstrap.servers": {"description": "Brokers to begin with: host:port, several with commas."},
    "group.id": {"description": "The consumer group: its members share the partitions of the input topics."},
    "group.protocol": {"description": "classic, or consumer (KIP-848).", "enum": ["classic", "consumer"]},
    "security.protocol": {
        "description": "How to connect.",
        "enum": ["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"],
    },
    "sasl.mechanisms": {
        "description": "How to log in.",
        "enum": ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER", "GSSAPI"],
    },
    "sasl.username": {"description": "User of PLAIN and SCRAM."},
    "sasl.password": {
        "description": "Password of PLAIN and SCRAM; better `${ENV}` than the password itself."
    },
    "ssl.ca.location": {"description": "File of the certificates that are trusted; relative to this file."},
    "ssl.certificate.location": {
        "description": "File of the client's own certificate; relative to this file."
    },
    "ssl.key.location": {"description": "File of its private key; relative to this file."},
    "client.rack": {"description": "Where this client is: a broker of the same rack is read from."},
    "transaction.timeout.ms": {
        "description": "With delivery: exactly_once, after so long the broker aborts a transaction; 10000 unless given."
    },
}
"""Further properties have their librdkafka names; an unknown one is an error at start."""
_WORDS = ("group.protocol", "security.protocol", "sasl.mechanisms")


def for_editors(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with an id, and with what editors show.

    Without a title of its own, editors call each alternative of a value by the title of the whole schema.
    """
    kafka = schema["properties"]["kafka"]
    kafka["properties"] = {name: _property(name) for name in KAFKA}
    _name(schema)
    return {"$schema": schema.pop("$schema"), "$id": ID, **schema}


def _property(name: str) -> dict[str, Any]:
    told = KAFKA[name]
    if name not in _WORDS:
        return {"type": ["string", "number", "boolean"], **told}
    # librdkafka takes any case, and a variable may stand there: the words are only offered
    return {"description": told["description"], "anyOf": [{"enum": told["enum"]}, {"type": "string"}]}


def _name(schema: Any) -> None:
    """Give every property its own key as its title, at any depth."""
    for inner in (
        list(schema.values()) if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    ):
        _name(inner)
    properties = schema.get("properties") if isinstance(schema, dict) else None
    if isinstance(properties, dict):
        for key, value in properties.items():
            if isinstance(value, dict) and "title" not in value:
                properties[key] = {"title": key, **value}
