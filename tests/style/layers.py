#!/usr/bin/env python3
"""layers - who may include whom; STYLE.md, "Shape"

A layer diagram that nothing enforces is a wish. A line of the tables below is the diagram; a new exception is a
change of the design, made here, in sight.
"""

import re
import sys

import tree

# Which of our own headers a file in a directory may include.
OWN = {
    "lib": ("lib/",),
    "counterd": ("lib/", "counterd/"),
    "flusher": ("lib/", "flusher/"),
}

# Third-party headers: the only files that may include them. One .c per library and program hides the library. libevent
# is the exception: its callbacks are what the edges of counterd are made of; its core (frame, ingest, outbox, stats) is
# pure.
THIRD_PARTY = {
    "cjson/": {"lib/config.c", "lib/config_reader.c", "lib/targets_read.c", "counterd/answer.c",
               "counterd/status.c", "flusher/daemon.c", "flusher/report.c"},
    "xxhash.h": {"lib/keyspace.c", "counterd/record.c"},
    "hiredis/": {"counterd/dial.c", "counterd/link.c", "counterd/reader_redis.c", "counterd/store_redis.c", "flusher/redis.c"},
    "libpq-fe.h": {"flusher/postgres.c"},
    "systemd/": {"counterd/systemd.c"},
    "event2/": {"counterd/answer.c", "counterd/daemon.c", "counterd/http.c", "counterd/idempotent.c",
                "counterd/increments.c", "counterd/link.c", "counterd/pipeline.c",
                "counterd/reader_redis.c", "counterd/receiver.c", "counterd/replay.c", "counterd/sender.c",
                "counterd/store_redis.c", "counterd/stream.c", "counterd/worker.c"},
    "check.h": set(),  # tests only
}

INCLUDE = re.compile(r'^\s*#\s*include\s+([<"])([^>"]+)[>"]', re.MULTILINE)
COMMENT_OR_TEXT = re.compile(r'/\*.*?\*/|"(?:[^"\\\n]|\\.)*"', re.DOTALL)

# lib is pure: it neither ends the program nor writes anywhere on its own account.
NOT_IN_LIB = re.compile(r'\b(exit|_exit|abort|printf|puts|perror|vprintf|putchar|syslog|fprintf|log_event|log_error)\s*\(')


def check(path, text):
    """Yields what is wrong with one file."""
    name, top = str(path), path.parts[0]
    includes = INCLUDE.findall(text)
    if top in OWN:
        for kind, header in includes:
            if kind == '"' and not header.startswith(OWN[top]):
                yield f'includes "{header}"; {top}/ may include {" and ".join(OWN[top])} only'
            for library, allowed in THIRD_PARTY.items():
                if kind == "<" and header.startswith(library) and name not in allowed:
                    yield f"includes <{header}>; only {', '.join(sorted(allowed)) or 'tests'} may"
        own = path.with_suffix(".h")
        if path.suffix == ".c" and (tree.ROOT / own).exists() and includes[:1] != [('"', str(own))]:
            yield f'does not include its own header "{own}" first'
        if path.suffix == ".h" and not re.match(rf"/\* {path.stem} - \S", text):
            yield f'does not start with "/* {path.stem} - what it is"'
    if top == "lib" and path.stem != "log":
        code = COMMENT_OR_TEXT.sub(" ", text)
        for call in NOT_IN_LIB.findall(code):
            yield f"calls {call}(); code in lib/ never logs, never exits"


def main():
    wrong = 0
    for path in tree.sources():
        for complaint in check(path, (tree.ROOT / path).read_text()):
            print(f"{path}: {complaint}")
            wrong += 1
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
