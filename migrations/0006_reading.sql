-- What dashboards read: docs/reading.md. A flush writes nothing more for it but the BRIN of the rollups, whose column never
-- changes, so that updates stay HOT; a run one more index entry.
--
-- Counters and rollups are by key alone: namespaces that share a database add up in them. What is told per namespace
-- (totals, rates, freshness) comes from the shards and the runs.

-- A flush appends rows of about the same bucket, so the newest hour of all keys is a few ranges of pages.
CREATE INDEX rollups_bucket ON counterd.rollups USING brin (bucket) WITH (pages_per_range = 32, autosummarize = on);
CREATE INDEX runs_finished ON counterd.runs (namespace, finished_at);

CREATE VIEW counterd.top_counters AS
    SELECT key, value, first_seen, last_seen
    FROM counterd.counters
    ORDER BY value DESC, key;
COMMENT ON VIEW counterd.top_counters IS
    'Counters, largest first; with LIMIT a scan that keeps the n largest (an index on value would end HOT updates)';

-- Scalar subqueries and not a join: known before the scan starts, they let it leave out other days' partitions.
CREATE VIEW counterd.top_rates AS
    SELECT key,
           coalesce(sum(value) FILTER (WHERE bucket >= (SELECT date_bin('1 minute', coalesce(max(fresh_until), now()),
               'epoch') FROM counterd.freshness) - interval '1 minute'), 0) AS last_minute,
           sum(value) AS last_hour
    FROM counterd.rollups
    WHERE bucket >= (SELECT date_bin('1 minute', coalesce(max(fresh_until), now()), 'epoch') - interval '1 hour'
                     FROM counterd.freshness)
      AND bucket < (SELECT date_bin('1 minute', coalesce(max(fresh_until), now()), 'epoch') FROM counterd.freshness)
    GROUP BY key
    ORDER BY last_hour DESC, key;
COMMENT ON VIEW counterd.top_rates IS
    'Keys by what the last 60 full minutes brought, of those that a target rolls up into counterd.rollups';
COMMENT ON COLUMN counterd.top_rates.last_minute IS
    'Of the last minute that lies wholly before the newest freshness; says something with buckets of a minute only';
COMMENT ON COLUMN counterd.top_rates.last_hour IS 'Of the 60 minutes that end with it';

CREATE VIEW counterd.totals AS
    SELECT namespace, sum(cumulative_total + recovered_total - parked_total - dropped_total) AS total,
           sum(cumulative_events) AS events, sum(parked_total) AS parked, sum(dropped_total) AS dropped,
           max(applied_at) AS applied_at
    FROM counterd.shards
    GROUP BY namespace;
COMMENT ON VIEW counterd.totals IS 'What each namespace has brought to Postgres since its first flush';
COMMENT ON COLUMN counterd.totals.total IS 'The sum of all deltas that are in the targets'' tables';
COMMENT ON COLUMN counterd.totals.events IS 'How many lines came, those of what was parked or dropped too';
COMMENT ON COLUMN counterd.totals.parked IS 'The sum of what counterd.parked holds now';

-- From the end of a run that is at least a minute older than the newest one to the end of that one: however often cron
-- runs, these runs brought what came in between. OFFSET 0 keeps the planner from working each subquery out wherever
-- its column is used.
CREATE VIEW counterd.rates AS
    SELECT n.namespace, newest.at AS until, newest.at - base.at AS over,
           sums.increments / extract(epoch FROM newest.at - base.at) AS increments_per_s,
           sums.events / extract(epoch FROM newest.at - base.at) AS events_per_s
    FROM counterd.namespaces AS n
    CROSS JOIN LATERAL (SELECT max(finished_at) AS at FROM counterd.runs AS r WHERE r.namespace = n.namespace
                        OFFSET 0) AS newest
    CROSS JOIN LATERAL (SELECT coalesce(
        (SELECT max(finished_at) FROM counterd.runs AS r WHERE r.namespace = n.namespace
            AND r.finished_at <= newest.at - interval '1 minute'),
        (SELECT min(finished_at) FROM counterd.runs AS r WHERE r.namespace = n.namespace
            AND r.finished_at < newest.at)) AS at OFFSET 0) AS base
    CROSS JOIN LATERAL (SELECT sum(increments) AS increments, sum(events) AS events FROM counterd.runs AS r
                        WHERE r.namespace = n.namespace AND r.finished_at > base.at AND r.finished_at <= newest.at
                        OFFSET 0) AS sums
    WHERE base.at IS NOT NULL;
