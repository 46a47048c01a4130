#!/usr/bin/env python3
"""test_spool - batches that wait on disk: while Redis is away, over kill -9 and restarts, with a disk that is full or lies"""

import resource
import shutil
import signal
import socket
import sys
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness


class Case(harness.Case):
    def setUp(self):
        super().setUp()
        self.migrate()
        self.spool_dir = self.dir / "spool"
        self.spool_dir.mkdir()
        self.config["spool_dir"] = str(self.spool_dir)
        self.config["redis"]["timeout_ms"] = 2000  # a stop waits so long for a Redis that is away

    @property
    def files(self):
        return self.spool_dir / "counterd"

    def segments(self):
        return sorted(self.files.glob("*.spool"))

    def spooled(self, counterd, increments):
        """Waits until so many increments have been written to disk."""
        harness.wait_until(lambda: counterd.status()["spool"]["increments"] >= increments,
                           what=lambda: f"{increments} on disk; {counterd.status()['spool']}")

    def stored(self, expected):
        harness.wait_until(lambda: self.redis.pending() == expected,
                           what=lambda: f"{expected}; {self.redis.pending()}")

    def post(self, counterd, lines):
        url = "http://{}:{}/v1/increments".format(*counterd.address("http"))
        with urllib.request.urlopen(url, lines.encode(), harness.DEADLINE_S) as answer:
            self.assertEqual(answer.status, 200)

    def emptied(self):
        harness.wait_until(lambda: not self.segments(), what=lambda: f"no segments: {self.segments()}")


