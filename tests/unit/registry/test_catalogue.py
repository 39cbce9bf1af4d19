from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
import pytest

from headrace.domain.catalog import (
    Alias,
    ApiKey,
    Artifact,
    AuditEvent,
    Endpoint,
    Entity,
    Key,
    Model,
    Route,
    Target,
    Version,
)
from headrace.domain.models import Signature, TensorSpec
from headrace.ports.catalogue import Catalogue, Entry
from headrace.ports.registry_store import Change
from headrace.registry import catalogue
from headrace.registry.catalogue import CatalogueFollower
from headrace.telemetry.metrics import Metrics
from tests.support import registry_store
from tests.support.registry_store import MemoryRegistryStore

AT: Final = datetime(2026, 1, 1, tzinfo=UTC)
TIMES: Final[dict[str, Any]] = {"created_at": AT, "updated_at": AT}
BERT: Final = ("acme", "bert")
PATIENCE_S: Final = 10.0


def endpoints_of(follower: CatalogueFollower, tenant: str) -> list[Endpoint]:
    return [e for e in follower.every_endpoint() if e.tenant == tenant]


class Following:
    """A follower, what it told, and its numbers."""

    def __init__(self, store: MemoryRegistryStore) -> None:
        self.store = store
        self.metrics = Metrics(version="0")
        self.follower = CatalogueFollower(
            store=store, now=lambda: AT + timedelta(seconds=2), metrics=self.metrics,
            randomness=random.Random(1),
        )  # fmt: skip
        self.catalogue: Catalogue = self.follower
        self.told: list[frozenset[tuple[str, Key]]] = []
        self.follower.on_change(self.told.append)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self.follower.run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def until(self, condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline
            assert self._task is not None
            assert not self._task.done()
            await asyncio.sleep(0.001)

    async def caught_up(self) -> None:
        revision = self.store.newest
        await self.until(lambda: self.follower.revision == revision and not self.follower.problem)

    async def put(self, *entities: Entity) -> None:
        await self.store.put_all(entities)
        await self.caught_up()

    async def delete(self, *entities: Entity) -> None:
        async with self.store.transaction() as transaction:
            for entity in entities:
                await transaction.delete(entity)
        await self.caught_up()

    def entry(self, name: str = "bert", tenant: str = "acme") -> Entry | None:
        return self.follower.entry((tenant, name))

    def number(self, name: str) -> float:
        lines = self.metrics.render()[0].decode().splitlines()
        found = next(x for x in lines if x.startswith(f"headrace_catalogue_{name} "))
        return float(found.split()[-1])


@pytest.fixture
def store() -> MemoryRegistryStore:
    return MemoryRegistryStore()


@pytest.fixture
async def following(store: MemoryRegistryStore) -> AsyncIterator[Following]:
    """Started, and at the end of its first reading."""
    following = Following(store)
    following.start()
    assert await following.follower.ready(PATIENCE_S)
    yield following
    await following.stop()


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "_BACK_OFF_S", (0.001, 0.01))


def model(name: str = "bert") -> Model:
    return Model(tenant="acme", id=f"mdl_{name}", name=name, **TIMES)


def version(number: str = "1", name: str = "bert", **fields: Any) -> Version:
    fields = {
        "status": "ready",
        "artifact": Artifact(digest="0" * 64, size_bytes=1, format="onnx"),
        **fields,
    }
    return Version(
        tenant="acme", id=f"ver_{name}_{number}", model=name, version=number, **fields, **TIMES
    )


def alias(to: str, alias: str = "prod", name: str = "bert") -> Alias:
    return Alias(tenant="acme", model=name, alias=alias, version=to, **TIMES)


def route(to: str, name: str = "bert") -> Route:
    return Route(tenant="acme", name=name, targets=(Target(model=to),), **TIMES)


def endpoint(name: str, **fields: Any) -> Endpoint:
    return Endpoint(tenant="acme", name=name, url=f"http://{name}", **fields, **TIMES)


def key(id_: str, digest: str, **fields: Any) -> ApiKey:
    return ApiKey(tenant="acme", id=id_, name=id_, digest=digest, **fields, **TIMES)


