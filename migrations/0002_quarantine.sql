-- What becomes of a generation in quarantine, and totals that stay comparable with Redis's when Redis goes back in time.

ALTER TABLE counterd.quarantine
    ADD COLUMN part           text NOT NULL DEFAULT 'sealed' CHECK (part IN ('sealed', 'open')),
    ADD COLUMN total          bigint NOT NULL DEFAULT 0,
    ADD COLUMN last_append_at timestamptz,
    ADD COLUMN resolution     text CHECK (resolution IN ('applied', 'dropped')),
    ADD COLUMN resolved_at    timestamptz;
COMMENT ON COLUMN counterd.quarantine.part IS 'sealed: the mixed generation; open: what came after it, set aside with it';
COMMENT ON COLUMN counterd.quarantine.vector IS 'What was applied of its writers when it was put here';
COMMENT ON COLUMN counterd.quarantine.resolution IS 'What an operator decided; null: waits for that';
CREATE INDEX quarantine_unresolved ON counterd.quarantine (namespace, shard, id) WHERE resolution IS NULL;

ALTER TABLE counterd.shards ADD COLUMN recovered_total bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN counterd.shards.cumulative_total IS 'What was applied of what Redis accepted';
COMMENT ON COLUMN counterd.shards.recovered_total IS 'What was applied out of the quarantine; Redis does not know of it';

ALTER TABLE counterd.ledger
    ADD COLUMN correction        bigint NOT NULL DEFAULT 0,
    ADD COLUMN events_correction bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN counterd.ledger.correction IS
    'What release adds to Redis''s running total; not 0 when Redis had gone back in time';

ALTER TABLE counterd.runs ADD COLUMN quarantined integer NOT NULL DEFAULT 0;
