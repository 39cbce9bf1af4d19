"""Models written in Python: a class in `model.py`, run in this process on its own threads."""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import logging
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np

from headrace.domain.datatypes import DATATYPES
from headrace.domain.errors import InvalidRequest, ModelFailed, ModelLoadFailed
from headrace.domain.models import Signature, TensorSpec
from headrace.domain.signatures import configured, reconcile
from headrace.domain.tensors import Array
from headrace.ports.executor import Arrays, ModelSource
from headrace.ports.python_model import LoadContext, Model

_logger = logging.getLogger(__name__)
_serial: Final = itertools.count()  # every load gets a module of its own


class PythonModelLoader:
    """Loads `model.py` files of the operator's own folder, never code that came over the API."""

    def load(self, source: ModelSource) -> Sequence[PythonExecutor]:
        """See ExecutorLoader.load."""
        module = _import(source)
        cls = _model_class(module, source.file)
        max_batch_size = source.config.max_batch_size
        if max_batch_size is None:
            max_batch_size = cls.max_batch_size
        declared = Signature(
            configured(cls.inputs or source.config.inputs, max_batch_size),
            configured(cls.outputs or source.config.outputs, max_batch_size),
        )
        for kind, specs in (("inputs", declared.inputs), ("outputs", declared.outputs)):
            _check_specs(cls, kind, specs)
        signature = reconcile(source.config, declared, max_batch_size)
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
            executors.append(PythonExecutor(model, signature, max_batch_size))
        return executors


class PythonExecutor:
    """One model object."""

    bounded = False

    def __init__(self, model: Model, signature: Signature, max_batch_size: int) -> None:
        self.signature = signature
        self.max_batch_size = max_batch_size
        self._model = model

    def run(self, inputs: Arrays) -> Sequence[Array]:
        """See Executor.run."""
        own = {name: a if a.flags.writeable else a.copy() for name, a in inputs.items()}
        try:
            answer = self._model.predict(own)
        except ValueError as error:
            msg = f"the model refuses the input: {error}"
            raise InvalidRequest(msg) from error
        except (Exception, SystemExit) as error:  # a model's sys.exit() ends its run, no more
            _logger.exception("model %s raised", type(self._model).__qualname__)
            msg = f"the model raised {type(error).__name__}: {error}"
            raise ModelFailed(msg) from error
        if not isinstance(answer, Mapping):
            msg = f"predict() answered a {type(answer).__name__}, not a mapping of outputs"
            raise ModelFailed(msg)
        return [_output(spec, answer) for spec in self.signature.outputs]

    def close(self) -> None:
        """Tell the model that it is over."""
        try:
            self._model.unload()
        except (Exception, SystemExit):
            _logger.exception("unload() of %s raised", type(self._model).__qualname__)


def _import(source: ModelSource) -> ModuleType:
    file = source.file
    name = f"headrace_model_{next(_serial)}"
    # a package, so that `from . import helper` finds files beside model.py
    spec = importlib.util.spec_from_file_location(
        name, file, submodule_search_locations=[str(file.parent)]
    )
    if spec is None or spec.loader is None:
        msg = f"{file.name} is not a Python file"
        raise ModelLoadFailed(msg)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        msg = f"{file.name} cannot be imported: {_where(error, file)}"
        raise ModelLoadFailed(msg) from error
    return module


def _model_class(module: ModuleType, file: Path) -> type[Model]:
    classes = [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, Model)
        and value.__module__ == module.__name__
    ]
    if len(classes) != 1:
        names = ", ".join(cls.__name__ for cls in classes) or "none"
        msg = f"{file.name} must define one class derived from headrace.Model; it has {names}"
        raise ModelLoadFailed(msg)
    cls: type[Model] = classes[0]
    return cls


def _check_specs(cls: type[Model], kind: str, specs: Sequence[TensorSpec]) -> None:
    if not specs:
        msg = f"class {cls.__name__} declares no {kind}, and neither does the configuration"
        raise ModelLoadFailed(msg)
    for spec in specs:
        if spec.datatype not in DATATYPES:
            msg = f"class {cls.__name__}: {kind} has {spec!r}, whose datatype is not known"
            raise ModelLoadFailed(msg)


def _output(spec: TensorSpec, answer: Mapping[str, Any]) -> Array:
    if spec.name not in answer:
        msg = f"predict() answered no output '{spec.name}'"
        raise ModelFailed(msg)
    wanted = DATATYPES[spec.datatype].dtype
    if spec.datatype == "BYTES":
        array = _bytes(spec.name, answer[spec.name])
    else:
        array = np.asarray(answer[spec.name])
        if array.dtype != wanted:
            if not np.can_cast(array.dtype, wanted, "same_kind"):
                msg = (
                    f"output '{spec.name}' is declared {spec.datatype}, "
                    f"but predict() answered {array.dtype}"
                )
                raise ModelFailed(msg)
            array = array.astype(wanted)
    if array.ndim != len(spec.shape) or any(
        wanted not in {-1, size} for size, wanted in zip(array.shape, spec.shape, strict=True)
    ):
        msg = (
            f"output '{spec.name}' is declared with shape {list(spec.shape)}, "
            f"but predict() answered {list(array.shape)}"
        )
        raise ModelFailed(msg)
    return np.asarray(array, order="C")


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


def _where(error: BaseException, file: Path) -> str:
    """The error in one line, with the line of the model's own file where it came from."""
    text = f"{type(error).__name__}: {error}".partition("\n")[0][:500]
    if isinstance(error, SyntaxError):
        return text
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(file)]
    return f"{text} (line {lines[-1]})" if lines else text
