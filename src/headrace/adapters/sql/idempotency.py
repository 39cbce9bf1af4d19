"""Idempotency keys in the registry's database: see the port for what its methods promise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from headrace.adapters.sql.database import Connection, Database, Dialect, Parameters
from headrace.adapters.sql.statements import Statement, statement, statements
from headrace.domain.errors import (
    IdempotencyAnswerLost,
    IdempotencyInFlight,
    IdempotencyMismatch,
)
from headrace.domain.idempotency import IdempotencyKey, Once
from headrace.ports.idempotency import KEPT_S, LEASE_S, KeptAnswer

_AGAIN_S: Final = 1.0
#: The one thing that the databases say in different words. The time of the statement, not of the
#: transaction's beginning, which a wait may have put far back.
_NOW: Final[Mapping[Dialect, Statement]] = {
    "sqlite": statement(
        "now", "SELECT CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER)"
    ),
    "postgres": statement(
        "now", "SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)"
    ),
}


class SqlIdempotencyStore:
    """See IdempotencyStore."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sql = statements()

    async def claim(
        self, key: IdempotencyKey, *, request: str, holder: str, lease_s: float = LEASE_S
    ) -> KeptAnswer | None:
        """See IdempotencyStore.claim."""
        async with self._database.writing() as connection:
            now_us = await _now_us(connection, self._database.dialect)
            claimed = await connection.fetch(
                self._sql["claim_idempotency_key"],
                {
                    **_place(key),
                    "request": request,
                    "holder": holder,
                    "now_us": now_us,
                    "until_us": now_us + _microseconds(lease_s),
                },
            )
            if claimed:
                await connection.commit(announce=False)
                return None
            # the row is there: what was not claimed is locked all the same
            rows = await connection.fetch(self._sql["idempotency_key"], _place(key))
        known, answer, until_us = rows[0]
        if known != request:
            raise IdempotencyMismatch(
                "this Idempotency-Key came before, with another request: give each its own key"
            )
        if answer is None and until_us <= now_us:
            # its lease is over and it was not claimed: so it is done
            raise IdempotencyAnswerLost(
                "the request with this Idempotency-Key was carried out, and its answer was lost: "
                "read what is there; it is not carried out again"
            )
        if answer is None:
            raise _in_flight()
        return msgspec.json.decode(answer, type=KeptAnswer)

    async def renew(self, key: IdempotencyKey, *, holder: str, lease_s: float = LEASE_S) -> None:
        """See IdempotencyStore.renew."""
        await self._extend("renew_idempotency_key", lease_s, {**_place(key), "holder": holder})

    async def keep(
        self, key: IdempotencyKey, answer: KeptAnswer, *, holder: str, kept_s: float = KEPT_S
    ) -> None:
        """See IdempotencyStore.keep."""
        document = msgspec.json.encode(answer).decode()
        parameters: Parameters = {**_place(key), "holder": holder, "answer": document}
        await self._extend("keep_idempotent_answer", kept_s, parameters)

    async def release(self, key: IdempotencyKey, *, holder: str) -> None:
        """See IdempotencyStore.release."""
        async with self._database.writing() as connection:
            parameters: Parameters = {**_place(key), "holder": holder}
            await connection.fetch(self._sql["release_idempotency_key"], parameters)
            await connection.fetch(self._sql["end_idempotency_lease"], parameters)
            await connection.commit(announce=False)

    async def forget(self) -> None:
        """See IdempotencyStore.forget."""
        async with self._database.writing() as connection:
            now = {"now_us": await _now_us(connection, self._database.dialect)}
            await connection.fetch(self._sql["forget_idempotency_keys"], now)
            await connection.commit(announce=False)

    async def _extend(self, name: str, by_s: float, parameters: Parameters) -> None:
        async with self._database.writing() as connection:
            now_us = await _now_us(connection, self._database.dialect)
            until_us = now_us + _microseconds(by_s)
            await connection.fetch(self._sql[name], {**parameters, "until_us": until_us})
            await connection.commit(announce=False)


async def carry_out(connection: Connection, dialect: Dialect, once: Once) -> None:
    """See Transaction.carry_out."""
    until_us = await _now_us(connection, dialect) + _microseconds(KEPT_S)
    parameters: Parameters = {**_place(once.key), "holder": once.holder, "until_us": until_us}
    if not await connection.fetch(statements()["carry_out_idempotent_request"], parameters):
        raise _in_flight()


async def _now_us(connection: Connection, dialect: Dialect) -> int:
    return int((await connection.fetch(_NOW[dialect], {}))[0][0])


def _in_flight() -> IdempotencyInFlight:
    return IdempotencyInFlight(
        "the request that first came with this Idempotency-Key is not answered yet: "
        "send it again in a second",
        retry_after_s=_AGAIN_S,
    )


def _place(key: IdempotencyKey) -> dict[str, str]:
    return {"tenant": key.tenant, "principal": key.principal, "key": key.key}


def _microseconds(seconds: float) -> int:
    return round(seconds * 1_000_000)
