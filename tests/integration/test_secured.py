"""The worker on a Kafka with TLS, passwords, tokens and rights: it gets in, says why it does not, and tells no secret."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import models
import orjson
import pytest
from confluent_kafka import Consumer
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # re-exported without saying so
    AclOperation,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from secured import PASSWORD, SPARROW, USER, SecuredKafka
from stream import (
    Worker,
    create_topics,
    produce,
    read_all,
    unique,
    wait_for,
    wait_for_outputs,
    write_config,
)
from token_endpoint import TokenEndpoint

from worker.kafka.leave import leave_for
from worker.settings import load

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

READ, WRITE = AclOperation.READ, AclOperation.WRITE
TOPIC, GROUP = ResourceType.TOPIC, ResourceType.GROUP
GOOD = {"value": b'{"features": [1, 2, 3, 4]}'}
BAD = {"value": b'{"features": [1, 2, 3]}'}


@pytest.fixture(scope="module")
def broker(start_kafka: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> SecuredKafka:
    if shutil.which("openssl") is None:
        pytest.fail("openssl is needed to make certificates")
    return SecuredKafka(start_kafka, tmp_path_factory.mktemp("tls"))


class Place:
    """Topics and a group of one test on the secured broker, and the worker's configuration for them."""

    def __init__(self, broker: SecuredKafka, folder: Path) -> None:
        self.broker = broker
        self.folder = folder
        self.names = {
            field: unique(field.split(".")[0])
            for field in (
                "input.topics",
                "output.topic",
                "dead_letter.topic",
                "metrics.topic",
                "kafka.group.id",
            )
        }
        """Setting -> the topic or group it names."""
        self.topics = [name for field, name in self.names.items() if field != "kafka.group.id"]
        create_topics(broker.bootstrap, dict.fromkeys(self.topics, 2))
        self.rights = {
            field: (
                READ if field in ("input.topics", "kafka.group.id") else WRITE,
                GROUP if field == "kafka.group.id" else TOPIC,
            )
            for field in self.names
        }
        models.write(folder, models.mlp(features=4))

    def allow(self, *fields: str) -> None:
        """Give the user what the worker needs of what these settings name."""
        for field in fields:
            self.broker.allow(*self.rights[field], self.names[field])

    def config(self, way: str = "scram", **more: Any) -> Path:
        kafka = {"group.id": self.names["kafka.group.id"], **self.broker.ways[way], **more.pop("kafka", {})}
        return write_config(
            self.folder,
            {
                "name": "locked",
                "input": {"topics": [self.names["input.topics"]], "format": "json"},
                "model": {"path": "model.onnx", "threads": 0},
                "output": {"topic": self.names["output.topic"]},
                "dead_letter": {"topic": self.names["dead_letter.topic"]},
                "metrics": {
                    "topic": self.names["metrics.topic"],
                    "interval_s": 0.2,
                    "http": "127.0.0.1:0",
                },
                "kafka": kafka,
                **more,
            },
        )


@pytest.fixture
def place(broker: SecuredKafka, tmp_path: Path) -> Place:
    return Place(broker, tmp_path)


@pytest.fixture
def start() -> Iterator[Callable[..., Worker]]:
    """Starts workers that are dead when the test is."""
    workers: list[Worker] = []

    def start(config: Path, **env: str) -> Worker:
        workers.append(Worker.start(config, env=env))
        return workers[-1]

    yield start
    for worker in workers:
        worker.kill()


def command(*arguments: object, **env: str) -> subprocess.CompletedProcess[bytes]:
    """One finished command."""
    line = [sys.executable, "-m", "worker", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, timeout=60, env={**os.environ, **env})


def assert_cannot_start(config: Path, *said: str) -> None:
    """``run`` and ``check`` both exit 3 with the same one sentence, in which all of ``said`` occurs."""
    ran, checked = command("run", config), command("check", config, "--json")
    assert (ran.returncode, checked.returncode) == (3, 3), ran.stderr + checked.stderr
    lines = [line for line in ran.stderr.decode().splitlines() if not line.startswith("{")]
    assert len(lines) == 1, lines
    sentence = lines[0].removeprefix("streaminfer: ")
    assert all(part in sentence for part in said), sentence
    last = json.loads(checked.stdout.splitlines()[-1])
    assert (last["check"], last["ok"]) == ("broker", False)
    assert all(part in last["message"] for part in said), last
    assert SPARROW not in ran.stdout + ran.stderr + checked.stdout + checked.stderr


