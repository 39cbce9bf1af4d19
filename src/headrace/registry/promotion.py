"""Moving an alias to a version that has shown that it can take over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from headrace.domain.calls import Call
from headrace.domain.catalog import Alias, Model, Version
from headrace.domain.errors import InvalidRequest, ModelLoadFailed, PreconditionFailed
from headrace.ports.artifacts import ArtifactStore, Inspection, Inspector
from headrace.ports.registry_store import RegistryStore
from headrace.registry import aliases, models, versions
from headrace.registry.changes import Ledger
from headrace.registry.refusals import PromotionRefused
from headrace.registry.revisions import Match, agree
from headrace.registry.signature_rules import differences


class Check(msgspec.Struct, frozen=True):
    """One question that a promotion asks, and what came out."""

    name: Literal["status", "signature", "warm_up", "smoke_inputs"]
    outcome: Literal["passed", "failed", "forced", "skipped"]
    detail: str = ""


class Promotion(msgspec.Struct, frozen=True):
    """A promotion that was made."""

    alias: Alias
    checks: tuple[Check, ...]
    outputs: tuple[Mapping[str, Any], ...] = ()  # of the smoke inputs, by output name


class Promotions:
    """Promotes versions."""

    def __init__(
        self,
        *,
        store: RegistryStore,
        ledger: Ledger,
        artifacts: ArtifactStore,
        inspector: Inspector,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._artifacts = artifacts
        self._inspector = inspector

    async def promote(
        self,
        call: Call,
        model: str,
        *,
        version: str,
        alias: str,
        smoke_inputs: Sequence[Mapping[str, Any]] = (),
        force: bool = False,
        if_match: Match = None,
    ) -> Promotion:
        """Point `alias` at `version`, where every check passes.

        `force` lets a signature pass that callers could stumble over, and nothing else. `if_match`
        is of the alias, and may be left out.

        Raises InvalidRequest, NotFound, PreconditionFailed (also where the alias was moved while
        the version was looked at), and Conflict with the outcome of every check.
        """
        aliases.require_alias(alias)
        tenant = call.principal.tenant
        models.found(await self._store.get(Model, (tenant, model)), model)
        candidate = versions.found(
            await self._store.get(Version, (tenant, model, version)), model, version
        )
        present = await self._store.get(Alias, (tenant, model, alias))
        _agree(present, model, alias, if_match)
        target = None
        if present is not None:
            target = await self._store.get(Version, (tenant, model, present.version))
        checks = [_status(candidate), _signature(candidate, target, force=force)]
        inspection, looked = await self._look(candidate, smoke_inputs)
        checks += looked
        failed = [check for check in checks if check.outcome == "failed"]
        if failed:
            raise PromotionRefused(
                f"version '{version}' of model '{model}' was not promoted to '{alias}': "
                + "; ".join(f"{check.name}: {check.detail}" for check in failed),
                msgspec.to_builtins(checks),
            )
        outputs = () if inspection is None else inspection.outputs
        async with self._ledger.changes(call) as changes:
            models.found(await changes.transaction.get(Model, (tenant, model)), model)
            now = await changes.transaction.get(Alias, (tenant, model, alias))
            if now != present:
                raise PreconditionFailed(
                    f"alias '{alias}' of model '{model}' was changed while the version was looked "
                    "at; promote again"
                )
            await aliases.servable(changes, call, model, version)
            if now is not None and now.version == version:
                return Promotion(now, tuple(checks), outputs)
            moved = await aliases.point(
                changes,
                call,
                present=now,
                model=model,
                alias=alias,
                version=version,
                action="alias.promote",
            )
        return Promotion(moved, tuple(checks), outputs)

    async def _look(
        self, version: Version, smoke_inputs: Sequence[Mapping[str, Any]]
    ) -> tuple[Inspection | None, list[Check]]:
        """Load it anew, run it once on zeros and once for each smoke input."""
        wanted: Literal["passed", "skipped"] = "passed" if smoke_inputs else "skipped"
        if version.artifact is None or version.status != "ready":
            why = f"it is {version.status}"
            return None, [Check("warm_up", "skipped", why), Check("smoke_inputs", "skipped", why)]
        try:
            folder = await self._artifacts.folder(version.artifact)
            inspection = await self._inspector.inspect(folder, smoke=smoke_inputs)
        except ModelLoadFailed as error:
            return None, [
                Check("warm_up", "failed", error.message),
                Check("smoke_inputs", "skipped", "it could not be loaded"),
            ]
        except InvalidRequest as error:
            return None, [
                Check("warm_up", "passed"),
                Check("smoke_inputs", "failed", error.message),
            ]
        took = f"{inspection.warm_up_s * 1000:.1f} ms"
        return inspection, [Check("warm_up", "passed", took), Check("smoke_inputs", wanted)]


def _agree(present: Alias | None, model: str, alias: str, if_match: Match) -> None:
    if present is not None:
        agree(present, if_match)
    elif if_match is not None:
        raise PreconditionFailed(f"alias '{alias}' of model '{model}' is not there")


def _status(version: Version) -> Check:
    if version.status == "ready":
        return Check("status", "passed")
    return Check("status", "failed", f"it is {version.status}, not ready")


def _signature(version: Version, target: Version | None, *, force: bool) -> Check:
    """Whether the callers of the present target can go on as they are."""
    if target is None or target.signature is None:
        return Check("signature", "skipped", "there is nothing to compare it with")
    if version.signature is None:
        return Check("signature", "skipped", "it has no signature")
    found = "; ".join(differences(target.signature, version.signature))
    if not found:
        return Check("signature", "passed")
    return Check("signature", "forced" if force else "failed", found)
