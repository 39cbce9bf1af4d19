from __future__ import annotations

import asyncio
import itertools
import math
import struct
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.domain.calls import Call
from headrace.domain.errors import ModelFailed, QueueFull
from headrace.domain.inference import InferRequest, InferResponse
from headrace.domain.models import ModelConfig, Signature, TensorSpec
from headrace.domain.tensors import Array, InferContent, Parameters, RequestedOutput, Tensor
from headrace.orchestrator.metrics import OrchestratorMetrics
from headrace.orchestrator.pending import Pending
from headrace.orchestrator.response_cache import (
    MAX_ANSWER_BYTES,
    MAX_INPUT_BYTES,
    ResponseCache,
    VersionCache,
    digest_of,
)
from headrace.orchestrator.statistics import VersionStatistics
from headrace.ports.executor import Arrays
from headrace.telemetry.metrics import Metrics
from tests.support.executors import FakeExecutor, GatedExecutor, counting, failing
from tests.unit.orchestrator.stage import House, turns, values

# Keys: no two requests share one

_NUMBERS = ("FP32", "INT32", "UINT32", "INT64", "FP64", "UINT8", "BOOL")
_DTYPES = {
    "FP32": "<f4", "INT32": "<i4", "UINT32": "<u4", "INT64": "<i8", "FP64": "<f8",
    "UINT8": "u1", "BOOL": "?",
}  # fmt: skip


def _objects(elements: Sequence[bytes], shape: Sequence[int] | None = None) -> Array:
    array = np.empty(len(elements), dtype=np.object_)
    array[:] = elements
    return array.reshape(shape if shape is not None else [len(elements)])


@st.composite
def _tensors(draw: st.DrawFn) -> tuple[str, Array]:
    """A datatype and its array: few values and small axes, so that bytes often are the same."""
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    size = math.prod(shape)
    datatype = draw(st.sampled_from([*_NUMBERS, "BYTES"]))
    if datatype == "BYTES":
        pieces = st.sampled_from([b"", b"a", b"b", b"ab", b"\0", b"\1\0\0\0a"])
        return datatype, _objects(draw(st.lists(pieces, min_size=size, max_size=size)), shape)
    numbers = draw(st.lists(st.integers(0, 1), min_size=size, max_size=size))
    return datatype, np.array(numbers, dtype=_DTYPES[datatype]).reshape(shape)


_requests = st.dictionaries(st.sampled_from(["x", "xy", "y", "é"]), _tensors(), max_size=3)


def _digest(request: Mapping[str, tuple[str, Array]]) -> bytes:
    return digest_of(
        {name: array for name, (_, array) in request.items()},
        {name: datatype for name, (datatype, _) in request.items()},
    )


def _meaning(request: Mapping[str, tuple[str, Array]]) -> object:
    return {
        name: (datatype, array.shape, [repr(v) for v in array.ravel().tolist()])
        for name, (datatype, array) in request.items()
    }


@given(_requests, _requests)
def test_two_requests_share_a_key_exactly_if_they_say_the_same(
    one: dict[str, tuple[str, Array]], other: dict[str, tuple[str, Array]]
) -> None:
    assert (_digest(one) == _digest(other)) == (_meaning(one) == _meaning(other))


def _both(name: str, datatype: str, array: Array) -> bytes:
    return _digest({name: (datatype, array)})


def test_requests_that_differ_in_a_name_a_datatype_a_shape_or_a_split_share_no_key() -> None:
    six = np.arange(6, dtype="<i4")
    keys = [
        _both("x", "INT32", six.reshape(2, 3)),
        _both("x", "INT32", six.reshape(3, 2)),
        _both("x", "INT32", six),
        _both("y", "INT32", six),
        _both("x", "UINT32", six.view("<u4")),
        _both("x", "FP32", six.view("<f4")),
        _both("x", "BYTES", _objects([b"ab", b"c"])),
        _both("x", "BYTES", _objects([b"a", b"bc"])),
        _both("x", "BYTES", _objects([b"abc", b""])),
        _both("x", "BYTES", _objects([b"abc"])),
        _both("x", "UINT8", np.frombuffer(struct.pack("<I", 3) + b"abc", dtype=np.uint8)),
        _digest({"x": ("INT32", six), "y": ("INT32", six[:0])}),
        _digest({"x": ("INT32", six[:0]), "y": ("INT32", six)}),
        _digest({}),
        _both("x", "UINT8", six.astype("u1")),
        _both("xU", "INT8", six.astype("i1")),  # the same letters
    ]
    assert len(set(keys)) == len(keys)


