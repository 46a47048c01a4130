#!/usr/bin/env python3
"""test_bad_days_flusher - what goes wrong in production, a test each: what `flusher status` says and exits with, what `flusher
top` says in words, and what the metrics file of a run holds
"""

import json
import re
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness
import scenes
from test_every_step import is_sql
from test_metrics_file import parse
from test_rollback import EXIT_DATA, RollbackCase


class BadDayCase(RollbackCase):
    def setUp(self):
        super().setUp()
        self.config["listen"]["http"] = f"127.0.0.1:{harness.free_port()}"
        self.metrics_path = self.dir / "flusher.prom"

    def status(self, code):
        return json.loads(self.flusher("status", "--json", code=code).out)

    def top(self, code=harness.EXIT_OK):
        """One frame; the warnings, each on a line of its own, and the rest as it stands."""
        out = self.flusher("top", "--once", code=code, env={"COLUMNS": "200"}).out
        found = re.findall(r"^! (.*(?:\n  \S.*)*)", out, re.MULTILINE)
        return [" ".join(warning.split()) for warning in found], out

    def wait_top(self, words):
        def said():
            warnings, out = self.top(code=None)
            return out if any(words in warning for warning in warnings) else None
        return harness.wait_until(said, what=lambda: f"'{words}' in {self.top(code=None)}")

    def metrics(self, code, *args):
        """What the file holds after a run that exits with `code`."""
        self.flush("--metrics-file", str(self.metrics_path), *args, code=code)
        return self.read_metrics()

    def read_metrics(self):
        found = {}
        for (name, labels), value in parse(self.metrics_path.read_text()).items():
            generation = re.search('generation="(.*)"', labels)
            found[(name, generation[1]) if generation else name] = value
        return found


