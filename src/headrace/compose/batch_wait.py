"""Waiting for a batch, and what is told at its end."""

from __future__ import annotations

from collections.abc import Iterator

from headrace.compose import batch_text as text
from headrace.compose.batch_client import BatchClient
from headrace.compose.batch_follow import Patience, follow
from headrace.compose.batch_progress import progress
from headrace.compose.batch_results import STDOUT, Places, exit_code, take
from headrace.compose.batch_views import Batch
from headrace.compose.interrupts import interruptible
from headrace.compose.models_output import Output
from headrace.compose.platform_client import Read


def wait(client: BatchClient, output: Output, id_: str, *, resume: str = "") -> Read[Batch]:
    """The batch as it ended. `resume` is what to do to wait for it again.

    Raises:
        Refused: it is not there, or not for this caller.
        Unreachable: the platform did not answer for too long.
    """
    resume = resume or f"`headrace batch results {id_} --wait`"

    def told() -> Iterator[str]:
        yield f"{id_} goes on without this command"
        yield f"  wait for it again:  {resume}"
        yield f"  take its results:   `headrace batch results {id_}`"
        yield f"  stop it:            `headrace batch cancel {id_}`"

    with interruptible(told):
        patience = Patience(tell=output.note)
        with progress(output, id_) as tell:
            for batch in follow(client, id_, patience):
                tell(batch.value)
    return batch


def finish(
    client: BatchClient, output: Output, ended: Read[Batch], places: Places, *, name: str = ""
) -> int:
    """Save the files of a batch that has ended, and tell of it; the exit code.

    `name` is what its input is called here.
    """
    batch = ended.value
    # what is asked for may be written to stdout: then nothing else is
    say = output.note if STDOUT in (places.output, places.errors) else output.say
    say(text.end_line(batch))
    output.note(*text.problem_lines(batch, name=name))
    saved = take(client, output, batch, places)
    if batch.error_file_id:
        if "errors" not in saved:
            say(f"why rows failed: `headrace batch results {batch.id} --errors FILE`")
        if batch.status != "failed":  # its input is gone, of which a retry would be made
            say(f"run them again:  `headrace batch retry {batch.id}`")
    output.json({"batch": ended.raw, "saved": saved})
    return exit_code(batch)
