"""The models of this process: loading, replacing, unloading, and what is known of each.

The table that requests look into is replaced as a whole at every change, so that a request sees
one state or the other, and a version that is replaced finishes what it has.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

from headrace.domain.errors import (
    HeadraceError,
    InvalidRequest,
    InvalidSettings,
    ModelLoadFailed,
    ModelNotReady,
    UnknownModel,
)
from headrace.domain.models import ModelConfig, Platform
from headrace.domain.names import version_order
from headrace.orchestrator.drains import Drains, collect_soon
from headrace.orchestrator.metrics import OrchestratorMetrics
from headrace.orchestrator.off_loop import off_loop
from headrace.orchestrator.response_cache import ResponseCache
from headrace.orchestrator.served_version import ServedVersion
from headrace.orchestrator.settings import OrchestratorSettings
from headrace.orchestrator.shared_loads import SharedLoad, SharedLoads
from headrace.orchestrator.version_record import Progress, State, VersionRecord
from headrace.orchestrator.warmup import warm_up
from headrace.ports.executor import Executor, ExecutorLoader
from headrace.ports.model_control import IndexEntry, ModelDescription
from headrace.ports.repository import FoundModel, FoundVersion, ModelRepository

_logger = logging.getLogger(__name__)
_RETRY_AFTER_S: Final = 1.0
_MANY_VERSIONS: Final = 10
T = TypeVar("T")


class Models:
    """All models of one repository. Every method runs on the event loop; loading is off it.

    `transient` models come and go with their use, and so do their counts. Answers are kept in
    `cache`, where there is one, of the models that ask for it.
    """

    def __init__(
        self,
        repository: ModelRepository,
        *,
        loaders: Mapping[Platform, ExecutorLoader],
        settings: OrchestratorSettings,
        metrics: OrchestratorMetrics,
        cache: ResponseCache | None = None,
        transient: bool = False,
    ) -> None:
        self._repository = repository
        self._loaders = loaders
        self._settings = settings
        self._metrics = metrics
        self._cache = cache
        self._transient = transient
        self._models: dict[str, dict[str, VersionRecord]] = {}
        self._problems: dict[str, str] = {}  # models whose present state is unusable as a whole
        self._unloaded: set[str] = set()  # on request: polling leaves them alone
        self._overridden: set[str] = set()  # loaded with a configuration from the request
        self._locks: dict[str, asyncio.Lock] = {}
        self._loads = SharedLoads()
        self._loads_ended = 0
        self._drains = Drains(drain_s=settings.drain_s, metrics=metrics)
        self._told: set[tuple[str, str]] = set()  # whose state the metrics have
        self._table: dict[tuple[str, str], ServedVersion] = {}
        self._expected: set[str] = set()  # models of the repository that were not tried yet
        self._looked = False  # whether it is known which they are
        self._closed = False

    # --- asked by requests ---------------------------------------------------------------------

    def get(self, model: str, version: str = "") -> ServedVersion:
        """The version to ask; the newest ready one where `version` is "".

        Raises:
            UnknownModel: no such model or version.
            ModelNotReady: it exists, and cannot run now.
        """
        served = self._table.get((model, version))
        if served is None:
            raise self._why_not(model, version)
        return served

    def obstacle(self, model: str, version: str = "") -> HeadraceError | None:
        """What stands in the way of a request now: UnknownModel, ModelNotReady or nothing."""
        served = self._table.get((model, version))
        if served is None:
            return self._why_not(model, version)
        if not served.scheduler.suspect or served.ready:
            return None
        msg = (
            f"model '{model}' is not ready: every instance of version {served.version} hangs "
            "in a run that nobody waits for any more"
        )
        return ModelNotReady(msg, retry_after_s=_RETRY_AFTER_S)

    def describe(self, model: str, version: str = "") -> ModelDescription:
        """See ModelControl.describe."""
        served = self.get(model, version)
        records = _ordered(self._models[model])
        return ModelDescription(
            model,
            tuple(v for v, record in records if record.served is not None),
            served.platform,
            served.signature,
            served.config,
            served.max_batch_size,
        )

    def statistics(self, model: str = "", version: str = "") -> list[dict[str, Any]]:
        """See ModelControl.statistics."""
        if version:
            chosen = [self.get(model, version)]
        elif model:
            self.get(model)
            chosen = [served for served in self.all_versions() if served.model == model]
        else:
            chosen = list(self.all_versions())
        return [s.scheduler.statistics.as_triton(s.model, s.version) for s in chosen]

    def all_versions(self) -> Iterator[ServedVersion]:
        """Every version that can be asked, by model and version."""
        for _, records in sorted(self._models.items()):
            for _, record in _ordered(records):
                if record.served is not None:
                    yield record.served

    def index(self) -> list[IndexEntry]:
        """See ModelControl.index."""
        ending = self._drains.requests()
        entries = []
        for name in sorted(
            {*self._models, *self._problems, *self._unloaded, *(model for model, _ in ending)}
        ):
            problem = self._problems.get(name, "")
            told = {
                version: (record.state, record.told or problem)
                for version, record in self._models.get(name, {}).items()
            } | {
                version: (State.UNLOADING, _under_way(requests))
                for (model, version), requests in ending.items()
                if model == name and version not in self._models.get(name, {})
            }
            if not told:
                told[""] = State.UNAVAILABLE, problem or "unloaded"
            entries += [
                IndexEntry(name, version, state.value, reason)
                for version, (state, reason) in _ordered(told)
            ]
        return entries

    # --- asked by operators ---------------------------------------------------------------------

    async def load_all(self) -> None:
        """Load every model of the repository; a model that fails leaves the others alone."""
        self._expected = set(await off_loop(self._repository.names))
        self._looked = True
        # at the same time: one that hangs while it loads does not keep the others waiting
        await asyncio.gather(*(self.refresh(name) for name in sorted(self._expected)))

    async def poll(self) -> None:
        """Bring the process in line with the repository: new, changed and removed models."""
        names = await off_loop(self._repository.names)
        gone = {*self._models, *self._problems} - set(names)
        for name in sorted({*names, *gone}):
            await self.refresh(name)

    async def load(self, model: str, *, config_json: bytes | None = None) -> None:
        """See ModelControl.load. Versions in use are replaced without dropping a request.

        Whoever asks while the same is being loaded waits for that, and is told what became of it.
        """
        await self._loads.join(
            (model, config_json), lambda load: self._load(model, config_json, load)
        )

    async def unload(self, model: str) -> None:
        """See ModelControl.unload."""
        async with self._lock(model):
            if model not in self._models and model not in self._problems:
                if model in self._unloaded:
                    return
                raise UnknownModel(_not_found(model))
            self._unloaded.add(model)
            self._overridden.discard(model)
            self._problems.pop(model, None)
            ending = self._drop(model, list(self._models.get(model, {})))
            self._models.pop(model, None)
            if ending:  # not gather: the versions end even if who asked for it goes away
                await asyncio.wait(ending)

    async def close(self) -> None:
        """Unload everything, without waiting for hung instances longer than the drain time."""
        self._closed = True
        for name in list(self._models):
            self._drop(name, list(self._models[name]))
        await self._drains.wait()

    def observe(self) -> None:
        """Set the gauges; called before a scrape."""
        for served in self.all_versions():
            served.metrics.queue_depth.value = len(served.scheduler.queue)
            served.metrics.hung.value = served.scheduler.hung
            self._metrics.ready.labels(served.model, served.version).value = int(served.ready)
        states = {(entry.name, entry.version): entry.state for entry in self.index()}
        for key in self._told - states.keys():
            for each in State:
                self._metrics.state.remove(*key, each.value)
        for key, state in states.items():
            for each in State:  # all of them: who watches one is told when it ends
                self._metrics.state.labels(*key, each.value).value = int(each == state)
        self._told = set(states)

    # --- inside ---------------------------------------------------------------------------------

    def _lock(self, model: str) -> asyncio.Lock:
        return self._locks.setdefault(model, asyncio.Lock())

    async def _load(self, model: str, config_json: bytes | None, load: SharedLoad) -> None:
        asked = self._loads_ended
        async with self._lock(model):
            while load.asked:
                load.asked = False
                found = await off_loop(self._repository.find, model, config_json=config_json)
                if found is None:
                    msg = f"failed to load '{model}', no such model in the model repository"
                    raise InvalidRequest(msg)
                self._unloaded.discard(model)
                (self._overridden.add if config_json else self._overridden.discard)(model)
                # what somebody else's load has ended meanwhile is as new as it can be
                await self._apply(found, reload_until=asked)
            self._require_loaded(model)

    def _require_loaded(self, model: str) -> None:
        records = self._models.get(model, {})
        reasons = [f"version {v}: {r.reason}" for v, r in _ordered(records) if r.reason]
        if reasons or not records or model in self._problems:
            reason = self._problems.get(model) or "; ".join(reasons) or "it has no versions"
            msg = f"failed to load '{model}': {reason}"
            raise ModelLoadFailed(msg)

    async def refresh(self, model: str) -> None:
        """Bring one model in line with the repository."""
        async with self._lock(model):
            if model in self._overridden or model in self._unloaded:
                self._expected.discard(model)
                return
            found = await self._find(model)
            self._expected.discard(model)
            if found is not None:
                await self._apply(found)
                return
            _logger.info("model %s is gone from the repository", model)
            self._problems.pop(model, None)
            self._drop(model, list(self._models.get(model, {})))
            self._models.pop(model, None)

    async def _find(self, model: str) -> FoundModel | None:
        try:
            return await off_loop(self._repository.find, model)
        except InvalidSettings:  # the repository as a whole is gone
            raise
        except Exception as error:  # one model's failure, whatever it is, is its own
            _logger.exception("model %s cannot be read", model)
            problem = f"reading it raised {type(error).__name__}"
            return FoundModel(model, ModelConfig(model), {}, problem=problem)

    async def _apply(self, found: FoundModel, *, reload_until: int = -1) -> None:
        """Make what is served of a model what was found of it.

        What has not changed is loaded again if the load that it is from is `reload_until` or
        before.
        """
        name = found.name
        if found.problem:
            problem = found.problem.removeprefix(f"model '{name}': ")
            if self._problems.get(name) != problem:
                _logger.error("model %s cannot be served: %s", name, problem)
            self._problems[name] = problem
            records = self._models.get(name, {})
            if not any(record.served for record in records.values()):
                self._models.pop(name, None)
            return  # what worked goes on working
        self._problems.pop(name, None)
        records = self._models.setdefault(name, {})
        wanted = {*found.versions, *found.problems}
        for version, problem in found.problems.items():
            known = records.get(version)
            if known is not None and known.served is not None:  # what worked goes on working
                records[version] = VersionRecord(State.READY, problem, "", known.served)
            else:
                records[version] = VersionRecord(State.UNAVAILABLE, problem)
        for version, seen in sorted(found.versions.items(), key=lambda v: version_order(v[0])):
            known = records.get(version)
            if (
                known is not None
                and known.fingerprint == seen.fingerprint
                and known.loaded > reload_until
            ):
                continue
            await self._load_version(name, version, seen)
        # only now, and only if there is something in their place: no request finds a gap
        if not wanted or any(r.served for version, r in records.items() if version in wanted):
            self._drop(name, [version for version in records if version not in wanted])

    async def _load_version(self, name: str, version: str, found: FoundVersion) -> None:
        records = self._models[name]
        before = records.get(version)
        old = before.served if before is not None else None
        progress = Progress()
        state = State.LOADING if old is None else State.READY
        records[version] = VersionRecord(state, "", found.fingerprint, old, progress)
        begun = time.monotonic()
        making = asyncio.get_running_loop().create_task(
            self._try_to_make(name, version, found, progress)
        )
        try:
            served = await asyncio.shield(making)
        except asyncio.CancelledError:  # who asked for it has gone: all is as before
            making.add_done_callback(_discard)
            records.pop(version, None)
            if before is not None and not self._closed:
                records[version] = before
            raise
        if self._closed:
            _discard(making)
            return
        self._loads_ended += 1
        record = records[version] = VersionRecord(
            State.READY, "", found.fingerprint, old, loaded=self._loads_ended
        )
        if isinstance(served, ModelLoadFailed):
            reason = served.message
            _logger.error("model %s version %s cannot be served: %s", name, version, reason)
            self._metrics.loads.labels(name, "failed").value += 1
            collect_soon()
            if old is None:
                record.state, record.reason = State.UNAVAILABLE, reason
            else:  # what worked goes on working
                record.reason = f"a newer state of its files cannot be loaded: {reason}"
            return
        self._metrics.loads.labels(name, "ready").value += 1
        record.served = served
        self._rebuild_table()
        _logger.info(
            "model %s version %s is ready", name, version,
            extra={"load_s": round(time.monotonic() - begun, 3), "platform": served.platform},
        )  # fmt: skip
        if old is not None:
            self._retire(old)

    async def _try_to_make(
        self, name: str, version: str, found: FoundVersion, progress: Progress
    ) -> ServedVersion | ModelLoadFailed:
        try:
            return await self._make(name, version, found, progress)
        except ModelLoadFailed as error:
            return error
        except Exception as error:  # one version's failure, whatever it is, is its own
            _logger.exception("a loader broke its contract")
            return ModelLoadFailed(f"loading it raised {type(error).__name__}: {error}")

    async def _make(
        self, name: str, version: str, found: FoundVersion, progress: Progress
    ) -> ServedVersion:
        loader = self._loaders[found.source.platform]
        load_seconds = self._metrics.load_seconds
        begun = time.monotonic()
        executors: Sequence[Executor] = await off_loop(loader.load, found.source)
        loaded = time.monotonic()
        load_seconds.labels(name, "files").observe(loaded - begun)
        config = found.source.config
        cache = self._cache if config.response_cache and not executors[0].decoupled else None
        served = ServedVersion(
            model=name,
            version=version,
            platform=found.source.platform,
            config=config,
            executors=executors,
            queue_limit=self._settings.max_queue_size,
            loop=asyncio.get_running_loop(),
            metrics=self._metrics.version(name, version),
            cache=cache.of(name, version) if cache is not None else None,
        )
        try:
            await off_loop(
                warm_up, executors, found.source,
                times=served.scheduler.times, progress=progress.tell,
            )  # fmt: skip
        except Exception:
            served.scheduler.close()
            raise
        load_seconds.labels(name, "warm_up").observe(time.monotonic() - loaded)
        return served

    def _drop(self, name: str, versions: list[str]) -> list[asyncio.Task[None]]:
        """Take versions out of the table now, and let them end in their own time."""
        records = self._models.get(name, {})
        retired = [records.pop(version).served for version in versions]
        self._rebuild_table()
        tasks = [self._retire(served) for served in retired if served is not None]
        for version in versions:
            self._metrics.forget(name, version, counts=self._transient)
        return tasks

    def _retire(self, served: ServedVersion) -> asyncio.Task[None]:
        if served.cache is not None:
            served.cache.close()
        return self._drains.begin(served)

    def _rebuild_table(self) -> None:
        table = {}
        for name, records in self._models.items():
            for version, record in _ordered(records):
                if record.served is not None:
                    table[name, version] = table[name, ""] = record.served
        self._table = table

    def _why_not(self, model: str, version: str) -> HeadraceError:
        records = self._models.get(model)
        if records is None:
            if model in self._problems:
                msg = f"model '{model}' cannot be served: {self._problems[model]}"
                return ModelNotReady(msg, retry_after_s=_RETRY_AFTER_S)
            if model in self._expected or not self._looked:
                msg = f"model '{model}' is not ready: models are still being loaded"
                return ModelNotReady(msg, retry_after_s=_RETRY_AFTER_S)
            return UnknownModel(_not_found(model))
        if version and version not in records:
            known = [v for v, _ in _ordered(records)]
            shown = ", ".join(known[-_MANY_VERSIONS:])
            msg = (
                f"Request for unknown model: '{model}' version {version} is not found; "
                f"it has {f'versions {shown}' if shown else 'no versions'}"
            )
            return UnknownModel(msg)
        record = records.get(version) or (_ordered(records)[-1][1] if records else None)
        state = record.state.value.lower() if record is not None else "without versions"
        reason = f": {record.reason}" if record is not None and record.reason else ""
        msg = f"model '{model}' is not ready, it is {state}{reason}"
        return ModelNotReady(msg, retry_after_s=_RETRY_AFTER_S)


def _discard(made: asyncio.Task[ServedVersion | ModelLoadFailed]) -> None:
    """Release a version that came too late to be served."""
    if not made.cancelled() and isinstance(served := made.result(), ServedVersion):
        served.scheduler.close()


def _not_found(model: str) -> str:
    return f"Request for unknown model: '{model}' is not found"


def _under_way(requests: int) -> str:
    return f"{requests} request{'' if requests == 1 else 's'} under way"


def _ordered(by_version: Mapping[str, T]) -> list[tuple[str, T]]:
    return sorted(by_version.items(), key=lambda item: version_order(item[0]))