class BadDay(BadDayCase):
    def test_a_good_day(self):
        """So that what the others find is not there always."""
        counterd = self.ready()
        self.send(counterd, {"a": 1})
        found = self.metrics(harness.EXIT_OK)
        self.assertEqual((found["last_run_failed"], found["lag_seconds"]), (0, 0))
        self.assertIsNone(self.status(harness.EXIT_OK)["note"])
        warnings, out = self.top()
        self.assertEqual(warnings, [])
        self.assertIn("All is well.", out)

    def test_redis_stopped(self):
        counterd = self.ready()
        self.send(counterd, {"a": 1})
        self.metrics(harness.EXIT_OK)
        self.redis.kill()
        counterd.send_udp(["a:1|c"] * 7)
        status = self.status(harness.EXIT_UNAVAILABLE)
        self.assertIsNone(status["lag_seconds"])
        self.assertEqual(status["note"], "Redis can't be asked: what is pending is not known")
        out = self.wait_top("counterd can't store; 7 increments wait in its memory")
        self.assertIn("! Redis does not answer: start it", out)
        self.assertRegex(out, "(?m)^memory +7 increments not in Redis yet")
        found = self.metrics(harness.EXIT_UNAVAILABLE)
        self.assertEqual((found["last_run_failed"], found["last_run_exit_code"]), (1, 69))
        self.assertNotIn("lag_seconds", found)

    def test_redis_full(self):
        counterd = self.ready()
        self.send(counterd, {"a": 5})
        self.redis.call("CONFIG", "SET", "maxmemory", "1mb")
        counterd.send_udp(["b:1|c"] * 9)
        out = self.wait_top("Redis is full: it uses ")
        self.assertRegex(out, "(?m)^memory +9 increments not in Redis yet")
        self.assertRegex(out, "(?m)^Redis open +1 key +sum 5")
        status = self.status(harness.EXIT_OK)
        self.assertEqual((status["open_keys"], status["open_increments"]), (1, 5))
        # What it needs most is to be flushed.
        self.assertEqual(self.metrics(harness.EXIT_OK)["last_run_increments"], 5)
        self.redis.call("CONFIG", "SET", "maxmemory", "0")
        counterd.settle(10)
        self.assertEqual(self.metrics(harness.EXIT_OK)["last_run_increments"], 9)
        self.assertEqual(self.top()[0], [])

    def test_redis_may_throw_counts_away(self):
        self.redis.call("CONFIG", "SET", "maxmemory", "1gb")
        self.redis.call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        self.ready()
        self.assertEqual(self.top()[0], ["Redis throws counts away when it is full: set maxmemory-policy to noeviction."])

    def test_a_redis_that_does_not_let_us_ask(self):
        """Whether there is room is not known then, and nothing else is missing."""
        self.redis.call("ACL", "SETUSER", "default", "-info")
        self.ready()
        self.assertEqual(self.top()[0], [])

    def test_postgres_stopped(self):
        counterd = self.ready()
        self.send(counterd, {"a": 1})
        success_s = self.metrics(harness.EXIT_OK)["last_success_timestamp_seconds"]
        self.postgres.stop()
        self.addCleanup(harness.postgres)
        self.send(counterd, {"a": 6, "b": 1})
        status = self.status(harness.EXIT_UNAVAILABLE)
        self.assertEqual((status["open_keys"], status["open_increments"]), (2, 7))
        self.assertGreater(status["lag_seconds"], 0)
        self.assertEqual(status["note"], "Postgres can't be asked: what is sealed may be in it already")
        warnings, out = self.top(harness.EXIT_UNAVAILABLE)
        self.assertEqual(len(warnings), 1)
        self.assertTrue(warnings[0].startswith("Postgres does not answer: start it"), warnings)
        self.assertRegex(out, "(?m)^Redis open +2 keys +sum 7")
        found = self.metrics(harness.EXIT_UNAVAILABLE)
        self.assertEqual((found["last_run_failed"], found["last_run_exit_code"]), (1, 69))
        self.assertEqual(found["last_success_timestamp_seconds"], success_s)
        self.assertNotIn("quarantined_generations", found)

    def test_cron_not_running(self):
        counterd = self.ready()
        self.send(counterd, {"a": 1})
        before = self.metrics(harness.EXIT_OK)
        self.send(counterd, {"a": 4})
        # Ten minutes go by.
        self.query("update counterd.runs set started_at = started_at - interval '10 min',"
                   " finished_at = finished_at - interval '10 min'")
        [meta] = [key for key in self.redis.call("KEYS", "{counterd:*}:meta") if self.redis.call("HGET", key, "opened_ms")]
        self.redis.call("HINCRBY", meta, "opened_ms", -600_000)
        status = self.status(harness.EXIT_OK)
        self.assertGreaterEqual(status["lag_seconds"], 600)
        self.assertEqual(status["last_run_outcome"], "ok")
        warnings, out = self.top()
        self.assertEqual(warnings, ["No flusher has ended a run for 10 min: is cron running? See crontab, or run "
                                    "flusher by hand."])
        self.assertRegex(out, "(?m)^  oldest +10 min$")
        self.assertEqual(self.read_metrics(), before)  # it grows old: only its time tells
        self.flush()
        self.assertEqual(self.top()[0], [])

    def test_never_a_run(self):
        counterd = self.ready()
        self.send(counterd, {"a": 4})
        [meta] = self.redis.call("KEYS", "{counterd:*}:meta")
        self.redis.call("HINCRBY", meta, "opened_ms", -600_000)
        self.assertGreaterEqual(self.status(harness.EXIT_OK)["lag_seconds"], 600)
        self.assertEqual(self.top()[0], ["No flusher has ever run here: let cron run it, see examples/crontab."])
        self.assertFalse(self.metrics_path.exists())

    def test_a_flusher_stuck_in_a_transaction(self):
        counterd = self.ready()
        self.send(counterd, {"a": 1})
        before = self.metrics(harness.EXIT_OK)
        proxy, postgres = self.proxied_postgres()
        through = self.write_config("through.json", postgres=postgres)
        self.send(counterd, {"a": 2})
        flusher = self.track(harness.Process("stuck", self.dir, [
            harness.FLUSHER, "-c", through, "--metrics-file", self.metrics_path]))
        proxy.hold(is_sql("insert into counterd.ledger"), lambda: flusher.signal(signal.SIGSTOP))
        from_s = time.time()
        flusher.spawn()
        out = self.wait_top("A flusher has been sitting in a transaction for")
        self.assertRegex(out, "(?m)^  sealed +1 key +sum 2$")
        status = self.status(harness.EXIT_TEMPFAIL)
        self.assertTrue(3 <= status["stuck_seconds"] <= time.time() - from_s, status)
        self.assertGreater(status["lag_seconds"], 3)
        self.assertIn("a flusher sits in a transaction", status["note"])
        self.assertEqual(self.read_metrics(), before)  # it has not ended
        # What is advised helps, and nothing is lost or doubled.
        flusher.kill()
        harness.wait_until(lambda: self.flusher("status", "--json", code=None).code == 0,
                           what="Postgres notices")
        self.assertEqual(self.metrics(harness.EXIT_OK)["last_run_increments"], 2)
        self.assertEqual(self.counters(), {"a": 3})
        self.assertEqual(self.top()[0], [])

    def test_redis_gone_back_in_time_and_quarantined(self):
        self.config["shards"] = 1
        counterd = self.ready()
        self.send(counterd, {"a": 1})
        backup = self.backup()
        self.flush()
        self.roll_back(backup)
        status = self.status(harness.EXIT_TEMPFAIL)
        self.assertEqual((status["shards_gone_back"], status["quarantined"]), (1, 0))
        self.wait_top("Redis has gone back in time or was emptied, in 1 of 1 shards")
        self.send(counterd, {"a": 10})
        found = self.metrics(harness.EXIT_TEMPFAIL)
        self.assertEqual((found["last_run_failed"], found["last_run_exit_code"]), (1, 75))
        self.assertEqual((found["last_run_quarantined"], found["quarantined_generations"]), (1, 1))
        self.assertEqual(found["shards_gone_back"], 0)
        status = self.status(harness.EXIT_TEMPFAIL)
        self.assertEqual((status["shards_gone_back"], status["quarantined"]), (0, 1))
        self.assertIn("quarantine list", status["note"])
        warnings, out = self.top()
        self.assertIn("1 generation was not applied, because Redis went back in time: see 'flusher quarantine list'.",
                      warnings)
        self.assertTrue(any(warning.startswith("The last run failed: shard 0: Redis went back") for warning in warnings))
        self.assertRegex(out, "(?m)^kept apart +quarantined 1")
        # What is advised helps.
        self.flush_until_exact(counterd)
        self.flusher("quarantine", "drop", *(str(row["id"]) for row in self.quarantine()))
        self.assertEqual(self.metrics(harness.EXIT_OK)["quarantined_generations"], 0)
        self.assertEqual((self.top()[0], self.status(harness.EXIT_OK)["note"]), ([], None))

    def test_postgres_restored_from_a_backup(self):
        """What docs/operations.md tells to do brings in all that Redis has, and a new namespace balances."""
        backup = self.database + "_backup"
        counterd = self.counterd()
        self.send(counterd, {"a": 1, "b": 1})
        self.flush()
        self.postgres.query(f"create database {backup} template {self.database}", "postgres")
        self.send(counterd, {"a": 10})
        self.flush()
        self.send(counterd, {"a": 100, "new": 5})
        self.assertEqual(counterd.stop(), 0, counterd.tail())
        self.postgres.query(f"drop database {self.database}", "postgres")
        self.postgres.query(f"alter database {backup} rename to {self.database}", "postgres")
        self.assertIn("verdict=lost", self.flusher("audit", code=EXIT_DATA).out)
        self.flush(code=harness.EXIT_TEMPFAIL)
        self.flusher("quarantine", "apply", *(str(row["id"]) for row in self.quarantine()))
        self.assertEqual(self.counters(), {"a": 101, "b": 1, "new": 5})

        self.config["namespace"] = "begun_again"
        self.send(self.counterd("another"), {"a": 1000, "b": 1000})
        self.flush()
        self.assertEqual(self.counters(), {"a": 1101, "b": 1001, "new": 5})
        self.assertIn("verdict=balanced", self.flusher("audit").out)

    def test_parked(self):
        self.query("create table posts (id bigint primary key, views bigint not null default 0);"
                   "insert into posts values (1)")
        self.config["targets"] = [{"match": "post.{id}", "table": "posts", "value": "views"},
                                  {"match": "gone.{id}", "table": "posts", "value": "views", "missing": "drop"},
                                  {"match": "*", "table": "counterd.counters"}]
        counterd = self.ready()
        self.send(counterd, {"post.1": 5})
        found = self.metrics(harness.EXIT_OK)
        self.assertEqual([found[name] for name in ("parked_rows", "parked_increments", "dropped_increments")], [0, 0, 0])
        self.send(counterd, {"post.7": 3, "post.8": 4, "gone.9": 2})
        found = self.metrics(harness.EXIT_OK)
        self.assertEqual([found[name] for name in ("last_run_parked_keys", "last_run_dropped_keys", "parked_rows",
                                                   "parked_increments", "dropped_increments")], [2, 1, 2, 7, 2])
        found = self.metrics(harness.EXIT_OK)  # another run, which has nothing to do with them
        self.assertEqual([found[name] for name in ("last_run_parked_keys", "last_run_dropped_keys", "parked_rows",
                                                   "parked_increments", "dropped_increments")], [0, 0, 2, 7, 2])
        status = self.status(harness.EXIT_OK)
        self.assertEqual([status[name] for name in ("parked_rows", "parked_increments", "dropped_increments")], [2, 7, 2])
        self.assertIn("flusher parked list", status["note"])
        warnings, out = self.top()
        self.assertEqual(warnings, ["2 rows are parked, because the target could not take them: see 'flusher parked "
                                    "list'."])
        self.assertRegex(out, "(?m)^kept apart +quarantined 0 +parked 2 +sum 7$")
        # What is advised helps.
        self.query("insert into posts values (7), (8)")
        self.flusher("parked", "retry")
        self.assertEqual((self.top()[0], self.status(harness.EXIT_OK)["note"]), ([], None))
        self.assertEqual(self.metrics(harness.EXIT_OK)["parked_rows"], 0)


