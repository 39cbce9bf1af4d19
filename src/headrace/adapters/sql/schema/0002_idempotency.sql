-- Idempotency keys with the answers that were given, and when API keys were last used.

CREATE TABLE idempotency_keys (
    tenant    TEXT COLLATE "C" NOT NULL,
    principal TEXT COLLATE "C" NOT NULL,
    key       TEXT COLLATE "C" NOT NULL,
    request   TEXT COLLATE "C" NOT NULL,  -- SHA-256 of the request that came first
    holder    TEXT COLLATE "C" NOT NULL,  -- who alone may answer
    until_us  BIGINT NOT NULL,  -- by the database's clock: of the lease, then of the answer
    done_until_us BIGINT,       -- how long it is known that it was carried out; NULL until it was
    answer    TEXT,             -- JSON; NULL until there is one
    PRIMARY KEY (tenant, principal, key)
);
CREATE INDEX idempotency_keys_by_end ON idempotency_keys (until_us);

-- Beside the keys and not in them: a use is no change of a key.
CREATE TABLE api_key_usage (
    tenant       TEXT COLLATE "C" NOT NULL,
    id           TEXT COLLATE "C" NOT NULL,
    last_used_us BIGINT NOT NULL,
    PRIMARY KEY (tenant, id),
    FOREIGN KEY (tenant, id) REFERENCES api_keys (tenant, id) ON DELETE CASCADE
);
