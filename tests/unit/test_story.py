"""What the log says of an outage, dead letters, slowness and lag: once each, with counts and places, begin and end."""

from __future__ import annotations

import pytest
from story_support import P, Told, World, refuse

from worker.batch import Partition
from worker.telemetry.backlog import Backlog
from worker.telemetry.letters_told import LettersTold
from worker.telemetry.meters import ModelLabel, PartitionState
from worker.telemetry.slowness import Slowness
from worker.telemetry.story import Brokers, Heartbeat, Story


@pytest.fixture
def log() -> Told:
    return Told()


# -- brokers -----------------------------------------------------------------------------------------------------


def test_an_outage_is_told_at_its_begin_after_30_s_each_minute_and_at_its_end(log: Told) -> None:
    """An outage of 130 s is five lines: lost with the reason, still without at 30, 60 and 120 s, back."""
    world = World(Brokers(log, "kafka:9092"))
    world.wait(5)
    world.brokers = False
    for _ in world.seconds(130):
        world.errors["_TRANSPORT"] += 3
    world.brokers = True
    world.wait(30)
    assert log.events == ["broker lost", *["still without broker"] * 3, "broker back"]
    assert log.fields("broker lost") == [{"brokers": "kafka:9092", "error": "1.2.3.4:9092: refused"}]
    assert [each["for_s"] for each in log.fields("still without broker")] == [30, 60, 120]
    assert log.fields("broker back") == [{"after_s": 130}]


def test_the_cluster_of_results_is_named_when_it_is_the_one_that_is_away(log: Told) -> None:
    """The line names the settings of the cluster that is lost, and not the brokers that answer."""
    world = World(Brokers(log, "kafka:9092"))
    world.wait(5)
    world.brokers, world.away = False, "output.kafka"
    world.wait(5)
    assert [each["brokers"] for each in log.fields("broker lost")] == ["output.kafka"]


def test_a_broker_that_is_away_for_a_second_is_no_news(log: Told) -> None:
    """A connection that is made anew within two seconds, and the start before the first one, are not told."""
    world = World(Brokers(log, "kafka:9092"))
    world.brokers = False
    world.wait(20)
    world.brokers = True
    world.wait(5)
    world.brokers = False
    world.wait(1)
    world.brokers = True
    world.wait(20)
    assert log.events == []


def test_a_broker_that_acknowledges_is_there(log: Told) -> None:
    """While results are acknowledged no outage is told, whatever the client says of its connections."""
    world = World(Brokers(log, "kafka:9092"))
    world.wait(5)
    world.brokers = False
    for _ in world.seconds(30):
        world.counts.ok += 10
    assert log.events == []
    world.wait(5)
    assert log.events == ["broker lost"]


def test_errors_with_a_broker_in_sight_are_counted_ever_more_rarely(log: Told) -> None:
    """Errors every second for an hour are at most 20 lines, whose counts leave out none but the last."""
    world = World(Brokers(log, "kafka:9092"))
    world.wait(5)
    for _ in world.seconds(3600):
        world.errors["TOPIC_AUTHORIZATION_FAILED"] += 2
    told = log.fields("kafka errors")
    assert 3 <= len(told) <= 20
    assert 6000 < sum(each["errors"]["TOPIC_AUTHORIZATION_FAILED"] for each in told) <= 7200


def test_no_outage_is_told_in_a_drain(log: Told) -> None:
    """A worker that closes its clients does not report that it has no broker."""
    world = World(Brokers(log, "kafka:9092"))
    world.wait(5)
    world.draining, world.brokers = True, False
    world.wait(60)
    assert log.events == []


# -- dead letters ------------------------------------------------------------------------------------------------


