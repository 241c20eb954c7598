"""Retry, meter and fault, with time and chance handed in."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from enigma.config import ProviderConfig
from enigma.errors import AccessDenied, ConfigError, ObjectMissing, ProviderUnavailable
from enigma.providers.fault import FaultProvider
from enigma.providers.memory import MemoryProvider
from enigma.providers.meter import MeterProvider
from enigma.providers.open import open_provider
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
    cuts = [ProviderUnavailable("cut off")]

    def after(verb: str, _key: str) -> None:
        if verb == "list" and cuts:
            raise cuts.pop()

    inner.after = after
    assert [info.key for info in retrying(inner, time).list("k/")] == [f"k/{number}" for number in range(5)]
    assert cuts == []


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


def test_the_meter_times_the_provider_and_not_the_reader_of_a_listing() -> None:
    time, inner = Time(), FaultProvider(MemoryProvider("m"))
    inner.before = lambda _verb, _key: time.sleep(2.0)
    meter = MeterProvider(inner, clock_ns=lambda: time.now_ns)
    meter.put("a/1", memoryview(b"x"))
    meter.put("a/2", memoryview(b"x"))
    for _ in meter.list("a/"):
        time.sleep(100.0)
    reading = meter.reading()
    assert reading["put"].seconds == 4.0
    assert (reading["list"].calls, reading["list"].errors, reading["list"].seconds) == (1, 0, 2.0)


def test_the_meter_counts_a_listing_that_breaks_off_as_one_error() -> None:
    inner = FaultProvider(MemoryProvider("m"))
    meter = MeterProvider(inner)
    inner.put("a", memoryview(b"x"))
    inner.fail_at(1, ProviderUnavailable("busy"))
    with pytest.raises(ProviderUnavailable):
        list(meter.list(""))
    for _ in meter.list(""):
        break
    assert (meter.reading()["list"].calls, meter.reading()["list"].errors) == (2, 1)


def test_the_meter_loses_no_call_of_many_threads() -> None:
    meter = MeterProvider(MemoryProvider("m"))

    def work() -> None:
        for _ in range(500):
            meter.put("a", memoryview(b"123"))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (meter.reading()["put"].calls, meter.reading()["put"].length_bytes) == (4000, 12_000)


def test_faults_come_at_exactly_the_call_they_were_set_for() -> None:
    provider = FaultProvider(MemoryProvider("m"))
    provider.fail_at(2, ProviderUnavailable("now"), verb="put")
    provider.put("a", memoryview(b"x"))
    provider.head("a")
    with pytest.raises(ProviderUnavailable):
        provider.put("b", memoryview(b"x"))
    provider.put("b", memoryview(b"x"))
    assert provider.calls == [("put", "a"), ("head", "a"), ("put", "b"), ("put", "b")]


def test_hooks_run_on_either_side_of_the_call() -> None:
    class CrashError(Exception):
        """The process dies here."""

    def crash(_verb: str, _key: str) -> None:
        raise CrashError

    provider = FaultProvider(MemoryProvider("m"))
    provider.before = crash
    with pytest.raises(CrashError):
        provider.put("before", memoryview(b"x"))
    provider.before, provider.after = None, crash
    with pytest.raises(CrashError):
        provider.put("after", memoryview(b"x"))
    provider.after = None
    assert [info.key for info in provider.list("")] == ["after"]


def test_a_provider_that_is_down_refuses_every_verb_until_it_is_up() -> None:
    provider = FaultProvider(MemoryProvider("m"))
    provider.down = True
    calls: list[Callable[[], object]] = [
        lambda: provider.put("a", memoryview(b"x")),
        lambda: provider.get("a", memoryview(bytearray(1))),
        lambda: provider.head("a"),
        lambda: list(provider.list("")),
        lambda: provider.delete("a"),
    ]
    for call in calls:
        with pytest.raises(ProviderUnavailable):
            call()
    provider.down = False
    assert list(provider.list("")) == []


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


def test_a_local_provider_opens_and_its_folder_is_made_only_when_asked(tmp_path: Path) -> None:
    settings = ProviderConfig("here", "Local", str(tmp_path / "deep" / "folder"))
    with open_provider(settings) as provider:
        assert not (tmp_path / "deep").exists()
    with open_provider(settings, create=True) as provider:
        provider.put("a", memoryview(b"x"), if_absent=True)
        assert provider.head("a").length_bytes == 1


def test_a_type_that_this_version_lacks_is_a_fault_of_the_configuration() -> None:
    with pytest.raises(ConfigError, match=r"cloud has type Gcs; this version supports Local"):
        open_provider(ProviderConfig("cloud", "Gcs", "bucket"))


def test_an_error_shows_no_secret() -> None:
    settings = ProviderConfig("cloud", "S3", "bucket", access_key="AKIA-not-shown", secret_key="hush")
    with pytest.raises(ConfigError) as caught:
        open_provider(settings)
    for text in (str(caught.value), repr(settings)):
        assert "hush" not in text
        assert "AKIA-not-shown" not in text
