"""harness - real servers and the real programs in a scratch directory, all gone when the test ends

A test file is a Python unittest module that ends in `harness.main()`. Its cases derive from `Case`, which gives each
test a Redis of its own, a database of its own (in a Postgres shared by the file), a configuration, and helpers:

    class Pipeline(harness.Case):
        def test_a_line_becomes_a_row(self):
            self.migrate()
            counterd = self.counterd()
            counterd.send_udp(["page.home:1|c"])
            counterd.settle(1)
            self.flush()
            self.assertEqual(self.counters(), {"page.home": 1})

What keeps such tests honest, quick and free of collisions:
- every server listens on a Unix socket in the scratch directory, and counterd on ports that the kernel chose (port 0;
  the log tells which), so any number of test files can run at once, beside the machine's own services;
- nothing waits a fixed time: `wait_until` polls a condition up to a deadline, so a slow machine is slow, not red;
- every child gets PR_SET_PDEATHSIG, so none outlives the test, not even after kill -9;
- nothing is synced to disk: no test here cuts the power, and what a killed process has written is there without.

Environment: COUNTERD_BUILD, the build directory (default: build/ beside tests/); COUNTERD_STRICT=1, a missing server
or program is a failure instead of a skip; COUNTERD_KEEP=1, scratch directories stay; COUNTERD_SHARED, where
the sample data is (default: shared/ beside the repository).
"""

from .basics import (BUILD, COUNTERD, DEADLINE_S, EXIT_CONFIG, EXIT_OK, EXIT_SKIPPED, EXIT_TEMPFAIL, EXIT_UNAVAILABLE,
                     EXIT_USAGE, FLUSHER, REDIS_TIMEOUT_MS, ROOT, SHARED, away_from_turn, scratch_dir, wait_until)
from .case import Case, Replicated
from .counterd import Counterd, datagrams
from .entry import main, missing
from .network import Proxy, Relay, free_port, has_ipv6
from .postgres_server import Postgres, postgres
from .processes import SANITIZER_REPORT, Process, die_with_parent, parse_log_line
from .redis_server import SHARD_KEYS, Redis, RedisError, RespClient, shard_keys
