#!/usr/bin/env python3
"""test_status - what `flusher status` says is late, and since when; and that counterd.freshness never claims too much"""

import http.client
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness
from test_rollback import RollbackCase


class StatusCase(RollbackCase):
    def status(self, code=harness.EXIT_OK, config=None):
        return json.loads(self.flusher("status", "--json", code=code, config=config).out)

    def assert_lag(self, first_s, last_s, code=harness.EXIT_OK):
        """The oldest increment that is pending came between these two (of time.time())."""
        before_s = time.time()
        status = self.status(code)
        self.assertGreaterEqual(status["lag_seconds"], before_s - last_s - 0.01)
        self.assertLessEqual(status["lag_seconds"], time.time() - first_s + 0.01)
        return status

    def send_timed(self, counterd, deltas):
        """Between which two moments it came to Redis."""
        first_s = time.time()
        self.send(counterd, deltas)
        return first_s, time.time()


class Lag(StatusCase):
    def test_never_flushed(self):
        status = self.status()
        self.assertEqual((status["lag_seconds"], status["open_keys"], status["sealed_keys"]), (0, 0, 0))
        for name in ("fresh_until", "last_flush", "last_run", "last_run_outcome", "note"):
            self.assertIsNone(status[name], name)
        counterd = self.counterd()
        came = self.send_timed(counterd, {"a": 1, "b": 2})
        self.send(counterd, {"a": 3})
        status = self.assert_lag(*came)
        self.assertEqual((status["open_keys"], status["open_increments"]), (2, 6))
        self.assertIsNone(status["fresh_until"])

    def test_nothing_pending_and_a_recent_append(self):
        counterd = self.counterd()
        self.send(counterd, {"a": 1})
        self.flush()
        status = self.status()
        self.assertEqual((status["lag_seconds"], status["open_keys"], status["last_run_outcome"]), (0, 0, "ok"))
        self.assertIsNotNone(status["fresh_until"])
        status = self.assert_lag(*self.send_timed(counterd, {"a": 1}))
        self.assertEqual((status["open_keys"], status["open_increments"]), (1, 1))
        self.flush()
        self.assertEqual(self.status()["lag_seconds"], 0)

    def test_sealed_by_a_flusher_that_died(self):
        counterd = self.counterd()
        came = self.send_timed(counterd, {f"key.{n}": n for n in range(40)})
        for shard in range(8):
            self.seal(shard, f"by-hand-{shard}")
        self.send(counterd, {"later": 5})
        status = self.assert_lag(*came)
        self.assertEqual((status["sealed_keys"], status["sealed_increments"]), (40, sum(range(40))))
        self.assertEqual((status["open_keys"], status["open_increments"]), (1, 5))
        self.flush()
        self.assertEqual(self.status()["lag_seconds"], 0)

    def test_applied_by_a_flusher_that_died_before_the_release(self):
        """What is sealed then is in Postgres already: only what came later is late."""
        counterd = self.counterd(shards=1)
        proxy, through = self.proxied_postgres()
        self.config["shards"] = 1
        config = self.write_config("through.json", postgres=through)
        self.flush(config=config)  # the first run has a COMMIT more
        self.send(counterd, {"a": 1, "b": 2})
        self.flusher_killed(proxy, lambda request: b"COMMIT\0" in request, False, config)
        self.assertEqual(self.counters(), {"a": 1, "b": 2})
        self.assertEqual(self.redis.call("ZCARD", "{counterd:0}:sealed"), 2)
        status = self.status()
        self.assertEqual((status["lag_seconds"], status["sealed_keys"], status["sealed_increments"]), (0, 0, 0))
        status = self.assert_lag(*self.send_timed(counterd, {"c": 7}))
        self.assertEqual((status["open_keys"], status["open_increments"]), (1, 7))

    def test_redis_away(self):
        counterd = self.counterd()
        self.send(counterd, {"a": 1})
        self.flush()
        self.redis.kill()
        done = self.flusher("status", "--json", code=harness.EXIT_UNAVAILABLE)
        status = json.loads(done.out)
        for name in ("open_keys", "open_increments", "sealed_keys", "sealed_increments", "lag_seconds"):
            self.assertIsNone(status[name], name)
        self.assertIsNotNone(status["fresh_until"])
        self.assertEqual((status["last_run_outcome"], status["quarantined"]), ("ok", 0))
        self.assertIn("event=status_failed", done.err)
        self.assertIn("Redis", self.flusher("status", code=harness.EXIT_UNAVAILABLE).out)

    def test_postgres_away(self):
        counterd = self.counterd()
        self.flush()
        came = self.send_timed(counterd, {"a": 1, "b": 1})
        self.postgres.stop()
        self.addCleanup(harness.postgres)
        status = self.assert_lag(*came, code=harness.EXIT_UNAVAILABLE)
        self.assertEqual((status["open_keys"], status["open_increments"]), (2, 2))
        for name in ("fresh_until", "last_run", "last_run_outcome", "quarantined"):
            self.assertIsNone(status[name], name)
        for shard in range(8):
            self.seal(shard, f"by-hand-{shard}")
        status = self.assert_lag(*came, code=harness.EXIT_UNAVAILABLE)
        self.assertEqual((status["sealed_keys"], status["sealed_increments"]), (2, None))

    def test_both_away(self):
        self.redis.kill()
        self.postgres.stop()
        self.addCleanup(harness.postgres)
        done = self.flusher("status", "--json", code=harness.EXIT_UNAVAILABLE)
        self.assertEqual((done.out, done.err.count("event=status_failed")), ("", 2))

    def test_gone_back_and_quarantined(self):
        self.config["shards"] = 1
        counterd = self.counterd()
        self.send(counterd, {"a": 1})
        backup = self.backup()
        self.flush()
        self.roll_back(backup)
        status = self.status(harness.EXIT_TEMPFAIL)
        self.assertEqual(status["shards_gone_back"], 1)
        self.assertIn("gone back in time", status["note"])
        self.send(counterd, {"a": 10})
        self.flush(code=harness.EXIT_TEMPFAIL)
        status = self.status(harness.EXIT_TEMPFAIL)
        self.assertEqual((status["quarantined"], status["shards_gone_back"]), (1, 0))
        self.assertIn("flusher quarantine list", status["note"])
        self.flush_until_exact(counterd)
        self.flusher("quarantine", "drop", *(str(row["id"]) for row in self.quarantine()))
        self.assertEqual((self.status()["quarantined"], self.status()["lag_seconds"]), (0, 0))


