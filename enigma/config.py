"""enigma.toml: read, checked against the tables below, and turned into frozen records.

Every fault is a ConfigError that names the file, the line, the key and, for a misspelt key, the nearest valid one.
What is stored about a repository itself is sealed at the providers; this file adds credentials and says what the user
wants.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

from enigma.errors import ConfigError, RepositoryNotFound
from enigma.toml_lines import KeyPath, find_lines, line_of, quote

CONFIG_FILE_NAME = "enigma.toml"
CONFIG_DIR_VARIABLE = "ENIGMA_CONFIG_DIR"
MAX_CONFIG_BYTES = 1 << 20

Distribution = Literal["RoundRobin", "Weighted", "Mirror", "Erasure"]
ProviderType = Literal["Local", "S3", "S3Compatible", "Azure", "Gcs"]
KeyProviderType = Literal["local", "azure-keyvault", "gcp-secretmanager", "aws-secretsmanager"]

PROVIDER_TYPES: Mapping[str, ProviderType] = {
    "Local": "Local",
    "S3": "S3",
    "S3Compatible": "S3Compatible",
    "minio": "S3Compatible",
    "rustfs": "S3Compatible",
    "garage": "S3Compatible",
    "Azure": "Azure",
    "Gcs": "Gcs",
}


@dataclass(frozen=True, slots=True)
class ChunkStrategy:
    """How new repositories cut files: content-defined around a target, or at fixed sizes.

    Where the file does not state it, a repository in use keeps its own.
    """

    kind: Literal["Cdc", "Fixed"] = "Cdc"
    target_bytes: int = 1 << 20
    stated: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class Compression:
    """zstd, before encryption; data that does not compress is stored as it is."""

    enabled: bool = True
    level: int = 3


@dataclass(frozen=True, slots=True)
class ProviderConfig:
    """One [[providers]] table. Empty text means: not given, the provider's own default holds."""

    name: str
    type: ProviderType
    bucket: str
    region: str = ""
    weight: int = 1
    endpoint_url: str = ""
    path_style: bool = False
    access_key: str = field(default="", repr=False)
    secret_key: str = field(default="", repr=False)
    ca_bundle: Path | None = None
    api_version: str = ""
    storage_class: str = ""
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class S3ProxyConfig:
    """[s3_proxy]: where the S3 gateway listens and who may use it."""

    listen_addr: str = "127.0.0.1:8333"
    access_key: str = field(default="", repr=False)
    secret_key: str = field(default="", repr=False)
    default_region: str = "us-east-1"
    tls_cert: Path | None = None
    tls_key: Path | None = None
    metrics_addr: str = ""


@dataclass(frozen=True, slots=True)
class RaftPeer:
    """One node of the cluster, this one included."""

    id: int
    addr: str


@dataclass(frozen=True, slots=True)
class RaftConfig:
    """[raft]: this node's place in a gateway cluster."""

    node_id: int
    data_dir: Path
    grpc_addr: str
    peers: tuple[RaftPeer, ...]
    election_timeout_ms: int = 1000
    heartbeat_interval_ms: int = 300
    snapshot_threshold: int = 10_000


@dataclass(frozen=True, slots=True)
class Config:
    """The whole file, defaults filled in. Paths are absolute."""

    config_dir: Path
    db_path: Path
    keyfile_path: Path
    mlkem_key_path: Path | None
    host: str
    workers: int
    key_provider: KeyProviderType
    vault_url: str
    gcp_project_id: str
    aws_region: str
    secret_prefix: str
    distribution: Distribution
    mirror_copies: int
    erasure_data: int
    erasure_parity: int
    chunk_strategy: ChunkStrategy
    compression: Compression
    providers: tuple[ProviderConfig, ...]
    s3_proxy: S3ProxyConfig | None = None
    raft: RaftConfig | None = None

    @property
    def has_secrets(self) -> bool:
        """Whether the file itself holds something that others must not read."""
        return any(provider.secret_key for provider in self.providers) or bool(
            self.s3_proxy and self.s3_proxy.secret_key
        )

    def redacted(self) -> dict[str, Any]:
        """What is in force, in the file's own layout, each secret as "***", keys that are not set left out."""
        layout: dict[str, Any] = {"enigma": _enigma_layout(self)}
        if self.s3_proxy:
            layout["s3_proxy"] = _plain(self.s3_proxy)
        layout["providers"] = [_provider_layout(provider) for provider in self.providers]
        if self.raft:
            layout["raft"] = _plain(self.raft) | {"peers": [_plain(peer) for peer in self.raft.peers]}
        return layout

    def redacted_toml(self) -> str:
        """`redacted` as TOML."""
        return "\n\n".join(_toml_blocks("", self.redacted())) + "\n"


