INSERT INTO groups (project_id, id, title, first_seen, last_seen) VALUES
    (2, 21, 'KeyError: author', '2026-03-01 11:00+00', '2026-03-01 11:00+00');
