"""The protocol of FORMAT.md, "Sessions and deletion", holds under random schedules, and every rule of it is needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import fields, replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.model.protocol_model import (
    DAY,
    Backup,
    Collect,
    Forget,
    Restore,
    Rules,
    Session,
    Steps,
    Violation,
    World,
)


class Storm:
    """A random schedule: sessions begin, interleave, sleep and crash; providers lag, go down, return and are lost."""

    KINDS = ("backup", "backup", "backup", "collect", "collect", "forget", "restore")

    def __init__(self, seed: int, rules: Rules) -> None:
        self.rng = Random(seed)
        self.world = World(rules, self.rng, lag=self.rng.choice((0, 15)))
        self.running: list[tuple[Session, Steps]] = []
        self.wipes = self.rng.choice((0, 0, 1, 2))
        self.crowd = self.rng.choice((2, 3, 4))
        self.restless = self.rng.choice((0.05, 0.2, 1.0))  # how soon the turn passes to another session
        self.trouble = self.rng.choice((0.001, 0.004))  # how often a session crashes or sleeps
        self.turn: tuple[Session, Steps] | None = None
        self.sleepers: dict[str, int] = {}
        self.seen: Counter[str] = Counter()

    def run(self, steps: int) -> int:
        for _ in range(steps):
            self.step()
        return steps

    def step(self) -> None:
        world, rng = self.world, self.rng
        world.now += 1
        if len(self.running) < self.crowd and rng.random() < 0.1:
            self.begin(rng.choice(self.KINDS))
        self.weather()
        awake = [pair for pair in self.running if self.sleepers.get(pair[0].sid, 0) <= world.now]
        if not awake:
            return
        if self.turn not in awake or rng.random() < self.restless:
            self.turn = rng.choice(awake)
        self.advance(self.turn)
        world.check()

    def advance(self, pair: tuple[Session, Steps]) -> None:
        world, rng, sid, fate = self.world, self.rng, pair[0].sid, self.rng.random()
        if fate < self.trouble:
            self.running.remove(pair)
            world.reading.pop(sid, None)
            self.note(sid, "crash")
        elif fate < 2 * self.trouble:
            self.sleepers[sid] = world.now + rng.choice((50, 200, 600))
            self.note(sid, "sleep")
        else:
            step = next(pair[1], None)
            if step is None:
                self.running.remove(pair)
            self.note(sid, step or "end")

    def note(self, sid: str, step: str) -> None:
        self.world.log.append(f"{self.world.now} {sid} {step}")
        self.seen["step"] += 1
        verb, _, what = step.partition(" ")
        kind = what.partition("-")[0] if what.startswith("gc/") else what.partition("/")[0]
        self.seen[f"{verb} {kind}" if verb in ("put", "delete") else verb] += 1

    def begin(self, kind: str) -> None:
        world, rng = self.world, self.rng
        skew = rng.choice((0, DAY, -DAY))
        visible = sorted(k for k in world.everywhere("snapshots/") if not world.tombed(k))
        session: Session
        if kind == "forget" and visible:
            session = Forget(world, rng.choice(visible))
        elif kind == "restore":
            session = Restore(world, skew)
        elif kind == "collect":
            session = Collect(world, skew)
        else:
            session = Backup(world, rng.sample("abcd", rng.randint(1, 3)), skew)
        self.running.append((session, session.run()))

    def weather(self) -> None:
        """One provider at a time is down, for a while; the anchor is never lost."""
        world, rng = self.world, self.rng
        down = [p for p in world.providers if not p.up]
        if down:
            down[0].up = rng.random() < 0.03
        elif rng.random() < 0.004:
            rng.choice(world.providers).up = False
        elif self.wipes and rng.random() < 0.002:
            self.wipes -= 1
            world.wipe(rng.choice(world.providers[1:]))


class Straight(Random):
    """No chance at all: providers in the order asked for, the longest lag, heartbeats in mid-run only when wanted."""

    order = (0, 1, 2)
    mid_run_heartbeats = False
    newest_first = False
    count = 0

    def sample(self, population, k, *, counts=None):  # type: ignore[no-untyped-def]
        return [population[i] for i in self.order][:k]

    def random(self) -> float:
        return 0.0 if self.mid_run_heartbeats else 1.0

    def randint(self, a: int, b: int) -> int:
        return b

    def randrange(self, *args: int) -> int:  # type: ignore[override]
        self.count += 1
        return self.count

    def shuffle(self, x) -> None:  # type: ignore[no-untyped-def]
        x.sort(reverse=self.newest_first)


class Stage:
    """A schedule written by hand: who runs how far, when; every promise is checked after every step."""

    def __init__(self, rules: Rules, lag: int = 0) -> None:
        self.chance = Straight()
        self.world = World(rules, self.chance, lag)
        self.steps: dict[str, Steps] = {}

    def enter(self, session: Session) -> Session:
        self.steps[session.sid] = session.run()
        return session

    def run(self, session: Session, until: str = "", times: int = 1) -> None:
        """Run the session to the end, or through the step named; one that waits in vain for a provider stops."""
        for step in self.steps[session.sid]:
            self.world.now += 1
            self.world.check()
            times -= bool(until) and until in step
            if times == 0 or step == "wait for a provider":
                return
        self.world.check()

    def play(self, session: Session) -> Session:
        self.run(self.enter(session))
        return session

    def backup(self, chunks: str) -> Backup:
        return Backup(self.world, chunks)

    def snapshot(self, chunks: str, order: tuple[int, int, int] = (0, 1, 2)) -> str:
        """A finished backup; its snapshot's key."""
        self.chance.order = order
        self.play(self.backup(chunks))
        self.chance.order = (0, 1, 2)
        return max(self.world.reported)

    def forgotten(self, chunks: str) -> str:
        key = self.snapshot(chunks)
        self.play(Forget(self.world, key))
        return key

    def sleep(self, time: int) -> None:
        self.world.now += time

    def up(self, provider: int, up: bool) -> None:
        self.world.providers[provider].up = up

    def wipe(self, provider: int) -> None:
        self.world.wipe(self.world.providers[provider])
        self.world.check()


