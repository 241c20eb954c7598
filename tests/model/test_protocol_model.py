"""The protocol of FORMAT.md, "Sessions and deletion", holds under random schedules, and every rule of it is needed."""

from __future__ import annotations

from tests.model.protocol_model import Rules, Storm


def test_random_schedules_lose_nothing() -> None:
    for seed in range(50):
        Storm(seed, Rules()).run(600)