def default_config_dir() -> Path:
    """ENIGMA_CONFIG_DIR, else ~/.enigma."""
    return Path(os.path.abspath(os.path.expanduser(os.environ.get(CONFIG_DIR_VARIABLE) or "~/.enigma")))


def config_path(config_dir: Path) -> Path:
    return config_dir / CONFIG_FILE_NAME


def load(config_dir: Path) -> Config:
    """Read and check the configuration. Raises RepositoryNotFound if there is none, ConfigError for any fault in it."""
    path = config_path(config_dir)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise RepositoryNotFound(
            f"There is no repository in {config_dir}; `enigma init` makes one, `enigma recover` brings a lost one back."
        ) from exc
    except OSError as exc:
        raise ConfigError(f"Can't read {path}: {exc.strerror}.") from exc
    return parse(raw, path)


def parse(raw: bytes, path: Path) -> Config:
    """Check the bytes of a configuration file; relative paths in it count from its folder. Raises ConfigError."""
    text = _decoded(raw, path)
    return _Reader(path, text).config(_parsed(text, path))


def write_default(config_dir: Path) -> Path:
    """Write the commented default file, mode 0600, unless the user already has one; return its path.

    Raises ConfigError if the place can't be written.
    """
    path = config_path(config_dir)
    try:
        config_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(default_toml(config_dir))
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return path
    except OSError as exc:
        raise ConfigError(f"Can't write {path}: {exc.strerror}.") from exc
    return path


def default_toml(config_dir: Path) -> str:
    """The file that `enigma init` writes: what a first repository needs, and the rest as comments."""
    return _DEFAULT_TOML.format(
        store=quote(str(config_dir / "store")),
        target_size=ChunkStrategy().target_bytes,
        db_path=quote(str(config_dir / "enigma.db")),
        keyfile_path=quote(str(config_dir / "keys.enc")),
    )


_DEFAULT_TOML = """\
# Enigma's configuration. `enigma config` shows what is in force, defaults included.
# This file may hold credentials: keep its mode at 0600.

[enigma]
# db_path = {db_path}
# keyfile_path = {keyfile_path}
# mlkem_key_path = "/media/usb/enigma.mlkem"  # keep the second key factor apart from the first
# key_provider = "local"                      # or azure-keyvault, gcp-secretmanager, aws-secretsmanager
# host = "my-machine"                         # the name in snapshots; default: this machine's
# workers = 4                                 # default: the number of cores
# How packs are spread over the providers:
# RoundRobin and Weighted keep one copy, Mirror several, Erasure data and parity shards.
distribution = "RoundRobin"

# [enigma.mirror]
# copies = 2

# [enigma.erasure]
# data = 2
# parity = 1

# Decided once, by `enigma init`:
# [enigma.chunk_strategy.Cdc]
# target_size = {target_size}
# [enigma.chunk_strategy.Fixed]
# size = 1048576

[enigma.compression]
enabled = true
level = 3  # zstd, 0 to 22

[[providers]]
name = "local"
type = "Local"
bucket = {store}

# [[providers]]
# name = "aws-main"
# type = "S3"               # or S3Compatible (minio, rustfs, garage), Azure, Gcs
# bucket = "my-enigma-bucket"
# region = "eu-west-1"
# weight = 2
#
# [[providers]]
# name = "minio"
# type = "S3Compatible"
# bucket = "enigma"
# endpoint_url = "https://minio.example.org:9000"
# access_key = "..."
# secret_key = "..."
"""

# -- the tables ---------------------------------------------------------------------------------------------------