LISTED = "list adopt/ at p2"  # the last step of a backup's first look; a claim follows at once
ROUND = "list gc/ at p2"  # the last step of gc's look for acknowledgements


def session_object_first(s: Stage) -> None:
    """A backup looks, gc comes and goes in between, the backup counts on what it saw."""
    s.forgotten("a")
    sleeper = s.enter(s.backup("a"))
    s.run(sleeper, LISTED)
    s.play(Collect(s.world))
    s.run(sleeper)


def a_forgotten_snapshot_is_being_read(s: Stage) -> None:
    key = s.snapshot("a")
    reader = s.enter(Restore(s.world))
    s.run(reader, "list gc/ at p0")
    s.play(Forget(s.world, key))
    gc = s.enter(Collect(s.world))
    s.run(gc, ROUND, 2)
    s.run(reader, "put sessions", 2)
    s.run(gc)


def recheck_after_declaring(s: Stage) -> None:
    """The snapshot is forgotten between a reader's choice and its naming it."""
    key = s.snapshot("a")
    reader = s.enter(Restore(s.world))
    s.run(reader, LISTED)
    s.play(Forget(s.world, key))
    gc = s.enter(Collect(s.world))
    s.run(gc, ROUND, 2)
    s.run(reader, "put sessions", 4)
    s.sleep(50)
    s.run(gc)


def condemn_before_listing_sessions(s: Stage) -> None:
    """A backup begins after gc listed the sessions and before it condemned."""
    s.forgotten("a")
    gc = s.enter(Collect(s.world))
    s.run(gc, "list sessions/ at p2", 2)
    late = s.enter(s.backup("a"))
    s.run(late, LISTED)
    s.run(gc)
    s.run(late)


def exists_needs_durable_index(s: Stage) -> None:
    """An index object at one provider only is counted on, and that provider is lost."""
    s.chance.order = (1, 2, 0)
    s.run(s.enter(s.backup("a")), "put index")
    s.chance.order = (0, 1, 2)
    s.snapshot("a")
    s.wipe(1)
    s.sleep(500)
    s.play(Collect(s.world))
    s.play(Collect(s.world))


