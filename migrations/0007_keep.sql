-- Rows of the ledger that nobody asks for any more may go; what they add up to stays.

ALTER TABLE counterd.shards ADD COLUMN pruned_total bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN counterd.shards.pruned_total IS 'The sum of the rows of counterd.ledger that were pruned';
