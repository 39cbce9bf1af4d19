-- name: get_model
SELECT document FROM models WHERE tenant = :tenant AND name = :name;

-- name: get_model_by_id
SELECT document FROM models WHERE tenant = :tenant AND id = :id;

-- name: put_model
INSERT INTO models (tenant, name, id, folded_name, created_us, updated_us, document)
VALUES (:tenant, :name, :id, :folded_name, :created_us, :updated_us, :document)
ON CONFLICT (tenant, name) DO UPDATE SET
    id = excluded.id,
    created_us = excluded.created_us,
    updated_us = excluded.updated_us,
    document = excluded.document;

-- name: delete_model
DELETE FROM models WHERE tenant = :tenant AND name = :name RETURNING name;

-- name: clear_model_tags
DELETE FROM model_tags WHERE tenant = :tenant AND name = :name;

-- name: add_model_tag
INSERT INTO model_tags (tenant, tag, name) VALUES (:tenant, :tag, :name);

-- name: delete_versions_of_model
DELETE FROM versions WHERE tenant = :tenant AND model = :model RETURNING version;

-- name: delete_aliases_of_model
DELETE FROM aliases WHERE tenant = :tenant AND model = :model RETURNING alias;

-- name: all_models
SELECT document FROM models;