class Spool(Case):
    def test_unused_while_redis_is_up(self):
        counterd = self.counterd()
        counterd.send_udp(["a:1|c"] * 100)
        counterd.settle(100)
        self.assertEqual(counterd.stop(), 0)
        self.assertEqual([path.name for path in self.files.iterdir()], ["lock"])

    def test_an_outage_goes_to_disk_and_comes_back(self):
        counterd = self.counterd()
        counterd.send_udp(["a:1|c"] * 10)
        counterd.settle(10)
        self.redis.kill()
        total = 0
        for n in range(1, 4):
            counterd.send_udp([f"key.{key}:1|c" for key in range(500)])
            total += 500
            self.spooled(counterd, total)
        self.assertTrue(self.segments())
        self.assertEqual(counterd.status()["pending"], 1500)
        self.redis.start()
        counterd.settle(1510)
        self.stored({"a": 10, **{f"key.{key}": 3 for key in range(500)}})
        self.emptied()
        harness.wait_until(lambda: counterd.status()["spool"]["bytes"] == 0, what="a spool of no bytes")

    def test_keys_stay_apart_beyond_keys_max(self):
        """In memory alone they would come together in counterd.overflow."""
        counterd = self.counterd(keys_max=100)
        self.redis.kill()
        expected = {}
        for n in range(10):
            lines = [f"key.{n}.{key}:1|c" for key in range(70)]
            expected.update({line.split(":")[0]: 1 for line in lines})
            counterd.send_udp(lines)
            self.spooled(counterd, 70 * (n + 1))
        self.redis.start()
        counterd.settle(700)
        self.stored(expected)
        self.assertEqual(counterd.status()["table"]["overflow"], 0)

    def test_kill_9_while_redis_is_away(self):
        counterd = self.counterd()
        counterd.send_udp(["a:1|c"] * 10)
        counterd.settle(10)
        self.redis.kill()
        counterd.send_udp(["a:1|c", "b:1|c"] * 50)
        self.spooled(counterd, 100)
        counterd.kill()
        again = self.counterd("again")
        again.send_udp(["a:1|c"])
        self.redis.start()
        self.stored({"a": 61, "b": 50})
        again.wait_event("replayed", increments="100")
        self.emptied()
        self.flush()
        self.assertEqual(self.counters(), {"a": 61, "b": 50})
        self.assertEqual(again.settle(1)["spool"]["replayed_increments"], 100)

    def test_kill_9_while_redis_is_full(self):
        """It answers, and takes nothing: what it refuses does not wait in memory alone."""
        counterd = self.counterd()
        counterd.send_udp(["a:1|c"] * 10)
        counterd.settle(10)
        self.redis.call("CONFIG", "SET", "maxmemory", "1")
        for total in (100, 200):
            counterd.send_udp(["a:1|c", "b:1|c"] * 50)
            self.spooled(counterd, total)
        counterd.kill()
        again = self.counterd("again")
        again.send_udp(["a:1|c"])
        self.spooled(again, 1)
        self.redis.call("CONFIG", "SET", "maxmemory", "0")
        self.stored({"a": 111, "b": 100})
        self.emptied()
        again.settle(1)

    def test_targets_and_fanout_change_while_batches_wait(self):
        """Each batch goes as it was made, over reloads and a restart."""
        fanout = [{"match": "page.{id}", "also": ["site"]}]
        rollup = [{"match": "page.{id}", "table": "counterd.counters", "rollup": {"bucket": "1d"}},
                  {"match": "*", "table": "counterd.counters"}]
        self.redis.kill()
        counterd = self.counterd(workers=2, fanout=fanout, targets=rollup)
        counterd.send_udp(["page.1:1|c"] * 100)
        self.spooled(counterd, 100)
        for reloads, (total, changes) in enumerate(((110, {"fanout": [], "targets": rollup[1:]}),
                                                    (111, {"fanout": fanout, "targets": rollup})), 1):
            self.write_config("counterd.json", **changes)
            counterd.signal(signal.SIGHUP)
            counterd.wait_event("reloaded", reloads)
            counterd.send_udp(["page.1:1|c"] * (total - counterd.status()["accepted"]))
            self.spooled(counterd, total)
        self.assertEqual(counterd.stop(), 0, counterd.tail())
        self.redis.start()
        self.counterd("again")
        self.emptied()
        pending = self.redis.pending()
        self.assertEqual((pending.pop("page.1"), pending.pop("site")), (10, 101))
        self.assertEqual(sum(pending.values()), 101)

    def test_a_stop_without_redis_loses_nothing(self):
        counterd = self.counterd(coalesce_ms=60000, workers=2)
        self.redis.kill()
        counterd.send_udp([f"key.{n}:1|c" for n in range(3000)] + ["half:0.5|c", "half:0.25|c"])
        self.assertEqual(counterd.stop(), 0, counterd.tail())
        self.assertEqual([line["increments"] for line in counterd.events("increments_spooled")], ["3002"])
        self.redis.start()
        again = self.counterd("again", workers=1)
        again.send_udp(["half:0.25|c"])
        self.stored({**{f"key.{n}": 1 for n in range(3000)}, "half": 1})
        self.emptied()

    def test_fractions_over_a_restart(self):
        for n in range(8):
            counterd = self.counterd(f"counterd{n}", workers=2 - n % 2)
            counterd.send_udp(["a:0.25|c", "b:-0.125|c"])
            counterd.settle(2)
            self.assertEqual(counterd.stop(), 0, counterd.tail())
        self.flush()
        self.assertEqual(self.counters(), {"a": 2, "b": -1})

    def test_fractions_of_several_workers_make_a_whole_at_the_start(self):
        """What each table has left of a key comes together in one, where no line may ever come to it again."""
        counterd = self.counterd()
        harness.wait_until(lambda: counterd.http("/readyz")[0] == 200, what="ready")
        counterd.send_udp(["a:0.9|c", "b:0.25|c"])
        self.post(counterd, "a:0.9|c\nb:0.25|c")
        counterd.settle(4)
        self.assertEqual(counterd.stop(), 0, counterd.tail())
        again = self.counterd("again")
        self.stored({"a": 1, "b": 0})
        self.assertEqual(again.stop(), 0, again.tail())
        self.redis.kill()
        for n in range(2):
            again = self.counterd(f"away{n}")
            self.assertEqual(again.stop(), 0, again.tail())
        self.redis.start()
        last = self.counterd("last")
        last.send_udp(["a:0.2|c", "b:0.5|c"])
        last.settle(2)
        self.stored({"a": 2, "b": 1})

    def test_more_than_a_unit_of_fractions_waits_for_redis_over_restarts(self):
        counterd = self.counterd()
        harness.wait_until(lambda: counterd.http("/readyz")[0] == 200, what="ready")
        counterd.send_udp(["a:0.9|c"])
        self.post(counterd, "a:0.9|c")
        counterd.settle(2)
        self.assertEqual(counterd.stop(), 0, counterd.tail())
        self.redis.kill()
        for n in range(3):
            again = self.counterd(f"away{n}")
            self.assertEqual(again.stop(), 0, again.tail())
        self.redis.start()
        self.counterd("last")
        self.stored({"a": 1})

    def test_a_stop_without_redis_stores_what_came_behind_fractions(self):
        """Of what is fanned out nothing but fractions may be left, in shards that have been gone over already."""
        self.config["fanout"] = [{"match": "half.{n}", "also": ["twin.{n}"]}]
        counterd = self.counterd(coalesce_ms=1)
        counterd.send_udp([f"half.{n}:0.5|c" for n in range(100)])
        counterd.settle(100)
        self.redis.kill()
        counterd.wait_event("redis_lost")
        counterd.send_udp(["half.1:1|c"])
        harness.wait_until(lambda: counterd.status()["table"]["keys"] >= 100, what="all is in memory")
        counterd.send_udp([f"key.{n}:1|c" for n in range(10)])
        self.assertEqual(counterd.stop(), 0, counterd.tail())
        self.assertEqual([line["increments"] for line in counterd.events("increments_spooled")], ["11"])
        self.redis.start()
        self.counterd("again")
        harness.wait_until(lambda: self.redis.pending().get("key.9") == 1 and self.redis.pending()["half.1"] == 1,
                           what=lambda: self.redis.pending())
        self.emptied()

    def test_all_that_waits_of_several_workers_is_shown(self):
        """Its writers' batches are sent one after the other, but all of them wait."""
        counterd = self.counterd(workers=2)
        self.redis.kill()
        counterd.wait_event("redis_lost")
        sent = 0
        while len({segment.name.split(".")[0] for segment in self.segments()}) < 2:
            counterd.send_datagrams(counterd.address("udp"), [b"key.%d:1|c" % n for n in range(sent, sent + 20)])
            sent += 20
            harness.wait_until(lambda: counterd.status()["spool"]["waiting"] == sent, what="all is on disk")
        counterd.kill()
        on_disk = sum(segment.stat().st_size for segment in self.segments())
        again = self.counterd("again", workers=1)
        spool = again.status()["spool"]
        self.assertEqual((spool["to_replay"], spool["bytes"]), (sent, on_disk))
        self.redis.start()
        self.stored({f"key.{n}": 1 for n in range(sent)})
        harness.wait_until(lambda: again.status()["spool"]["bytes"] == 0, what="the disk is empty")
        self.assertEqual(again.status()["spool"]["to_replay"], 0)

    def test_ready_again_when_redis_went_away_at_the_end_of_a_replay(self):
        """All of it is in Postgres, and nobody connects for it any more."""
        counterd = self.counterd()
        self.redis.kill()
        counterd.wait_event("redis_lost")
        counterd.send_udp(["a:1|c"])
        self.spooled(counterd, 1)
        counterd.kill()
        self.redis.start()
        proxy = harness.Proxy(self.dir / "proxy.sock", self.redis.path)
        self.addCleanup(proxy.close)
        again = self.counterd("again", redis={"url": f"unix://{proxy.path}?db=0", "timeout_ms": 1000})
        again.wait_event("replayed")
        writer = again.events("replayed")[0]["writer"].encode()
        self.flush()
        proxy.hold(lambda data: b"-- probe:" in data and writer in data, self.redis.kill)
        again.wait_event("redis_lost", 13)
        self.redis.start()
        harness.wait_until(lambda: again.http("/readyz")[0] == 200, what=lambda: again.http("/readyz"))

    def test_what_a_thousand_starts_have_left_is_sent_by_one(self):
        """A part of it at a time, since each writer takes a connection until what it sent is in Postgres."""
        counterd = self.counterd("first")
        self.redis.kill()
        counterd.send_udp(["a:1|c"])
        self.spooled(counterd, 1)
        counterd.kill()
        self.redis.start()
        [segment] = self.segments()
        for n in range(1100):
            shutil.copy(segment, self.files / f"{n:026}.00000001.spool")
        again = self.counterd("again", redis={"url": self.redis.url, "timeout_ms": harness.REDIS_TIMEOUT_MS})
        harness.wait_until(lambda: self.flush() and self.counters() == {"a": 1101}, what=lambda: self.counters())
        self.emptied()
        self.assertEqual(again.status()["spool"]["replayed_increments"], 1101)

    def test_redis_that_never_answers(self):
        """It takes connections and says nothing: away as well. What was sent has an unknown end, and keeps its number."""
        counterd = self.counterd(redis={"url": self.redis.url, "timeout_ms": 300})
        counterd.send_udp(["a:1|c"])
        counterd.settle(1)
        self.redis.signal(signal.SIGSTOP)
        counterd.send_udp(["a:1|c"] * 20)
        self.spooled(counterd, 20)
        self.assertEqual(counterd.stop(), 0, counterd.tail())
        self.redis.signal(signal.SIGCONT)
        self.counterd("again")
        self.stored({"a": 21})
        self.emptied()
        self.flush()
        self.assertEqual(self.counters(), {"a": 21})

    def test_killed_again_and_again_while_it_is_replayed(self):
        counterd = self.counterd(shards=8, coalesce_ms=5)
        self.redis.kill()
        total = 0
        for n in range(3):
            counterd.send_udp([f"key.{key}:1|c" for key in range(4000)])
            total += 4000
            self.spooled(counterd, total)
        counterd.kill()
        self.redis.start()
        proxy, through = self.proxied_redis()
        for n in range(4):
            config = self.write_config(f"again{n}.json", redis=through)
            counterd = self.track(harness.Counterd(self.dir, config, f"again{n}"))
            proxy.hold(lambda request: b"key." in request, lambda: counterd.signal(signal.SIGKILL))
            counterd.start(event=None)
            harness.wait_until(lambda: not counterd.alive, what="its end with a batch on its way")
            self.assertTrue(self.segments())
        self.counterd("last")
        self.stored({f"key.{key}": 3 for key in range(4000)})
        self.emptied()
        self.assertEqual(self.redis.accepted(), 12000)

    def test_what_is_fanned_out_goes_along(self):
        counterd = self.counterd(fanout=[{"match": "view.{id}", "also": ["views"]}], shards=8)
        self.redis.kill()
        counterd.send_udp([f"view.{n}:1|c" for n in range(300)])
        self.spooled(counterd, 300)
        harness.wait_until(lambda: counterd.status()["table"]["keys"] == 0, what="all on disk")
        counterd.kill()
        self.redis.start()
        self.counterd("again")
        self.stored({"views": 300, **{f"view.{n}": 1 for n in range(300)}})
        self.emptied()

    def test_sync_waits_for_redis_and_not_for_the_disk(self):
        counterd = self.counterd()
        self.redis.kill()
        with socket.create_connection(counterd.address("tcp"), timeout=harness.DEADLINE_S) as client:
            client.sendall(b"a:1|c\nSYNC one\n")
            self.spooled(counterd, 1)
            client.sendall(b"a:1|c\nSYNC two\n")
            self.spooled(counterd, 2)
            client.setblocking(False)
            self.assertRaises(BlockingIOError, client.recv, 100)
            client.settimeout(harness.DEADLINE_S)
            self.redis.start()
            answer = b""
            while answer.count(b"\n") < 2:
                answer += client.recv(100)
            self.assertEqual(answer, b"SYNCED one\nSYNCED two\n")
            self.assertEqual(self.redis.pending(), {"a": 2})


