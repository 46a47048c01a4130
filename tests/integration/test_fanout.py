#!/usr/bin/env python3
"""test_fanout - one event, several counters: all of them in Redis, each exactly, before the event is acknowledged"""

import json
import random
import signal
import socket
import sys
import urllib.error
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness

SEED = 7


class Fanout(harness.Case):
    def setUp(self):
        super().setUp()
        self.config["fanout"] = [
            {"match": "post.views.{id}", "also": ["site.views", "views.of.{id}"]},
            {"match": "team.{t}.user.{u}", "also": ["team.{t}", "site.views"]},
            {"match": "post.*", "also": ["site.views", "site.posts"]},
        ]

    def sync(self, counterd, lines):
        """Sends them on TCP, and returns when counterd says that all of it is in Redis."""
        with socket.create_connection(counterd.address("tcp"), harness.DEADLINE_S) as tcp:
            tcp.sendall(("\n".join(lines) + "\nSYNC done\n").encode())
            self.assertEqual(tcp.makefile("rb").readline(), b"SYNCED done\n")

    def test_all_of_an_event_is_in_redis_when_it_is_acknowledged(self):
        counterd = self.counterd(coalesce_ms=60000)
        self.sync(counterd, ["post.views.1:1|c", "post.views.2:3|c", "post.views.1:1|c", "team.a.user.b:5|c"])
        self.assertEqual(self.redis.pending(), {
            "post.views.1": 2, "post.views.2": 3, "team.a.user.b": 5, "team.a": 5, "views.of.1": 2, "views.of.2": 3,
            "site.views": 10, "site.posts": 5})

    def test_a_request_is_answered_when_all_of_it_is_in_redis(self):
        counterd = self.ready(coalesce_ms=60000)
        url = "http://{}:{}/v1/increments".format(*counterd.address("http"))
        request = urllib.request.Request(url, b"post.views.1:1|c\npost.other:1|c\n", method="POST")
        with urllib.request.urlopen(request, timeout=harness.DEADLINE_S) as answer:
            self.assertEqual(json.load(answer)["accepted"], 2)
        self.assertEqual(self.redis.pending(), {"post.views.1": 1, "post.other": 1, "views.of.1": 1, "site.views": 2,
                                                "site.posts": 2})

    def test_fractions_make_the_same_wholes_everywhere(self):
        counterd = self.counterd()
        for number in range(10):
            self.sync(counterd, [f"post.views.{number}:0.5|c", "post.views.same:0.1|c"])
        self.assertEqual(self.redis.pending()["site.views"], 6)
        self.assertEqual(self.redis.pending()["views.of.same"], 1)
        self.assertEqual(self.redis.pending()["post.views.same"], 1)

    def test_lines_are_counted_once_in_the_status(self):
        counterd = self.counterd()
        counterd.send_udp(["post.views.1:1|c"] * 100 + ["other:1|c"])
        status = counterd.settle(101)
        self.assertEqual((status["accepted"], status["appended"]["increments"], status["pending"]), (101, 101, 0))
        self.flush_and_audit()

    def test_lines_with_a_key_are_counted_once_in_the_status(self):
        counterd = self.counterd()
        harness.wait_until(lambda: counterd.http("/readyz")[0] == 200, what="ready")
        url = "http://{}:{}/v1/increments".format(*counterd.address("http"))
        request = urllib.request.Request(url, b"post.views.1:1|c\npost.views.2:1|c\nsite.views:5|c\njunk", method="POST",
                                         headers={"Idempotency-Key": "k"})
        with urllib.request.urlopen(request, timeout=harness.DEADLINE_S) as answer:
            self.assertEqual(json.load(answer)["accepted"], 3)
        status = counterd.settle(4)
        self.assertEqual((status["accepted"], status["appended"]["increments"], status["pending"]), (3, 3, 0))
        self.assertEqual(self.redis.pending(), {"post.views.1": 1, "post.views.2": 1, "views.of.1": 1, "views.of.2": 1,
                                                "site.views": 7, "site.posts": 2})
        events = [int(self.redis.call("HGET", meta, "events")) for meta in self.redis.call("KEYS", "*:meta")]
        self.assertEqual(sum(events), 3)
        self.flush_and_audit()

    def test_a_request_that_makes_too_many_keys_is_refused(self):
        counterd = self.counterd()
        harness.wait_until(lambda: counterd.http("/readyz")[0] == 200, what="ready")
        url = "http://{}:{}/v1/increments".format(*counterd.address("http"))
        lines = "\n".join(f"post.views.{n}:1|c" for n in range(6000))
        request = urllib.request.Request(url, lines.encode(), method="POST", headers={"Idempotency-Key": "k"})
        with self.assertRaises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=harness.DEADLINE_S)
        self.assertEqual(refused.exception.code, 413)
        self.assertEqual((self.redis.pending(), counterd.status()["accepted"]), ({}, 0))

    def flush_and_audit(self):
        self.migrate()
        self.flush()
        self.assertEqual(json.loads(self.flusher("audit", "--json").out)["verdict"], "balanced")

    def test_many_keys_through_an_outage_are_exact(self):
        dice = random.Random(SEED)
        counterd = self.counterd()
        lines = [f"post.views.{dice.randrange(3000)}:{dice.randrange(1, 9)}|c" for _ in range(30000)]
        expected = {}
        for line in lines:
            key, value = line[:-2].split(":")
            for name in (key, "views.of." + key.rsplit(".", 1)[1], "site.views", "site.posts"):
                expected[name] = expected.get(name, 0) + int(value)
        counterd.send_udp(lines[:10000])
        self.redis.signal(signal.SIGKILL)
        self.redis.wait()
        counterd.send_udp(lines[10000:20000])
        harness.wait_until(lambda: counterd.status()["accepted"] == 20000)
        self.redis.start()
        counterd.send_udp(lines[20000:])
        counterd.settle(30000)
        self.assertEqual(self.redis.pending(), expected)

    def test_what_a_stop_could_not_store_of_it_is_told(self):
        """Redis has the event, and has no room for what it is fanned out to."""
        self.redis.call("ZADD", "{counterd:0}:open", 2**53 - 1, "site.posts")
        counterd = self.counterd(shards=1, redis={"url": self.redis.url, "timeout_ms": 1000})
        counterd.send_udp(["post.other:7|c"])
        counterd.wait_event("append_refused")
        self.assertEqual(counterd.stop(), harness.EXIT_TEMPFAIL, counterd.tail())
        self.assertEqual(len(counterd.events("fanout_dropped")), 1)

    def test_a_key_that_would_be_too_long_is_counted_as_left_out(self):
        self.config["fanout"] = [{"match": "a.{x}", "also": ["longer.{x}", "all"]}]
        counterd = self.counterd()
        key = "a." + "x" * 253
        counterd.send_udp([f"{key}:2|c", f"{key}:1|c"])
        status = counterd.settle(2)
        self.assertEqual(self.redis.pending(), {key: 3, "all": 3})
        self.assertEqual(status["table"]["fanout_left_out"], 2)

    def test_without_room_for_what_is_made_totals_hold(self):
        counterd = self.counterd(keys_max=100, coalesce_ms=1000, fanout=[{"match": "k.{x}", "also": ["a.{x}", "b.{x}"]}])
        self.sync(counterd, [f"k.{number}:1|c" for number in range(70)])
        pending = self.redis.pending()
        self.assertEqual(sum(count for key, count in pending.items() if not key.startswith("k.")), 140)
        self.assertEqual(sum(count for key, count in pending.items() if key.startswith("k.")), 70)
        self.assertEqual(counterd.status()["table"]["fanout_overflow"], pending.get("counterd.overflow", 0))

    def test_each_in_the_bucket_of_its_own_target(self):
        self.config["targets"] = [
            {"match": "team.{t}", "table": "counterd.counters", "rollup": {"bucket": "1h"}},
            {"match": "team.{t}.user.{u}", "table": "counterd.counters", "rollup": {"bucket": "1m"}},
            {"match": "*", "table": "counterd.counters"}]
        counterd = self.counterd()
        counterd.send_udp(["team.a.user.b:1|c|T1656581460", "team.a.user.b:2|c|T1656581520",
                           "team.a.user.b:4|c|T1656583200"])
        counterd.settle(3)
        self.assertEqual(self.redis.pending(), {
            "team.a.user.b 1656581460": 1, "team.a.user.b 1656581520": 2, "team.a.user.b 1656583200": 4,
            "team.a 1656579600": 3, "team.a 1656583200": 4, "site.views": 7})

    def test_sighup_takes_rules_over_for_what_comes(self):
        counterd = self.counterd()
        self.sync(counterd, ["x.1:1.5|c", "post.views.1:1|c"])
        self.write_config("counterd.json", fanout=[{"match": "x.{id}", "also": ["xs"]}])
        counterd.signal(signal.SIGHUP)
        counterd.wait_event("reloaded", fanouts="1")
        self.sync(counterd, ["x.1:1.5|c", "x.2:1|c", "post.views.1:1|c"])
        self.assertEqual(self.redis.pending(), {"x.1": 3, "x.2": 1, "xs": 2, "post.views.1": 2, "views.of.1": 1,
                                                "site.views": 1, "site.posts": 1})

    def test_reloading_all_the_time_loses_and_doubles_nothing(self):
        """Each event goes by one set of rules as a whole: what both make in turn adds up to what was sent."""
        rules = [[{"match": "x.{id}", "also": [name]}] for name in ("even", "odd")]
        counterd = self.counterd(workers=2, coalesce_ms=5, fanout=rules[0])
        lines = [f"x.{number % 50}:1|c" for number in range(400)]
        for turn in range(20):
            counterd.send_udp(lines)
            self.write_config("counterd.json", workers=2, coalesce_ms=5, fanout=rules[turn % 2])
            counterd.signal(signal.SIGHUP)
            counterd.wait_event("reloaded", turn + 1)
        counterd.settle(20 * len(lines))
        pending = self.redis.pending()
        self.assertEqual(pending.pop("even") + pending.pop("odd"), 20 * len(lines))
        self.assertEqual(pending, {f"x.{number}": 160 for number in range(50)})

    def test_a_loop_in_a_reload_changes_nothing(self):
        counterd = self.counterd()
        self.write_config("counterd.json", fanout=[{"match": "a", "also": ["b"]}, {"match": "b", "also": ["a"]}])
        counterd.signal(signal.SIGHUP)
        counterd.wait_event("reload_refused")
        self.sync(counterd, ["team.a.user.b:1|c"])
        self.assertEqual(self.redis.pending(), {"team.a.user.b": 1, "team.a": 1, "site.views": 1})


if __name__ == "__main__":
    harness.main()
