-- What Postgres refused, kept until somebody decides, and what went elsewhere than into counterd.counters.

CREATE TABLE counterd.parked (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    namespace text COLLATE "C" NOT NULL,
    gen       text COLLATE "C" NOT NULL,
    shard     integer NOT NULL,
    key       text COLLATE "C" NOT NULL,
    bucket    timestamptz,
    delta     bigint NOT NULL,
    reason    text NOT NULL,
    detail    text NOT NULL DEFAULT '',
    target    text NOT NULL,
    seen_at   timestamptz NOT NULL,
    parked_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE counterd.parked IS 'Deltas that their target refused; see flusher parked. Part of the ledger''s totals';
COMMENT ON COLUMN counterd.parked.bucket IS 'Of a target with rollups: the start of the time bucket';
COMMENT ON COLUMN counterd.parked.reason IS
    'no_target, missing (the row), type, range, check, foreign_key, not_null, unique, refused';
COMMENT ON COLUMN counterd.parked.detail IS 'What Postgres said';
COMMENT ON COLUMN counterd.parked.target IS 'The table, as the configuration had it; empty for none';
COMMENT ON COLUMN counterd.parked.seen_at IS 'When the newest of what it counts may have come';
CREATE INDEX parked_shard ON counterd.parked (namespace, shard, id);
CREATE INDEX parked_key ON counterd.parked (namespace, key);

ALTER TABLE counterd.shards
    ADD COLUMN parked_total    bigint NOT NULL DEFAULT 0,
    ADD COLUMN dropped_total   bigint NOT NULL DEFAULT 0,
    ADD COLUMN elsewhere_total bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN counterd.shards.cumulative_total IS
    'What Postgres took over of what Redis accepted: applied, parked or dropped';
COMMENT ON COLUMN counterd.shards.parked_total IS 'How much of it the rows of counterd.parked hold';
COMMENT ON COLUMN counterd.shards.dropped_total IS 'How much of it was dropped, as the target or an operator said';
COMMENT ON COLUMN counterd.shards.elsewhere_total IS 'How much of it is in other tables than counterd.counters';

ALTER TABLE counterd.runs
    ADD COLUMN parked  bigint NOT NULL DEFAULT 0,
    ADD COLUMN dropped bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN counterd.runs.parked IS 'How many keys were parked';
COMMENT ON COLUMN counterd.runs.dropped IS 'How many keys were dropped';
