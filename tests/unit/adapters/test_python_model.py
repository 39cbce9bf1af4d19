from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import dedent, indent
from typing import Any, TypeAlias

import numpy as np
import pytest

from headrace.adapters.python_model import PythonModelLoader
from headrace.domain.errors import HeadraceError, InvalidRequest, ModelFailed, ModelLoadFailed
from headrace.domain.models import ModelConfig, Signature, TensorSpec
from headrace.domain.tensors import Array
from headrace.ports.executor import Executor, ExecutorLoader, ModelSource

Write: TypeAlias = Callable[..., ModelSource]

X = np.arange(3, dtype=np.float32)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str, **config: Any) -> ModelSource:
        file = tmp_path / "m" / "1" / "model.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(text))
        return ModelSource(ModelConfig("m", **config), "python", "1", file, file.parent.parent)

    return write


def _model(
    predict: str = 'return {"y": inputs["x"]}',
    *,
    output: str = 'TensorSpec("y", "FP32", (-1,))',
    more: str = "",
) -> str:
    """The text of a model that takes FP32 `x` of any length."""
    head = f"""\
import numpy as np
from headrace import Model, TensorSpec

class Mine(Model):
    inputs = [TensorSpec("x", "FP32", (-1,))]
    outputs = [{output}]
"""
    body = f"def predict(self, inputs):\n{indent(dedent(predict), '    ')}\n{dedent(more)}"
    return head + indent(body, "    ")


def _load_all(source: ModelSource) -> Sequence[Executor]:
    loader: ExecutorLoader = PythonModelLoader()
    return loader.load(source)


def _load(source: ModelSource) -> Executor:
    return _load_all(source)[0]


def _refusal(source: ModelSource) -> str:
    with pytest.raises(ModelLoadFailed) as caught:
        _load(source)
    assert "\n" not in caught.value.message
    return caught.value.message


def _error(executor: Executor, **inputs: Array) -> HeadraceError:
    with pytest.raises(HeadraceError) as caught:
        executor.run(inputs or {"x": X})
    return caught.value


# Loading


def test_a_class_in_model_py_is_a_model(write: Write) -> None:
    executor = _load(write(_model('return {"y": inputs["x"] * 2}')))
    assert executor.signature == Signature(
        (TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),)
    )
    assert executor.max_batch_size == 0
    assert not executor.bounded
    (answer,) = executor.run({"x": X})
    assert answer.tolist() == [0, 2, 4]


def test_the_documented_model_works_as_documented(write: Write) -> None:
    page = (Path(__file__).parents[3] / "docs" / "model-repository.md").read_text()
    example = page.partition("```python\n")[2].partition("```")[0]
    source = write(example, parameters={"weight": "0.5"})
    source.file.with_name("positive.txt").write_text("good fine")
    executor = _load(source)
    texts = np.array([[b"good"], [b"bad"]], dtype=object)
    (scores,) = executor.run({"text": texts})
    assert scores.tolist() == [[0.5], [0.0]]
    too_long = np.array([[b"x" * 10_001]], dtype=object)
    assert isinstance(_error(executor, text=too_long), InvalidRequest)


def test_the_model_is_told_what_it_is_and_where_its_files_lie(write: Write) -> None:
    more = """
    def load(self, context):
        self.told = f"{context.name} {context.version} {context.parameters['pooling']} "
        self.told += (context.folder / "vocabulary.txt").read_text()
    """
    source = write(
        _model('return {"y": [self.told]}', output='TensorSpec("y", "BYTES", (1,))', more=more),
        parameters={"pooling": "mean"},
    )
    (source.file.parent / "vocabulary.txt").write_text("words")
    (answer,) = _load(source).run({"x": X})
    assert answer.tolist() == [b"m 1 mean words"]


def test_helpers_beside_model_py_are_imported_relatively(write: Write) -> None:
    source = write("from . import helper\nfrom .package.inner import TWO\n" + _model(
        'return {"y": helper.twice(inputs["x"]) + TWO}'
    ))  # fmt: skip
    folder = source.file.parent
    (folder / "helper.py").write_text("def twice(x):\n    return x * 2\n")
    (folder / "package").mkdir()
    (folder / "package" / "__init__.py").touch()
    (folder / "package" / "inner.py").write_text("TWO = 2\n")
    (answer,) = _load(source).run({"x": X})
    assert answer.tolist() == [2, 4, 6]


