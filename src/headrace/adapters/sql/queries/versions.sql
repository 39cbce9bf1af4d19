-- name: get_version
SELECT document FROM versions
WHERE tenant = :tenant AND model = :model AND version = :version;

-- name: get_version_by_id
SELECT document FROM versions WHERE tenant = :tenant AND id = :id;

-- name: put_version
INSERT INTO versions (
    tenant, model, version, id, version_rank, folded_name,
    status, framework, artifact_digest, created_us, updated_us, document
)
VALUES (
    :tenant, :model, :version, :id, :version_rank, :folded_name,
    :status, :framework, :artifact_digest, :created_us, :updated_us, :document
)
ON CONFLICT (tenant, model, version) DO UPDATE SET
    id = excluded.id,
    status = excluded.status,
    framework = excluded.framework,
    artifact_digest = excluded.artifact_digest,
    created_us = excluded.created_us,
    updated_us = excluded.updated_us,
    document = excluded.document;

-- name: delete_version
DELETE FROM versions
WHERE tenant = :tenant AND model = :model AND version = :version
RETURNING version;

-- name: clear_version_tags
DELETE FROM version_tags
WHERE tenant = :tenant AND model = :model AND version = :version;

-- name: add_version_tag
INSERT INTO version_tags (tenant, tag, version_rank, model, version)
VALUES (:tenant, :tag, :version_rank, :model, :version);

-- name: artifact_users
SELECT COUNT(*) FROM versions WHERE artifact_digest = :digest;

-- name: all_versions
SELECT document FROM versions WHERE status NOT IN ('archived', 'failed');
