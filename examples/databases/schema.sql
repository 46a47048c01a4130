-- In the blog's database: its own table, which counterd adds to.
CREATE TABLE posts (
    id    integer PRIMARY KEY,
    title text NOT NULL,
    views bigint NOT NULL DEFAULT 0
);
INSERT INTO posts (id, title) VALUES (1, 'Counting'), (2, 'Not counting');