def a_copy_was_lost_before(s: Stage) -> None:
    """One copy is lost before a backup of the same chunk, the other one after it."""
    s.snapshot("a", (1, 2, 0))
    s.wipe(1)
    s.snapshot("a", (1, 2, 0))
    s.wipe(2)


def exists_excludes_condemned(s: Stage) -> None:
    """A new reference is taken after the acknowledgement."""
    s.forgotten("b")
    gc = s.enter(Collect(s.world))
    s.run(gc, ROUND, 2)
    s.chance.mid_run_heartbeats = True
    late = s.enter(s.backup("ab"))
    s.run(late, "list fence/ at p2", 4)
    s.chance.mid_run_heartbeats = False
    s.run(late, "put sessions", 2)
    s.sleep(50)
    s.run(gc)
    s.run(late)


def acknowledge_gates_sweep(s: Stage) -> None:
    s.forgotten("a")
    busy = s.enter(s.backup("a"))
    s.run(busy, LISTED)
    s.play(Collect(s.world))
    s.run(busy)


def rescue_before_acknowledging(s: Stage) -> None:
    s.forgotten("a")
    busy = s.enter(s.backup("a"))
    s.run(busy, LISTED)
    gc = s.enter(Collect(s.world))
    s.run(gc, ROUND, 2)
    s.run(busy, "put sessions", 2)
    s.sleep(50)
    s.run(gc)
    s.run(busy)


def rescue_cancels_only_what_it_names(s: Stage) -> None:
    """A pack is rescued from one gc, falls out of use and is condemned by the next; a backup goes by the old rescue."""
    rescue_before_acknowledging(s)
    s.play(Forget(s.world, max(s.world.reported)))
    gc = s.enter(Collect(s.world))
    s.run(gc, ROUND, 2)
    late = s.enter(s.backup("a"))
    s.chance.mid_run_heartbeats = True
    late.claims.clear()
    s.run(late, "list fence/ at p2", 2)
    s.chance.mid_run_heartbeats = False
    s.run(late, "put sessions", 4)
    s.sleep(50)
    s.run(gc)
    s.run(late)


def grace_by_provider_clock(s: Stage) -> None:
    """A gc whose clock is a day ahead takes a live reader for silent."""
    s.forgotten("ab")
    key = s.snapshot("a")
    s.run(s.enter(Restore(s.world)), "list gc/ at p0")
    s.play(Forget(s.world, key))
    s.play(Collect(s.world, DAY))


def all_providers_must_answer(s: Stage) -> None:
    """The provider that lists at once is down while gc looks for rescues; the others list them too late."""
    s.forgotten("a")
    s.sleep(2000)
    busy = s.enter(s.backup("a"))
    s.run(busy, LISTED)
    gc = s.enter(Collect(s.world))
    s.run(gc, ROUND, 2)
    s.run(busy, "put sessions", 2)
    s.sleep(50)
    s.run(gc, ROUND)
    s.up(0, False)
    s.run(gc, "list sessions/ at p2", 2)
    s.up(0, True)
    s.run(gc)
    s.run(busy)


def fresh_mark_before_sweep(s: Stage) -> None:
    """A backup commits between gc's first mark and its condemnation."""
    s.forgotten("a")
    quick = s.enter(s.backup("a"))
    s.run(quick, LISTED)
    gc = s.enter(Collect(s.world))
    s.run(gc, "list sessions/ at p2", 2)
    s.run(quick)
    s.run(gc)


def a_laptop_sleeps_before_its_commit(s: Stage) -> None:
    s.forgotten("a")
    laptop = s.enter(s.backup("a"))
    s.run(laptop, LISTED)
    s.sleep(500)
    s.play(Collect(s.world))
    s.run(laptop)


def void_until_adopted(s: Stage) -> None:
    a_laptop_sleeps_before_its_commit(s)
    s.sleep(10)
    s.play(Restore(s.world))


