"""What callers may say about entities: which fields there are, and their bounds."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, TypeAlias, TypeVar

import msgspec

from headrace.registry.merge_patch import merge_patch
from headrace.registry.refusals import InvalidField

ContentT = TypeVar("ContentT", bound=msgspec.Struct)

MAX_JSON_BYTES: Final = 64 * 1024

Line: TypeAlias = Annotated[str, msgspec.Meta(max_length=256)]
Text: TypeAlias = Annotated[str, msgspec.Meta(max_length=4096)]
Tag: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Tags: TypeAlias = Annotated[tuple[Tag, ...], msgspec.Meta(max_length=64)]
#: A word that programs compare: the name of a metric, of a label, of a scope.
Word: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]

_PATH: Final = re.compile(r"^(?P<what>.*?)(?: - at (?:`key` in )?`(?P<path>[^`]*)`)?$", re.DOTALL)
_STEP: Final = re.compile(r"\[(\d+|\.\.\.)\]|\.([^.\[]+)")


def conform(kind: type[ContentT], content: Mapping[str, Any]) -> ContentT:
    """`content` as `kind`.

    Raises:
        InvalidField: a field is unknown, missing, of the wrong type or out of bounds. What the
            platform itself decides (tenant, id, revision …) is unknown here.
    """
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        match = _PATH.fullmatch(str(error))
        assert match is not None  # noqa: S101 - it matches every text
        steps = _STEP.findall(match["path"] or "")
        pointer = "".join(f"/{index or name}" for index, name in steps)
        raise InvalidField(pointer, match["what"]) from None


def patched(kind: type[ContentT], entity: msgspec.Struct, patch: Mapping[str, Any]) -> ContentT:
    """The part of `entity` that callers may change, as a merge patch wants it.

    A field that is cleared has its default again. Raises InvalidField, as `conform` does.
    """
    allowed = set(kind.__struct_fields__)
    present = {
        name: value for name, value in msgspec.to_builtins(entity).items() if name in allowed
    }
    return conform(kind, merge_patch(present, patch))


def each_once(tags: Iterable[str]) -> tuple[str, ...]:
    """Tags as they are kept: sorted, each once."""
    return tuple(sorted(set(tags)))


def bounded(field: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """A free-form object, as it is.

    Raises:
        InvalidField: it has more than 64 KiB in JSON.
    """
    size_bytes = len(msgspec.json.encode(value))
    if size_bytes > MAX_JSON_BYTES:
        message = f"has {size_bytes} bytes in JSON; at most {MAX_JSON_BYTES} are kept"
        raise InvalidField(f"/{field}", message)
    return dict(value)


def finite(field: str, numbers: Mapping[str, float]) -> dict[str, float]:
    """Numbers by name, as they are. Raises InvalidField for one that is no finite number."""
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise InvalidField(f"/{field}/{name}", "expected a finite number")
    return dict(numbers)
