-- The issues of a project, most frequent first.
SELECT id, title, times_seen, last_seen > first_seen AS came_again
FROM groups WHERE project_id = 1 ORDER BY times_seen DESC;

-- All projects.
SELECT slug, events, round(100.0 * events / sum(events) OVER (), 1) AS percent
FROM projects ORDER BY events DESC;

-- One project, hour by hour, quiet hours included.
SELECT to_char(step AT TIME ZONE 'UTC', 'HH24:MI') AS hour, coalesce(events, 0) AS events
FROM counterd.steps('2026-03-01 08:00+00', '2026-03-01 12:00+00', '1 hour') AS step
LEFT JOIN project_hours ON bucket = step AND id = 1 ORDER BY step;

-- Which issues were new or worse in one hour.
SELECT project_id, id, title, group_hours.times_seen
FROM group_hours JOIN groups USING (project_id, id)
WHERE bucket = '2026-03-01 10:00+00' ORDER BY group_hours.times_seen DESC;

-- All events of all projects.
SELECT value FROM counterd.counters WHERE key = 'events';