COMMENT ON VIEW counterd.rates IS
    'How much a second each namespace brings now: its runs of the last minute or, where cron is slower, its last run';
COMMENT ON COLUMN counterd.rates.until IS 'When the newest run ended';
COMMENT ON COLUMN counterd.rates.over IS 'The time that the rates are of';

-- A timestamp without time zone has no summer time, so a step of a day is always 24 hours; binned from a Monday on, so
-- that one of seven days is a week.
CREATE FUNCTION counterd.steps(since timestamptz, until timestamptz, step interval) RETURNS SETOF timestamptz
LANGUAGE sql IMMUTABLE PARALLEL SAFE ROWS 100 AS $$
    SELECT at AT TIME ZONE 'UTC'
    FROM generate_series(date_bin(step, since AT TIME ZONE 'UTC', '2001-01-01'),
                         (until AT TIME ZONE 'UTC') - interval '1 microsecond', step) AS at
$$;
COMMENT ON FUNCTION counterd.steps(timestamptz, timestamptz, interval) IS
    'The starts of the steps, of UTC, that since (included) to until (not included) touches';

CREATE FUNCTION counterd.series(key text, since timestamptz, until timestamptz, step interval)
RETURNS TABLE (bucket timestamptz, value numeric)
LANGUAGE sql STABLE PARALLEL SAFE ROWS 100 AS $$
    SELECT steps.bucket, coalesce(sums.value, 0)
    FROM counterd.steps(since, until, step) AS steps (bucket)
    LEFT JOIN (SELECT date_bin(step, r.bucket, '2001-01-01 00:00:00+00') AS bucket, sum(r.value) AS value
               FROM counterd.rollups AS r
               WHERE r.key = series.key
                 AND r.bucket >= date_bin(step, since, '2001-01-01 00:00:00+00') AND r.bucket < until
               GROUP BY 1) AS sums USING (bucket)
    ORDER BY steps.bucket
$$;
COMMENT ON FUNCTION counterd.series(text, timestamptz, timestamptz, interval) IS
    'What a key counted in each step, of days at most, from since to until; 0 where nothing came. From counterd.rollups';

CREATE FUNCTION counterd.run_series(namespace text, since timestamptz, until timestamptz, step interval)
RETURNS TABLE (bucket timestamptz, increments numeric, events numeric, runs bigint, failed bigint)
LANGUAGE sql STABLE PARALLEL SAFE ROWS 100 AS $$
    SELECT steps.bucket, coalesce(sums.increments, 0), coalesce(sums.events, 0), coalesce(sums.runs, 0),
           coalesce(sums.failed, 0)
    FROM counterd.steps(since, until, step) AS steps (bucket)
    LEFT JOIN (SELECT date_bin(step, r.finished_at, '2001-01-01 00:00:00+00') AS bucket,
                      sum(r.increments) AS increments, sum(r.events) AS events, count(*) AS runs,
                      count(r.error) AS failed
               FROM counterd.runs AS r
               WHERE r.namespace = run_series.namespace
                 AND r.finished_at >= date_bin(step, since, '2001-01-01 00:00:00+00') AND r.finished_at < until
               GROUP BY 1) AS sums USING (bucket)
    ORDER BY steps.bucket
$$;
COMMENT ON FUNCTION counterd.run_series(text, timestamptz, timestamptz, interval) IS
    'What a namespace''s runs brought in each step, by when they ended; needs no rollups';

-- Roles belong to the whole server and take a right of their own to make, so the role is yours to create.
CREATE FUNCTION counterd.grant_reader(role name) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog AS $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA counterd TO %I', role);
    EXECUTE format('GRANT SELECT ON ALL TABLES IN SCHEMA counterd TO %I', role);
    EXECUTE format('ALTER DEFAULT PRIVILEGES IN SCHEMA counterd GRANT SELECT ON TABLES TO %I', role);
END
$$;
COMMENT ON FUNCTION counterd.grant_reader(name) IS
    'Lets a role read all that is in this schema now and what the caller makes in it later; to be called by its owner';
REVOKE EXECUTE ON FUNCTION counterd.grant_reader(name) FROM PUBLIC;