def test_what_was_loaded_before_is_not_what_a_changed_file_gives(write: Write) -> None:
    text = "from . import helper\n" + _model('return {"y": inputs["x"] * helper.FACTOR * FACTOR}')
    answers = []
    for factor in (2, 30):
        source = write(f"FACTOR = {factor}\n{text}")
        (source.file.parent / "helper.py").write_text(f"FACTOR = {factor}\n")
        answers.append(_load(source).run({"x": X})[0].tolist())
    assert answers == [[0, 4, 8], [0, 900, 1800]]


def test_a_file_that_changed_within_a_second_is_read_anew(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    answers = []
    for i, factor in enumerate((2, 3)):
        source = write(_model(f'return {{"y": inputs["x"] * {factor}}}'))
        os.utime(source.file, ns=(i, 10**18 + i))  # what tells the two apart for the repository
        answers.append(_load(source).run({"x": X})[0].tolist())
    assert answers == [[0, 2, 4], [0, 3, 6]]


def test_every_instance_is_an_object_of_its_own(write: Write) -> None:
    more = """
    count = 0
    def load(self, context):
        type(self).count += 1
        self.number = self.count
    """
    source = write(_model('return {"y": inputs["x"] + self.number}', more=more), instances=3)
    answers = [executor.run({"x": X})[0].tolist() for executor in _load_all(source)]
    assert answers == [[1, 2, 3], [2, 3, 4], [3, 4, 5]]


def test_the_batch_axis_is_in_front_of_declared_and_configured_shapes(write: Write) -> None:
    declared = write(_model(more="max_batch_size = 4"))
    assert _load(declared).max_batch_size == 4
    assert _load(declared).signature.inputs == (TensorSpec("x", "FP32", (-1, -1)),)
    configured = write(
        _model(more="max_batch_size = 4"),
        max_batch_size=8,
        inputs=(TensorSpec("x", "FP32", (3,)),),
    )
    assert _load(configured).max_batch_size == 8
    assert _load(configured).signature.inputs == (TensorSpec("x", "FP32", (-1, 3)),)


def test_the_configuration_may_declare_what_the_class_does_not(write: Write) -> None:
    source = write(
        """
        from headrace import Model
        class Mine(Model):
            def predict(self, inputs):
                return {"b": inputs["a"]}
        """,
        inputs=(TensorSpec("a", "INT64", (2,)),),
        outputs=(TensorSpec("b", "INT64", (2,)),),
    )
    (answer,) = _load(source).run({"a": np.array([1, 2])})
    assert answer.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("def f(:", "model.py cannot be imported: SyntaxError: "),
        ("\n\n1 / 0", "model.py cannot be imported: ZeroDivisionError: division by zero (line 3)"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module' (line 1)"),
        ("from . import no_such_helper", "model.py cannot be imported: ImportError: "),
        ("raise SystemExit(3)", "model.py cannot be imported: SystemExit: 3 (line 1)"),
        ("\0", "model.py cannot be imported: SyntaxError: "),
        (
            "",
            "model.py must define one class derived from headrace.Model; it has none",
        ),
        (
            "from headrace import Model",
            "model.py must define one class derived from headrace.Model; it has none",
        ),
        (
            ("from headrace import Model\nclass First(Model): ...\nclass Second(Model): ...\n"),
            "model.py must define one class derived from headrace.Model; it has First, Second",
        ),
        (
            "from headrace import Model\nclass Mine(Model): ...",
            "class Mine declares no inputs, and neither does the configuration",
        ),
        (
            _model(output='TensorSpec("y", "FLOAT", (1,))'),
            "class Mine: outputs has TensorSpec(name='y', datatype='FLOAT', ",
        ),
        (
            _model(more="def load(self, context):\n    open('/no/such/file')"),
            "model.py: load() raised FileNotFoundError: ",
        ),
        (
            _model(more="def load(self, context):\n    raise SystemExit('no GPU')"),
            "model.py: load() raised SystemExit: no GPU (line 10)",
        ),
        (
            _model(more="def __init__(self, size): ..."),
            "model.py: load() raised TypeError: ",
        ),
    ],
    ids=lambda value: None if "\0" not in value else "NUL",
)
def test_a_model_that_cannot_be_loaded_is_refused_with_a_reason(
    write: Write, text: str, reason: str
) -> None:
    assert reason in _refusal(write(text))


def test_a_module_that_failed_is_forgotten(write: Write) -> None:
    before = set(sys.modules)
    _refusal(write("1 / 0"))
    assert set(sys.modules) == before


