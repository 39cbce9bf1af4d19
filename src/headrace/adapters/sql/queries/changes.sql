-- name: begin_revision
-- The row's lock is what transactions wait for, and it comes with the next revision.
UPDATE registry_state SET revision = revision + 1 RETURNING revision;

-- name: take_turn
-- The same lock without a revision.
UPDATE registry_state SET revision = revision;

-- name: revision
SELECT revision FROM registry_state;

-- name: log_change
INSERT INTO changes (kind, key, revision) VALUES (:kind, :key, :revision)
ON CONFLICT (kind, key) DO UPDATE SET revision = excluded.revision;

-- name: changes_since
-- A revision is never cut in two: after the limit comes the rest of its last revision.
SELECT state.revision, state.forgotten, changes.revision, changes.kind, changes.key
FROM registry_state AS state
LEFT JOIN changes
    ON changes.revision > :since
    AND changes.revision <= COALESCE(
        (
            SELECT last.revision FROM changes AS last
            WHERE last.revision > :since
            ORDER BY last.revision
            LIMIT 1 OFFSET :limit - 1
        ),
        state.revision
    )
ORDER BY changes.revision, changes.kind, changes.key;

-- name: oldest_to_forget
-- The newest revision of which no change is kept any more, if there are more than :keep.
SELECT revision FROM changes ORDER BY revision DESC LIMIT 1 OFFSET :keep;

-- name: forget_changes
DELETE FROM changes WHERE revision <= :revision;

-- name: remember_forgetting
UPDATE registry_state SET forgotten = :revision;