def test_dead_letters_of_one_moment_are_one_line_with_counts_and_the_first_place(log: Told) -> None:
    """Three bad records give one line: counts by reason, where the first one is and what it says."""
    letters = LettersTold(log)
    world = World(letters)
    for offset, reason in ((7, "invalid"), (8, "undecodable"), (9, "invalid")):
        refuse(world, letters, offset, reason)
    world.wait(200)
    assert log.lines == [
        (
            "warning",
            "dead letters",
            {"pipeline": "inc", "invalid": 2, "undecodable": 1, "first": "inc/0/7", "message": "bad 7"},
        )
    ]


def test_dead_letters_without_end_are_a_line_a_minute_that_leaves_none_out(log: Told) -> None:
    """Ten minutes of bad records are at most a dozen lines and a last one; together they count every record."""
    letters = LettersTold(log)
    world = World(letters)
    for second in world.seconds(600):
        assert second is None
        refuse(world, letters, int(world.now_s))
    world.wait(200)
    assert log.events[-1] == "dead letters ended"
    told = log.fields("dead letters")
    assert 6 <= len(told) <= 14
    assert sum(each["invalid"] for each in told) == 600 == log.fields("dead letters ended")[0]["records"]


def test_the_last_look_tells_what_the_pace_held_back(log: Told) -> None:
    """Dead letters shortly before the end are counted in a last line, however soon it follows the one before."""
    world = World(LettersTold(log))
    assert isinstance(world.teller, LettersTold)
    story = Story([world.teller], lambda: world.last)
    refuse(world, world.teller, 1)
    world.wait(1)
    refuse(world, world.teller, 2)
    refuse(world, world.teller, 3)
    world.wait(1)
    assert len(log.events) == 1
    story.close()
    assert [(each["invalid"], each["first"]) for each in log.fields("dead letters")] == [
        (1, "inc/0/1"),
        (2, "inc/0/2"),
    ]


def test_custom_code_that_fails_shows_its_line_once_and_then_counts(log: Told) -> None:
    """The same line of custom code is told at the 1st, 10th, 100th failure; another line has its own count."""
    letters = LettersTold(log)
    world = World(letters)
    for offset in range(150):
        refuse(world, letters, offset, "model_error", ("zero.py:2 in post: return 1/0",))
    refuse(world, letters, 150, "model_error", ("zero.py:9 in post: raise KeyError",))
    told = log.fields("custom code failed")
    assert [(each["so_far"], each["record"]) for each in told] == [
        (1, "inc/0/0"),
        (10, "inc/0/9"),
        (100, "inc/0/99"),
        (1, "inc/0/150"),
    ]
    assert told[0]["calls"] == ["zero.py:2 in post: return 1/0"]
    assert told[0]["error"] == "KeyError: bad 0"


# -- speed -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "event"), [("infer", "model"), ("decode", "decode"), ("encode", "postprocess")]
)
def test_a_stage_a_hundred_times_slower_is_told_with_begin_and_end(log: Told, stage: str, event: str) -> None:
    """A stage that goes from 2 to 200 ms and back is two lines with both figures."""
    world = World(Slowness(log))
    world.runs(60, 2_000, stage=stage)
    world.runs(30, 200_000, stage=stage)
    world.runs(20, 2_000, stage=stage)
    assert log.events == [f"{event} slow", f"{event} at speed again"]
    (slow,) = log.fields(f"{event} slow")
    assert slow["pipeline"] == "inc"
    assert slow["p50_ms"] == pytest.approx(200, rel=0.03)
    assert slow["was_ms"] == pytest.approx(2, rel=0.03)
    assert 25 <= log.fields(f"{event} at speed again")[0]["after_s"] <= 35


def test_a_run_of_64_items_is_not_slow_because_one_item_was_quick(log: Told) -> None:
    """Records that arrive in a flood make larger runs, which take longer: that is not told, in neither direction."""
    world = World(Slowness(log))
    for _ in range(5):
        world.runs(20, 2_000, items=1)
        world.runs(20, 64_000, items=64)
    assert log.events == []