def relist_after_fence(s: Stage) -> None:
    """A silent session commits and reports between gc's list of snapshots and its fence."""
    s.forgotten("a")
    laptop = s.enter(s.backup("a"))
    s.run(laptop, "put sessions", 4)
    gc = s.enter(Collect(s.world))
    s.run(gc, ROUND, 2)
    s.sleep(500)
    s.run(gc, "list adopt/ at p2")
    s.run(laptop, "list fence/ at p2")
    s.run(laptop, "delete")
    s.run(gc)


def tombstone_before_delete(s: Stage) -> None:
    """A provider is down while a snapshot is forgotten, and returns."""
    key = s.snapshot("a", (1, 2, 0))
    s.up(2, False)
    s.play(Forget(s.world, key))
    s.up(2, True)
    s.sleep(500)
    s.play(Collect(s.world))


def metadata_at_f_plus_1(s: Stage) -> None:
    s.snapshot("a")
    s.wipe(0)


def packs_placed_before_index(s: Stage) -> None:
    s.snapshot("a", (1, 2, 0))
    s.wipe(1)


def generation_reread_before_commit(s: Stage) -> None:
    """A copy is lost during the backup that made it, the other one afterwards."""
    s.chance.order = (1, 2, 0)
    busy = s.enter(s.backup("a"))
    s.run(busy, "put packs", 2)
    s.wipe(1)
    s.run(busy)
    s.wipe(2)


def reported_then_crashed(s: Stage) -> None:
    """A session reports its snapshot and dies before it has ended; gc fences it, and another gc follows."""
    crashed = s.enter(s.backup("a"))
    s.run(crashed, "report")
    s.sleep(500)
    s.run(s.enter(Collect(s.world)), "put fence", 2)
    s.sleep(500)
    s.play(Collect(s.world))


def facts_reach_the_anchor(s: Stage) -> None:
    """A session object is durable at two providers, and gc's lists show neither yet."""
    s.forgotten("a")
    s.sleep(2000)
    s.chance.order = (1, 2, 0)
    busy = s.enter(s.backup("a"))
    s.run(busy, LISTED)
    s.chance.order = (0, 1, 2)
    s.play(Collect(s.world))
    s.run(busy)


def rescue_of_a_fenced_session_is_void(s: Stage) -> None:
    """A fenced session wakes and rescues what gc is about to delete; a new backup believes the rescue."""
    s.forgotten("a")
    zombie = s.enter(s.backup("a"))
    s.run(zombie, LISTED)
    s.sleep(500)
    gc = s.enter(Collect(s.world))
    s.run(gc, "put fence", 2)
    s.run(gc, "list packs/ at p2")
    s.run(gc, "list sessions/ at p2")
    s.run(zombie, "put sessions", 2)
    late = s.enter(s.backup("a"))
    s.run(late, LISTED)
    s.run(gc)
    s.run(late)


def fences_listed_after_rescues(s: Stage) -> None:
    """As above, but the fence comes after the new backup's list of fences and the rescue before its list of rescues."""
    s.forgotten("a")
    zombie = s.enter(s.backup("a"))
    s.run(zombie, LISTED)
    gc = s.enter(Collect(s.world))
    s.run(gc, ROUND, 2)
    s.sleep(500)
    s.run(gc, ROUND)
    late = s.enter(s.backup("a"))
    s.run(late, "list fence/ at p2")
    s.run(gc, "put fence", 2)
    s.run(gc, "list packs/ at p2")
    s.run(gc, "list sessions/ at p2")
    s.run(zombie, "put sessions", 2)
    s.run(late, LISTED)
    s.run(gc)
    s.run(late)


def gc_counts_on_no_condemned_pack(s: Stage) -> None:
    """A chunk is stored twice; a gc falls asleep just before it deletes one copy, another gc finds the other copy."""
    twin = s.enter(s.backup("a"))
    s.run(twin, LISTED)
    s.snapshot("a")
    s.run(twin)
    asleep = s.enter(Collect(s.world))
    s.run(asleep, ROUND, 2)
    s.sleep(50)
    s.run(asleep, "list packs/ at p2")
    s.run(asleep, "list sessions/ at p2")
    s.sleep(500)
    s.chance.newest_first = True
    s.play(Collect(s.world))
    s.run(asleep)


