-- name: claim_idempotency_key
-- A key that nobody has, or whose time is over: of those who ask at once, one gets a row.
INSERT INTO idempotency_keys AS present (
    tenant, principal, key, request, holder, until_us, answer
)
VALUES (:tenant, :principal, :key, :request, :holder, :until_us, NULL)
ON CONFLICT (tenant, principal, key) DO UPDATE SET
    request = excluded.request,
    holder = excluded.holder,
    until_us = excluded.until_us,
    done_until_us = NULL,
    answer = NULL
WHERE present.until_us <= :now_us AND COALESCE(present.done_until_us, 0) <= :now_us
RETURNING holder;

-- name: idempotency_key
SELECT request, answer, until_us FROM idempotency_keys
WHERE tenant = :tenant AND principal = :principal AND key = :key;

-- name: renew_idempotency_key
UPDATE idempotency_keys SET until_us = :until_us
WHERE tenant = :tenant AND principal = :principal AND key = :key
    AND holder = :holder AND answer IS NULL;

-- name: carry_out_idempotent_request
-- The row stays locked to the end of the change: nobody takes it over in between.
UPDATE idempotency_keys SET done_until_us = :until_us
WHERE tenant = :tenant AND principal = :principal AND key = :key
    AND holder = :holder AND answer IS NULL
RETURNING holder;

-- name: keep_idempotent_answer
UPDATE idempotency_keys SET until_us = :until_us, answer = :answer
WHERE tenant = :tenant AND principal = :principal AND key = :key
    AND holder = :holder AND answer IS NULL;

-- name: release_idempotency_key
DELETE FROM idempotency_keys
WHERE tenant = :tenant AND principal = :principal AND key = :key
    AND holder = :holder AND answer IS NULL AND done_until_us IS NULL;

-- name: end_idempotency_lease
-- Of what was carried out: a repeat learns at once that no answer will come.
UPDATE idempotency_keys SET until_us = 0
WHERE tenant = :tenant AND principal = :principal AND key = :key
    AND holder = :holder AND answer IS NULL;

-- name: forget_idempotency_keys
DELETE FROM idempotency_keys
WHERE until_us <= :now_us AND COALESCE(done_until_us, 0) <= :now_us;
