"""Models written in Python: a class in `model.py`, run in this process on its own threads."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import logging
import sys
import traceback
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import msgspec
import numpy as np

from headrace.domain.datatypes import DATATYPES
from headrace.domain.errors import InvalidRequest, ModelFailed, ModelLoadFailed
from headrace.domain.models import Signature, TensorSpec
from headrace.domain.signatures import configured, reconcile
from headrace.domain.tensors import Array
from headrace.ports.executor import Arrays, ModelSource
from headrace.ports.python_model import LoadContext, Model

_logger = logging.getLogger(__name__)
_TEXT_CHARS: Final = 1000
#: Taken apart here: msgspec does it when a type is used first, which is no work for many threads.
_SPEC: Final = msgspec.json.Decoder(TensorSpec).type
_serial: Final = itertools.count()  # every load gets a module of its own


class PythonModelLoader:
    """Loads `model.py` files of the operator's own folder, never code that came over the API."""

    def load(self, source: ModelSource) -> Sequence[PythonExecutor]:
        """See ExecutorLoader.load."""
        module = _ModelModule(source)
        try:
            return self._load(source, module)
        except ModelLoadFailed:
            module.forget()
            raise

    def _load(self, source: ModelSource, module: _ModelModule) -> Sequence[PythonExecutor]:
        cls = module.model_class()
        max_batch_size = source.config.max_batch_size
        if max_batch_size is None:
            max_batch_size = cls.max_batch_size
        declared = Signature(
            configured(cls.inputs or source.config.inputs, max_batch_size),
            configured(cls.outputs or source.config.outputs, max_batch_size),
        )
        for kind, specs in (("inputs", declared.inputs), ("outputs", declared.outputs)):
            if not specs:
                msg = f"class {cls.__name__} declares no {kind}, and neither does the configuration"
                raise ModelLoadFailed(msg)
        signature = reconcile(source.config, declared, max_batch_size)
        _check_policy(cls, source.config.decoupled)
        context = LoadContext(
            source.config.name, source.version, source.file.parent, source.config.parameters
        )
        executors: list[PythonExecutor] = []
        for _ in range(max(source.config.instances, 1)):
            try:
                model = cls()
                model.load(context)
            except (Exception, SystemExit) as error:
                for executor in executors:
                    executor.close()
                msg = f"{source.file.name}: load() raised {_where(error, source.file)}"
                raise ModelLoadFailed(msg) from error
            executors.append(PythonExecutor(model, signature, max_batch_size, module))
        return executors


class PythonExecutor:
    """One model object."""

    bounded = False

    def __init__(
        self, model: Model, signature: Signature, max_batch_size: int, module: _ModelModule
    ) -> None:
        self.signature = signature
        self.max_batch_size = max_batch_size
        self.decoupled = _yields(type(model))
        self._model = model
        self._module = module
        module.users += 1

    def run(self, inputs: Arrays) -> Sequence[Array]:
        """See Executor.run."""
        try:
            answer = self._model.predict(_own(inputs))
        except BaseException as error:  # whatever a model raises ends its run, and no more
            raise self._failure(error) from error
        return self._outputs(answer)

    def stream(self, inputs: Arrays) -> Iterator[Sequence[Array]]:
        """See Executor.stream."""
        if not self.decoupled:
            yield self.run(inputs)
            return
        answers: Any = self._model.predict(_own(inputs))  # a generator: nothing runs yet
        try:
            while True:
                try:
                    answer = next(answers)
                except StopIteration:
                    return
                except BaseException as error:  # as in `run`
                    raise self._failure(error) from error
                yield self._outputs(answer)
                del answer  # the model may make the next one in its place
        finally:
            self._stop(answers)

    def _failure(self, error: BaseException) -> InvalidRequest | ModelFailed:
        """What the caller is told of an exception out of the model."""
        if isinstance(error, InvalidRequest):
            return InvalidRequest(f"the model refuses the input: {_said(error)}")
        self._log(error, "raised")
        return ModelFailed(f"the model raised {type(error).__name__}: {_said(error)}")

    def _outputs(self, answer: object) -> Sequence[Array]:
        if not isinstance(answer, Mapping):
            verb = "yielded" if self.decoupled else "answered"
            msg = f"predict() {verb} a {type(answer).__name__}, not a mapping of outputs"
            raise ModelFailed(msg)
        return [_output(spec, answer) for spec in self.signature.outputs]

    def _stop(self, answers: Generator[object, None, None]) -> None:
        """End a generator where it stands; nobody is left to be told of what it raises."""
        try:
            answers.close()
        except BaseException as error:  # noqa: BLE001 - the run is over, whatever it raises
            self._log(error, "raised when its reader had stopped")

    def _log(self, error: BaseException, what: str) -> None:
        with contextlib.suppress(Exception):  # its class may spoil even the log line
            _logger.error("model %s %s", type(self._model).__qualname__, what, exc_info=error)

    def close(self) -> None:
        """Tell the model that it is over, and with the last one forget its code."""
        try:
            self._model.unload()
        except (Exception, SystemExit):
            _logger.exception("unload() of %s raised", type(self._model).__qualname__)
        self._module.leave()


