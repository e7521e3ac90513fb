"""``streaminfer model`` with the verbs of the control topic; the topic is in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rollout_support import Reader, Topic, put

from worker.cli.main import main
from worker.serving.control import Decision, Pin, Record, Seen, Stable, decoded
from worker.serving.rollout import Arm, Figures

Command = Callable[..., tuple[int, str, str]]
RUNNING = Decision(
    "digits", "abc-1", "1", "2", "canary", 0.1, "running", "a new version", "r1", 1_700_000_000_000
)


class Cli:
    """The command on a topic that one worker has written to."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.topic = Topic()
        self.topic.put(Stable("digits", "1", "r1", 1))
        self.config = folder / "c.yaml"
        self._capsys = capsys
        for version in "123":
            put(folder, version)
        self.write()

    def write(self, **changed: Any) -> None:
        document = {
            "name": "digits",
            "input": {"topics": ["in"], "format": "json"},
            "model": {"repository": "models", "name": "digits"},
            "output": {"topic": "out"},
            "dead_letter": {"topic": "dead"},
            "control": {"topic": "control"},
            "rollout": {"share": 0.25},
            "kafka": {"bootstrap.servers": "localhost:9", "group.id": "g"},
            **changed,
        }
        self.config.write_text(yaml.safe_dump({k: v for k, v in document.items() if v is not None}))

    def __call__(self, *args: str) -> tuple[int, str]:
        """Exit code, and what was printed: standard output, or the sentence of the error."""
        code = main(["model", str(self.config), *args])
        out, err = self._capsys.readouterr()
        return code, (out or err).strip()

    @property
    def last(self) -> Record | None:
        return decoded(self.topic.values[-1])


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    found = Cli(tmp_path, capsys)
    monkeypatch.setattr("worker.cli.model_control.open_control", lambda *_a, **_k: Reader(found.topic, "cli"))
    return found


def test_start_writes_that_a_rollout_runs(cli: Cli) -> None:
    """The record names both versions, the person, and the share of the settings."""
    assert cli("start", "2") == (0, "digits: the rollout of version 2 begins (canary for 0.25 of the keys)")
    assert isinstance(cli.last, Decision)
    assert (cli.last.stable, cli.last.candidate, cli.last.state, cli.last.share) == (
        "1",
        "2",
        "running",
        0.25,
    )
    assert cli.last.by.startswith("cli:")
    assert "@" in cli.last.by


def test_start_takes_mode_and_share(cli: Cli) -> None:
    """The options go before the settings."""
    assert cli("start", "2", "--mode", "shadow")[1] == "digits: the rollout of version 2 begins (shadow)"
    assert isinstance(cli.last, Decision)
    assert cli.last.mode == "shadow"
    cli("rollback")
    cli("start", "3", "--share", "0.5")
    assert isinstance(cli.last, Decision)
    assert cli.last.share == 0.5


def test_start_gives_a_candidate_more_keys(cli: Cli) -> None:
    """The same rollout goes on with a larger share; a smaller one is refused."""
    cli.topic.put(RUNNING)
    assert cli("start", "2", "--share", "0.5")[0] == 0
    running = cli.topic.book().running
    assert running is not None
    assert (running.id, running.share) == ("abc-1", 0.5)
    assert cli("start", "2", "--share", "0.2") == (
        2,
        "streaminfer: --share: version 2 has 0.5 already; expected more: a key never goes back while a rollout runs",
    )


@pytest.mark.parametrize(
    ("verb", "state", "answers"), [("promote", "promoted", "2"), ("rollback", "rolled_back", "1")]
)
def test_people_decide(cli: Cli, verb: str, state: str, answers: str) -> None:
    """promote and rollback end the rollout that runs."""
    cli.topic.put(RUNNING)
    assert cli(verb) == (0, f"digits: version 2 is {state}; version {answers} answers everything")
    assert cli.topic.book().stable == answers