class Freshness(StatusCase):
    """All that was acknowledged before fresh_until is in the tables: looked at again and again under traffic, while
    flushers overlap and are killed."""

    SECONDS = 6

    def post(self, counterd, sender, acknowledged):
        connection = http.client.HTTPConnection(*counterd.address("http"), timeout=harness.DEADLINE_S)
        n = 0
        while not self.over.is_set():
            keys = [f"{sender}.{n + i}" for i in range(5)]
            connection.request("POST", "/v1/increments", "\n".join(f"{key}:1|c" for key in keys).encode())
            reply = connection.getresponse()
            reply.read()
            if reply.status == 200:
                acknowledged.extend((time.time(), key) for key in keys)
            n += 5
        connection.close()

    def flush_on(self, config, kill):
        patience_s = 0.01
        while not self.over.is_set():
            with subprocess.Popen([harness.FLUSHER, "-c", config, "run"], stdout=subprocess.DEVNULL,
                                  stderr=subprocess.DEVNULL) as flusher:
                try:
                    flusher.wait(patience_s if kill else harness.DEADLINE_S)
                except subprocess.TimeoutExpired:
                    flusher.kill()
            patience_s = patience_s * 1.7 if patience_s < 0.2 else 0.01

    def test_never_claims_what_is_not_there(self):
        counterd = self.counterd(coalesce_ms=5)
        config = self.write_config("flusher.json")
        self.flush(config=config)
        self.over = threading.Event()
        logs = [[] for _ in range(3)]
        threads = [threading.Thread(target=self.post, args=(counterd, f"s{i}", log)) for i, log in enumerate(logs)]
        threads += [threading.Thread(target=self.flush_on, args=(config, kill)) for kill in (False, True)]
        claims, checked, open_then, last = 0, 0, 0, 0.0
        begin_s = time.monotonic()

        def goes_on():
            """For some seconds, and until it has something to prove, which is asked for below."""
            passed_s = time.monotonic() - begin_s
            return passed_s < self.SECONDS or (
                passed_s < harness.DEADLINE_S and (claims <= 5 or checked <= 100 or open_then == 0))

        for thread in threads:
            thread.start()
        try:
            while goes_on():
                # One statement, so one snapshot; what was acknowledged by now is more than what it claims.
                [[fresh, keys]] = self.query("select extract(epoch from (select fresh_until from counterd.freshness)),"
                                             " string_agg(key, ' ') from counterd.counters")
                stored, fresh = set(keys.split()), float(fresh)
                acknowledged = [entry for log in logs for entry in list(log)]
                claimed = {key for at, key in acknowledged if at < fresh}
                self.assertEqual(claimed - stored, set(), f"fresh until {fresh}")
                self.assertGreaterEqual(fresh, last)
                claims += fresh > last
                checked = max(checked, len(claimed))
                open_then += len(acknowledged) > len(stored)
                last = fresh
        finally:
            self.over.set()
            for thread in threads:
                thread.join()
        self.assertGreater(claims, 5, "freshness hardly moved: the test proved little")
        self.assertGreater(checked, 100, "hardly anything was claimed: the test proved little")
        self.assertGreater(open_then, 0, "nothing was ever late: the test proved little")
        # In the end it comes to all of it, and status agrees.
        self.flush(code=None)
        self.flush()
        [[fresh]] = self.query("select extract(epoch from fresh_until) from counterd.freshness")
        self.assertGreater(float(fresh), max(at for log in logs for at, _ in log))
        self.assertEqual(len(self.counters()), sum(map(len, logs)))
        self.assertEqual(self.status()["lag_seconds"], 0)


if __name__ == "__main__":
    harness.main()
