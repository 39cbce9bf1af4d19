"""What the commands of `headrace batch` do that look at batches and change them; run is apart."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from itertools import islice
from typing import Any

import msgspec

from headrace.compose import batch_text as text
from headrace.compose.batch_client import BatchClient
from headrace.compose.batch_results import STDOUT, Places
from headrace.compose.batch_views import Batch
from headrace.compose.batch_wait import finish, wait
from headrace.compose.models_output import Output
from headrace.compose.platform_client import Read, Refused
from headrace.domain.errors import InvalidRequest


def list_batches(
    client: BatchClient,
    output: Output,
    *,
    states: Iterable[str],
    limit: int | None,
    now: float,
    tenant: str = "",
) -> None:
    """List the newest batches, in the given states if any are given; without a limit, all."""
    wanted = frozenset(states)
    all_ = client.batches(tenant=tenant)
    found = (each for each in all_ if not wanted or each.value.status in wanted)
    batches = list(islice(found, limit))
    output.table(text.batches_table((each.value for each in batches), now=now))
    if not batches:
        output.say("there is no batch" + (" that is so" if wanted else ""))
    output.json([each.raw for each in batches])


def show(client: BatchClient, output: Output, *, id_: str, tenant: str = "") -> None:
    """Tell all of a batch."""
    batch = client.batch(id_, tenant=tenant)
    files = []
    raw = {}
    for what, file in (
        ("input", batch.value.input_file_id),
        ("output", batch.value.output_file_id),
        ("errors", batch.value.error_file_id),
    ):
        if file is None:
            continue
        try:
            known = client.file(file)
        except Refused as refused:
            if refused.status != HTTPStatus.NOT_FOUND:
                raise
            continue  # it has expired, or is another tenant's
        files.append((what, known.value))
        raw[what] = known.raw
    output.say(*text.batch_lines(batch.value, files))
    output.json({"batch": batch.raw, "files": raw})


def cancel(client: BatchClient, output: Output, *, id_: str, tenant: str = "") -> None:
    """Run no more rows of a batch."""
    batch = client.cancel(id_, tenant=tenant)
    output.say(_cancelled(batch.value))
    output.json(batch.raw)


def cancel_all(
    client: BatchClient, output: Output, *, ids: Sequence[str] | None, tenant: str = ""
) -> None:
    """Run no more rows of several batches, of all that have not ended without their `ids`.

    What has ended is told. What is refused otherwise, as one that is not there, keeps no other from
    its end: it is raised behind the last.
    """
    if ids is None:
        found = [each.value for each in client.batches(tenant=tenant)]
        goes_on = [each for each in found if not (each.has_ended or each.status == "cancelling")]
        whose = {each.id: each.tenant for each in goes_on}
        if not goes_on:
            output.say("there is no batch that goes on")
    else:
        whose = dict.fromkeys(ids, tenant)
    cancelled: list[Any] = []
    refusals: list[Refused] = []
    for id_, owner in whose.items():
        try:
            batch = client.cancel(id_, tenant=owner)
        except Refused as refused:
            if refused.status == HTTPStatus.CONFLICT:
                output.note(refused.lines[0])
            else:
                refusals.append(refused)
            continue
        output.say(_cancelled(batch.value))
        cancelled.append(batch.raw)
    output.json(cancelled)
    if refusals:
        lines = list(dict.fromkeys(line for each in refusals for line in each.lines))
        raise Refused(refusals[0].status, lines)


def _cancelled(batch: Batch) -> str:
    return f"{batch.id} is {batch.status}: the rows that were run keep their answers"


def retry(
    client: BatchClient,
    output: Output,
    *,
    id_: str,
    content: Mapping[str, Any],
    places: Places,
    waits: bool,
) -> int:
    """Begin a batch of the failed rows of another; the exit code."""
    places.require_apart()
    places.require_free(force=False, hint="name another file")
    begun = client.retry(id_, content, once=secrets.token_hex(16))
    new = begun.value.id
    if not waits:
        output.say(new)
        output.note(f"wait for it: `headrace batch results {new} --wait`")
        output.json({"batch": begun.raw, "saved": {}})
        return 0
    return finish(client, output, wait(client, output, new), places)


def results(
    client: BatchClient, output: Output, *, id_: str, places: Places, waits: bool, force: bool
) -> int:
    """Save the files of a batch that has ended; the exit code."""
    if output.is_json and STDOUT in (places.output, places.errors):
        raise InvalidRequest("with --json stdout is taken: name files with --output and --errors")
    places = msgspec.structs.replace(places, overwrites=force)
    places.require_apart()
    places.require_free(force=force, hint="--force overwrites it")
    batch: Read[Batch] = client.batch(id_)
    if not batch.value.has_ended:
        if not waits:
            raise Refused(
                HTTPStatus.CONFLICT,
                [f"{id_} is {batch.value.status}: wait for its end with --wait"],
            )
        batch = wait(client, output, id_)
    return finish(client, output, batch, places)
