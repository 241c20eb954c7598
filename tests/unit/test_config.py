"""enigma.toml: what is read, what is refused and where the message points, and what is shown."""

from __future__ import annotations

import dataclasses
import re
import stat
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enigma import config as config_module
from enigma.config import (
    ChunkStrategy,
    Config,
    config_path,
    default_config_dir,
    default_toml,
    load,
    parse,
    write_default,
)
from enigma.errors import ConfigError, RepositoryNotFound
from enigma.toml_lines import find_lines, line_of, quote

PLACE = Path("/etc/enigma/enigma.toml")

README_EXAMPLE = """
[enigma]
db_path = "/home/user/.enigma/enigma.db"
key_provider = "local"
keyfile_path = "/home/user/.enigma/keys.enc"
distribution = "Weighted"

[enigma.chunk_strategy.Cdc]
target_size = 4194304

[enigma.compression]
enabled = false
level = 3

[s3_proxy]
listen_addr = "0.0.0.0:8333"
access_key = "enigma-admin"
secret_key = "gateway-secret"
default_region = "us-east-1"

[[providers]]
name = "aws-main"
type = "S3"
bucket = "my-enigma-bucket"
region = "eu-west-1"
weight = 2

[[providers]]
name = "rustfs-local"
type = "rustfs"
bucket = "enigma-chunks"
endpoint_url = "http://127.0.0.1:9000"
access_key = "minioadmin"
secret_key = "provider-secret"

[[providers]]
name = "local-fallback"
type = "Local"
bucket = "/data/enigma-local"

[raft]
node_id = 1
data_dir = "/data/raft"
grpc_addr = "0.0.0.0:9000"

[[raft.peers]]
id = 1
addr = "enigma-0.enigma:9000"
[[raft.peers]]
id = 2
addr = "enigma-1.enigma:9000"
"""


def parsed(text: str) -> Config:
    return parse(text.encode(), PLACE)


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parsed(text)
    return str(caught.value)


def test_an_empty_file_is_a_whole_configuration() -> None:
    config = parsed("")
    assert config.db_path == Path("/etc/enigma/enigma.db")
    assert config.keyfile_path == Path("/etc/enigma/keys.enc")
    assert config.distribution == "RoundRobin"
    assert config.compression.enabled
    assert config.compression.level == 3
    assert config.workers >= 1
    assert [(provider.type, provider.bucket) for provider in config.providers] == [("Local", "/etc/enigma/store")]


def test_the_documented_example_is_read() -> None:
    config = parsed(README_EXAMPLE)
    assert config.distribution == "Weighted"
    assert not config.compression.enabled
    assert [provider.type for provider in config.providers] == ["S3", "S3Compatible", "Local"]
    assert [provider.weight for provider in config.providers] == [2, 1, 1]
    assert [provider.path_style for provider in config.providers] == [False, True, False]
    assert config.s3_proxy is not None
    assert config.s3_proxy.listen_addr == "0.0.0.0:8333"
    assert config.raft is not None
    assert [peer.id for peer in config.raft.peers] == [1, 2]


def test_the_default_file_says_what_an_empty_one_means(tmp_path: Path) -> None:
    path = tmp_path / 'odd "name"\\here' / "enigma.toml"
    assert parse(default_toml(path.parent).encode(), path) == parse(b"", path)


