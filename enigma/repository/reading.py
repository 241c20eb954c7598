"""Reading chunks back: single ones for the catalog, many at once for restore and verify.

Many at once means by pack: what is wanted is grouped by the pack that holds it, sorted by offset, and joined into
ranges where the gap costs less than another request. A window of references is planned at a time, so the memory it
takes is bounded however large the restore.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, islice

from enigma.errors import ChunkMissing, EnigmaError, FormatUnsupported, ObjectCorrupt
from enigma.manifest import Location, Manifest
from enigma.model.ids import RepositoryId
from enigma.repository.placing import Placer
from enigma.repository.store import Keyring
from workers.errors import FormatNewer, SealBroken
from workers.messages import Target
from workers.opening import BlobOpener
from workers.owner import PackCheck, RangeRead, SealedPack
from workers.packs import BlobRecord
from workers.plan import READ_BLOBS, READ_RANGE_BYTES

GAP_BYTES = 256 << 10
PLAN_FIRST_REFERENCES = 512  # workers wait for the first plan, and meanwhile for every other: none takes long
PLAN_REFERENCES = 4096
MESSAGE_COST_BYTES = 40_000
CATALOG_CACHE_PACKS = 3

Unit = tuple[Location, BlobRecord, tuple[Target, ...]]
Wanted = tuple[bytes, int, Target | None]  # chunk id, plaintext length, where it goes (None: it is only checked)


class BlobReader:
    """Single chunks, checked; whole packs are kept for a while, since a catalog's blobs lie together."""

    def __init__(
        self,
        repository_id: RepositoryId,
        keyring: Keyring,
        manifest: Manifest,
        placer: Placer,
        max_chunk_bytes: int,
        look_again: Callable[[], object],
    ) -> None:
        self._keyring = keyring
        self._manifest = manifest
        self._placer = placer
        self._look_again = look_again
        self._data_keys: dict[bytes, bytes] = {}
        self._opener = BlobOpener(repository_id, self._data_keys, max_chunk_bytes)
        self._packs: OrderedDict[bytes, memoryview] = OrderedDict()

    def get(self, chunk_id: bytes, length_bytes: int) -> bytes:
        """The plaintext of one chunk. Raises ChunkMissing, ObjectCorrupt, or the provider's error."""
        failure: EnigmaError = ChunkMissing(f"Chunk {chunk_id.hex()[:16]} is in no pack; run `enigma verify`.")
        for location in self._locations(chunk_id):
            try:
                return self._open(chunk_id, location)
            except EnigmaError as exc:
                failure = exc
        raise failure

    def _locations(self, chunk_id: bytes) -> list[Location]:
        """Every copy; a chunk that nobody seems to have is looked for once more in a fresh view."""
        found = self._manifest.locations_of(chunk_id)
        if not found:
            self._look_again()
            found = self._manifest.locations_of(chunk_id)
        return list(found)

    def _open(self, chunk_id: bytes, at: Location) -> bytes:
        if at.key_id not in self._data_keys:
            self._data_keys[at.key_id] = self._keyring.data_key(at.key_id)
        pack = self._pack(at)
        try:
            sealed = pack[at.offset : at.offset + at.stored_bytes]
            return bytes(self._opener.open(at.pack_id, at.pack_set, at.key_id, record_of(chunk_id, at), sealed))
        except SealBroken as exc:
            self._packs.pop(at.pack_id, None)
            raise ObjectCorrupt(f"A blob of pack {at.pack_id.hex()} {exc}.") from exc
        except FormatNewer as exc:
            raise FormatUnsupported(f"A blob of pack {at.pack_id.hex()} {exc}.") from exc

    def _pack(self, at: Location) -> memoryview:
        pack = self._packs.pop(at.pack_id, None)
        if pack is None:
            row = self._manifest.pack(at.pack_id)
            pack = memoryview(bytearray(row.length_bytes if row else 0))
            self._placer.read(at.pack_id, at.pack_set, row.provider_ids if row else (), 0, pack)
        self._packs[at.pack_id] = pack
        if len(self._packs) > CATALOG_CACHE_PACKS:
            self._packs.popitem(last=False)
        return pack


