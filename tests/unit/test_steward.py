"""What a replica does with the control topic: real models on a topic in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rollout_support import FIRST, Topic, Worker, put, settings_in

from worker.batch import Partition
from worker.errors import StartError
from worker.serving.control import Decision, Pin, Stable


@pytest.fixture
def topic(tmp_path: Path) -> Topic:
    put(tmp_path, "1")
    return Topic()


def start(stable: str = "1", candidate: str = "2", **more: object) -> Decision:
    decision = Decision("digits", "abc-1", stable, candidate, "canary", 0.5, "running", "", "cli:me@here", 1)
    return replace(decision, **more)  # type: ignore[arg-type]


def test_the_first_replica_writes_what_answers(tmp_path: Path, topic: Topic) -> None:
    """Where the topic says nothing, the version that the settings mean is written there."""
    worker = Worker(tmp_path, topic, "r1")
    assert [(type(each), each.version) for each in topic.records if isinstance(each, Stable)] == [
        (Stable, "1")
    ]
    assert worker.answers == ("1", None)


def test_a_replica_that_starts_believes_the_topic(tmp_path: Path, topic: Topic) -> None:
    """A newer version in the repository does not answer at a start: the one that was decided last does."""
    Worker(tmp_path, topic, "r1")
    put(tmp_path, "2")
    assert Worker(tmp_path, topic, "r2").answers == ("1", None)


def test_a_new_version_is_tried_and_promoted_on_every_replica(tmp_path: Path, topic: Topic) -> None:
    """The owner of partition 0 begins a rollout and promotes it; the other replica follows the topic."""
    owner, other = Worker(tmp_path, topic, "r1", (FIRST,)), Worker(tmp_path, topic, "r2")
    put(tmp_path, "2")
    other.look()
    assert topic.decisions("running") == []
    owner.look()
    other.look()
    assert owner.answers == other.answers == ("1", "2")
    owner.saw(20)
    owner.look()
    other.look()
    assert owner.answers == other.answers == ("2", None)
    assert [each.state for each in topic.decisions("running", "promoted", "rolled_back")] == [
        "running",
        "promoted",
    ]
    assert [each.state for each in other.turned] == ["running", "promoted"]


def test_the_next_rollout_follows_changed_settings(tmp_path: Path, topic: Topic) -> None:
    """Without rules nobody tries a version; with rules that came while the worker runs it is tried, by them."""
    owner = Worker(tmp_path, topic, "r1", (FIRST,), rollout=None)
    put(tmp_path, "2")
    owner.look()
    assert topic.decisions("running") == []
    changed = settings_in(tmp_path, rollout={"share": 0.25, "min_records": 5, "for_s": 0.001})
    owner.steward.follow(changed)
    owner.loader.follow(changed)
    owner.look()
    assert [each.share for each in topic.decisions("running")] == [0.25]
    assert owner.answers == ("1", "2")
    owner.saw(6)
    owner.look()
    assert owner.answers == ("2", None)


def test_any_replica_rolls_back_what_breaks_a_limit(tmp_path: Path, topic: Topic) -> None:
    """A replica that sees too many errors ends the rollout for all; the version is not tried again."""
    owner, other = Worker(tmp_path, topic, "r1", (FIRST,)), Worker(tmp_path, topic, "r2")
    put(tmp_path, "2")
    owner.look()
    other.look()
    other.saw(100, errors=50)
    other.look()
    owner.look()
    assert owner.answers == other.answers == ("1", None)
    (decision,) = topic.decisions("rolled_back")
    assert decision.by == "r2"
    assert decision.reason.startswith("errors: 50 of 100 records")
    owner.look(20)
    assert len(topic.decisions("running")) == 1


def test_a_version_that_was_rolled_back_is_tried_again_when_its_files_change(
    tmp_path: Path, topic: Topic
) -> None:
    """Mended in place, the same version begins another rollout."""
    owner = Worker(tmp_path, topic, "r1", (FIRST,))
    put(tmp_path, "2")
    owner.look()
    topic.put(replace(topic.decisions("running")[0], state="rolled_back"))
    owner.look()
    put(tmp_path, "2", (tmp_path / "models" / "digits" / "1" / "model.onnx").read_bytes())
    owner.look()
    assert len(topic.decisions("running")) == 2
    assert owner.answers == ("1", "2")


def test_a_replica_that_cannot_load_the_candidate_ends_the_rollout(tmp_path: Path, topic: Topic) -> None:
    """A candidate that one replica refuses is rolled back for all, with the reason."""
    worker = Worker(tmp_path, topic, "r1")
    put(tmp_path, "2", b"not a model")
    topic.put(start())
    worker.look()
    (decision,) = topic.decisions("rolled_back")
    assert decision.reason.startswith("refused: unloadable: ")
    assert worker.answers == ("1", None)


def test_a_version_that_the_owner_refuses_begins_no_rollout(tmp_path: Path, topic: Topic) -> None:
    """What is refused before a rollout began is not in the topic at all, and is loaded once."""
    owner = Worker(tmp_path, topic, "r1", (FIRST,))
    put(tmp_path, "2", b"not a model")
    owner.look(10)
    assert topic.decisions("running", "rolled_back") == []


def test_a_replica_that_starts_takes_part_at_once(tmp_path: Path, topic: Topic) -> None:
    """Both versions of a rollout that runs are loaded before the group is joined."""
    Worker(tmp_path, topic, "r1")
    put(tmp_path, "2")
    topic.put(start())
    late = Worker(tmp_path, topic, "r2")
    late.rollout.choose()
    assert late.answers == ("1", "2")


def test_new_partitions_wait_until_the_topic_is_read_and_the_candidate_loaded(
    tmp_path: Path, topic: Topic
) -> None:
    """From an assignment on nothing is taken, until the replica answers as their last owner did."""
    worker = Worker(tmp_path, topic, "r1")
    put(tmp_path, "2")
    topic.put(start())
    worker.steward.assigned([Partition("in", 1)])
    assert worker.rollout.held
    worker.steward.look(0.0)
    assert worker.rollout.held, "the candidate is not loaded yet"
    worker.look()
    assert not worker.rollout.held
    assert worker.answers == ("1", "2")


def test_partitions_of_other_topics_hold_nothing_back(tmp_path: Path, topic: Topic) -> None:
    """Only records of the pipeline's own topics wait."""
    worker = Worker(tmp_path, topic, "r1")
    worker.steward.assigned([Partition("other", 1)])
    assert not worker.rollout.held


