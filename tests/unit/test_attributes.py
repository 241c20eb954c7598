"""Attributes come back as they were, in an order that does not undo itself, and a refused one is only a warning."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trees import ACL_ACCESS, ACL_DEFAULT, acl, is_root, takes_acls, takes_xattrs
from workers.attributes import HOLES_LIMIT, Attributes, apply, apply_at, read_holes, read_xattrs, read_xattrs_at

UID, GID = os.getuid(), os.getgid()
needs_root = pytest.mark.skipif(not is_root(), reason="needs root")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    return path


@pytest.fixture
def fd(file: Path) -> Iterator[int]:
    descriptor = os.open(file, os.O_RDWR)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def folder_fd(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def _xattrs(tmp_path: Path) -> None:
    if not takes_xattrs(tmp_path):
        pytest.skip("no user attributes on this file system")


@pytest.fixture
def _acls(tmp_path: Path) -> None:
    if not takes_acls(tmp_path):
        pytest.skip("no ACLs on this file system")


def wanted(mode: int = 0o640, mtime_ns: int = 1_234_567_890_123_456_789, **changes: object) -> Attributes:
    return Attributes(mode, UID, GID, mtime_ns)._replace(**changes)


# ---- reading


@pytest.mark.usefixtures("_xattrs")
def test_xattrs_are_read_sorted_by_their_bytes(file: Path, fd: int) -> None:
    assert read_xattrs(fd) == ()
    for name, value in ((b"user.b", b"2"), (b"user.\xff", b"\0\xff"), (b"user.a", b"")):
        os.setxattr(file, name, value)
    expected = ((b"user.a", b""), (b"user.b", b"2"), (b"user.\xff", b"\0\xff"))
    assert read_xattrs(fd) == expected
    assert read_xattrs_at(os.fsencode(file)) == expected


@pytest.mark.usefixtures("_xattrs")
def test_xattrs_of_a_link_are_not_those_of_its_target(file: Path, tmp_path: Path) -> None:
    os.setxattr(file, "user.a", b"1")
    (tmp_path / "link").symlink_to(file)
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "dangling", "fifo"):
        assert read_xattrs_at(os.fsencode(tmp_path / name)) == ()


@pytest.mark.usefixtures("_acls")
def test_acls_are_among_the_xattrs(file: Path, fd: int) -> None:
    os.setxattr(file, ACL_ACCESS, acl(named_user=(77, 5)))
    assert read_xattrs(fd) == ((ACL_ACCESS.encode(), acl(named_user=(77, 5))),)


def test_a_file_system_without_xattrs_has_none() -> None:
    assert read_xattrs_at(b"/proc/self/status") == ()


def test_what_has_vanished_has_no_xattrs(tmp_path: Path) -> None:
    assert read_xattrs_at(os.fsencode(tmp_path / "missing")) == ()


def holes(path: Path) -> tuple[tuple[int, int], ...]:
    with path.open("rb") as opened:
        info = os.fstat(opened.fileno())
        return read_holes(opened.fileno(), info.st_size, info.st_blocks)


def test_holes_are_where_nothing_was_written(file: Path) -> None:
    mib = 1 << 20
    with file.open("r+b") as opened:
        opened.truncate(4 * mib + 5)
        opened.seek(2 * mib)
        opened.write(bytes(mib))
        opened.flush()
        os.fsync(opened.fileno())
    if not holes(file):
        pytest.skip("this file system does not tell its holes")
    assert holes(file) == ((4096, 2 * mib - 4096), (3 * mib, mib + 5))
    (file.parent / "whole").write_bytes(bytes(mib))
    assert holes(file.parent / "whole") == ()


def test_holes_never_reach_beyond_the_size_that_was_asked_for(file: Path, fd: int) -> None:
    os.ftruncate(fd, 1 << 20)
    assert sum(length for _, length in read_holes(fd, 100_001, 0)) <= 100_001


def test_holes_are_read_up_to_a_limit(file: Path, fd: int) -> None:
    for number in range(HOLES_LIMIT + 10):
        os.pwrite(fd, b"x", (2 * number + 1) * 4096)
    found = read_holes(fd, os.fstat(fd).st_size, 0)
    if not found:
        pytest.skip("this file system does not tell its holes")
    assert len(found) == HOLES_LIMIT


# ---- applying


def test_mode_and_time_are_set_to_the_nanosecond(file: Path, fd: int) -> None:
    for mtime_ns in (1_234_567_890_123_456_789, -1, 0, 4_000_000_000_999_999_999):
        assert apply(fd, wanted(0o7751, mtime_ns)) == []
        info = file.stat()
        assert stat.S_IMODE(info.st_mode) == 0o7751
        assert info.st_mtime_ns == mtime_ns


@needs_root
def test_setuid_and_capabilities_survive_the_change_of_owner(file: Path, fd: int) -> None:
    capability = bytes.fromhex("0100000200200000000000000000000000000000")  # cap_net_raw
    try:
        os.setxattr(file, "security.capability", capability)
    except OSError:
        pytest.skip("no capabilities on this file system")
    xattrs = ((b"security.capability", capability),)
    assert apply(fd, wanted(0o6755, uid=1234, gid=4321, xattrs=xattrs)) == []
    info = file.stat()
    assert (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid) == (0o6755, 1234, 4321)
    assert os.getxattr(file, "security.capability") == capability


@pytest.mark.usefixtures("_acls")
def test_an_acl_comes_after_the_mode_whose_group_bits_are_its_mask(file: Path, fd: int) -> None:
    value = acl(named_user=(77, 5), mask=5, other=1)
    os.setxattr(file, ACL_ACCESS, value)
    mode = stat.S_IMODE(file.stat().st_mode)
    os.removexattr(file, ACL_ACCESS)
    assert apply(fd, wanted(mode, xattrs=((ACL_ACCESS.encode(), value),))) == []
    assert os.getxattr(file, ACL_ACCESS) == value
    assert stat.S_IMODE(file.stat().st_mode) == mode


@pytest.mark.usefixtures("_acls")
def test_an_inherited_acl_does_not_stay(tmp_path: Path) -> None:
    os.setxattr(tmp_path, ACL_DEFAULT, acl(named_user=(77, 7)))
    for path in (tmp_path / "file", tmp_path / "folder"):
        path.touch() if path.name == "file" else path.mkdir()
        assert os.listxattr(path)
        descriptor = os.open(path, os.O_RDONLY)
        assert apply(descriptor, wanted(0o751)) == []
        os.close(descriptor)
        assert os.listxattr(path) == []
        assert stat.S_IMODE(path.stat().st_mode) == 0o751


@pytest.mark.usefixtures("_xattrs")
def test_xattrs_become_exactly_the_wanted_ones(file: Path, fd: int) -> None:
    os.setxattr(file, "user.old", b"1")
    os.setxattr(file, "user.kept", b"2")
    assert apply(fd, wanted(xattrs=((b"user.kept", b"3"), (b"user.\xff", b"4")))) == []
    assert read_xattrs(fd) == ((b"user.kept", b"3"), (b"user.\xff", b"4"))


def test_one_refused_attribute_is_a_warning_and_the_others_are_set(file: Path, fd: int) -> None:
    warnings = apply(fd, wanted(0o600, xattrs=((b"nonsense.x", b"1"),)))
    assert len(warnings) == 1 and warnings[0].startswith("nonsense.x could not be set: ")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.stat().st_mtime_ns == wanted().mtime_ns


def test_attributes_that_no_system_could_have_are_warnings(file: Path, fd: int) -> None:
    nonsense = Attributes(1 << 70, 1 << 70, -5, 1 << 100, ((b"user.\0", b"1"), (b"", b"")))
    warned = {warning.partition(" could")[0] for warning in apply(fd, nonsense)}
    assert {"owner", "mode", "times", "user.\0"} <= warned


# ---- what can't be opened


def test_a_link_gets_its_own_time_and_its_target_none(file: Path, tmp_path: Path, folder_fd: int) -> None:
    (tmp_path / "link").symlink_to("file")
    before = file.stat()
    assert apply_at(folder_fd, b"link", stat.S_IFLNK, wanted(0o777, mtime_ns=-5)) == []
    assert (tmp_path / "link").lstat().st_mtime_ns == -5
    assert file.stat() == before


@needs_root
def test_a_link_gets_its_own_owner_and_xattrs(file: Path, tmp_path: Path, folder_fd: int) -> None:
    (tmp_path / "link").symlink_to("file")
    warnings = apply_at(folder_fd, b"link", stat.S_IFLNK, wanted(uid=12, gid=34, xattrs=((b"trusted.x", b"1"),)))
    info = (tmp_path / "link").lstat()
    assert (info.st_uid, info.st_gid) == (12, 34)
    assert (file.stat().st_uid, file.stat().st_gid) == (UID, GID)
    assert warnings or os.getxattr(tmp_path / "link", "trusted.x", follow_symlinks=False) == b"1"
    assert os.listxattr(file) == []


def test_a_fifo_and_a_socket_get_mode_and_time(tmp_path: Path, folder_fd: int) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(b"/proc/self/fd/%d/socket" % folder_fd)
    for name, kind in ((b"fifo", stat.S_IFIFO), (b"socket", stat.S_IFSOCK)):
        assert apply_at(folder_fd, name, kind, wanted(0o3751)) == []
        info = os.stat(name, dir_fd=folder_fd)
        assert (stat.S_IMODE(info.st_mode), info.st_mtime_ns) == (0o3751, wanted().mtime_ns)


@needs_root
def test_a_device_gets_owner_and_mode(tmp_path: Path, folder_fd: int) -> None:
    try:
        os.mknod(tmp_path / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("no devices can be made here")
    assert apply_at(folder_fd, b"null", stat.S_IFCHR, wanted(0o666, uid=5, gid=6)) == []
    info = (tmp_path / "null").stat()
    assert (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid) == (0o666, 5, 6)


def test_a_link_that_took_the_place_of_a_fifo_is_not_followed(file: Path, tmp_path: Path, folder_fd: int) -> None:
    before = file.stat()
    (tmp_path / "fifo").symlink_to("file")
    (warning,) = apply_at(folder_fd, b"fifo", stat.S_IFIFO, wanted(0o777))
    assert "something else" in warning
    assert file.stat() == before
    (warning,) = apply_at(folder_fd, b"missing", stat.S_IFIFO, wanted())
    assert "No such file" in warning


# ---- without privileges

UNPRIVILEGED = """
import os, sys
from workers.attributes import Attributes, apply
os.setgroups([4242]); os.setgid(65534); os.setuid(65534)
mode, uid, gid, xattr = int(sys.argv[2], 8), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
path = os.path.join(sys.argv[1], "file")
fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
for warning in apply(fd, Attributes(mode, uid, gid, 7, ((b"user.x", xattr.encode()),) if xattr else ())):
    print(warning)
