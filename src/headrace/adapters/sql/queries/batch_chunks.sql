-- name: claim_batch_chunk
UPDATE batch_chunks
SET state = 'running', holder = :holder, attempt = attempt + 1,
    until_us = now_us() + :lease_us, since_us = now_us()
WHERE job = :job AND number = :number AND state IN ('waiting', 'queued')
    AND not_before_us <= now_us()
    AND EXISTS (
        SELECT 1 FROM batch_jobs
        WHERE batch_jobs.id = :job AND batch_jobs.state = 'in_progress' AND ending = 'completed'
    )
RETURNING *;

-- name: renew_batch_chunk
-- Of a job that is being ended too, whose worker still has the rows that it began: the answer tells.
UPDATE batch_chunks SET until_us = now_us() + :lease_us, since_us = now_us()
WHERE job = :job AND number = :number AND state = 'running'
    AND holder = :holder AND attempt = :attempt
RETURNING (
    SELECT COUNT(*) FROM batch_jobs
    WHERE batch_jobs.id = :job AND batch_jobs.state = 'in_progress' AND ending = 'completed'
);

-- name: close_batch_chunk
-- Of a job: one of its chunks has its outcome. The job is locked from here on. Those that are to be
-- finished are numbered tenant by tenant, by which they take turns.
UPDATE batch_jobs
SET open_chunks = open_chunks - 1,
    until_us = CASE
        WHEN open_chunks = 1 THEN (
            SELECT COUNT(*) FROM batch_jobs AS beside
            WHERE beside.tenant = batch_jobs.tenant
                AND beside.planned = 1 AND beside.ended = 0 AND beside.open_chunks = 0
        )
        ELSE until_us
    END,
    completed = completed + :completed,
    failed = failed + :failed,
    revision = revision + 1,
    state = CASE
        WHEN open_chunks = 1 AND state = 'in_progress' THEN 'finalizing' ELSE state
    END,
    finalizing_at = CASE
        WHEN open_chunks = 1 AND state = 'in_progress' THEN stamp_s()
        ELSE finalizing_at
    END
WHERE id = :job AND open_chunks > 0
RETURNING open_chunks;

-- name: split_batch_chunk
-- Of a job: the rows that one of its chunks begins with have their outcomes, and the others become a
-- chunk. The job is locked from here on.
UPDATE batch_jobs
SET chunks = chunks + 1,
    open_chunks = CASE
        WHEN state = 'in_progress' AND ending = 'completed' THEN open_chunks ELSE open_chunks - 1
    END,
    completed = completed + :completed,
    failed = failed + :failed,
    revision = revision + 1,
    state = CASE
        WHEN open_chunks = 1 AND state = 'in_progress' AND ending <> 'completed'
        THEN 'finalizing' ELSE state
    END,
    finalizing_at = CASE
        WHEN open_chunks = 1 AND state = 'in_progress' AND ending <> 'completed'
        THEN stamp_s()
        ELSE finalizing_at
    END
WHERE id = :job AND open_chunks > 0
RETURNING open_chunks, chunks - 1,
    CASE WHEN state = 'in_progress' AND ending = 'completed' THEN 'waiting' ELSE 'skipped' END;

-- name: shorten_batch_chunk
UPDATE batch_chunks SET end_byte = :start_byte, row_count = row_count - :row_count
WHERE job = :job AND number = :number
    AND start_byte < :start_byte AND :start_byte < end_byte AND end_byte = :end_byte
    AND first_line < :first_line
    AND row_count - :row_count = :rows_told
RETURNING number;

-- name: add_batch_rest
INSERT INTO batch_chunks (
    job, number, start_byte, end_byte, first_line, row_count, state, failures, story
)
SELECT
    job, CAST(:rest AS BIGINT), CAST(:start_byte AS BIGINT), CAST(:end_byte AS BIGINT),
    CAST(:first_line AS BIGINT), CAST(:row_count AS BIGINT), CAST(:state AS TEXT), failures, story
FROM batch_chunks WHERE job = :job AND number = :number
RETURNING number;

-- name: complete_batch_chunk
UPDATE batch_chunks
SET state = 'done',
    holder = '',
    completed = :completed,
    failed = :failed,
    output_key = :output_key,
    output_bytes = :output_bytes,
    errors_key = :errors_key,
    errors_bytes = :errors_bytes
WHERE job = :job AND number = :number AND state = 'running'
    AND holder = :holder AND attempt = :attempt
RETURNING *;

-- name: batch_chunk
SELECT * FROM batch_chunks WHERE job = :job AND number = :number;

-- name: hand_back_batch_chunk
UPDATE batch_chunks
SET state = :state,
    holder = '',
    failures = :failures,
    story = :story,
    not_before_us = now_us() + :delay_us,
    since_us = now_us()
WHERE job = :job AND number = :number AND state = 'running'
    AND holder = :holder AND attempt = :attempt AND until_us <= :until_us
RETURNING *;

-- name: is_there_batch_time_ahead
-- Whether a clock that was put back since wrote something. Less than a second of it does no harm.
SELECT 1
WHERE EXISTS (
        SELECT 1 FROM batch_chunks
        WHERE state = 'running' AND until_us > now_us() AND since_us > now_us() + 1000000
    )
    OR EXISTS (
        SELECT 1 FROM batch_chunks WHERE state = 'queued' AND queued_us > now_us() + 1000000
    )
    OR EXISTS (
        SELECT 1 FROM batch_chunks
        WHERE state = 'waiting' AND not_before_us > 0
            AND not_before_us > now_us() AND since_us > now_us() + 1000000
    )
    OR EXISTS (
        SELECT 1 FROM batch_jobs
        WHERE ended = 0 AND open_chunks = 0
            AND until_us > now_us() AND since_us > now_us() + 1000000
    );