def test_a_key_depends_neither_on_the_order_of_inputs_nor_on_where_the_elements_lie() -> None:
    grid = np.arange(6, dtype="<f4").reshape(2, 3)
    one, other = ("FP32", grid), ("BYTES", _objects([b"a"]))
    assert _digest({"x": one, "y": other}) == _digest({"y": other, "x": one})
    assert _both("x", "FP32", grid) == _both("x", "FP32", np.asfortranarray(grid))
    assert _both("x", "FP32", grid[:, ::2]) == _both("x", "FP32", grid[:, ::2].copy())


# The cache by itself


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Shelf:
    """A cache, one version's share of it, and a model that counts."""

    def __init__(self, *, limit_bytes: int = 100_000, ttl_s: float = 0.0, size: int = 1) -> None:
        self.clock = Clock()
        self.registry = Metrics(version="test")
        self.metrics = OrchestratorMetrics(self.registry)
        self.cache = ResponseCache(
            limit_bytes=limit_bytes, ttl_s=ttl_s, metrics=self.metrics, clock=self.clock
        )
        self.version = self.cache.of("m", "1")
        self.statistics = VersionStatistics()
        self.runs = 0
        self._size = size

    async def run(self, _: Pending) -> Sequence[Array]:
        """Answers the number of the run, many times over."""
        self.runs += 1
        return [np.full(self._size, self.runs, dtype=np.float64)]

    async def ask(
        self,
        value: float | Array,
        *,
        of: VersionCache | None = None,
        parameters: Parameters | None = None,
        run: Callable[[Pending], Awaitable[Sequence[Array]]] | None = None,
    ) -> Array:
        array = value if isinstance(value, np.ndarray) else np.array([value])
        future: asyncio.Future[Sequence[Array]] = asyncio.get_running_loop().create_future()
        pending = Pending({"x": array}, 1, (), 0, 0.0, math.inf, future)
        (answer,) = await (of or self.version).submit(
            pending,
            parameters or {},
            datatypes={"x": "BYTES" if array.dtype == np.object_ else "FP64"},
            run=run or self.run,
            statistics=self.statistics,
        )
        return answer

    async def number(self, value: float | Array, **options: Any) -> float:
        """Which run answered."""
        return float((await self.ask(value, **options))[0])


async def test_what_was_answered_before_is_answered_without_a_run() -> None:
    shelf = Shelf()
    assert [await shelf.number(v) for v in (5, 6, 5, 6, 5)] == [1, 2, 1, 2, 1]
    assert shelf.metrics.cache("m", "1").hits.value == 3
    assert shelf.metrics.cache("m", "1").misses.value == 2


async def test_two_versions_do_not_share_what_is_kept() -> None:
    shelf = Shelf()
    others = [shelf.cache.of("m", "2"), shelf.cache.of("n", "1"), shelf.cache.of("m", "1")]
    assert [await shelf.number(5, of=version) for version in others] == [1, 2, 3]
    assert await shelf.number(5) == 4
    assert shelf.metrics.cache_entries.value == 4


async def test_the_least_recently_used_answers_go_when_there_is_no_room() -> None:
    shelf = Shelf(limit_bytes=3 * 10_000, size=1000)  # two of 8000 bytes and a little, three not
    for value in (1, 2, 3):
        await shelf.number(value)
    assert shelf.metrics.cache_entries.value == 3
    assert 24_000 < shelf.metrics.cache_bytes.value <= 30_000
    await shelf.number(1)  # used again: 2 is the oldest now
    await shelf.number(4)
    assert shelf.metrics.cache_evictions.value == 1
    assert shelf.metrics.cache_bytes.value <= 30_000
    runs = shelf.runs
    for value in (1, 3, 4):
        await shelf.number(value)
    assert shelf.runs == runs
    await shelf.number(2)
    assert shelf.runs == runs + 1


async def test_small_answers_are_counted_with_what_keeping_them_costs() -> None:
    shelf = Shelf(limit_bytes=10_000)
    for value in range(100):
        await shelf.number(value)
    assert shelf.metrics.cache_entries.value < 20
    assert shelf.metrics.cache_bytes.value <= 10_000