def test_every_commented_line_of_the_default_file_is_a_valid_setting() -> None:
    text = default_toml(PLACE.parent)
    settings = re.sub(r"^# ?(?=\[|\w+ = )", "", text, flags=re.MULTILINE)
    # Two ways to chunk exclude each other; keep the first.
    settings = settings.replace("[enigma.chunk_strategy.Fixed]\nsize = 1048576\n", "")
    config = parsed(settings)
    assert settings != text
    assert [provider.name for provider in config.providers] == ["local", "aws-main", "minio"]
    assert config.chunk_strategy == ChunkStrategy()


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ('[enigma]\n\ndb_pth = "x"\n', 3, '"db_pth" in [enigma]; did you mean "db_path"?'),
        ("[enigma.compresion]\nlevel = 1", 1, 'did you mean "compression"?'),
        ("[enigma.compression]\n# a comment = 1\nlevel = 23", 3, "from 0 to 22"),
        ("[enigma.compression]\nenabled = 1", 2, "true or false"),
        ("[enigma]\nworkers = true", 2, "whole number"),
        ("[enigma.mirror]\ncopies = 1", 2, "copies must"),
        ('[enigma]\ndistribution = "Miror"', 2, 'did you mean "Mirror"?'),
        ("[enigma.chunk_strategy.Cdc]\ntarget_size = 65535", 2, "from 65536 to 4194304"),
        ("[enigma.chunk_strategy.Cdc]\n[enigma.chunk_strategy.Fixed]", 1, "choose one"),
        ("[enigma]\ncompression = {\tlevel = 99 }", 2, "level must"),
        (
            '[[providers]]\nname = "a"\ntype = "Local"\nbucket = "x"\n[[providers]]\nname = "b"',
            5,
            "number 2 lacks the key type",
        ),
        ('[[providers]]\nname = "a"\ntype = "minoi"\nbucket = "b"', 3, 'did you mean "minio"?'),
        (
            '[[providers]]\nname="a"\ntype="Local"\nbucket="b"\n\n[[providers]]\nname="c"\nbukcet="d"',
            8,
            'did you mean "bucket"?',
        ),
        (
            '[[providers]]\nname="a"\ntype="Local"\nbucket="b"\n[[providers]]\nname="a"\ntype="Local"\nbucket="c"',
            6,
            "two providers",
        ),
        ('[[providers]]\nname="a"\ntype="Local"\nbucket="b"\nregion="x"', 5, '"region" in [[providers]] number 1'),
        ('[[providers]]\nname="a"\ntype="minio"\nbucket="b"', 1, "needs endpoint_url"),
        ('[[providers]]\nname="a"\ntype="S3"\nbucket="b"\naccess_key="k"', 1, "both access_key and secret_key"),
        ('[[providers]]\nname="a"\ntype="S3"\nbucket="b"\nendpoint_url="http://u:p@h/"', 5, "without credentials"),
        ('[providers]\nname = "a"', 1, "double brackets"),
        ('[enigma]\ndistribution = "Mirror"', 2, "2 copies needs as many providers; there are 1"),
        ('[enigma]\ndistribution = "Erasure"', 2, "needs 3 providers"),
        ('[enigma]\nkey_provider = "azure-keyvault"', 2, "needs vault_url"),
        ('[s3_proxy]\naccess_key="a"\nsecret_key="b"\nlisten_addr="x:70000"', 4, '"host:port"'),
        ('[s3_proxy]\naccess_key="a"\nsecret_key="b"\ntls_cert="c"', 1, "both tls_cert and tls_key"),
        ('[raft]\nnode_id=9\ndata_dir="d"\ngrpc_addr="h:1"\n[[raft.peers]]\nid=1\naddr="h:1"', 2, "id 9"),
        ('[raft]\nnode_id=1\ndata_dir="d"\ngrpc_addr="h:1"\n[[raft.peers]]\nid=1\naddr="h"', 7, "addr must"),
        ("enigma = 3", 1, "must be a table"),
        ("[enigma]\nhost = 'a'\nhost = 'b'", 3, "not valid TOML"),
        ("a = [", 1, "not valid TOML"),
    ],
)
def test_a_fault_is_told_with_its_line(text: str, line: int, words: str) -> None:
    message = refusal(text)
    assert message.startswith(f"{PLACE}:{line}: ")
    assert words in message
    assert message[-1] in ".?"


def test_bytes_that_are_not_text_are_told_with_their_line() -> None:
    with pytest.raises(ConfigError, match=r":3: this line is not UTF-8"):
        parse(b"# one\n# two\n# \xff\n", PLACE)


def test_a_value_is_never_repeated_in_a_message_where_it_may_be_a_secret() -> None:
    text = '[[providers]]\nname="a"\ntype="S3"\nbucket="b"\naccess_key="visible"\nsecret_key=["hunter2"]'
    assert "hunter2" not in refusal(text)


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    read_or_refused(raw)


LINES = st.sampled_from(
    [*README_EXAMPLE.splitlines(), "[[", '"""', "'", "= 1", "[enigma]", "[raft.peers]", "x = {}", "x = [1,"]
)


@given(st.lists(LINES, max_size=30))
def test_any_jumble_of_valid_lines_is_read_or_refused(lines: list[str]) -> None:
    read_or_refused("\n".join(lines).encode())


SCALARS: st.SearchStrategy[Any] = st.one_of(
    st.booleans(), st.integers(-(2**70), 2**70), st.text(max_size=5), st.sampled_from(["S3", "Local", "~x", "a:1"])
)
KEYS = st.sampled_from(
    sorted(
        {*config_module._ENIGMA, *config_module._CLOUD_PROVIDER, *config_module._RAFT, "enigma", "providers", "raft"}
    )
)
VALUES = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(KEYS, SCALARS, max_size=3)
TABLES = (
    VALUES | st.dictionaries(KEYS, VALUES, max_size=4) | st.lists(st.dictionaries(KEYS, VALUES, max_size=5), max_size=3)
)


@given(st.dictionaries(st.sampled_from(["enigma", "s3_proxy", "providers", "raft"]), TABLES))
def test_valid_toml_of_any_shape_is_read_or_refused(root: dict[str, Any]) -> None:
    read_or_refused("\n".join(f"{key} = {inline(value)}" for key, value in root.items()).encode())


def read_or_refused(raw: bytes) -> None:
    try:
        config = parse(raw, PLACE)
    except ConfigError:
        return
    assert isinstance(config, Config)


def inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{quote(key)} = {inline(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(inline, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return quote(value) if isinstance(value, str) else str(value)


@given(st.text())
def test_quoted_text_is_read_back(text: str) -> None:
    if text.isprintable() or text.isascii():
        assert tomllib.loads(f"key = {quote(text)}") == {"key": text}


def test_deep_nesting_is_refused() -> None:
    assert "nested too deeply" in refusal("a = " + "[" * 50_000)


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    config_path(tmp_path).write_bytes(b"#" * (2 << 20))
    with pytest.raises(ConfigError, match="larger than"):
        load(tmp_path)


LINE_SAMPLE = '''top = 1
[a]
x = """
[not.a.table]
y = 1
"""
y = [
  1, # ] not the end
  "]",
]
z.deep = 2
"quoted key" . 'b' = '[['
[[list]]
k = 1
[[list]]
k = {inner = "}", [1]}
[list.sub]
m = 1
[[list.items]]
[[list.items]]
n = \'\'\'
\'\'\'\'\'
o = 3
  [ after . "it" ]  # comment
p = 1
'''.replace(", [1]}", "}")


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("top",), 1),
        (("a",), 2),
        (("a", "x"), 3),
        (("a", "y"), 7),
        (("a", "z"), 11),
        (("a", "z", "deep"), 11),
        (("a", "quoted key", "b"), 12),
        (("list",), 13),
        (("list", 0), 13),
        (("list", 0, "k"), 14),
        (("list", 1), 15),
        (("list", 1, "k"), 16),
        (("list", 1, "sub", "m"), 18),
        (("list", 1, "items", 0), 19),
        (("list", 1, "items", 1), 20),
        (("list", 1, "items", 1, "n"), 21),
        (("list", 1, "items", 1, "o"), 23),
        (("after", "it"), 24),
        (("after", "it", "p"), 25),
    ],
)
def test_each_key_is_found_on_its_line(path: tuple[str | int, ...], line: int) -> None:
    tomllib.loads(LINE_SAMPLE)
    assert find_lines(LINE_SAMPLE)[path] == line
    assert find_lines(LINE_SAMPLE.replace("\n", "\r\n"))[path] == line


def test_what_has_no_line_of_its_own_is_found_at_what_holds_it() -> None:
    lines = find_lines(LINE_SAMPLE)
    assert line_of(lines, ("list", 1, "k", "inner")) == 16
    assert line_of(lines, ("unknown",)) == 1


def test_no_secret_is_shown() -> None:
    config = parsed(README_EXAMPLE)
    shown = (
        f"{config!r} {config} {config.redacted()} {config.redacted_toml()} {config.providers[1]!r} {config.s3_proxy!r}"
    )
    for secret in ("minioadmin", "provider-secret", "enigma-admin", "gateway-secret"):
        assert secret in README_EXAMPLE
        assert secret not in shown
    assert config.redacted_toml().count('"***"') == 4


def test_what_is_shown_means_what_is_in_force() -> None:
    config = parsed(README_EXAMPLE)
    again = parsed(config.redacted_toml())
    masked = tuple(
        dataclasses.replace(provider, access_key="***", secret_key="***") if provider.secret_key else provider
        for provider in config.providers
    )
    assert config.s3_proxy
    proxy = dataclasses.replace(config.s3_proxy, access_key="***", secret_key="***")
    assert again == dataclasses.replace(config, providers=masked, s3_proxy=proxy)


@pytest.mark.parametrize("kind", ["Mirror", "Erasure"])
def test_a_shown_placement_means_what_is_in_force(kind: str) -> None:
    locals_ = "".join(f'[[providers]]\nname="p{i}"\ntype="Local"\nbucket="/p{i}"\n' for i in range(6))
    text = f'[enigma]\ndistribution="{kind}"\n[enigma.mirror]\ncopies=3\n[enigma.erasure]\ndata=4\nparity=2\n{locals_}'
    config = parsed(text)
    again = parsed(config.redacted_toml())
    if kind == "Mirror":
        assert again.mirror_copies == 3
    else:
        assert (again.erasure_data, again.erasure_parity) == (4, 2)


def test_relative_paths_count_from_the_file() -> None:
    config = parsed('[enigma]\ndb_path = "state/x.db"\n[[providers]]\nname="a"\ntype="Local"\nbucket="../store"')
    assert config.db_path == Path("/etc/enigma/state/x.db")
    assert config.providers[0].bucket == "/etc/store"


def test_the_default_file_is_private_and_never_overwrites(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    path = write_default(folder)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load(folder).config_dir == folder
    path.write_text("# mine")
    assert write_default(folder) == path
    assert path.read_text() == "# mine"


def test_a_place_that_cannot_be_written_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="Can't write"):
        write_default(tmp_path / "file" / "folder")


def test_a_missing_file_tells_to_init(tmp_path: Path) -> None:
    with pytest.raises(RepositoryNotFound, match="enigma init") as caught:
        load(tmp_path)
    assert caught.value.exit_status == 10


def test_the_environment_names_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("ENIGMA_CONFIG_DIR", raising=False)
    assert default_config_dir() == Path("/home/somebody/.enigma")
    monkeypatch.setenv("ENIGMA_CONFIG_DIR", "/srv/enigma")
    assert default_config_dir() == Path("/srv/enigma")
