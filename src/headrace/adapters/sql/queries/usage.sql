-- name: add_usage
INSERT INTO version_usage AS present (
    tenant, model, version, requests, errors, latency_s, last_used_us
)
SELECT tenant, model, version,
    CAST(:requests AS BIGINT), CAST(:errors AS BIGINT),
    CAST(:latency_s AS DOUBLE PRECISION), CAST(:last_used_us AS BIGINT)
FROM versions
WHERE tenant = :tenant AND model = :model AND version = :version
ON CONFLICT (tenant, model, version) DO UPDATE SET
    requests = present.requests + excluded.requests,
    errors = present.errors + excluded.errors,
    latency_s = present.latency_s + excluded.latency_s,
    last_used_us = CASE
        WHEN present.last_used_us IS NULL OR excluded.last_used_us > present.last_used_us
        THEN excluded.last_used_us
        ELSE present.last_used_us
    END;

-- name: add_usage_bucket
INSERT INTO version_usage_buckets AS present (tenant, model, version, bucket, requests)
SELECT tenant, model, version, CAST(:bucket AS INTEGER), CAST(:requests AS BIGINT)
FROM version_usage
WHERE tenant = :tenant AND model = :model AND version = :version
ON CONFLICT (tenant, model, version, bucket) DO UPDATE SET
    requests = present.requests + excluded.requests;

-- name: usage_of_model
SELECT
    total.version, total.requests, total.errors, total.latency_s, total.last_used_us,
    part.bucket, part.requests
FROM version_usage AS total
LEFT JOIN version_usage_buckets AS part
    ON part.tenant = total.tenant
    AND part.model = total.model
    AND part.version = total.version
WHERE total.tenant = :tenant AND total.model = :model
ORDER BY total.version, part.bucket;
