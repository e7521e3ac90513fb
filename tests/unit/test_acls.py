"""The least rights of a configuration, and the commands that grant them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import models
import pytest
import yaml

from worker.cli.main import main
from worker.errors import ConfigError
from worker.kafka.acls import Right, commands, principal_of, rights_of
from worker.kafka.properties import Connection
from worker.settings import Settings, validate


def document(**more: Any) -> dict[str, Any]:
    kafka = {"bootstrap.servers": "broker:9093", "group.id": "g", **more.pop("kafka", {})}
    return {
        "name": "locked",
        "input": {"topics": ["in"], "format": "json"},
        "model": {"path": "model.onnx"},
        "output": {"topic": "out", **more.pop("output", {})},
        "dead_letter": {"topic": "dead"},
        "kafka": kafka,
        **more,
    }


def settings(**more: Any) -> Settings:
    return validate(document(**more), Path.cwd())


def needed(found: list[Right]) -> set[tuple[str, str, str]]:
    return {(right.operation, right.kind, right.name) for right in found if not right.optional}


AT_LEAST_ONCE = {
    ("READ", "topic", "in"),
    ("WRITE", "topic", "out"),
    ("WRITE", "topic", "dead"),
    ("READ", "group", "g"),
}


@pytest.mark.parametrize(
    ("more", "also"),
    [
        ({}, set()),
        ({"kafka": {"group.protocol": "consumer"}}, set()),
        ({"metrics": {"topic": "metrics"}}, {("WRITE", "topic", "metrics")}),
        ({"delivery": "exactly_once"}, {("WRITE", "transactional-id", "g-")}),
        ({"output": {"create": {"partitions": 2}}}, set()),
    ],
)
def test_each_setting_brings_the_rights_it_needs_and_no_other(
    more: dict[str, Any], also: set[tuple[str, str, str]]
) -> None:
    """READ on inputs and the group, WRITE on what is written, WRITE on the transactional ids of exactly once."""
    assert needed(rights_of(settings(**more))) == AT_LEAST_ONCE | also


def test_a_topic_that_is_read_and_written_needs_both_rights() -> None:
    """The control topic of rollouts is read and written, and each right of it is there once."""
    found = rights_of(
        settings(
            model={"repository": "models", "name": "m"},
            control={"topic": "control"},
            kafka={"group.protocol": "consumer"},
        )
    )
    of_control = [right.operation for right in found if right.name == "control" and not right.optional]
    assert sorted(of_control) == ["READ", "WRITE"]


def test_creating_topics_and_reading_their_limits_are_optional_rights() -> None:
    """CREATE and DESCRIBE_CONFIGS are listed as optional, only where the configuration makes use of them."""
    plain = {(r.operation, r.name) for r in rights_of(settings()) if r.optional}
    creating = {
        (r.operation, r.name) for r in rights_of(settings(output={"create": {"partitions": 2}})) if r.optional
    }
    assert plain == {("DESCRIBE_CONFIGS", "out"), ("DESCRIBE_CONFIGS", "dead")}
    assert creating - plain == {("CREATE", "out"), ("CREATE", "dead")}


@pytest.mark.parametrize(
    ("kafka", "principal"),
    [
        ({}, "User:ANONYMOUS"),
        (
            {"security.protocol": "SASL_SSL", "sasl.mechanisms": "SCRAM-SHA-512", "sasl.username": "w"},
            "User:w",
        ),
        ({"security.protocol": "ssl", "ssl.certificate.location": "w.pem"}, "User:PRINCIPAL"),
        ({"security.protocol": "sasl_ssl", "sasl.mechanisms": "OAUTHBEARER"}, "User:PRINCIPAL"),
    ],
)
def test_the_principal_is_read_from_the_way_in(kafka: dict[str, str], principal: str) -> None:
    """A user name is the principal; what a certificate or a token says only the broker knows."""
    assert principal_of(Connection("w", kafka)) == principal


def test_a_command_names_its_resource_whatever_characters_it_has() -> None:
    """One command for each resource, quoted for a shell, with all operations on it."""
    client = Connection("w", {"bootstrap.servers": "a:1,b:1", "security.protocol": "ssl"})
    rights = [
        Right("READ", "topic", "in", "x"),
        Right("WRITE", "topic", "in", "x"),
        Right("WRITE", "transactional-id", "it's $g-", "x", prefixed=True),
    ]
    first, second = map(shlex.split, commands(client, "User:CN=w, O=x", rights))
    head = ["kafka-acls.sh", "--bootstrap-server", "a:1,b:1", "--command-config", "admin.properties", "--add"]
    head += ["--allow-principal", "User:CN=w, O=x"]
    assert first == [*head, "--operation", "Read", "--operation", "Write", "--topic", "in"]
    pattern = ["--resource-pattern-type", "prefixed"]
    assert second == [*head, "--operation", "Write", "--transactional-id", "it's $g-", *pattern]


def test_check_lists_rights_and_commands_without_a_broker(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """`check --acls --offline` prints each right and the commands; with --json one object for each right and no more."""
    models.write(tmp_path, models.mlp(features=4))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(document()))
    line = ["check", str(tmp_path / "c.yaml"), "--acls", "--offline", "--principal", "User:w"]
    assert main(line) == 0
    printed = capfd.readouterr().out
    wanted = "kafka-acls.sh --bootstrap-server broker:9093 --add --allow-principal User:w --operation Read --topic in"
    assert wanted in printed.splitlines()
    assert "needed: READ on group g (kafka.group.id)" in printed
    assert main([*line, "--json"]) == 0
    lines = [json.loads(text) for text in capfd.readouterr().out.splitlines()]
    rights = [each["right"] for each in lines if each["check"] == "right"]
    assert {(r["operation"], r["resource"], r["name"]) for r in rights if not r["optional"]} == AT_LEAST_ONCE
    assert wanted in [right["command"] for right in rights]
    assert {right["granted"] for right in rights} == {None}


@pytest.mark.parametrize(
    ("url", "allowed", "refused"),
    [
        ("https://login.example.com/token", False, False),
        ("http://127.0.0.1:80/token", False, False),
        ("http://login.example.com/token", False, True),
        ("http://login.example.com/token", True, False),
        ("file:///etc/passwd", True, True),
    ],
)
def test_a_token_comes_over_an_encrypted_connection(url: str, allowed: bool, refused: bool) -> None:
    """A token endpoint is https or on this machine; anything else is refused, a file even where plaintext is allowed."""
    kafka = {"sasl.oauthbearer.method": "oidc", "sasl.oauthbearer.token.endpoint.url": url}
    found = ""
    try:
        settings(kafka=kafka, security={"allow_plaintext": allowed})
    except ConfigError as error:
        found = str(error)
    assert ("kafka.sasl.oauthbearer.token.endpoint.url: expected" in found) is refused


def test_late_labels_need_rights_of_their_own() -> None:
    """With `labels` the rights of `streaminfer score` are listed as optional: its group, the labels and the results."""
    found = rights_of(
        settings(postprocess={"classification": {}}, labels={"topic": "truth", "id": "key", "label": "y"})
    )
    for_score = {(r.kind, r.name) for r in found if "score" in r.optional}
    assert for_score == {("topic", "truth"), ("topic", "out"), ("group", "g.score")}
    assert needed(found) == AT_LEAST_ONCE
