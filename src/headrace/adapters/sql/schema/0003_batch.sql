-- Batch: files, jobs, chunks, and the objects that nobody needs any more.
--
-- Columns called _us are microseconds, those called _at seconds since 1970, by the database's
-- clock. New columns are added at the end: rows are read by the order of their columns.

CREATE TABLE batch_files (
-- on sqlite:
    sequence   INTEGER PRIMARY KEY,  -- the order of creation
-- on postgres:
    sequence   BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
-- on both:
    id         TEXT COLLATE "C" NOT NULL,
    tenant     TEXT COLLATE "C" NOT NULL,
    purpose    TEXT COLLATE "C" NOT NULL,
    filename   TEXT COLLATE "C" NOT NULL,  -- JSON: names may hold anything
    size_bytes BIGINT NOT NULL,
    key        TEXT COLLATE "C" NOT NULL,  -- of the object
    created_at BIGINT NOT NULL,
    expires_at BIGINT
);
CREATE UNIQUE INDEX batch_files_by_id ON batch_files (id);
CREATE INDEX batch_files_of_tenant ON batch_files (tenant, sequence);
CREATE INDEX batch_files_by_key ON batch_files (key);
-- What a tenant stores is added up from it alone.
CREATE INDEX batch_files_stored ON batch_files (tenant, expires_at, size_bytes);
CREATE INDEX batch_files_by_end ON batch_files (expires_at) WHERE expires_at IS NOT NULL;

-- Objects that may be removed. What a file or a job turns out to need is taken off it again.
CREATE TABLE batch_garbage (
    key TEXT COLLATE "C" NOT NULL PRIMARY KEY  -- with a slash at its end: all below it
);

-- Whose rows are locked where a tenant's jobs are counted.
CREATE TABLE batch_tenants (
    tenant   TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    turn     DOUBLE PRECISION NOT NULL,  -- how much it has had: see job_turns.py
    job_turn DOUBLE PRECISION NOT NULL   -- where those of its jobs begin that come anew
);

-- One row. Whoever queues chunks locks it, so that no two fill the same window.
CREATE TABLE batch_dispatch (
    id   INTEGER PRIMARY KEY CHECK (id = 1),
    turn DOUBLE PRECISION NOT NULL  -- where tenants begin that come anew
);
INSERT INTO batch_dispatch (id, turn) VALUES (1, 0);

CREATE TABLE batch_jobs (
-- on sqlite:
    sequence       INTEGER PRIMARY KEY,  -- the order of creation
-- on postgres:
    sequence       BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
-- on both:
    id             TEXT COLLATE "C" NOT NULL,
    tenant         TEXT COLLATE "C" NOT NULL,
    document       TEXT NOT NULL,  -- the job as it was created, as JSON
    input_file     TEXT COLLATE "C" NOT NULL,
    input_key      TEXT COLLATE "C" NOT NULL,
    input_bytes    BIGINT NOT NULL,
    priority       INTEGER NOT NULL,
    state          TEXT COLLATE "C" NOT NULL,
    ending         TEXT COLLATE "C" NOT NULL,
    total          BIGINT NOT NULL DEFAULT 0,
    completed      BIGINT NOT NULL DEFAULT 0,
    failed         BIGINT NOT NULL DEFAULT 0,
    chunks         BIGINT NOT NULL DEFAULT 0,
    open_chunks    BIGINT NOT NULL DEFAULT 0,
    output_file    TEXT COLLATE "C" NOT NULL DEFAULT '',
    error_file     TEXT COLLATE "C" NOT NULL DEFAULT '',
    problems       TEXT NOT NULL DEFAULT '[]',  -- JSON
    created_us     BIGINT NOT NULL,
    expires_at     BIGINT NOT NULL,
    in_progress_at BIGINT,
    finalizing_at  BIGINT,
    completed_at   BIGINT,
    failed_at      BIGINT,
    expired_at     BIGINT,
    cancelling_at  BIGINT,
    cancelled_at   BIGINT,
    revision       BIGINT NOT NULL DEFAULT 1,
    planned        INTEGER NOT NULL DEFAULT 0,  -- 1: its chunks are complete
    ended          INTEGER NOT NULL DEFAULT 0,  -- 1: nothing will change any more
    holder         TEXT COLLATE "C" NOT NULL DEFAULT '',  -- who plans or finishes it
    attempt        BIGINT NOT NULL DEFAULT 0,  -- the fence
    until_us       BIGINT NOT NULL DEFAULT 0,  -- of the lease
    turn           DOUBLE PRECISION NOT NULL DEFAULT 0,  -- how much it has had
    since_us       BIGINT NOT NULL DEFAULT 0,  -- when the lease was last written
    failures       BIGINT NOT NULL DEFAULT 0,  -- to plan it, and then to finish it
    place_us       BIGINT NOT NULL DEFAULT 0  -- in line to be planned: see add_batch_job
);
CREATE UNIQUE INDEX batch_jobs_by_id ON batch_jobs (id);
CREATE INDEX batch_jobs_of_tenant ON batch_jobs (tenant, sequence);
CREATE INDEX batch_jobs_by_state ON batch_jobs (tenant, state, sequence);
CREATE INDEX batch_jobs_under_way ON batch_jobs (tenant) WHERE ended = 0;
CREATE INDEX batch_jobs_by_input ON batch_jobs (input_file) WHERE ended = 0;
CREATE INDEX batch_jobs_by_object ON batch_jobs (input_key) WHERE ended = 0;
CREATE INDEX batch_jobs_by_end ON batch_jobs (expires_at) WHERE ended = 0 AND ending = 'completed';
-- To plan, or to finish: neither has open chunks.
CREATE INDEX batch_jobs_to_claim ON batch_jobs (until_us, sequence)
    WHERE ended = 0 AND open_chunks = 0;
