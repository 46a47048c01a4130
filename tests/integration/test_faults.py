#!/usr/bin/env python3
"""test_faults - everything that a flush asks for fails once, in turn: every allocation, every answer of Redis and of Postgres

After each fault a run without one; then the counts are exact. FAULTS_SECONDS bounds each sweep (default: 15): of what does not
fit, every n-th is tried.
"""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness

SECONDS = float(os.environ.get("FAULTS_SECONDS", 15))
FAIL_MALLOC = harness.BUILD / "tests" / "integration" / "libfail_malloc.so"
CODES = (harness.EXIT_OK, harness.EXIT_UNAVAILABLE, harness.EXIT_TEMPFAIL, harness.EXIT_CONFIG)
KEYS = 20


class Faults(harness.Case):
    def setUp(self):
        super().setUp()
        self.config["shards"] = 2
        self.migrate()
        self.daemon = self.counterd()
        self.rounds = 0
        self.seen = set()

    def count(self):
        """Something to flush."""
        self.rounds += 1
        self.daemon.send_udp([f"key.{key}:1|c" for key in range(KEYS)])
        self.daemon.settle(KEYS * self.rounds)

    def flush_with_a_fault(self, words=("run",), codes=CODES, **options):
        self.count()
        done = self.flusher(*words, code=None, **options)
        self.seen.add(done.code)
        self.assertIn(done.code, codes, done)
        self.flush()
        self.assertEqual(self.counters(), {f"key.{key}": self.rounds for key in range(KEYS)})
        return done

    def sweep(self, total, fault):
        """fault(k) for k in 0 ... total - 1, or as many of them, evenly, as there is time for."""
        begin = time.monotonic()
        fault(0)
        step = max(1, round(total * (time.monotonic() - begin) / SECONDS))
        for k in range(1, total, step):
            fault(k)
        self.assertIn("verdict=balanced", self.flusher("audit").out)
        return step

    def test_every_allocation_of_a_flush(self):
        if not FAIL_MALLOC.exists():
            self.skipTest("not with a sanitizer, which brings its own malloc")
        counted = self.dir / "allocations"
        config = self.write_config("one_job.json", flush={"jobs": 1})
        preload = {"LD_PRELOAD": str(FAIL_MALLOC)}
        self.count()
        self.flush(config=config, env={**preload, "FAIL_MALLOC_COUNT": str(counted)})
        total = int(counted.read_text())
        self.assertGreater(total, 100)
        self.sweep(total, lambda k: self.flush_with_a_fault(config=config, env={**preload, "FAIL_MALLOC_AT": str(k)}))
        self.assertTrue(self.seen & {harness.EXIT_UNAVAILABLE, harness.EXIT_TEMPFAIL}, self.seen)

    def cut_each_answer(self, proxy, config):
        requests = 0

        def cut_after(k):
            nonlocal requests
            requests = 0

            def is_it(_request):
                nonlocal requests
                requests += 1
                return requests == k + 1

            proxy.cut(is_it)
            self.flush_with_a_fault(config=config)
            return proxy.times == 0

        k = 0
        while cut_after(k):
            k += 1
        self.assertGreater(k, 4)
        self.assertIn("verdict=balanced", self.flusher("audit").out)

    def test_every_answer_of_redis(self):
        proxy, through = self.proxied_redis()
        self.cut_each_answer(proxy, self.write_config("f.json", redis=through))

    def test_every_answer_of_postgres(self):
        proxy, through = self.proxied_postgres()
        self.cut_each_answer(proxy, self.write_config("f.json", postgres=through))


if __name__ == "__main__":
    harness.main()