# Getting in


@pytest.mark.parametrize("way", ["scram", "oauthbearer", "certificate"])
def test_the_worker_answers_over_tls(place: Place, start: Callable[..., Worker], way: str) -> None:
    """With exactly the rights that it needs the worker answers over TLS, by password, by token and by certificate."""
    place.allow(*place.names)
    produce(place.broker.bootstrap, place.names["input.topics"], [GOOD, BAD])
    worker = start(place.config(way))
    wait_for_outputs(
        place.broker.bootstrap, [place.names["output.topic"], place.names["dead_letter.topic"]], 2, [worker]
    )
    assert worker.stop()[0] == 0, worker.text()
    (answer,) = read_all(place.broker.bootstrap, place.names["output.topic"])
    assert orjson.loads(answer.value())["model"]["name"] == "locked"


@pytest.mark.slow
def test_tokens_come_from_the_endpoint_and_are_renewed(place: Place, start: Callable[..., Worker]) -> None:
    """With method `oidc` every client of the worker gets its token from the endpoint, and a new one before it ends."""
    place.allow(*place.names)
    with TokenEndpoint(USER, "sparrow-blau", lives_s=4).serving() as endpoint:
        config = place.config("oauthbearer", kafka=oidc(endpoint, "sparrow-blau"))
        worker = start(config)
        worker.wait_ready()
        first = endpoint.given
        wait_for(lambda: endpoint.given > 2 * first, "tokens to be renewed")
        produce(place.broker.bootstrap, place.names["input.topics"], [GOOD, BAD])
        written = [place.names["output.topic"], place.names["dead_letter.topic"]]
        wait_for_outputs(place.broker.bootstrap, written, 2, [worker])
        assert worker.stop()[0] == 0, worker.text()
    assert endpoint.refused == 0
    assert SPARROW not in worker.log.read_bytes()


@pytest.mark.slow
def test_an_endpoint_that_gives_no_token_is_exit_3(place: Place) -> None:
    """A client secret that the endpoint refuses is exit 3 with one sentence that does not show it."""
    place.allow(*place.names)
    with TokenEndpoint(USER, "sparrow-blau", lives_s=60).serving() as endpoint:
        config = place.config("oauthbearer", kafka=oidc(endpoint, "sparrow-rot"))
        assert_cannot_start(config, "kafka: authentication failed", "token", "invalid_client")
    assert endpoint.refused


def oidc(endpoint: TokenEndpoint, secret: str) -> dict[str, Any]:
    """Client properties: tokens from the endpoint in place of those that the client makes for itself."""
    own = {"enable.sasl.oauthbearer.unsecure.jwt": None, "sasl.oauthbearer.config": None}
    return own | endpoint.properties(secret)


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
@pytest.mark.parametrize("way", ["scram", "certificate"])
def test_a_dead_member_is_taken_out_of_the_group_over_tls(place: Place, way: str, protocol: str) -> None:
    """A member that says nothing more is out of the group at once, by password and by certificate, in both protocols."""
    place.allow(*place.names)
    group = place.names["kafka.group.id"]
    settings = load(place.config(way, kafka={"group.protocol": protocol}))
    client = {name: str(value) for name, value in settings.kafka.items()}
    dead = Consumer({**client, "auto.offset.reset": "earliest"})
    dead.subscribe([place.names["input.topics"]])
    wait_for(lambda: dead.poll(0.1) is not None or bool(dead.assignment()), "the member's partitions")
    admin = AdminClient({"bootstrap.servers": place.broker.bootstrap})

    def members() -> list[str]:
        found = admin.describe_consumer_groups([group], request_timeout=10)[group].result()
        return [member.member_id for member in found.members]

    assert members() == [dead.memberid()]
    assert leave_for(settings, dead.memberid())
    assert members() == []
    dead.close()


