"""Settings in TOML, for people to read: what is secret in them is masked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from headrace.settings import Settings

_MASK: Final = "***"
_SECRETS: Final = frozenset(
    {
        *("secret", "demo_token", "secret_access_key"),
        *("sasl.password", "ssl.key.password", "ssl.keystore.password"),
        "sasl.oauthbearer.client.secret",
    }
)
_PLAIN_KEY: Final = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
#: `://user:password@` up to the last @: a password may hold one, and rather too much is hidden.
_USER_PASSWORD: Final = re.compile(r"(://[^\s:/@]*:).*@", re.DOTALL)
#: As `?password=`, which drivers take as well.
_QUERY_PASSWORD: Final = re.compile(r"([?&]\w*password=)[^&]*", re.IGNORECASE)


def as_toml(settings: Settings) -> str:
    """All settings, by section."""
    return "\n".join(_lines("", msgspec.to_builtins(settings))).strip()


def toml_key(text: str) -> str:
    """A key of TOML, in quotes where it needs them."""
    return text if _PLAIN_KEY.fullmatch(text) else toml_value(text)


def toml_value(value: Any) -> str:
    """A value of TOML, which agrees with JSON on text, numbers and booleans, and on their lists."""
    if isinstance(value, Mapping):
        pairs = (f"{toml_key(k)} = {toml_value(v)}" for k, v in _masked(value))
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    return msgspec.json.encode(value).decode()


def _lines(path: str, table: Mapping[str, Any]) -> Iterator[str]:
    """A table, and after it those within, as TOML wants them."""
    if path:
        yield f"[{path}]"
    within = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    plain = {key: value for key, value in table.items() if key not in within}
    yield from (f"{toml_key(key)} = {toml_value(value)}" for key, value in _masked(plain))
    yield ""
    for key, value in within.items():
        yield from _lines(f"{path}.{toml_key(key)}" if path else toml_key(key), value)


def _masked(table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What a table sets: TOML has no word for nothing."""
    for key, value in table.items():
        if value is None:
            continue
        yield key, _MASK if key in _SECRETS and value else _without_passwords(value)


def _without_passwords(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_without_passwords(each) for each in value]
    if not isinstance(value, str):
        return value
    return _QUERY_PASSWORD.sub(rf"\g<1>{_MASK}", _USER_PASSWORD.sub(rf"\g<1>{_MASK}@", value))
