"""What servers report of their models, checked: forms that their REST and their gRPC share.

Source: open-inference-protocol `inference_rest.md`; Triton `docs/protocol/extension_*.md`.
"""

from __future__ import annotations

from typing import Any, Final, TypeVar

import msgspec

from headrace.domain.errors import EndpointFailed
from headrace.domain.models import TensorSpec
from headrace.ports.model_control import IndexEntry, ModelMetadata

#: Largest report in bytes, as it is sent.
MAX_REPORT_BYTES: Final = 4 * 1024 * 1024

_T = TypeVar("_T")


class _Tensor(msgspec.Struct, frozen=True):
    name: str
    datatype: str = ""
    shape: list[int] = []


class _Metadata(msgspec.Struct, frozen=True):
    name: str
    versions: list[str] | None = None
    platform: str | None = None
    inputs: list[_Tensor] | None = None
    outputs: list[_Tensor] | None = None


class _Entry(msgspec.Struct, frozen=True):
    name: str
    version: str = ""
    state: str = ""
    reason: str = ""


class _Duration(msgspec.Struct, frozen=True):
    count: int = 0
    ns: int = 0


class _Requests(msgspec.Struct, frozen=True):
    success: _Duration = _Duration()
    fail: _Duration = _Duration()
    queue: _Duration = _Duration()
    compute_input: _Duration = _Duration()
    compute_infer: _Duration = _Duration()
    compute_output: _Duration = _Duration()
    cache_hit: _Duration = _Duration()
    cache_miss: _Duration = _Duration()
    cancel: _Duration = _Duration()


class _Responses(msgspec.Struct, frozen=True):
    compute_infer: _Duration = _Duration()
    compute_output: _Duration = _Duration()
    success: _Duration = _Duration()
    fail: _Duration = _Duration()
    empty_response: _Duration = _Duration()
    cancel: _Duration = _Duration()


class _Batch(msgspec.Struct, frozen=True):
    batch_size: int
    compute_input: _Duration = _Duration()
    compute_infer: _Duration = _Duration()
    compute_output: _Duration = _Duration()


class _Memory(msgspec.Struct, frozen=True):
    type: str = ""
    id: int = 0
    byte_size: int = 0


class _Statistics(msgspec.Struct, frozen=True):
    name: str
    version: str
    last_inference: int = 0
    inference_count: int = 0
    execution_count: int = 0
    inference_stats: _Requests = _Requests()
    batch_stats: list[_Batch] = []
    memory_usage: list[_Memory] = []
    response_stats: dict[str, _Responses] = {}


class _AllStatistics(msgspec.Struct, frozen=True):
    model_stats: list[_Statistics] = []


def read_metadata(report: bytes | dict[str, Any]) -> ModelMetadata:
    """Metadata of a model, in JSON or as that says it. Raises EndpointFailed."""
    metadata = _read(report, _Metadata)
    return ModelMetadata(
        metadata.name,
        tuple(metadata.versions or ()),
        metadata.platform or "",
        _specs(metadata.inputs),
        _specs(metadata.outputs),
    )


def read_statistics(report: bytes | dict[str, Any]) -> list[dict[str, Any]]:
    """The elements of `model_stats`; all of Triton's fields, whichever came. Raises EndpointFailed.

    64-bit numbers may come as strings, as the JSON form of protobuf has them.
    """
    plain: list[dict[str, Any]] = msgspec.to_builtins(_read(report, _AllStatistics).model_stats)
    return plain


def read_index(report: bytes | list[dict[str, Any]]) -> list[IndexEntry]:
    """The repository index. Raises EndpointFailed."""
    return [
        IndexEntry(entry.name, entry.version, entry.state, entry.reason)
        for entry in _read(report, list[_Entry])
    ]


def read_config(report: bytes | dict[str, Any]) -> dict[str, Any]:
    """A model's configuration; only that it is one is looked at. Raises EndpointFailed."""
    config = _read(report, dict[str, Any])
    if not isinstance(config.get("name", ""), str):
        raise no_report("its name is no text")
    return config


def no_report(reason: str) -> EndpointFailed:
    """The error of a report that is none; `reason` is for the log."""
    error = EndpointFailed("the endpoint's answer is not a well-formed one")
    error.reason = reason
    return error


def _read(report: object, kind: type[_T]) -> _T:
    try:
        if isinstance(report, bytes):
            return msgspec.json.decode(report, type=kind, strict=False)
        return msgspec.convert(report, kind, strict=False)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise no_report(str(error)) from error


def _specs(tensors: list[_Tensor] | None) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(t.name, t.datatype, tuple(t.shape)) for t in tensors or ())