def test_a_file_that_is_gone_is_refused(write: Write) -> None:
    source = write("")
    source.file.unlink()
    assert "model.py cannot be imported: FileNotFoundError" in _refusal(source)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"inputs": (TensorSpec("z", "FP32", (1,)),)}, "names input 'z', but the model has 'x'"),
        ({"outputs": (TensorSpec("y", "FP64", (1,)),)}, "says output 'y' is FP64"),
    ],
)
def test_a_configuration_that_contradicts_the_class_is_refused(
    write: Write, config: dict[str, Any], reason: str
) -> None:
    assert reason in _refusal(write(_model(), **config))


@pytest.mark.parametrize(
    "declaration",
    [
        'inputs = [("x", "FP32", (-1,))]',
        'inputs = [TensorSpec("x", "FP32", -1)]',
        'inputs = TensorSpec("x", "FP32", (-1,))',
        'max_batch_size = "8"',
        "max_batch_size = -1",
    ],
)
def test_a_declaration_that_means_nothing_is_refused(write: Write, declaration: str) -> None:
    assert "Mine" in _refusal(write(_model(more=declaration)))


def test_instances_that_were_loaded_are_unloaded_when_a_later_one_fails(
    write: Write, tmp_path: Path
) -> None:
    more = f"""
    loaded = 0
    def load(self, context):
        type(self).loaded += 1
        self.number = self.loaded
        if self.number == 3:
            raise RuntimeError("out of memory")
    def unload(self):
        with open({str(tmp_path / "unloaded")!r}, "a") as file:
            file.write(f"{{self.number}} ")
    """
    refusal = _refusal(write(_model(more=more), instances=3))
    assert refusal == "model.py: load() raised RuntimeError: out of memory (line 15)"
    assert (tmp_path / "unloaded").read_text() == "1 2 "


# What goes in


def test_inputs_may_be_written_to_whoever_owns_them(write: Write) -> None:
    executor = _load(write(_model('inputs["x"] += 1\nreturn {"y": inputs["x"]}')))
    received = X.copy()
    received.flags.writeable = False
    (answer,) = executor.run({"x": received})
    assert answer.tolist() == [1, 2, 3]
    assert received.tolist() == [0, 1, 2]


def test_bytes_go_in_and_come_out_as_bytes(write: Write) -> None:
    text = _model(
        """
        assert all(type(element) is bytes for element in inputs["x"].ravel())
        return {"y": inputs["x"]}
        """,
        output='TensorSpec("y", "BYTES", (-1, 1))',
    ).replace('"x", "FP32", (-1,)', '"x", "BYTES", (-1, 1)')
    array = np.array([[b"a\0"], [b"\xff"]], dtype=np.object_)
    (answer,) = _load(write(text)).run({"x": array})
    assert answer.dtype == np.object_
    assert answer.tolist() == [[b"a\0"], [b"\xff"]]


# What comes out


@pytest.mark.parametrize(
    ("datatype", "answer", "array"),
    [
        ("FP32", "[1, 2]", np.array([1, 2], np.float32)),
        ("FP32", "np.array([1.5], np.float64)", np.array([1.5], np.float32)),
        ("FP32", "np.ones(2, '>f4')", np.ones(2, np.float32)),
        ("FP32", "np.arange(6, dtype=np.float32)[::2]", np.array([0, 2, 4], np.float32)),
        ("INT64", "[1, 2]", np.array([1, 2])),
        ("INT32", "[1, 2]", np.array([1, 2], np.int32)),
        ("BOOL", "[True, False]", np.array([True, False])),
        ("BF16", "[1.5]", np.array([1.5], np.float32)),
        ("BYTES", "['ä', b'\\xff']", np.array(["ä".encode(), b"\xff"], np.object_)),
        ("BYTES", "np.array(['a', 'bc'])", np.array([b"a", b"bc"], np.object_)),
        ("BYTES", "np.array([b'a', b'bc'])", np.array([b"a", b"bc"], np.object_)),
        ("BYTES", "[]", np.array([], np.object_)),
    ],
)
def test_an_output_is_given_its_declared_datatype(
    write: Write, datatype: str, answer: str, array: Array
) -> None:
    text = _model(f'return {{"y": {answer}}}', output=f'TensorSpec("y", "{datatype}", (-1,))')
    (output,) = _load(write(text)).run({"x": X})
    assert output.dtype == array.dtype
    assert output.dtype.isnative
    assert output.flags.c_contiguous
    assert output.tolist() == array.tolist()


