"""Keys in the registry's database itself, without a platform that could ask who makes them."""

from __future__ import annotations

import asyncio
import os
import pwd
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from http import HTTPStatus
from typing import Any, Final, TypeVar

import msgspec

from headrace.adapters.sql.opening import open_store
from headrace.adapters.sql.settings import SqliteSettings
from headrace.compose.platform_client import Read, Refused
from headrace.compose.registry import data_dir
from headrace.compose.registry_views import Key, NewKey
from headrace.domain.calls import Call, Principal
from headrace.domain.catalog import ApiKey
from headrace.domain.errors import InvalidRequest, NotFound
from headrace.domain.scopes import EVERYTHING
from headrace.ports.registry_store import Query, RegistryStore
from headrace.registry.changes import Ledger
from headrace.registry.ids import new_id
from headrace.registry.keys import Keys
from headrace.registry.pages import all_of
from headrace.registry.registry import utc_now
from headrace.settings import Settings
from headrace.telemetry.trace_context import RequestIds

_T = TypeVar("_T")
#: Of a key, what the management API does not tell either.
_UNTOLD: Final = frozenset({"tenant", "digest"})


class LocalKeys:
    """The keys of one tenant; see Keyring. Make it with `opened`."""

    def __init__(self, store: RegistryStore, runner: asyncio.Runner, *, call: Call) -> None:
        self._store = store
        self._runner = runner
        self._call = call
        # nobody is told of changes: the platform's processes follow the database
        ledger = Ledger(store=store, now=utc_now)
        self._keys = Keys(store=store, reader=store, ledger=ledger, new_id=new_id)

    def keys(self, *, name: str = "") -> list[Read[Key]]:
        """See Keyring.keys."""
        query = Query(tenant=self._call.principal.tenant, name=name)
        found = self._done(all_of(self._store, ApiKey, query))
        used = self._done(self._keys.last_used(self._call, found))
        return [_read(Key, _told(key, used)) for key in found]

    def create_key(self, content: Mapping[str, Any]) -> Read[NewKey]:
        """See Keyring.create_key."""
        rest = {field: value for field, value in content.items() if field != "name"}
        key, secret = self._done(self._keys.create(self._call, content["name"], rest))
        # nothing more is asked of the database: a failure would lose the secret
        return _read(NewKey, {**_told(key, {}), "secret": secret})

    def revoke_key(self, id_: str) -> Read[Key]:
        """See Keyring.revoke_key."""
        key = self._done(self._keys.revoke(self._call, id_))
        return _read(Key, _told(key, self._done(self._keys.last_used(self._call, [key]))))

    def _done(self, work: Coroutine[Any, Any, _T]) -> _T:
        """What comes of it. Raises Refused for what the platform would refuse too."""
        try:
            return self._runner.run(work)
        except NotFound as error:
            raise Refused(HTTPStatus.NOT_FOUND, [error.message]) from error
        except InvalidRequest as error:
            raise Refused(HTTPStatus.BAD_REQUEST, [error.message]) from error


@contextmanager
def opened(settings: Settings, *, tenant: str) -> Iterator[LocalKeys]:
    """Open the registry's database; an embedded one is made, and migrated, where it has to be.

    Raises:
        InvalidSettings: the database does not fit this release, or cannot be used.
        StoreUnavailable: the database does not answer.
    """
    principal = Principal(f"local:{_unix_user()}", tenant, EVERYTHING)
    call = Call(RequestIds().request_id(), principal)
    with asyncio.Runner() as runner:
        store = runner.run(open_store(settings.database, data_dir=data_dir(settings), now=utc_now))
        try:
            yield LocalKeys(store, runner, call=call)
        finally:
            runner.run(store.close())


def place(settings: Settings) -> str:
    """Where the keys are, in words that hold no password."""
    if isinstance(settings.database, SqliteSettings):
        return settings.database.path or str(data_dir(settings))
    return "PostgreSQL"


def _unix_user() -> str:
    """Who runs this. The variables of the environment may say something else."""
    uid = os.getuid()
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # a container may run under a number that nobody has a name for
        return str(uid)


def _told(key: ApiKey, used: Mapping[str, datetime]) -> dict[str, Any]:
    """A key as the management API tells of it."""
    fields = msgspec.structs.asdict(key) | {"last_used_at": used.get(key.id)}
    told: dict[str, Any] = msgspec.to_builtins(fields)
    return {name: value for name, value in told.items() if name not in _UNTOLD}


def _read(kind: type[_T], raw: dict[str, Any]) -> Read[_T]:
    return Read(msgspec.convert(raw, kind), raw)