Check = Callable[[Any], Any]
"""The checked value, or ValueError whose text completes the sentence '<key> ...'."""


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("must be a text that is not empty")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _number(lowest: int, highest: int) -> Check:
    def check(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
            raise ValueError(f"must be a whole number from {lowest} to {highest}")
        return value

    return check


def _one_of(choices: Mapping[str, str]) -> Check:
    def check(value: Any) -> str:
        if isinstance(value, str) and value in choices:
            return choices[value]
        raise ValueError("must be one of " + ", ".join(choices) + _nearest(value, choices))

    return check


def _matching(pattern: str, what: str) -> Check:
    expression = re.compile(pattern)

    def check(value: Any) -> str:
        if not isinstance(value, str) or not expression.fullmatch(value):
            raise ValueError(f"must be {what}")
        return value

    return check


def _address(value: Any) -> str:
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:/\s\[\]]+):([0-9]{1,5})", value) if isinstance(value, str) else None
    if not match or int(match.group(2)) > 65_535:
        raise ValueError('must be "host:port"')
    return str(value)


def _choices(*names: str) -> Check:
    return _one_of({name: name for name in names})


# Credentials belong in their own keys: those inside a URL would be shown with it.
_url = _matching(r"https?://[^\s/@]+(/[^\s@]*)?", 'an address like "https://host:port", without credentials in it')
_name = _matching(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "1 to 64 letters, digits, dots, dashes or underscores")
_prefix = _matching(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*", 'a path like "backups/enigma", without a slash at its ends')

_ROOT_TABLES = ("enigma", "s3_proxy", "providers", "raft")

_ENIGMA: Mapping[str, Check] = {
    "db_path": _text,
    "keyfile_path": _text,
    "mlkem_key_path": _text,
    "host": _text,
    "workers": _number(1, 1024),
    "key_provider": _choices("local", "azure-keyvault", "gcp-secretmanager", "aws-secretsmanager"),
    "vault_url": _url,
    "gcp_project_id": _text,
    "aws_region": _text,
    "secret_prefix": _name,
    "distribution": _choices("RoundRobin", "Weighted", "Mirror", "Erasure"),
}
_ENIGMA_TABLES = ("chunk_strategy", "compression", "mirror", "erasure")

_CHUNK_STRATEGIES: Mapping[str, Mapping[str, Check]] = {
    # The chunker library's own limits.
    "Cdc": {"target_size": _number(64 << 10, 4 << 20)},
    "Fixed": {"size": _number(64 << 10, 16 << 20)},
}
_COMPRESSION: Mapping[str, Check] = {"enabled": _flag, "level": _number(0, 22)}
_MIRROR: Mapping[str, Check] = {"copies": _number(2, 16)}
_ERASURE: Mapping[str, Check] = {"data": _number(1, 32), "parity": _number(1, 16)}

_ANY_PROVIDER: Mapping[str, Check] = {
    "name": _name,
    "type": _one_of(PROVIDER_TYPES),
    "bucket": _text,
    "weight": _number(1, 1_000_000),
}
_CLOUD_PROVIDER: Mapping[str, Check] = {
    **_ANY_PROVIDER,
    "region": _text,
    "endpoint_url": _url,
    "path_style": _flag,
    "access_key": _text,
    "secret_key": _text,
    "ca_bundle": _text,
    "api_version": _text,
    "storage_class": _text,
    "prefix": _prefix,
}

_S3_PROXY: Mapping[str, Check] = {
    "listen_addr": _address,
    "access_key": _text,
    "secret_key": _text,
    "default_region": _text,
    "tls_cert": _text,
    "tls_key": _text,
    "metrics_addr": _address,
}
_RAFT: Mapping[str, Check] = {
    "node_id": _number(1, 2**31 - 1),
    "data_dir": _text,
    "grpc_addr": _address,
    "election_timeout_ms": _number(10, 600_000),
    "heartbeat_interval_ms": _number(1, 600_000),
    "snapshot_threshold": _number(1, 2**31 - 1),
}
_RAFT_PEER: Mapping[str, Check] = {"id": _number(1, 2**31 - 1), "addr": _address}

# What a vault needs besides its name.
_KEY_PROVIDER_NEEDS = {
    "azure-keyvault": "vault_url",
    "gcp-secretmanager": "gcp_project_id",
    "aws-secretsmanager": "aws_region",
}


# -- reading ------------------------------------------------------------------------------------------------------


def _decoded(raw: bytes, path: Path) -> str:
    if len(raw) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_CONFIG_BYTES} bytes; that is no configuration of Enigma's.")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as exc:
        line = raw.count(b"\n", 0, exc.start) + 1
        raise ConfigError(f"{path}:{line}: this line is not UTF-8 text.") from exc


