from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import pytest

from headrace.adapters.sql.settings import PostgresSettings, SqliteSettings
from headrace.domain.errors import InvalidSettings
from headrace.settings import ENVIRONMENT_PREFIX, Settings, load

Toml: TypeAlias = Callable[[str], Path]

DIGEST = "0" * 64


@pytest.fixture
def toml(tmp_path: Path) -> Toml:
    def write(text: str) -> Path:
        file = tmp_path / "my.toml"
        file.write_text(text)
        return file

    return write


def _refusal(file: Path | None = None, **sources: Any) -> str:
    with pytest.raises(InvalidSettings) as caught:
        load(file, **sources)
    return caught.value.message


def _from_environment(**variables: str) -> Settings:
    return load(environment={ENVIRONMENT_PREFIX + name: text for name, text in variables.items()})


def _environment_refusal(**variables: str) -> str:
    with pytest.raises(InvalidSettings) as caught:
        _from_environment(**variables)
    return caught.value.message


# What comes before what


def test_nothing_has_to_be_set() -> None:
    assert load() == Settings()


def test_the_defaults_themselves_are_allowed() -> None:
    assert load(overrides=msgspec.to_builtins(Settings())) == Settings()


def test_the_command_line_beats_the_environment_beats_the_file_beats_the_defaults(
    toml: Toml,
) -> None:
    file = toml(
        """
        [server]
        drain_grace_s = 1
        grpc_port = 1
        http_port = 1
        """
    )
    environment = {"HEADRACE_SERVER__GRPC_PORT": "2", "HEADRACE_SERVER__HTTP_PORT": "2"}
    server = load(file, environment=environment, overrides={"server": {"http_port": 3}}).server
    assert server.host == "127.0.0.1"
    assert (server.drain_grace_s, server.grpc_port, server.http_port) == (1.0, 2, 3)


def test_what_one_source_leaves_out_of_a_section_another_may_set(toml: Toml) -> None:
    file = toml("[log]\nlevel = 'debug'\n[server]\nhttp_port = 1")
    settings = load(file, environment={"HEADRACE_LOG__FORMAT": "json"})
    assert (settings.log.level, settings.log.format, settings.server.http_port) == (
        "debug",
        "json",
        1,
    )


def test_callers_of_the_file_and_of_the_environment_are_added_up(toml: Toml) -> None:
    file = toml(f"[authentication.tokens]\nalice = '{DIGEST}'")
    environment = {"HEADRACE_AUTHENTICATION__TOKENS__BOB": "1" * 64}
    tokens = load(file, environment=environment).authentication.tokens
    assert tokens == {"alice": DIGEST, "BOB": "1" * 64}


def test_reading_leaves_the_overrides_as_they_were() -> None:
    overrides = {"server": {"http_port": 3}}
    load(environment={"HEADRACE_SERVER__HOST": "::1"}, overrides=overrides)
    assert overrides == {"server": {"http_port": 3}}


# The file


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("[server]\nhttp_prt = 1", "server.http_prt is not a setting; did you mean 'http_port'?"),
        ("[sever]\nhttp_port = 1", "sever is not a setting; did you mean 'server'?"),
        (
            "[zzz]",
            f"zzz is not a setting; known are {', '.join(sorted(Settings.__struct_fields__))}",
        ),
        (
            "[log]\nlevels = 'debug'\n[server]\nhttp_port = 'x'",
            "log.levels is not a setting; did you mean 'level'?",
        ),
        ("server = 3", "server: Expected `object`, got `int`"),
        ("[server]\nhttp_port = '80'", "server.http_port: Expected `int`, got `str`"),
        ("[server]\nhttp_port = true", "server.http_port: Expected `int`, got `bool`"),
        ("[server]\nhost = 1", "server.host: Expected `str`, got `int`"),
        ("[gateway]\nmax_timeout_s = '1s'", "gateway.max_timeout_s: Expected `float`, got `str`"),
        (
            "[log]\nlevel = 'loud'",
            (
                "log.level: Invalid enum value 'loud'; "
                "it is one of 'debug', 'info', 'warning', 'error'"
            ),
        ),
        ("[log]\naccess_per_s = 0", "log.access_per_s: Expected `int` >= 1"),
        (
            "[authentication]\ntokens = ['x']",
            "authentication.tokens: Expected `object`, got `array`",
        ),
    ],
)
def test_a_mistake_in_the_file_is_refused_with_the_keys_full_path(
    toml: Toml, text: str, refusal: str
) -> None:
    file = toml(text)
    assert _refusal(file) == f"{file}: {refusal}"


