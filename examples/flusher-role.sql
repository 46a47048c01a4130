-- The rights that flusher needs in a database, for a role that does not own the schema `counterd`: run this as its owner,
-- after each `flusher migrate`, which only the owner can do. The role: CREATE ROLE counterd_flusher LOGIN;
--
-- Where a target has a rollup in counterd.rollups, the flusher makes and drops its partitions, which takes the table's
-- owner: GRANT that role TO counterd_flusher, and nothing of this is needed.

GRANT USAGE ON SCHEMA counterd TO counterd_flusher;
GRANT SELECT ON ALL TABLES IN SCHEMA counterd TO counterd_flusher;
GRANT INSERT ON counterd.namespaces TO counterd_flusher;
GRANT INSERT, UPDATE ON counterd.shards, counterd.counters, counterd.quarantine TO counterd_flusher;
GRANT INSERT, UPDATE, DELETE ON counterd.writers, counterd.parked TO counterd_flusher;
GRANT INSERT, DELETE ON counterd.ledger, counterd.runs TO counterd_flusher;

-- And for each table of your own, as its target says; without "missing": "insert" no INSERT:
-- GRANT SELECT, INSERT, UPDATE ON posts TO counterd_flusher;
