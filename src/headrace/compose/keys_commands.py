"""What each command of `headrace keys` does."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Any, Final, Protocol

from headrace.compose import keys_text as text
from headrace.compose.models_output import Output
from headrace.compose.platform_client import Read, Refused
from headrace.compose.registry_views import Key, NewKey

_ID: Final = re.compile(r"key_[0-9a-z]{26}")
#: What the platform keeps for every process that follows its database.
_EFFECTIVE_S: Final = 5


class Keyring(Protocol):
    """Where keys are kept: a running platform, or the database of one.

    Every method raises Refused for what may not be.
    """

    def keys(self, *, name: str = "") -> Iterable[Read[Key]]:
        """All keys with `name` in their name, in any case; revoked and expired ones too."""
        ...

    def create_key(self, content: Mapping[str, Any]) -> Read[NewKey]:
        """Make a key of `name`, `scopes` and `expires_at`; its secret is answered this once."""
        ...

    def revoke_key(self, id_: str) -> Read[Key]:
        """Refuse a key from now on; once more changes nothing."""
        ...


def create(
    keyring: Keyring,
    output: Output,
    *,
    name: str,
    scopes: Sequence[str],
    expires_at: datetime | None,
) -> None:
    """Make a key, and print its secret alone where a shell takes it from."""
    content: dict[str, Any] = {"name": name, "scopes": list(dict.fromkeys(scopes))}
    if expires_at is not None:
        content["expires_at"] = expires_at.isoformat(timespec="seconds")
    made = keyring.create_key(content)
    output.note(
        text.said_of(made.value),
        "its secret is shown once, now: nobody can read it again",
    )
    output.say(made.value.secret)
    output.json(made.raw)


def list_keys(keyring: Keyring, output: Output, *, everything: bool, now: datetime) -> None:
    """List keys that are accepted; with `everything`, revoked and expired ones too."""
    found = list(keyring.keys())
    shown = [key for key in found if everything or text.status(key.value, now) == "active"]
    output.table(text.keys_table((key.value for key in shown), now))
    if not shown:
        output.say("there is no key" + (" that is active" if found else ""))
    if len(shown) < len(found):
        output.note(f"revoked or expired: {len(found) - len(shown)} more; --all shows them too")
    output.json([key.raw for key in shown])


def revoke(keyring: Keyring, output: Output, *, wanted: str, now: datetime) -> None:
    """Refuse a key from now on, that is named by its id or by a name that no other has.

    Raises:
        Refused: there is no such key, or several have the name.
    """
    id_ = wanted if _ID.fullmatch(wanted) else _id_of(keyring, wanted, now)
    revoked = keyring.revoke_key(id_)
    output.say(
        f"{text.named(revoked.value)} is revoked: "
        f"within {_EFFECTIVE_S} s no process of the platform accepts it"
    )
    output.json(revoked.raw)


def _id_of(keyring: Keyring, name: str, now: datetime) -> str:
    """The id of the one active key with a name; without any, of the newest that was one."""
    named = [each.value for each in keyring.keys(name=name) if each.value.name == name]
    if not named:
        raise Refused(HTTPStatus.NOT_FOUND, [f"there is no key with the id or the name '{name}'"])
    active = [key for key in named if text.status(key, now) == "active"]
    if len(active) > 1:
        lines = (f"{key.id} has the scopes {text.scopes_of(key)}" for key in active)
        told = f"{len(active)} active keys have the name '{name}': say which, by its id"
        raise Refused(HTTPStatus.CONFLICT, [told, *lines])
    return (active or sorted(named, key=lambda key: key.created_at))[-1].id
