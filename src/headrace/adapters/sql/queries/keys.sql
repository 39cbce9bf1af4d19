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