def test_a_way_in_that_the_connection_does_not_know_is_left_to_the_session(place: Place) -> None:
    """With OAUTHBEARER nobody leaves for a dead member, and nothing fails."""
    assert not leave_for(load(place.config("oauthbearer")), "nobody")


# Staying out


def test_a_broker_signed_by_another_authority_is_refused(place: Place) -> None:
    """A broker whose certificate another authority signed is refused with exit 3 and a sentence that says where to look."""
    place.allow(*place.names)
    config = place.config(kafka={"ssl.ca.location": str(place.broker.strange_ca)})
    assert_cannot_start(config, "TLS failed", "ssl.ca.location")


def test_a_wrong_password_is_exit_3_without_the_password(place: Place) -> None:
    """A wrong password is exit 3 at once; neither the password nor the user is shown."""
    place.allow(*place.names)
    assert_cannot_start(place.config(kafka={"sasl.password": "sparrow-wrong"}), "authentication failed")


@pytest.mark.parametrize(
    ("field", "right"),
    [
        ("input.topics", "READ"),
        ("output.topic", "WRITE"),
        ("dead_letter.topic", "WRITE"),
        ("metrics.topic", "WRITE"),
        ("kafka.group.id", "READ"),
    ],
)
def test_a_missing_right_is_named_before_any_record_is_taken(place: Place, field: str, right: str) -> None:
    """A missing right is exit 3 before any record is taken, naming the setting, the topic or group, and the right."""
    place.allow(*(other for other in place.names if other != field))
    assert_cannot_start(place.config(), f"{field}: not authorised", place.names[field], right)


def test_the_right_to_see_a_topic_is_not_the_right_to_write_to_it(place: Place) -> None:
    """A worker that may describe its output topic and not write to it ends with exit 3."""
    place.allow(*(field for field in place.names if field != "output.topic"))
    place.broker.allow(AclOperation.DESCRIBE, TOPIC, place.names["output.topic"])
    assert_cannot_start(place.config(), "output.topic: not authorised to write", "WRITE")


def test_exactly_once_needs_its_transactional_id(place: Place) -> None:
    """Exactly once without the right to its transactional id is exit 3 that names the setting."""
    place.allow(*place.names)
    ran = command("run", place.config(delivery="exactly_once"))
    sentence = ran.stderr.decode().splitlines()[-1]
    assert ran.returncode == 3, sentence
    assert "delivery: exactly_once cannot start" in sentence
    assert "authorization failed" in sentence


# Least rights


KINDS = {
    "topic": ResourceType.TOPIC,
    "group": ResourceType.GROUP,
    "transactional-id": ResourceType.TRANSACTIONAL_ID,
}
PATTERNS = {"literal": ResourcePatternType.LITERAL, "prefixed": ResourcePatternType.PREFIXED}


def listed(config: Path) -> list[dict[str, Any]]:
    """The rights that the worker cannot start without, as `check --acls` lists them."""
    done = command("check", config, "--acls", "--offline", "--json")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return [line["right"] for line in lines if line["check"] == "right" and not line["right"]["optional"]]


def grant(place: Place, rights: Iterable[dict[str, Any]]) -> None:
    for right in rights:
        resource = KINDS[right["resource"]], right["name"], PATTERNS[right["pattern"]]
        place.broker.allow(AclOperation[right["operation"]], *resource)


