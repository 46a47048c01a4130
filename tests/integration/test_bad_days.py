#!/usr/bin/env python3
"""test_bad_days - the bad days of docs/operations.md, a test each: what /v1/status, /readyz, the metrics, the log and
`flusher status` say on a bad day; and that on a good one nobody says anything"""

import re
import shlex
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness
import scenes

MANUAL = harness.ROOT / "docs/operations.md"


class BadDays(scenes.Scene):
    def assert_said(self, counterd, code, severity, ready, flusher=harness.EXIT_OK):
        """The warning with its severity and what to do, the same in the metrics; /readyz; and how `flusher status` exits
        (None: it can't be asked)."""
        def said():
            status = counterd.status()
            return next((status, warning) for warning in status["warnings"] if warning["code"] == code)
        status, warning = said()
        self.assertEqual(warning["severity"], severity)
        self.assertGreater(len(warning["action"]), 20)
        text = counterd.http("/metrics")[1]
        self.assertIn(f'counterd_warning{{code="{code}"}} 1\n', text)
        self.assertIn(f"counterd_ready {int(ready)}\n", text)
        http_code, reason = counterd.http("/readyz")
        self.assertEqual(http_code, 200 if ready else 503, reason)
        self.assertEqual(status["ready"], ready)
        if not ready:
            self.assertGreater(len(status["not_ready"]), 10)
        if flusher is not None:
            self.flusher("status", code=flusher)
        return warning["text"]

    def assert_first(self, counterd, code):
        self.assertEqual(counterd.status()["warnings"][0]["code"], code)

    def test_a_good_day(self):
        counterd = self.healthy()
        status = counterd.status()
        self.assertEqual([warning["code"] for warning in status["warnings"] if warning["severity"] != "note"], [])
        self.assertEqual(counterd.http("/readyz"), (200, "ready\n"))
        self.assertNotIn("} 1\n", "".join(line + "\n" for line in counterd.http("/metrics")[1].splitlines()
                                          if line.startswith("counterd_warning") and "buffer_clamped" not in line))
        self.assertEqual(self.flusher("status").code, 0)

    def test_redis_stopped(self):
        counterd = self.redis_stopped()
        harness.wait_until(lambda: counterd.status()["pending"] > 100, what="pending")
        text = self.assert_said(counterd, "redis_away", "bad", ready=False, flusher=harness.EXIT_UNAVAILABLE)
        self.assert_first(counterd, "redis_away")
        self.assertRegex(text, r"[\d,]+ increments wait in memory, the oldest for \d+ second")
        counterd.wait_event("redis_lost")
        self.redis.start()
        harness.wait_until(lambda: counterd.http("/readyz")[0] == 200, what="ready again")

    def test_spooling(self):
        counterd = self.spooling()
        text = self.assert_said(counterd, "redis_away", "bad", ready=False, flusher=harness.EXIT_UNAVAILABLE)
        self.assertRegex(text, r"[\d,]+ increments wait.* on disk")
        self.assertIn("may be stopped", counterd.status()["warnings"][0]["action"])
        counterd.wait_event("redis_lost")
        spool = counterd.status()["spool"]
        self.assertLess(spool["bytes"], spool["bytes_max"])
        self.assertRegex(counterd.http("/metrics")[1], r"\ncounterd_spool_waiting_increments [1-9]")
        self.assertEqual([warning["code"] for warning in counterd.status()["warnings"] if warning["code"].startswith("spool")],
                         [])
        self.redis.start()
        harness.wait_until(lambda: counterd.status()["spool"]["waiting"] == 0, what="nothing on disk")
        self.assertIn("\ncounterd_spool_bytes 0\n", counterd.http("/metrics")[1])

    def test_spool_of_a_process_that_was_killed(self):
        """The next one says at once how much waits on disk, also while Redis is still away."""
        counterd = self.spooling()
        stored = counterd.status()["appended"]["increments"]
        traffic = self.traffic.pop()
        traffic.stop()
        waiting = traffic.lines
        harness.wait_until(lambda: counterd.status()["spool"]["waiting"] == waiting, what=lambda: f"{waiting} on disk; "
                           f"{counterd.status()}")
        self.assertEqual(counterd.status()["appended"]["increments"], stored)
        counterd.kill()
        again = self.counterd("again", spool_dir=str(self.dir / "spool"))
        harness.wait_until(lambda: again.status()["spool"]["to_replay"] == waiting,
                           what=lambda: f"{waiting} to replay; {again.status()['spool']}")
        text = self.assert_said(again, "redis_away", "bad", ready=False, flusher=None)
        self.assertIn(f"{waiting:,} increments wait on disk", text)
        self.assertEqual(again.status()["pending"], 0)
        self.redis.start()
        harness.wait_until(lambda: again.status()["spool"]["to_replay"] == 0, what="nothing on disk")
        self.assertIn(f"\ncounterd_replayed_increments_total {waiting}\n", again.http("/metrics")[1])

    def test_spool_filling(self):
        counterd = self.spool_filling()
        text = self.assert_said(counterd, "spool_nearly_full", "warn", ready=False, flusher=harness.EXIT_UNAVAILABLE)
        self.assertRegex(text, r"used \d\d % of its spool_bytes")
        self.assert_first(counterd, "redis_away")

    def test_disk_full(self):
        counterd = self.disk_full()
        text = self.assert_said(counterd, "spool_failed", "bad", ready=False, flusher=harness.EXIT_UNAVAILABLE)
        self.assertRegex(text, r"[\d,]+ increments wait in memory alone, and [\d,]+ on disk\. \(can't write '.*\.spool'")
        warnings = {warning["code"]: warning for warning in counterd.status()["warnings"]}
        self.assertIn("don't stop counterd", warnings["redis_away"]["action"])
        counterd.wait_event("spool_failed")
        self.assertRegex(counterd.http("/metrics")[1], r"\ncounterd_spool_errors_total [1-9]")
        self.redis.start()
        harness.wait_until(lambda: counterd.http("/readyz")[0] == 200, what="ready again")
        harness.wait_until(lambda: counterd.status()["spool"]["waiting"] == 0, what="nothing on disk")

    def test_redis_full(self):
        counterd = self.redis_full()
        self.assert_said(counterd, "redis_full", "bad", ready=False)
        self.assert_first(counterd, "redis_full")
        counterd.wait_event("append_refused")
        self.redis.call("CONFIG", "SET", "maxmemory", "0")
        harness.wait_until(lambda: counterd.http("/readyz")[0] == 200, what="ready again")

    def test_redis_nearly_full(self):
        counterd = self.running()
        used = int(re.search(rb"used_memory:(\d+)", self.redis.call("INFO", "memory"))[1])
        self.redis.call("CONFIG", "SET", "maxmemory", used * 11 // 10)
        self.warned(counterd, "redis_nearly_full")
        self.assert_said(counterd, "redis_nearly_full", "warn", ready=True)

    def test_redis_misfit(self):
        counterd = self.redis_misfit()
        self.assertIn("NOAUTH", self.assert_said(counterd, "redis_misfit", "bad", ready=False,
                                                  flusher=harness.EXIT_CONFIG))
        counterd.wait_event("redis_misfit")

    def test_redis_read_only(self):
        """It has become a replica, and nobody took its place."""
        counterd = self.running()
        self.stored(counterd)
        self.redis.call("REPLICAOF", "127.0.0.1", "1")
        self.send_on(counterd)
        harness.wait_until(lambda: counterd.http("/readyz")[0] == 503, what="not ready")
        codes = {warning["code"] for warning in counterd.status()["warnings"]}
        self.assertTrue(codes & {"redis_refuses", "redis_away"}, codes)

    def test_redis_may_evict_or_forget(self):
        counterd = self.running()
        self.redis.call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        self.redis.call("CONFIG", "SET", "appendonly", "no")
        self.warned(counterd, "redis_evicts")
        self.warned(counterd, "redis_forgets")
        self.assert_said(counterd, "redis_evicts", "warn", ready=True)
        self.assert_said(counterd, "redis_forgets", "note", ready=True)

    def test_postgres_stopped(self):
        counterd = self.postgres_stopped()
        self.assert_said(counterd, "flush_overdue", "warn", ready=True, flusher=harness.EXIT_UNAVAILABLE)

    def test_cron_does_not_run(self):
        counterd = self.no_cron()
        text = self.assert_said(counterd, "flush_overdue", "warn", ready=True)
        self.assertRegex(text, "399 keys wait in Redis, the oldest for 10 minutes; the last flush ended 10 minutes ago")
        status = self.flusher("status")
        self.assertRegex(status.out, r"open_keys +399\n")
        self.assertRegex(status.out, r"lag_seconds +6[0-5]\d\.")
        self.flush()
        harness.wait_until(lambda: "flush_overdue" not in [warning["code"] for warning in counterd.status()["warnings"]],
                           what="an end of the warning")

    def test_a_flusher_is_stuck(self):
        counterd = self.flusher_stuck()
        self.assertRegex(self.assert_said(counterd, "flush_stuck", "warn", ready=True), "sealed, the first for 10 minutes")
        self.assertRegex(self.flusher("status").out, r"sealed_keys +99\n")

    def test_junk_floods_in(self):
        counterd = self.junk_flooding()
        self.assertIn("'type'", self.assert_said(counterd, "junk", "warn", ready=True))
        lines = len(counterd.log().splitlines())
        self.assertLess(lines, 30, "never a log line per bad packet")

    def test_the_kernel_drops(self):
        counterd = self.kernel_dropping()
        text = self.assert_said(counterd, "kernel_dropping", "bad", ready=True)
        self.assert_first(counterd, "kernel_dropping")
        dropped = int(re.search(r"dropped ([\d,]+) datagrams", text)[1].replace(",", ""))
        self.assertLessEqual(dropped, counterd.status()["kernel_dropped"])
        self.assertGreater(dropped, 0)
        self.assertIn("rmem_max", str(counterd.status()["warnings"]))
        counterd.wait_event("kernel_dropped")

    def test_keys_over_the_limit(self):
        counterd = self.keys_over_limit()
        self.assert_said(counterd, "keys_over_limit", "bad", ready=True)
        self.assertGreater(counterd.status()["table"]["overflow"], 0)

    def test_the_history_is_full(self):
        counterd = self.history_full()
        self.assert_said(counterd, "history_full", "warn", ready=True)

    def test_redis_went_back_in_time(self):
        counterd = self.redis_went_back()
        self.assertIn("sent again", self.assert_said(counterd, "redis_went_back", "warn", ready=True))
        counterd.wait_event("redis_went_back")

    def test_redis_went_back_further_than_the_history(self):
        counterd = self.increments_lost()
        self.assertIn("Up to 3 increments are lost", self.assert_said(counterd, "increments_lost", "bad", ready=True))
        counterd.wait_event("increments_lost")

    def test_stopping(self):
        counterd = self.stopping()
        self.assertIn("stopping", self.assert_said(counterd, "stopping", "note", ready=False, flusher=None))
        self.redis.signal(signal.SIGCONT)
        self.assertEqual(counterd.wait(), 0)

    def test_every_warning_is_in_the_manual(self):
        counterd = self.running()
        manual = MANUAL.read_text()
        for code in re.findall(r'counterd_warning\{code="([a-z_]+)"\}', counterd.http("/metrics")[1]):
            self.assertIn(f"`{code}`", manual)

    def test_every_command_of_the_manual_works(self):
        """Those that stand alone, and those in the text; on a machine where all is well."""
        self.config["listen"]["http"] = f"127.0.0.1:{harness.free_port()}"
        counterd = self.running(listen=self.config["listen"])
        self.stored(counterd)
        self.flush()
        manual = MANUAL.read_text()
        alone = [shlex.split(line, comments=True) for line in re.findall(r"^    (\S.*)", manual, re.MULTILINE)]
        inline = [shlex.split(words) for words in re.findall(r"`((?:flusher|redis-cli) [^`]+)`", manual)]
        self.assertGreaterEqual(len(alone), 10)
        self.assertGreaterEqual(len(inline), 5)
        for program, *words in alone + inline:
            with self.subTest(program=program, words=words):
                if program == "curl":
                    self.assertEqual(counterd.http(words[-1].removeprefix("http://127.0.0.1:8126"))[0], 200)
                elif program == "redis-cli":
                    self.assertIsNotNone(self.redis.call(*words))
                else:
                    self.assertEqual(program, "flusher")
                    if words[0] == "-c":
                        del words[:2]
                    done = self.flusher(*(str(self.dir / "counterd.prom") if word.startswith("/") else word for word in words),
                                        code=None)
                    self.assertEqual(done.code, 0, done)

    def test_every_metric_is_in_the_manual(self):
        counterd = self.running()
        self.stored(counterd)
        path = self.dir / "counterd.prom"
        self.flush("--metrics-file", str(path))
        harness.wait_until(lambda: "counterd_last_flush_seconds" in counterd.http("/metrics")[1], what="a flush seen")
        manual = MANUAL.read_text()
        for name in re.findall(r"^# TYPE (\S+)", counterd.http("/metrics")[1] + path.read_text(), re.MULTILINE):
            self.assertIn(f"`{name}`", manual)


if __name__ == "__main__":
    harness.main()
