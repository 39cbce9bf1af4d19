"""A process that dies between a change and its answer: the change is not made again."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path
from typing import Final, Protocol

import pytest

from headrace.adapters.sql.settings import PostgresSettings
from headrace.compose import migrate
from tests.support.postgres import Postgres, running
from tests.support.process import Answer, Server, eventually, serving

_MANY: Final = 12
#: An answer takes for ever to be kept; a key is made, claimed and marked as ever.
_HANG_SQLITE: Final = """
CREATE TRIGGER hang BEFORE UPDATE OF answer ON idempotency_keys WHEN NEW.answer IS NOT NULL BEGIN
    SELECT (
        WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 100000000000)
        SELECT max(n) FROM n
    );
END
"""
_HANG_POSTGRES: Final = """
CREATE FUNCTION hang() RETURNS trigger LANGUAGE plpgsql AS
    'BEGIN PERFORM pg_sleep(600); RETURN NEW; END';
CREATE TRIGGER hang BEFORE UPDATE OF answer ON idempotency_keys FOR EACH ROW
    WHEN (NEW.answer IS NOT NULL) EXECUTE FUNCTION hang()
"""


class _Database(Protocol):
    """What the test does behind the platform's back."""

    environment: Mapping[str, str]

    def hang(self) -> None: ...

    def heal(self) -> None: ...

    def run(self, sql: str) -> str: ...


class _Sqlite:
    environment: Mapping[str, str] = {}

    def __init__(self, file: Path) -> None:
        self._file = file

    def hang(self) -> None:
        self.run(_HANG_SQLITE)

    def heal(self) -> None:
        self.run("DROP TRIGGER hang")

    def run(self, sql: str) -> str:
        with contextlib.closing(sqlite3.connect(self._file, timeout=10.0)) as connection:
            rows = connection.execute(sql).fetchall()
            connection.commit()
        return str(rows[0][0]) if rows else ""


class _Postgres:
    def __init__(self, server: Postgres, folder: Path) -> None:
        self._server = server
        self._name = server.create_database()
        dsn = server.dsn(self._name)
        self.environment: Mapping[str, str] = {
            "HEADRACE_DATABASE__KIND": "postgres",
            "HEADRACE_DATABASE__DSN": dsn,
        }
        settings = PostgresSettings(dsn=dsn)
        assert migrate.run(settings, data_dir=folder, check=False, say=lambda _: None)

    def hang(self) -> None:
        self.run(_HANG_POSTGRES)

    def heal(self) -> None:
        # what the dead process left running there
        self.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        self.run("DROP TRIGGER hang ON idempotency_keys")

    def run(self, sql: str) -> str:
        return self._server.execute(sql, self._name)


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[_Database]:
    if request.param == "sqlite":
        yield _Sqlite(tmp_path / "data" / "registry.db")
        return
    with running() as server:
        yield _Postgres(server, tmp_path)


def _create(server: Server, number: int) -> Answer | None:
    """Make the key of this number, once; None where the process died over it."""
    headers = {"Content-Type": "application/json", "Idempotency-Key": f"once {number}"}
    try:
        return server.request("POST", "/api/v1/keys", {"name": f"k{number}"}, headers)
    except (HTTPException, OSError):
        return None


def test_a_crash_after_the_change_and_before_its_answer_makes_no_second(
    database: _Database, tmp_path: Path
) -> None:
    environment = {**database.environment, "HEADRACE_STORAGE__DATA_DIR": str(tmp_path / "data")}
    with serving(None, tmp_path / "first.log", environment=environment) as server:
        database.hang()
        with ThreadPoolExecutor(_MANY) as callers:
            asked = [callers.submit(_create, server, number) for number in range(_MANY)]
            eventually(lambda: int(database.run("SELECT count(*) FROM api_keys")) > 0)
            server.stop(signal.SIGKILL)
        assert [each.result() for each in asked] == [None] * _MANY
    database.heal()
    made = int(database.run("SELECT count(*) FROM api_keys"))
    assert made > 0
    database.run("UPDATE idempotency_keys SET until_us = 0")  # its lease is over
    with serving(None, tmp_path / "second.log", environment=environment) as server:
        answers = [_create(server, number) for number in range(_MANY)]
        listed = server.request("GET", "/api/v1/keys?limit=100").json()["items"]
    said = sorted(answer.status for answer in answers if answer is not None)
    assert said == [201] * (_MANY - made) + [409] * made
    lost = [answer.json() for answer in answers if answer is not None and answer.status == 409]
    assert {answer["code"] for answer in lost} == {"idempotency_answer_lost"}
    assert sorted(key["name"] for key in listed) == sorted(f"k{n}" for n in range(_MANY))
