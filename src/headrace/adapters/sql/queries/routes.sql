-- name: get_route
SELECT document FROM routes WHERE tenant = :tenant AND name = :name;

-- name: put_route
INSERT INTO routes (tenant, name, folded_name, created_us, updated_us, document)
VALUES (:tenant, :name, :folded_name, :created_us, :updated_us, :document)
ON CONFLICT (tenant, name) DO UPDATE SET
    created_us = excluded.created_us,
    updated_us = excluded.updated_us,
    document = excluded.document;

-- name: delete_route
DELETE FROM routes WHERE tenant = :tenant AND name = :name RETURNING name;

-- name: all_routes
SELECT document FROM routes;