class ReadingOwner:
    """The engine's owner while it only reads."""

    def __init__(self, fetch: Callable[[RangeRead | PackCheck, memoryview], None], tick: Callable[[], None]) -> None:
        self.fetch = fetch
        self.tick = tick

    def known(self, chunk_ids: list[bytes]) -> tuple[bytes, ...]:
        return ()

    def place(self, pack: SealedPack, content: memoryview) -> None:
        raise AssertionError("a reader stores nothing")

    def stored(self, pack: SealedPack) -> None:
        raise AssertionError("a reader stores nothing")


def record_of(chunk_id: bytes, at: Location) -> BlobRecord:
    """The table line of a located blob."""
    return BlobRecord(
        chunk_id,
        at.nonce,
        at.offset,
        at.stored_bytes,
        at.plain_bytes,
        at.hash_algorithm,
        at.encoding,
        at.dictionary,
        0,
    )


def plan_reads(
    wanted: Iterable[Wanted], manifest: Manifest, missing: Callable[[bytes, Target | None], None]
) -> Iterator[RangeRead]:
    """Ranges that bring every wanted chunk; `missing` is called for one that no pack holds."""
    source, references = iter(wanted), PLAN_FIRST_REFERENCES
    while window := list(islice(source, references)):
        references = min(2 * references, PLAN_REFERENCES)
        targets: dict[bytes, list[Target]] = {}
        for chunk_id, _, target in window:
            mine = targets.setdefault(chunk_id, [])
            if target is not None:
                mine.append(target)
        located = manifest.locate(list(targets))
        for chunk_id in targets.keys() - located.keys():
            lost: list[Target | None] = [*targets[chunk_id]] or [None]
            for target in lost:
                missing(chunk_id, target)
        places = sorted(located.items(), key=lambda item: (item[1].pack_id, item[1].offset))
        for pack_id, group in groupby(places, key=lambda item: item[1].pack_id):
            pack = manifest.pack(pack_id)
            units = (unit for chunk_id, at in group for unit in _units(chunk_id, at, targets[chunk_id]))
            yield from _ranges(units, pack.provider_ids if pack else ())


def _units(chunk_id: bytes, at: Location, targets: list[Target]) -> Iterator[Unit]:
    """A blob with as many of its targets as one message takes: a chunk of zeros may be wanted ten thousand times."""
    record = record_of(chunk_id, at)
    part: list[Target] = []
    cost_bytes = 0
    for target in targets:
        cost_bytes += _cost(target)
        if part and cost_bytes > MESSAGE_COST_BYTES // 2:
            yield at, record, tuple(part)
            part, cost_bytes = [], _cost(target)
        part.append(target)
    yield at, record, tuple(part)


def _ranges(units: Iterable[Unit], provider_ids: tuple[bytes, ...]) -> Iterator[RangeRead]:
    """Join neighbours of one pack, within the limits of a slot and of a message."""
    run: list[Unit] = []
    cost_bytes = 0
    for unit in units:
        cost = 130 + sum(map(_cost, unit[2]))
        if run and not _joins(run, unit[0], cost_bytes + cost):
            yield _range(run, provider_ids)
            run, cost_bytes = [], 0
        run.append(unit)
        cost_bytes += cost
    if run:
        yield _range(run, provider_ids)


def _joins(run: list[Unit], at: Location, cost_bytes: int) -> bool:
    end = run[-1][0].offset + run[-1][0].stored_bytes
    return (
        len(run) < READ_BLOBS
        and cost_bytes <= MESSAGE_COST_BYTES
        and at.offset - end <= GAP_BYTES
        and at.offset + at.stored_bytes - run[0][0].offset <= READ_RANGE_BYTES
    )


def _range(run: list[Unit], provider_ids: tuple[bytes, ...]) -> RangeRead:
    first, last = run[0][0], run[-1][0]
    return RangeRead(
        pack_id=first.pack_id,
        pack_set=first.pack_set,
        key_id=first.key_id,
        offset=first.offset,
        length_bytes=last.offset + last.stored_bytes - first.offset,
        blobs=tuple((record, targets) for _, record, targets in run),
        tag=provider_ids,
    )


def _cost(target: Target) -> int:
    xattrs = target.whole.xattrs if target.whole else ()
    return 60 + len(target.path) + sum(len(name) + len(value) + 12 for name, value in xattrs)
