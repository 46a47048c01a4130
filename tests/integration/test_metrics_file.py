#!/usr/bin/env python3
"""test_metrics_file - `flusher run --metrics-file`: what node_exporter's textfile collector finds, after good runs and bad ones"""

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*"'
SAMPLE = re.compile(rf"({NAME})\{{({LABEL}(?:,{LABEL})*)\}} (-?\d+(?:\.\d+)?)")
UNITS = ("_rows", "_seconds", "_failed", "_code", "_shards", "_keys", "_increments", "_events", "_per_second", "_generations",
         "_gone_back", "_quarantined")


def parse(text):
    """{(name, labels): value}. Strict: every metric has HELP and TYPE, in this order, once, right before its samples;
    no sample comes twice; every line ends."""
    assert text.endswith("\n"), "the last line has no end"
    samples, current, seen = {}, None, set()
    lines = text.splitlines()
    while lines:
        line = lines.pop(0)
        if line.startswith("#"):
            help_ = re.fullmatch(rf"# HELP ({NAME}) (\S.*)", line)
            assert help_, line
            current = help_[1]
            assert current not in seen, f"{current} twice"
            seen.add(current)
            assert re.fullmatch(rf"# TYPE {current} gauge", lines.pop(0)), current
            assert SAMPLE.fullmatch(lines[0]), f"{current} has no sample"
            assert current.startswith("counterd_flush_") and current.endswith(UNITS), current
            continue
        sample = SAMPLE.fullmatch(line)
        assert sample and sample[1] == current, line
        key = sample[1].removeprefix("counterd_flush_"), sample[2]
        assert key not in samples, line
        samples[key] = float(sample[3])
    return samples