def test_an_outage_of_the_topic_does_not_hold_records_for_ever(
    tmp_path: Path, topic: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If nobody says how far the topic goes, new partitions are read after a while with what is known."""
    monkeypatch.setattr("worker.serving.steward.FENCE_S", 0.01)
    worker = Worker(tmp_path, topic, "r1")
    topic.away = True
    worker.steward.assigned([FIRST])
    worker.look(20)
    assert not worker.rollout.held


def test_a_decision_that_was_not_written_is_written_when_the_topic_is_back(
    tmp_path: Path, topic: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the topic is away the candidate goes on; the rollback is written later, once."""
    monkeypatch.setattr("worker.serving.decisions.RETRY_MS", 1)
    worker = Worker(tmp_path, topic, "r1")
    put(tmp_path, "2")
    topic.put(start())
    worker.look()
    topic.away = True
    worker.saw(100, errors=50)
    worker.look()
    assert worker.answers == ("1", "2")
    topic.away = False
    worker.look()
    assert worker.answers == ("1", None)
    written = len(topic.decisions("rolled_back"))
    worker.look(20)
    assert len(topic.decisions("rolled_back")) == written == 1


@pytest.mark.parametrize(("patience_ms", "comes"), [(60_000, True), (0, False)])
def test_a_candidate_that_is_not_there_yet_is_waited_for(
    tmp_path: Path, topic: Topic, monkeypatch: pytest.MonkeyPatch, patience_ms: int, comes: bool
) -> None:
    """A repository that is copied to each machine may be late; one that never gets the version ends the rollout."""
    monkeypatch.setattr("worker.serving.decisions.PATIENCE_MS", patience_ms)
    monkeypatch.setattr("worker.serving.decisions.AGAIN_MS", 1)
    worker = Worker(tmp_path, topic, "r1")
    topic.put(start())
    worker.look()
    assert len(topic.decisions("rolled_back")) == (not comes)
    put(tmp_path, "2")
    worker.look()
    assert worker.answers == ("1", "2" if comes else None)


def test_more_keys_reach_every_replica(tmp_path: Path, topic: Topic) -> None:
    """A record with a larger share grows the rollout that runs."""
    worker = Worker(tmp_path, topic, "r1")
    put(tmp_path, "2")
    topic.put(start())
    worker.look()
    topic.put(start(share=0.75))
    worker.look()
    assert worker.rollout.plan is not None
    assert worker.rollout.plan.share == 0.75
    assert [(each.state, each.share) for each in worker.turned] == [("running", 0.5), (None, 0.75)]


def test_a_pin_swaps_at_once(tmp_path: Path, topic: Topic) -> None:
    """A pinned version answers without a trial, and ends the rollout that runs."""
    put(tmp_path, "2")
    put(tmp_path, "3")
    topic.put(Stable("digits", "1", "r0", 1))
    worker = Worker(tmp_path, topic, "r1")
    topic.put(start())
    worker.look()
    topic.put(Pin("digits", "3", None, "cli:me@here", 2))
    worker.look()
    assert worker.answers == ("3", None)
    assert [each.state for each in worker.turned] == ["running", "aborted"]


def test_without_a_rollout_section_only_people_decide(tmp_path: Path, topic: Topic) -> None:
    """With a control topic alone a new version is not tried by itself; a person's start and promotion are followed."""
    worker = Worker(tmp_path, topic, "r1", (FIRST,), rollout=None)
    put(tmp_path, "2")
    worker.look(10)
    assert topic.decisions("running") == []
    topic.put(start())
    worker.look()
    worker.saw(5000)
    worker.look()
    assert worker.answers == ("1", "2")
    topic.put(start(state="promoted"))
    worker.look()
    assert worker.answers == ("2", None)


def test_then_wait_leaves_the_promotion_to_people(tmp_path: Path, topic: Topic) -> None:
    """Nothing is promoted by itself, but a limit that breaks still rolls back."""
    rules = {"min_records": 10, "for_s": 0.001, "then": "wait"}
    worker = Worker(tmp_path, topic, "r1", (FIRST,), rollout=rules)
    put(tmp_path, "2")
    worker.look()
    worker.saw(1000)
    worker.look(10)
    assert worker.answers == ("1", "2")
    worker.saw(2000, errors=1000)
    worker.look()
    assert worker.answers == ("1", None)


def test_a_sick_candidate_is_rolled_back_for_all(tmp_path: Path, topic: Topic) -> None:
    """The loop takes it back at once; the topic hears why."""
    worker = Worker(tmp_path, topic, "r1")
    put(tmp_path, "2")
    topic.put(start())
    worker.look()
    candidate = worker.rollout.candidate
    assert candidate is not None
    worker.rollout.sick(candidate, "it gives zeros")
    assert worker.answers == ("1", None)
    worker.look()
    assert [each.reason for each in topic.decisions("rolled_back")] == ["sick: it gives zeros"]
    assert worker.answers == ("1", None)


def test_settings_that_mean_the_old_version_again_end_the_rollout(tmp_path: Path, topic: Topic) -> None:
    """When the version that is tried goes from the repository, its rollout is aborted."""
    owner = Worker(tmp_path, topic, "r1", (FIRST,))
    put(tmp_path, "2")
    owner.look()
    (tmp_path / "models" / "digits" / "2").rename(tmp_path / "away")
    owner.look()
    assert [each.state for each in topic.decisions("aborted")] == ["aborted"]
    assert owner.answers == ("1", None)


def test_a_topic_that_cannot_be_read_ends_the_start(
    tmp_path: Path, topic: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica that does not know what answers does not start."""
    monkeypatch.setattr("worker.serving.steward.START_S", 0.01)
    topic.away = True
    with pytest.raises(StartError, match=r"^control\.topic: it cannot be read"):
        Worker(tmp_path, topic, "r1")


def test_a_decided_version_that_is_not_there_ends_the_start(tmp_path: Path, topic: Topic) -> None:
    """The sentence says who wants the version, and which ones there are."""
    topic.put(Stable("digits", "9", "r0", 1))
    with pytest.raises(
        StartError,
        match=r"control\.topic: version 9 answers digits by what was decided last, but .* has no version 9",
    ):
        Worker(tmp_path, topic, "r1")
