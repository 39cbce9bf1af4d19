"""The program of the process that looks at an uploaded model: `python -m … FOLDER`.

It takes an `Assignment` and answers with `Report`s (adapters/inspection.py). A model that passes
was loaded by the code that serves it.
"""

from __future__ import annotations

import math
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import Meta

from headrace.adapters.inspection import Assignment, Passed, Refused, Report, Step
from headrace.domain.errors import HeadraceError, InvalidRequest, ModelLoadFailed
from headrace.domain.models import Signature

if TYPE_CHECKING:
    from headrace.domain.tensors import Array, Tensor
    from headrace.ports.executor import Executor

_NAME: Final = "artifact"  # it has no other yet
_MAX_REASON: Final = 1000  # characters
_GRACE_S: Final = 5  # after which it ends itself, should nobody be there to end it
_NO_MEMORY: Final = ("bad_alloc", "bad allocation", "allocate memory")  # as ONNX Runtime says it

#: Where in its own source ONNX Runtime has found a fault, and the function's whole signature.
_OF_ITS_SOURCE: Final = re.compile(r"/onnxruntime_src/\S+ .*?\) (?=[A-Z])", re.DOTALL)


class _SmokeInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input of a smoke run, as in the protocol's JSON."""

    data: Any
    shape: list[Annotated[int, Meta(ge=0)]] | None = None  # None: as `data` is nested
    datatype: str = ""  # "": what the model takes


def main() -> None:
    """Do what standard input says with the folder that the only argument names."""
    # what libraries print must not stand among the reports
    with os.fdopen(os.dup(1), "wb", buffering=0) as channel:
        os.dup2(2, 1)
        folder = Path(sys.argv[1])
        assignment = msgspec.json.decode(sys.stdin.buffer.read(), type=Assignment)
        _limit(assignment)

        def tell(report: Report) -> None:
            left = memoryview(msgspec.json.encode(report) + b"\n")
            while left:
                left = left[channel.write(left) :]

        tell(_look(folder, assignment, tell))


def _limit(assignment: Assignment) -> None:
    """Give up, for good, what no model needs."""
    cpu_s = math.ceil(assignment.cpu_s)
    limits = (
        (resource.RLIMIT_AS, assignment.memory_bytes, assignment.memory_bytes),
        # the first ends it with a signal that tells why, the second in any case
        (resource.RLIMIT_CPU, cpu_s, cpu_s + 1),
        (resource.RLIMIT_FSIZE, 0, 0),
        (resource.RLIMIT_CORE, 0, 0),
    )
    for which, soft, hard in limits:
        _, most = resource.getrlimit(which)
        if most != resource.RLIM_INFINITY:
            soft, hard = min(soft, most), min(hard, most)  # noqa: PLW2901 - what may be set
        resource.setrlimit(which, (soft, hard))
    signal.alarm(math.ceil(assignment.timeout_s) + _GRACE_S)


def _look(folder: Path, assignment: Assignment, tell: Callable[[Report], None]) -> Report:
    try:
        return _inspect(folder, assignment, tell)
    except InvalidRequest as error:
        return Refused("smoke", _for_others(error.message, folder))
    except HeadraceError as error:
        if any(word in error.message for word in _NO_MEMORY):
            return _no_memory(assignment)
        return Refused("model", _for_others(error.message, folder))
    except MemoryError:
        return _no_memory(assignment)


def _no_memory(assignment: Assignment) -> Refused:
    mebibytes = assignment.memory_bytes // 1024**2
    return Refused("model", f"the model needs more memory than the {mebibytes} MiB that it may use")


def _for_others(reason: str, folder: Path) -> str:
    """A reason without this machine's paths."""
    for path in {str(folder), str(folder.resolve())}:
        reason = reason.replace(f"{path}/", "").replace(path, "the artifact")
    return _OF_ITS_SOURCE.sub("", reason)[:_MAX_REASON]


