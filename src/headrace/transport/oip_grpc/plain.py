"""Messages as JSON says them, with numbers as numbers: protobuf's own form has 64 bits as text."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import FieldDescriptor


def plain(message: Any) -> dict[str, Any]:
    """A message with all its fields, but for messages that were not set and choices not made."""
    said: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        if field.has_presence and not message.HasField(field.name):
            continue
        value = getattr(message, field.name)
        kind = field.message_type
        if kind is not None and kind.GetOptions().map_entry:
            inner = kind.fields_by_name["value"]
            said[field.name] = {str(key): _plain(inner, value[key]) for key in sorted(value)}
        elif field.is_repeated:
            each: list[Any] = [_plain(field, one) for one in value]
            said[field.name] = each
        else:
            said[field.name] = _plain(field, value)
    return said


def _plain(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None:
        return plain(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return value if known is None else known.name
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
