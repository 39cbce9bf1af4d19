-- The registry: models, versions, aliases, endpoints, routes, keys, changes, audit, usage.
--
-- Written in what SQLite (3.35) and PostgreSQL (13) have in common; what only one of them is to
-- run stands between `-- on sqlite:` or `-- on postgres:` and `-- on both:`. SQLite reads
-- COLLATE "C" as COLLATE BINARY: text sorts by code point on both. Times are microseconds since
-- 1970-01-01 UTC. `document` is the entity as JSON; the other columns are what it is found and
-- sorted by.

-- One row. Every transaction updates it first, so that transactions follow one another.
CREATE TABLE registry_state (
    id        INTEGER PRIMARY KEY CHECK (id = 1),
    revision  BIGINT NOT NULL,  -- of the newest transaction
    forgotten BIGINT NOT NULL   -- changes up to this revision are no longer known
);
INSERT INTO registry_state (id, revision, forgotten) VALUES (1, 0, 0);

CREATE TABLE models (
    tenant      TEXT COLLATE "C" NOT NULL,
    name        TEXT COLLATE "C" NOT NULL,
    id          TEXT COLLATE "C" NOT NULL,
    folded_name TEXT COLLATE "C" NOT NULL,  -- without case, for searching
    created_us  BIGINT NOT NULL,
    updated_us  BIGINT NOT NULL,
    document    TEXT NOT NULL,
    PRIMARY KEY (tenant, name)
);
CREATE UNIQUE INDEX models_by_id ON models (id);
-- With the name to search for, so that a search reads the rows that it finds and no others.
CREATE INDEX models_by_name ON models (tenant, name, folded_name);
CREATE INDEX models_by_creation ON models (tenant, created_us, name);
CREATE INDEX models_by_update ON models (tenant, updated_us, name);

CREATE TABLE model_tags (
    tenant TEXT COLLATE "C" NOT NULL,
    tag    TEXT COLLATE "C" NOT NULL,
    name   TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (tenant, tag, name),
    FOREIGN KEY (tenant, name) REFERENCES models (tenant, name) ON DELETE CASCADE
);
CREATE INDEX model_tags_by_model ON model_tags (tenant, name);

CREATE TABLE versions (
    tenant          TEXT COLLATE "C" NOT NULL,
    model           TEXT COLLATE "C" NOT NULL,
    version         TEXT COLLATE "C" NOT NULL,
    id              TEXT COLLATE "C" NOT NULL,
    version_rank    TEXT COLLATE "C" NOT NULL,  -- sorts numbers by value
    folded_name     TEXT COLLATE "C" NOT NULL,
    status          TEXT COLLATE "C" NOT NULL,
    framework       TEXT COLLATE "C" NOT NULL,
    artifact_digest TEXT COLLATE "C" NOT NULL,  -- '' where there is no artifact yet
    created_us      BIGINT NOT NULL,
    updated_us      BIGINT NOT NULL,
    document        TEXT NOT NULL,
    PRIMARY KEY (tenant, model, version)
);
CREATE UNIQUE INDEX versions_by_id ON versions (id);
CREATE INDEX versions_of_model ON versions (tenant, model, version_rank);
CREATE INDEX versions_by_rank ON versions (tenant, version_rank, model, folded_name);
CREATE INDEX versions_by_status ON versions (tenant, status, version_rank, model);
CREATE INDEX versions_by_creation ON versions (tenant, created_us, model, version_rank);
CREATE INDEX versions_by_update ON versions (tenant, updated_us, model, version_rank);
CREATE INDEX versions_by_artifact ON versions (artifact_digest);

CREATE TABLE version_tags (
    tenant       TEXT COLLATE "C" NOT NULL,
    tag          TEXT COLLATE "C" NOT NULL,
    version_rank TEXT COLLATE "C" NOT NULL,
    model        TEXT COLLATE "C" NOT NULL,
    version      TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (tenant, tag, version_rank, model),
    FOREIGN KEY (tenant, model, version)
        REFERENCES versions (tenant, model, version) ON DELETE CASCADE
);
CREATE INDEX version_tags_by_version ON version_tags (tenant, model, version);

CREATE TABLE aliases (
    tenant      TEXT COLLATE "C" NOT NULL,
    model       TEXT COLLATE "C" NOT NULL,
    alias       TEXT COLLATE "C" NOT NULL,
    folded_name TEXT COLLATE "C" NOT NULL,
    created_us  BIGINT NOT NULL,
    updated_us  BIGINT NOT NULL,
    document    TEXT NOT NULL,
    PRIMARY KEY (tenant, model, alias)
);
CREATE INDEX aliases_by_name ON aliases (tenant, alias, model);
CREATE INDEX aliases_by_creation ON aliases (tenant, created_us, model, alias);
CREATE INDEX aliases_by_update ON aliases (tenant, updated_us, model, alias);

