-- What the application has inserted by now. Group 21 of the blog is new: its first events come before its row.
INSERT INTO projects (id, slug) VALUES (1, 'shop'), (2, 'blog');
INSERT INTO groups (project_id, id, title, first_seen, last_seen) VALUES
    (1, 10, 'TypeError: cart is undefined', '2026-03-01 09:00+00', '2026-03-01 09:00+00'),
    (1, 11, 'Timeout in checkout', '2026-03-01 10:00+00', '2026-03-01 10:00+00'),
    (2, 20, 'NotFound: /feed.xml', '2026-03-01 09:00+00', '2026-03-01 09:00+00');