# --- the first reading ---------------------------------------------------------------------------


async def test_what_is_in_the_store_is_there_after_the_first_reading(
    store: MemoryRegistryStore,
) -> None:
    await store.put_all(
        [model(), version("2"), version("10"), version("1"), alias("2"), route("bert", "chat"),
         endpoint("a"), key("k", "d1")]
    )  # fmt: skip
    following = Following(store)
    following.start()
    assert await following.follower.ready(PATIENCE_S)
    entry = following.entry()
    assert entry is not None
    assert list(entry.versions) == ["1", "2", "10"]
    assert entry.aliases == {"prod": "2"}
    assert following.follower.revision == 1
    assert following.follower.problem == ""
    assert following.number("revision") == 1
    assert {name for _, name in following.follower.names()} == {"bert", "chat"}
    assert len(following.told) == 1
    assert len(following.told[0]) == 8
    await following.stop()


async def test_before_the_first_reading_there_is_nothing_and_a_problem(
    store: MemoryRegistryStore,
) -> None:
    following = Following(store)
    assert following.follower.revision == 0
    assert following.follower.problem == "the registry was not read yet"
    assert following.entry() is None
    assert list(following.follower.names()) == []
    assert endpoints_of(following.follower, "acme") == []
    assert following.follower.key("d") is None


async def test_a_store_that_is_gone_at_the_start_is_tried_until_it_is_there(
    store: MemoryRegistryStore,
) -> None:
    await store.put_all([model(), version()])
    store.fail = "connection refused"
    following = Following(store)
    following.start()
    assert not await following.follower.ready(0.02)
    await following.until(lambda: following.number("failures_total") >= 3)
    assert following.follower.revision == 0
    assert following.follower.problem == (
        "the registry's store cannot be followed since 2026-01-01T00:00:02Z: connection refused"
    )
    store.fail = ""
    assert await following.follower.ready(PATIENCE_S)
    assert following.entry() is not None
    assert following.follower.problem == ""
    await following.stop()


async def test_an_empty_store_is_read_once(following: Following) -> None:
    assert following.follower.revision == 0
    assert following.follower.problem == ""
    calls = following.store.calls
    before = calls.get("revision", 0)
    following.store.wake()
    await following.until(lambda: calls.get("revision", 0) > before)
    assert calls["everything"] == 1


# --- what may serve ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "serves"),
    [("pending", False), ("ready", True), ("deprecated", True), ("archived", False),
     ("failed", False)],
)  # fmt: skip
async def test_versions_serve_by_their_status(
    following: Following,
    status: str,
    serves: bool,  # noqa: FBT001
) -> None:
    await following.put(model(), version(status=status))
    assert (following.entry() is not None) == serves
    other = Following(following.store)  # by reading everything
    other.start()
    await other.follower.ready(PATIENCE_S)
    assert (other.entry() is not None) == serves
    await other.stop()


async def test_a_version_without_an_artifact_does_not_serve(following: Following) -> None:
    await following.put(model(), version(artifact=None))
    assert following.entry() is None


async def test_a_version_that_is_archived_serves_no_more(following: Following) -> None:
    await following.put(model(), version("1"), version("2"))
    await following.put(version("1", status="archived"))
    entry = following.entry()
    assert entry is not None
    assert list(entry.versions) == ["2"]
    await following.put(version("2", status="archived"))
    assert following.entry() is None
    assert list(following.follower.names()) == []


async def test_an_alias_waits_for_its_model_to_serve(following: Following) -> None:
    await following.put(model(), version("1", status="pending"), alias("1"))
    assert following.entry() is None
    assert list(following.follower.names()) == []
    await following.put(version("1"))
    entry = following.entry()
    assert entry is not None
    assert entry.aliases == {"prod": "1"}