CREATE TABLE endpoints (
    tenant      TEXT COLLATE "C" NOT NULL,
    name        TEXT COLLATE "C" NOT NULL,
    folded_name TEXT COLLATE "C" NOT NULL,
    created_us  BIGINT NOT NULL,
    updated_us  BIGINT NOT NULL,
    document    TEXT NOT NULL,
    PRIMARY KEY (tenant, name)
);
CREATE INDEX endpoints_by_creation ON endpoints (tenant, created_us, name);
CREATE INDEX endpoints_by_update ON endpoints (tenant, updated_us, name);

CREATE TABLE routes (
    tenant      TEXT COLLATE "C" NOT NULL,
    name        TEXT COLLATE "C" NOT NULL,
    folded_name TEXT COLLATE "C" NOT NULL,
    created_us  BIGINT NOT NULL,
    updated_us  BIGINT NOT NULL,
    document    TEXT NOT NULL,
    PRIMARY KEY (tenant, name)
);
CREATE INDEX routes_by_creation ON routes (tenant, created_us, name);
CREATE INDEX routes_by_update ON routes (tenant, updated_us, name);

CREATE TABLE api_keys (
    tenant      TEXT COLLATE "C" NOT NULL,
    id          TEXT COLLATE "C" NOT NULL,
    name        TEXT COLLATE "C" NOT NULL,
    folded_name TEXT COLLATE "C" NOT NULL,
    created_us  BIGINT NOT NULL,
    updated_us  BIGINT NOT NULL,
    document    TEXT NOT NULL,
    PRIMARY KEY (tenant, id)
);
CREATE INDEX api_keys_by_name ON api_keys (tenant, name, id);
CREATE INDEX api_keys_by_creation ON api_keys (tenant, created_us, id);
CREATE INDEX api_keys_by_update ON api_keys (tenant, updated_us, id);

-- Each key once, with the revision that wrote or deleted it last.
CREATE TABLE changes (
    kind     TEXT COLLATE "C" NOT NULL,
    key      TEXT COLLATE "C" NOT NULL,  -- a JSON array
    revision BIGINT NOT NULL,
    PRIMARY KEY (kind, key)
);
CREATE INDEX changes_by_revision ON changes (revision);

CREATE TABLE audit_events (
    sequence  BIGINT PRIMARY KEY,
    tenant    TEXT COLLATE "C" NOT NULL,
    at_us     BIGINT NOT NULL,
    principal TEXT COLLATE "C" NOT NULL,
    action    TEXT COLLATE "C" NOT NULL,
    subject   TEXT COLLATE "C" NOT NULL,
    document  TEXT NOT NULL
);
CREATE INDEX audit_events_of_tenant ON audit_events (tenant, sequence);
CREATE INDEX audit_events_by_time ON audit_events (tenant, at_us);
CREATE INDEX audit_events_by_principal ON audit_events (tenant, principal, sequence);
CREATE INDEX audit_events_by_action ON audit_events (tenant, action, sequence);
CREATE INDEX audit_events_by_subject ON audit_events (tenant, subject, sequence);

-- on sqlite:
CREATE TRIGGER audit_events_are_not_changed BEFORE UPDATE ON audit_events
BEGIN
    SELECT RAISE(ABORT, 'audit events are only ever added');
END;
CREATE TRIGGER audit_events_are_not_deleted BEFORE DELETE ON audit_events
BEGIN
    SELECT RAISE(ABORT, 'audit events are only ever added');
END;
-- on postgres:
CREATE FUNCTION refuse_to_change_audit_events() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'audit events are only ever added'; END $$;
CREATE TRIGGER audit_events_are_only_added BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_change_audit_events();
-- on both:

CREATE TABLE version_usage (
    tenant       TEXT COLLATE "C" NOT NULL,
    model        TEXT COLLATE "C" NOT NULL,
    version      TEXT COLLATE "C" NOT NULL,
    requests     BIGINT NOT NULL,
    errors       BIGINT NOT NULL,
    latency_s    DOUBLE PRECISION NOT NULL,
    last_used_us BIGINT,
    PRIMARY KEY (tenant, model, version),
    FOREIGN KEY (tenant, model, version)
        REFERENCES versions (tenant, model, version) ON DELETE CASCADE
);

-- The latency buckets that anything was counted in, by their place in BOUNDS_S.
CREATE TABLE version_usage_buckets (
    tenant   TEXT COLLATE "C" NOT NULL,
    model    TEXT COLLATE "C" NOT NULL,
    version  TEXT COLLATE "C" NOT NULL,
    bucket   INTEGER NOT NULL,
    requests BIGINT NOT NULL,
    PRIMARY KEY (tenant, model, version, bucket),
    FOREIGN KEY (tenant, model, version)
        REFERENCES version_usage (tenant, model, version) ON DELETE CASCADE
);