class MetricsFile(harness.Case):
    def setUp(self):
        super().setUp()
        self.migrate()
        self.path = self.dir / "textfile" / "flusher.prom"
        self.path.parent.mkdir()
        self.sent = 0

    def send(self, counterd, lines):
        counterd.send_udp(lines)
        self.sent += len(lines)
        counterd.settle(self.sent)

    def run_with_file(self, *args, **options):
        return self.flush("--metrics-file", str(self.path), *args, **options)

    def read(self, namespace="counterd"):
        """name, or (name, generation) -> value"""
        samples = {}
        for (name, labels), value in parse(self.path.read_text()).items():
            found = re.fullmatch(r'namespace="([^"]*)"(?:,generation="(open|sealed)")?', labels)
            self.assertEqual(found[1], namespace)
            samples[(name, found[2]) if found[2] else name] = value
        return samples

    def test_a_good_run(self):
        counterd = self.counterd()
        self.send(counterd, ["a:5|c", "b:2|c", "a:1|c"])
        before_s = time.time()
        run = json.loads(self.run_with_file("--json").out)
        found = self.read()
        for name in ("keys", "increments", "events", "shards", "shards_failed", "quarantined"):
            self.assertEqual(found[f"last_run_{name}"], run[name], name)
        self.assertEqual((found["last_run_keys"], found["last_run_increments"], found["last_run_events"]), (2, 8, 3))
        self.assertEqual((found["last_run_failed"], found["last_run_exit_code"]), (0, 0))
        self.assertTrue(before_s - 0.01 <= found["last_run_timestamp_seconds"] <= time.time())
        self.assertEqual(found["last_success_timestamp_seconds"], found["last_run_timestamp_seconds"])
        rate, duration_s = found["last_run_rows_per_second"], found["last_run_duration_seconds"]
        self.assertTrue(0 < duration_s < harness.DEADLINE_S)
        self.assertAlmostEqual(rate * duration_s, 2, delta=duration_s + rate / 1000)  # a whole number, and milliseconds
        self.assertTrue(before_s - 0.01 <= found["fresh_until_timestamp_seconds"] <= time.time())
        for name in ("lag_seconds", "quarantined_generations", "parked_rows", "parked_increments",
                     "dropped_increments", "last_run_parked_keys", "last_run_dropped_keys", "shards_gone_back", ("pending_keys", "open"),
                     ("pending_keys", "sealed"), ("pending_increments", "open"), ("pending_increments", "sealed")):
            self.assertEqual(found[name], 0, name)
        [row] = self.query("select keys, increments, events, shards, quarantined from counterd.runs")
        self.assertEqual([int(value) for value in row],
                         [found[f"last_run_{name}"] for name in ("keys", "increments", "events", "shards",
                                                                 "quarantined")])
        self.assertEqual(self.path.stat().st_mode & 0o7777, 0o644)

    def test_mode_whatever_the_umask(self):
        before = os.umask(0o077)
        try:
            self.run_with_file()
        finally:
            os.umask(before)
        self.assertEqual(self.path.stat().st_mode & 0o7777, 0o644)
        self.assertEqual(list(self.path.parent.iterdir()), [self.path])

    def test_failed_runs_are_told_and_keep_the_last_success(self):
        counterd = self.counterd()
        self.run_with_file()
        success_s = self.read()["last_success_timestamp_seconds"]
        self.redis.kill()
        self.run_with_file(code=harness.EXIT_UNAVAILABLE)
        found = self.read()
        self.assertEqual((found["last_run_failed"], found["last_run_exit_code"]), (1, 69))
        self.assertEqual(found["last_success_timestamp_seconds"], success_s)
        self.assertGreater(found["last_run_timestamp_seconds"], success_s)
        self.assertNotIn("lag_seconds", found)
        self.assertIn("fresh_until_timestamp_seconds", found)
        self.redis.start()
        self.postgres.stop()
        self.addCleanup(harness.postgres)
        self.run_with_file(code=harness.EXIT_UNAVAILABLE)
        found = self.read()
        self.assertEqual((found["last_run_failed"], found["last_success_timestamp_seconds"]), (1, success_s))
        self.assertNotIn("quarantined_generations", found)
        harness.postgres()
        self.send(counterd, ["a:1|c"])
        self.run_with_file()
        found = self.read()
        self.assertEqual((found["last_run_failed"], found["last_run_keys"]), (0, 1))
        self.assertGreater(found["last_success_timestamp_seconds"], success_s)

    def test_the_first_run_failed(self):
        self.redis.kill()
        self.run_with_file(code=harness.EXIT_UNAVAILABLE)
        self.assertNotIn("last_success_timestamp_seconds", self.read())

    def test_not_migrated(self):
        self.query("drop schema counterd cascade")
        self.run_with_file(code=harness.EXIT_CONFIG)
        self.assertEqual((self.read()["last_run_failed"], self.read()["last_run_exit_code"]), (1, 78))

    def test_the_namespace_is_a_label(self):
        self.config["namespace"] = "shop.eu-1"
        self.run_with_file()
        self.assertIn("last_run_failed", self.read("shop.eu-1"))

    def test_what_can_not_be_written_does_not_undo_the_run(self):
        counterd = self.counterd()
        self.send(counterd, ["a:1|c"])
        done = self.flush("--metrics-file", str(self.dir / "no" / "such.prom"))
        self.assertIn("event=metrics_file_not_written", done.err)
        self.assertIn("--metrics-file", done.err)
        self.assertEqual(self.counters(), {"a": 1})
        self.path.mkdir()  # renaming over it fails, and nothing is left beside it
        self.assertIn("event=metrics_file_not_written", self.run_with_file().err)
        self.assertEqual(list(self.path.parent.iterdir()), [self.path])

    def test_always_whole_under_flushers_that_repeat(self):
        """Two flushers that stay write the same file, while it is read all the time."""
        config = self.write_config("flusher.json")
        self.run_with_file()
        flushers = [self.track(harness.Process(f"every{n}", self.dir, [
            harness.FLUSHER, "-c", config, "run", "--every", "1", "--metrics-file", self.path])).spawn()
            for n in range(2)]
        over = threading.Event()

        def run_and_run():
            while not over.is_set():
                subprocess.run([harness.FLUSHER, "-c", config, "--metrics-file", self.path], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
        running = threading.Thread(target=run_and_run)
        running.start()
        try:
            times, first = set(), self.read()
            end_s = time.monotonic() + harness.DEADLINE_S
            while (len(times) < 20 or any(len(flusher.events("flush")) < 3 for flusher in flushers)):
                self.assertLess(time.monotonic(), end_s, "the file is not written again and again")
                found = self.read()
                self.assertEqual(found.keys(), first.keys())
                times.add(found["last_run_timestamp_seconds"])
        finally:
            over.set()
            running.join()
        for flusher in flushers:
            self.assertEqual(flusher.stop(), 0, flusher.tail())
        self.assertEqual(list(self.path.parent.iterdir()), [self.path])


if __name__ == "__main__":
    harness.main()