def _parsed(text: str, path: Path) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(text)
    except RecursionError as exc:
        raise ConfigError(f"{path}: tables or lists are nested too deeply.") from exc
    except ValueError as exc:
        place = re.search(r"\(at line (\d+)", str(exc))
        line = place.group(1) if place else text.count("\n") + 1
        reason = re.sub(r" \(at .*\)$", "", str(exc))
        raise ConfigError(f"{path}:{line}: not valid TOML: {reason}.") from exc


@dataclass(slots=True)
class _Reader:
    """One pass over the parsed file. Every method takes the key path of what it reads, for the message."""

    path: Path
    text: str

    def config(self, root: dict[str, Any]) -> Config:
        self._known(root, (), _ROOT_TABLES)
        enigma = self._table(root.get("enigma", {}), ("enigma",), _ENIGMA, tables=_ENIGMA_TABLES)
        providers = self._providers(root.get("providers", []))
        nested = root.get("enigma", {})
        mirror = self._table(nested.get("mirror", {}), ("enigma", "mirror"), _MIRROR)
        erasure = self._table(nested.get("erasure", {}), ("enigma", "erasure"), _ERASURE)
        config_dir = self.path.parent
        config = Config(
            config_dir=config_dir,
            db_path=self._path(enigma.get("db_path", "enigma.db")),
            keyfile_path=self._path(enigma.get("keyfile_path", "keys.enc")),
            mlkem_key_path=self._optional_path(enigma.get("mlkem_key_path")),
            host=enigma.get("host") or os.uname().nodename,
            workers=enigma.get("workers") or len(os.sched_getaffinity(0)),
            key_provider=enigma.get("key_provider", "local"),
            vault_url=enigma.get("vault_url", ""),
            gcp_project_id=enigma.get("gcp_project_id", ""),
            aws_region=enigma.get("aws_region", ""),
            secret_prefix=enigma.get("secret_prefix", "enigma-key"),
            distribution=enigma.get("distribution", "RoundRobin"),
            mirror_copies=mirror.get("copies", 2),
            erasure_data=erasure.get("data", 2),
            erasure_parity=erasure.get("parity", 1),
            chunk_strategy=self._chunk_strategy(nested.get("chunk_strategy", {})),
            compression=Compression(
                **self._table(nested.get("compression", {}), ("enigma", "compression"), _COMPRESSION)
            ),
            providers=providers,
            s3_proxy=self._s3_proxy(root["s3_proxy"]) if "s3_proxy" in root else None,
            raft=self._raft(root["raft"]) if "raft" in root else None,
        )
        self._check_key_provider(config)
        self._check_distribution(config)
        return config

    def _providers(self, tables: Any) -> tuple[ProviderConfig, ...]:
        providers = tuple(
            self._provider(table, ("providers", i)) for i, table in self._elements(tables, ("providers",))
        )
        first_at: dict[str, int] = {}
        for i, provider in enumerate(providers):
            if first_at.setdefault(provider.name, i) != i:
                self._fail(("providers", i, "name"), f"there are two providers named {quote(provider.name)}")
        return providers or (ProviderConfig("local", "Local", str(self._path("store"))),)

    def _provider(self, table: Any, at: KeyPath) -> ProviderConfig:
        is_local = isinstance(table, dict) and table.get("type") == "Local"
        found = self._table(table, at, _ANY_PROVIDER if is_local else _CLOUD_PROVIDER, need=("name", "type", "bucket"))
        kind = found["type"]
        if is_local:
            found["bucket"] = str(self._path(found["bucket"]))
        if kind == "S3Compatible" and "endpoint_url" not in found:
            self._fail(at, f"provider {found['name']} is of type {table['type']} and needs endpoint_url")
        if ("access_key" in found) != ("secret_key" in found):
            self._fail(at, f"provider {found['name']} needs both access_key and secret_key, or neither")
        if "ca_bundle" in found:
            found["ca_bundle"] = self._path(found["ca_bundle"])
        found.setdefault("path_style", kind == "S3Compatible")
        return ProviderConfig(**found)

    def _chunk_strategy(self, table: Any) -> ChunkStrategy:
        at = ("enigma", "chunk_strategy")
        if table == {}:
            return ChunkStrategy()
        self._known(table, at, tuple(_CHUNK_STRATEGIES))
        if len(table) != 1:
            self._fail(at, "choose one of [enigma.chunk_strategy.Cdc] and [enigma.chunk_strategy.Fixed]")
        kind: Literal["Cdc", "Fixed"] = "Cdc" if "Cdc" in table else "Fixed"
        sizes = self._table(table[kind], (*at, kind), _CHUNK_STRATEGIES[kind])
        return replace(ChunkStrategy(kind, *sizes.values()), stated=True)

    def _s3_proxy(self, table: Any) -> S3ProxyConfig:
        found = self._table(table, ("s3_proxy",), _S3_PROXY, need=("access_key", "secret_key"))
        if ("tls_cert" in found) != ("tls_key" in found):
            self._fail(("s3_proxy",), "HTTPS needs both tls_cert and tls_key")
        found.update({key: self._path(found[key]) for key in ("tls_cert", "tls_key") if key in found})
        return S3ProxyConfig(**found)

    def _raft(self, table: Any) -> RaftConfig:
        at = ("raft",)
        found = self._table(table, at, _RAFT, tables=("peers",), need=("node_id", "data_dir", "grpc_addr"))
        peers = tuple(
            RaftPeer(**self._table(peer, (*at, "peers", i), _RAFT_PEER, need=("id", "addr")))
            for i, peer in self._elements(table.get("peers", []), (*at, "peers"))
        )
        if len({peer.id for peer in peers}) != len(peers):
            self._fail((*at, "peers"), "two peers have the same id")
        found["data_dir"] = self._path(found["data_dir"])
        config = RaftConfig(**found, peers=peers)
        if peers and config.node_id not in {peer.id for peer in peers}:
            self._fail((*at, "node_id"), f"no [[raft.peers]] has the id {config.node_id} of this node")
        if config.heartbeat_interval_ms >= config.election_timeout_ms:
            self._fail((*at, "heartbeat_interval_ms"), "heartbeat_interval_ms must be less than election_timeout_ms")
        return config

    def _check_key_provider(self, config: Config) -> None:
        need = _KEY_PROVIDER_NEEDS.get(config.key_provider)
        if need and not getattr(config, need):
            self._fail(("enigma", "key_provider"), f'key_provider "{config.key_provider}" needs {need}')

    def _check_distribution(self, config: Config) -> None:
        count = len(config.providers)
        if config.distribution == "Mirror" and config.mirror_copies > count:
            self._fail(
                ("enigma", "distribution"),
                f"Mirror with {config.mirror_copies} copies needs as many providers; there are {count}",
            )
        shards = config.erasure_data + config.erasure_parity
        if config.distribution == "Erasure" and shards > count:
            self._fail(
                ("enigma", "distribution"),
                f"Erasure with {config.erasure_data} + {config.erasure_parity} shards needs {shards} providers; "
                f"there are {count}",
            )

    def _table(
        self,
        table: Any,
        at: KeyPath,
        checks: Mapping[str, Check],
        *,
        tables: tuple[str, ...] = (),
        need: tuple[str, ...] = (),
    ) -> dict[str, Any]:
        """The checked scalars of one table; `tables` names the keys that the caller reads itself."""
        self._known(table, at, (*checks, *tables))
        for key in need:
            if key not in table:
                self._fail(at, f"{_title(at)} lacks the key {key}")
        return {key: self._checked(value, (*at, key), checks[key]) for key, value in table.items() if key in checks}

    def _checked(self, value: Any, at: KeyPath, check: Check) -> Any:
        try:
            return check(value)
        except ValueError as exc:
            self._fail(at, f"{at[-1]} {exc}", cause=exc)

    def _known(self, table: Any, at: KeyPath, keys: Iterable[str]) -> None:
        if not isinstance(table, dict):
            self._fail(at, f"{at[-1]} must be a table")
        for key in table:
            if key not in keys:
                self._fail((*at, key), f"there is no key {quote(key)} in {_title(at)}{_nearest(key, keys)}")

    def _elements(self, tables: Any, at: KeyPath) -> Iterable[tuple[int, Any]]:
        if not isinstance(tables, list):
            self._fail(at, f"write [[{at[-1]}]] with double brackets: there can be several")
        return enumerate(tables)

    def _path(self, text: str) -> Path:
        return Path(os.path.abspath(self.path.parent / os.path.expanduser(text)))

    def _optional_path(self, text: str | None) -> Path | None:
        return self._path(text) if text else None

    def _fail(self, at: KeyPath, reason: str, *, cause: Exception | None = None) -> NoReturn:
        line = line_of(find_lines(self.text), at)
        raise ConfigError(f"{self.path}:{line}: {reason}{'' if reason.endswith('?') else '.'}") from cause


