-- What came with a client's Idempotency-Key is a writer of one batch: its row may go when nobody can send it again and
-- Redis can't bring it back. Workers' rows stay as they are: added_at never changes, so moving seq stays HOT.

ALTER TABLE counterd.writers ADD COLUMN added_at timestamptz NOT NULL DEFAULT now();
COMMENT ON COLUMN counterd.writers.added_at IS 'When its first batch was applied; by this, rows of requests are pruned';
CREATE INDEX writers_of_requests ON counterd.writers (namespace, added_at) WHERE starts_with(writer, 'once:');

COMMENT ON COLUMN counterd.ledger.identity IS
    'Which batches it held: {"writer": [first seq, last seq]}; "once": [1, n] is n requests with an Idempotency-Key';