def adopt_only_what_stands(s: Stage) -> None:
    a_laptop_sleeps_before_its_commit(s)
    s.play(Collect(s.world))


def mark_lists_sessions_last(s: Stage) -> None:
    """A reader names a snapshot after gc listed sessions; the snapshot is forgotten before gc lists tombstones."""
    s.forgotten("ab")
    key = s.snapshot("a")
    gc = s.enter(Collect(s.world))
    s.run(gc, ROUND, 2)
    s.sleep(50)
    s.run(gc, ROUND)
    s.run(gc, "list sessions/ at p2")
    s.run(s.enter(Restore(s.world)), "list gc/ at p0")
    s.play(Forget(s.world, key))
    s.run(gc)


def tombstone_outlives_writer(s: Stage) -> None:
    """A snapshot is forgotten while its writer has put one copy; the tombstone goes; the writer puts the second."""
    s.chance.order = (1, 2, 0)
    slow = s.enter(s.backup("a"))
    s.run(slow, "put snapshots")
    s.play(Forget(s.world, slow_key := next(iter(s.world.written))))
    assert slow_key in s.world.gone
    s.sleep(500)
    s.play(Collect(s.world))
    s.run(slow)


SCHEDULES: dict[str, Callable[[Stage], None]] = {
    "session_object_first": session_object_first,
    "reads_are_roots": a_forgotten_snapshot_is_being_read,
    "recheck_after_declaring": recheck_after_declaring,
    "condemn_before_listing_sessions": condemn_before_listing_sessions,
    "exists_needs_durable_index": exists_needs_durable_index,
    "exists_needs_listing": a_copy_was_lost_before,
    "exists_excludes_condemned": exists_excludes_condemned,
    "inherited_lists_are_tested": a_copy_was_lost_before,
    "acknowledge_gates_sweep": acknowledge_gates_sweep,
    "rescue_before_acknowledging": rescue_before_acknowledging,
    "rescue_cancels_only_what_it_names": rescue_cancels_only_what_it_names,
    "grace_by_provider_clock": grace_by_provider_clock,
    "all_providers_must_answer": all_providers_must_answer,
    "fresh_mark_before_sweep": fresh_mark_before_sweep,
    "fence_silent_sessions": a_laptop_sleeps_before_its_commit,
    "relist_after_fence": relist_after_fence,
    "fence_check_before_report": a_laptop_sleeps_before_its_commit,
    "void_until_adopted": void_until_adopted,
    "tombstone_before_delete": tombstone_before_delete,
    "tombstone_kept_until_all_listed_without": tombstone_before_delete,
    "metadata_at_f_plus_1": metadata_at_f_plus_1,
    "packs_placed_before_index": packs_placed_before_index,
    "index_before_snapshot": reported_then_crashed,
    "generation_reread_before_commit": generation_reread_before_commit,
    "facts_reach_the_anchor": facts_reach_the_anchor,
    "forget_spares_what_is_read": a_forgotten_snapshot_is_being_read,
    "void_is_still_a_root": reported_then_crashed,
    "rescue_of_a_fenced_session_is_void": rescue_of_a_fenced_session_is_void,
    "fences_listed_after_rescues": fences_listed_after_rescues,
    "gc_counts_on_no_condemned_pack": gc_counts_on_no_condemned_pack,
    "adopt_only_what_stands": adopt_only_what_stands,
    "mark_lists_sessions_last": mark_lists_sessions_last,
    "tombstone_outlives_writer": tombstone_outlives_writer,
}
# Without these nothing is lost, only work. A pack of a live creator: its session counts on it from before the first
# put, so it rescues the pack before it acknowledges; or it has committed, and the fresh mark sees the index and the
# snapshot. Two gcs: each takes the other's condemned packs for lost, so of two copies at most one is deleted.
ECONOMIES = {"skip_packs_of_live_creators", "one_gc_withdraws"}
LAGGING = {"all_providers_must_answer": 1000, "facts_reach_the_anchor": 1000}