def test_a_token_of_the_wrong_type_is_refused_by_its_callers_name(toml: Toml) -> None:
    file = toml("[authentication.tokens]\nbob = 3")
    assert (
        _refusal(file) == f"{file}: authentication.tokens.bob: Expected `str | object`, got `int`"
    )


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    file = tmp_path / "gone.toml"
    assert _refusal(file) == f"settings file {file}: No such file or directory"
    assert _refusal(tmp_path) == f"settings file {tmp_path}: Is a directory"


@pytest.mark.parametrize("data", [b"[server", b"a = ", b"\xff", b"a = 1\na = 2"])
def test_what_is_not_toml_is_refused(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "my.toml"
    file.write_bytes(data)
    assert _refusal(file).startswith(f"settings file {file} is not TOML: ")


# The environment


@pytest.mark.parametrize(
    ("name", "text", "key", "value"),
    [
        ("SERVER__HTTP_PORT", "9000", ("server", "http_port"), 9000),
        ("SERVER__HOST", "0.0.0.0", ("server", "host"), "0.0.0.0"),  # noqa: S104
        ("GATEWAY__DEFAULT_TIMEOUT_S", "2", ("gateway", "default_timeout_s"), 2.0),
        ("GATEWAY__DEFAULT_TIMEOUT_S", "2.5", ("gateway", "default_timeout_s"), 2.5),
        ("LOG__LEVEL", "debug", ("log", "level"), "debug"),
        ("log__level", "debug", ("log", "level"), "debug"),
        ("AUTHENTICATION__TOKENS__CI", DIGEST, ("authentication", "tokens"), {"CI": DIGEST}),
        (
            "AUTHENTICATION__TOKENS",
            f'{{"ci": "{DIGEST}"}}',
            ("authentication", "tokens"),
            {"ci": DIGEST},
        ),
    ],
)
def test_a_variable_sets_the_key_that_it_names(
    name: str, text: str, key: tuple[str, str], value: object
) -> None:
    settings = _from_environment(**{name: text})
    section = getattr(settings, key[0])
    assert getattr(section, key[1]) == value


def test_every_setting_can_be_set_by_a_variable() -> None:
    def told(path: str, value: Any) -> Iterator[tuple[str, str]]:
        if isinstance(value, msgspec.Struct):
            if tag := value.__struct_config__.tag:
                yield f"{path}KIND", str(tag)
            for name in value.__struct_fields__:
                yield from told(f"{path}{name.upper()}__", getattr(value, name))
        elif isinstance(value, dict | list | tuple):
            yield path.removesuffix("__"), msgspec.json.encode(value).decode()
        else:
            yield path.removesuffix("__"), str(value)

    variables = dict(told("", Settings()))
    assert _from_environment(**variables) == Settings()


def test_other_variables_are_not_looked_at() -> None:
    environment = {"PATH": "/bin", "HEADRACER": "1", "SERVER__HTTP_PORT": "x"}
    assert load(environment=environment) == Settings()


@pytest.mark.parametrize(
    ("name", "text", "refusal"),
    [
        (
            "SERVER__HTTP_PRT",
            "1",
            ": server.http_prt is not a setting; did you mean 'http_port'?",
        ),
        ("SEVER__HTTP_PORT", "1", ": sever is not a setting; did you mean 'server'?"),
        ("SERVER_HTTP_PORT", "1", ": server_http_port is not a setting; "),
        ("SERVER", "1", " is a section; set a key of it: HEADRACE_SERVER__HOST"),
        ("SERVER__HTTP_PORT", "http", ": Expected `int`, got `str`"),
        ("SERVER__HTTP_PORT", "", ": Expected `int`, got `str`"),
        ("SERVER__HTTP_PORT__X", "1", ": server.http_port.x is not a setting: "),
        ("LOG__LEVEL", "loud", ": Invalid enum value 'loud'"),
        ("AUTHENTICATION__TOKENS", "alice", ": "),
        ("", "1", ":  is not a setting; "),
    ],
)
def test_a_mistake_in_a_variable_is_refused_by_its_name(name: str, text: str, refusal: str) -> None:
    message = _environment_refusal(**{name: text})
    assert message.startswith(f"environment variable HEADRACE_{name}{refusal}")
    assert "\n" not in message


def test_a_variable_is_held_to_the_same_bounds() -> None:
    assert _environment_refusal(LOG__ACCESS_PER_S="0") == "log.access_per_s: Expected `int` >= 1"


# The command line


def test_a_mistake_in_the_overrides_is_refused_with_its_path() -> None:
    assert _refusal(overrides={"server": {"http_port": "x"}}) == (
        "server.http_port: Expected `int`, got `str`"
    )
    assert "`http_prt`" in _refusal(overrides={"server": {"http_prt": 1}})


# Values that cannot be


@pytest.mark.parametrize(
    ("section", "key"),
    [
        (section, key)
        for section, values in msgspec.to_builtins(Settings()).items()
        if isinstance(values, dict)
        for key, value in values.items()
        if isinstance(value, int | float)
    ],
)
def test_no_number_may_be_negative(section: str, key: str) -> None:
    assert _refusal(overrides={section: {key: -1}}).startswith(f"{section}.{key}: ")


@pytest.mark.parametrize("key", ["http_port", "grpc_port"])
def test_a_port_is_at_most_65535(key: str) -> None:
    assert getattr(load(overrides={"server": {key: 65535}}).server, key) == 65535
    assert _refusal(overrides={"server": {key: 65536}}) == (
        f"server.{key}: expected a port from 0 to 65535, got 65536"
    )


def test_the_default_timeout_is_within_the_maximum() -> None:
    both = {"default_timeout_s": 3.0, "max_timeout_s": 3.0}
    assert load(overrides={"gateway": both}).gateway.default_timeout_s == 3.0
    assert _refusal(overrides={"gateway": {"max_timeout_s": 2.0}}) == (
        "gateway.default_timeout_s (60.0) is over gateway.max_timeout_s (2.0)"
    )


def test_what_is_not_a_number_is_no_number_of_seconds(toml: Toml) -> None:
    assert _refusal(toml("[gateway]\ndefault_timeout_s = nan"))


# Sections of several kinds


def test_a_section_of_several_kinds_is_of_the_first_unless_it_says_otherwise(toml: Toml) -> None:
    assert load(toml("[database]\npath = '/x'")).database == SqliteSettings(path="/x")
    dsn = "postgresql://h/d"
    text = f"[database]\nkind = 'postgres'\ndsn = '{dsn}'"
    assert load(toml(text)).database == PostgresSettings(dsn=dsn)
    variables = {"DATABASE__KIND": "postgres", "DATABASE__DSN": dsn, "DATABASE__POOL_SIZE": "3"}
    assert _from_environment(**variables).database == PostgresSettings(dsn=dsn, pool_size=3)


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("[database]\npth = 'x'", "database.pth is not a setting; did you mean 'path'?"),
        ("[database]\nkind = 'mysql'", "database.kind: Invalid value 'mysql'"),
        ("[database]\nkind = 'postgres'\npath = 'x'", "database: Object contains unknown field"),
        ("[database]\nkind = 'postgres'\npool_size = 0", "database.pool_size: Expected `int` >= 1"),
        ("[cache]\nmax_entries = 0", "cache.max_entries: must be at least 1, got 0"),
        ("[artifacts]\nkind = 's3'", "artifacts: Object missing required field `bucket`"),
    ],
)
def test_a_mistake_in_a_section_of_several_kinds_is_told(
    toml: Toml, text: str, refusal: str
) -> None:
    assert refusal in _refusal(toml(text))


