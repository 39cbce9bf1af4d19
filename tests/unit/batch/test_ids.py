from __future__ import annotations

import pytest

from headrace.batch.ids import BATCH, FILE, file_of, is_id, job_of, new_id


def test_ids_sort_by_the_time_they_were_given() -> None:
    given = [new_id(FILE, 1_800_000_000.0 + i / 1000) for i in range(100)]
    assert given == sorted(given)
    assert {len(id_) for id_ in given} == {len("file-") + 26}
    assert all(is_id(FILE, id_) for id_ in given)


@pytest.mark.parametrize("prefix", [FILE, BATCH])
def test_two_ids_of_one_moment_differ(prefix: str) -> None:
    assert len({new_id(prefix, 0.0) for _ in range(1000)}) == 1000


def test_a_files_id_is_no_batchs_id() -> None:
    assert not is_id(BATCH, new_id(FILE, 0.0))
    assert not is_id(FILE, new_id(BATCH, 0.0))


def test_an_id_that_a_job_made_for_its_output_is_one() -> None:
    job = new_id(BATCH, 0.0)
    output, errors = file_of(job, "output"), file_of(job, "errors")
    assert is_id(FILE, output)
    assert output != errors
    assert job_of(output) == job_of(errors) == job


def test_an_uploaded_files_id_is_that_of_no_jobs_file() -> None:
    assert len(job_of(new_id(FILE, 0.0))) < len(new_id(BATCH, 0.0))