CREATE INDEX batch_jobs_to_finish ON batch_jobs (tenant)
    WHERE planned = 1 AND ended = 0 AND open_chunks = 0;
CREATE INDEX batch_jobs_in_line ON batch_jobs (tenant, place_us)
    WHERE planned = 0 AND ended = 0;
CREATE INDEX batch_jobs_by_turn ON batch_jobs (tenant, turn, sequence)
    WHERE state = 'in_progress' AND ending = 'completed';

CREATE TABLE batch_chunks (
    job           TEXT COLLATE "C" NOT NULL,
    number        BIGINT NOT NULL,  -- 0 is the first; a rest has the next one that is free
    start_byte    BIGINT NOT NULL,
    end_byte      BIGINT NOT NULL,
    first_line    BIGINT NOT NULL,
    row_count     BIGINT NOT NULL,
    state         TEXT COLLATE "C" NOT NULL DEFAULT 'waiting',
    attempt       BIGINT NOT NULL DEFAULT 0,  -- the fence
    failures      BIGINT NOT NULL DEFAULT 0,
    story         TEXT NOT NULL DEFAULT '[]',  -- JSON
    completed     BIGINT,  -- rows; NULL until it is done
    failed        BIGINT,
    output_key    TEXT COLLATE "C" NOT NULL DEFAULT '',
    output_bytes  BIGINT NOT NULL DEFAULT 0,
    errors_key    TEXT COLLATE "C" NOT NULL DEFAULT '',
    errors_bytes  BIGINT NOT NULL DEFAULT 0,
    holder        TEXT COLLATE "C" NOT NULL DEFAULT '',
    until_us      BIGINT NOT NULL DEFAULT 0,  -- of the lease
    queued_by     TEXT COLLATE "C" NOT NULL DEFAULT '',
    queued_us     BIGINT NOT NULL DEFAULT 0,
    patience      BIGINT NOT NULL DEFAULT 1,  -- times the usual wait before it is queued once more
    not_before_us BIGINT NOT NULL DEFAULT 0,  -- it waits until then at least
    since_us      BIGINT NOT NULL DEFAULT 0,  -- when the times above were last written
    PRIMARY KEY (job, number)
);
-- The file's order, by which they are read.
CREATE UNIQUE INDEX batch_chunks_in_order ON batch_chunks (job, start_byte);
CREATE INDEX batch_chunks_waiting ON batch_chunks (job, number) WHERE state = 'waiting';
CREATE INDEX batch_chunks_queued ON batch_chunks (queued_us) WHERE state = 'queued';
CREATE INDEX batch_chunks_running ON batch_chunks (until_us) WHERE state = 'running';
CREATE INDEX batch_chunks_delayed ON batch_chunks (not_before_us)
    WHERE state = 'waiting' AND not_before_us > 0;
