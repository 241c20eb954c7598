"""Retry, meter and fault, with time and chance handed in."""

from __future__ import annotations

import pytest

from enigma.errors import AccessDenied, ObjectMissing, ProviderUnavailable
from enigma.providers.fault import FaultProvider
from enigma.providers.memory import MemoryProvider
from enigma.providers.meter import MeterProvider
from enigma.providers.retry import FIRST_PAUSE_S, LONGEST_PAUSE_S, RetryProvider


class Time:
    """Sleeping is only counting."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.pauses: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now_ns += int(seconds * 1e9)


def retrying(inner: FaultProvider, time: Time, **options: float) -> RetryProvider:
    return RetryProvider(inner, sleep=time.sleep, clock_ns=lambda: time.now_ns, share=lambda: 1.0, **options)


def test_a_temporary_error_is_tried_again() -> None:
    time, inner = Time(), FaultProvider(MemoryProvider("m"))
    inner.fail_at(1, ProviderUnavailable("busy"))
    retrying(inner, time).put("a", memoryview(b"x"))
    assert time.pauses == [FIRST_PAUSE_S]
    assert inner.head("a").length_bytes == 1


@pytest.mark.parametrize("error", [AccessDenied("no"), ObjectMissing("gone")])
def test_a_final_error_is_not_tried_again(error: Exception) -> None:
    time, inner = Time(), FaultProvider(MemoryProvider("m"))
    inner.fail_at(1, error)
    with pytest.raises(type(error)):
        retrying(inner, time).head("a")
    assert time.pauses == []


def test_pauses_double_up_to_a_bound_and_end_at_the_deadline() -> None:
    time, inner = Time(), FaultProvider(MemoryProvider("m"))
    inner.down = True
    with pytest.raises(ProviderUnavailable):
        retrying(inner, time, deadline_s=120.0).delete("a")
    assert time.pauses[:4] == [FIRST_PAUSE_S * 2**power for power in range(4)]
    assert max(time.pauses) == LONGEST_PAUSE_S
    assert 120 <= sum(time.pauses) < 120 + LONGEST_PAUSE_S


def test_a_listing_that_breaks_off_is_begun_anew() -> None:
    time, inner = Time(), FaultProvider(MemoryProvider("m"))
    for number in range(5):
        inner.put(f"k/{number}", memoryview(b"x"))
    broken = [True]

    def after(verb: str, _key: str) -> None:
        if verb == "list" and broken.pop() if broken else False:
            raise ProviderUnavailable("cut off")

    inner.after = after
    assert len(list(retrying(inner, time).list("k/"))) == 5


def test_the_meter_counts_calls_bytes_and_errors() -> None:
    inner = FaultProvider(MemoryProvider("m"))
    meter = MeterProvider(inner)
    meter.put("a", memoryview(b"12345"))
    meter.get("a", memoryview(bytearray(3)))
    inner.fail_at(1, ProviderUnavailable("busy"))
    with pytest.raises(ProviderUnavailable):
        meter.put("b", memoryview(b"12345"))
    inner.before = None
    list(meter.list(""))
    reading = meter.reading()
    assert (reading["put"].calls, reading["put"].errors, reading["put"].length_bytes) == (2, 1, 5)
    assert (reading["get"].calls, reading["get"].length_bytes) == (1, 3)
    assert reading["list"].calls == 1


def test_faults_come_at_exactly_the_call_they_were_set_for() -> None:
    provider = FaultProvider(MemoryProvider("m"))
    provider.fail_at(2, ProviderUnavailable("now"), verb="put")
    provider.put("a", memoryview(b"x"))
    provider.head("a")
    with pytest.raises(ProviderUnavailable):
        provider.put("b", memoryview(b"x"))
    provider.put("b", memoryview(b"x"))
    assert provider.calls == [("put", "a"), ("head", "a"), ("put", "b"), ("put", "b")]


def test_a_lagging_listing_hides_recent_puts_until_it_catches_up() -> None:
    provider = FaultProvider(MemoryProvider("m"))
    provider.lagging = True
    provider.put("a", memoryview(b"x"))
    assert list(provider.list("")) == []
    assert provider.head("a").key == "a"
    provider.catch_up()
    assert [info.key for info in provider.list("")] == ["a"]


def test_mangled_bytes_are_what_the_reader_gets() -> None:
    provider = FaultProvider(MemoryProvider("m"))
    provider.put("a", memoryview(b"abc"))
    provider.mangle = lambda _key, _offset, data: data[:2].upper()
    into = bytearray(3)
    assert provider.get("a", memoryview(into)) == 2
    assert bytes(into[:2]) == b"AB"
