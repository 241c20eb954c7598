"""The local keystore: who opens it, what survives, what is refused."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enigma.errors import FormatUnsupported, KeyMissing, KeyringError, WeakPassphrase, WrongPassphrase
from enigma.keys.kdf import KdfParams
from enigma.keys.local import DATA_PREFIX, SLOT_PREFIX, LocalKeystore
from enigma.keys.slots import KIND_HYBRID, SlotBody, _stored, open_data_key, open_slot, read_slot
from enigma.model.ids import KeyId, RepositoryId
from workers.objects import Header, ObjectType

FAST = KdfParams(memory_kib=8192, passes=1, lanes=1)
GOOD = b"my-secret"
ID = RepositoryId(bytes(range(16)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.enc"


def create(path: Path, **options: object) -> LocalKeystore:
    return LocalKeystore.create(path, repository_id=ID, passphrase=GOOD, kdf=FAST, **options)


def test_what_was_created_opens_with_the_same_keys(path: Path) -> None:
    with create(path) as made:
        key_id, key = made.current, made.data_key(made.current)
    with LocalKeystore.open(path, passphrase=GOOD) as opened:
        assert (opened.repository_id, opened.current, opened.data_key(key_id)) == (ID, key_id, key)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_wrong_passphrase_opens_nothing(path: Path) -> None:
    objects = create(path).objects()
    with pytest.raises(WrongPassphrase):
        LocalKeystore.open(path, passphrase=b"not my secret")
    with pytest.raises(WrongPassphrase):
        LocalKeystore.recover(path.with_name("again"), objects, passphrase=b"not my secret")


def test_a_missing_keystore_is_said(path: Path) -> None:
    with pytest.raises(KeyringError, match="recover"):
        LocalKeystore.open(path, passphrase=GOOD)


def test_a_keystore_is_never_overwritten_by_a_new_one(path: Path) -> None:
    create(path)
    with pytest.raises(KeyringError, match="already"):
        create(path)


def test_the_stored_objects_alone_bring_everything_back(path: Path) -> None:
    with create(path) as made:
        made.rotate()
        objects = made.objects()
        keys = {key_id: made.data_key(key_id) for key_id in made.key_ids()}
        current = made.current
    again = path.with_name("again")
    with LocalKeystore.recover(again, objects, passphrase=GOOD) as back:
        assert {key_id: back.data_key(key_id) for key_id in back.key_ids()} == keys
        assert back.current == current
        assert back.objects() == objects
    assert LocalKeystore.open(again, passphrase=GOOD).current == current


def test_recovery_passes_over_damaged_copies(path: Path) -> None:
    with create(path) as made:
        made.rotate()
        objects = made.objects()
        first, second = made.key_ids()
    damaged = bytearray(objects[f"{DATA_PREFIX}{first}"])
    damaged[100] ^= 1
    objects[f"{DATA_PREFIX}{first}"] = bytes(damaged)
    objects[SLOT_PREFIX + "0" * 32] = b"garbage"
    back = LocalKeystore.recover(path.with_name("again"), objects, passphrase=GOOD)
    assert back.key_ids() == (second,)


def test_rotation_keeps_every_old_key(path: Path) -> None:
    with create(path) as made:
        old = {made.current: made.data_key(made.current)}
        for _ in range(3):
            key_id = made.rotate()
            old[key_id] = made.data_key(key_id)
        assert made.current == key_id
    with LocalKeystore.open(path, passphrase=GOOD) as opened:
        assert {key_id: opened.data_key(key_id) for key_id in opened.key_ids()} == old
        assert [info.is_current for info in opened.info()].count(True) == 1
        with pytest.raises(KeyMissing):
            opened.data_key(b"x" * 16)


def test_keys_that_another_machine_made_are_taken_in(path: Path) -> None:
    with create(path) as here:
        there = LocalKeystore.recover(path.with_name("there"), here.objects(), passphrase=GOOD)
        new = there.rotate()
        here.add_objects(there.objects())
        assert here.data_key(new) == there.data_key(new)
        assert here.current != new
    assert LocalKeystore.open(path, passphrase=GOOD).data_key(new) == there.data_key(new)


def test_a_changed_passphrase_opens_the_same_keys_and_the_old_one_none(path: Path) -> None:
    with create(path) as made:
        before = made.objects()
        key = made.data_key(made.current)
        obsolete = made.change_passphrase(b"another secret", old=GOOD, kdf=FAST)
        after = made.objects()
    assert obsolete == tuple(before.keys() - after.keys())
    with LocalKeystore.open(path, passphrase=b"another secret") as opened:
        assert opened.data_key(opened.current) == key
    with pytest.raises(WrongPassphrase):
        LocalKeystore.open(path, passphrase=GOOD)
    assert (
        LocalKeystore.recover(path.with_name("a"), after, passphrase=b"another secret").data_key(opened.current) == key
    )
    with pytest.raises(WrongPassphrase):
        LocalKeystore.recover(path.with_name("b"), after, passphrase=GOOD)


def test_the_passphrase_is_changed_only_by_who_knows_it(path: Path) -> None:
    with create(path) as made, pytest.raises(WrongPassphrase):
        made.change_passphrase(b"another secret", old=b"a guess at it", kdf=FAST)
    assert LocalKeystore.open(path, passphrase=GOOD)


def test_a_split_key_needs_both_factors(path: Path) -> None:
    second = path.with_name("usb.mlkem")
    with create(path, mlkem_key_path=second) as made:
        objects = made.objects()
        key = made.data_key(made.current)
        current = made.current
    assert stat.S_IMODE(second.stat().st_mode) == 0o600
    assert LocalKeystore.open(path, passphrase=GOOD, mlkem_key_path=second).data_key(current) == key
    with pytest.raises(KeyMissing, match="mlkem_key_path"):
        LocalKeystore.open(path, passphrase=GOOD)
    with pytest.raises(KeyMissing, match=str(second)):
        second.rename(second.with_suffix(".away"))
        LocalKeystore.open(path, passphrase=GOOD, mlkem_key_path=second)
    second.with_suffix(".away").rename(second)
    with pytest.raises(KeyringError):
        LocalKeystore.recover(path.with_name("b"), objects, passphrase=GOOD)
    back = LocalKeystore.recover(path.with_name("c"), objects, passphrase=GOOD, mlkem_key_path=second)
    assert back.data_key(current) == key
    with back:
        back.change_passphrase(b"another secret", old=GOOD, kdf=FAST)
    with pytest.raises(KeyMissing):
        LocalKeystore.open(path.with_name("c"), passphrase=b"another secret")
    assert LocalKeystore.open(path.with_name("c"), passphrase=b"another secret", mlkem_key_path=second)


def test_another_repositorys_key_file_does_not_open_this_one(path: Path, tmp_path: Path) -> None:
    create(path, mlkem_key_path=tmp_path / "mine")
    create(path.with_name("other"), mlkem_key_path=tmp_path / "theirs")
    with pytest.raises(KeyMissing, match="another"):
        LocalKeystore.open(path, passphrase=GOOD, mlkem_key_path=tmp_path / "theirs")


@pytest.mark.parametrize("weak", [b"short", b"aaaaaaaaaaaa", b"password1", b"12345678"])
def test_weak_passphrases_are_refused_unless_insisted_on(path: Path, weak: bytes) -> None:
    with pytest.raises(WeakPassphrase):
        LocalKeystore.create(path, repository_id=ID, passphrase=weak, kdf=FAST)
    LocalKeystore.create(path, repository_id=ID, passphrase=weak, kdf=FAST, allow_weak=True)


def test_an_empty_passphrase_is_never_allowed(path: Path) -> None:
    with pytest.raises(WeakPassphrase):
        LocalKeystore.create(path, repository_id=ID, passphrase=b"", kdf=FAST, allow_weak=True)


def test_the_older_file_stays_until_the_newer_one_was_read_back(path: Path) -> None:
    with create(path) as made:
        first = path.read_bytes()
        made.rotate()
    old = path.with_name("keys.enc.old")
    assert old.read_bytes() == first
    assert not path.with_name("keys.enc.new").exists()


def test_forged_costs_are_refused_before_they_cost_anything(path: Path) -> None:
    slot = next(data for key, data in create(path).objects().items() if key.startswith(SLOT_PREFIX))
    header, body = read_slot(slot)
    for change in ({"memory_kib": 1 << 30}, {"passes": 10_000}, {"lanes": 255}, {"memory_kib": 1}, {"passes": -1}):
        forged = _stored(header, msgspec.msgpack.encode(msgspec.structs.replace(body, **change)))
        with pytest.raises(KeyringError, match="out of bounds"):
            open_slot(forged, GOOD, None)


def test_a_newer_kind_of_slot_is_unsupported_and_not_corrupt(path: Path) -> None:
    slot = next(data for key, data in create(path).objects().items() if key.startswith(SLOT_PREFIX))
    header, body = read_slot(slot)
    newer = _stored(header, msgspec.msgpack.encode(msgspec.structs.replace(body, kind="write-only")))
    assert body.kind == KIND_HYBRID
    with pytest.raises(FormatUnsupported):
        open_slot(newer, GOOD, None)


def test_no_flipped_bit_of_the_file_goes_unnoticed(path: Path) -> None:
    create(path)
    data = path.read_bytes()
    for at in [*range(80), *range(80, len(data), 97), len(data) - 1]:
        changed = bytearray(data)
        changed[at] ^= 0x04
        path.write_bytes(changed)
        with pytest.raises((KeyringError, FormatUnsupported)):
            LocalKeystore.open(path, passphrase=GOOD)


def test_no_flipped_bit_of_a_stored_key_goes_unnoticed(path: Path) -> None:
    made = create(path)
    opened = open_slot(made._slot, GOOD, None)
    for key, data in made.objects().items():
        for at in [*range(0, 80, 3), *range(80, len(data), 61)]:
            changed = bytearray(data)
            changed[at] ^= 0x20
            with pytest.raises((KeyringError, FormatUnsupported)):
                if key.startswith(SLOT_PREFIX):
                    open_slot(bytes(changed), GOOD, None)
                else:
                    open_data_key(bytes(changed), opened.master_id, opened.master)


@given(st.binary(max_size=300))
@settings(max_examples=150)
def test_garbage_is_refused_in_our_own_words(garbage: bytes) -> None:
    slot_header = Header(ObjectType.SLOT, ID, bytes(16), bytes(16))
    for data in (garbage, _stored(slot_header, garbage)):
        with pytest.raises((KeyringError, FormatUnsupported)):
            read_slot(data)
        with pytest.raises((KeyringError, FormatUnsupported)):
            open_data_key(data, KeyId(bytes(16)), bytes(32))


def test_nothing_shows_a_secret(path: Path) -> None:
    with create(path) as made:
        key = made.data_key(made.current)
        shown = repr(made) + repr(made.info()) + repr(made._opened) + str(made.objects().keys())
        for secret in (key, made._opened.master, made._opened.file_key):
            assert repr(secret)[2:-1] not in shown
            assert secret.hex() not in shown
        stored = path.read_bytes() + b"".join(made.objects().values())
        assert key not in stored
        assert made._opened.master not in stored


def test_closing_wipes_what_it_can(path: Path) -> None:
    made = create(path)
    held = made._keys[made.current][0]
    made.close()
    assert held == bytes(32)


def test_the_keystore_is_json_inside(path: Path) -> None:
    """As documented: salt, nonce, AES-256-GCM of the JSON keystore, in a versioned envelope."""
    from enigma.keys.local import _unsealed

    made = create(path)
    content = _unsealed(path.read_bytes(), made._opened.file_key, path)
    assert json.loads(json.dumps(content)).keys() == {"repository", "slot", "data_keys", "current"}
    assert SlotBody.__struct_fields__[0] == "kind"


def test_a_provider_cannot_make_a_retired_key_current_by_its_date(path: Path) -> None:
    with create(path, now_ns=10) as made:
        retired = made.current
        newest = made.rotate(now_ns=20)
        objects = made.objects()
    name = f"{DATA_PREFIX}{retired}"
    from enigma.keys import slots

    header, raw = slots._read(objects[name], ObjectType.DATA_KEY)
    body = msgspec.structs.replace(slots._decode(raw, slots.DataKeyBody), created_ns=30)
    objects[name] = _stored(header, msgspec.msgpack.encode(body))
    assert LocalKeystore.recover(path.with_name("again"), objects, passphrase=GOOD).current == newest


def test_a_key_that_is_held_is_never_replaced_by_a_copy(path: Path) -> None:
    with create(path) as made:
        before = made.objects()
        other = dict.fromkeys(before, b"rot")
        made.add_objects(other)
        assert made.objects() == before


def test_another_repositorys_newer_slot_does_not_stop_a_recovery(path: Path) -> None:
    mine = create(path, now_ns=10)
    theirs = LocalKeystore.create(
        path.with_name("theirs"), repository_id=RepositoryId(b"t" * 16), passphrase=GOOD, kdf=FAST, now_ns=99
    )
    foreign = {name: data for name, data in theirs.objects().items() if name.startswith(SLOT_PREFIX)}
    back = LocalKeystore.recover(path.with_name("again"), mine.objects() | foreign, passphrase=GOOD)
    assert back.repository_id == ID


def test_keys_of_a_newer_version_are_kept_though_not_understood(path: Path) -> None:
    with create(path) as made:
        name = DATA_PREFIX + "ab" * 16
        data = bytearray(next(data for key, data in made.objects().items() if key.startswith(DATA_PREFIX)))
        data[8] = 2  # a format version to come
        made.add_objects({name: bytes(data)})
    with LocalKeystore.open(path, passphrase=GOOD) as opened:
        opened.rotate()
        assert opened.objects()[name] == bytes(data)


def test_a_write_that_fails_leaves_memory_as_the_file_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = create(path)
    before = (made.current, made.objects())

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(KeyringError, match="No space"):
        made.rotate()
    assert (made.current, made.objects()) == before


def test_a_file_system_without_hard_links_can_rotate(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = create(path)
    first = path.read_bytes()

    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("os.link", refuse)
    made.rotate()
    assert path.with_name("keys.enc.old").read_bytes() == first


def test_what_lies_at_the_temporary_name_has_no_part_in_the_keystore(path: Path) -> None:
    victim = path.with_name("victim")
    victim.write_bytes(b"mine")
    victim.chmod(0o644)
    path.with_name("keys.enc.new").symlink_to(victim)
    create(path)
    assert victim.read_bytes() == b"mine"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_closed_keystore_does_nothing_more(path: Path) -> None:
    made = create(path)
    made.close()
    assert made._opened.master == made._opened.mlkem_secret == b""
    with pytest.raises(KeyringError, match="closed"):
        made.rotate()
    with pytest.raises(KeyMissing):
        made.data_key(b"x")