@pytest.mark.parametrize("rule", SCHEDULES)
def test_without_the_rule_data_is_lost(rule: str) -> None:
    with pytest.raises(Violation):
        SCHEDULES[rule](Stage(replace(Rules(), **{rule: False}), LAGGING.get(rule, 0)))


@pytest.mark.parametrize("rule", SCHEDULES)
def test_with_the_rule_the_same_schedule_is_safe(rule: str) -> None:
    SCHEDULES[rule](Stage(Rules(), LAGGING.get(rule, 0)))


def test_every_rule_has_its_schedule() -> None:
    assert {rule.name for rule in fields(Rules)} == set(SCHEDULES) | ECONOMIES


def storms(rules: Rules, examples: int, steps: int) -> Counter[str]:
    """Run random schedules; what happened in them, by name. The number of steps is counted as "step"."""
    seen: Counter[str] = Counter()

    @settings(max_examples=examples, deadline=None, derandomize=True, database=None)
    @given(st.integers(0, 2**32))
    def weather(seed: int) -> None:
        storm = Storm(seed, rules)
        storm.run(steps)
        seen.update(storm.seen)

    weather()
    return seen


def test_random_schedules_lose_nothing() -> None:
    seen = storms(Rules(), examples=60, steps=2000)
    assert seen["step"] >= 20_000
    for event in ("report", "put fence", "put adopt", "put gc/rescue", "delete packs", "delete tomb", "crash", "sleep"):
        assert seen[event] >= 10, f"the schedules are too tame: {event} happened {seen[event]} times"


@pytest.mark.parametrize("rule", sorted(ECONOMIES))
def test_without_an_economy_nothing_is_lost(rule: str) -> None:
    storms(replace(Rules(), **{rule: False}), examples=15, steps=2000)


def packs(s: Stage) -> dict[str, frozenset[str]]:
    return {key: pack.chunks for key, pack in s.world.everywhere("packs/").items()}


def test_an_unreferenced_pack_is_swept() -> None:
    s = Stage(Rules())
    s.forgotten("a")
    s.play(Collect(s.world))
    assert not packs(s)


def test_a_partly_dead_pack_is_rewritten() -> None:
    s = Stage(Rules())
    old = s.snapshot("ab")
    (before,) = packs(s)
    kept = s.snapshot("a")
    s.play(Forget(s.world, old))
    s.play(Collect(s.world))
    assert before not in packs(s)
    assert list(packs(s).values()) == [frozenset("a")]
    assert kept in s.world.everywhere("snapshots/")


def test_what_a_crashed_backup_left_is_swept() -> None:
    s = Stage(Rules())
    s.run(s.enter(s.backup("ab")), "put packs", 2)
    s.sleep(500)
    s.play(Collect(s.world))  # takes it for dead
    s.play(Collect(s.world))  # and its packs for orphans
    assert not packs(s)


def test_gc_leaves_a_forgotten_snapshot_that_is_being_read_and_deletes_it_later() -> None:
    s = Stage(Rules())
    key = s.snapshot("a")
    reader = s.enter(Restore(s.world))
    s.run(reader, "list gc/ at p0")
    s.play(Forget(s.world, key))
    gc = s.enter(Collect(s.world))
    s.run(gc, ROUND, 2)
    s.run(reader, "put sessions", 2)
    s.run(gc)
    assert key in s.world.everywhere("snapshots/")
    s.run(reader)
    s.play(Collect(s.world))
    s.play(Collect(s.world))
    assert not s.world.everywhere("snapshots/") and not packs(s)


def test_a_tombstone_goes_when_the_object_is_listed_nowhere() -> None:
    s = Stage(Rules())
    s.forgotten("a")
    s.sleep(500)
    s.play(Collect(s.world))
    assert not s.world.everywhere("tomb/snapshots/")


def test_a_snapshot_reported_by_a_session_that_then_crashed_is_adopted() -> None:
    s = Stage(Rules())
    reported_then_crashed(s)
    ((key, snapshot),) = s.world.reported.items()
    assert s.world.fenced(snapshot.sid)
    assert not s.world.void(key, snapshot)
