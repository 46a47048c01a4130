// queries.js - what the page asks: each question a function of its URL's parameters that gives { text, values }
//
// Whatever comes from outside goes in as a parameter, never into the text. Numbers beyond 2^53 exist, so bigint and
// numeric come as text and stay text until they are shown.

const RANGES = { // how far back, and how wide a bar is
  '1h': ['1 hour', '1 minute'],
  '6h': ['6 hours', '5 minutes'],
  '24h': ['1 day', '15 minutes'],
  '7d': ['7 days', '2 hours'],
  '30d': ['30 days', '8 hours'],
};
const TOP = {
  total: 'SELECT key, value FROM counterd.top_counters WHERE strpos(key, $1) > 0 LIMIT $2',
  hour: 'SELECT key, last_hour AS value FROM counterd.top_rates WHERE strpos(key, $1) > 0 LIMIT $2',
  minute: `SELECT key, last_minute AS value FROM counterd.top_rates WHERE strpos(key, $1) > 0 AND last_minute <> 0
           ORDER BY last_minute DESC, key LIMIT $2`,
};
const TOP_ROWS = 50;

export class BadRequest extends Error {}

function choose(options, params, name) {
  const value = params.get(name) ?? '';
  if (!Object.hasOwn(options, value)) {
    throw new BadRequest(`'${name}' is '${value}'; it may be ${Object.keys(options).join(', ')}`);
  }
  return options[value];
}

export const queries = {
  overview: () => ({
    text: `
      SELECT n.namespace, coalesce(t.total, 0) AS total, t.parked, f.fresh_until, now() AS now,
             r.increments_per_s::float8, run.keys AS run_keys, run.error,
             extract(epoch FROM run.finished_at - run.started_at)::float8 AS run_s,
             (SELECT count(*) FROM counterd.quarantine AS q
              WHERE q.namespace = n.namespace AND q.resolution IS NULL) AS quarantined
      FROM counterd.namespaces AS n
      LEFT JOIN counterd.totals AS t USING (namespace)
      LEFT JOIN counterd.freshness AS f USING (namespace)
      LEFT JOIN counterd.rates AS r USING (namespace)
      LEFT JOIN LATERAL (SELECT * FROM counterd.runs AS x WHERE x.namespace = n.namespace
                         ORDER BY x.finished_at DESC LIMIT 1) AS run ON true
      ORDER BY n.namespace`,
    values: [],
  }),

  top: (params) => ({ text: choose(TOP, params, 'by'), values: [params.get('match') ?? '', TOP_ROWS] }),

  // What the whole namespace brought, by its runs.
  all: (params) => ({
    text: `SELECT extract(epoch FROM bucket)::float8 AS at, increments AS value, now() AS now
           FROM counterd.run_series($1, now() - $2::interval, now(), $3::interval)`,
    values: [params.get('namespace') ?? '', ...choose(RANGES, params, 'range')],
  }),

  // What one key brought, by the rollups. Both halves of its row say so when it has none.
  series: (params) => ({
    text: `SELECT extract(epoch FROM s.bucket)::float8 AS at, s.value, now() AS now,
                  (SELECT value FROM counterd.counters WHERE key = $1) AS total,
                  EXISTS (SELECT FROM counterd.rollups WHERE key = $1) AS rolled_up
           FROM counterd.series($1, now() - $2::interval, now(), $3::interval) AS s`,
    values: [params.get('key') ?? '', ...choose(RANGES, params, 'range')],
  }),
};