def _inspect(folder: Path, assignment: Assignment, tell: Callable[[Report], None]) -> Passed:
    # only now, under the limits
    import onnx

    from headrace.adapters.model_repository.folder import read_artifact
    from headrace.compose import onnx_structure
    from headrace.orchestrator.execution_time import ExecutionTime
    from headrace.orchestrator.warmup import warm_up

    tell(Step("its structure was read"))
    onnx_structure.check(folder)
    tell(Step("it was checked against the ONNX standard"))
    try:
        # by its path: external data is checked too, and no copy is made
        onnx.checker.check_model(str(folder / onnx_structure.FILENAME))
    except onnx.checker.ValidationError as error:
        text = str(error).strip().partition("\n")[0]
        raise ModelLoadFailed(f"the model breaks the ONNX standard: {text}") from error
    tell(Step("it was loaded"))
    source = read_artifact(folder, name=_NAME, version="1", fingerprint="").source
    from headrace.adapters.onnx import OnnxLoader

    loader = OnnxLoader(default_max_batch_size=assignment.default_max_batch_size)
    executors = loader.load(source)
    executor = executors[0]
    tell(Step("it was run on zeros"))
    warm_up_s = _run_on_zeros(executor, smoked=bool(assignment.smoke))
    if source.config.warmup:
        tell(Step("its configured warm-up was run"))
        warm_up(executors, source, times=ExecutionTime())
    outputs = []
    for number, smoke in enumerate(assignment.smoke, 1):
        tell(Step(f"it was run on smoke input {number}"))
        try:
            outputs.append(_run_smoke(executor, smoke))
        except HeadraceError as error:
            raise InvalidRequest(f"smoke input {number}: {error.message}") from error
    if len(msgspec.json.encode(outputs)) > assignment.max_answer_bytes:
        msg = f"the outputs of the smoke inputs have over {assignment.max_answer_bytes} bytes"
        raise InvalidRequest(f"{msg} as JSON; send fewer rows")
    return Passed(
        signature=executor.signature,
        max_batch_size=executor.max_batch_size,
        warm_up_s=warm_up_s,
        outputs=tuple(outputs),
    )


def _run_on_zeros(executor: Executor, *, smoked: bool) -> float:
    """Run once on one row of zeros, open axes at 1; answers the seconds it took.

    A model may have its reasons to refuse them where axes are open, or where there is a smoke
    input that tells what it takes. Elsewhere no request could be expected to do better.
    """
    import numpy as np

    from headrace.domain.datatypes import DATATYPES

    arrays: dict[str, Array] = {}
    for spec in executor.signature.inputs:
        shape = [1 if size < 0 else size for size in spec.shape]
        empty = b"" if spec.datatype == "BYTES" else 0
        arrays[spec.name] = np.full(shape, empty, dtype=DATATYPES[spec.datatype].dtype)
    batched = int(executor.max_batch_size > 0)
    is_open = any(-1 in spec.shape[batched:] for spec in executor.signature.inputs)
    begun = time.perf_counter()
    try:
        executor.run(arrays)
    except HeadraceError as error:
        if any(word in error.message for word in _NO_MEMORY):
            raise
        if not (is_open or smoked):
            msg = f"the model cannot be run on zeros: {error.message}"
            raise ModelLoadFailed(f"{msg}; if it takes no zeros, send a smoke input") from error
    return time.perf_counter() - begun


def _run_smoke(executor: Executor, smoke: Any) -> dict[str, Any]:
    from headrace.domain.tensors import InferContent
    from headrace.orchestrator.validation import RequestCheck

    if not isinstance(smoke, dict):
        raise InvalidRequest("expected an object with the inputs by their names")
    signature = executor.signature
    check = RequestCheck(_NAME, signature, max_batch_size=executor.max_batch_size)
    tensors = [_tensor(name, given, signature) for name, given in smoke.items()]
    outputs = executor.run(check.bind(InferContent(tensors)).inputs)
    return {
        spec.name: {
            "datatype": spec.datatype,
            "shape": list(array.shape),
            "data": _elements(spec.datatype, array),
        }
        for spec, array in zip(signature.outputs, outputs, strict=True)
    }


def _tensor(name: str, given: Any, signature: Signature) -> Tensor:
    from headrace.domain.datatypes import DATATYPES
    from headrace.domain.tensors import Tensor
    from headrace.transport.oip_rest.tensor_json import from_json

    try:
        wanted = msgspec.convert(given if isinstance(given, dict) else {"data": given}, _SmokeInput)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"input {name!a}: {error}") from error
    taken = {spec.name: spec.datatype for spec in signature.inputs}
    datatype = wanted.datatype or taken.get(name, "FP32")  # of an unknown name the check will tell
    if datatype not in DATATYPES:
        raise InvalidRequest(f"input {name!a} has the unknown datatype {datatype[:32]!a}")
    shape = _shape(wanted.data) if wanted.shape is None else wanted.shape
    data = msgspec.Raw(msgspec.json.encode(wanted.data))
    # which have no JSON form at the wire; a smoke input has no other
    half = datatype in {"FP16", "BF16"}
    array = from_json(name, "FP32" if half else datatype, shape, data)
    return Tensor(name, datatype, array.astype(DATATYPES[datatype].dtype) if half else array)


def _shape(data: Any) -> list[int]:
    shape = []
    while isinstance(data, list):
        shape.append(len(data))
        data = data[0] if data else None
    return shape


def _elements(datatype: str, array: Array) -> Sequence[Any]:
    """Row-major; NaN and the infinities, which JSON lacks, become null."""
    elements: list[Any] = array.ravel().tolist()
    if datatype == "BYTES":
        return [element.decode(errors="replace") for element in elements]
    return elements


if __name__ == "__main__":
    main()
