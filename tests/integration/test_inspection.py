"""Looking at models in a process of its own: good ones, and ones made to do harm."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from bench.models import tiny
from headrace.adapters.inspection import Assignment, ChildInspector, InspectionSettings
from headrace.compose.demo_magika import NAME as MAGIKA
from headrace.domain.errors import InvalidRequest, ModelLoadFailed
from headrace.domain.models import Signature, TensorSpec
from headrace.ports.artifacts import Inspector
from tests.support import onnx_files, repositories
from tests.support.process import eventually
from tests.support.waiting import until

ENTRY: Final = "headrace.compose.inspect"


def inspector(**settings: Any) -> ChildInspector:

    return ChildInspector(
        InspectionSettings(**settings), entry_module=ENTRY, default_max_batch_size=64
    )


async def reason(folder: Path, **settings: Any) -> str:
    """Why a model is refused."""
    with pytest.raises(ModelLoadFailed) as caught:
        await inspector(**settings).inspect(folder)
    message = caught.value.message
    assert str(folder) not in message
    return message


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "artifact"
    place.mkdir()
    return place


def tiny_in(folder: Path) -> Path:
    """The tiny model as an artifact has it: in no version folder."""
    shutil.copy(tiny(folder.parent / "models"), folder / "model.onnx")
    return folder


# --- good models ---------------------------------------------------------------------------------


async def test_a_model_that_can_be_served_passes_with_its_signature(folder: Path) -> None:
    port: Inspector = inspector()
    found = await port.inspect(tiny_in(folder))
    assert found.signature == Signature(
        (TensorSpec("x", "FP32", (-1, 4)),), (TensorSpec("y", "FP32", (-1, 3)),)
    )
    assert found.max_batch_size == 64
    assert 0 < found.warm_up_s < 5
    assert found.outputs == ()


async def test_the_demos_model_passes(folder: Path) -> None:
    magika = pytest.importorskip("magika")
    file = next(Path(magika.__file__).parent.rglob("*.onnx"))
    shutil.copy(file, folder / "model.onnx")
    found = await inspector().inspect(folder)
    assert found.signature.inputs[0].datatype == "INT32", MAGIKA


async def test_smoke_inputs_are_answered_in_order(folder: Path) -> None:
    onnx_files.plus_one(folder)
    found = await inspector().inspect(
        folder,
        smoke=[
            {"x": {"shape": [1, 2], "datatype": "FP32", "data": [1, 2]}},
            {"x": {"shape": [2, 2], "data": [[1, 2], [3, 4]]}},
            {"x": [[0.5, -1]]},
        ],
    )
    assert found.outputs == (
        {"y": {"datatype": "FP32", "shape": [1, 2], "data": [2.0, 3.0]}},
        {"y": {"datatype": "FP32", "shape": [2, 2], "data": [2.0, 3.0, 4.0, 5.0]}},
        {"y": {"datatype": "FP32", "shape": [1, 2], "data": [1.5, 0.0]}},
    )


async def test_texts_go_in_and_come_out(folder: Path, tmp_path: Path) -> None:
    model = repositories.joined(tmp_path / "models")
    shutil.copy(model / "1" / "model.onnx", folder)
    found = await inspector().inspect(folder, smoke=[{"left": [["grüß"]], "right": [["水"]]}])
    assert found.outputs[0]["joined"]["data"] == ["grüß水"]


@pytest.mark.parametrize("datatype", sorted(repositories.ONNX_DATATYPES))
async def test_every_datatype_can_be_smoked(folder: Path, tmp_path: Path, datatype: str) -> None:
    model = repositories.identity(tmp_path / "models", datatype)
    shutil.copy(model / "1" / "model.onnx", folder)
    value = {"BOOL": True, "BYTES": "a"}.get(datatype, 1)
    found = await inspector().inspect(folder, smoke=[{"x": [[value, value]]}])
    assert found.outputs[0]["y"] == {"datatype": datatype, "shape": [1, 2], "data": [value, value]}


async def test_infinities_and_nan_of_an_output_are_null(folder: Path, tmp_path: Path) -> None:
    model = repositories.reciprocal(tmp_path / "models")
    shutil.copy(model / "1" / "model.onnx", folder)
    found = await inspector().inspect(folder, smoke=[{"x": [[0, 2]]}])
    assert found.outputs[0]["y"]["data"] == [None, 0.5]


async def test_the_configuration_beside_the_model_is_obeyed(folder: Path) -> None:
    tiny_in(folder)
    (folder / "labels.txt").write_text("a\nb\nc\n")
    (folder / "config.toml").write_text(
        'max_batch_size = 8\n[[outputs]]\nname = "y"\ndatatype = "FP32"\nshape = [3]\n'
        'labels = "labels.txt"\n'
    )
    found = await inspector().inspect(folder)
    assert found.max_batch_size == 8
    assert found.signature.outputs[0].labels == ("a", "b", "c")


async def test_external_data_beside_the_model_is_taken(folder: Path) -> None:
    onnx_files.external(folder, "weights.bin", offset=4, length=8)
    (folder / "weights.bin").write_bytes(np.array([9, 1, 2], np.float32).tobytes())
    found = await inspector().inspect(folder, smoke=[{"x": [[0, 0]]}])
    assert found.outputs[0]["y"]["data"] == [1, 2]


async def test_external_data_in_a_folder_of_the_artifact_is_taken(folder: Path) -> None:
    onnx_files.external(folder, "weights/w.bin")
    (folder / "weights").mkdir()
    (folder / "weights" / "w.bin").write_bytes(np.array([1, 2], np.float32).tobytes())
    found = await inspector().inspect(folder, smoke=[{"x": [[0, 0]]}])
    assert found.outputs[0]["y"]["data"] == [1, 2]


async def test_operators_that_the_model_defines_itself_are_no_custom_ones(folder: Path) -> None:
    opset = [helper.make_opsetid("", 20)]
    twice = helper.make_function(
        "mine", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], opset
    )
    onnx_files.write(
        folder,
        [helper.make_node("Twice", ["x"], ["y"], domain="mine")],
        inputs={"x": ["N", 2]},
        outputs={"y": ["N", 2]},
        opsets={"": 20, "mine": 1},
        functions=[twice],
    )
    found = await inspector().inspect(folder, smoke=[{"x": [[1, 2]]}])
    assert found.outputs[0]["y"]["data"] == [2, 4]


async def test_a_model_of_open_axes_may_refuse_zeros(folder: Path) -> None:
    onnx_files.write(
        folder,
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        inputs={"x": ["N", "M"]},
        outputs={"y": ["K", 4]},
        constants=[numpy_helper.from_array(np.array([-1, 4], np.int64), "shape")],
    )
    found = await inspector().inspect(folder, smoke=[{"x": [[1, 2, 3, 4]]}])
    assert found.outputs[0]["y"]["shape"] == [1, 4]


# --- what is not ONNX ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "empty"),
        (pickle.dumps({"weights": [1, 2, 3]}), "is a Python pickle, which is never read"),
        (pickle.dumps(print, protocol=2), "is a Python pickle"),
        (pickle.dumps(print, protocol=0), "is a text file"),
        (b"PK\x03\x04" + bytes(100), "ZIP archive, as torch.save"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
        (b"\x1c\0\0\0TFL3" + bytes(100), "TensorFlow Lite"),
        (b"GGUF" + bytes(100), "GGUF"),
        (b"\x1f\x8b\x08" + bytes(100), "gzip"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (b"<!DOCTYPE html><html>not found</html>\n", "text file"),
        (b"\xff" * 1000, "cut off, damaged or not an ONNX file"),
        (bytes(1000), "cut off, damaged or not an ONNX file"),
        (b"\x08\x09", "no graph"),
    ],
)
async def test_a_file_that_is_not_onnx_is_refused_by_what_it_is(
    folder: Path, content: bytes, expected: str
) -> None:
    (folder / "model.onnx").write_bytes(content)
    assert expected in await reason(folder)


async def test_a_pickle_is_not_run(folder: Path, tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "harm"),)

    (folder / "model.onnx").write_bytes(pickle.dumps(Harm()))
    assert "pickle" in await reason(folder)
    assert not (tmp_path / "harm").exists()


async def test_a_model_that_was_cut_off_is_refused(folder: Path) -> None:
    tiny_in(folder)
    whole = (folder / "model.onnx").read_bytes()
    for size in (1, 10, len(whole) // 2, len(whole) - 1):
        (folder / "model.onnx").write_bytes(whole[:size])
        assert await reason(folder)


async def test_an_artifact_without_a_model_is_refused(folder: Path) -> None:
    assert "no file 'model.onnx'" in await reason(folder)


async def test_a_python_model_is_never_run(folder: Path, tmp_path: Path) -> None:
    onnx_files.plus_one(folder)
    (folder / "model.py").write_text(f"open({str(tmp_path / 'harm')!r}, 'w')\n")
    (folder / "config.toml").write_text('platform = "python"\nfilename = "model.py"\n')
    assert "asks for other than model.onnx" in await reason(folder)
    assert not (tmp_path / "harm").exists()


async def test_nothing_in_the_folder_is_imported(folder: Path, tmp_path: Path) -> None:
    tiny_in(folder)
    for name in ("numpy.py", "onnx.py", "sitecustomize.py"):
        (folder / name).write_text(f"open({str(tmp_path / 'harm')!r}, 'w')\n")
    await inspector().inspect(folder)
    assert not (tmp_path / "harm").exists()


# --- external data -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("../secret.bin", "must be in the model's folder"),
        ("weights/../../secret.bin", "must be in the model's folder"),
        ("/etc/hostname", "must be in the model's folder"),
        ("./weights.bin", "plain relative path"),
        ("weights//w.bin", "plain relative path"),
        ("..\\secret.bin", "no file may be called"),
        ("*/_ORT_MEM_ADDR_/*", "no file may be called"),
        ("", "names no file"),
        ("nothing.bin", "was not sent"),
        ("weights", "link or no plain file"),
        ("model.onnx", "itself"),
        ("link.bin", "link or no plain file"),
        ("linked/secret.bin", "leads through a link"),
        ("hardlink.bin", "link or no plain file"),
        ("pipe", "link or no plain file"),
    ],
)
async def test_external_data_is_never_read_outside_the_folder(
    folder: Path, tmp_path: Path, location: str, expected: str
) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(8))
    (folder / "weights").mkdir()
    (folder / "link.bin").symlink_to(secret)
    (folder / "linked").symlink_to(tmp_path)
    os.link(secret, folder / "hardlink.bin")
    os.mkfifo(folder / "pipe")
    onnx_files.external(folder, location)
    assert expected in await reason(folder)


async def test_external_data_of_a_branch_is_looked_at_too(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(8))
    onnx_files.external_in_subgraph(folder, "../secret.bin")
    assert "must be in the model's folder" in await reason(folder)


@pytest.mark.parametrize(
    "entries",
    [
        {"offset": 4},
        {"offset": 4, "length": 8},
        {"offset": -8},
        {"length": 2**70},
        {"offset": "0x4"},
        {"length": "eight"},
    ],
)
async def test_external_data_must_be_in_its_file(folder: Path, entries: dict[str, Any]) -> None:
    onnx_files.external(folder, "weights.bin", **entries)
    (folder / "weights.bin").write_bytes(bytes(8))
    assert await reason(folder)


async def test_a_model_that_is_a_link_is_refused(folder: Path, tmp_path: Path) -> None:
    elsewhere = onnx_files.plus_one(tmp_path / "elsewhere")
    (folder / "model.onnx").symlink_to(elsewhere / "model.onnx")
    assert "link" in await reason(folder)
    (folder / "model.onnx").unlink()
    os.link(elsewhere / "model.onnx", folder / "model.onnx")
    assert "link" in await reason(folder)


# --- models that cannot be served ----------------------------------------------------------------


async def test_a_custom_operator_is_named(folder: Path) -> None:
    onnx_files.write(
        folder,
        [helper.make_node("Sparkle", ["x"], ["y"], name="n1", domain="acme.ops")],
        inputs={"x": ["N", 2]},
        outputs={"y": ["N", 2]},
        opsets={"": 20, "acme.ops": 1},
    )
    found = await reason(folder)
    assert "node 'n1' is the operator 'acme.ops.Sparkle', a custom one" in found


async def test_an_operator_that_onnx_does_not_have_is_named(folder: Path) -> None:
    onnx_files.write(
        folder,
        [helper.make_node("Sparkle", ["x"], ["y"])],
        inputs={"x": ["N", 2]},
        outputs={"y": ["N", 2]},
    )
    assert "Sparkle" in await reason(folder)


async def test_an_opset_of_the_future_is_named(folder: Path) -> None:
    onnx_files.write(
        folder,
        [helper.make_node("Identity", ["x"], ["y"])],
        inputs={"x": ["N", 2]},
        outputs={"y": ["N", 2]},
        opsets={"": 900},
    )
    assert "is of ONNX opset 900; this platform knows up to" in await reason(folder)


async def test_a_graph_that_does_not_fit_together_breaks_the_standard(folder: Path) -> None:
    onnx_files.write(
        folder,
        [helper.make_node("Identity", ["nowhere"], ["y"])],
        inputs={"x": ["N", 2]},
        outputs={"y": ["N", 2]},
    )
    assert "breaks the ONNX standard" in await reason(folder)


async def test_a_configuration_that_contradicts_the_model_is_refused(folder: Path) -> None:
    tiny_in(folder)
    (folder / "config.toml").write_text("max_batchsize = 8\n")
    assert "max_batchsize" in await reason(folder)


async def test_labels_outside_the_folder_are_not_read(folder: Path) -> None:
    tiny_in(folder)
    (folder / "config.toml").write_text(
        '[[outputs]]\nname = "y"\ndatatype = "FP32"\nshape = [3]\n'
        'labels = "../../../../../etc/hostname"\n'
    )
    assert "leaves the folder" in await reason(folder)


async def test_a_closed_model_that_fails_on_zeros_is_refused_with_a_way_out(folder: Path) -> None:
    onnx_files.write(
        folder,
        [
            helper.make_node("Cast", ["x"], ["index"], to=onnx.TensorProto.INT64),
            helper.make_node("Sub", ["index", "far"], ["before"]),
            helper.make_node("Gather", ["table", "before"], ["y"]),
        ],
        inputs={"x": [1]},
        outputs={"y": [1]},
        constants=[
            numpy_helper.from_array(np.array([1.5, 2.5], np.float32), "table"),
            numpy_helper.from_array(np.array([1000], np.int64), "far"),
        ],
    )
    assert "if it takes no zeros, send a smoke input" in await reason(folder)
    found = await inspector().inspect(folder, smoke=[{"x": [1001]}])
    assert found.outputs[0]["y"]["data"] == [2.5]


# --- models that harm the process they run in ----------------------------------------------------


async def test_a_model_that_fills_memory_is_refused_and_the_platform_lives(folder: Path) -> None:
    onnx_files.greedy(folder, gibibytes=8)
    found = await reason(folder, memory_bytes=1024**3)
    assert "needs more memory than the 1024 MiB" in found


async def test_a_loop_without_end_is_ended_by_the_clock(folder: Path) -> None:
    onnx_files.endless(folder)
    begun = time.monotonic()
    found = await reason(folder, timeout_s=3)
    assert "took over 3 s while it was run on zeros" in found
    assert time.monotonic() - begun < 8


async def test_a_loop_without_end_is_ended_by_its_processor_time(folder: Path) -> None:
    onnx_files.endless(folder)
    assert "2 s of processor time while it was run on zeros" in await reason(folder, cpu_s=2)


async def test_a_model_that_crashes_its_process_is_refused_with_the_signal(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    onnx_files.quotient(folder)
    with caplog.at_level(logging.WARNING):
        found = await reason(folder)
    assert "crashed the process that tried it (SIGFPE) while it was run on zeros" in found
    assert "ended by itself" in caplog.text


async def test_a_refused_model_leaves_no_process_behind(folder: Path) -> None:
    onnx_files.endless(folder)
    await reason(folder, timeout_s=2)
    assert _children() == []


async def test_a_look_that_is_cancelled_leaves_no_process_behind(folder: Path) -> None:
    onnx_files.endless(folder)
    look = asyncio.ensure_future(inspector().inspect(folder))
    await until(_children)
    look.cancel()
    with pytest.raises(asyncio.CancelledError):
        await look
    assert _children() == []


def _children() -> list[str]:
    """Inspections under way that this process has started."""
    found = []
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            stat = (status.parent / "stat").read_text().rpartition(")")[2].split()
            if stat[1] == str(os.getpid()) and ENTRY.encode() in status.read_bytes():
                found.append(status.parent.name)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


async def test_models_wait_for_their_turn(folder: Path) -> None:
    tiny_in(folder)
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, len(_children()))
            await asyncio.sleep(0.01)

    one_at_a_time = inspector(concurrency=1)
    watching = asyncio.ensure_future(watch())
    await asyncio.gather(*(one_at_a_time.inspect(folder) for _ in range(3)))
    watching.cancel()
    assert most == 1


async def test_the_child_sees_no_secret_of_the_platform(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "onnx.py").write_text("raise SystemExit('imported from PYTHONPATH')\n")
    onnx_files.endless(folder)
    look = asyncio.ensure_future(inspector(timeout_s=5).inspect(folder))
    children = await until(_children)
    environment = _environment(children[0])
    look.cancel()
    with pytest.raises(asyncio.CancelledError):
        await look
    assert b"secret" not in environment
    assert b"PYTHONPATH" not in environment


def _environment(process: str) -> bytes:
    return Path("/proc", process, "environ").read_bytes()


async def test_the_child_has_limits_on_memory_time_and_files(folder: Path) -> None:
    onnx_files.endless(folder)
    settings = {"timeout_s": 20.0, "cpu_s": 17.0, "memory_bytes": 2 * 1024**3}
    look = asyncio.ensure_future(inspector(**settings).inspect(folder))
    expected = {
        "Max cpu time": "17",
        "Max file size": "0",
        "Max core file size": "0",
        "Max address space": str(2 * 1024**3),
    }

    def limited() -> bool:
        assert not look.done(), look.exception()
        return any(_limits(child).items() >= expected.items() for child in _children())

    await until(limited)
    look.cancel()
    with pytest.raises(asyncio.CancelledError):
        await look


def _limits(process: str) -> dict[str, str]:
    try:
        lines = Path("/proc", process, "limits").read_text().splitlines()[1:]
    except (FileNotFoundError, ProcessLookupError):
        return {}
    pairs = [(line[:25].strip(), line[25:].split()) for line in lines]
    return {name: values[0] for name, values in pairs}  # the soft limit


# --- smoke inputs --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("smoke", "expected"),
    [
        ({}, "Missing: 'x'"),
        ({"z": [[1, 2]]}, "unexpected inference input 'z'"),
        ({"x": [[1, 2]], "z": [[1, 2]]}, "unexpected inference input 'z'"),
        ({"x": [[1, 2, 3]]}, "Expected [-1,2], got [1,3]"),
        ({"x": {"shape": [1, 2], "data": [1, 2, 3]}}, "has 3 elements, but shape [1, 2] takes 2"),
        ({"x": {"shape": [1, -2], "data": [1, 2]}}, "Expected `int` >= 0"),
        ({"x": {"shape": [2**40, 2**40], "data": []}}, "elements"),
        ({"x": {"shape": [1, 2], "data": [1, 2], "type": "FP32"}}, "unknown field `type`"),
        ({"x": {"shape": [1, 2], "datatype": "INT32", "data": [1, 2]}}, "expects 'FP32'"),
        ({"x": {"shape": [1, 2], "datatype": "FLOAT", "data": [1, 2]}}, "unknown datatype 'FLOAT'"),
        ({"x": [["a", "b"]]}, "FP32"),
        ({"x": [[1, 2], [3]]}, "does not fit shape"),
        ({"x": [[1e300, 0]]}, "outside the range"),
        ({"x": None}, "FP32"),
        ({"x": []}, "got [0]"),
        ([[1, 2]], "expected an object"),
    ],
)
async def test_a_smoke_input_that_does_not_fit_is_the_callers_mistake(
    folder: Path, smoke: Any, expected: str
) -> None:
    onnx_files.plus_one(folder)
    with pytest.raises(InvalidRequest) as caught:
        await inspector().inspect(folder, smoke=[{"x": [[1, 2]]}, smoke])
    assert caught.value.message.startswith("smoke input 2: ")
    assert expected in caught.value.message


async def test_a_smoke_input_without_a_json_form_is_refused(folder: Path) -> None:
    with pytest.raises(InvalidRequest, match="no JSON form"):
        await inspector().inspect(folder, smoke=[{"x": object()}])


async def test_an_input_that_the_model_refuses_is_the_callers_mistake(folder: Path) -> None:
    onnx_files.write(
        folder,
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        inputs={"x": ["N", "M"]},
        outputs={"y": ["K", 4]},
        constants=[numpy_helper.from_array(np.array([-1, 4], np.int64), "shape")],
    )
    with pytest.raises(InvalidRequest, match="smoke input 1: the model refuses the input"):
        await inspector().inspect(folder, smoke=[{"x": [[1, 2, 3]]}])


async def test_a_smoke_input_that_crashes_the_process_is_told_by_its_number(folder: Path) -> None:
    onnx_files.quotient(folder)
    with pytest.raises(ModelLoadFailed, match="SIGFPE"):
        await inspector().inspect(folder, smoke=[{"x": [1, 0]}])


async def test_outputs_that_are_too_many_for_an_answer_are_refused(folder: Path) -> None:
    rows = [[0.1234567, 0.7654321]] * 64
    onnx_files.write(
        folder,
        [helper.make_node("Tile", ["x", "many"], ["y"])],
        inputs={"x": ["N", 2]},
        outputs={"y": ["N", 200_000]},
        constants=[numpy_helper.from_array(np.array([1, 100_000], np.int64), "many")],
    )
    with pytest.raises(InvalidRequest, match="send fewer rows"):
        await inspector().inspect(folder, smoke=[{"x": rows}])


# --- the process itself --------------------------------------------------------------------------


async def test_an_entry_module_that_is_not_there_is_a_reason_and_no_hang(folder: Path) -> None:
    broken = ChildInspector(
        InspectionSettings(), entry_module="headrace.compose.nothing", default_max_batch_size=64
    )
    with pytest.raises(ModelLoadFailed, match="ended with code 1 and no answer"):
        await broken.inspect(folder)


def behaving(program: str, **settings: Any) -> ChildInspector:
    """An inspector whose child does something else."""
    strange = inspector(**settings)
    strange._command = (sys.executable, "-c", program)  # type: ignore[assignment]  # noqa: SLF001
    return strange


async def test_a_child_that_answers_without_end_is_ended(folder: Path) -> None:
    flood = "import sys\nwhile True: sys.stdout.write('x' * 65536)"
    with pytest.raises(ModelLoadFailed, match="more than can be taken"):
        await behaving(flood).inspect(folder)


async def test_a_child_that_answers_nonsense_has_not_passed(folder: Path) -> None:
    for nonsense in ("print('yes')", 'print(\'{"type": "passed"}\')', "print('[]' * 99)"):
        with pytest.raises(ModelLoadFailed, match="code 0 and no answer"):
            await behaving(nonsense).inspect(folder)


async def test_a_child_that_says_much_beside_its_answer_does_not_wait_for_it(folder: Path) -> None:
    with pytest.raises(ModelLoadFailed, match="code 3"):
        await behaving("import sys\nsys.stderr.write('x' * 2**20)\nsys.exit(3)").inspect(folder)


async def test_a_child_that_does_not_listen_is_not_waited_for(folder: Path) -> None:
    with pytest.raises(ModelLoadFailed, match="code 3"):
        await behaving("import sys\nsys.exit(3)").inspect(folder, smoke=[{"x": "y" * 2**21}])


async def test_a_child_that_goes_quiet_is_ended_by_the_clock(folder: Path) -> None:
    quiet = "import os, time\nos.close(1)\nos.close(2)\nos.close(0)\ntime.sleep(99)"
    with pytest.raises(ModelLoadFailed, match="took over 1 s"):
        await behaving(quiet, timeout_s=1).inspect(folder)


async def test_what_a_child_leaves_running_ends_with_it(folder: Path, tmp_path: Path) -> None:
    program = (
        "import os, time\n"
        "if os.fork():\n"
        "    os._exit(0)\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        "time.sleep(99)\n"
    )
    with pytest.raises(ModelLoadFailed):
        await behaving(program, timeout_s=2).inspect(folder)
    left = int((tmp_path / "pid").read_text())
    eventually(lambda: not _runs(left))


def _runs(process: int) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False


async def test_a_child_whose_platform_died_ends_by_itself(folder: Path) -> None:
    onnx_files.endless(folder)
    assignment = Assignment(
        timeout_s=1, cpu_s=99, memory_bytes=2**32, max_answer_bytes=99, default_max_batch_size=1
    )
    orphan = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-m", ENTRY, str(folder),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    said, _ = await orphan.communicate(msgspec.json.encode(assignment))
    assert b"zeros" in said
    assert orphan.returncode == -signal.SIGALRM
