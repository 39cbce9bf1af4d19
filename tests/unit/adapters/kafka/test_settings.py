from __future__ import annotations

from typing import Any

import pytest

from headrace.adapters.kafka.settings import KafkaSettings


@pytest.mark.parametrize(
    "wrong",
    [
        {"brokers": ""}, {"topic": ""}, {"group": ""}, {"client_id": ""},
        {"session_timeout_s": 0.0}, {"publish_timeout_s": -1.0}, {"commit_interval_s": 0.0},
        {"retry_s": 0.0}, {"max_in_hand": 0}, {"partitions": 0}, {"replication_factor": -1},
    ],
)  # fmt: skip
def test_a_setting_that_cannot_be_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        KafkaSettings(**wrong)


@pytest.mark.parametrize("option", ["acks", "enable.auto.commit", "auto.offset.reset"])
def test_an_option_that_would_lose_messages_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match=option):
        KafkaSettings(options={option: "1"})


def test_topics_are_named_after_the_prefix() -> None:
    settings = KafkaSettings(topic="a")
    names = (settings.chunks_topic, settings.retry_topic, settings.dead_topic)
    assert names == ("a.chunks", "a.retry", "a.dead")
