"""Questions to a broker that has no answer yet."""

from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from worker.kafka.tools import range_of


class Answers:
    """A consumer whose broker gives these answers, one after the other."""

    def __init__(self, *answers: Any) -> None:
        self._answers = list(answers)

    def get_watermark_offsets(self, _place: TopicPartition, timeout: float) -> Any:
        assert timeout > 0
        answer = self._answers.pop(0)
        if isinstance(answer, int):
            raise KafkaException(KafkaError(answer))
        return answer


def ask(patience_s: float, *answers: Any) -> tuple[int, int]:
    return range_of(Answers(*answers), TopicPartition("t", 0), patience_s)  # type: ignore[arg-type]


def test_a_leader_that_is_just_being_chosen_is_waited_for() -> None:
    assert ask(5.0, KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE, (3, 7)) == (3, 7)


@pytest.mark.parametrize(
    ("patience_s", "answer", "said"),
    [
        (5.0, KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.TOPIC_AUTHORIZATION_FAILED),
        (0.0, KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.NOT_LEADER_FOR_PARTITION),
        (5.0, None, KafkaError._TIMED_OUT),
    ],
    ids=["refused", "no leader for too long", "no answer"],
)
def test_what_the_broker_does_not_tell_is_an_error(patience_s: float, answer: Any, said: int) -> None:
    with pytest.raises(KafkaException) as caught:
        ask(patience_s, answer)
    assert caught.value.args[0].code() == said
