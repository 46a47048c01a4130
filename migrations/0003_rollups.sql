-- The default rollup: what a key has counted in each time bucket. A partition per day of UTC, made ahead and dropped after
-- its retention by the flusher (flusher/partitions.h).
--
-- There is no default partition: it would be read under a lock whenever a day is made, its rows would outlive every
-- retention, and it would hide that a day is missing. The flusher makes a day that it has rows for.

CREATE TABLE counterd.rollups (
    key    text COLLATE "C" NOT NULL,
    bucket timestamptz NOT NULL,
    value  bigint NOT NULL,
    PRIMARY KEY (key, bucket)
) PARTITION BY RANGE (bucket);
COMMENT ON TABLE counterd.rollups IS 'The default rollup; late events add to the bucket in which they happened';
COMMENT ON COLUMN counterd.rollups.bucket IS 'Its start; how long it is, the target''s rollup.bucket says';
