"""What is under `/v1`, for the OpenAPI document: paths, and the schemas that these refer to."""

from __future__ import annotations

from typing import Any

import msgspec

from headrace.transport.openai import batch_operations, inference_operations
from headrace.transport.openai.bodies import NewBatch, NewRetry
from headrace.transport.openai.errors import ErrorBody
from headrace.transport.openai.operation import REFERENCE, described


def document(*, batches: bool = True) -> dict[str, Any]:
    """`paths` and `components` of an OpenAPI document, to be put to others.

    Files and batches are in it where the platform offers `batches`.
    """
    kinds: list[type[msgspec.Struct]] = [ErrorBody]
    operations = {**inference_operations.OPERATIONS}
    if batches:
        kinds += [NewBatch, NewRetry]
        operations |= batch_operations.OPERATIONS
    paths: dict[str, Any] = {}
    for path, methods in operations.items():
        paths[path] = {method: described(path, each) for method, each in methods.items()}
        kinds += [each.answer for each in methods.values() if each.answer is not None]
    _, schemas = msgspec.json.schema_components(kinds, ref_template=REFERENCE)
    return {"paths": paths, "components": {"schemas": schemas}}
