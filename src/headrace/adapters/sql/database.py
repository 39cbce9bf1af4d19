"""What the store and the migrations need of a database, and both drivers fulfil.

Drivers translate their library's errors: StoreUnavailable where the database does not answer in
time or at all, StorageFull where it has no room, AlreadyExists where a unique index refuses.
Anything else that a library raises is a mistake of ours and passes as it is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Literal, Protocol, TypeAlias, TypeVar

from headrace.adapters.sql.statements import Statement
from headrace.domain.errors import InvalidRequest, StoreUnavailable

Dialect: TypeAlias = Literal["sqlite", "postgres"]
Value: TypeAlias = str | int | float | None
Parameters: TypeAlias = Mapping[str, Value]
Row: TypeAlias = Sequence[Any]
T = TypeVar("T")

RETRY_AFTER_S: Final = 1.0
_NO_ANSWER: Final = "the registry's database does not answer; nothing was changed"
#: Seconds after which a watch yields though nothing is known to have changed.
NOW_AND_THEN_S: Final = 5.0
#: Seconds between the yields, and the attempts to connect, of a watch whose database is gone.
GONE_S: Final = 1.0


class Unusable(StoreUnavailable):
    """The database answers, and what it says will not pass by itself: the settings do not fit it.

    `reason` is for the operator; clients are told that it does not answer.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(_NO_ANSWER, retry_after_s=RETRY_AFTER_S)
        self.reason = reason


class Connection(Protocol):
    """A transaction on one connection. Leaving it without a commit rolls back."""

    async def fetch(self, statement: Statement, parameters: Parameters) -> Sequence[Row]:
        """Run a statement for its rows."""
        ...

    async def run_many(self, statement: Statement, parameters: Sequence[Parameters]) -> None:
        """Run a statement once for each of the parameters, in order."""
        ...

    async def run_script(self, statements: Sequence[str]) -> None:
        """Run statements that have no parameters."""
        ...

    async def has_table(self, name: str) -> bool:
        """Whether there is such a table."""
        ...

    async def commit(self, *, announce: bool) -> None:
        """Keep what was done; with `announce` every watch of the database wakes."""
        ...


class Database(Protocol):
    """Connections to one database."""

    dialect: Dialect

    async def fetch(self, statement: Statement, parameters: Parameters) -> Sequence[Row]:
        """Run one reading statement by itself."""
        ...

    def reading(self) -> AbstractAsyncContextManager[Connection]:
        """A transaction that sees one state of the database throughout."""
        ...

    def writing(self) -> AbstractAsyncContextManager[Connection]:
        """A transaction that writes."""
        ...

    async def change(self, work: Callable[[Connection], Coroutine[Any, Any, T]]) -> T:
        """Run a whole transaction that writes, and answer what `work` does.

        `work` awaits its connection and nothing else: it may run on another thread, at one go.
        Several changes may be committed together; each fails by itself. What does not commit
        changes nothing.
        """
        ...

    def migrating(self) -> AbstractAsyncContextManager[Connection]:
        """A transaction that writes and that no other migration runs beside."""
        ...

    def wakes(self) -> AsyncIterator[None]:
        """See RegistryStore.watch."""
        ...

    def news(self) -> AsyncIterator[None]:
        """Yields soon after another process changed something, where that costs next to nothing.

        Changes may be missed, all of them: whoever has to know looks now and then besides.
        """
        ...

    async def close(self) -> None:
        """Let go of every connection."""
        ...


def check(parameters: Parameters) -> Parameters:
    """Refuse what only one of the databases could hold, so that both answer alike.

    Raises:
        InvalidRequest: text with a NUL character, or with half of a surrogate pair.
    """
    for name, value in parameters.items():
        if not isinstance(value, str):
            continue
        if "\0" in value:
            raise InvalidRequest(f"{_words(name)} holds a NUL character, which cannot be stored")
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise InvalidRequest(
                    f"{_words(name)} holds half of a surrogate pair, which is no text"
                ) from error
    return parameters


def unavailable(message: str = "") -> StoreUnavailable:
    """The error of a database that does not answer. Addresses stay in its cause."""
    return StoreUnavailable(message or _NO_ANSWER, retry_after_s=RETRY_AFTER_S)


def uncertain() -> StoreUnavailable:
    """The error of a database that went away while it committed."""
    return unavailable(
        "the registry's database went away while it stored the change: "
        "read again to see whether it did"
    )


def _words(parameter: str) -> str:
    return "the " + parameter.removeprefix("after_").removeprefix("folded_").replace("_", " ")
