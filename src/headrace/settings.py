"""The settings tree: defaults, then a TOML file, then the environment, then the command line.

`HEADRACE_SERVER__HTTP_PORT=9000` sets `http_port` of `[server]`. An unknown key or a wrong type
stops the start with the key's full path.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, Literal, TypeAlias, get_args, get_type_hints

import msgspec

from headrace.adapters.artifacts.settings import ArtifactSettings, LocalArtifacts
from headrace.adapters.inspection import InspectionSettings
from headrace.adapters.jwt.settings import JwtSettings
from headrace.adapters.kafka.settings import KafkaSettings
from headrace.adapters.memory_cache import MemoryCacheSettings
from headrace.adapters.memory_limiter import MemoryLimiterSettings
from headrace.adapters.memory_queue import MemoryQueueSettings
from headrace.adapters.redis.settings import RedisCacheSettings, RedisLimiterSettings
from headrace.adapters.sql.settings import SqliteSettings, StoreSettings
from headrace.batch.settings import BatchSettings
from headrace.domain.errors import InvalidSettings
from headrace.domain.names import RULE, is_name
from headrace.gateway.admission import AdmissionSettings
from headrace.gateway.authentication import AuthenticationSettings
from headrace.gateway.limits import LimitSettings
from headrace.gateway.settings import GatewaySettings
from headrace.orchestrator.settings import OrchestratorSettings
from headrace.registry.cached_reader import CachedReaderSettings
from headrace.registry.endpoint_content import EndpointContent
from headrace.registry.route_content import RouteContent
from headrace.registry.settings import RegistrySettings
from headrace.resilience.backoff import RetrySettings
from headrace.resilience.breaker import BreakerSettings
from headrace.resilience.health_checks import HealthCheckSettings
from headrace.resilience.outliers import OutlierSettings
from headrace.router.settings import HedgingSettings, RouterSettings
from headrace.telemetry.logs import LogSettings
from headrace.transport.cors import CorsSettings
from headrace.transport.http.client.limits import ClientLimits
from headrace.transport.http.limits import HttpLimits
from headrace.transport.http.tls import TlsProfile
from headrace.transport.oip_grpc.settings import GrpcClientSettings
from headrace.transport.openai.settings import EndpointKey

ENVIRONMENT_PREFIX: Final = "HEADRACE_"
_SECTION: Final = "__"


class ServerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the platform listens, and how it stops."""

    #: Address to listen on. Beyond loopback `authentication` must be configured.
    host: str = "127.0.0.1"
    #: TCP port for HTTP; 0 takes a free one.
    http_port: int = 8080
    #: TCP port for gRPC; 0 takes a free one.
    grpc_port: int = 8081
    #: How answers over gRPC are compressed, where the client takes that: by `gzip`, by `deflate`,
    #: or `none`. Requests may be compressed by either.
    grpc_compression: Literal["none", "gzip", "deflate"] = "none"
    #: Seconds after SIGTERM in which requests are still taken while `/readyz` says 503, so that
    #: load balancers notice before anything is refused.
    drain_delay_s: float = 0.0
    #: Seconds that requests under way get to finish after that.
    drain_grace_s: float = 30.0


class StorageSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What this process keeps on its own disk."""

    #: Directory for the embedded database, uploaded models and fetched ones. It is made where it
    #: is missing; "" is `$XDG_DATA_HOME/headrace`, or `~/.local/share/headrace`.
    data_dir: str = ""


CacheSettings: TypeAlias = MemoryCacheSettings | RedisCacheSettings
LimiterSettings: TypeAlias = MemoryLimiterSettings | RedisLimiterSettings
QueueSettings: TypeAlias = MemoryQueueSettings | KafkaSettings


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that can be set, by section."""

    #: `development` accepts a token that everybody knows, so that credentials can be tried without
    #: making any. Never for a platform that others reach.
    mode: Literal["production", "development"] = "production"
    server: ServerSettings = ServerSettings()
    storage: StorageSettings = StorageSettings()
    http: HttpLimits = HttpLimits()
    cors: CorsSettings = CorsSettings()
    authentication: AuthenticationSettings = AuthenticationSettings()
    jwt: JwtSettings = JwtSettings()
    gateway: GatewaySettings = GatewaySettings()
    limits: LimitSettings = LimitSettings()
    limiter: LimiterSettings = MemoryLimiterSettings()
    admission: AdmissionSettings = AdmissionSettings()
    router: RouterSettings = RouterSettings()
    orchestrator: OrchestratorSettings = OrchestratorSettings()
    retries: RetrySettings = RetrySettings()
    hedging: HedgingSettings = HedgingSettings()
    breaker: BreakerSettings = BreakerSettings()
    outliers: OutlierSettings = OutlierSettings()
    health_checks: HealthCheckSettings = HealthCheckSettings()
    endpoint_http: ClientLimits = ClientLimits()
    endpoint_grpc: GrpcClientSettings = GrpcClientSettings()
    endpoints: dict[str, EndpointContent] = {}
    endpoint_keys: dict[str, EndpointKey] = {}
    routes: dict[str, RouteContent] = {}
    tls: dict[str, TlsProfile] = {}
    registry: RegistrySettings = RegistrySettings()
    registry_reads: CachedReaderSettings = CachedReaderSettings()
    inspection: InspectionSettings = InspectionSettings()
    database: StoreSettings = SqliteSettings()
    cache: CacheSettings = MemoryCacheSettings()
    artifacts: ArtifactSettings = LocalArtifacts()
    batch: BatchSettings = BatchSettings()
    queue: QueueSettings = MemoryQueueSettings()
    log: LogSettings = LogSettings()


