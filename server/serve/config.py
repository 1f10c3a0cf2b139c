"""server.toml: all that `hedgerow serve` can be told."""

from __future__ import annotations

import ipaddress
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path

from edge_runtime.config import flatten_tree, from_flat, key, section
from edge_runtime.errors import ConfigError
from server.certs import SERVER, SERVER_KEY

FILE = "server.toml"


@dataclass(frozen=True, slots=True)
class CertsConfig:
    """`folder`: what `hedgerow certs` made; empty = `certs` in the state folder. Or a certificate and its key."""

    folder: str = key("")
    certificate: str = key("")
    key: str = key("")

    def __post_init__(self) -> None:
        if bool(self.certificate) != bool(self.key):
            raise ConfigError("certs.certificate and certs.key: give both, or certs.folder")


@dataclass(frozen=True, slots=True)
class DashboardConfig:
    """`token_file`: who may look; see `hedgerow dashboard`. Empty: nobody is asked, which only loopback may have."""

    enabled: bool = key(True)
    host: str = key("127.0.0.1")
    port: int = key(8080, low=1, high=65_535)
    token_file: str = key("")

    def __post_init__(self) -> None:
        if self.enabled and not self.token_file and not is_loopback(self.host):
            raise ConfigError(
                f"dashboard.host = {self.host!r}: is open to the network; give dashboard.token_file, or use 127.0.0.1"
            )


@dataclass(frozen=True, slots=True)
class SuperlinkConfig:
    """`environment`: NAME=VALUE, for the SuperLink and the server app. `poll_s`: how often new tasks are looked for."""

    environment: tuple[str, ...] = key(())
    poll_s: float = key(0.2, low=0.01, high=60)

    def __post_init__(self) -> None:
        for entry in self.environment:
            name, equals, _ = entry.partition("=")
            if not equals or not name.isidentifier():
                raise ConfigError(f"superlink.environment: {entry!r} is not of the form NAME=VALUE")


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """`request_bytes`: of one request at the devices' door, where large arrays come in parts of 5 MB.

    `connections`: open at a time at that door. `attempts`: starts in a row of one job without a newly closed round
    before it has failed.
    """

    request_bytes: int = key(16 << 20, low=1 << 20, high=1 << 30)
    connections: int = key(4096, low=1, high=1_000_000)
    attempts: int = key(5, low=1, high=1000)


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """`host` and `port`: where devices come. `insecure`: plain HTTP and no device keys, on loopback only."""

    host: str = key("0.0.0.0")  # noqa: S104  # devices come from the network; they need keys, and there is TLS
    port: int = key(8443, low=1, high=65_535)
    insecure: bool = key(False)
    certs: CertsConfig = section(CertsConfig)
    dashboard: DashboardConfig = section(DashboardConfig)
    superlink: SuperlinkConfig = section(SuperlinkConfig)
    limits: LimitsConfig = section(LimitsConfig)

    def __post_init__(self) -> None:
        if self.insecure and not is_loopback(self.host):
            raise ConfigError(
                f"insecure = true with host = {self.host!r}: anyone on the network could read and answer for a "
                'device; use host = "127.0.0.1", or make certificates: hedgerow certs new'
            )

    def certificate_and_key(self, state: Path) -> tuple[Path, Path] | None:
        """The files that TLS needs; None without TLS.

        Raises:
            ConfigError: one is missing.

        """
        if self.insecure:
            return None
        folder = Path(self.certs.folder) if self.certs.folder else state / "certs"
        files = (
            (Path(self.certs.certificate), Path(self.certs.key))
            if self.certs.certificate
            else (folder / SERVER, folder / SERVER_KEY)
        )
        for path in files:
            if not path.is_file():
                raise ConfigError(
                    f"{path}: no such file; make one with `hedgerow certs new {folder} --host NAME_OR_ADDRESS`"
                )
        return files


def load(path: Path | None, state: Path) -> ServeConfig:
    """The settings in `path`, else in the state folder's server.toml, else the defaults.

    Paths in the file are relative to its folder.

    Raises:
        ConfigError: no such file, not TOML, or a key that is unknown or out of range.

    """
    if path is None:
        path = state / FILE
        if not path.exists():
            return ServeConfig()
    try:
        tree = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML ({error})") from error
    config = from_flat(ServeConfig, flatten_tree(tree))
    base = path.resolve().parent

    def there(text: str) -> str:
        return str(base / Path(text).expanduser()) if text else ""

    certs = CertsConfig(there(config.certs.folder), there(config.certs.certificate), there(config.certs.key))
    dashboard = replace(config.dashboard, token_file=there(config.dashboard.token_file))
    return replace(config, certs=certs, dashboard=dashboard)


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