-- name: begin_batch_chunks_anew
-- Their leases and their waits begin now, and last as long as they were to.
UPDATE batch_chunks
SET until_us = until_us - since_us + now_us(),
    queued_us = queued_us - since_us + now_us(),
    not_before_us = not_before_us - since_us + now_us(),
    since_us = now_us()
WHERE (job, number) IN (
    SELECT job, number FROM batch_chunks
    WHERE state IN ('running', 'queued', 'waiting') AND since_us > now_us() + 1000000
    /* on postgres: FOR UPDATE SKIP LOCKED */
)
RETURNING number;

-- name: overdue_batch_chunks
SELECT job, number FROM batch_chunks
WHERE state = 'running' AND until_us <= now_us()
ORDER BY until_us
LIMIT :limit;

-- name: overdue_batch_chunk
SELECT * FROM batch_chunks
WHERE job = :job AND number = :number AND state = 'running' AND until_us <= now_us();

-- name: bury_batch_chunk
UPDATE batch_chunks SET state = 'dead'
WHERE job = :job AND number = :number AND attempt = :attempt AND state IN ('waiting', 'queued')
    AND EXISTS (SELECT 1 FROM batch_jobs WHERE batch_jobs.id = :job AND planned = 1)
RETURNING number;

-- name: batch_chunks_of_job
SELECT * FROM batch_chunks
WHERE job = :job AND start_byte > :after ORDER BY start_byte LIMIT :limit;

-- name: batch_chunks_to_queue
-- How many are queued or running, and whether one may be queued.
SELECT
    (SELECT COUNT(*) FROM batch_chunks WHERE state = 'queued')
        + (SELECT COUNT(*) FROM batch_chunks WHERE state = 'running'),
    (
        SELECT COUNT(*) FROM batch_chunks WHERE state = 'queued' AND queued_by = :by
    ) + (SELECT COUNT(*) FROM batch_chunks WHERE state = 'running' AND holder = :by),
    CASE WHEN EXISTS (
        SELECT 1 FROM batch_jobs
        WHERE state = 'in_progress' AND ending = 'completed'
            AND EXISTS (
                SELECT 1 FROM batch_chunks
                WHERE batch_chunks.job = batch_jobs.id AND batch_chunks.state = 'waiting'
                    AND not_before_us <= now_us()
            )
    ) THEN 1 ELSE 0 END;

-- name: take_batch_turn
UPDATE batch_dispatch SET turn = turn RETURNING turn;

-- name: keep_batch_turn
UPDATE batch_dispatch SET turn = :turn;

-- name: batch_tenants_to_serve
SELECT tenant, turn, job_turn FROM batch_tenants
WHERE EXISTS (
    SELECT 1 FROM batch_jobs
    WHERE batch_jobs.tenant = batch_tenants.tenant
        AND state = 'in_progress' AND ending = 'completed'
        AND EXISTS (
            SELECT 1 FROM batch_chunks
            WHERE batch_chunks.job = batch_jobs.id AND batch_chunks.state = 'waiting'
                AND not_before_us <= now_us()
        )
)
ORDER BY turn, tenant
LIMIT :limit;

-- name: batch_jobs_to_serve
-- With how many chunks each could have queued, up to the limit.
SELECT id, turn, priority, ready, sequence FROM (
    SELECT id, turn, priority, sequence, (
        SELECT COUNT(*) FROM (
            SELECT 1 FROM batch_chunks
            WHERE batch_chunks.job = batch_jobs.id AND batch_chunks.state = 'waiting'
                AND not_before_us <= now_us()
            LIMIT :limit
        ) AS first_ones
    ) AS ready
    FROM batch_jobs
    WHERE tenant = :tenant AND state = 'in_progress' AND ending = 'completed'
) AS jobs
WHERE ready > 0
ORDER BY turn, sequence
LIMIT :limit;

-- name: serve_batch_job
-- Locks it ahead of its chunks.
UPDATE batch_jobs SET turn = :turn
WHERE id = :job AND state = 'in_progress' AND ending = 'completed'
RETURNING id;

-- name: queue_batch_chunks
UPDATE batch_chunks
SET state = 'queued', queued_by = :by, queued_us = now_us(), since_us = now_us(), patience = 1
WHERE job = :job AND state = 'waiting' AND number IN (
    SELECT number FROM batch_chunks
    WHERE job = :job AND state = 'waiting' AND not_before_us <= now_us()
    ORDER BY number
    LIMIT :count
)
RETURNING *;

-- name: serve_batch_tenant
UPDATE batch_tenants SET turn = :turn, job_turn = :job_turn WHERE tenant = :tenant;

-- name: lost_batch_chunks
SELECT job, number FROM batch_chunks
WHERE state = 'queued' AND queued_us <= now_us() - :older_us * patience
ORDER BY queued_us
LIMIT :limit;

-- name: requeue_batch_chunk
UPDATE batch_chunks
SET queued_by = :by, queued_us = now_us(), since_us = now_us(),
    patience = CASE WHEN patience < :most THEN patience * 2 ELSE patience END
WHERE job = :job AND number = :number AND state = 'queued'
    AND queued_us <= now_us() - :older_us * patience
RETURNING *;