def test_what_belongs_to_no_section_can_be_set_too(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('mode = "development"\n')
    assert load(file).mode == "development"
    assert _from_environment(MODE="development").mode == "development"
    assert "mode" in _refusal(overrides={"mode": "demo"})


def test_limits_are_a_list_of_tables(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text('[[limits.policies]]\nname = "a"\nquota = 5\n')
    (policy,) = load(file).limits.policies
    assert (policy.name, policy.quota, policy.window_s) == ("a", 5, 1)


def test_a_table_of_a_token_that_does_not_fit_is_named(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(f'[authentication.tokens.ci]\nsha256 = "{"0" * 64}"\n')
    with pytest.raises(InvalidSettings, match=r"authentication\.tokens\.ci.*scopes"):
        load(file)


def test_a_body_that_is_allowed_must_fit_into_what_may_be_held() -> None:
    refusal = _refusal(overrides={"http": {"max_buffered_bytes": 1024}})
    assert refusal.startswith("http.max_buffered_bytes (1024) is below http.max_body_bytes")


# Endpoints, routes and TLS profiles, each under a name of its own


def test_endpoints_routes_and_profiles_are_tables_by_name(toml: Toml) -> None:
    settings = load(
        toml(
            """
            [endpoints.triton-a]
            url = "https://triton.internal:8000/prefix"
            models = ["bert"]
            tls = "mesh"

            [tls.mesh]
            ca_file = "ca.pem"

            [routes.bert]
            targets = [{ model = "bert", weight = 9 }, { model = "bert", version = "2" }]
            sticky = { by = "header", header = "X-User" }
            policy.max_attempts = 2
            """
        )
    )
    assert settings.endpoints["triton-a"].models == ("bert",)
    assert settings.tls["mesh"].ca_file == "ca.pem"
    route = settings.routes["bert"]
    assert [target.weight for target in route.targets] == [9.0, 1.0]
    assert (route.sticky and route.sticky.header, route.policy.max_attempts) == ("X-User", 2)


def test_variables_set_single_keys_of_what_the_file_names(toml: Toml) -> None:
    file = toml("[endpoints.a]\nurl = 'http://a'\n[routes.r]\ntargets = [{ model = 'a' }]")
    environment = {
        "HEADRACE_ENDPOINTS": '{"a": {"weight": 2}, "b": {"url": "http://b"}}',
        "HEADRACE_ENDPOINTS__a__MODELS": '["m"]',
        "HEADRACE_ROUTES__r__STICKY__BY": "header",
        "HEADRACE_ROUTES__r__STICKY__HEADER": "x-user",
        "HEADRACE_ROUTES__r__POLICY__TIMEOUT_S": "1.5",
        "HEADRACE_TLS__mesh__CA_FILE": "ca.pem",
    }
    settings = load(file, environment=environment)
    a = settings.endpoints["a"]
    assert (a.url, a.weight, a.models) == ("http://a", 2.0, ("m",))
    assert settings.endpoints["b"].url == "http://b"
    route = settings.routes["r"]
    assert (route.sticky and route.sticky.header, route.policy.timeout_s) == ("x-user", 1.5)
    assert settings.tls["mesh"].ca_file == "ca.pem"


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("[endpoints.a]\nulr = 'x'", "endpoints.a.ulr is not a setting; did you mean 'url'?"),
        ("[endpoints.a]\nweight = -1", "endpoints.a.weight: Expected `float` >= 0.0"),
        ("[endpoints.a]\nmax_in_flight = nan", "endpoints.a.max_in_flight: "),
        (
            "[endpoints.a]\nprotocol = 'rest'",
            "endpoints.a.protocol: Invalid enum value 'rest'; it is one of 'oip-rest', ",
        ),
        ("[endpoints.a.labels]\n'' = 'x'", "endpoints.a.labels: Expected `str` of length >= 1"),
        ("[endpoints]\na = 'http://a'", "endpoints.a: Expected `object`, got `str`"),
        ("[routes.r]", "routes.r: Object missing required field `targets`"),
        ("[routes.r]\ntargets = []", "routes.r.targets: Expected `array` of length >= 1"),
        (
            "[routes.r]\ntargets = [{ model = 'a' }, { model = 'b', weight = -1 }]",
            "routes.r.targets[1].weight: ",
        ),
        (
            "[routes.r]\npolicy.hedge_percent = 1",
            "routes.r.policy.hedge_percent is not a setting; did you mean 'hedge_percentile'?",
        ),
        (
            "[routes.r]\ntargets = [{ model = 'a' }]\npolicy.balancer = 'best'",
            "routes.r.policy.balancer: Invalid enum value 'best'; it is one of 'p2c', ",
        ),
        ("[tls.a]\nca_fil = 'x'", "tls.a.ca_fil is not a setting; did you mean 'ca_file'?"),
    ],
)
def test_a_mistake_in_a_named_table_is_refused_with_its_name(
    toml: Toml, text: str, refusal: str
) -> None:
    file = toml(text)
    assert _refusal(file).startswith(f"{file}: {refusal}")


def test_a_key_is_for_an_endpoint_of_openai_that_is_there(toml: Toml) -> None:
    key = "[endpoint_keys.a]\nsecret = 'sk-1'\n"
    told = "endpoint_keys.a: there is no [endpoints.a] whose protocol is openai"
    assert _refusal(toml(key)) == told
    endpoint = "[endpoints.a]\nurl = 'http://a'\n"
    assert _refusal(toml(endpoint + key)) == told
    settings = load(toml(f"{endpoint}protocol = 'openai'\n{key}"))
    assert settings.endpoint_keys["a"].secret == "sk-1"
    odd = "[endpoint_keys.a]\nsecret = 'a b'\n"
    assert "endpoint_keys.a.secret: " in _refusal(toml(odd))


def test_an_endpoint_names_a_profile_that_is_there(toml: Toml) -> None:
    text = "[endpoints.a]\nurl = 'https://a'\ntls = 'mesh'\n"
    assert _refusal(toml(text)) == (
        "endpoints.a.tls: there is no profile [tls.mesh]; there is none"
    )
    assert load(toml(f"{text}[tls.mesh]")).endpoints["a"].tls == "mesh"
    assert _refusal(toml("[tls.'a b']")).startswith("tls.a b: a name must be ")