def test_a_number_without_axes_keeps_none(write: Write) -> None:
    text = _model('return {"y": inputs["x"].sum()}', output='TensorSpec("y", "FP32", ())')
    (output,) = _load(write(text)).run({"x": X})
    assert output.shape == ()
    assert output.tolist() == 3.0


def test_outputs_come_in_the_signatures_order_and_others_are_dropped(write: Write) -> None:
    text = _model(
        'return {"other": 1, "z": [2.0], "y": [1.0]}',
        output='TensorSpec("y", "FP32", (1,)), TensorSpec("z", "FP32", (1,))',
    )
    assert [array.tolist() for array in _load(write(text)).run({"x": X})] == [[1.0], [2.0]]


@pytest.mark.parametrize(
    ("output", "predict", "reason"),
    [
        ("FP32 (-1,)", "return None", "predict() answered a NoneType, not a mapping of outputs"),
        ("FP32 (-1,)", 'return [inputs["x"]]', "predict() answered a list, not a mapping"),
        ("FP32 (-1,)", 'return {"z": 1}', "predict() answered no output 'y'"),
        (
            "INT64 (-1,)",
            'return {"y": [1.5]}',
            "output 'y' is declared INT64, but predict() answered float64",
        ),
        (
            "FP32 (-1,)",
            'return {"y": ["one"]}',
            "output 'y' is declared FP32, but predict() answered <U3",
        ),
        (
            "BYTES (-1,)",
            'return {"y": [b"a", 1]}',
            "output 'y' is BYTES, but predict() answered a int",
        ),
        (
            "FP32 (-1,)",
            'return {"y": [[1.0]]}',
            "output 'y' is declared with shape [-1], but predict() answered [1, 1]",
        ),
        (
            "FP32 (2, -1)",
            'return {"y": [[1.0]]}',
            "output 'y' is declared with shape [2, -1], but predict() answered [1, 1]",
        ),
        ("FP32 ()", 'return {"y": [1.0]}', "with shape [], but predict() answered [1]"),
    ],
)
def test_an_answer_that_the_signature_does_not_promise_is_the_models_failure(
    write: Write, output: str, predict: str, reason: str
) -> None:
    datatype, _, shape = output.partition(" ")
    spec = f'TensorSpec("y", "{datatype}", {shape})'
    error = _error(_load(write(_model(predict, output=spec))))
    assert isinstance(error, ModelFailed)
    assert reason in error.message


@pytest.mark.parametrize(
    ("datatype", "answer"), [("FP32", "[[1.0], [2.0, 3.0]]"), ("BYTES", r"['\ud800']")]
)
def test_an_answer_that_is_no_array_is_the_models_failure(
    write: Write, datatype: str, answer: str
) -> None:
    spec = f'TensorSpec("y", "{datatype}", (-1,))'
    executor = _load(write(_model(f'return {{"y": {answer}}}', output=spec)))
    assert isinstance(_error(executor), ModelFailed)


def test_an_integer_that_does_not_fit_is_the_models_failure(write: Write) -> None:
    spec = 'TensorSpec("y", "INT8", (-1,))'
    executor = _load(write(_model('return {"y": np.array([300])}', output=spec)))
    assert isinstance(_error(executor), ModelFailed)


# Failing


def test_an_answer_is_not_changed_by_what_the_model_does_next(write: Write) -> None:
    body = """\
        self.buffer = getattr(self, "buffer", np.zeros(3, np.float32))
        self.buffer[:] = inputs["x"]
        return {"y": self.buffer}
    """
    executor = _load(write(_model(body)))
    (first,) = executor.run({"x": X})
    (second,) = executor.run({"x": X + 1})
    assert first.tolist() == X.tolist()
    assert second.tolist() == (X + 1).tolist()


@pytest.mark.parametrize("raised", ["KeyboardInterrupt()", "GeneratorExit()", "SystemExit(1)"])
def test_whatever_a_model_raises_is_its_failure(write: Write, raised: str) -> None:
    assert isinstance(_error(_load(write(_model(f"raise {raised}")))), ModelFailed)


def test_a_class_without_a_module_cannot_spoil_the_log(write: Write) -> None:
    body = """raise eval("type('X', (Exception,), {})('plain')", {})"""
    error = _error(_load(write(_model(body))))
    assert isinstance(error, ModelFailed)
    assert error.message == "the model raised X: plain"


