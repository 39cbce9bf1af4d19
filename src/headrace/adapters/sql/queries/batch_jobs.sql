-- name: lock_batch_tenant
INSERT INTO batch_tenants AS present (tenant, turn, job_turn) VALUES (:tenant, 0, 0)
ON CONFLICT (tenant) DO UPDATE SET turn = present.turn;

-- name: batch_quotas_used
SELECT COUNT(*), CAST(COALESCE(SUM(input_bytes), 0) AS BIGINT) FROM batch_jobs
WHERE tenant = :tenant AND ended = 0;

-- name: add_batch_job
-- Its place in line is when it would be planned if its tenant's jobs were planned one after the
-- other, at 10 ms and a second for 10 MB each: so the tenants take turns, however many jobs each of
-- them has, and whoever had little to do has a place near the present. Places are counted 31 years
-- back, as leases that were over then: who may claim what is a question to one column.
INSERT INTO batch_jobs (
    id, tenant, document, input_file, input_key, input_bytes, priority, state, ending,
    created_us, expires_at, since_us, holder, attempt, until_us, place_us
)
SELECT
    :id, :tenant, :document, :input_file, :input_key, CAST(:input_bytes AS BIGINT), :priority,
    'validating', 'completed', now_us(), now_us() / 1000000 + :window_s, now_us(),
    :holder, CAST(:attempt AS BIGINT),
    CASE
        WHEN CAST(:attempt AS BIGINT) = 0 THEN line.place_us
        ELSE now_us() + CAST(:lease_us AS BIGINT)
    END,
    line.place_us
FROM (
    SELECT 10000 + CAST(:input_bytes AS BIGINT) / 10 + COALESCE(
        (
            SELECT MAX(place_us) FROM batch_jobs
            WHERE tenant = :tenant AND planned = 0 AND ended = 0
                AND place_us > now_us() - 1000000000000000
        ),
        now_us() - 1000000000000000
    ) AS place_us
) AS line
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
    AND (input_bytes <= :most_bytes OR (planned = 0 AND ending <> 'completed'))
LIMIT 1;

-- name: claim_batch_job
-- First those to finish, by their small numbers, then those to plan by their places. One that was
-- handed back goes behind those that nobody has had yet.
UPDATE batch_jobs
SET holder = :holder, attempt = attempt + 1, until_us = now_us() + :lease_us, since_us = now_us()
WHERE sequence = (
    SELECT sequence FROM batch_jobs
    WHERE ended = 0 AND open_chunks = 0 AND until_us <= now_us()
        AND (input_bytes <= :most_bytes OR (planned = 0 AND ending <> 'completed'))
    ORDER BY until_us, sequence
    LIMIT 1
    /* on postgres: FOR UPDATE SKIP LOCKED */
)
RETURNING *;

-- name: claim_batch_job_to_finish
UPDATE batch_jobs
SET holder = :holder, attempt = attempt + 1, until_us = now_us() + :lease_us, since_us = now_us()
WHERE id = :job AND ended = 0 AND open_chunks = 0 AND until_us <= now_us()
RETURNING *;

-- name: begin_batch_jobs_anew
-- As begin_batch_chunks_anew does.
UPDATE batch_jobs SET until_us = until_us - since_us + now_us(), since_us = now_us()
WHERE sequence IN (
    SELECT sequence FROM batch_jobs
    WHERE ended = 0 AND open_chunks = 0
        AND until_us > now_us() AND since_us > now_us() + 1000000
    /* on postgres: FOR UPDATE SKIP LOCKED */
)
RETURNING id;

-- name: renew_batch_job
UPDATE batch_jobs
SET until_us = now_us() + :lease_us, since_us = now_us(), failures = failures + :failed
WHERE id = :job AND holder = :holder AND attempt = :attempt AND ended = 0
RETURNING id;

-- name: release_batch_job
UPDATE batch_jobs SET holder = '', until_us = now_us(), since_us = now_us()
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
    failures = 0,
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
        THEN stamp_s()
    END,
    finalizing_at = CASE
        WHEN state <> 'cancelling' AND (ending <> 'completed' OR CAST(:chunks AS BIGINT) = 0)
        THEN stamp_s()
    END
WHERE id = :job AND holder = :holder AND attempt = :attempt AND ended = 0 AND planned = 0
RETURNING *;

-- name: skip_batch_chunks
UPDATE batch_chunks SET state = 'skipped'
WHERE job = :job AND state IN ('waiting', 'queued')
RETURNING number;

-- name: cancel_batch_job
UPDATE batch_jobs
SET state = 'cancelling',
    ending = 'cancelled',
    cancelling_at = stamp_s(),
    open_chunks = open_chunks - :skipped,
    -- there is nothing to plan of it any more, which takes no time, or it may be to be finished
    until_us = CASE
        WHEN until_us > now_us() THEN until_us
        WHEN planned = 0 THEN 0
        ELSE (
            SELECT COUNT(*) FROM batch_jobs AS beside
            WHERE beside.tenant = batch_jobs.tenant
                AND beside.planned = 1 AND beside.ended = 0 AND beside.open_chunks = 0
        )
    END,
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
    -- there is nothing to plan of it any more, which takes no time, or it may be to be finished
    until_us = CASE
        WHEN until_us > now_us() THEN until_us
        WHEN planned = 0 THEN 0
        ELSE (
            SELECT COUNT(*) FROM batch_jobs AS beside
            WHERE beside.tenant = batch_jobs.tenant
                AND beside.planned = 1 AND beside.ended = 0 AND beside.open_chunks = 0
        )
    END,
    revision = revision + 1,
    state = CASE
        WHEN planned = 1 AND open_chunks = :skipped THEN 'finalizing' ELSE state
    END,
    finalizing_at = CASE
        WHEN planned = 1 AND open_chunks = :skipped THEN stamp_s()
    END
WHERE id = :job
RETURNING *;

-- name: refuse_batch_job
UPDATE batch_jobs
SET state = 'failed',
    failed_at = stamp_s(),
    problems = :problems,
    holder = '',
    ended = 1,
    revision = revision + 1
WHERE id = :job AND holder = :holder AND attempt = :attempt AND ended = 0 AND planned = 0
RETURNING *;

-- name: finish_batch_job
UPDATE batch_jobs
SET state = CASE WHEN :is_whole = 1 THEN ending ELSE 'failed' END,
    completed_at = CASE
        WHEN :is_whole = 1 AND ending = 'completed' THEN stamp_s()
    END,
    expired_at = CASE WHEN :is_whole = 1 AND ending = 'expired' THEN stamp_s() END,
    cancelled_at = CASE WHEN :is_whole = 1 AND ending = 'cancelled' THEN stamp_s() END,
    failed_at = CASE WHEN :is_whole = 0 THEN stamp_s() END,
    problems = :problems,
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