async def test_what_is_only_said_about_a_version_takes_no_memory(following: Following) -> None:
    signature = Signature((TensorSpec("x", "FP32", (-1,)),), ())
    of_both = msgspec.msgpack.encode(signature)
    versions = [
        version(
            number, description="long", metadata={"a": 1}, metrics={"b": 1.0}, tags=("t",),
            signature=msgspec.msgpack.decode(of_both, type=Signature),
        )
        for number in ("1", "2")
    ]  # fmt: skip
    await following.put(model(), *versions)
    entry = following.entry()
    assert entry is not None
    one, two = entry.versions.values()
    assert (one.description, one.metadata, one.metrics) == ("", {}, {})
    assert one.tags == ("t",)
    assert one.signature == signature
    assert one.signature is two.signature
    assert one.model is two.model


async def test_what_is_shared_is_bounded(
    following: Following, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "_SHARED", 10)
    await following.put(*[version(name=f"m{n}") for n in range(50)])
    assert len(following.follower._tables._shared._known) <= 10  # noqa: SLF001
    assert len(list(following.follower.names())) == 50


# --- changes -------------------------------------------------------------------------------------


async def test_a_name_may_have_a_route_versions_and_aliases(following: Following) -> None:
    await following.put(model(), version(), alias("1"), route("other"))
    entry = following.entry()
    assert entry is not None
    assert entry.route is not None
    await following.delete(entry.route)
    entry = following.entry()
    assert entry is not None
    assert entry.route is None
    await following.delete(alias("1"))
    entry = following.entry()
    assert entry is not None
    assert entry.aliases == {}


async def test_a_model_that_is_deleted_takes_its_versions_along(following: Following) -> None:
    await following.put(model(), version("1"), version("2"), alias("1"))
    await following.delete(model())
    assert following.entry() is None
    assert following.told[-1] == {
        ("model", BERT), ("version", (*BERT, "1")), ("version", (*BERT, "2")),
        ("alias", (*BERT, "prod")),
    }  # fmt: skip


async def test_endpoints_are_those_enabled_by_name(following: Following) -> None:
    await following.put(endpoint("b"), endpoint("c", enabled=False), endpoint("a"))
    assert [e.name for e in endpoints_of(following.follower, "acme")] == ["a", "b"]
    await following.put(endpoint("a", enabled=False), endpoint("c"))
    assert [e.name for e in endpoints_of(following.follower, "acme")] == ["b", "c"]
    await following.delete(endpoint("b"), endpoint("c"))
    assert list(endpoints_of(following.follower, "acme")) == []
    assert list(endpoints_of(following.follower, "other")) == []


async def test_a_key_is_found_by_its_hash_until_it_is_revoked(following: Following) -> None:
    await following.put(key("k", "d1"), key("expired", "d2", expires_at=AT))
    found = following.follower.key("d1")
    assert found is not None
    assert found.id == "k"
    assert following.follower.key("d2") is not None
    await following.put(key("k", "d1", revoked_at=AT))
    assert following.follower.key("d1") is None
    await following.delete(key("expired", "d2"))
    assert following.follower.key("d2") is None


async def test_a_key_whose_secret_was_replaced_is_found_by_the_new_one_alone(
    following: Following,
) -> None:
    await following.put(key("k", "d1"))
    await following.put(key("k", "d2"))
    assert following.follower.key("d1") is None
    assert following.follower.key("d2") is not None


async def test_two_keys_may_swap_their_secrets(following: Following) -> None:
    await following.put(key("a", "d1"), key("b", "d2"))
    await following.put(key("a", "d2"), key("b", "d1"))
    one, two = following.follower.key("d1"), following.follower.key("d2")
    assert one is not None
    assert two is not None
    assert (one.id, two.id) == ("b", "a")


async def test_only_names_that_changed_are_made_anew(following: Following) -> None:
    await following.put(*[version(name=f"m{n}") for n in range(20)])
    before = {name: following.entry(name) for name in (f"m{n}" for n in range(20))}
    await following.put(version("2", "m7"))
    same = [name for name, entry in before.items() if following.entry(name) is entry]
    assert sorted(same) == sorted(set(before) - {"m7"})
    old = before["m7"]
    assert old is not None
    assert list(old.versions) == ["1"]  # who took it sees one state to the end


