"""Statistics of one model at several addresses, added up.

Source: Triton `docs/protocol/extension_statistics.md`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from headrace.domain.names import version_order

_BATCH: Final = "batch_size"
_LATEST: Final = "last_inference"


def added_up(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One element of `model_stats` for each name and version, in order.

    Counts and times are summed, at every depth; of `last_inference` the latest counts. Batches are
    matched by their size. Memory is each machine's own, and is listed one after the other.
    """
    sums: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        key = (row["name"], row["version"])
        sums[key] = _added(sums[key], row) if key in sums else dict(row)
    return [sums[key] for key in sorted(sums, key=lambda each: (each[0], version_order(each[1])))]


def _added(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    total = dict(one)
    for key, value in other.items():
        total[key] = _sum(key, total[key], value) if key in total else value
    return total


def _sum(key: str, one: Any, other: Any) -> Any:
    if key == _LATEST and _are(int, one, other):
        return max(one, other)
    if key == "batch_stats" and _are(list, one, other):
        return _batches(one, other)
    if _are(int, one, other) and key != _BATCH:
        return one + other
    if _are(dict, one, other):
        return _added(one, other)
    if _are(list, one, other):
        return [*one, *other]
    return one


def _batches(one: Sequence[Any], other: Sequence[Any]) -> list[Any]:
    sizes: dict[int, Any] = {}
    for batch in (*one, *other):
        size = batch[_BATCH]
        sizes[size] = _added(sizes[size], batch) if size in sizes else batch
    return [sizes[size] for size in sorted(sizes)]


def _are(kind: type, *values: Any) -> bool:
    return all(type(value) is kind for value in values)
