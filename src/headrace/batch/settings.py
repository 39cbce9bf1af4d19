"""What batch jobs may ask for, and how they are worked on."""

from __future__ import annotations

from typing import Final

import msgspec

from headrace.batch.row_runner import RowRunnerSettings
from headrace.batch.turns import TurnsSettings

_DAY_S: Final = 86_400
_MIB: Final = 1024 * 1024


class BatchSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Batch jobs: their files, their limits, and how they are cut and worked on."""

    #: Whether this process offers batch jobs and works on them. They need the registry's database.
    enabled: bool = True
    #: Chunks that this process works on at a time.
    chunks_in_hand: int = 3
    #: Seconds of silence after which a job or chunk that a process holds is another's.
    lease_s: float = 15.0
    #: Seconds between looks at what others may have left or asked for.
    look_s: float = 1.0
    #: Seconds between counts of what there is to do.
    backlog_s: float = 5.0
    #: Seconds that a chunk which has failed waits at most before it is tried again.
    max_retry_delay_s: float = 30.0
    #: How rows are asked about.
    rows: RowRunnerSettings = RowRunnerSettings()
    #: How it gives way to online requests.
    turns: TurnsSettings = TurnsSettings()
    #: Largest file that may be uploaded, in bytes; beyond it 413.
    max_file_bytes: int = 10 * 1024 * _MIB
    #: Most rows of a job's file.
    max_rows: int = 20_000_000
    #: Largest row, in bytes; it has to fit into a chunk.
    max_row_bytes: int = 4 * _MIB
    #: Most bytes of a job's file that are worked on together: what a worker holds of it.
    chunk_bytes: int = 8 * _MIB
    #: Most rows that are worked on together.
    chunk_rows: int = 5000
    #: Seconds that a chunk is worked on at a stretch; what is left of it then is a chunk that waits
    #: for its turn, as those of other jobs do. Requests that are under way are waited for.
    chunk_s: float = 5.0
    #: Seconds that an uploaded file is kept whose upload does not say it.
    file_retention_s: int = 30 * _DAY_S
    #: Seconds that the files with a job's answers are kept where its creation does not say it.
    output_retention_s: int = 30 * _DAY_S
    #: Whether a job for a model that this process does not know is refused; false where other
    #: processes have models that this one has not.
    known_models_only: bool = True
    #: Seconds for which a job that has come to a process without its model is left to others; after
    #: so long without an answered row its rows fail with `model_not_found`. 0: at once.
    model_patience_s: float = 600.0
    #: Shortest completion window that a job may ask for, in seconds.
    min_window_s: int = 3600
    #: Longest completion window that a job may ask for, in seconds.
    max_window_s: int = 14 * _DAY_S
    #: How often a row is tried whose failure may pass, where its job does not say it.
    max_attempts: int = 3
    #: The most that a job may say.
    max_attempts_limit: int = 10
    #: Jobs of a tenant that have not ended; 0: any number. Beyond it 429.
    max_jobs_per_tenant: int = 1000
    #: Bytes of their input files together; 0: any number.
    max_job_bytes_per_tenant: int = 0
    #: Bytes of a tenant's files together, with those that its jobs wrote; 0: any number. Beyond it
    #: uploads and retries are refused with 413. Jobs write their answers in any case.
    max_stored_bytes_per_tenant: int = 100 * 1024 * _MIB
    #: Files of a tenant, with those that its jobs wrote; 0: any number. Beyond it as above.
    max_files_per_tenant: int = 100_000
    #: Chunks that are queued or worked on at a time, over all jobs.
    window: int = 64
    #: Seconds after which a chunk that was queued and that nobody claimed is queued anew.
    requeue_after_s: float = 15.0
    #: Failures after which a chunk is given up and goes to the dead letters.
    max_chunk_failures: int = 5
    #: Bytes of an input file that is small: however many jobs have larger ones, those with small
    #: ones do not wait behind them to be planned or finished.
    small_file_bytes: int = _MIB
    #: Failures after which a job is given up that cannot be planned, or not be finished, for what
    #: no wait mends by itself: with waits of up to `lease_s` in between, five minutes.
    max_job_failures: int = 24
    #: Seconds between looks at a job that somebody follows.
    follow_poll_s: float = 0.5
    #: Seconds without news after which whoever follows a job is told that the stream is alive.
    follow_heartbeat_s: float = 15.0
    #: Seconds that one stream of a job's progress lasts; who follows asks again.
    follow_max_s: float = 3600.0
    #: Jobs that are followed at a time in a process; beyond it 503.
    max_followers: int = 256
    #: Seconds between looks at all objects for those that no file and no job needs, which killed
    #: processes leave; 0: never. Each process looks.
    sweep_s: float = 3600.0
    #: Seconds that such an object is left alone. An upload or a retry may take half of them.
    orphan_age_s: float = float(_DAY_S)
    #: Seconds that the URL of a file at its object store is good for.
    presigned_s: int = 3600

    def __post_init__(self) -> None:
        for name in (
            "max_file_bytes", "max_rows", "max_row_bytes", "chunk_bytes", "chunk_rows",
            "file_retention_s", "output_retention_s", "min_window_s", "max_attempts", "window",
            "max_chunk_failures", "max_job_failures", "max_followers", "presigned_s",
            "small_file_bytes",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in (
            "chunks_in_hand", "lease_s", "look_s", "backlog_s", "max_retry_delay_s",
            "requeue_after_s", "follow_poll_s", "follow_heartbeat_s", "follow_max_s",
            "orphan_age_s", "chunk_s",
        ):  # fmt: skip
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be more than 0, got {getattr(self, name)}")
        for name in (
            "max_jobs_per_tenant", "max_job_bytes_per_tenant", "max_stored_bytes_per_tenant",
            "max_files_per_tenant", "sweep_s", "model_patience_s",
        ):  # fmt: skip
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if self.max_row_bytes > self.chunk_bytes:
            raise ValueError(
                f"max_row_bytes {self.max_row_bytes} is over chunk_bytes {self.chunk_bytes}: "
                "a row has to fit into a chunk"
            )
        if self.max_window_s < self.min_window_s:
            raise ValueError(
                f"max_window_s {self.max_window_s} is under min_window_s {self.min_window_s}"
            )
        if self.max_attempts_limit < self.max_attempts:
            raise ValueError(
                f"max_attempts_limit {self.max_attempts_limit} is under max_attempts "
                f"{self.max_attempts}, which a job has that says nothing"
            )
