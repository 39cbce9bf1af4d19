from __future__ import annotations

import pytest

from headrace.adapters.sql.statements import read, statement, statements


@pytest.mark.parametrize(
    ("sql", "numbered", "parameters"),
    [
        ("SELECT 1", "SELECT 1", ()),
        ("a = :a AND b = :b", "a = $1 AND b = $2", ("a", "b")),
        ("a = :a OR c = :a_b OR d > :a", "a = $1 OR c = $2 OR d > $1", ("a", "a_b")),
        ("a = ':a' AND b = :b", "a = ':a' AND b = $1", ("b",)),
        ("a = 'it''s :a' AND b = :b", "a = 'it''s :a' AND b = $1", ("b",)),
        ('":a" = :b', '":a" = $1', ("b",)),
        ("a -- of :a\n= :b", "a -- of :a\n= $1", ("b",)),
        ("/* :a\n:b */ :c", "/* :a\n:b */ $1", ("c",)),
        ("$$ :a $$ :b", "$$ :a $$ $1", ("b",)),
        (":a::text", "$1::text", ("a",)),
        (r"LIKE :a ESCAPE '\' AND b = :b", r"LIKE $1 ESCAPE '\' AND b = $2", ("a", "b")),
        ("(:a, :b)", "($1, $2)", ("a", "b")),
    ],
)
def test_parameters_become_numbers(sql: str, numbered: str, parameters: tuple[str, ...]) -> None:
    translated = statement("s", sql)
    assert (translated.sql, translated.numbered) == (sql, numbered)
    assert translated.parameters == parameters


def test_the_clock_is_each_database_s_own() -> None:
    translated = statement("s", "SELECT now_us() + :a")
    assert "julianday('now')" in translated.sql
    assert "clock_timestamp()" in translated.numbered
    assert translated.numbered.endswith("+ $1")
    assert translated.parameters == ("a",)


def test_a_stamp_is_the_latest_of_the_clock_and_the_row() -> None:
    translated = statement("s", "SELECT stamp_s()")
    assert translated.sql.startswith("SELECT MAX(CAST((julianday('now')")
    assert translated.numbered.startswith("SELECT GREATEST((SELECT CAST(EXTRACT(EPOCH")


def test_what_is_for_postgres_alone_is_a_comment_elsewhere() -> None:
    translated = statement("s", "SELECT 1 /* on postgres: FOR UPDATE */")
    assert translated.sql == "SELECT 1 /* on postgres: FOR UPDATE */"
    assert translated.numbered == "SELECT 1 FOR UPDATE"


def test_a_file_holds_statements_by_name() -> None:
    text = "-- of no statement\n-- name: one\n-- why\nSELECT 1;\n\n-- name: two\nSELECT :a\n;\n"
    found = {each.name: each.sql for each in read(text)}
    assert found == {"one": "-- why\nSELECT 1", "two": "SELECT :a\n"}


def test_there_is_a_statement_for_everything_that_is_done_with_a_kind() -> None:
    known = statements()
    for kind in ("model", "version", "alias", "endpoint", "route", "key"):
        assert {f"get_{kind}", f"put_{kind}", f"delete_{kind}"} <= set(known)


def test_statements_are_single_ones() -> None:
    for each in statements().values():
        assert ";" not in each.sql, each.name