def assert_right_missing(config: Path, right: dict[str, Any]) -> None:
    """`run` says in one sentence which right it misses, and so does `check --acls` of this one alone."""
    ran = command("run", config)
    lines = [line for line in ran.stderr.decode().splitlines() if line.startswith("streaminfer: ")]
    assert (ran.returncode, len(lines)) == (3, 1), ran.stderr
    assert right["operation"] in lines[0]
    assert right["name"] in lines[0]
    checked = command("check", config, "--acls", "--json")
    assert checked.returncode == 3, checked.stderr
    found = [json.loads(line) for line in checked.stdout.splitlines()]
    missing = [each["right"] for each in found if each["check"] == "right" and not each["ok"]]
    assert [{**each, "granted": None} for each in missing] == [right]


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["classic", "consumer"])
@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_the_rights_that_check_lists_are_enough(
    place: Place, start: Callable[..., Worker], delivery: str, protocol: str
) -> None:
    """With the rights that `check --acls` lists as needed, and no other, the worker answers and writes dead letters."""
    config = place.config(delivery=delivery, kafka={"group.protocol": protocol})
    grant(place, listed(config))
    produce(place.broker.bootstrap, place.names["input.topics"], [GOOD, BAD])
    worker = start(config)
    written = [place.names["output.topic"], place.names["dead_letter.topic"]]
    wait_for_outputs(place.broker.bootstrap, written, 2, [worker])
    assert worker.stop()[0] == 0, worker.text()


@pytest.mark.slow
def test_each_right_that_check_lists_is_needed(place: Place) -> None:
    """Without any one of the listed rights `run` ends with exit 3 and one sentence that names it, and `check` names it too."""
    config = place.config(delivery="exactly_once")
    rights = listed(config)
    assert len(rights) == 6
    for absent in rights:
        other = Place(place.broker, place.folder)  # topics and a group of its own, with no right to them yet
        config = other.config(delivery="exactly_once")
        theirs = listed(config)
        grant(other, [right for right in theirs if right["setting"] != absent["setting"]])
        (gone,) = [right for right in theirs if right["setting"] == absent["setting"]]
        assert_right_missing(config, gone)


@pytest.mark.slow
def test_the_right_to_create_a_topic_is_named(place: Place) -> None:
    """With `output.create`, a topic that is missing and may not be made is one sentence that names topic and right."""
    place.allow(*place.names)
    missing = unique("missing")
    config = place.config(output={"topic": missing, "create": {"partitions": 1}})
    ran, checked = command("run", config), command("check", config, "--acls", "--json")
    assert (ran.returncode, checked.returncode) == (3, 3)
    assert (
        f"output.topic: not authorised to create topic {missing}; expected the right CREATE"
        in ran.stderr.decode()
    )
    lines = [json.loads(line) for line in checked.stdout.splitlines()]
    failed = [each["message"] for each in lines if each["check"] == "right" and not each["ok"]]
    assert any(f"CREATE on topic {missing}" in said for said in failed)


