#!/usr/bin/env python3
"""test_access_log - a real web server's log, 10,000 requests, counted by path, status and day, against awk

The count that ours must equal is made by awk from the same file, and shares no code with the sender.

A path may hold bytes that a key may not (":" above all; also "|", blanks, what is not UTF-8) and more bytes than a key.
counterd never rewrites a key, so the client does, in a way that keeps different paths different: such bytes, and "%"
itself, become %XX, and of a path that is too long the end becomes a digest.
"""

import gzip
import hashlib
import re
import subprocess
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness

LOG = harness.SHARED / "data" / "apache_access.log.gz"
REQUEST = re.compile(rb'^\S+ \S+ \S+ \[([^:]+):[^\]]*\] "\S+ (\S+) [^"]*" (\d+) (\d+|-)')
FORBIDDEN = re.compile(rb"[\x00-\x20:|%\x7f-\xff]")
PATH_BYTES_MAX = 230  # leaves room for a prefix within a key's 255


def escape(path):
    """A path (bytes) as a part of a key (text)."""
    safe = FORBIDDEN.sub(lambda byte: b"%%%02X" % byte[0][0], path)
    if len(safe) > PATH_BYTES_MAX:
        safe = safe[:PATH_BYTES_MAX - 41] + b"~" + hashlib.sha1(path).hexdigest().encode()
    return safe.decode("ascii")


def lines_of(log):
    """What an application would send for every request: four lines."""
    for raw in log:
        day, path, status, size = REQUEST.match(raw).groups()
        key = escape(path)
        yield f"hits.{key}:1|c"
        yield f"bytes.{key}:{0 if size == b'-' else int(size)}|c"
        yield f"status:1|c|#code:{status.decode()}"
        yield f"INCR day.{day.decode().replace('/', '-')}"


def awk(program):
    """field -> number, by awk, of the whole log. Bytes stay bytes."""
    done = subprocess.run(f"zcat '{LOG}' | LC_ALL=C awk '{program}'", shell=True, check=True, stdout=subprocess.PIPE)
    return {name: int(value) for name, value in (line.rsplit(b"\t", 1) for line in done.stdout.splitlines())}


class AccessLog(harness.Case):
    def test_counts_equal_awks(self):
        if not LOG.exists():
            raise unittest.SkipTest(f"{LOG} is not there (COUNTERD_SHARED names the directory with data/)")
        self.migrate()
        counterd = self.counterd(workers=2)
        with gzip.open(LOG) as log:
            lines = list(lines_of(log))
        for at in range(0, len(lines), 8000):
            counterd.send_udp(lines[at:at + 8000])
            self.flush()
        status = counterd.settle(40000)
        self.assertEqual(counterd.rejected(status), {})
        self.flush()

        expected = {}
        for path, hits in awk('{ n[$7]++ } END { for (p in n) printf "%s\\t%d\\n", p, n[p] }').items():
            expected[f"hits.{escape(path)}"] = hits
        for path, size in awk('{ n[$7] += $10 } END { for (p in n) printf "%s\\t%d\\n", p, n[p] }').items():
            expected[f"bytes.{escape(path)}"] = size
        for code, hits in awk('{ n[$9]++ } END { for (s in n) printf "%s\\t%d\\n", s, n[s] }').items():
            expected[f"status;code={code.decode()}"] = hits
        days = awk('{ split(substr($4, 2), at, ":"); gsub("/", "-", at[1]); n[at[1]]++ }'
                   ' END { for (d in n) printf "%s\\t%d\\n", d, n[d] }')
        expected.update({f"day.{day.decode()}": hits for day, hits in days.items()})
        self.assertEqual(self.counters(), expected)
        self.assertEqual(sum(days.values()), 10000)


if __name__ == "__main__":
    harness.main()
