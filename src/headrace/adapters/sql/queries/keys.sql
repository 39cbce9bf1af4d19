-- name: get_key
SELECT document FROM api_keys WHERE tenant = :tenant AND id = :id;

-- name: put_key
INSERT INTO api_keys (tenant, id, name, folded_name, created_us, updated_us, document)
VALUES (:tenant, :id, :name, :folded_name, :created_us, :updated_us, :document)
ON CONFLICT (tenant, id) DO UPDATE SET
    name = excluded.name,
    folded_name = excluded.folded_name,
    created_us = excluded.created_us,
    updated_us = excluded.updated_us,
    document = excluded.document;

-- name: delete_key
DELETE FROM api_keys WHERE tenant = :tenant AND id = :id RETURNING id;

-- name: all_keys
SELECT document FROM api_keys;

-- name: add_key_usage
INSERT INTO api_key_usage AS present (tenant, id, last_used_us)
SELECT tenant, id, CAST(:last_used_us AS BIGINT) FROM api_keys WHERE tenant = :tenant AND id = :id
ON CONFLICT (tenant, id) DO UPDATE SET last_used_us = excluded.last_used_us
WHERE excluded.last_used_us > present.last_used_us;