def load(
    file: Path | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Settings:
    """Gather the settings; `overrides` has the tree's form and comes last.

    Raises:
        InvalidSettings: a file that is not there or not TOML, an unknown key, a wrong type or a
            value out of range, with the key's path.
    """
    tree: dict[str, Any] = {}
    if file is not None:
        tree = _read(file)
        _check_keys(tree, Settings, str(file))
        _convert(tree, f"{file}: ")
    for name, text in sorted((environment or {}).items()):
        if name.startswith(ENVIRONMENT_PREFIX):
            _merge(tree, _from_environment(name, text))
    _merge(tree, overrides or {})
    settings = _convert(tree, "")
    _check_ranges(settings)
    _check_profiles(settings)
    _check_endpoint_keys(settings)
    return settings


def _read(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        msg = f"settings file {file}: {error.strerror}"
        raise InvalidSettings(msg) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        msg = f"settings file {file} is not TOML: {error}"
        raise InvalidSettings(msg) from error


def _convert(tree: Mapping[str, Any], where: str) -> Settings:
    try:
        return msgspec.convert(_with_kinds(tree), Settings)
    except msgspec.ValidationError as error:
        # "at `key` in" is of a mapping whose keys have bounds
        reason, _, path = str(error).replace(" - at `key` in `", " - at `").partition(" - at `$.")
        if "[...]" in path:  # a key of a mapping, which msgspec does not name
            path = path.replace("[...]", _odd_key(tree, path), 1)
        path = path.rstrip("`")
        if reason.startswith("Invalid enum value"):
            reason += _choices(path)
        key, _, rest = reason.partition(" ")
        key = key.removesuffix(":")
        if path in tree and isinstance(tree[path], dict) and key in _hints(_type_of(path)):
            path, reason = f"{path}.{key}", rest  # a section's own check, which names the key first
        msg = f"{where}{path}: {reason}" if path else f"{where}{reason}"
        raise InvalidSettings(msg) from None


def _choices(path: str) -> str:
    """What a setting may be where it is one of a few words; "" where that is not known."""
    kind: Any = Settings
    for part in path.split("."):
        if _is_mapping(kind):
            kind = get_args(kind)[1]
            continue
        hints = _hints(kind) if _is_section(kind) else {}
        if part not in hints:
            return ""
        kind = hints[part]
    choices = [word for each in get_args(kind) for word in get_args(each) or (each,)]
    words = ", ".join(f"'{word}'" for word in choices if isinstance(word, str))
    return f"; it is one of {words}" if words else ""


def _with_kinds(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The tree with the usual `kind` in every section that has kinds and names none."""
    whole = dict(tree)
    for field in msgspec.structs.fields(Settings):
        section = whole.get(field.name)
        if isinstance(section, dict) and isinstance(field.type, UnionType):
            config = type(field.default).__struct_config__
            whole[field.name] = {config.tag_field: config.tag, **section}
    return whole


def _type_of(section: str) -> Any:
    return get_type_hints(Settings)[section]


def _hints(section: Any) -> dict[str, Any]:
    """Keys and types of a section, of whatever kind."""
    if not isinstance(section, UnionType):
        return {key: _or_nothing(kind) for key, kind in get_type_hints(section).items()}
    hints: dict[str, Any] = {}
    for kind in get_args(section):
        hints |= {kind.__struct_config__.tag_field: str, **get_type_hints(kind)}
    return hints


def _or_nothing(kind: Any) -> Any:
    """The section in a kind that is a section or not set; any other kind as it is."""
    if not isinstance(kind, UnionType):
        return kind
    kinds = [each for each in get_args(kind) if each is not NoneType]
    return kinds[0] if len(kinds) == 1 and _is_section(kinds[0]) else kind


def _odd_key(tree: Mapping[str, Any], path: str) -> str:
    """The first key of the mapping at `path` whose value does not fit."""
    kind: Any = Settings
    for part in path.partition("[")[0].split("."):
        tree, kind = tree[part], _hints(kind)[part]
    for key, value in tree.items():
        try:
            msgspec.convert(value, get_args(kind)[1])
        except msgspec.ValidationError:
            return f".{key}"
    return "[...]"


def _check_keys(tree: Mapping[str, Any], struct: Any, where: str, path: str = "") -> None:
    hints = _hints(struct)
    for key, value in tree.items():
        if key not in hints:
            raise InvalidSettings(_unknown(f"{where}: {path}{key}", key, hints))
        kind = hints[key]
        if isinstance(value, dict) and _is_section(kind):
            _check_keys(value, kind, where, f"{path}{key}.")
        elif isinstance(value, dict) and _is_mapping(kind) and _is_section(get_args(kind)[1]):
            for name, each in value.items():
                if isinstance(each, dict):
                    _check_keys(each, get_args(kind)[1], where, f"{path}{key}.{name}.")


def _from_environment(name: str, text: str) -> dict[str, Any]:
    keys = name.removeprefix(ENVIRONMENT_PREFIX).split(_SECTION)
    kind: Any = Settings
    for depth, written in enumerate(keys):
        if _is_mapping(kind):  # its keys are names that somebody chose: as written
            kind = get_args(kind)[1]
            continue
        key = keys[depth] = written.lower()
        hints = _hints(kind) if _is_section(kind) else {}
        if key not in hints:
            path = ".".join(keys[: depth + 1])
            raise InvalidSettings(_unknown(f"environment variable {name}: {path}", key, hints))
        kind = hints[key]
    if _is_section(kind):
        first = next(iter(_hints(kind))).upper()
        msg = f"environment variable {name} is a section; set a key of it: {name}__{first}"
        raise InvalidSettings(msg)
    try:
        if _is_mapping(kind) or str(kind).startswith(("list", "tuple")):
            msgspec.json.decode(text, type=kind)
            # as the file would have it, so that other variables can set what is left out
            value = msgspec.json.decode(text)
        else:
            value = msgspec.convert(text, kind, strict=False)
    except msgspec.ValidationError as error:
        reason = str(error)
        if reason.startswith("Invalid enum value"):
            reason += _choices(".".join(keys))
        msg = f"environment variable {name}: {reason}"
        raise InvalidSettings(msg) from None
    except msgspec.DecodeError:
        like = '{"name": …}' if _is_mapping(kind) else '["one", "two"]'
        msg = f"environment variable {name}: expected JSON, as {like}"
        raise InvalidSettings(msg) from None
    for key in reversed(keys):
        value = {key: value}
    return value  # type: ignore[no-any-return]


def _merge(tree: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        known = tree.get(key)
        if isinstance(known, dict) and isinstance(value, Mapping):
            _merge(known, value)
        else:
            tree[key] = value


def _is_section(kind: Any) -> bool:
    if isinstance(kind, UnionType):
        return all(map(_is_section, get_args(kind)))
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _is_mapping(kind: Any) -> bool:
    return str(kind).startswith("dict")


def _unknown(what: str, key: str, known: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(key, known, n=1)
    if close:
        return f"{what} is not a setting; did you mean '{close[0]}'?"
    if known:
        return f"{what} is not a setting; known are {', '.join(sorted(known))}"
    return f"{what} is not a setting: what stands before it is a value, not a section"


def _check_ranges(settings: Settings) -> None:
    """Numbers that no combination makes sensible. Durations and sizes are never negative."""
    for section, values in msgspec.to_builtins(settings).items():
        if not isinstance(values, dict):
            continue
        for key, value in values.items():
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if number and not 0 <= value < math.inf:
                msg = f"{section}.{key}: expected a number >= 0, got {value}"
                raise InvalidSettings(msg)
    for key in ("http_port", "grpc_port"):
        port = getattr(settings.server, key)
        if port > 65535:  # noqa: PLR2004 - the largest TCP port
            msg = f"server.{key}: expected a port from 0 to 65535, got {port}"
            raise InvalidSettings(msg)
    if settings.server.http_port == settings.server.grpc_port != 0:
        msg = f"server.http_port and server.grpc_port are both {settings.server.http_port}"
        raise InvalidSettings(msg)
    http = settings.http
    if http.max_buffered_bytes < http.max_body_bytes:
        msg = (
            f"http.max_buffered_bytes ({http.max_buffered_bytes}) is below http.max_body_bytes "
            f"({http.max_body_bytes}): a body between the two could never be taken"
        )
        raise InvalidSettings(msg)
    gateway = settings.gateway
    if not gateway.default_timeout_s:
        msg = "gateway.default_timeout_s: expected seconds > 0; with 0 every request is too late"
        raise InvalidSettings(msg)
    if gateway.default_timeout_s > gateway.max_timeout_s:
        msg = (
            f"gateway.default_timeout_s ({gateway.default_timeout_s}) is over "
            f"gateway.max_timeout_s ({gateway.max_timeout_s})"
        )
        raise InvalidSettings(msg)


def _check_profiles(settings: Settings) -> None:
    """TLS profiles, which endpoints name."""
    for name in settings.tls:
        if not is_name(name):
            msg = f"tls.{name}: a name must be {RULE}"
            raise InvalidSettings(msg)
    for name, endpoint in settings.endpoints.items():
        if endpoint.tls and endpoint.tls not in settings.tls:
            known = ", ".join(sorted(settings.tls)) or "none"
            msg = (
                f"endpoints.{name}.tls: there is no profile [tls.{endpoint.tls}]; there is {known}"
            )
            raise InvalidSettings(msg)


def _check_endpoint_keys(settings: Settings) -> None:
    for name in settings.endpoint_keys:
        endpoint = settings.endpoints.get(name)
        if endpoint is None or endpoint.protocol != "openai":
            msg = f"endpoint_keys.{name}: there is no [endpoints.{name}] whose protocol is openai"
            raise InvalidSettings(msg)
