"""Writes `docs/settings.md` out of the settings themselves.

python -m tools.settings_reference            write it
python -m tools.settings_reference --check    exit with 1 where it is not up to date
"""

from __future__ import annotations

import argparse
import ast
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from headrace.settings import ENVIRONMENT_PREFIX, Settings

PAGE: Final = Path(__file__).parents[1] / "docs" / "settings.md"
_COMMENT: Final = "#: "
_WORDS: Final[dict[Any, str]] = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    NoneType: "not set",
}
_BOUNDS: Final = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}

_HEAD: Final = f"""\
<!-- Written by `python -m tools.settings_reference`; change the settings' own comments instead. -->

# Settings

Every setting has a default. The ways to change it, each over the one before:

1. a TOML file, given with `--settings FILE` or `{ENVIRONMENT_PREFIX}SETTINGS=FILE`;
2. a variable of the environment: `{ENVIRONMENT_PREFIX}<SECTION>__<KEY>`, in which text needs no
   quotes and a table is written in JSON;
3. an option of the command line, where there is one (`headrace serve --help`).

An unknown key, a wrong type or a value out of range stops the start with the key's full path;
`headrace check-settings FILE` tells without starting. No number may be negative.
"""


class Undocumented(Exception):
    """A setting has no `#:` comment that says what it is for."""


def page() -> str:
    """The whole page.

    Raises:
        Undocumented: naming the setting.
    """
    hints = get_type_hints(Settings)
    sections = [_section(name, hint) for name, hint in hints.items() if _is_section(hint)]
    if len(sections) < len(hints):
        sections.insert(0, _table("", Settings, "## Of the whole"))
    return "\n".join([_HEAD, *sections])


def _is_section(hint: Any) -> bool:
    return all(isinstance(kind, type) for kind in get_args(hint) or (hint,))


def _section(name: str, section: Any) -> str:
    if get_origin(section) is dict:
        return _named(name, get_args(section)[1])
    if not isinstance(section, UnionType):
        return _table(name, section)
    kinds = [(kind.__struct_config__, kind) for kind in get_args(section)]
    words = " or ".join(f'`kind = "{config.tag}"`' for config, _ in kinds)
    variable = f"{ENVIRONMENT_PREFIX}{name}__KIND".upper()
    lines = [f"## [{name}]", "", f"{words}; without it, the first. Variable: `{variable}`.", ""]
    tables = [_table(name, kind, f'### [{name}] of kind "{config.tag}"') for config, kind in kinds]
    return "\n".join([*lines, *tables])


def _named(name: str, struct: type[msgspec.Struct]) -> str:
    """Sections of one kind, each under a name that somebody chose, and the tables within."""
    place = f"{name}.NAME"
    about = (
        f"{inspect.getdoc(struct)} Variables: `{ENVIRONMENT_PREFIX}{name.upper()}__NAME__<KEY>`."
    )
    keys: dict[type[msgspec.Struct], str] = {}
    for key, within in _tables_in(struct):
        keys.setdefault(within, key)
    parts = [f"## [{place}]\n\n{about}\n\n{_rows(place, struct)}"]
    parts += [
        f"### {key} of [{place}]\n\n{inspect.getdoc(within)}\n\n{_rows(f'{name}.{key}', within)}"
        for within, key in keys.items()
    ]
    return "\n".join(parts)


def _tables_in(struct: type[msgspec.Struct], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, hint in get_type_hints(struct).items():
        for kind in (hint, *get_args(hint)):
            if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
                yield f"{path}{key}", kind
                yield from _tables_in(kind, f"{path}{key}.")


def _table(name: str, struct: type[msgspec.Struct], title: str = "") -> str:
    variable = f"{ENVIRONMENT_PREFIX}{name}__".upper() if name else ENVIRONMENT_PREFIX
    about = inspect.getdoc(struct) if name else "They stand before the first section."
    head = f"{title or f'## [{name}]'}\n\n{about} Variables: `{variable}<KEY>`.\n"
    return f"{head}\n{_rows(name, struct)}"


def _rows(name: str, struct: type[msgspec.Struct]) -> str:
    """A row for each key of a struct."""
    lines = [
        "| key | type | default | what it does |",
        "| --- | --- | --- | --- |",
    ]
    comments: dict[str, str] = {}
    for each in reversed(struct.__mro__):
        if issubclass(each, msgspec.Struct) and each is not msgspec.Struct:
            comments |= dict(_comments(each))
    hints = get_type_hints(struct, include_extras=True)
    for field in msgspec.structs.fields(struct):
        if struct is Settings and _is_section(hints[field.name]):
            continue
        comment = comments.get(field.name)
        if not comment:
            msg = f"{struct.__module__}: {name}.{field.name} has no comment that starts with '#:'"
            raise Undocumented(msg)
        cells = (f"`{field.name}`", _type(hints[field.name]), _default(field), comment)
        row = " | ".join(cell.replace("|", r"\|") for cell in cells)
        lines.append(f"| {row} |")
    return "\n".join([*lines, ""])


def _comments(struct: type[msgspec.Struct]) -> Iterator[tuple[str, str]]:
    """Each field's name and the `#:` lines right above it, joined."""
    source = dedent(inspect.getsource(struct))
    lines = [line.strip() for line in source.splitlines()]
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)  # noqa: S101 - it is the source of a class
    for node in definition.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            end = begin = node.lineno - 1
            while lines[begin - 1].startswith(_COMMENT):
                begin -= 1
            yield node.target.id, " ".join(line[len(_COMMENT) :] for line in lines[begin:end])


def _type(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return f"{_type(arguments[0])}{_bounds(arguments[1:])}"
    if origin is Literal:
        return " or ".join(f"`{_toml(choice)}`" for choice in arguments)
    if origin is dict:
        return f"table of {_type(arguments[1])}"
    if origin in {list, tuple}:
        return f"list of {_type(arguments[0])}"
    if origin in {Union, UnionType}:
        return " or ".join(_type(argument) for argument in arguments)
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return "table"
    return _WORDS[hint]


def _bounds(metas: tuple[Any, ...]) -> str:
    return "".join(
        f", {sign} {bound}"
        for meta in metas
        for name, sign in _BOUNDS.items()
        if (bound := getattr(meta, name)) is not None
    )


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.default_factory is not msgspec.NODEFAULT:
        return f"`{_toml(field.default_factory())}`"
    if field.required:
        return "must be set"
    return "not set" if field.default is None else f"`{_toml(field.default)}`"


def _toml(value: Any) -> str:
    if isinstance(value, msgspec.Struct):
        value = {k: v for k, v in msgspec.structs.asdict(value).items() if v is not None}
    # of what settings default to, TOML and JSON write the same
    return msgspec.json.encode(value).decode()


def main(arguments: list[str] | None = None, *, file: Path = PAGE) -> int:
    """Write or check the page; answers the exit code."""
    parser = argparse.ArgumentParser(description="Write docs/settings.md out of the settings.")
    parser.add_argument("--check", action="store_true", help="only say whether it is up to date")
    check: bool = parser.parse_args(arguments).check
    text = page()
    if not check:
        file.write_text(text, encoding="utf-8")
    elif not file.is_file() or file.read_text("utf-8") != text:
        sys.stderr.write(f"{file} is out of date: run python -m tools.settings_reference\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
