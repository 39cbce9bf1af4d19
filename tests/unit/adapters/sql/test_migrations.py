from __future__ import annotations

import pytest

from headrace.adapters.sql.migrations import Migration, in_order, migrations


def test_migrations_are_numbered_from_one_without_a_gap() -> None:
    known = migrations()
    assert [migration.version for migration in known] == list(range(1, len(known) + 1))


@pytest.mark.parametrize("versions", [[2], [1, 3], [1, 1], [0, 1]], ids=str)
def test_a_gap_or_a_number_that_stands_twice_is_refused(versions: list[int]) -> None:
    with pytest.raises(ValueError, match="must be numbered"):
        in_order([Migration(version, "a", "") for version in versions])


def test_migrations_are_put_in_order() -> None:
    found = in_order([Migration(version, "a", "") for version in (10, 2, 1, 3, 4, 5, 6, 7, 8, 9)])
    assert [migration.version for migration in found] == list(range(1, 11))


def test_the_checksum_is_of_the_text_and_nothing_else() -> None:
    assert Migration(1, "a", "x").checksum == Migration(2, "b", "x").checksum
    assert Migration(1, "a", "x").checksum != Migration(1, "a", "x ").checksum


_MIXED = Migration(
    1,
    "mixed",
    """-- for both;
CREATE TABLE a (
    b TEXT COLLATE "C"  -- c; d
);
-- on sqlite:
CREATE TRIGGER t BEFORE DELETE ON a
BEGIN
    SELECT 1;
    SELECT 2;
END;
-- on postgres:
CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RETURN NULL; END $$;
-- on both:
INSERT INTO a
    VALUES (1);
""",
)


def test_sqlite_gets_its_sections_and_its_name_for_the_collation() -> None:
    assert _MIXED.statements("sqlite") == [
        "CREATE TABLE a (\n    b TEXT COLLATE BINARY  -- c; d\n);",
        "CREATE TRIGGER t BEFORE DELETE ON a\nBEGIN\n    SELECT 1;\n    SELECT 2;\nEND;",
        "INSERT INTO a\n    VALUES (1);",
    ]


def test_postgres_gets_its_sections() -> None:
    assert _MIXED.statements("postgres") == [
        'CREATE TABLE a (\n    b TEXT COLLATE "C"  -- c; d\n);',
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS\n$$ BEGIN RETURN NULL; END $$;",
        "INSERT INTO a\n    VALUES (1);",
    ]


def test_a_statement_without_an_end_is_refused() -> None:
    with pytest.raises(ValueError, match="has no end: SELECT 2"):
        Migration(1, "a", "SELECT 1;\nSELECT 2\n").statements("sqlite")
