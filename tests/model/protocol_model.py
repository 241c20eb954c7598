"""An executable model of FORMAT.md, "Sessions and deletion": who may delete what, when, while machines sleep and crash.

Everything is in memory and nothing waits: a session is a generator, and every `yield` stands for one call to one
provider. Between two yields a session may be interleaved with any other, sleep for a week, or die. `World.check` is run
after every step and raises `Violation` at the first lost promise. `Rules` has one switch per rule of the protocol; with
any one of them off there is a schedule that loses data (two only save work: they say so).

Read Session.heartbeat and Session.good_packs for the words, Backup.run and Backup.commit for the write order, and
Collect.run for the way a pack is deleted.

What is abstracted away: encryption, placement (a pack has two whole copies), the catalog (a snapshot is its set of
chunks), and reading after listing (a listing hands over the bodies). The anchor, the provider that lists what was put,
may be down but is not lost; a lost provider is replaced by an empty one (a new generation of the config).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from random import Random
from typing import Any

Steps = Generator[str, None, Any]
FAULTS_SURVIVED = 1  # f: what the policy promises to survive
COPIES = FAULTS_SURVIVED + 1
SILENCE = 150  # provider time without a heartbeat after which a session may be fenced
GRACE = 40  # provider time between condemning and sweeping
DAY = 10_000  # how far a machine's clock may be off


class Violation(AssertionError):
    """A promise of the protocol was broken."""


@dataclass(frozen=True)
class Rules:
    """The rules of FORMAT.md, "Sessions and deletion"; each is a switch so that its absence can be shown to hurt."""

    session_object_first: bool = True  # the session object is put before anything is read
    reads_are_roots: bool = True  # snapshots named by live sessions are gc roots, forgotten or not
    recheck_after_declaring: bool = True  # a named snapshot is looked at again after the put
    condemn_before_listing_sessions: bool = True  # who begins later sees the condemnation
    skip_packs_of_live_creators: bool = True  # saves work only: they would rescue them
    exists_needs_durable_index: bool = True  # an index object at one provider may vanish
    exists_needs_listing: bool = True  # enough copies, in this session's own listing
    exists_excludes_condemned: bool = True  # no new reference into a condemned pack
    inherited_lists_are_tested: bool = True  # what the parent has must exist too, or the file is read again
    acknowledge_gates_sweep: bool = True  # every live session has taken the condemnation in
    rescue_before_acknowledging: bool = True  # what a session counts on is rescued before it acknowledges
    rescue_cancels_only_what_it_names: bool = True  # one pack, one condemnation; not the next gc's
    grace_by_provider_clock: bool = True  # ages are compared at one provider, never with a machine's clock
    all_providers_must_answer: bool = True  # in the lists of a gc; the anchor in everybody's
    fresh_mark_before_sweep: bool = True  # begun after the last acknowledgement
    fence_silent_sessions: bool = True  # silence alone is no evidence
    relist_after_fence: bool = True  # snapshots, heartbeats and rescues
    fence_check_before_report: bool = True  # after the snapshot's put
    void_until_adopted: bool = True  # a fenced session's snapshot is never latest, never a parent
    tombstone_before_delete: bool = True  # or a provider back from the dead brings it back
    tombstone_kept_until_all_listed_without: bool = True  # by every provider of the generation
    metadata_at_f_plus_1: bool = True  # before the next step of the write order
    packs_placed_before_index: bool = True  # at all their targets
    index_before_snapshot: bool = True  # or gc takes the packs for orphans
    generation_reread_before_commit: bool = True  # a provider replaced in mid-run took copies along
    one_gc_withdraws: bool = True  # saves work only: each takes the other's condemned packs for lost
    # Found with this model.
    facts_reach_the_anchor: bool = True  # f+1 providers, and one that lists at once is among them
    forget_spares_what_is_read: bool = True  # tombstone, then list sessions; gc needs the body of what is read
    void_is_still_a_root: bool = True  # a void snapshot may be a reported one
    rescue_of_a_fenced_session_is_void: bool = True  # for who would take a new reference; gc spares the pack still
    fences_listed_after_rescues: bool = True  # or a rescue looks good whose session was fenced just before
    gc_counts_on_no_condemned_pack: bool = True  # whoever condemned it: a fenced gc may wake and delete it
    adopt_only_what_stands: bool = True  # every chunk in a good pack, by the fresh mark
    mark_lists_sessions_last: bool = True  # once more, after the tombstones
    tombstone_outlives_writer: bool = True  # a writer alive or fenced may yet put the next copy


@dataclass(frozen=True)
class Pack:
    chunks: frozenset[str]
    sid: str


@dataclass(frozen=True)
class Index:
    pack: str
    chunks: frozenset[str]
    sid: str


@dataclass(frozen=True)
class Snapshot:
    chunks: frozenset[str]
    sid: str


@dataclass(frozen=True)
class Heartbeat:
    """One sessions/<sid>/<n>: what the session reads and which condemnations it has taken in."""

    sid: str
    n: int
    reads: frozenset[str]
    acknowledged: frozenset[str]
    is_gc: bool


@dataclass(frozen=True)
class Condemn:
    id: str
    packs: frozenset[str]


@dataclass(frozen=True)
class Rescue:
    condemn: str
    pack: str
    sid: str


@dataclass(frozen=True)
class Swept:
    """Closes a condemnation: its gc will delete nothing more under it; what it spared may be trusted again."""

    condemn: str
    spared: frozenset[str]


@dataclass
class Stored:
    body: Any
    modified: int
    listed_from: int
    gone_at: int | None = None


@dataclass
class Provider:
    """Objects under keys. The anchor lists what was put; the others may list late, what came and what went."""

    name: str
    anchor: bool
    up: bool = True
    stored: dict[str, Stored] = field(default_factory=dict)

    def has(self, key: str) -> bool:
        return key in self.stored and self.stored[key].gone_at is None

    def bodies(self, prefix: str) -> Iterable[tuple[str, Any]]:
        return [(k, s.body) for k, s in self.stored.items() if s.gone_at is None and k.startswith(prefix)]


class World:
    """Providers, time and what was promised to whom; `check` compares the two."""

    def __init__(self, rules: Rules, rng: Random, lag: int = 0) -> None:
        self.rules, self.rng, self.lag = rules, rng, lag
        self.providers = [Provider(f"p{i}", anchor=i == 0) for i in range(COPIES + 1)]
        self.now = 0
        self.faults = 0
        self.ids = 0
        self.reported: dict[str, Snapshot] = {}
        self.forgotten: set[str] = set()
        self.gone: set[str] = set()  # forget has reported success: may never come back
        self.reading: dict[str, str] = {}  # sid -> the snapshot a live reader was promised
        self.written: dict[str, Snapshot] = {}
        self.born: dict[str, int] = {}  # snapshot -> faults before its writer's last look at the config
        self.log: list[str] = []

    def new_id(self, kind: str) -> str:
        self.ids += 1
        return f"{kind}{self.ids:03d}"

    def session_id(self) -> str:
        """Random, so that which of two gcs has the higher id says nothing about which came first."""
        return f"s{self.rng.randrange(1000):03d}.{self.new_id('')}"

    # What the provider does.

    def put(self, provider: Provider, key: str, body: Any) -> None:
        late = 0 if provider.anchor or not self.lag else self.rng.randint(0, self.lag)
        provider.stored.setdefault(key, Stored(body, self.now, self.now + late))

    def delete(self, provider: Provider, key: str) -> None:
        stored = provider.stored.get(key)
        if stored is None or stored.gone_at is not None:
            return
        late = 0 if provider.anchor or not self.lag else self.rng.randint(0, self.lag)
        stored.gone_at = self.now + late
        if not late:
            del provider.stored[key]

    def listing(self, provider: Provider, prefix: str) -> dict[str, Stored]:
        for key in [k for k, s in provider.stored.items() if s.gone_at is not None and s.gone_at <= self.now]:
            del provider.stored[key]
        return {k: s for k, s in provider.stored.items() if k.startswith(prefix) and s.listed_from <= self.now}

    def wipe(self, provider: Provider) -> None:
        """The provider is lost, declared lost, and an empty one takes its place: one fault."""
        provider.stored.clear()
        self.faults += 1
        self.log.append(f"wipe {provider.name}")

    # What was promised.

    def everywhere(self, prefix: str) -> dict[str, Any]:
        return {k: body for p in self.providers for k, body in p.bodies(prefix)}

    def fenced(self, sid: str) -> bool:
        return any(p.has(f"fence/{sid}") for p in self.providers)

    def tombed(self, key: str) -> bool:
        return any(p.has(f"tomb/{key}") for p in self.providers)

    def void(self, key: str, snapshot: Snapshot) -> bool:
        return self.fenced(snapshot.sid) and not any(p.has(f"adopt/{key}") for p in self.providers)

    # What a reader may not choose, and who may be fenced.

    def fenced_before(self, session: Session, key: str) -> bool:
        """Was the snapshot void already when the session began?"""
        snapshot = self.everywhere("snapshots/").get(key)
        if snapshot is None or not self.void(key, snapshot):
            return False
        anchor = self.providers[0].stored.get(f"fence/{snapshot.sid}")
        return anchor is not None and anchor.modified < session.began

    def silent(self, sid: str) -> bool:
        beats = [s.modified for p in self.providers for k, s in p.stored.items() if k.startswith(f"sessions/{sid}/")]
        return not beats or self.now - max(beats) > SILENCE

    def check(self) -> None:
        """Every promise, after every step."""
        snapshots = self.everywhere("snapshots/")
        standing = {k: s for k, s in snapshots.items() if not self.tombed(k)}
        chunks: set[str] = set()
        for key, pack in self.everywhere("packs/").items():
            if not self.tombed(key):
                chunks |= pack.chunks
        for key, snapshot in standing.items():
            if key in self.gone:
                raise Violation(f"forgotten {key} came back")
            if not self.void(key, snapshot) and key not in self.forgotten:
                self.require(key, snapshot, chunks, "committed")
        for key, snapshot in self.reported.items():
            if key in self.forgotten:
                continue
            if key not in standing and self.faults - self.born[key] <= FAULTS_SURVIVED:
                raise Violation(f"reported {key} is gone")
            self.require(key, snapshot, chunks, "reported")
        for sid, key in list(self.reading.items()):
            if self.silent(sid):
                del self.reading[sid]  # slept too long: it may be fenced, and must start again
            else:
                self.require(key, self.written[key], chunks, f"{sid} reading")

    def require(self, key: str, snapshot: Snapshot, chunks: set[str], promise: str) -> None:
        since = self.born[key]
        if self.faults - since <= FAULTS_SURVIVED and not snapshot.chunks <= chunks:
            raise Violation(f"{promise} {key} lost {sorted(snapshot.chunks - chunks)}")


class View:
    """What one session has listed: the union over providers minus tombstones, and how many copies it saw."""

    def __init__(self) -> None:
        self.copies: dict[str, set[str]] = {}
        self.body: dict[str, Any] = {}
        self.modified: dict[str, int] = {}  # Last-Modified by the providers' clock, never a machine's

    def add(self, provider: Provider, listing: dict[str, Stored]) -> None:
        for key, stored in listing.items():
            self.copies.setdefault(key, set()).add(provider.name)
            self.body[key] = stored.body
            self.modified[key] = stored.modified

    def standing(self, prefix: str) -> dict[str, Any]:
        return {k: b for k, b in self.body.items() if k.startswith(prefix) and f"tomb/{k}" not in self.copies}

    def fenced(self, sid: str) -> bool:
        return f"fence/{sid}" in self.copies

    def void(self, key: str) -> bool:
        return self.fenced(self.body[key].sid) and f"adopt/{key}" not in self.copies

    def heartbeats(self) -> dict[str, Heartbeat]:
        """The newest heartbeat of every session that is not fenced."""
        newest: dict[str, Heartbeat] = {}
        for beat in self.standing("sessions/").values():
            if not self.fenced(beat.sid) and (beat.sid not in newest or newest[beat.sid].n < beat.n):
                newest[beat.sid] = beat
        return newest

    def condemned(self, rules: Rules) -> set[str]:
        """Packs no new reference may point into."""
        rescued = {
            (r.condemn if rules.rescue_cancels_only_what_it_names else None, r.pack)
            for r in self.standing("gc/rescue").values()
            if not (rules.rescue_of_a_fenced_session_is_void and self.fenced(r.sid))
        }
        spared = {(s.condemn, p) for s in self.standing("gc/swept").values() for p in s.spared}
        return {
            pack
            for c in self.standing("gc/condemn").values()
            for pack in c.packs
            if (c.id, pack) not in spared
            and (c.id if rules.rescue_cancels_only_what_it_names else None, pack) not in rescued
        }


class Session(ABC):
    """What backup, gc, forget and restore share: an id, a clock, storage calls, heartbeats."""

    is_gc = False

    def __init__(self, world: World, clock_skew: int = 0) -> None:
        self.world, self.rules, self.skew = world, world.rules, clock_skew
        self.sid = world.session_id()
        self.generation, self.began = world.faults, world.now
        self.beats = 0
        self.reads: frozenset[str] = frozenset()
        self.claims: dict[str, str] = {}  # chunk -> the pack this session counts on
        self.acknowledged: set[str] = set()
        self.condemned: set[str] = set()

    @abstractmethod
    def run(self) -> Steps:
        """The whole session, one provider call per step."""

    # Storage calls.

    def put(self, key: str, body: Any) -> Steps:
        """Metadata: on return durable at f+1 providers, one of them the anchor, which lists it at once."""
        world, done = self.world, set[str]()
        order = world.rng.sample(world.providers, len(world.providers))
        while True:
            for provider in order:
                if provider.up and provider.name not in done:
                    world.put(provider, key, body)
                    done.add(provider.name)
                    yield f"put {key} at {provider.name}"
                    if self.durable(done):
                        return
            yield "wait for a provider"

    def durable(self, names: set[str]) -> bool:
        enough = COPIES if self.rules.metadata_at_f_plus_1 else 1
        return len(names) >= enough and (not self.rules.facts_reach_the_anchor or "p0" in names)

    def look(self, prefixes: str, all_answer: bool = False) -> Steps:
        """List the prefixes in order at every provider that is up; the anchor, or all of them, must answer."""
        view = View()
        for prefix in prefixes.split():
            for provider in self.world.providers:
                while not provider.up and (provider.anchor or all_answer) and self.rules.all_providers_must_answer:
                    yield "wait for a provider"
                if provider.up:
                    view.add(provider, self.world.listing(provider, prefix))
                    yield f"list {prefix} at {provider.name}"
        return view

    def delete(self, key: str) -> Steps:
        for provider in self.world.providers:
            if provider.up and key in provider.stored:
                self.world.delete(provider, key)
                yield f"delete {key} at {provider.name}"

    def bury(self, key: str, writer: str) -> Steps:
        if self.rules.tombstone_before_delete:
            yield from self.put(f"tomb/{key}", writer)
        yield from self.delete(key)

    # The session object and its heartbeats.

    def declare(self) -> Steps:
        beat = Heartbeat(self.sid, self.beats, self.reads, frozenset(self.acknowledged), self.is_gc)
        yield from self.put(f"sessions/{self.sid}/{self.beats}", beat)
        self.beats += 1

    def heartbeat(self) -> Steps:
        """Take in condemnations; rescue what this session counts on; only then acknowledge."""
        view = yield from self.look("gc/ fence/")
        for fact in view.standing("gc/condemn").values():
            if fact.id in self.acknowledged:
                continue
            if self.rules.rescue_before_acknowledging:
                for pack in sorted(set(self.claims.values()) & fact.packs & view.condemned(self.rules)):
                    rescue = Rescue(fact.id, pack, self.sid)
                    yield from self.put(f"gc/rescue-{self.world.new_id('r')}", rescue)
            self.acknowledged.add(fact.id)
        self.condemned |= view.condemned(self.rules)
        yield from self.declare()

    def end(self) -> Steps:
        for n in range(self.beats):
            yield from self.delete(f"sessions/{self.sid}/{n}")

    def name_one(self, view: View) -> Steps:
        """The newest snapshot that is not void; named first, then looked at again; None if there is none."""
        rules = self.rules
        fit = [k for k in view.standing("snapshots/") if not (rules.void_until_adopted and view.void(k))]
        if not fit:
            return None
        key = max(fit)
        if self.world.fenced_before(self, key):
            raise Violation(f"{self.sid} reads the void {key}")
        self.reads = frozenset({key})
        yield from self.declare()
        if rules.recheck_after_declaring:
            again = yield from self.look("snapshots/ tomb/")
            if key not in again.standing("snapshots/"):
                return None
        return key

    def place(self, chunks: Iterable[str], wanted: int = COPIES) -> Steps:
        """Put one pack at its targets; on return it is complete."""
        key, body, done = f"packs/{self.world.new_id('k')}", Pack(frozenset(chunks), self.sid), set[str]()
        order = self.world.rng.sample(self.world.providers, len(self.world.providers))
        self.claims |= dict.fromkeys(body.chunks, key)
        while len(done) < wanted:
            for provider in order:
                if provider.up and provider.name not in done and len(done) < wanted:
                    self.world.put(provider, key, body)
                    done.add(provider.name)
                    yield f"put {key} at {provider.name}"
            if len(done) < wanted:
                yield "wait for a provider"
        return key

    def index(self, pack: str, chunks: Iterable[str]) -> Steps:
        yield from self.put(f"index/{self.world.new_id('i')}", Index(pack, frozenset(chunks), self.sid))

    def good_packs(self, view: View) -> dict[str, Index]:
        """Packs that "exists" may point to, by FORMAT.md: durable index, listed with its copies, not condemned."""
        rules, good = self.rules, dict[str, Index]()
        for key, index in view.standing("index/").items():
            durable = self.durable(view.copies[key]) or not rules.exists_needs_durable_index
            seen = len(view.copies.get(index.pack, ())) >= COPIES or not rules.exists_needs_listing
            stands = f"tomb/{index.pack}" not in view.copies
            free = index.pack not in self.condemned or not rules.exists_excludes_condemned
            if durable and seen and stands and free:
                good[index.pack] = index
        return good

    def exists(self, chunk: str, view: View) -> str | None:
        return next((p for p, index in sorted(self.good_packs(view).items()) if chunk in index.chunks), None)


class Backup(Session):
    """Packs, then index, then snapshot; a success is reported only by a session that nobody has fenced."""

    def __init__(self, world: World, chunks: Iterable[str], clock_skew: int = 0) -> None:
        super().__init__(world, clock_skew)
        self.chunks = frozenset(chunks)
        self.unindexed: list[tuple[str, list[str]]] = []

    def run(self) -> Steps:
        rules = self.rules
        if rules.session_object_first:
            yield from self.declare()
        facts = "gc/ fence/" if rules.fences_listed_after_rescues else "fence/ gc/"
        view = yield from self.look(f"snapshots/ index/ {facts} tomb/ packs/ adopt/")
        self.condemned = view.condemned(rules)
        if not rules.session_object_first:
            yield from self.declare()
        parent = yield from self.choose_parent(view)
        fresh = []
        for chunk in sorted(self.chunks):
            if not self.count_on(chunk, parent, view):
                fresh.append(chunk)
            if self.world.rng.random() < 0.3:
                yield from self.heartbeat()
        yield from self.store(fresh)
        yield from self.heartbeat()
        yield from self.commit()
        yield from self.end()

    def choose_parent(self, view: View) -> Steps:
        """The newest snapshot that is not void; named first, then looked at again."""
        parent = yield from self.name_one(view)
        return frozenset() if parent is None else view.body[parent].chunks

    def count_on(self, chunk: str, parent: frozenset[str], view: View) -> bool:
        """May this chunk be left out, because it is stored already?"""
        pack = self.exists(chunk, view)
        if pack is None and chunk in parent and not self.rules.inherited_lists_are_tested:
            pack = next((i.pack for i in view.standing("index/").values() if chunk in i.chunks), "unknown")
        if pack is not None:
            self.claims[chunk] = pack
        return pack is not None

    def store(self, fresh: list[str]) -> Steps:
        for start in range(0, len(fresh), 2):
            part = fresh[start : start + 2]
            pack = yield from self.place(part, COPIES if self.rules.packs_placed_before_index else 1)
            if self.rules.index_before_snapshot:
                yield from self.index(pack, part)
            else:
                self.unindexed.append((pack, part))

    def commit(self) -> Steps:
        """The snapshot is the commit point for readers; the fence check after it is the one for the user."""
        generation = self.world.faults
        yield "read config"
        if self.rules.generation_reread_before_commit and generation != self.generation:
            return  # copies this session made or counted on may be lost: the run fails and starts again
        key, snapshot = f"snapshots/{self.world.new_id('t')}", Snapshot(self.chunks, self.sid)
        self.world.born[key], self.world.written[key] = generation, snapshot
        yield from self.put(key, snapshot)
        fences = yield from self.look("fence/")
        if self.rules.fence_check_before_report and fences.fenced(self.sid):
            return
        self.world.reported[key] = snapshot
        yield f"report {key}"
        for pack, part in self.unindexed:
            yield from self.index(pack, part)


class Restore(Session):
    """A reader: names the snapshot, looks again whether it stands, reads for a while with heartbeats."""

    def run(self) -> Steps:
        if self.rules.session_object_first:
            yield from self.declare()
        view = yield from self.look("snapshots/ tomb/ fence/ adopt/")
        key = yield from self.name_one(view)
        if key is not None:
            self.world.reading[self.sid] = key
            for _ in range(3):
                yield from self.heartbeat()
            self.world.reading.pop(self.sid, None)
        yield from self.end()


class Forget(Session):
    """Tombstone, then delete; an object that a live session reads is left for a later gc to delete."""

    def __init__(self, world: World, snapshot: str) -> None:
        super().__init__(world)
        self.snapshot = snapshot

    def run(self) -> Steps:
        view = yield from self.look("snapshots/ tomb/")
        if self.snapshot not in view.standing("snapshots/"):
            return
        self.world.forgotten.add(self.snapshot)
        if self.rules.tombstone_before_delete:
            yield from self.put(f"tomb/{self.snapshot}", view.body[self.snapshot].sid)
        view = yield from self.look("sessions/ fence/")
        read = {key for beat in view.heartbeats().values() for key in beat.reads}
        if not self.rules.forget_spares_what_is_read or self.snapshot not in read:
            yield from self.delete(self.snapshot)
        self.world.gone.add(self.snapshot)


class Collect(Session):
    """gc: condemn, wait for time and for evidence, mark afresh, rewrite what lives, sweep."""

    is_gc = True

    def __init__(self, world: World, clock_skew: int = 0) -> None:
        super().__init__(world, clock_skew)
        self.known: set[str] = set()  # sessions listed too early, where the order of condemning is wrong
        self.early = View()  # snapshots listed too early, where nothing is listed again

    def run(self) -> Steps:
        yield from self.declare()
        view = yield from self.survey()
        if not (yield from self.alone(view)):
            yield from self.end()
            return
        condemn = Condemn(self.world.new_id("c"), frozenset(self.victims(view)))
        if not self.rules.condemn_before_listing_sessions:
            self.known = set(view.heartbeats())
        yield from self.put(f"gc/condemn-{condemn.id}", condemn)
        swept = set[str]()
        if (yield from self.evidence(condemn)):
            swept = yield from self.sweep(condemn, view)
        yield from self.put(f"gc/swept-{condemn.id}", Swept(condemn.id, condemn.packs - swept))
        yield from self.end()

    def survey(self) -> Steps:
        """One mark's worth of lists. Sessions before snapshots: one that ends has put its snapshot. Sessions again
        after tombstones: a reader that found no tombstone had named its snapshot before."""
        order = "sessions/ fence/ snapshots/ adopt/ gc/ index/ tomb/ packs/"
        last = " sessions/" if self.rules.mark_lists_sessions_last else ""
        return (yield from self.look(order + last, all_answer=True))

    def alone(self, view: View) -> Steps:
        """Fence silent gcs; withdraw if a live one has a lower id."""
        for beat in view.heartbeats().values():
            if beat.is_gc and beat.sid != self.sid and self.rules.one_gc_withdraws:
                if self.age(view, f"sessions/{beat.sid}/{beat.n}") > SILENCE:
                    yield from self.put(f"fence/{beat.sid}", beat.sid)
                elif beat.sid < self.sid:
                    return False
        return True

    def age(self, view: View, key: str) -> int:
        """By the provider's clock: against this session's own newest object."""
        clock = view.modified.get(f"sessions/{self.sid}/{self.beats - 1}", 0)
        if not self.rules.grace_by_provider_clock:
            clock = self.world.now + self.skew
        return clock - view.modified.get(key, 0)

    def roots(self, view: View) -> set[str]:
        roots = {k for k in view.standing("snapshots/") if self.rules.void_is_still_a_root or not view.void(k)}
        if self.rules.reads_are_roots:
            roots |= self.read(view)
        return roots

    def read(self, view: View) -> set[str]:
        return {k for beat in view.heartbeats().values() for k in beat.reads if k in view.body}

    def live_chunks(self, view: View) -> set[str]:
        return {chunk for k in self.roots(view) for chunk in view.body[k].chunks}

    def lost(self, view: View) -> set[str]:
        """Packs that some gc, dead or alive, may delete."""
        return view.condemned(self.rules) if self.rules.gc_counts_on_no_condemned_pack else set()

    def victims(self, view: View) -> set[str]:
        """Packs that are unindexed, or hold something dead, or only what other kept packs hold too."""
        self.condemned = self.lost(view)
        alive, live, kept = set(view.heartbeats()), self.live_chunks(view), set[str]()
        packs, good, victims = sorted(view.standing("packs/").items()), self.good_packs(view), set[str]()
        self.world.rng.shuffle(packs)
        for key, pack in packs:
            if (self.rules.skip_packs_of_live_creators and pack.sid in alive) or (
                key in good and pack.chunks <= live and not pack.chunks <= kept
            ):
                kept |= pack.chunks
            else:
                victims.add(key)
        return victims

    def evidence(self, condemn: Condemn) -> Steps:
        """Wait until grace is over and every live session has acknowledged; fence the silent; False: gave up."""
        rules = self.rules
        for _ in range(8):
            self.early = yield from self.look("snapshots/ adopt/", all_answer=True)
            yield from self.declare()
            view = yield from self.look("sessions/ fence/ gc/", all_answer=True)
            if not (yield from self.alone(view)):
                return False
            beats = [b for b in view.heartbeats().values() if not b.is_gc and condemn.id not in b.acknowledged]
            if not rules.condemn_before_listing_sessions:
                beats = [b for b in beats if b.sid in self.known]
            silent = [b for b in beats if self.age(view, f"sessions/{b.sid}/{b.n}") > SILENCE]
            late = [b for b in beats if b not in silent and rules.acknowledge_gates_sweep]
            for beat in silent if rules.fence_silent_sessions else ():
                yield from self.put(f"fence/{beat.sid}", beat.sid)
            if not late and self.age(view, f"gc/condemn-{condemn.id}") > GRACE:
                return True
        return False

    def sweep(self, condemn: Condemn, old: View) -> Steps:
        view = (yield from self.survey()) if self.rules.fresh_mark_before_sweep else old
        if not self.rules.relist_after_fence:
            view.body = {k: b for k, b in view.body.items() if not k.startswith("snapshots/") or k in self.early.body}
        self.condemned = self.lost(view) | condemn.packs
        rescued = {r.pack for r in view.standing("gc/rescue").values() if r.condemn == condemn.id}
        doomed = (condemn.packs & set(view.body)) - rescued
        safe = yield from self.rewrite(view)
        yield from self.adopt(view, safe)
        for key, index in view.standing("index/").items():
            if index.pack in doomed:
                yield from self.bury(key, index.sid)
        for pack in sorted(doomed):
            yield from self.bury(pack, view.body[pack].sid)
        yield from self.tidy(view)
        return doomed

    def rewrite(self, view: View) -> Steps:
        """Give every live chunk without a good copy a new one; returns the chunks that are safe."""
        safe = {chunk for index in self.good_packs(view).values() for chunk in index.chunks}
        held = {c for i in view.standing("index/").values() if i.pack in view.standing("packs/") for c in i.chunks}
        homeless = sorted((self.live_chunks(view) & held) - safe)
        for start in range(0, len(homeless), 2):
            part = homeless[start : start + 2]
            pack = yield from self.place(part)
            yield from self.index(pack, part)
        return safe | set(homeless)

    def adopt(self, view: View, safe: set[str]) -> Steps:
        """A fenced session's snapshot whose every chunk stands is as good as any."""
        for key, snapshot in view.standing("snapshots/").items():
            if view.void(key) and (snapshot.chunks <= safe or not self.rules.adopt_only_what_stands):
                yield from self.put(f"adopt/{key}", key)

    def tidy(self, view: View) -> Steps:
        """Delete again what came back behind its tombstone; drop tombstones of what is listed nowhere.

        A writer that is alive, or was fenced and may yet wake, can still put the second copy of what was forgotten:
        its tombstone stays.
        """
        rules, read, alive = self.rules, self.read(view), set(view.heartbeats())
        for tomb, writer in [(k, b) for k, b in view.body.items() if k.startswith("tomb/")]:
            key = tomb.removeprefix("tomb/")
            listed = key in view.copies and rules.tombstone_kept_until_all_listed_without
            pending = (writer in alive or view.fenced(writer)) and rules.tombstone_outlives_writer
            if not listed and not pending and self.age(view, tomb) > SILENCE:
                yield from self.delete(tomb)
            elif key not in read:
                yield from self.delete(key)