async def test_a_transaction_is_seen_as_a_whole(following: Following) -> None:
    states: list[tuple[bool, bool, int]] = []
    follower = following.follower

    def look() -> None:
        a, b = follower.entry(("acme", "a")), follower.entry(("acme", "b"))
        states.append((a is not None, b is not None, len(endpoints_of(follower, "acme"))))

    following.store.gate = following.store.answered = _looking(look)
    follower.on_change(lambda _: look())
    await following.put(*[version(name=name) for name in "ab"], endpoint("e"))
    await following.delete(version(name="a"), version(name="b"), endpoint("e"))
    assert set(states) == {(False, False, 0), (True, True, 1)}


def _looking(look: Callable[[], None]) -> Callable[[str], Any]:
    async def looks(_: str) -> None:
        await asyncio.sleep(0)
        look()

    return looks


async def test_what_is_written_while_changes_are_read_is_not_seen_in_part(
    following: Following,
) -> None:
    store = following.store
    await following.put(version(name="a", tags=("0",)), version(name="b", tags=("0",)))
    seen: set[tuple[str, str]] = set()

    def look() -> None:
        a, b = following.entry("a"), following.entry("b")
        assert a is not None
        assert b is not None
        seen.add((a.versions["1"].tags[0], b.versions["1"].tags[0]))

    following.follower.on_change(lambda _: look())
    writes = iter(range(2, 5))

    async def write_in_between(name: str) -> None:
        if name == "get" and (tag := next(writes, None)):
            # `a` alone was asked for, and both are written before it is read
            await store.put_all([version(name=n, tags=(str(tag),)) for n in "ab"])

    store.gate = write_in_between
    await store.put_all([version(name="a", tags=("1",)), version(name="b", tags=("1",))])
    await following.until(lambda: following.follower.revision == 5)
    assert all(a == b for a, b in seen)
    assert ("4", "4") in seen


async def test_a_store_that_never_holds_still_is_read_in_one_go(following: Following) -> None:
    store = following.store
    tags = iter(range(1, 100_000))

    async def always_write(name: str) -> None:
        if name == "get":
            await store.put_all([version(name="a", tags=(str(next(tags)),))])

    store.gate = always_write
    await store.put_all([version(name="a")])
    await following.until(lambda: store.calls["everything"] > 1)
    store.gate = None
    await following.caught_up()
    entry = following.entry("a")
    assert entry is not None
    assert entry.versions["1"].tags == (str(next(tags) - 1),)


async def test_changes_are_told_after_they_are_in_place(following: Following) -> None:
    seen: list[object] = []
    following.follower.on_change(
        lambda changed: seen.append((changed, following.entry() is not None))
    )
    await following.put(model(), version())
    assert seen == [({("model", BERT), ("version", (*BERT, "1"))}, True)]
    assert following.number("changes_total") == 2