def test_what_a_model_says_is_cut_and_fit_for_every_wire(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a test worker could not send the captured lines home
    monkeypatch.setattr(logging.getLogger("headrace.adapters.python_model"), "disabled", True)
    error = _error(_load(write(_model("raise RuntimeError(chr(0xD800) + 'x' * 5000)"))))
    assert error.message.startswith("the model raised RuntimeError: \\ud800xxx")
    assert len(error.message) < 1200
    error.message.encode()


def test_the_code_of_a_model_that_cannot_be_loaded_is_forgotten(write: Write) -> None:
    before = set(sys.modules)
    with pytest.raises(ModelLoadFailed):
        _load(write(_model(more="def load(self, context):\n    raise OSError")))
    assert not [n for n in set(sys.modules) - before if n.startswith("headrace_model_")]


def test_what_a_model_calls_invalid_is_the_clients_mistake(write: Write) -> None:
    body = 'from headrace import InvalidRequest; raise InvalidRequest("x must rise")'
    error = _error(_load(write(_model(body))))
    assert isinstance(error, InvalidRequest)
    assert error.message == "the model refuses the input: x must rise"


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        ('RuntimeError("no memory")', "the model raised RuntimeError: no memory"),
        ('KeyError("z")', "the model raised KeyError: 'z'"),
        ("SystemExit(3)", "the model raised SystemExit: 3"),
    ],
)
def test_any_other_error_is_the_models_and_is_logged_with_its_traceback(
    write: Write, caplog: pytest.LogCaptureFixture, raised: str, told: str
) -> None:
    error = _error(_load(write(_model(f"raise {raised}"))))
    assert isinstance(error, ModelFailed)
    assert error.message == told
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None


def test_a_model_that_failed_goes_on_working(write: Write) -> None:
    executor = _load(write(_model('return {"y": {3: inputs["x"]}[inputs["x"].size]}')))
    assert isinstance(_error(executor, x=X[:1]), ModelFailed)
    assert executor.run({"x": X})[0].tolist() == [0, 1, 2]


# Unloading


def test_an_unloaded_model_is_told(write: Write, tmp_path: Path) -> None:
    more = f"""
    def unload(self):
        open({str(tmp_path / "unloaded")!r}, "x").close()
    """
    executor = _load(write(_model(more=more)))
    assert not (tmp_path / "unloaded").exists()
    executor.close()
    assert (tmp_path / "unloaded").exists()


@pytest.mark.parametrize("raised", ["RuntimeError()", "SystemExit()"])
def test_a_model_that_will_not_go_is_logged_and_left(
    write: Write, caplog: pytest.LogCaptureFixture, raised: str
) -> None:
    _load(write(_model(more=f"def unload(self):\n    raise {raised}"))).close()
    (record,) = caplog.records
    assert record.getMessage() == "unload() of Mine raised"


# Models that yield


STREAM = """
for i in range(int(inputs["x"][0])):
    yield {"y": inputs["x"] + i}
"""


def _streamed(executor: Executor, x: Array = X) -> list[Any]:
    return [answer[0].tolist() for answer in executor.stream({"x": x})]


def test_a_generator_function_is_a_model_with_any_number_of_answers(write: Write) -> None:
    executor = _load(write(_model(STREAM)))
    assert executor.decoupled
    assert _streamed(executor, np.array([2, 0], dtype=np.float32)) == [[2, 0], [3, 1]]
    assert _streamed(executor, np.array([0], dtype=np.float32)) == []


def test_a_model_that_returns_gives_one_answer_to_a_stream(write: Write) -> None:
    executor = _load(write(_model()))
    assert not executor.decoupled
    assert _streamed(executor) == [[0, 1, 2]]


def test_the_documented_model_that_yields_works_as_documented(write: Write) -> None:
    page = (Path(__file__).parents[3] / "docs" / "model-repository.md").read_text()
    example = page.partition("### A model that yields")[2].partition("```python\n")[2]
    executor = _load(write(example.partition("```")[0]))
    answers = list(executor.stream({"text": np.array([b"so it goes"], dtype=object)}))
    assert [(word.tolist(), place.tolist()) for word, place in answers] == [
        ([b"so"], [0]),
        ([b"it"], [1]),
        ([b"goes"], [2]),
    ]


