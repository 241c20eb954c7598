"""Every documented exit status, by the real program, with one clear sentence and never a traceback."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.program import PASSPHRASE, Done, Program, Tree, finish, poll

WRONG = "this is not the passphrase at all 99"
AS_ROOT = os.geteuid() == 0


def can_mount() -> bool:
    """Whether this process may mount, in a namespace of its own."""
    if not AS_ROOT or not shutil.which("unshare"):
        return False
    return subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0


needs_mount = pytest.mark.skipif(not can_mount(), reason="needs root and the right to mount")
needs_setpriv = pytest.mark.skipif(
    AS_ROOT and not shutil.which("setpriv"), reason="root reads everything, and there is no setpriv to give that up"
)
# Root without the right to pass over file modes is refused like anybody else.
PLAIN_USER = ("setpriv", "--bounding-set=-dac_override,-dac_read_search") if AS_ROOT else ()


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path / "home").init()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "one").write_text("the first file")
    (folder / "two").write_bytes(random.Random(7).randbytes(300_000))
    return folder


def packs(program: Program) -> list[Path]:
    return sorted(path for path in (program.store / "packs" / "backup").rglob("*") if path.is_file())


# ---- 0


def test_done_is_0_with_a_quiet_stderr(program, data, tmp_path) -> None:
    for args in (
        ("--help",),
        ("--version",),
        ("backup", "--help"),
        ("backup", data),
        ("list",),
        ("ls", "latest"),
        ("find", "one"),
        ("status",),
        ("config",),
        ("key", "list"),
        ("verify", "--read-data"),
        ("restore", "latest", tmp_path / "restored"),
    ):
        assert program.run(*args).expect(0).stderr == "", args


def test_provider_added_to_a_healthy_repository_leaves_it_healthy(program, data, tmp_path) -> None:
    program.backup(data)
    (tmp_path / "second").mkdir()
    with (program.config / "enigma.toml").open("a") as toml:
        toml.write(f'\n[[providers]]\nname = "second"\ntype = "Local"\nbucket = "{tmp_path}/second"\n')
    program.backup(data)
    program.verify()


# ---- 1


def test_damaged_pack_is_1_and_named(program, data) -> None:
    program.backup(data)
    pack = packs(program)[0]
    content = bytearray(pack.read_bytes())
    content[len(content) // 2] ^= 1
    pack.write_bytes(content)
    done = program.run("verify", "--read-data").expect(1)
    assert pack.name in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_lost_pack_is_1_and_named(program, data) -> None:
    program.backup(data)
    packs(program)[0].unlink()
    done = program.run("verify").expect(1)
    assert "problem" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_missing_source_is_1_and_named(program, tmp_path) -> None:
    assert str(tmp_path / "nowhere") in program.run("backup", tmp_path / "nowhere").expect(1).sentence()


@pytest.mark.parametrize("command", [("ls",), ("verify",), ("diff", "latest"), ("restore", "--list")], ids=" ".join)
def test_unknown_snapshot_is_1_and_named(program, data, command) -> None:
    program.backup(data)
    assert "ffffffff" in program.run(*command, "ffffffff").expect(1).sentence()


def test_init_over_a_repository_is_1_and_harms_nothing(program, data) -> None:
    program.backup(data)
    assert str(program.config) in program.run("init").expect(1).sentence()
    other = Program(program.home.parent / "other")
    other.config.mkdir()
    shutil.copy(program.config / "enigma.toml", other.config)
    assert "not empty" in other.run("init").expect(1).sentence()
    program.verify()


def test_unusable_restore_target_is_1_and_named(program, data, tmp_path) -> None:
    program.backup(data)
    (tmp_path / "file").write_text("in the way")
    assert str(tmp_path / "file") in program.run("restore", "latest", tmp_path / "file").expect(1).sentence()
    assert (tmp_path / "file").read_text() == "in the way"


# ---- 2


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "command"),
        (("bakcup",), "`backup`"),
        (("backup",), ""),
        (("backup", "--exclud-file", "x", "/tmp"), "--exclude-file"),
        (("backup", "--exclude-larger-than", "many", "/tmp"), "many"),
        (("backup", "-", "/tmp"), "-"),
        (("backup", "--exclude-file", "/nowhere/at/all", "/tmp"), "/nowhere/at/all"),
        (("restore", "latest"), "target"),
        (("restore", "--overwrite", "perhaps", "latest", "/tmp/x"), "if-newer"),
        (("verify", "--read-data-subset", "3/2"), "3/2"),
        (("verify", "--read-data", "--read-data-subset", "1/2"), "not both"),
        (("key", "turn"), ""),
        (("--passphrase", "a", "--passphrase-file", "b", "list"), "only one"),
    ],
)
def test_wrong_command_line_is_2(program, args, said) -> None:
    assert said in program.run(*args).expect(2).sentence()


def test_closed_standard_input_is_2(program) -> None:
    assert "closed" in program.run("backup", "-", prefix=("sh", "-c", 'exec "$@" <&-', "sh")).expect(2).sentence()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('\n[enigma]\ndistributon = "Mirror"\n', ("enigma.toml:3", "distributon", "distribution")),
        ("[enigma]\nworkers = 0\n", ("enigma.toml:2", "workers")),
        ('[enigma]\nworkers = "two"\n', ("enigma.toml:2", "workers")),
        ('[[providers]]\nname = "a"\ntype = "Lokal"\nbucket = "/x"\n', ("enigma.toml:3", "type", "Local")),
        ('[[providers]]\nnam = "a"\n', ("enigma.toml:2", "nam", "name")),
        ("[enigma\n", ("enigma.toml:1",)),
        ('[enigma]\nhost = "\udcff"\n', ("enigma.toml:2", "UTF-8")),
    ],
)
def test_wrong_configuration_is_2_with_key_line_and_nearest(program, data, text, said) -> None:
    (program.config / "enigma.toml").write_bytes(text.encode("utf-8", "surrogateescape"))
    sentence = program.run("backup", data).expect(2).sentence()
    assert [word for word in said if word not in sentence] == []


def test_weak_passphrase_is_2_and_leaves_nothing_in_the_way(tmp_path) -> None:
    program = Program(tmp_path / "home", passphrase="abc")
    assert "passphrase" in program.run("init").expect(2).sentence()
    program.passphrase = PASSPHRASE
    program.init().verify()


# ---- 3


@needs_setpriv
def test_unreadable_file_is_3_and_the_rest_is_stored(program, data, tmp_path) -> None:
    (data / "closed").write_text("nobody may read this")
    (data / "closed").chmod(0)
    (data / "closed folder").mkdir(mode=0)
    program.prefix = PLAIN_USER
    done = program.run("backup", data).expect(3)
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert [name for name in ("closed", "closed folder") if f"{data / name}: " not in "\n".join(warnings)] == []
    assert len(warnings) == 2 and "Traceback" not in done.stderr
    program.run("restore", "latest", tmp_path / "restored").expect(0)
    assert (tmp_path / "restored" / "two").read_bytes() == (data / "two").read_bytes()
    program.verify()
    (data / "closed").chmod(0o600)
    (data / "closed folder").chmod(0o700)
    program.backup(data)
    program.restores("latest", data, tmp_path / "again")


@needs_setpriv
def test_unreadable_source_is_1(program, data) -> None:
    data.chmod(0)
    try:
        assert str(data) in program.run("backup", data, prefix=PLAIN_USER).expect(1).sentence()
    finally:
        data.chmod(0o700)


def test_file_that_changes_while_it_is_read_is_3_and_restorable(program, tmp_path) -> None:
    folder = tmp_path / "busy"
    folder.mkdir()
    log = folder / "log"
    log.write_bytes(random.Random(3).randbytes(8 << 20) * 16)
    with subprocess.Popen(["sh", "-c", f'while :; do echo more >> "{log}"; done']) as writer:
        try:
            assert poll(lambda: log.stat().st_size > 128 << 20, within_s=20.0)
            done = program.run("backup", folder)
        finally:
            writer.kill()
    done.expect(3)
    assert f"{log}: changed while it was read" in done.stderr
    program.verify()
    program.run("restore", "latest", tmp_path / "restored").expect(0)


# ---- 10


@pytest.mark.parametrize("args", [("backup", "/tmp"), ("list",), ("verify",), ("restore", "latest", "x")], ids=" ".join)
def test_no_configuration_is_10_and_says_how_to_begin(tmp_path, args) -> None:
    program = Program(tmp_path / "home")
    assert "enigma init" in program.run(*args).expect(10).sentence()
    assert list(program.home.iterdir()) == []


def test_configuration_without_repository_is_10(program, data, tmp_path) -> None:
    other = Program(tmp_path / "other")
    other.config.mkdir()
    (other.config / "enigma.toml").write_text("")
    assert "enigma init" in other.run("backup", data).expect(10).sentence()
    (other.config / "store").mkdir(exist_ok=True)
    other.run("recover").expect(10).sentence()


def test_emptied_provider_is_10_and_is_not_filled_anew(program, data) -> None:
    program.backup(data)
    shutil.rmtree(program.store)
    program.store.mkdir()
    assert str(program.store) in program.run("backup", data).expect(10).sentence()
    assert [path for path in program.store.rglob("*") if path.is_file()] == []


def test_missing_provider_folder_is_1_and_is_not_made_anew(program, data) -> None:
    """A disk that is not mounted is not an empty repository."""
    program.backup(data)
    program.store.rename(program.store.with_name("away"))
    assert str(program.store) in program.run("backup", data).expect(1).sentence()
    assert not program.store.exists()
    program.store.with_name("away").rename(program.store)
    program.backup(data)
    program.verify()


# ---- 11


@contextmanager
def busy(program: Program) -> Iterator[subprocess.Popen[str]]:
    """A backup of what its standard input brings, under way until the block ends; it then has to succeed."""
    process = program.start("backup", "-", stdin=subprocess.PIPE)
    started_s = time.monotonic()
    lock = program.config / "enigma.lock"
    assert poll(lambda: lock.read_text() == str(process.pid), within_s=20.0)
    try:
        yield process
    finally:
        finish(process, ("backup", "-"), started_s=started_s, feed="the end").expect(0)


def test_second_run_on_a_configuration_is_11_and_names_the_first(program, data) -> None:
    with busy(program) as process:
        for args in (("backup", data), ("verify",), ("key", "rotate"), ("recover",)):
            done = program.run(*args).expect(11)
            assert str(process.pid) in done.sentence()
            assert done.duration_s < 5
        program.run("list").expect(0)
    program.backup(data)
    program.verify()


def test_lock_of_a_killed_run_holds_nobody_up(program, data) -> None:
    process = program.start("backup", "-", stdin=subprocess.PIPE)
    lock = program.config / "enigma.lock"
    assert poll(lambda: lock.read_text() == str(process.pid), within_s=20.0)
    process.kill()
    finish(process, ("backup",), started_s=0.0)
    program.backup(data)


# ---- 12


@pytest.mark.parametrize("way", ["option", "file", "file with line end", "command", "environment"])
def test_wrong_passphrase_is_12_by_every_way_of_giving_it(program, tmp_path, way) -> None:
    file = tmp_path / "wrong"
    file.write_text(WRONG + ("\n" if "line end" in way else ""))
    options = {
        "option": ("--passphrase", WRONG),
        "file": ("--passphrase-file", file),
        "file with line end": ("--passphrase-file", file),
        "command": ("--passphrase-command", f"cat {file}"),
        "environment": (),
    }[way]
    program.passphrase = WRONG if way == "environment" else None
    sentence = program.run("verify", *options).expect(12).sentence()
    assert "passphrase" in sentence and WRONG not in sentence
    file.write_text(file.read_text().replace(WRONG, PASSPHRASE))
    program.passphrase = PASSPHRASE if way == "environment" else None
    program.verify(*(str(PASSPHRASE if word == WRONG else word) for word in options))


@pytest.mark.parametrize("command", [("backup", "/etc/hostname"), ("key", "rotate"), ("recover",)], ids=" ".join)
def test_wrong_passphrase_changes_nothing(program, command) -> None:
    before = {path: path.read_bytes() for path in program.store.rglob("*") if path.is_file()}
    Program(program.home, passphrase=WRONG).run(*command).expect(12).sentence()
    assert {path: path.read_bytes() for path in program.store.rglob("*") if path.is_file()} == before
    program.verify()


def test_no_passphrase_and_no_terminal_is_2_and_names_the_ways(program) -> None:
    program.passphrase = None
    sentence = program.run("verify").expect(2).sentence()
    assert "--passphrase-file" in sentence and "ENIGMA_PASSPHRASE" in sentence


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--passphrase-file", "/nowhere/at/all"), "/nowhere/at/all"),
        (("--passphrase-command", "false"), "exit status 1"),
        (("--passphrase-command", "no-such-program-anywhere"), "command"),
        (("--passphrase-file", "/dev/null"), "empty"),
        (("--passphrase-file", "/dev/zero"), "longer"),
        (("--passphrase", ""), "empty"),
    ],
)
def test_passphrase_that_can_not_be_had_is_2(program, options, said) -> None:
    program.passphrase = None
    assert said in program.run("verify", *options).expect(2).sentence()


# ---- 130


def test_interrupt_while_input_is_awaited_is_130(program, data) -> None:
    process = program.start("backup", "-", stdin=subprocess.PIPE)
    started_s = time.monotonic()
    lock = program.config / "enigma.lock"
    assert poll(lambda: lock.read_text() == str(process.pid), within_s=20.0)
    process.send_signal(signal.SIGINT)
    assert poll(lambda: process.poll() is not None, within_s=10.0)
    done = finish(process, ("backup", "-"), started_s=started_s)
    done.expect(130).sentence()
    assert program.processes() == []
    program.backup(data)


# ---- read-only and full


def read_only(folder: Path) -> tuple[str, ...]:
    """Words before a command that see this folder read-only; nobody else does, and nothing has to be undone."""
    script = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"'
    return ("unshare", "-m", "sh", "-c", script, "sh", str(folder))


@needs_mount
@pytest.mark.parametrize("what", ["store", "config"])
def test_read_only_folder_is_1_and_harms_nothing(program, data, tmp_path, what) -> None:
    program.backup(data)
    if what == "config":  # the provider is elsewhere and may be written
        program = beside(program, tmp_path / "apart")
    folder = program.config if what == "config" else program.store
    (data / "three").write_text("a third file")
    sentence = program.run("backup", data, prefix=read_only(folder)).expect(1).sentence()
    assert str(folder) in sentence
    program.verify()
    program.backup(data)
    program.restores("latest", data, tmp_path / "restored")


@needs_setpriv
@pytest.mark.parametrize("what", ["store", "config"])
def test_folder_of_somebody_else_is_1_and_harms_nothing(program, data, tmp_path, what) -> None:
    program.backup(data)
    if what == "config":
        program = beside(program, tmp_path / "apart")
    folder = program.config if what == "config" else program.store
    (data / "three").write_text("a third file")
    closed = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for path in closed:
        path.chmod(0o500)
    for path in folder.glob("enigma.*"):
        path.chmod(0o400)
    sentence = program.run("backup", data, prefix=PLAIN_USER).expect(1).sentence()
    assert str(folder) in sentence
    for path in closed:
        path.chmod(0o700)
    for path in folder.glob("enigma.*"):
        path.chmod(0o600)
    program.verify()
    program.backup(data)
    program.restores("latest", data, tmp_path / "restored")


def beside(program: Program, home: Path) -> Program:
    """A second machine at the same provider, made by recover."""
    other = Program(home)
    other.config.mkdir(parents=True)
    (other.config / "enigma.toml").write_text(
        f'[[providers]]\nname = "local"\ntype = "Local"\nbucket = "{program.store}"\n'
    )
    other.run("recover").expect(0)
    return other


@contextmanager
def small_disk(folder: Path, *, size: str) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def assert_told_of_full_disk(done: Done) -> None:
    sentence = done.expect(1).sentence()
    assert "space" in sentence or "full" in sentence


@needs_mount
@pytest.mark.parametrize("already_used", [True, False])
def test_full_provider_is_1_and_harms_nothing(tmp_path, data, already_used) -> None:
    program = Program(tmp_path / "home")
    with small_disk(program.store, size="2m"):
        program.init()
        if already_used:
            program.backup(data)
        (data / "large").write_bytes(random.Random(1).randbytes(4 << 20))
        for _ in range(3):  # each attempt meets what the one before left
            assert_told_of_full_disk(program.run("backup", data))
        program.verify()
        subprocess.run(["mount", "-o", "remount,size=32m", program.store], check=True)
        program.backup(data)
        program.verify("--read-data")
        program.restores("latest", data, tmp_path / "restored")


@needs_mount
def test_full_configuration_folder_is_1_and_harms_nothing(program, data, tmp_path) -> None:
    program.backup(data)
    home = tmp_path / "apart"
    with small_disk(home, size="2m"):
        other = beside(program, home)
        tree = Tree(tmp_path / "many", 5, small_files=3000, large_bytes=0)
        filler = home / "filler"
        with filler.open("wb") as file:
            shrink(file, leave_bytes=40_000)
        assert_told_of_full_disk(other.run("backup", tree.root))
        filler.unlink()
        subprocess.run(["mount", "-o", "remount,size=64m", home], check=True)
        other.backup(tree.root)
        other.verify()
        other.restores("latest", tree.root, tmp_path / "restored")
    program.verify()


@needs_mount
def test_full_configuration_folder_does_not_lose_the_keystore(program, data, tmp_path) -> None:
    program.backup(data)
    home = tmp_path / "apart"
    (tmp_path / "new").write_text(PASSPHRASE + " and more\n")
    with small_disk(home, size="2m"):
        other = beside(program, home)
        with (home / "filler").open("wb") as file:
            shrink(file, leave_bytes=4096)
        for args in (("key", "rotate"), ("key", "passphrase", "--new-passphrase-file", tmp_path / "new")):
            assert_told_of_full_disk(other.run(*args))
        (home / "filler").unlink()
        other.verify()
        other.run("key", "rotate").expect(0)
        other.backup(data)
        other.verify("--read-data")
    program.verify("--read-data")


@needs_mount
def test_full_disk_during_init_and_recover_says_so_and_they_run_again(program, data, tmp_path) -> None:
    program.backup(data)
    home = tmp_path / "apart"
    with small_disk(home, size="128k"):
        new = Program(home)
        with (home / "filler").open("wb") as file:
            shrink(file, leave_bytes=16_384)
        assert_told_of_full_disk(new.run("init"))
        subprocess.run(["mount", "-o", "remount,size=16m", home], check=True)
        shutil.rmtree(new.config)
        (home / "filler").unlink()
        new.init().backup(data)


def shrink(file, *, leave_bytes: int) -> None:
    """Fill the disk but for so much."""
    free = os.statvfs(file.fileno())
    file.write(bytes(max(0, free.f_bavail * free.f_frsize - leave_bytes)))
    file.flush()


def test_full_restore_target_is_1_and_says_so(program, data, tmp_path) -> None:
    if not can_mount():
        pytest.skip("needs root and the right to mount")
    (data / "large").write_bytes(random.Random(1).randbytes(4 << 20))
    program.backup(data)
    with small_disk(tmp_path / "target", size="1m"):
        done = program.run("restore", "latest", tmp_path / "target").expect(1)
        assert "space" in done.stderr.lower() and "Traceback" not in done.stderr
        assert "Unexpected" not in done.stderr, done.told()
        subprocess.run(["mount", "-o", "remount,size=16m", tmp_path / "target"], check=True)
        program.restores("latest", data, tmp_path / "target")


# ---- two machines


def test_two_machines_at_once_both_end_as_restorable_snapshots(program, tmp_path) -> None:
    """Each with data of its own, and with the same new data in both."""
    one, two = Tree(tmp_path / "one", 1, large_bytes=36 << 20), Tree(tmp_path / "two", 2, large_bytes=4 << 20)
    program.backup(one.root)
    other = beside(program, tmp_path / "home-two")
    for number in range(3):
        common = random.Random(number).randbytes(6 << 20)
        for tree in (one, two):
            tree.change()
            (tree.root / f"common-{number}").write_bytes(common)
        pairs = ((program, one), (other, two))
        runs = [machine.start("--json", "backup", tree.root) for machine, tree in pairs]
        ended = [finish(run, ("backup",), started_s=time.monotonic()).expect(0) for run in runs]
        ids = [done.records()[0]["snapshot"]["id"] for done in ended]
        for machine, snapshot, tree in ((other, ids[0], one), (program, ids[1], two)):  # each restores the other's
            machine.verify()
            machine.restores(snapshot, tree.root, tmp_path / f"restored-{number}-{snapshot[:8]}")
            shutil.rmtree(tmp_path / f"restored-{number}-{snapshot[:8]}")
    third = beside(program, tmp_path / "home-three")
    third.verify("--read-data")
    assert len(third.snapshots()) == 7
