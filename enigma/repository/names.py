"""Keys of stored objects. FORMAT.md, "Names". They reveal kinds and numbers of objects, nothing else."""

from __future__ import annotations

import re

from enigma.errors import ObjectCorrupt
from enigma.model.ids import ObjectId
from workers.objects import ObjectType, PackSet

MARKER = "marker"
CONFIGS = "config/"
KEYS = "keys/"
PACKS = "packs/"
INDEXES = "index/"
SNAPSHOTS = "snapshots/"
SESSIONS = "sessions/"
GC = "gc/"
FENCES = "fence/"
TOMBS = "tomb/"

TYPES = {
    MARKER: ObjectType.MARKER,
    CONFIGS: ObjectType.CONFIG,
    "keys/slot-": ObjectType.SLOT,
    "keys/data-": ObjectType.DATA_KEY,
    PACKS: ObjectType.PACK,
    INDEXES: ObjectType.INDEX,
    SNAPSHOTS: ObjectType.SNAPSHOT,
    SESSIONS: ObjectType.SESSION,
    "gc/condemn-": ObjectType.CONDEMN,
    "gc/rescue-": ObjectType.RESCUE,
    "gc/swept-": ObjectType.SWEPT,
    FENCES: ObjectType.FENCE,
    TOMBS: ObjectType.TOMB,
}


def set_name(pack_set: int) -> str:
    return PackSet(pack_set).name.lower()


_OURS = re.compile(
    r"marker|config/\d{8}-ID|keys/(slot|data)-ID|packs/(backup|catalog|gateway)/[0-9a-f]{2}/ID(\.\d+)?"
    r"|index/(backup|catalog|gateway)/ID|snapshots/ID|sessions/ID-\d{6}-ID|gc/(condemn|rescue|swept)-ID|fence/ID-ID"
    r"|tomb/ID".replace("ID", "[0-9a-f]{32}")
)


def is_ours(key: str) -> bool:
    """Whether Enigma gives such names; whatever else lies at a provider is left alone."""
    return _OURS.fullmatch(key) is not None


def config_key(generation: int, object_id: bytes) -> str:
    return f"{CONFIGS}{generation:08d}-{object_id.hex()}"


def pack_key(pack_set: int, pack_id: bytes) -> str:
    digits = pack_id.hex()
    return f"{PACKS}{set_name(pack_set)}/{digits[:2]}/{digits}"


def packs_prefix(pack_set: int) -> str:
    return f"{PACKS}{set_name(pack_set)}/"


def index_key(pack_set: int, index_id: bytes) -> str:
    return f"{INDEXES}{set_name(pack_set)}/{index_id.hex()}"


def indexes_prefix(pack_set: int) -> str:
    return f"{INDEXES}{set_name(pack_set)}/"


def snapshot_key(object_id: bytes) -> str:
    return f"{SNAPSHOTS}{object_id.hex()}"


def session_prefix(session_id: bytes) -> str:
    return f"{SESSIONS}{session_id.hex()}-"


def session_key(session_id: bytes, sequence: int, object_id: bytes) -> str:
    return f"{session_prefix(session_id)}{sequence:06d}-{object_id.hex()}"


def gc_key(fact: ObjectType, object_id: bytes) -> str:
    return f"{GC}{fact.name.lower()}-{object_id.hex()}"


def fence_key(session_id: bytes, object_id: bytes) -> str:
    return f"{FENCES}{session_id.hex()}-{object_id.hex()}"


def tomb_key(object_id: bytes) -> str:
    return f"{TOMBS}{object_id.hex()}"


def object_id_of(key: str) -> ObjectId:
    """The id that ends every name. Raises ObjectCorrupt for a name Enigma never made."""
    try:
        return ObjectId.from_hex(key[-32:])
    except ValueError as exc:
        raise ObjectCorrupt(f"Object {key} has a name that Enigma never gives; move it away.") from exc


def type_of(key: str) -> ObjectType:
    """The object type that a name promises. Raises ObjectCorrupt for a foreign name."""
    for prefix, kind in TYPES.items():
        if key.startswith(prefix):
            return kind
    raise ObjectCorrupt(f"Object {key} has a name that Enigma never gives; move it away.")


def generation_of(key: str) -> int:
    """Of a config's key. Raises ObjectCorrupt for a name Enigma never made."""
    try:
        return int(key[len(CONFIGS) :].split("-", maxsplit=1)[0])
    except ValueError as exc:
        raise ObjectCorrupt(f"Object {key} has a name that Enigma never gives; move it away.") from exc