class _ModelModule:
    """The code of one loaded `model.py`, under a name of its own for every load."""

    def __init__(self, source: ModelSource) -> None:
        self.users = 0
        self._file = source.file
        self._name = f"headrace_model_{next(_serial)}"
        module = self._module = ModuleType(self._name)
        module.__file__ = str(self._file)
        # a package, so that `from . import helper` finds files beside model.py
        module.__package__ = self._name
        module.__path__ = [str(self._file.parent)]
        sys.modules[self._name] = module
        try:
            # compiled here: the import system's bytecode cache misses a change within a second
            code = compile(self._file.read_bytes(), str(self._file), "exec")
            exec(code, module.__dict__)  # noqa: S102 - the operator's own file
        except (Exception, SystemExit) as error:
            self.forget()
            msg = f"{self._file.name} cannot be imported: {_where(error, self._file)}"
            raise ModelLoadFailed(msg) from error

    def model_class(self) -> type[Model]:
        """The one class derived from Model, its declarations checked. Raises ModelLoadFailed."""
        classes = {
            value
            for value in vars(self._module).values()
            if inspect.isclass(value)
            and issubclass(value, Model)
            and value.__module__ == self._name
        }
        if len(classes) != 1:
            names = ", ".join(sorted(cls.__name__ for cls in classes)) or "none"
            msg = (
                f"{self._file.name} must define one class derived from headrace.Model; "
                f"it has {names}"
            )
            raise ModelLoadFailed(msg)
        (cls,) = classes
        for kind in ("inputs", "outputs"):
            _check_specs(cls, kind, getattr(cls, kind))
        size: object = cls.max_batch_size
        if type(size) is not int or size < 0:
            msg = f"class {cls.__name__}: max_batch_size must be a whole number >= 0, not {size!r}"
            raise ModelLoadFailed(msg)
        return cls

    def leave(self) -> None:
        """One of the users is closed."""
        self.users -= 1
        if not self.users:
            self.forget()

    def forget(self) -> None:
        """Take the code out of the interpreter's table of modules."""
        for name in list(sys.modules):
            if name == self._name or name.startswith(f"{self._name}."):
                del sys.modules[name]


def _yields(cls: type[Model]) -> bool:
    return inspect.isgeneratorfunction(cls.predict)


def _check_policy(cls: type[Model], decoupled: bool | None) -> None:  # noqa: FBT001 - a setting
    if decoupled is not None and decoupled != _yields(cls):
        says = "true" if decoupled else "false"
        code = "is a generator function" if _yields(cls) else "yields nothing"
        msg = (
            f"the configuration says model_transaction_policy {{ decoupled: {says} }}, "
            f"but predict() of class {cls.__name__} {code}: change one of them"
        )
        raise ModelLoadFailed(msg)