class SeenByCounterd(BadDayCase, scenes.Scene):
    """What only counterd can see: `flusher top` passes its words on, and nothing is late or missing."""

    def assert_passed_on(self, counterd, code):
        text = next(warning["text"] for warning in counterd.status()["warnings"] if warning["code"] == code)
        out = self.wait_top(re.match(r"\D+", text)[0])  # its figures go on
        self.assertNotIn("All is well.", out)
        self.assertIsNone(self.status(harness.EXIT_OK)["note"])
        self.assertEqual(self.metrics(harness.EXIT_OK)["last_run_failed"], 0)
        return " ".join(out.split())

    def running(self, **changes):
        """At the address that the flusher's configuration names."""
        changes.setdefault("listen", self.config["listen"])
        changes["listen"] = {**changes["listen"], "http": self.config["listen"]["http"]}
        return super().running(**changes)

    def test_junk_floods_in(self):
        out = self.assert_passed_on(self.junk_flooding(), "junk")
        self.assertRegex(out, "! Junk comes in: [0-9,]+ lines of the last minute, [0-9]+ % of all, were rejected.")
        self.assertRegex(out, "rejected [0-9,]+ lines")
        self.assertIn("The samples show what it looks like", out)

    def test_the_kernel_drops(self):
        out = self.assert_passed_on(self.kernel_dropping(), "kernel_dropping")
        self.assertRegex(out, "! The kernel dropped [0-9,]+ datagrams in the last minute")
        self.assertRegex(out, "kernel [0-9,]+ datagrams dropped")
        self.assertIn("rmem_max", out)

    def test_keys_over_the_limit(self):
        out = self.assert_passed_on(self.keys_over_limit(), "keys_over_limit")
        self.assertIn("! More keys than keys_max allows (", out)

    def test_spooling(self):
        counterd = self.spooling()
        self.status(harness.EXIT_UNAVAILABLE)
        out = " ".join(self.wait_top("increments wait on its disk").split())
        self.assertRegex(out, "counterd can't store; [0-9,]+ increments wait on its disk, and [0-9,]+ in its memory.")
        self.assertRegex(out, "on disk [0-9,]+ increments not in Redis yet")
        self.assertNotIn("Don't stop counterd", out)
        self.assertEqual(counterd.status()["spool"]["errors"], 0)
        self.assertEqual(self.metrics(harness.EXIT_UNAVAILABLE)["last_run_failed"], 1)

    def test_disk_full(self):
        self.disk_full()
        out = " ".join(self.wait_top("The disk takes no more").split())
        self.assertRegex(out, "! The disk takes no more: [0-9,]+ increments wait in memory alone, and [0-9,]+ on disk.")
        self.assertIn("don't stop counterd", out)


if __name__ == "__main__":
    harness.main()
