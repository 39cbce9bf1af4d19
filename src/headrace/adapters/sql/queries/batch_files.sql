-- name: add_batch_file
INSERT INTO batch_files (
    id, tenant, purpose, filename, size_bytes, key, created_at, expires_at
)
VALUES (
    :id, :tenant, :purpose, :filename, :size_bytes, :key, now_us() / 1000000, :expires_at
)
RETURNING *;

-- name: batch_files_stored
-- The time is asked for once: a tenant may have many files.
SELECT COUNT(*), CAST(COALESCE(SUM(size_bytes), 0) AS BIGINT) FROM batch_files
WHERE tenant = :tenant
    AND (expires_at IS NULL OR expires_at > (SELECT now_us() / 1000000));

-- name: batch_file
SELECT * FROM batch_files
WHERE tenant = :tenant AND id = :id
    AND (expires_at IS NULL OR expires_at > now_us() / 1000000);

-- name: lock_batch_file
-- So that it is not deleted while a job begins to read it, and the other way round.
UPDATE batch_files SET key = key
WHERE tenant = :tenant AND id = :id
    AND (expires_at IS NULL OR expires_at > now_us() / 1000000)
RETURNING key;

-- name: delete_batch_file
DELETE FROM batch_files
WHERE tenant = :tenant AND id = :id
    AND NOT EXISTS (SELECT 1 FROM batch_jobs WHERE input_file = :id AND ended = 0)
RETURNING key;

-- name: is_there_batch_garbage
SELECT 1
WHERE EXISTS (SELECT 1 FROM batch_garbage)
    OR EXISTS (
        SELECT 1 FROM batch_files
        WHERE expires_at IS NOT NULL AND expires_at <= now_us() / 1000000
    );

-- name: delete_expired_batch_files
DELETE FROM batch_files
WHERE sequence IN (
    SELECT sequence FROM batch_files
    WHERE expires_at IS NOT NULL AND expires_at <= now_us() / 1000000
    ORDER BY expires_at
    LIMIT :limit
)
RETURNING key;

-- name: add_batch_garbage
INSERT INTO batch_garbage (key) VALUES (:key) ON CONFLICT (key) DO NOTHING;

-- name: add_batch_input_garbage
-- What a job that ends has read, where its file has gone before.
INSERT INTO batch_garbage (key)
SELECT input_key FROM batch_jobs
WHERE id = :job
    AND NOT EXISTS (SELECT 1 FROM batch_files WHERE batch_files.key = batch_jobs.input_key)
ON CONFLICT (key) DO NOTHING;

-- name: keep_needed_batch_objects
-- Whatever needs one now says so again when it needs it no longer.
DELETE FROM batch_garbage
WHERE EXISTS (SELECT 1 FROM batch_files WHERE batch_files.key = batch_garbage.key)
    OR EXISTS (
        SELECT 1 FROM batch_jobs WHERE batch_jobs.input_key = batch_garbage.key AND ended = 0
    );

-- name: batch_garbage
SELECT key FROM batch_garbage ORDER BY key LIMIT :limit;

-- name: forget_batch_garbage
DELETE FROM batch_garbage WHERE key = :key;

-- name: needed_batch_objects
-- Behind `asked (key, job)`: see job_files.py.
SELECT key FROM asked
WHERE EXISTS (SELECT 1 FROM batch_files WHERE batch_files.key = asked.key)
    OR EXISTS (SELECT 1 FROM batch_jobs WHERE input_key = asked.key AND ended = 0)
    OR EXISTS (SELECT 1 FROM batch_jobs WHERE batch_jobs.id = asked.job AND ended = 0);

-- name: batch_database
SELECT applied_at FROM schema_version WHERE version = 1;