def test_a_decision_that_comes_too_late_says_so(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a replica was first, the sentence names what counts, and the exit code is 3."""
    cli.topic.put(RUNNING)
    write = Reader.write

    def second(reader: Reader, key: str, value: bytes) -> None:
        cli.topic.put(Decision("digits", "abc-1", "1", "2", "canary", 0.1, "rolled_back", "errors", "r1", 3))
        write(reader, key, value)

    monkeypatch.setattr(Reader, "write", second)
    assert cli("promote") == (
        3,
        "streaminfer: digits: too late, because something else was decided before: rolled_back by r1 (errors)",
    )


def test_pin_and_unpin(cli: Cli) -> None:
    """A pin ends the rollout that runs with a record of its own; unpin leaves the version where it is."""
    cli.topic.put(RUNNING)
    assert cli("pin", "3") == (0, "digits: version 3 is pinned")
    assert [each.state for each in cli.topic.decisions("aborted")] == ["aborted"]
    assert cli("start", "2")[1] == "streaminfer: start: version 3 is pinned; expected unpin first"
    assert cli("unpin")[0] == 0
    assert isinstance(cli.last, Pin)
    assert cli.topic.book().stable == "3"


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["promote"], "no rollout of digits runs: version 1 answers everything"),
        (["rollback"], "no rollout of digits runs: version 1 answers everything"),
        (["unpin"], "unpin: no version of digits is pinned"),
        (["start", "1"], "start: version 1 answers already"),
        (["start", "9"], "version 9 is not in the repository of digits; there are 3, 2, 1"),
        (["pin", "9"], "version 9 is not in the repository of digits; there are 3, 2, 1"),
        (["start"], "start: expected a version"),
        (["promote", "2"], "promote: expected no version"),
        (["start", "2", "--share", "2"], "--share: got 2, expected more than 0 and at most 1"),
        (["promote", "--share", "0.5"], "--mode and --share: go with start, got promote"),
        (["status", "--pipeline", "x"], "--pipeline: got x, expected one with model.repository: digits"),
    ],
)
def test_a_mistake_is_one_sentence(cli: Cli, args: list[str], sentence: str) -> None:
    """What does not fit is said in one sentence, exit code 2, and nothing is written."""
    before = len(cli.topic.values)
    assert cli(*args) == (2, f"streaminfer: {sentence}")
    assert len(cli.topic.values) == before


def test_a_second_rollout_is_refused(cli: Cli) -> None:
    """One rollout at a time."""
    cli.topic.put(RUNNING)
    assert cli("start", "3") == (
        2,
        "streaminfer: start: a rollout of version 2 runs already (canary); expected promote or rollback first",
    )


def test_without_a_control_topic_the_verbs_say_what_is_missing(cli: Cli) -> None:
    """The setting that is missing is named."""
    cli.write(control=None, rollout=None)
    assert cli("status") == (
        2,
        "streaminfer: status: control.topic is not set; expected control: {topic: <name>}, where all replicas read "
        "which version answers",
    )


def test_status_shows_what_the_topic_says(cli: Cli) -> None:
    """Who answers, the rollout with the figures of all replicas, and the decisions."""
    cli.topic.put(
        Decision("digits", "old-1", "0", "1", "canary", 0.1, "promoted", "fine", "r1", 1_699_999_000_000)
    )
    cli.topic.put(RUNNING)
    for replica in "ab":
        figures = Figures(Arm(900, 9, 10.0), Arm(100, 1, 12.0))
        cli.topic.put(Seen("digits", "abc-1", figures, replica, replica, 5))
    code, text = cli("status")
    assert code == 0
    assert text.splitlines() == [
        "digits: version 1 answers",
        "  rollout of version 2: canary, share 0.1, since 2023-11-14 22:13:20Z",
        "    begun by r1: a new version",
        "    stable    1800 records, 18 errors, 10 µs a record",
        "    candidate 200 records, 2 errors, 12 µs a record",
        "  2023-11-14 21:56:40Z 1 promoted: fine (r1)",
    ]
    document = json.loads(cli("status", "--json")[1])
    assert document["rollout"]["candidate"] == "2"
    assert document["figures"]["candidate"]["records"] == 200


def test_json_prints_the_record(cli: Cli) -> None:
    """With --json a verb prints the record that it wrote."""
    document = json.loads(cli("start", "2", "--json")[1])
    assert (document["type"], document["state"], document["candidate"]) == (
        "streaminfer.rollout",
        "running",
        "2",
    )
