"""Whether one version may stand in for another without its callers noticing."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.domain.models import Signature, TensorSpec


def differences(old: Signature, new: Signature) -> list[str]:
    """What callers of `old` would stumble over with `new`; nothing where it may stand in.

    It may where it takes every input that `old` takes, asks for no other, and answers every
    output that `old` answers, with the same datatypes. An axis of an input may open (-1), none
    may close; an axis of an output may close, none may open.
    """
    found = []
    inputs = {spec.name: spec for spec in new.inputs}
    for spec in old.inputs:
        successor = inputs.pop(spec.name, None)
        if successor is None:
            found.append(f"input '{spec.name}' is no longer taken")
            continue
        if spec.optional and not successor.optional:
            found.append(f"input '{spec.name}' was optional and is now required")
        found += _compared("input", spec, successor, wide=successor.shape, narrow=spec.shape)
    found += [f"input '{name}' is new and required" for name, s in inputs.items() if not s.optional]
    outputs = {spec.name: spec for spec in new.outputs}
    for spec in old.outputs:
        successor = outputs.get(spec.name)
        if successor is None:
            found.append(f"output '{spec.name}' is no longer answered")
            continue
        found += _compared("output", spec, successor, wide=spec.shape, narrow=successor.shape)
    return found


def _compared(
    kind: str, old: TensorSpec, new: TensorSpec, *, wide: Sequence[int], narrow: Sequence[int]
) -> list[str]:
    if old.datatype != new.datatype:
        return [f"{kind} '{old.name}' was {old.datatype} and is now {new.datatype}"]
    fits = len(wide) == len(narrow) and all(w in {-1, n} for w, n in zip(wide, narrow, strict=True))
    if fits:
        return []
    return [f"{kind} '{old.name}' had shape {list(old.shape)} and now has {list(new.shape)}"]
