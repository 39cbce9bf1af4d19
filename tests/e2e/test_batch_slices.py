"""A large job of a slow model: others have turns, its counts move, and a kill costs little."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import repositories
from tests.support.batch_platform import FINAL, Models, Platform, User, embedded, rows
from tests.support.process import eventually

#: Of a chunk that is worked on at a stretch.
_SLICE_S = 0.5
_PLACES = 2  # chunks in hand
#: Rows that are asked about at most before anybody is told of them: what the model answers within a
#: slice, and within the time that the places take to end theirs.
_IN_HAND = 80
_SLOW = """\
import os
import time
from pathlib import Path

from headrace import Model, TensorSpec


class Slow(Model):
    inputs = (TensorSpec("value", "INT64", (1,)),)
    outputs = (TensorSpec("answer", "INT64", (1,)),)
    max_batch_size = 4

    def load(self, context):
        self.journal = Path(context.parameters["journal"])

    def predict(self, inputs):
        time.sleep(0.1)
        file = os.open(self.journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, "".join(f"{value}\\n" for value in inputs["value"].ravel()).encode())
        os.close(file)
        return {"answer": inputs["value"] * 10}
"""


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """What `slow` has answered, a number a line."""
    return tmp_path / "journal"


@pytest.fixture
def platform(tmp_path: Path, journal: Path) -> Iterator[Platform]:
    """One process, whose chunks are larger than any file."""
    models = Models(tmp_path / "models")
    config = f'[parameters]\njournal = "{journal}"\n'
    repositories.python_model(models.folder, "slow", _SLOW, config=config)
    environment = {
        "HEADRACE_BATCH__CHUNK_ROWS": "1000",
        "HEADRACE_BATCH__CHUNK_S": str(_SLICE_S),
        "HEADRACE_BATCH__CHUNKS_IN_HAND": str(_PLACES),
    }
    with embedded(models.folder, tmp_path / "platform", environment=environment) as found:
        yield found


def _done(user: User, batch: object) -> int:
    counts = user.get(batch).request_counts  # type: ignore[arg-type]
    assert counts is not None
    return counts.completed


@pytest.mark.parametrize("name", ["ann", "eve"])
def test_ten_rows_wait_for_a_few_slices_of_a_job_whose_chunk_takes_half_a_minute(
    platform: Platform, name: str
) -> None:
    user, other = platform.user(), platform.user(name)
    large = user.create(rows(range(1000, 2000), model="slow"), model="slow")
    user.until(large, done=1)
    begun = time.monotonic()
    small = other.create(rows(range(10), model="slow"), model="slow")
    ended = other.end(small)
    waited_s = time.monotonic() - begun
    assert ended.status == "completed"
    other.answered_tenfold(ended)
    assert user.get(large).status == "in_progress"
    assert waited_s < 6 * (_SLICE_S + 0.5)
    assert user.sdk.batches.cancel(large.id).status == "cancelling"
    found = user.end(large)
    assert found.status == "cancelled"
    assert user.answered_tenfold(found).codes == {"batch_cancelled"}


def test_a_job_of_one_chunk_shows_how_far_it_is(platform: Platform) -> None:
    user = platform.user()
    made = user.create(rows(range(200), model="slow"), model="slow")
    seen: set[int] = set()

    def ended() -> bool:
        seen.add(_done(user, made))
        return user.get(made).status in FINAL

    eventually(ended, timeout_s=30, interval_s=0.05)
    assert len(seen) > 5
    found = user.get(made)
    assert found.status == "completed"
    assert len(user.answered_tenfold(found).answers) == 200


def test_a_kill_repeats_the_rows_of_the_slices_that_were_under_way_alone(
    platform: Platform, journal: Path
) -> None:
    user = platform.user()
    made = user.create(rows(range(300), model="slow"), model="slow")
    user.until(made, done=100)
    platform.stop(0, signal.SIGKILL)
    platform.start()
    user = platform.user()
    found = user.end(made)
    assert found.status == "completed"
    assert len(user.answered_tenfold(found).answers) == 300
    asked = Counter(journal.read_text("utf-8").split())
    asked.subtract({str(value): 1 for value in range(300)})
    assert min(asked.values()) == 0
    assert asked.total() <= _IN_HAND