class Rollback(Case):
    """Redis comes back with less than it had, and the process that had stored it is gone."""

    def flushed_then_spooled(self):
        """10 in Postgres; 5 acknowledged and not flushed; 20 on disk, of which Redis may have some."""
        counterd = self.counterd(shards=1)
        counterd.send_udp(["a:1|c"] * 10)
        counterd.settle(10)
        self.flush(config=self.write_config("flusher.json", shards=1))
        counterd.send_udp(["a:1|c"] * 5)
        counterd.settle(15)
        return counterd

    def flush_until(self, value, counterd):
        """The daemon may have to learn first, and send again."""
        def exact():
            self.flush(code=None, config=self.write_config("flusher.json", shards=1))
            return self.counters() == {"a": value}
        harness.wait_until(exact, what=lambda: f"{value}, not {self.counters()}\n{counterd.tail()}")

    def test_emptied_over_a_restart(self):
        counterd = self.flushed_then_spooled()
        self.redis.kill()
        counterd.send_udp(["a:1|c"] * 20)
        self.spooled(counterd, 20)
        self.assertEqual(counterd.stop(), 0)
        self.redis.start()
        self.redis.call("FLUSHALL")
        again = self.counterd("again", shards=1)
        self.emptied()
        lost = again.wait_event("increments_lost")
        self.assertEqual(lost["first_seq"], lost["last_seq"])
        # The 5 were only in Redis, and with whoever had sent them.
        self.flush_until(30, again)

    def test_what_was_spooled_had_been_applied_already(self):
        """Sent, applied, flushed, its reply lost: sent again after the restart, to a Redis that knows nothing of it."""
        proxy, through = self.proxied_redis()
        counterd = self.counterd(shards=1, redis={**through, "timeout_ms": 300})
        counterd.send_udp(["a:1|c"] * 10)
        counterd.settle(10)
        proxy.cut(lambda request: b"\r\na\r\n" in request, times=1000, swallow=True)
        counterd.send_udp(["a:1|c"] * 7)
        self.spooled(counterd, 7)
        self.stored({"a": 17})
        self.flush(config=self.write_config("flusher.json", shards=1))
        self.assertEqual(self.counters(), {"a": 17})
        self.assertEqual(counterd.stop(), 0)
        self.redis.call("FLUSHALL")
        again = self.counterd("again", shards=1)
        again.send_udp(["a:1|c"])
        again.settle(1)
        self.emptied()
        self.flush(code=None, config=self.write_config("flusher.json", shards=1))
        again.send_udp(["a:1|c"])  # so that its writer learns of the reset
        again.settle(2)
        self.flush_until(19, again)

    def test_a_replayed_batch_in_quarantine_is_sent_again(self):
        """Its writer has no traffic that would tell that the flusher has reset the shard: it asks."""
        counterd = self.counterd(shards=1)
        counterd.send_udp(["a:1|c"] * 10)
        counterd.settle(10)
        counterd.signal(signal.SIGSTOP)  # so that it does not learn that the 10 are in Postgres
        self.flush(config=self.write_config("flusher.json", shards=1))
        self.redis.kill()
        counterd.signal(signal.SIGCONT)
        counterd.send_udp(["a:1|c"] * 20)
        self.spooled(counterd, 20)
        self.assertEqual(counterd.stop(), 0)
        self.redis.start()
        self.redis.call("FLUSHALL")
        again = self.counterd("again", shards=1)
        self.emptied()
        self.flush(code=None, config=self.write_config("flusher.json", shards=1))
        self.assertEqual(self.counters(), {"a": 10})
        again.wait_event("redis_went_back", count=2)
        self.stored({"a": 20})
        self.flush(config=self.write_config("flusher.json", shards=1))
        self.assertEqual(self.counters(), {"a": 30})


