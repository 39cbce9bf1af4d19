-- name: get_alias
SELECT document FROM aliases
WHERE tenant = :tenant AND model = :model AND alias = :alias;

-- name: put_alias
INSERT INTO aliases (tenant, model, alias, folded_name, created_us, updated_us, document)
VALUES (:tenant, :model, :alias, :folded_name, :created_us, :updated_us, :document)
ON CONFLICT (tenant, model, alias) DO UPDATE SET
    created_us = excluded.created_us,
    updated_us = excluded.updated_us,
    document = excluded.document;

-- name: delete_alias
DELETE FROM aliases
WHERE tenant = :tenant AND model = :model AND alias = :alias
RETURNING alias;

-- name: all_aliases
SELECT document FROM aliases;