def test_another_model_version_has_its_own_usual_speed(log: Told) -> None:
    """A slower version that took over is not told as a slow model; a rollout compares versions."""
    world = World(Slowness(log))
    world.runs(30, 2_000)
    world.counts.model = ModelLabel("m", "2", "cpu")
    world.runs(60, 300_000)
    assert log.events == []


def test_one_slow_run_is_no_news(log: Told) -> None:
    """A few runs of half a second among quick ones do not move the median, so nothing is told."""
    world = World(Slowness(log))
    for _ in range(20):
        world.runs(4, 2_000)
        world.counts.stages_us["infer"].add(500_000, 3)
        world.runs(1, 2_000)
    assert log.events == []


# -- lag ---------------------------------------------------------------------------------------------------------


def test_falling_behind_is_told_with_both_rates_and_its_end(log: Told) -> None:
    """20 records/s come and 5 are answered: one line with lag and rates, one more after 30 s, one when it is over."""
    world = World(Backlog(log))
    world.traffic(30, 20, 20)
    world.traffic(60, 20, 5)
    world.traffic(60, 20, 200)
    assert log.events[0] == "falling behind"
    assert log.events[-1] == "caught up"
    assert set(log.events[1:-1]) == {"still behind"}
    assert len(log.events) == 3
    first = log.fields("falling behind")[0]
    assert (first["in_per_s"], first["out_per_s"]) == (pytest.approx(20, abs=1), pytest.approx(8, abs=7))
    assert first["drains"] == "never at this rate"
    assert log.fields("caught up")[0]["after_s"] >= 40


def test_a_backlog_that_shrinks_is_not_falling_behind(log: Told) -> None:
    """A worker that starts with 100,000 records and works them off is told nothing of."""
    world = World(Backlog(log))
    world.end = 100_000
    world.traffic(120, 100, 500)
    assert log.events == []


def test_records_in_lumps_are_no_backlog(log: Told) -> None:
    """500 records once in 20 s, answered within 5 s, are told nothing of."""
    world = World(Backlog(log))
    for _ in range(10):
        world.traffic(1, 500, 0)
        world.traffic(19, 0, 110)
    assert log.events == []


def test_lag_in_an_outage_is_the_outage(log: Told) -> None:
    """Without a broker no end is known, so nothing is told of lag."""
    world = World(Backlog(log))
    world.traffic(30, 20, 20)
    world.brokers = False
    world.traffic(60, 20, 0)
    assert log.events == []


def test_partitions_that_change_hands_are_no_backlog(log: Told) -> None:
    """Partitions that come with a large lag, and go, do not look like records that arrived."""
    world = World(Backlog(log))
    world.traffic(20, 20, 20)
    lagging = {P: PartitionState(0, 0, 50), Partition("inc", 1): PartitionState(0, 0, 90_000)}
    world.partitions = lagging
    world.wait(5)
    world.partitions = None
    world.traffic(20, 20, 20)
    world.partitions = {}
    world.wait(20)
    assert log.events == []


# -- heartbeat ---------------------------------------------------------------------------------------------------


def test_a_heartbeat_a_minute_has_the_figures_of_that_minute(log: Told) -> None:
    """Two minutes are two lines: records a second, latency, dead letters and lag of that minute alone."""
    world = World(Heartbeat(log))
    world.wait(1)
    for _ in world.seconds(60):
        world.counts.taken += 50
        world.counts.ok += 48
        world.counts.dead_letter += 2
        world.counts.stages_us["total"].add(4_000, 48)
        world.end += 1
    world.wait(65)
    first, second = log.fields("working")
    assert (first["in_per_s"], first["out_per_s"], first["dead"], first["lag"]) == (50.0, 48.0, 120, 60)
    assert first["p50_ms"] == pytest.approx(4, rel=0.03)
    assert first["rss_bytes"] > 1 << 20
    assert (second["in_per_s"], second["dead"]) == (0.0, 0)
    assert "p50_ms" not in second