def _own(inputs: Arrays) -> Arrays:
    """Arrays that a model may write into."""
    return {name: a if a.flags.writeable else a.copy() for name, a in inputs.items()}


def _check_specs(cls: type[Model], kind: str, specs: object) -> None:
    if not isinstance(specs, (list, tuple)):
        msg = f"class {cls.__name__}: {kind} must be a list of TensorSpec, not {specs!r}"
        raise ModelLoadFailed(msg)
    for spec in specs:
        try:
            sound = isinstance(spec, TensorSpec) and spec == msgspec.convert(
                msgspec.to_builtins(spec), _SPEC
            )
        except msgspec.ValidationError:
            sound = False
        if not sound or spec.datatype not in DATATYPES:
            msg = f"class {cls.__name__}: {kind} has {spec!r}, which is not a usable TensorSpec"
            raise ModelLoadFailed(msg)


def _output(spec: TensorSpec, answer: Mapping[str, Any]) -> Array:
    if spec.name not in answer:
        msg = f"predict() answered no output '{spec.name}'"
        raise ModelFailed(msg)
    try:
        array = (
            _bytes(spec.name, answer[spec.name])
            if spec.datatype == "BYTES"
            else _numbers(spec, np.asarray(answer[spec.name]))
        )
    except ValueError as error:  # a ragged list, a lone surrogate
        msg = f"output '{spec.name}' is not an array of {spec.datatype}: {error}"
        raise ModelFailed(msg) from error
    if array.ndim != len(spec.shape) or any(
        wanted not in {-1, size} for size, wanted in zip(array.shape, spec.shape, strict=True)
    ):
        msg = (
            f"output '{spec.name}' is declared with shape {list(spec.shape)}, "
            f"but predict() answered {list(array.shape)}"
        )
        raise ModelFailed(msg)
    # a copy: the model may keep the array, and write into it while the answer is being sent
    return np.array(array, order="C")


def _numbers(spec: TensorSpec, array: Array) -> Array:
    wanted = DATATYPES[spec.datatype].dtype
    if array.dtype == wanted:
        return array
    if array.dtype.kind in "iu" and wanted.kind in "iu":
        limits = np.iinfo(wanted)
        if array.size and not (limits.min <= array.min() and array.max() <= limits.max):
            msg = f"output '{spec.name}' holds a number outside the range of {spec.datatype}"
            raise ModelFailed(msg)
    elif not np.can_cast(array.dtype, wanted, "same_kind"):
        msg = (
            f"output '{spec.name}' is declared {spec.datatype}, "
            f"but predict() answered {array.dtype}"
        )
        raise ModelFailed(msg)
    return array.astype(wanted)


def _bytes(name: str, value: Any) -> Array:
    array = np.asarray(value, dtype=np.object_)
    elements = []
    for element in array.ravel().tolist():
        if isinstance(element, str):
            elements.append(element.encode())
        elif isinstance(element, bytes):
            elements.append(element)
        else:
            msg = f"output '{name}' is BYTES, but predict() answered a {type(element).__name__}"
            raise ModelFailed(msg)
    data: Array = np.empty(len(elements), dtype=np.object_)
    data[:] = elements
    return data.reshape(array.shape)


def _said(error: BaseException) -> str:
    """The text of what a model raised, fit for every wire and of bounded length."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - the model's own class
        return ""
    return text[:_TEXT_CHARS].encode("utf-8", "backslashreplace").decode()


def _where(error: BaseException, file: Path) -> str:
    """The error in one line, with the line of the model's own file where it came from."""
    text = f"{type(error).__name__}: {_said(error)}".partition("\n")[0][:500]
    if isinstance(error, SyntaxError):
        return text
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
    return f"{text} (line {lines[-1]})" if lines else text
