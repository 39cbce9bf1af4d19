-- name: get_endpoint
SELECT document FROM endpoints WHERE tenant = :tenant AND name = :name;

-- name: put_endpoint
INSERT INTO endpoints (tenant, name, folded_name, created_us, updated_us, document)
VALUES (:tenant, :name, :folded_name, :created_us, :updated_us, :document)
ON CONFLICT (tenant, name) DO UPDATE SET
    created_us = excluded.created_us,
    updated_us = excluded.updated_us,
    document = excluded.document;

-- name: delete_endpoint
DELETE FROM endpoints WHERE tenant = :tenant AND name = :name RETURNING name;

-- name: all_endpoints
SELECT document FROM endpoints;
