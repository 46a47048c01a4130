-- Sentry's use: what an error tracker keeps per issue ("group") and per project. The application makes the rows, once, when
-- it first sees a project or a group; counterd does the counting.

CREATE TABLE projects (
    id         bigint PRIMARY KEY,
    slug       text NOT NULL UNIQUE,
    events     bigint NOT NULL DEFAULT 0,
    last_event timestamptz
) WITH (fillfactor = 50);

-- fillfactor 50 and no index on what a flush changes: updates stay HOT. The list of a project's groups is found by the
-- primary key and sorted when it is read.
CREATE TABLE groups (
    project_id bigint NOT NULL REFERENCES projects,
    id         bigint NOT NULL,
    title      text NOT NULL,
    first_seen timestamptz NOT NULL DEFAULT now(),
    last_seen  timestamptz NOT NULL DEFAULT now(),
    times_seen bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (project_id, id)
) WITH (fillfactor = 50);

-- Rollups: the key's columns, "bucket", and the target's own name for what it counts.
CREATE TABLE group_hours (
    project_id bigint NOT NULL,
    id         bigint NOT NULL,
    bucket     timestamptz NOT NULL,
    times_seen bigint NOT NULL,
    PRIMARY KEY (project_id, id, bucket),
    FOREIGN KEY (project_id, id) REFERENCES groups ON DELETE CASCADE
);

CREATE TABLE project_hours (
    id     bigint NOT NULL REFERENCES projects ON DELETE CASCADE,
    bucket timestamptz NOT NULL,
    events bigint NOT NULL,
    PRIMARY KEY (id, bucket)
);
