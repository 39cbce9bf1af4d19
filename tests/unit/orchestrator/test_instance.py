from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from headrace.domain.errors import ModelFailed
from headrace.domain.tensors import Array
from headrace.orchestrator.batching import Run
from headrace.orchestrator.execution import Execution
from headrace.orchestrator.instance import Instance
from headrace.ports.executor import Arrays
from tests.support.executors import FakeExecutor, GatedExecutor, failing, plus
from tests.unit.orchestrator.stage import pending, values


class Watched:
    """An instance, and the runs that it reported to the loop."""

    def __init__(self, executor: FakeExecutor) -> None:
        self.reported: asyncio.Queue[tuple[Run, Execution]] = asyncio.Queue()
        self.threads: list[int] = []
        self.instance = Instance(
            executor, name="m-1-0", loop=asyncio.get_running_loop(), finished=self._finished
        )

    def _finished(self, instance: Instance, run: Run, execution: Execution) -> None:
        assert instance is self.instance
        self.threads.append(threading.get_ident())
        self.reported.put_nowait((run, execution))


def _run() -> Run:
    return Run([pending(1)], 1)


async def test_a_run_here_is_made_by_the_thread_that_asks() -> None:
    executor = FakeExecutor()
    execution = Watched(executor).instance.run_here(_run())
    assert executor.threads == [threading.get_ident()]
    assert not isinstance(execution.outcomes[0], Exception)
    assert values(execution.outcomes[0]) == [2]


async def test_a_run_on_the_thread_is_reported_on_the_loop() -> None:
    executor = FakeExecutor()
    watched = Watched(executor)
    run = _run()
    watched.instance.run_on_thread(run)
    reported, execution = await watched.reported.get()
    assert reported is run
    assert len(execution.outcomes) == 1
    assert executor.threads != [threading.get_ident()]
    assert watched.threads == [threading.get_ident()]
    watched.instance.close()


async def test_all_runs_of_an_instance_share_one_daemon_thread_with_its_name() -> None:
    threads: list[threading.Thread] = []

    def noting(inputs: Arrays) -> Sequence[Array]:
        threads.append(threading.current_thread())
        return plus(1)(inputs)

    executor = FakeExecutor(noting)
    watched = Watched(executor)
    for _ in range(2):
        watched.instance.run_on_thread(_run())
        await watched.reported.get()
    assert threads[0] is threads[1]
    assert threads[0].name == "m-1-0"
    assert threads[0].daemon
    watched.instance.close()


class _Panic(BaseException):
    """What a Rust extension raises when it panics: no Exception."""


@pytest.mark.parametrize("raised", [RuntimeError("secret"), _Panic("secret")])
@pytest.mark.parametrize("here", [True, False])
async def test_an_executor_that_breaks_its_contract_fails_its_run_and_no_more(
    raised: BaseException, caplog: pytest.LogCaptureFixture, *, here: bool
) -> None:
    executor = FakeExecutor(failing(raised))
    watched = Watched(executor)
    if here:
        execution = watched.instance.run_here(_run())
    else:
        watched.instance.run_on_thread(_run())
        _, execution = await watched.reported.get()
    (outcome,) = execution.outcomes
    assert isinstance(outcome, ModelFailed)
    assert outcome.message == f"the executor failed: {type(raised).__name__}"
    assert "an executor of m-1-0 broke its contract" in caplog.text
    executor.answer = FakeExecutor().answer
    watched.instance.run_on_thread(_run())
    _, execution = await watched.reported.get()
    assert not isinstance(execution.outcomes[0], Exception)
    watched.instance.close()


async def test_an_instance_without_a_thread_closes_its_executor_at_once() -> None:
    executor = FakeExecutor()
    Watched(executor).instance.close()
    assert executor.closed == 1


async def test_an_instance_closes_its_executor_once_its_work_is_done() -> None:
    executor = GatedExecutor()
    watched = Watched(executor)
    watched.instance.run_on_thread(_run())
    await executor.begun()
    watched.instance.close()
    assert executor.closed == 0
    executor.release()
    await watched.reported.get()
    await executor.ended()


async def test_an_instance_is_abandoned_once_nobody_waits_for_its_long_run() -> None:
    instance = Watched(FakeExecutor()).instance
    assert not instance.abandoned(now=100.0, after_s=1.0)
    first, second = pending(1), pending(2)
    instance.run = Run([first, second], 2)
    instance.since = 10.0
    assert not instance.abandoned(now=20.0, after_s=1.0)
    first.future.cancel()
    assert not instance.abandoned(now=20.0, after_s=1.0)
    second.future.cancel()
    assert instance.abandoned(now=20.0, after_s=1.0)
    assert not instance.abandoned(now=11.0, after_s=1.0)


def test_a_run_that_outlives_its_loop_is_reported_to_nobody() -> None:
    executors: list[GatedExecutor] = []

    async def leave() -> None:
        executor = GatedExecutor()
        executors.append(executor)
        Watched(executor).instance.run_on_thread(_run())
        await executor.begun()

    asyncio.run(leave())
    thread = next(t for t in threading.enumerate() if t.ident == executors[0].threads[0])
    executors[0].release()
    thread.join()
    assert len(executors[0].asked) == 1