@pytest.mark.slow
def test_the_listed_commands_are_those_of_kafkas_own_tool(place: Place, start: Callable[..., Worker]) -> None:
    """The commands that `check --acls` prints, given to Kafka's own tool, let the worker run."""
    if shutil.which("java") is None:
        pytest.skip("Kafka's own tool needs Java")
    config = place.config(delivery="exactly_once")
    printed = command("check", config, "--acls", "--offline").stdout.decode()
    lines = [line for line in printed.splitlines() if line.startswith("kafka-acls.sh ")]
    jars = Path(__file__).parents[2] / ".kafka" / "libs-4.2.0" / "*"
    assert lines
    for line in lines:
        words = shlex.split(line)[1:]
        words[words.index("--bootstrap-server") + 1] = place.broker.bootstrap
        at = words.index("--command-config")
        del words[at : at + 2]  # the administrator's door has no lock
        tool = ["java", "-Xmx256m", "-cp", str(jars), "org.apache.kafka.tools.AclCommand"]
        done = subprocess.run([*tool, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    produce(place.broker.bootstrap, place.names["input.topics"], [GOOD])
    worker = start(config)
    wait_for_outputs(place.broker.bootstrap, [place.names["output.topic"]], 1, [worker])
    assert worker.stop()[0] == 0, worker.text()


# Tools


def test_dead_letters_that_may_not_be_read_are_not_called_none(place: Place) -> None:
    """With the worker's own rights `dlq` and `tail` exit 3 and name the missing right; the topic is not "empty"."""
    place.allow(*place.names)
    dead, source, group = (place.names[f] for f in ("dead_letter.topic", "input.topics", "kafka.group.id"))
    config = place.config()
    refused = f"not authorised to read topic {dead}; expected the right READ"
    for action in ("list", "show", "replay"):
        done = command("dlq", action, config)
        assert (done.returncode, done.stdout) == (3, b"")
        assert f"dead_letter.topic: {refused}" in done.stderr.decode()
    tailed = command("tail", config, "--what", "dead-letter", "--timeout", "1")
    assert (tailed.returncode, tailed.stdout) == (3, b"")
    assert refused in tailed.stderr.decode()

    place.broker.allow(READ, TOPIC, dead)
    assert b"no dead letters" in command("dlq", "list", config).stdout
    replayed = command("dlq", "replay", config)
    assert replayed.returncode == 3
    assert (
        f"input.topics: not authorised to write to topic {source}; expected the right WRITE"
        in replayed.stderr.decode()
    )
    place.broker.allow(WRITE, TOPIC, source)
    replayed = command("dlq", "replay", config)
    assert replayed.returncode == 3
    assert f"not authorised for group {group}.dlq-replay; expected the right READ" in replayed.stderr.decode()
    place.broker.allow(READ, GROUP, f"{group}.dlq-replay")
    assert command("dlq", "replay", config).returncode == 0


# Keeping secrets


@pytest.mark.parametrize("way", ["scram", pytest.param("oauthbearer", marks=pytest.mark.slow), "certificate"])
def test_no_secret_leaves_the_worker(place: Place, start: Callable[..., Worker], way: str) -> None:
    """No log line at any level, metric, result, dead letter, page or check holds a secret, whatever the client logs."""
    place.allow(*place.names)
    config = place.config(way, kafka={"debug": "security,broker,protocol,conf,feature"})
    assert SPARROW in config.read_bytes(), "the secret is what the worker was given"
    produce(place.broker.bootstrap, place.names["input.topics"], [GOOD, BAD])
    worker = start(config, LOG_LEVEL="debug")
    written = [place.names["output.topic"], place.names["dead_letter.topic"]]
    wait_for_outputs(place.broker.bootstrap, written, 2, [worker])
    wait_for_outputs(place.broker.bootstrap, [place.names["metrics.topic"]], 1, [worker])
    pages = http_pages(worker)
    assert worker.stop()[0] == 0, worker.text()

    log = worker.log.read_bytes()
    assert b"SSL" in log, "the client's own debug lines are in the log"
    assert SPARROW not in log
    for page in pages:
        assert SPARROW not in page
    for topic in (*written, place.names["metrics.topic"]):
        for message in read_all(place.broker.bootstrap, topic):
            assert SPARROW not in repr((message.key(), message.value(), message.headers())).encode()
    for options in ([], ["--json"]):
        checked = command("check", config, *options, LOG_LEVEL="debug")
        assert checked.returncode == 0, checked.stderr
        assert SPARROW not in checked.stdout + checked.stderr


def http_pages(worker: Worker) -> list[bytes]:
    """Everything the worker's HTTP server says."""
    lines = (json.loads(line) for line in worker.text().splitlines() if line.startswith("{"))
    port = next(line["port"] for line in lines if "port" in line)
    pages = []
    for path in ("metrics", "livez", "readyz", "progressz"):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=10) as page:
            pages.append(page.read())
    return pages


@pytest.mark.parametrize(
    "override",
    [
        f"kafka.sasl.pasword={PASSWORD}",
        f"kafka.sasl.username.{PASSWORD}=x",
        f"kafka.ssl.key.pem={PASSWORD}",
        f"kafka.sasl.mechanism={PASSWORD}",
        f"kafka.sasl.oauthbearer.method={PASSWORD}",
    ],
)
def test_a_mistake_about_a_secret_setting_never_shows_the_secret(place: Place, override: str) -> None:
    """The sentence about a wrong secret setting never shows the secret."""
    place.allow(*place.names)
    for verb in ("check", "run"):
        done = command(verb, place.config(), "--set", override)
        assert done.returncode in (2, 3)
        assert SPARROW not in done.stdout + done.stderr, done.stderr
