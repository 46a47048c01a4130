-- The ledger and what belongs to it, and the default target. Names: DESIGN.md, section 6.
-- Text that ids and keys are compared by is COLLATE "C": the flusher orders keys by their bytes.

CREATE TABLE counterd.namespaces (
    namespace  text COLLATE "C" PRIMARY KEY,
    shards     integer NOT NULL CHECK (shards > 0),
    created_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE counterd.namespaces IS 'One row per pipeline; the number of shards is fixed for its life';

CREATE TABLE counterd.shards (
    namespace         text COLLATE "C" NOT NULL REFERENCES counterd.namespaces,
    shard             integer NOT NULL,
    head_gen          text COLLATE "C" NOT NULL DEFAULT '',
    cumulative_total  bigint NOT NULL DEFAULT 0,
    cumulative_events bigint NOT NULL DEFAULT 0,
    applied_at        timestamptz,
    fresh_until       timestamptz,
    PRIMARY KEY (namespace, shard)
) WITH (fillfactor = 20);
COMMENT ON TABLE counterd.shards IS 'The row that a flush locks; head_gen is the newest generation in the ledger';

CREATE TABLE counterd.ledger (
    namespace         text COLLATE "C" NOT NULL,
    gen               text COLLATE "C" NOT NULL,
    shard             integer NOT NULL,
    prev_gen          text COLLATE "C" NOT NULL,
    identity          jsonb NOT NULL,
    keys              bigint NOT NULL,
    total             bigint NOT NULL,
    events            bigint NOT NULL,
    accepted_at_seal  bigint NOT NULL,
    cumulative_total  bigint NOT NULL,
    cumulative_events bigint NOT NULL,
    opened_at         timestamptz NOT NULL,
    sealed_at         timestamptz NOT NULL,
    applied_at        timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (namespace, gen)
);
COMMENT ON TABLE counterd.ledger IS 'One row per generation that was applied, written in the same transaction';
COMMENT ON COLUMN counterd.ledger.prev_gen IS 'What Redis had released before this one; empty for none';
COMMENT ON COLUMN counterd.ledger.identity IS 'Which batches it held: {"writer": [first seq, last seq]}';

CREATE TABLE counterd.writers (
    namespace text COLLATE "C" NOT NULL,
    shard     integer NOT NULL,
    writer    text COLLATE "C" NOT NULL,
    seq       bigint NOT NULL,
    PRIMARY KEY (namespace, shard, writer)
) WITH (fillfactor = 50);
COMMENT ON TABLE counterd.writers IS 'The vector: the last batch of each writer that is applied';

CREATE TABLE counterd.quarantine (
    id               bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    namespace        text COLLATE "C" NOT NULL,
    gen              text COLLATE "C" NOT NULL,
    shard            integer NOT NULL,
    prev_gen         text COLLATE "C" NOT NULL,
    identity         jsonb NOT NULL,
    vector           jsonb NOT NULL,
    members          text[] COLLATE "C" NOT NULL,
    deltas           bigint[] NOT NULL,
    accepted_at_seal bigint NOT NULL,
    opened_at        timestamptz NOT NULL,
    sealed_at        timestamptz NOT NULL,
    quarantined_at   timestamptz NOT NULL DEFAULT now(),
    UNIQUE (namespace, gen)
);
COMMENT ON TABLE counterd.quarantine IS 'Generations that mix what is applied with what is not; never applied blindly';

CREATE TABLE counterd.counters (
    key        text COLLATE "C" PRIMARY KEY,
    value      bigint NOT NULL,
    first_seen timestamptz NOT NULL,
    last_seen  timestamptz NOT NULL
) WITH (fillfactor = 50);
-- A flush may update every row of a page in one transaction, so a page needs room for each row twice. Measured with
-- a million keys: at 80, a third of the updates were HOT; at 50 all were, at twice the speed in a smaller table.
COMMENT ON TABLE counterd.counters IS 'The default target; no index on what a flush changes, so that updates stay HOT';

CREATE TABLE counterd.runs (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    namespace   text COLLATE "C" NOT NULL,
    started_at  timestamptz NOT NULL,
    finished_at timestamptz NOT NULL,
    shards      integer NOT NULL,
    keys        bigint NOT NULL,
    increments  bigint NOT NULL,
    events      bigint NOT NULL,
    error       text
);
COMMENT ON TABLE counterd.runs IS 'One row per flusher run that could still write it; error is null when all went well';
COMMENT ON COLUMN counterd.runs.shards IS 'How many were flushed without a failure';
COMMENT ON COLUMN counterd.runs.increments IS 'The sum of all deltas';

-- Unknown for a namespace until each of its shards was looked at once.
CREATE VIEW counterd.freshness AS
    SELECT namespace, CASE WHEN count(fresh_until) = count(*) THEN min(fresh_until) END AS fresh_until
    FROM counterd.shards
    GROUP BY namespace;
COMMENT ON VIEW counterd.freshness IS 'All that was accepted before this moment is in the tables';