async def test_bytes_are_counted_with_their_contents() -> None:
    shelf = Shelf(limit_bytes=1_000_000)

    async def run(_: Pending) -> Sequence[Array]:
        return [_objects([b"z" * 50_000] * 3)]

    await shelf.ask(1, run=run)
    assert shelf.metrics.cache_bytes.value > 150_000


async def test_an_answer_larger_than_the_cache_is_not_kept_and_drives_out_nothing() -> None:
    shelf = Shelf(limit_bytes=5000, size=2)
    await shelf.number(1)

    async def large(_: Pending) -> Sequence[Array]:
        return [np.zeros(1000)]

    await shelf.ask(2, run=large)
    assert shelf.metrics.cache_entries.value == 1
    assert shelf.metrics.cache_evictions.value == 0
    assert await shelf.number(1) == 1


async def test_an_answer_that_would_take_long_to_copy_is_not_kept() -> None:
    shelf = Shelf(limit_bytes=100 * MAX_ANSWER_BYTES, size=MAX_ANSWER_BYTES // 8)
    assert [await shelf.number(1) for _ in range(2)] == [1, 2]
    assert shelf.metrics.cache_entries.value == 0


async def test_inputs_that_would_take_long_to_digest_are_run() -> None:
    shelf = Shelf()
    fits = np.zeros(MAX_INPUT_BYTES // 8)
    assert [await shelf.number(fits) for _ in range(2)] == [1, 1]
    long = _objects([b"z" * MAX_INPUT_BYTES])
    for array in (np.append(fits, 0.0), long):
        before = shelf.runs
        for run in (1, 2):
            assert await shelf.number(array) == before + run
    assert shelf.metrics.cache("m", "1").misses.value == 1


async def test_answers_are_kept_for_their_time() -> None:
    shelf = Shelf(ttl_s=10.0)
    assert await shelf.number(5) == 1
    shelf.clock.now_s = 9.9
    assert await shelf.number(5) == 1  # which makes it no younger
    shelf.clock.now_s = 10.0
    assert await shelf.number(5) == 2
    shelf.clock.now_s = 19.9
    assert await shelf.number(5) == 2
    assert shelf.metrics.cache_entries.value == 1


async def test_without_a_limit_in_time_answers_stay() -> None:
    shelf = Shelf()
    await shelf.number(5)
    shelf.clock.now_s = 1e12
    assert await shelf.number(5) == 1


async def test_requests_of_a_sequence_are_run_and_not_kept() -> None:
    shelf = Shelf()
    for parameters in ({"sequence_id": 7}, {"sequence_id": "seven"}):
        before = shelf.runs
        assert await shelf.number(5, parameters=parameters) == before + 1
        assert await shelf.number(5, parameters=parameters) == before + 2
    assert await shelf.number(5, parameters={"sequence_id": 0, "anything": 1}) == 5
    assert await shelf.number(5) == 5


async def test_a_failure_is_not_kept_and_counts_as_no_answer() -> None:
    shelf = Shelf()

    async def fail(_: Pending) -> Sequence[Array]:
        msg = "no memory"
        raise ModelFailed(msg)

    with pytest.raises(ModelFailed):
        await shelf.ask(5, run=fail)
    assert shelf.statistics.cache_miss.count == 0
    assert await shelf.number(5) == 1


async def test_nobody_can_change_what_is_kept() -> None:
    shelf = Shelf()
    own = np.array([1.0, 2.0])

    async def run(_: Pending) -> Sequence[Array]:
        return [own]

    (await shelf.ask(5, run=run))[:] = 8.0  # who was answered by the run may do as it likes
    own[:] = 9.0
    kept = await shelf.ask(5)
    assert kept.tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="read-only"):
        kept[0] = 7.0
    with pytest.raises(ValueError, match="WRITEABLE"):
        kept.flags.writeable = True
    assert (await shelf.ask(5)).tolist() == [1.0, 2.0]


async def test_a_part_of_a_batch_is_kept_without_the_batch() -> None:
    shelf = Shelf()
    batch = np.zeros((1000, 10))

    async def run(_: Pending) -> Sequence[Array]:
        return [batch[3:4]]

    await shelf.ask(5, run=run)
    kept = await shelf.ask(5)
    assert not np.shares_memory(kept, batch)


async def test_what_a_version_had_is_dropped_with_it_and_no_more_is_kept() -> None:
    shelf = Shelf()
    other = shelf.cache.of("m", "2")
    await shelf.number(5)
    await shelf.number(6)
    await shelf.number(5, of=other)
    shelf.version.close()
    assert shelf.metrics.cache_entries.value == 1
    await shelf.number(5)  # one that was under way
    assert shelf.metrics.cache_entries.value == 1
    other.close()
    assert shelf.metrics.cache_bytes.value == 0
    shelf.version.close()


async def test_requests_that_miss_at_the_same_time_are_counted_once_in_bytes() -> None:
    shelf = Shelf()
    gate = asyncio.get_running_loop().create_future()

    async def run(pending: Pending) -> Sequence[Array]:
        await gate
        return await shelf.run(pending)

    tasks = [asyncio.get_running_loop().create_task(shelf.number(5, run=run)) for _ in range(3)]
    await turns()
    gate.set_result(None)
    await asyncio.gather(*tasks)
    assert shelf.metrics.cache_entries.value == 1
    of_three = shelf.metrics.cache_bytes.value
    shelf.version.close()
    assert shelf.metrics.cache_bytes.value == 0
    alone = Shelf()
    await alone.number(5)
    assert of_three == alone.metrics.cache_bytes.value


# Through a served version


@pytest.fixture
def numbers() -> Iterator[int]:
    return itertools.count(1)


def _counting(numbers: Iterator[int]) -> Callable[[Arrays], Sequence[Array]]:
    """y = which run it was; scores are always the same."""

    def answer(inputs: Arrays) -> Sequence[Array]:
        rows = inputs["x"].shape[0]
        run = np.full((rows, 1), next(numbers), np.float32)
        return [run, np.tile(np.array([[0.5, 2, 1]], np.float32), (rows, 1))]

    return answer


_SIGNATURE = Signature(
    (TensorSpec("x", "FP32", (-1, 1)),),
    (
        TensorSpec("y", "FP32", (-1, 1)),
        TensorSpec("scores", "FP32", (-1, 3), labels=("cat", "dog", "bird")),
    ),
)


async def _served(
    executor: FakeExecutor, *, cache_bytes: int = 100_000, response_cache: bool = True, **more: Any
) -> House:
    house = House(cache_bytes=cache_bytes, **more)
    house.repository.put("m", config=ModelConfig("m", response_cache=response_cache))
    house.loader.will("m", "1", [executor])
    await house.models.load_all()
    return house


async def _ask(
    house: House, value: float = 5, outputs: list[RequestedOutput] | None = None, id: str = ""
) -> InferResponse:
    tensor = Tensor("x", "FP32", np.full((1, 1), value, np.float32))
    content = InferContent([tensor], id, outputs=outputs)
    now = asyncio.get_running_loop().time()
    call = Call("r", received=now)
    return await house.models.get("m").infer(InferRequest("m", decoded=content), call)


async def _run_of(house: House, value: float = 5) -> float:
    (run,) = values([(await _ask(house, value)).outputs[0].array])
    return run


async def test_answers_are_kept_where_the_platform_and_the_model_ask_for_it(
    numbers: Iterator[int],
) -> None:
    for cache_bytes, response_cache in [(0, True), (100_000, False), (0, False)]:
        executor = FakeExecutor(_counting(numbers), signature=_SIGNATURE)
        house = await _served(executor, cache_bytes=cache_bytes, response_cache=response_cache)
        assert await _run_of(house) + 1 == await _run_of(house)
    house = await _served(FakeExecutor(_counting(numbers), signature=_SIGNATURE))
    assert await _run_of(house) == await _run_of(house)


async def test_answers_of_a_model_that_yields_are_not_kept() -> None:
    executor = FakeExecutor(answers=counting)
    house = await _served(executor)
    for _ in range(2):
        tensor = Tensor("x", "FP32", np.full((1, 1), 2, np.float32))
        request = InferRequest("m", decoded=InferContent([tensor]))
        call = Call("r", received=asyncio.get_running_loop().time())
        assert len([r async for r in house.models.get("m").stream(request, call)]) == 2
    assert len(executor.asked) == 2
    assert house.samples("headrace_response_cache_misses_total") == {}


async def test_one_answer_serves_whatever_outputs_are_asked_for(numbers: Iterator[int]) -> None:
    executor = FakeExecutor(_counting(numbers), signature=_SIGNATURE)
    house = await _served(executor)
    await _ask(house, outputs=[RequestedOutput("y")], id="first")
    response = await _ask(house, outputs=[RequestedOutput("scores", classes=1)], id="second")
    assert response.id == "second"
    assert [t.array.tolist() for t in response.outputs] == [[[b"2.000000:1:dog"]]]
    response = await _ask(house)
    assert [t.name for t in response.outputs] == ["y", "scores"]
    assert len(executor.asked) == 1


async def test_a_hit_is_counted_as_triton_does() -> None:
    house = await _served(FakeExecutor())
    for value in (5, 5, 6, 5):
        await _ask(house, value)
    (told,) = house.models.statistics("m")
    stats = told["inference_stats"]
    assert {name: each["count"] for name, each in stats.items()} == {
        "success": 4, "fail": 0, "queue": 4, "compute_input": 2, "compute_infer": 2,
        "compute_output": 2, "cache_hit": 2, "cache_miss": 2, "cancel": 0,
    }  # fmt: skip
    assert (told["inference_count"], told["execution_count"]) == (2, 2)
    assert 0 < stats["cache_hit"]["ns"] < stats["success"]["ns"]
    assert stats["cache_miss"]["ns"] > 0
    assert house.samples("headrace_response_cache_hits_total") == {("m", "1"): 2}
    assert house.samples("headrace_response_cache_misses_total") == {("m", "1"): 2}
    assert house.samples("headrace_response_cache_entries") == {(): 2}


async def test_a_reload_answers_nothing_from_before() -> None:
    house = await _served(FakeExecutor())
    before = await _run_of(house)
    await house.models.load("m")
    assert house.samples("headrace_response_cache_entries") == {(): 0}
    assert await _run_of(house) == before + 1


async def test_an_answer_that_comes_after_the_reload_is_not_kept() -> None:
    executor = GatedExecutor()
    house = await _served(executor)
    under_way = asyncio.get_running_loop().create_task(_ask(house))
    await executor.begun()
    await house.models.load("m")
    executor.release()
    await under_way
    assert house.samples("headrace_response_cache_entries") == {(): 0}
    assert house.samples("headrace_response_cache_bytes") == {(): 0}


async def test_an_unload_drops_what_was_kept_at_once() -> None:
    house = await _served(FakeExecutor())
    await _ask(house)
    assert house.samples("headrace_response_cache_entries") == {(): 1}
    await house.models.unload("m")
    assert house.samples("headrace_response_cache_bytes") == {(): 0}


async def test_a_reload_that_fails_leaves_what_was_kept() -> None:
    house = await _served(FakeExecutor())
    before = await _run_of(house)
    house.loader.will("m", "1", ZeroDivisionError("no"))
    with pytest.raises(Exception, match="cannot be loaded"):
        await house.models.load("m")
    assert await _run_of(house) == before
    assert house.samples("headrace_response_cache_hits_total") == {("m", "1"): 1}


async def test_what_is_kept_is_answered_though_the_queue_is_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    executor = GatedExecutor(max_batch_size=1)
    house = await _served(executor, max_queue_size=1)
    executor.release()
    await _ask(house, 5)
    await executor.begun()
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(_ask(house, 6))]
    await executor.begun()
    tasks.append(loop.create_task(_ask(house, 7)))
    await turns()
    with pytest.raises(QueueFull):
        await _ask(house, 8)
    scheduler = house.models.get("m").scheduler
    with monkeypatch.context() as patch:  # and though it would take longer than there is time
        patch.setattr(scheduler, "require_time", _refuse)
        assert (await _ask(house, 5)).version == "1"
        with pytest.raises(QueueFull, match="too long"):
            await _ask(house, 8)
    executor.release(2)
    await asyncio.gather(*tasks)


def _refuse(*_: object) -> None:
    msg = "the queue takes too long"
    raise QueueFull(msg)


async def test_a_model_that_fails_is_asked_again() -> None:
    executor = FakeExecutor(failing(ModelFailed("no")))
    house = await _served(executor)
    for _ in range(2):
        with pytest.raises(ModelFailed):
            await _ask(house)
    assert len(executor.asked) == 2
    executor.answer = FakeExecutor().answer
    await _ask(house)


async def test_counts_of_versions_that_come_and_go_go_with_them() -> None:
    house = await _served(FakeExecutor(), transient=True)
    await _ask(house)
    await house.models.unload("m")
    assert house.samples("headrace_response_cache_hits_total") == {}
    assert house.samples("headrace_response_cache_misses_total") == {}