def test_an_answer_of_a_stream_is_no_longer_the_models(write: Write) -> None:
    predict = """
    kept = np.zeros(1, dtype=np.float32)
    for i in range(3):
        kept[0] = i
        yield {"y": kept}
    """
    assert _streamed(_load(write(_model(predict)))) == [[0], [1], [2]]


def test_a_model_that_yields_may_write_into_its_inputs(write: Write) -> None:
    predict = """
    inputs["x"] += 1
    yield {"y": inputs["x"]}
    """
    x = np.frombuffer(b"\0\0\0\0", dtype=np.float32)
    assert _streamed(_load(write(_model(predict))), x) == [[1]]
    assert x.tolist() == [0]


@pytest.mark.parametrize(
    ("step", "kind", "message"),
    [
        ("raise ValueError('broken')", ModelFailed, "the model raised ValueError: broken"),
        ("raise SystemExit(3)", ModelFailed, "the model raised SystemExit: 3"),
        (
            "raise StopIteration",
            ModelFailed,
            "the model raised RuntimeError: generator raised StopIteration",
        ),
        (
            "from headrace import InvalidRequest; raise InvalidRequest('too long')",
            InvalidRequest,
            "the model refuses the input: too long",
        ),
        ("yield 7", ModelFailed, "predict() yielded a int, not a mapping of outputs"),
        ("yield {}", ModelFailed, "predict() answered no output 'y'"),
        (
            'yield {"y": [[1.0]]}',
            ModelFailed,
            "output 'y' is declared with shape [-1], but predict() answered [1, 1]",
        ),
    ],
)
def test_what_breaks_a_stream_is_told_after_the_answers_before(
    write: Write, step: str, kind: type[HeadraceError], message: str
) -> None:
    answers = _load(write(_model(f'yield {{"y": inputs["x"]}}\n{step}'))).stream({"x": X})
    assert next(answers)[0].tolist() == [0, 1, 2]
    with pytest.raises(kind) as caught:
        next(answers)
    assert type(caught.value) is kind
    assert caught.value.message == message


_TIDY = """
try:
    while True:
        yield {"y": inputs["x"]}
finally:
    self.tidied = True
"""


@pytest.mark.parametrize("how", ["closed", "an answer that does not fit"])
def test_a_stream_that_ends_early_runs_the_models_finally(write: Write, how: str) -> None:
    bad = _TIDY.replace('inputs["x"]}', 'inputs["x"]}; yield {"y": "text"}')
    source = write(_model(_TIDY if how == "closed" else bad, more="tidied = False"))
    executor = _load(source)
    model = executor._model  # type: ignore[attr-defined]  # noqa: SLF001 - what it did to itself
    answers = executor.stream({"x": X})
    next(answers)
    assert not model.tidied
    if how == "closed":
        answers.close()  # type: ignore[attr-defined]
    else:
        with pytest.raises(ModelFailed):
            next(answers)
    assert model.tidied


@pytest.mark.parametrize("end", ["raise ValueError('late')", "yield {}"])
def test_what_a_model_does_when_it_is_stopped_is_only_logged(
    write: Write, end: str, caplog: pytest.LogCaptureFixture
) -> None:
    predict = f"""
    try:
        yield {{"y": inputs["x"]}}
    finally:
        {end}
    """
    answers = _load(write(_model(predict))).stream({"x": X})
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    assert "model Mine raised when its reader had stopped" in caplog.text


@pytest.mark.parametrize(
    ("predict", "decoupled", "refusal"),
    [
        (
            'return {"y": inputs["x"]}',
            True,
            (
                "the configuration says model_transaction_policy { decoupled: true }, "
                "but predict() of class Mine yields nothing: change one of them"
            ),
        ),
        (
            STREAM,
            False,
            (
                "the configuration says model_transaction_policy { decoupled: false }, "
                "but predict() of class Mine is a generator function: change one of them"
            ),
        ),
    ],
)
def test_a_configuration_that_contradicts_the_code_is_refused(
    write: Write, predict: str, refusal: str, *, decoupled: bool
) -> None:
    assert _refusal(write(_model(predict), decoupled=decoupled)) == refusal


@pytest.mark.parametrize(("predict", "decoupled"), [('return {"y": [1.0]}', False), (STREAM, True)])
def test_a_configuration_may_say_what_the_code_says(
    write: Write, predict: str, *, decoupled: bool
) -> None:
    assert _load(write(_model(predict), decoupled=decoupled)).decoupled == decoupled
