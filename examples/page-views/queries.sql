-- Pages, sections, and the site: every page view is once in each.
SELECT key, value FROM counterd.top_counters LIMIT 10;

-- Top of the moment: the pages of the last full hour, to the minute.
SELECT key, last_minute, last_hour FROM counterd.top_rates WHERE key LIKE 'page.%' LIMIT 3;

-- One section, minute by minute up to the last full one, quiet ones included.
SELECT s.value
FROM counterd.freshness AS f,
     counterd.series('section.docs', date_trunc('minute', f.fresh_until) - interval '3 minutes',
                     date_trunc('minute', f.fresh_until), '1 minute') AS s;