def _nearest(word: Any, choices: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(choices), n=1) if isinstance(word, str) else []
    return f"; did you mean {quote(near[0])}?" if near else ""


def _title(at: KeyPath) -> str:
    """How a person would point at a table: "[enigma.mirror]", "[[providers]] number 2"."""
    if not at:
        return "this file"
    names = ".".join(str(part) for part in at if isinstance(part, str))
    return f"[[{names}]] number {at[-1] + 1}" if isinstance(at[-1], int) else f"[{names}]"


# -- showing ------------------------------------------------------------------------------------------------------


def _enigma_layout(config: Config) -> dict[str, Any]:
    layout: dict[str, Any] = _shown({name: getattr(config, name) for name in _ENIGMA})
    if config.distribution == "Mirror":
        layout["mirror"] = {"copies": config.mirror_copies}
    if config.distribution == "Erasure":
        layout["erasure"] = {"data": config.erasure_data, "parity": config.erasure_parity}
    strategy = config.chunk_strategy
    size_key = next(iter(_CHUNK_STRATEGIES[strategy.kind]))
    layout["chunk_strategy"] = {strategy.kind: {size_key: strategy.target_bytes}}
    layout["compression"] = _plain(config.compression)
    return layout


def _provider_layout(provider: ProviderConfig) -> dict[str, Any]:
    keys = _ANY_PROVIDER if provider.type == "Local" else _CLOUD_PROVIDER
    return {key: value for key, value in _plain(provider).items() if key in keys}


def _plain(record: Any) -> dict[str, Any]:
    """A flat record as a table; a field without repr is a secret."""
    secrets = {name for name, spec in record.__dataclass_fields__.items() if not spec.repr}
    values = {name: getattr(record, name) for name in record.__dataclass_fields__}
    return _shown({name: "***" if name in secrets and value else value for name, value in values.items()})


def _shown(values: dict[str, Any]) -> dict[str, Any]:
    """Without what is not set, and with nothing in it but what both TOML and JSON can say."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in values.items()
        if value is not None and value != "" and not isinstance(value, tuple)
    }


def _toml_blocks(title: str, table: dict[str, Any]) -> Iterable[str]:
    """One block of text for each table, the outer ones first."""
    scalars = [f"{key} = {_toml_value(value)}" for key, value in table.items() if not isinstance(value, dict | list)]
    if scalars:
        yield "\n".join([f"[{title}]", *scalars])
    for key, value in table.items():
        name = f"{title}.{key}" if title else key
        if isinstance(value, dict):
            yield from _toml_blocks(name, value)
        elif isinstance(value, list):
            for element in value:
                yield from _toml_blocks(f"[{name}]", element)


def _toml_value(value: str | int | bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return quote(value) if isinstance(value, str) else str(value)
