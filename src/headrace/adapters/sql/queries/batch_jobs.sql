-- name: lock_batch_tenant
INSERT INTO batch_tenants AS present (tenant, turn, job_turn) VALUES (:tenant, 0, 0)
ON CONFLICT (tenant) DO UPDATE SET turn = present.turn;

-- name: batch_quotas_used
SELECT COUNT(*), CAST(COALESCE(SUM(input_bytes), 0) AS BIGINT) FROM batch_jobs
WHERE tenant = :tenant AND ended = 0;

-- name: add_batch_job
INSERT INTO batch_jobs (
    id, tenant, document, input_file, input_key, input_bytes, priority, state, ending,
    created_us, expires_at
)
VALUES (
    :id, :tenant, :document, :input_file, :input_key, :input_bytes, :priority,
    'validating', 'completed', now_us(), now_us() / 1000000 + :window_s
)
RETURNING *;

-- name: batch_job
SELECT * FROM batch_jobs WHERE tenant = :tenant AND id = :id;

-- name: batch_job_of_chunk
SELECT * FROM batch_jobs WHERE id = :job;

-- name: lock_batch_job
-- Ahead of any chunk of it, so that no two transactions wait for each other.
UPDATE batch_jobs SET ended = ended WHERE id = :job RETURNING *;

-- name: is_there_batch_job_to_claim
SELECT 1 FROM batch_jobs
WHERE ended = 0 AND open_chunks = 0 AND until_us <= now_us()
LIMIT 1;

-- name: claim_batch_job
-- One that was handed back goes behind those that nobody has had yet.
UPDATE batch_jobs
SET holder = :holder, attempt = attempt + 1, until_us = now_us() + :lease_us
WHERE sequence = (
    SELECT sequence FROM batch_jobs
    WHERE ended = 0 AND open_chunks = 0 AND until_us <= now_us()
    ORDER BY until_us, sequence
    LIMIT 1
    /* on postgres: FOR UPDATE SKIP LOCKED */
)
RETURNING *;

-- name: renew_batch_job
UPDATE batch_jobs SET until_us = now_us() + :lease_us
WHERE id = :job AND holder = :holder AND attempt = :attempt AND ended = 0
RETURNING id;

-- name: release_batch_job
UPDATE batch_jobs SET holder = '', until_us = now_us()
WHERE id = :job AND holder = :holder AND attempt = :attempt AND ended = 0
RETURNING id;

-- name: lock_batch_job_to_plan
UPDATE batch_jobs SET ended = ended
WHERE id = :job AND holder = :holder AND attempt = :attempt AND ended = 0 AND planned = 0
RETURNING id;

-- name: is_there_batch_chunk
SELECT 1 FROM batch_chunks WHERE job = :job AND number = :before;

-- name: forget_batch_chunks
DELETE FROM batch_chunks WHERE job = :job AND number >= :first;

-- name: add_batch_chunk
INSERT INTO batch_chunks (job, number, start_byte, end_byte, first_line, row_count)
VALUES (:job, :number, :start_byte, :end_byte, :first_line, :row_count);

-- name: batch_chunks_planned
SELECT COUNT(*), CAST(COALESCE(SUM(row_count), 0) AS BIGINT)
FROM batch_chunks WHERE job = :job;

-- name: plan_batch_job
UPDATE batch_jobs
SET planned = 1,
    holder = '',
    until_us = 0,
    revision = revision + 1,
    chunks = CAST(:chunks AS BIGINT),
    total = :total,
    open_chunks = CASE WHEN ending = 'completed' THEN CAST(:chunks AS BIGINT) ELSE 0 END,
    state = CASE
        WHEN state = 'cancelling' THEN state
        WHEN ending = 'completed' AND CAST(:chunks AS BIGINT) > 0 THEN 'in_progress'
        ELSE 'finalizing'
    END,
    in_progress_at = CASE
        WHEN state <> 'cancelling' AND ending = 'completed' AND CAST(:chunks AS BIGINT) > 0
        THEN now_us() / 1000000
    END,
    finalizing_at = CASE
        WHEN state <> 'cancelling' AND (ending <> 'completed' OR CAST(:chunks AS BIGINT) = 0)
        THEN now_us() / 1000000
    END
WHERE id = :job AND holder = :holder AND attempt = :attempt AND ended = 0 AND planned = 0
RETURNING *;

-- name: skip_batch_chunks
UPDATE batch_chunks SET state = 'skipped'
WHERE job = :job AND state IN ('waiting', 'queued')
RETURNING number;

-- name: cancel_batch_job
-- Rows may have been told as expired before: how they end does not change any more.
UPDATE batch_jobs
SET state = 'cancelling',
    ending = CASE WHEN ending = 'completed' THEN 'cancelled' ELSE ending END,
    cancelling_at = now_us() / 1000000,
    open_chunks = open_chunks - :skipped,
    revision = revision + 1
WHERE id = :job
RETURNING *;

-- name: expired_batch_jobs
-- One that is finalizing has all its answers, and is only written down.
SELECT id FROM batch_jobs
WHERE ended = 0 AND ending = 'completed' AND expires_at <= now_us() / 1000000
    AND state IN ('validating', 'in_progress')
ORDER BY expires_at
LIMIT :limit;

-- name: expire_batch_job
UPDATE batch_jobs
SET ending = 'expired',
    open_chunks = open_chunks - :skipped,
    revision = revision + 1,
    state = CASE
        WHEN planned = 1 AND open_chunks = :skipped THEN 'finalizing' ELSE state
    END,
    finalizing_at = CASE
        WHEN planned = 1 AND open_chunks = :skipped THEN now_us() / 1000000
    END
WHERE id = :job
RETURNING *;

-- name: refuse_batch_job
UPDATE batch_jobs
SET state = 'failed',
    failed_at = now_us() / 1000000,
    problems = :problems,
    holder = '',
    ended = 1,
    revision = revision + 1
WHERE id = :job AND holder = :holder AND attempt = :attempt AND ended = 0 AND planned = 0
RETURNING *;

-- name: finish_batch_job
UPDATE batch_jobs
SET state = ending,
    completed_at = CASE WHEN ending = 'completed' THEN now_us() / 1000000 END,
    expired_at = CASE WHEN ending = 'expired' THEN now_us() / 1000000 END,
    cancelled_at = CASE WHEN ending = 'cancelled' THEN now_us() / 1000000 END,
    failed = :rows_failed,
    output_file = :output_file,
    error_file = :error_file,
    holder = '',
    ended = 1,
    revision = revision + 1
WHERE id = :job AND holder = :holder AND attempt = :attempt AND ended = 0
    AND planned = 1 AND open_chunks = 0
RETURNING *;

-- name: batch_backlog
SELECT
    COUNT(*),
    CAST(COALESCE(SUM(open_chunks), 0) AS BIGINT),
    (SELECT COUNT(*) FROM batch_chunks WHERE state = 'running'),
    COALESCE(now_us() - MIN(created_us), 0)
FROM batch_jobs WHERE ended = 0;