async def test_a_listener_that_raises_stops_nobody(
    following: Following, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError

    told: list[object] = []
    following.follower.on_change(fail)
    following.follower.on_change(told.append)
    await following.put(version())
    await following.put(version("2"))
    assert len(told) == 2
    assert "ZeroDivisionError" in caplog.text
    assert following.follower.problem == ""


async def test_what_does_not_concern_requests_moves_the_revision(following: Following) -> None:
    await following.put(version())
    before = following.entry()
    await following.put(model())
    assert following.follower.revision == 2
    assert following.entry() is before


async def test_a_revision_without_changes_is_taken_as_it_is(following: Following) -> None:
    async with following.store.transaction() as transaction:
        event = AuditEvent(tenant="acme", at=AT, principal="me", action="a", subject="s")
        await transaction.audit(event)
    await following.caught_up()
    calls = dict(following.store.calls)
    following.store.wake()
    await following.until(lambda: following.store.calls["revision"] > calls["revision"])
    assert following.store.calls["changes"] == calls["changes"]
    assert following.follower.revision == 1


async def test_a_kind_of_a_newer_release_is_passed_over(
    following: Following, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "KINDS", {"version": Version})
    await following.put(route("a"), version())
    entry = following.entry()
    assert entry is not None
    assert entry.route is None


async def test_how_long_a_change_took_is_measured(following: Following) -> None:
    await following.put(version())
    assert following.number("update_seconds_sum") == 2.0
    assert following.number("update_seconds_count") == 1


# --- much at once --------------------------------------------------------------------------------


async def test_many_changes_at_once_are_read_in_one_go(following: Following) -> None:
    models = [model(f"m{n}") for n in range(10_000)]
    versions = [version(name=m.name) for m in models]
    await following.put(*models, *versions)
    assert len(list(following.follower.names())) == 10_000
    calls = dict(following.store.calls)
    began = time.monotonic()
    await following.put(*[version(name=m.name, tags=("new",)) for m in models])
    print(f"\n10,000 changes: {time.monotonic() - began:.3f} s")  # noqa: T201
    assert following.store.calls["everything"] == calls["everything"] + 1
    assert following.store.calls.get("get", 0) == calls.get("get", 0)
    entry = following.entry("m77")
    assert entry is not None
    assert entry.versions["1"].tags == ("new",)
    assert len(following.told[-1]) == 10_000


async def test_few_changes_of_much_are_read_one_by_one(following: Following) -> None:
    await following.put(*[version(name=f"m{n}") for n in range(5000)])
    readings = following.store.calls["everything"]
    await following.put(*[version("2", f"m{n}") for n in range(500)])
    assert following.store.calls["everything"] == readings
    assert following.store.calls["get"] == 500


async def test_requests_get_their_turn_while_much_is_put_in_place(following: Following) -> None:
    await following.put(*[version(name=f"m{n}") for n in range(5000)])
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += following.store.calls["everything"] == 3

    counting = asyncio.create_task(count())
    await following.put(*[version(name=f"m{n}", tags=("new",)) for n in range(5000)])
    counting.cancel()
    assert turns > 20


# --- what goes wrong -----------------------------------------------------------------------------


async def test_while_the_store_is_gone_the_last_catalogue_serves(
    following: Following, caplog: pytest.LogCaptureFixture
) -> None:
    await following.put(version())
    following.store.fail = "connection refused"
    await following.until(lambda: following.follower.problem)
    assert following.entry() is not None
    assert "connection refused" in following.follower.problem
    assert following.follower.revision == 1
    await following.until(lambda: following.number("stale_seconds") > 0)
    following.store.fail = ""
    await following.put(version("2"))
    assert following.follower.problem == ""
    assert following.number("stale_seconds") == 0
    entry = following.entry()
    assert entry is not None
    assert list(entry.versions) == ["1", "2"]
    # once when it went and once when it came back, whatever was tried in between
    assert [r.levelname for r in caplog.records] == ["WARNING", "WARNING"]


async def test_a_failure_in_the_middle_leaves_nothing_half_done(following: Following) -> None:
    await following.put(version(name="a"), version(name="b"))
    before = following.entry("a"), following.entry("b")
    failed = 0

    async def fail_in_the_middle(name: str) -> None:
        nonlocal failed
        if name == "get" and not failed:
            failed += 1
            raise ZeroDivisionError

    following.store.gate = fail_in_the_middle
    await following.store.put_all([version("2", "a"), version("2", "b")])
    await following.until(lambda: failed)
    assert (following.entry("a"), following.entry("b")) == before
    await following.caught_up()
    assert following.number("failures_total") == 1
    for name in "ab":
        entry = following.entry(name)
        assert entry is not None
        assert list(entry.versions) == ["1", "2"]


async def test_forgotten_changes_are_found_by_reading_everything(following: Following) -> None:
    store = following.store
    await following.put(
        model("a"), version(name="a"), version(name="b"), version(name="c"), key("k", "d"),
        endpoint("e"),
    )  # fmt: skip
    kept = following.entry("c")
    store.fail = "gone"
    await following.until(lambda: following.follower.problem)
    store.fail = ""
    store.gate = _only_writes
    await store.put_all([version("2", "a"), model("a")])
    async with store.transaction() as transaction:
        await transaction.delete(version(name="b"))
        await transaction.delete(key("k", "d"))
    store.forget_changes()
    store.gate = None
    await following.caught_up()
    assert following.told[-1] == {
        ("version", ("acme", "a", "2")), ("model", ("acme", "a")),
        ("version", ("acme", "b", "1")), ("key", ("acme", "k")),
    }  # fmt: skip
    assert following.entry("b") is None
    assert following.follower.key("d") is None
    assert following.entry("c") is kept
    assert len(endpoints_of(following.follower, "acme")) == 1


async def _only_writes(name: str) -> None:
    if name not in {"transaction", "commit"}:
        raise ZeroDivisionError


async def test_an_older_state_that_was_restored_is_taken_over(following: Following) -> None:
    await following.put(version("1"))
    restore = following.store.snapshot()
    await following.put(version("2"))
    await following.put(version("3"))
    restore()
    await following.caught_up()
    assert following.follower.revision == 1
    entry = following.entry()
    assert entry is not None
    assert list(entry.versions) == ["1"]


async def test_an_archived_version_is_not_told_again_when_everything_is_read(
    following: Following,
) -> None:
    await following.put(version("1"), version("2"))
    await following.put(version("1", status="archived"))
    told = len(following.told)
    following.store.gate = _only_writes
    await following.store.put_all([version("3")])
    following.store.forget_changes()
    following.store.gate = None
    await following.caught_up()
    assert following.told[told:] == [{("version", (*BERT, "3"))}]


async def test_a_store_that_hangs_is_given_up(
    following: Following, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "_ANSWER_S", 0.02)
    await following.put(version())
    never = asyncio.Event()

    async def hang(_: str) -> None:
        await never.wait()

    following.store.gate = hang
    following.store.wake()
    await following.until(lambda: "no answer in time" in following.follower.problem)
    following.store.gate = None
    await following.put(version("2"))


async def test_a_change_whose_wake_was_lost_is_found(
    store: MemoryRegistryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "_POLL_S", 0.02)

    async def deaf() -> AsyncIterator[None]:
        await asyncio.Event().wait()
        yield

    monkeypatch.setattr(store, "watch", deaf)
    following = Following(store)
    following.start()
    assert await following.follower.ready(PATIENCE_S)
    await following.put(version())
    await following.stop()


async def test_a_wake_that_comes_during_a_look_leads_to_another_one(
    following: Following, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "_POLL_S", 60.0)
    monkeypatch.setattr(registry_store, "NOW_AND_THEN_S", 60.0)
    store, changes = following.store, following.store.changes
    written = 0

    async def slow(since: int, limit: int = 1000) -> Sequence[Change]:
        nonlocal written
        found = await changes(since, limit)
        if not found and not written:
            await store.put_all([version("2")])
            written += 1
            for _ in range(20):
                await asyncio.sleep(0)
        return found

    monkeypatch.setattr(store, "changes", slow)
    await store.put_all([version("1")])
    await following.until(lambda: written)
    await following.caught_up()


async def test_a_watch_that_breaks_its_promise_is_begun_again(
    store: MemoryRegistryStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(catalogue, "_POLL_S", 0.02)
    watch, broken = store.watch, 0

    async def raising() -> AsyncIterator[None]:
        nonlocal broken
        if not broken:
            broken += 1
            raise ZeroDivisionError
        async for _ in watch():
            yield

    monkeypatch.setattr(store, "watch", raising)
    following = Following(store)
    following.start()
    await following.put(version())
    assert "the registry's watch ended" in caplog.text
    await following.stop()


def test_waits_between_failures_grow_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    made = CatalogueFollower(
        store=MemoryRegistryStore(), now=lambda: AT, metrics=Metrics(version="0"),
        randomness=random.Random(1),
    )  # fmt: skip
    waits = [made._back_off_s(n) for n in range(1000)]  # noqa: SLF001
    assert 0.05 <= waits[0] <= 0.1
    assert max(waits) <= 2.0
    assert min(waits[5:]) >= 1.0
    assert len({round(wait, 9) for wait in waits[5:]}) > 900