"""


def as_nobody(mode: int, uid: int, gid: int, xattr: str = "") -> tuple[list[str], os.stat_result, list[str]]:
    """(warnings, stat, names of xattrs) of a file that was given attributes by a user who is in group 4242 as well."""
    with tempfile.TemporaryDirectory() as place:
        os.chmod(place, 0o777)
        words = [sys.executable, "-c", UNPRIVILEGED, place, f"{mode:o}", str(uid), str(gid), xattr]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        path = Path(place, "file")
        return done.stdout.splitlines(), path.stat(), os.listxattr(path)


@needs_root
def test_without_privileges_the_owner_is_left_out_quietly_and_the_rest_is_set() -> None:
    warnings, info, _ = as_nobody(0o640, 0, 0)
    assert warnings == []
    assert (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid, info.st_mtime_ns) == (0o640, 65534, 65534, 7)


@needs_root
def test_without_privileges_a_group_of_ones_own_is_set() -> None:
    _, info, _ = as_nobody(0o640, 0, 4242)
    assert info.st_gid == 4242


@needs_root
def test_a_program_does_not_run_as_another_user_than_it_was_meant_to() -> None:
    (warning,), info, _ = as_nobody(0o6755, 0, 0)
    assert "setuid" in warning
    assert stat.S_IMODE(info.st_mode) == 0o755
    warnings, info, _ = as_nobody(0o4755, 65534, 65534)
    assert warnings == []
    assert stat.S_IMODE(info.st_mode) == 0o4755


@needs_root
@pytest.mark.usefixtures("_xattrs")
def test_without_privileges_a_read_only_file_gets_its_xattrs() -> None:
    warnings, info, names = as_nobody(0o444, 65534, 65534, "value")
    assert warnings == []
    assert names == ["user.x"]
    assert stat.S_IMODE(info.st_mode) == 0o444