class Disk(Case):
    def test_full_by_spool_bytes(self):
        counterd = self.counterd(spool_bytes=1048576, keys_max=30000)
        self.redis.kill()
        sent = 0
        while not counterd.events("spool_failed"):
            counterd.send_udp([f"key.{sent + key}.{'x' * 100}:1|c" for key in range(2000)])
            sent += 2000
            self.assertLess(sent, 30000)
            harness.wait_until(lambda: counterd.events("spool_failed") or counterd.status()["spool"]["increments"] >= sent,
                               what="on disk, or no room")
        self.assertIn("spool_bytes", counterd.events("spool_failed")[0]["error"])
        self.assertLessEqual(counterd.status()["spool"]["bytes"], 1048576)
        self.redis.start()
        counterd.settle(sent)
        self.assertEqual(sum(self.redis.pending().values()), sent)
        self.emptied()

    def test_no_room_left_is_told_and_counting_goes_on(self):
        """The kernel says no in the middle of a file (here by a limit on file sizes), and yes again later."""
        counterd = self.counterd()
        self.redis.kill()
        _, hard = resource.prlimit(counterd.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(counterd.pid, resource.RLIMIT_FSIZE, (30000, hard))
        counterd.send_udp([f"key.{key}.{'x' * 100}:1|c" for key in range(3000)])
        counterd.wait_event("spool_failed")
        harness.wait_until(lambda: counterd.status()["spool"]["errors"] > 0, what="an error that is counted")
        counterd.send_udp(["more:1|c"] * 10)
        resource.prlimit(counterd.pid, resource.RLIMIT_FSIZE, (hard, hard))
        self.spooled(counterd, 3010)
        counterd.kill()
        self.redis.start()
        self.counterd("again")
        self.stored({**{f"key.{key}.{'x' * 100}": 1 for key in range(3000)}, "more": 10})
        self.emptied()

    def test_still_full_at_the_end_exits_75_and_says_how_much(self):
        counterd = self.counterd()
        self.redis.kill()
        for path in (self.files, self.spool_dir):
            path.rename(path.with_name(path.name + ".gone"))
        (self.dir / "spool.gone" / "counterd.gone" / "lock").unlink()
        (self.dir / "spool.gone" / "counterd.gone").rmdir()
        counterd.send_udp(["a:1|c"] * 12)
        self.assertEqual(counterd.stop(), harness.EXIT_TEMPFAIL, counterd.tail())
        self.assertEqual([line["increments"] for line in counterd.events("increments_dropped")], ["12"])

    def removed(self, path):
        """A counterd whose spool was removed while Redis is away and 10 increments were on disk."""
        counterd = self.counterd(workers=2)
        self.redis.kill()
        counterd.send_udp(["a:1|c"] * 10)
        self.spooled(counterd, 10)
        for found in path:
            shutil.rmtree(found) if found.is_dir() else found.unlink()
        self.assertIn("10 increments", counterd.wait_event("spool_failed")["error"])
        self.assertEqual(counterd.http("/readyz")[0], 503)
        return counterd

    def test_removed_while_it_is_used_is_told_and_ends_with_75(self):
        counterd = self.removed([self.spool_dir])
        counterd.send_udp(["a:1|c"] * 5)
        self.assertEqual(counterd.stop(), harness.EXIT_TEMPFAIL, counterd.tail())
        self.assertEqual([line["increments"] for line in counterd.events("increments_dropped")], ["15"])
        self.assertEqual(counterd.events("increments_spooled"), [])

    def test_files_that_were_removed_are_followed_by_new_ones(self):
        counterd = self.removed(self.files.iterdir())
        counterd.send_udp(["b:1|c"] * 5)
        self.spooled(counterd, 15)
        self.assertEqual(counterd.stop(), harness.EXIT_TEMPFAIL, counterd.tail())
        self.assertEqual([line["increments"] for line in counterd.events("increments_dropped")], ["10"])
        self.redis.start()
        self.counterd("again")
        self.stored({"b": 5})
        self.emptied()

    def test_what_was_removed_is_stored_all_the_same_when_redis_comes_back(self):
        counterd = self.removed([self.spool_dir])
        counterd.send_udp(["a:1|c"] * 5)
        self.redis.start()
        counterd.settle(15)
        self.stored({"a": 15})
        self.assertEqual(counterd.stop(), 0, counterd.tail())

    def left_behind(self, lines):
        """What a counterd without Redis leaves; gives its segment."""
        counterd = self.counterd("first")
        self.redis.kill()
        counterd.send_udp(lines)
        self.spooled(counterd, len(lines))
        counterd.kill()
        self.redis.start()
        [segment] = self.segments()
        return segment

    def test_a_torn_tail_is_cut(self):
        segment = self.left_behind([f"key.{key}:1|c" for key in range(50)])
        whole = segment.read_bytes()
        segment.write_bytes(whole + whole[144:200])
        again = self.counterd("again")
        self.stored({f"key.{key}": 1 for key in range(50)})
        self.emptied()
        self.assertEqual(again.events("spool_torn")[0]["bytes"], "56")
        self.assertEqual([path.name for path in self.files.iterdir()], ["lock"])

    def test_a_file_that_was_only_begun_is_removed(self):
        """Killed between making a segment and writing its header: nothing is in it, and nobody has to look."""
        segment = self.left_behind(["a:1|c"])
        for number, held in ((2, b""), (3, segment.read_bytes()[:100])):
            (self.files / segment.name.replace("00000001", f"0000000{number}")).write_bytes(held)
        again = self.counterd("again")
        self.stored({"a": 1})
        self.emptied()
        self.assertEqual([path.name for path in self.files.iterdir()], ["lock"])
        self.assertFalse(again.events("spool_put_aside"))

    def test_damage_is_put_aside_and_what_is_before_it_stored(self):
        segment = self.left_behind([f"key.{key}:1|c" for key in range(50)])
        raw = bytearray(segment.read_bytes())
        raw[-1] ^= 1
        segment.write_bytes(raw)
        again = self.counterd("again")
        again.wait_event("spool_damaged")
        again.wait_event("spool_put_aside")
        self.emptied()
        self.assertEqual(Path(f"{segment}.aside").read_bytes(), bytes(raw))
        stored = sum(self.redis.pending().values())
        self.assertTrue(0 < stored < 50, stored)

    def test_a_foreign_file_is_put_aside(self):
        self.files.mkdir()
        (self.files / "notes.txt").write_text("not yours\n")
        name = "0123456789ABCDEFGHJKMNPQRS.00000001.spool"
        (self.files / name).write_bytes(b"x" * 1000)
        counterd = self.counterd()
        self.assertEqual(len(counterd.events("spool_put_aside")), 2)
        self.assertEqual((self.files / "notes.txt.aside").read_text(), "not yours\n")
        self.assertEqual((self.files / f"{name}.aside").read_bytes(), b"x" * 1000)

    def refused(self, text, **changes):
        done = self.refused_start(self.write_config("refused.json", **changes))
        self.assertIn(text, done.err)
        return done.code

    def test_what_does_not_fit_refuses_to_start(self):
        segment = self.left_behind(["a:1|c"])
        before = segment.read_bytes()
        redis = {"url": self.redis.url.replace("db=0", "db=1")}  # whose namespace is not begun yet
        self.assertEqual(self.refused("'shards' is 16 here", shards=16, redis=redis), harness.EXIT_CONFIG)
        (self.spool_dir / "other").mkdir()
        segment.rename(self.spool_dir / "other" / segment.name)
        self.assertEqual(self.refused("is of namespace 'counterd'", namespace="other"), harness.EXIT_CONFIG)
        segment = self.spool_dir / "other" / segment.name
        segment.write_bytes(before[:20] + b"\x09" + before[21:])
        self.assertEqual(self.refused("another version", namespace="other"), harness.EXIT_CONFIG)
        self.assertEqual(self.refused("spool_dir", spool_dir=str(self.dir / "missing")), harness.EXIT_CONFIG)
        self.assertEqual(self.refused("absolute", spool_dir="spool"), harness.EXIT_CONFIG)

    def test_one_process_has_the_directory_to_itself(self):
        self.counterd()
        listen = {"udp": ["127.0.0.1:0"], "http": ""}
        self.assertEqual(self.refused("in use by another counterd", listen=listen), harness.EXIT_UNAVAILABLE)

    def test_what_can_not_be_read_again_is_lost_and_no_longer_pending(self):
        counterd = self.counterd(shards=1)
        harness.wait_until(lambda: counterd.http("/readyz")[0] == 200, what="ready")
        self.redis.kill()
        counterd.wait_event("redis_lost")
        counterd.send_udp([f"key.{n}:1|c" for n in range(3000)])
        self.spooled(counterd, 3000)
        [segment] = self.segments()
        with segment.open("r+b") as file:
            file.seek(segment.stat().st_size // 2)
            file.write(b"rubbish" * 10)
        self.redis.start()
        counterd.wait_event("increments_lost")
        counterd.send_udp(["more:1|c"])
        harness.wait_until(lambda: counterd.status()["pending"] == 0, what=lambda: counterd.status())
        status = counterd.status()
        lost = sum(int(line["increments"]) for line in counterd.events("increments_lost"))
        self.assertEqual((status["accepted"], status["appended"]["increments"] + lost), (3001, 3001))
        self.assertEqual((status["spool"]["lost"], status["redis"]["increments_lost"]), (lost, lost))
        self.assertEqual(sum(self.redis.pending().values()), 3001 - lost)


if __name__ == "__main__":
    harness.main()
