"""Names in `input.topics`: topics, and patterns for topics that may not exist yet."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.batch import Partition
from worker.errors import ConfigError
from worker.kafka.acls import rights_of
from worker.settings import Settings, starved_pipelines, validate
from worker.topics import ByTopic, Topics, matches, may_overlap, pattern_fault, prefix, subscription


@pytest.mark.parametrize(
    ("name", "topic", "stands"),
    [
        ("cam", "cam", True),
        ("cam", "cam-1", False),
        ("^cam-.*", "cam-1", True),
        ("^cam-.*", "cam-", True),
        ("^cam-.*", "my-cam-1", False),
        ("^cam", "cam-1", False),
        ("^cam-[0-9]{1,2}$", "cam-12", True),
        ("^cam-[0-9]{1,2}$", "cam-123", False),
        ("^(eu|us)\\.cam", "eu.cam", True),
        ("^(eu|us)\\.cam", "euxcam", False),
    ],
)
def test_a_pattern_stands_for_topics_whose_whole_name_it_matches(name: str, topic: str, stands: bool) -> None:
    """A name stands for itself alone; a pattern for each topic whose name it matches from the first character to the last."""
    assert matches(name, topic) is stands
    assert (topic in Topics([name, "other"])) is stands
    assert ByTopic({name: 1}).get(topic) == (1 if stands else None)


@pytest.mark.parametrize(
    "pattern",
    ["^", "^*a", "^a\\d", "^(?:a)", "^a*?", "^a++", "^(a", "^a|*", "^[z-a]", "^a b", "^a\\", "^^a", "^a$b"],
)
def test_a_pattern_that_engines_read_differently_is_refused(pattern: str) -> None:
    """What Python, POSIX and RE2 may read in different ways is a mistake in the configuration, told in one sentence."""
    fault = pattern_fault(pattern)
    assert fault is not None
    with pytest.raises(ConfigError, match=re.escape(fault)):
        settings(topics=[pattern])


LETTERS = st.text("ab.-", min_size=1, max_size=4)
PATTERNS = st.builds(
    lambda parts: "^" + "".join(parts),
    st.lists(
        st.one_of(
            st.sampled_from(["a", "b", "-", "\\.", ".", "[ab]", "(a|b)"]).flatmap(
                lambda part: st.sampled_from(["", "*", "+", "?", "{1,2}"]).map(lambda times: part + times)
            )
        ),
        min_size=1,
        max_size=4,
    ),
)


@given(PATTERNS, LETTERS)
def test_every_topic_of_a_pattern_begins_as_it_is_said(pattern: str, topic: str) -> None:
    """Each topic that a pattern stands for begins with its prefix, and is matched by what the consumer subscribes to."""
    assert pattern_fault(pattern) is None
    if matches(pattern, topic):
        assert topic.startswith(prefix(pattern))
    assert (re.search(subscription(pattern), topic) is not None) == matches(pattern, topic)


@given(PATTERNS, PATTERNS, LETTERS)
def test_names_that_share_a_topic_are_known_to(one: str, other: str, topic: str) -> None:
    """If a topic belongs to two names, they count as overlapping."""
    for left, right in ((one, other), (one, topic), (topic, other)):
        if matches(left, topic) and matches(right, topic):
            assert may_overlap(left, right)
            assert Topics([left]).touches([right])


def test_a_topics_own_name_counts_before_a_pattern() -> None:
    """Of two entries for one topic its own name wins, and the pattern has the others."""
    found = ByTopic({"^cam-.*": "pattern", "cam-1": "name"})
    assert (found["cam-1"], found["cam-2"], found.name("cam-2")) == ("name", "pattern", "^cam-.*")
    assert "mic-1" not in found
    assert list(found.items()) == [("^cam-.*", "pattern"), ("cam-1", "name")]


def settings(topics: list[str], **more: Any) -> Settings:
    document = {
        "name": "p",
        "input": {"topics": topics, "format": "json", **more.pop("input", {})},
        "model": {"path": "m.onnx"},
        "output": {"topic": "out"},
        "dead_letter": {"topic": "dead"},
        "kafka": {"bootstrap.servers": "localhost:1", "group.id": "g"},
        **more,
    }
    return validate(document, Path.cwd())


@pytest.mark.parametrize(
    ("topics", "more", "key"),
    [
        (["^o.*"], {}, "output.topic"),
        (["^d.*"], {}, "dead_letter.topic"),
        (["^met.*"], {"metrics": {"topic": "metrics"}}, "metrics.topic"),
        (
            ["in", "^con.*"],
            {"control": {"topic": "control"}, "model": {"repository": "r", "name": "m"}},
            "control.topic",
        ),
    ],
)
def test_nothing_that_is_written_may_match_a_pattern(
    topics: list[str], more: dict[str, Any], key: str
) -> None:
    """A topic that the worker writes must not be one that a pattern makes it read: one sentence names the setting."""
    with pytest.raises(ConfigError, match=f"^{re.escape(key)}: got"):
        settings(topics, **more)


def test_a_rollouts_first_topic_has_a_name() -> None:
    """With a control topic the first topic of a pipeline with versions is named, because its partition 0 decides who writes."""
    with pytest.raises(ConfigError, match=r"input.topics: got '\^cam-.\*', expected the name of a topic"):
        settings(["^cam-.*"], control={"topic": "control"}, model={"repository": "r", "name": "m"})


def pipelines(first: list[str], second: list[str], later: str = "earliest") -> Settings:
    def one(name: str, topics: list[str]) -> dict[str, Any]:
        return {
            "input": {"topics": topics, "format": "json", "start": later if name == "second" else "earliest"},
            "model": {"path": "m.onnx"},
            "output": {"topic": "out"},
        }

    document = {
        "name": "p",
        "pipelines": {"first": one("first", first), "second": one("second", second)},
        "dead_letter": {"topic": "dead"},
        "kafka": {"bootstrap.servers": "localhost:1", "group.id": "g"},
    }
    return validate(document, Path.cwd())


def test_pipelines_that_may_share_topics_start_at_one_place() -> None:
    """Two pipelines whose names may stand for one topic need the same `input.start`; those that begin differently do not."""
    with pytest.raises(ConfigError, match=r"pipelines.second.input.start: got 'latest'"):
        pipelines(["^cam-.*"], ["cam-1"], later="latest")
    pipelines(["^cam-.*"], ["^mic-.*"], later="latest")


def test_a_pattern_before_a_topic_of_it_leaves_nothing() -> None:
    """A pipeline whose topics an earlier pattern takes gets no record, and is named; one before the pattern is not."""
    assert [name for name, *_ in starved_pipelines(pipelines(["^cam-.*"], ["cam-1"]))] == ["second"]
    assert not list(starved_pipelines(pipelines(["cam-1"], ["^cam-.*"])))


def test_a_pattern_needs_the_right_to_read_what_begins_like_it() -> None:
    """The right for a pattern is READ on every topic that begins as its topics do, or on all where they have nothing in common."""
    found = {
        (r.operation, r.name, r.prefixed)
        for r in rights_of(settings(["^cam-.*", "^(a|b)x"]))
        if r.field == "input.topics"
    }
    assert found == {("READ", "cam-", True), ("READ", "*", False)}


def test_records_of_a_new_topic_find_their_route() -> None:
    """A topic that nobody has heard of at start is routed to the pipeline whose pattern it matches, in file order."""
    from worker.batch import Columns
    from worker.loop.admission import Admission
    from worker.serving.route import route_of

    several = pipelines(["cam-1"], ["^cam-.*"])
    routes = [route_of(name, wanted) for name, wanted in several.pipelines.items()]

    class Rollout:
        trial, held = None, False

        def __init__(self, route: Any) -> None:
            self.route = route

    admission = Admission([Rollout(route) for route in routes], None, "drop", 1)  # type: ignore[list-item]
    places = [Partition("cam-1", 0), Partition("cam-2", 3), Partition("mic-1", 0)]
    columns = Columns([b""] * 3, [None] * 3, [None] * 3, [0] * 3, [0] * 3, places)
    found = [route and route.name for route in admission.route_of(columns)]
    assert found == ["first", "second", None]
