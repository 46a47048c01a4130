#!/usr/bin/env python3
"""test_rollback - Redis comes back with an older state, or with none: what is told, what is kept, and that in the end every
key is exact; and the audit, which has to know all along
"""

import collections
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness
from test_every_step import is_script, is_sql

SEED = 5
MANUAL = harness.ROOT / "docs" / "operations.md"
EXIT_DATA = 65


class RollbackCase(harness.Case):
    def setUp(self):
        super().setUp()
        self.migrate()
        self.sent = collections.Counter()
        self.lines = collections.Counter()

    def send(self, counterd, deltas):
        """key -> delta, and each in Redis when this returns."""
        counterd.send_udp([f"{key}:{delta}|c" for key, delta in deltas.items()])
        self.sent.update(deltas)
        self.lines[counterd.name] += len(deltas)
        counterd.settle(self.lines[counterd.name])

    def backup(self):
        return self.redis.backup()

    def roll_back(self, backup):
        self.redis.roll_back(backup)

    def seal(self, shard, gen):
        return self.redis.seal(shard, gen)

    def audit(self, code=harness.EXIT_OK, **options):
        audit = json.loads(self.flusher("audit", "--json", code=code, **options).out)
        for row in audit["by_shard"]:
            if row["verdict"] in ("lost", "doubled"):
                self.assertIn(f'"{row["where"]}"', MANUAL.read_text(), "the manual says what to do")
        return audit

    def quarantine(self, **options):
        return json.loads(self.flusher("quarantine", "list", "--json", **options).out)["quarantine"]

    def flush_until_exact(self, counterd, config=None):
        """Traffic and flushes go on until Postgres has all that was sent: a shard learns that Redis went back with its
        next batch only."""
        def exact():
            self.send(counterd, {key: 1 for key in self.sent})
            self.flush(code=None, config=config)
            return self.counters() == dict(self.sent)
        harness.wait_until(exact, what=lambda: f"{dict(self.sent)}, not {self.counters()}\n{counterd.tail()}")


class Living(RollbackCase):
    """The daemon lives: whatever Redis forgets comes out of its history."""

    def test_rolled_back_again_and_again_under_traffic(self):
        dice = random.Random(SEED)
        counterd = self.counterd(coalesce_ms=5)
        keys = [f"key.{n}" for n in range(40)]
        quarantined = 0
        for _ in range(8):
            for _ in range(dice.randrange(1, 4)):
                self.send(counterd, {key: dice.randrange(-3, 9) for key in keys})
                if dice.random() < 0.3:
                    self.flush()
            backup = self.backup()
            self.send(counterd, {key: 1 for key in dice.sample(keys, 20)})
            if dice.random() < 0.8:
                self.flush()
            self.send(counterd, {key: 1 for key in dice.sample(keys, 20)})
            self.roll_back(backup)
            self.send(counterd, {key: 1 for key in dice.sample(keys, 20)})
            done = json.loads(self.flush("--json", code=None).out)
            quarantined += done["quarantined"]
            self.assertEqual(done["shards_failed"], 0)
        self.flush_until_exact(counterd)
        self.assertGreater(quarantined, 0, "nothing was ever mixed: the test proved nothing")
        audit = self.audit()
        self.assertEqual(audit["verdict"], "balanced")
        self.assertEqual(audit["applied"], sum(self.sent.values()))
        self.assertEqual(audit["accepted"], audit["applied"])
        # All of it was sent again, so all of it is evidence only.
        for row in self.quarantine():
            self.assertEqual(row["batches_only_here"], 0, row)
            self.flusher("quarantine", "drop", str(row["id"]))
        self.assertEqual(self.quarantine(), [])
        self.assertEqual(counterd.status()["redis"]["increments_lost"], 0)

    def test_what_comes_again_whole_is_told_and_not_applied(self):
        counterd = self.counterd(shards=1)
        config = self.write_config("f.json", shards=1)
        self.send(counterd, {"a": 7})
        backup = self.backup()
        self.assertEqual(self.flush(config=config).err, "")
        counterd.stop()
        self.roll_back(backup)
        done = self.flush(config=config)
        [line] = [harness.parse_log_line(line) for line in done.err.splitlines()]
        self.assertEqual((line["level"], line["event"], line["shard"], line["keys"], line["increments"]),
                         ("warn", "applied_before", "0", "1", "7"))
        self.assertIn("increments=0", done.out)
        self.assertEqual(self.counters(), {"a": 7})
        self.audit(config=config)

    def test_quarantine_is_told_loudly(self):
        counterd = self.counterd(shards=1)
        config = self.write_config("f.json", shards=1)
        self.send(counterd, {"a": 1})
        backup = self.backup()
        self.flush(config=config)
        self.roll_back(backup)
        self.send(counterd, {"a": 10})
        fresh = self.query("select fresh_until from counterd.freshness")
        done = self.flush(config=config, code=harness.EXIT_TEMPFAIL)
        self.assertEqual(self.query("select fresh_until from counterd.freshness"), fresh)
        [line] = [harness.parse_log_line(line) for line in done.err.splitlines() if "event=quarantined" in line]
        self.assertEqual((line["level"], line["shard"], line["part"], line["keys"], line["increments"]),
                         ("error", "0", "sealed", "1", "11"))
        self.assertIn("flusher quarantine list", line["hint"])
        self.assertIn("quarantined=1", done.out)
        self.assertEqual(self.query("select quarantined, error like '%quarantine list%' from counterd.runs"
                                    " order by id desc limit 1"), [["1", "t"]])
        self.flush_until_exact(counterd, config)
        self.audit(config=config)

    def test_flusher_killed_at_every_step_of_a_quarantine(self):
        counterd = self.counterd(shards=1)
        direct = self.write_config("direct.json", shards=1)
        redis, through_redis = self.proxied_redis()
        postgres, through_postgres = self.proxied_postgres()
        through = self.write_config("through.json", shards=1, redis=through_redis, postgres=through_postgres)
        steps = [(postgres, is_sql("insert into counterd.quarantine")), (postgres, is_sql("commit\0")),
                 (redis, is_script("reset")), (redis, is_script("release"))]
        for proxy, when in steps:
            for before in (True, False):
                self.send(counterd, {"a": 1, "b": 2})
                backup = self.backup()
                self.flush(config=direct)
                self.roll_back(backup)
                self.send(counterd, {"a": 10, "b": 20})
                self.seal(0, f"by-hand-{before}-{steps.index((proxy, when))}")
                self.send(counterd, {"a": 100})
                self.flusher_killed(proxy, when, before, through)
                self.flush_until_exact(counterd, direct)
                self.audit(config=direct)
                rows = self.quarantine(config=direct)
                self.assertEqual([(row["part"], row["batches_only_here"]) for row in rows], [("sealed", 0), ("open", 0)])
                self.flusher("quarantine", "drop", *(str(row["id"]) for row in rows), config=direct)

    def test_what_redis_forgot_is_made_up_for_by_whoever_releases(self):
        counterd = self.counterd(shards=1)
        direct = self.write_config("direct.json", shards=1)
        proxy, through_postgres = self.proxied_postgres()
        through = self.write_config("through.json", shards=1, postgres=through_postgres)
        self.send(counterd, {"a": 5})
        self.flush(config=direct)
        self.send(counterd, {"b": 7})  # the answer says that Postgres has a
        self.redis.call("FLUSHALL")
        self.send(counterd, {"c": 9})
        self.flusher_killed(proxy, is_sql("commit\0"), False, through)
        self.flush(config=direct)
        self.assertEqual(self.counters(), {"a": 5, "b": 7, "c": 9})
        self.assertEqual(self.audit(config=direct)["accepted"], 21)
        self.send(counterd, {"d": 4})
        self.flush(config=direct)
        self.assertEqual(self.query("select total, events from counterd.ledger order by gen"),
                         [["5", "1"], ["16", "2"], ["4", "1"]])
        self.assertEqual(self.redis.call("HGET", "{counterd:0}:meta", "events"), b"4")

    def mix_while_idle(self, counterd, config):
        """A batch that Postgres lacks goes into quarantine together with one that it has, and no traffic comes after."""
        self.send(counterd, {"a": 1})
        backup = self.backup()
        self.flush(config=config)
        self.send(counterd, {"a": 10})
        self.roll_back(backup)
        harness.wait_until(lambda: self.redis.pending() == {"a": 11}, what="what Redis forgot is sent again")
        self.flush(config=config, code=harness.EXIT_TEMPFAIL)

    def test_an_idle_daemon_sends_again_what_is_in_quarantine(self):
        counterd = self.counterd(shards=1)
        config = self.write_config("f.json", shards=1)
        self.mix_while_idle(counterd, config)
        harness.wait_until(lambda: self.redis.pending() == {"a": 10}, what="what Postgres lacks is sent again")
        self.flush(config=config)
        self.assertEqual(self.counters(), {"a": 11})
        self.audit(config=config)

    def test_a_daemon_that_stops_sends_again_what_is_in_quarantine(self):
        counterd = self.counterd(shards=1)
        config = self.write_config("f.json", shards=1)
        self.mix_while_idle(counterd, config)
        self.assertEqual(counterd.stop(), harness.EXIT_OK)
        self.flush(config=config)
        self.assertEqual(self.counters(), {"a": 11})
        self.audit(config=config)

    def test_a_daemon_that_stops_asks_again_when_redis_was_busy(self):
        proxy, through = self.proxied_redis()
        counterd = self.counterd(shards=1, redis={**through, "timeout_ms": 2000})
        config = self.write_config("f.json", shards=1)
        self.mix_while_idle(counterd, config)
        self.redis.call("CONFIG", "SET", "busy-reply-threshold", 1)
        script = threading.Thread(target=self.redis.endless_script)
        script.start()
        harness.wait_until(self.redis.is_busy, what="Redis is busy")
        proxy.hold(lambda request: b"-- probe:" in request, lambda: self.redis.call("SCRIPT", "KILL"))
        self.assertEqual(counterd.stop(), harness.EXIT_OK, counterd.tail())
        script.join()
        self.flush(config=config)
        self.assertEqual(self.counters(), {"a": 11})

    def test_a_daemon_that_stops_waits_to_ask(self):
        """Redis comes back with less, and counterd is told to stop before it has connected again: with and without a spool."""
        for number, changes in enumerate(({}, {"spool_dir": str(self.dir)})):
            counterd = self.counterd(f"counterd{number}", **changes)
            key = f"key.{number}"
            backup = self.redis.backup()
            self.send(counterd, {key: 7})
            self.redis.restore(backup)
            lost = len(counterd.events("redis_lost"))
            counterd.wait_event("redis_lost", lost + 10)
            self.redis.start()
            self.assertEqual(counterd.stop(), harness.EXIT_OK, counterd.tail())
            self.assertEqual(self.redis.pending()[key], 7)
        self.flush(code=None)
        self.assertEqual(self.counters(), {"key.0": 7, "key.1": 7})

    def away_with_less(self, counterd, backup):
        """Redis goes back and is up again, while counterd still waits to connect."""
        self.redis.restore(backup)
        counterd.wait_event("redis_lost", len(counterd.events("redis_lost")) + 7)
        self.redis.start()

    def test_a_daemon_that_stops_asks_though_the_rest_is_on_disk(self):
        """What is on disk tells the next process nothing of what came before it, and was in Redis only."""
        changes = {"shards": 1, "spool_dir": str(self.dir)}
        counterd = self.counterd(**changes)
        backup = self.redis.backup()
        self.send(counterd, {"a": 7})
        self.redis.kill()
        counterd.send_udp(["a:1|c"])
        harness.wait_until(lambda: counterd.status()["spool"]["increments"] == 1, what="one on disk")
        self.away_with_less(counterd, backup)
        self.assertEqual(counterd.stop(), harness.EXIT_OK, counterd.tail())
        again = self.counterd("again", **changes)
        again.wait_event("replayed")
        self.assertEqual(self.redis.pending(), {"a": 8})

    def replayed(self, **changes):
        """A daemon that has stored what a dead one had on disk."""
        changes = {"shards": 1, "spool_dir": str(self.dir), **changes}
        self.redis.kill()
        counterd = self.counterd(**changes)
        counterd.send_udp(["a:7|c"])
        harness.wait_until(lambda: counterd.status()["spool"]["increments"] == 1, what="one on disk")
        counterd.kill()
        self.redis.start()
        again = self.counterd("again", **changes)
        again.wait_event("replayed")
        return again

    def test_a_daemon_that_stops_asks_for_what_it_has_replayed(self):
        backup = self.redis.backup()
        again = self.replayed()
        self.away_with_less(again, backup)
        self.assertEqual(again.stop(), harness.EXIT_OK, again.tail())
        self.assertEqual(self.redis.pending(), {"a": 7})

    def fill(self, key):
        """So that Redis takes no more of it until the next seal."""
        self.redis.call("ZADD", "{counterd:0}:open", 2**53 - 1, key)

    def full_with_less(self, counterd, backup):
        """Redis goes back, and then has no room for what it lacks."""
        counterd.signal(signal.SIGSTOP)
        self.redis.roll_back(backup)
        self.fill("a")
        counterd.signal(signal.SIGCONT)
        counterd.wait_event("redis_went_back")
        counterd.wait_event("append_refused")

    def test_what_was_replayed_is_kept_until_redis_has_it_again(self):
        backup = self.redis.backup()
        again = self.replayed()
        self.full_with_less(again, backup)
        # It looks every five seconds whether all is in Postgres; a batch that is refused is sent again four times a second.
        harness.wait_until(lambda: again.status()["redis"]["errors"] >= 25, what=lambda: again.status()["redis"])
        self.redis.call("ZREM", "{counterd:0}:open", "a")
        harness.wait_until(lambda: self.redis.pending() == {"a": 7}, what=lambda: self.redis.pending())

    def test_what_a_stop_can_not_store_again_is_told(self):
        """Redis lacks what it had acknowledged, and does not take it: that is as bad as what it never had."""
        counterd = self.counterd(shards=1, redis={"url": self.redis.url, "timeout_ms": 1000})
        backup = self.redis.backup()
        self.send(counterd, {"a": 7})
        self.full_with_less(counterd, backup)
        self.assertEqual(counterd.stop(), harness.EXIT_TEMPFAIL, counterd.tail())
        self.assertEqual([line["increments"] for line in counterd.events("increments_lost")], ["1"])

    def test_what_a_stop_can_not_replay_again_is_told(self):
        backup = self.redis.backup()
        again = self.replayed(redis={"url": self.redis.url, "timeout_ms": 1000})
        self.full_with_less(again, backup)
        self.assertEqual(again.stop(), harness.EXIT_TEMPFAIL, again.tail())
        self.assertEqual([line["increments"] for line in again.events("increments_lost")], ["1"])

    def test_synced_is_not_said_while_redis_may_have_gone_back(self):
        counterd = self.counterd()
        backup = self.redis.backup()
        with socket.create_connection(counterd.address("tcp"), timeout=harness.DEADLINE_S) as stream:
            answers = stream.makefile("rb")
            stream.sendall(b"a:7|c\nSYNC one\n")
            self.assertEqual(answers.readline(), b"SYNCED one\n")
            self.redis.restore(backup)
            counterd.wait_event("redis_lost")
            stream.sendall(b"SYNC two\n")
            self.redis.start()
            self.assertEqual(answers.readline(), b"SYNCED two\n")
            self.assertEqual(self.redis.pending(), {"a": 7})

    def test_emptied(self):
        """FLUSHALL after all was flushed: what comes after counts on from what Postgres has, and the audit balances."""
        counterd = self.counterd()
        keys = [f"key.{n}" for n in range(40)]
        for _ in range(2):
            self.send(counterd, {key: 5 for key in keys})
            self.flush()
        self.assertEqual(self.audit()["applied"], 400)
        self.redis.call("FLUSHALL")
        audit = self.audit(code=harness.EXIT_TEMPFAIL)
        self.assertEqual(audit["verdict"], "late")
        self.assertIn("gone back in time", audit["by_shard"][0]["where"])
        self.assertIn("gone back in time", self.flusher("get", "key.1").out)
        self.flush_until_exact(counterd)
        audit = self.audit()
        self.assertEqual((audit["accepted"], audit["open"]), (sum(self.sent.values()), 0))
        self.assertEqual(json.loads(self.flusher("get", "key.1", "--json").out)["value"], self.sent["key.1"])
        self.assertEqual(json.loads(self.flusher("status", "--json", code=None).out)["open_increments"], 0)

    def test_forgotten_where_nothing_comes_any_more(self):
        """All that Redis forgot is in Postgres, and its shards get no traffic again: one flush, and nothing is late."""
        counterd = self.counterd()
        keys = [f"key.{n}" for n in range(40)]
        self.send(counterd, {key: 5 for key in keys})
        self.flush()
        backup = self.backup()
        self.send(counterd, {key: 10**12 for key in keys})
        self.flush()
        counterd.stop()
        for forget in (lambda: self.roll_back(backup), lambda: self.redis.call("FLUSHALL")):
            forget()
            self.assertEqual(self.audit(code=harness.EXIT_TEMPFAIL)["verdict"], "late")
            done = self.flush()
            [line] = [harness.parse_log_line(line) for line in done.err.splitlines()]
            self.assertEqual((line["level"], line["event"], line["shards"]), ("warn", "caught_up", "8"))
            audit = self.audit()
            self.assertEqual((audit["accepted"], audit["applied"]), (sum(self.sent.values()),) * 2)
            status = json.loads(self.flusher("status", "--json").out)
            self.assertEqual((status["shards_gone_back"], status["note"]), (0, None))
            self.assertEqual(self.flush().err, "")
        counterd = self.counterd("next")
        self.send(counterd, {key: 1 for key in keys})
        self.flush()
        self.assertEqual(self.counters(), dict(self.sent))
        self.assertEqual(self.audit()["accepted"], sum(self.sent.values()))
        self.assertEqual(self.query("select sum(events)::text from counterd.ledger"), [[str(3 * len(keys))]])

    def test_a_shard_does_not_go_on_without_what_postgres_lost(self):
        counterd = self.counterd(shards=1)
        config = self.write_config("f.json", shards=1)
        for _ in range(2):
            self.send(counterd, {"a": 1})
            self.flush(config=config)
        self.query("delete from counterd.ledger where prev_gen <> ''; update counterd.shards set cumulative_total = 1,"
                   " head_gen = (select gen from counterd.ledger)")
        self.flush(config=config)
        self.assertEqual(self.audit(code=EXIT_DATA, config=config)["verdict"], "lost")


class Evicted(RollbackCase):
    """Redis throws a key of a shard away while batches wait there, as another maxmemory-policy than noeviction lets it."""

    def test_no_key_doubles_in_silence(self):
        counterd = self.counterd(shards=1)
        config = self.write_config("f.json", shards=1)
        self.send(counterd, {"a": 1})
        self.flush(config=config)
        for name in ("writers", "durable", "open_seqs"):
            with self.subTest(key=name):
                self.send(counterd, {"a": 10})
                self.assertEqual(self.redis.call("DEL", f"{{counterd:0}}:{name}"), 1)
                self.flush_until_exact(counterd, config)
                self.audit(config=config)


class Dead(RollbackCase):
    """The daemon is dead: what it had there, only the quarantine has."""

    def setUp(self):
        super().setUp()
        self.flusher_config = self.write_config("f.json", shards=1)

    def mix(self):
        """Row 1: what Postgres has of a, and the first batch of b. Row 2: the second batch of b. Both daemons dead."""
        first = self.counterd("first", shards=1)
        self.send(first, {"a": 1})
        backup = self.backup()
        self.flush(config=self.flusher_config)
        first.kill()
        self.roll_back(backup)
        second = self.counterd("second", shards=1)
        self.send(second, {"b": 10})
        self.seal(0, "by-hand")
        self.send(second, {"c": 100})
        second.kill()
        self.flush(config=self.flusher_config, code=harness.EXIT_TEMPFAIL)
        self.assertEqual(self.redis.pending(), {})

    def decide(self, *words, code=harness.EXIT_OK):
        return self.flusher("quarantine", *words, config=self.flusher_config, code=code)

    def test_what_only_the_quarantine_has_is_shown_and_applied_once(self):
        self.mix()
        sealed, opened = self.quarantine(config=self.flusher_config)
        self.assertEqual((sealed["part"], sealed["increments"], sealed["batches_in_postgres"], sealed["batches_only_here"]),
                         ("sealed", 11, 1, 1))
        self.assertEqual(sorted((writer["in_postgres"], writer["only_here"]) for writer in sealed["writers"]
                                if writer["in_postgres"]), [("1-1", None)])
        self.assertEqual((opened["part"], opened["increments"], opened["batches_in_postgres"], opened["batches_only_here"]),
                         ("open", 100, 0, 1))
        self.assertEqual([writer["only_here"] for writer in opened["writers"]], ["2-2"])
        self.assertEqual(self.query("select value from counterd.quarantine, jsonb_each_text(vector) where part = 'sealed'"
                                    " order by 1"), [["0"], ["1"]])
        audit = self.audit(code=harness.EXIT_TEMPFAIL, config=self.flusher_config)
        self.assertEqual((audit["verdict"], audit["applied"], audit["quarantined"], audit["accepted"]), ("late", 1, 111, 112))
        one, two = str(sealed["id"]), str(opened["id"])
        self.assertIn("comes first", self.decide("apply", two, code=EXIT_DATA).err)
        self.assertIn("twice", self.decide("apply", one, code=EXIT_DATA).err)
        self.assertEqual(self.counters(), {"a": 1})
        self.assertIn("event=dropped", self.decide("drop", one).out)
        self.assertIn("event=applied", self.decide("apply", two).out)
        self.assertEqual(self.counters(), {"a": 1, "c": 100})
        for again in (("apply", two), ("drop", two), ("apply", one), ("apply", "4711")):
            self.decide(*again, code=EXIT_DATA)
        self.flush(config=self.flusher_config)
        self.assertEqual(self.counters(), {"a": 1, "c": 100})
        audit = self.audit(config=self.flusher_config)
        self.assertEqual((audit["applied"], audit["accepted"], audit["quarantined"]), (101, 101, 0))

    def test_what_is_applied_by_force_counts_twice_where_it_says_so(self):
        self.mix()
        ids = [str(row["id"]) for row in self.quarantine(config=self.flusher_config)]
        done = json.loads(self.decide("apply", *ids, "--force", "--json").out)["applied"]
        self.assertEqual([row["batches_in_postgres_before"] for row in done], [1, 0])
        self.assertEqual(self.counters(), {"a": 2, "b": 10, "c": 100})
        self.assertEqual(self.query("select gen, total from counterd.ledger where gen like 'quarantine-%' order by gen"),
                         [[f"quarantine-{ids[0]}", "11"], [f"quarantine-{ids[1]}", "100"]])
        self.audit(config=self.flusher_config)
        third = self.counterd("third", shards=1)
        self.send(third, {"a": 5})
        self.flush(config=self.flusher_config)
        self.assertEqual(self.audit(config=self.flusher_config)["accepted"], 117)

    def test_applied_by_two_at_once(self):
        self.mix()
        one, two = (str(row["id"]) for row in self.quarantine(config=self.flusher_config))
        self.decide("drop", one)
        argv = [harness.FLUSHER, "-c", self.flusher_config, "quarantine", "apply", two]
        both = [subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(2)]
        self.assertEqual(sorted(process.wait(harness.DEADLINE_S) for process in both), [0, EXIT_DATA])
        self.assertEqual(self.counters(), {"a": 1, "c": 100})

    def test_a_row_looks_at_its_own_shard_and_moves_no_vector_back(self):
        self.flusher_config = self.write_config()
        self.flush()
        self.query("insert into counterd.writers values ('counterd', 5, 'v', 1), ('counterd', 5, 'w', 7)")
        for shard, identity in ((3, {"w": [1, 2]}), (5, {"v": [5, 6], "w": [1, 2]}), (6, {})):
            self.query("insert into counterd.quarantine (namespace, gen, shard, prev_gen, identity, vector, members, deltas,"
                       f" total, accepted_at_seal, opened_at, sealed_at) values ('counterd', 'g{shard}', {shard}, '',"
                       f" '{json.dumps(identity)}', '{{}}', '{{of.{shard}}}', '{{9}}', 9, 0, now(), now())")
        rows = self.quarantine()
        self.assertEqual([(row["batches_in_postgres"], row["batches_only_here"]) for row in rows], [(0, 2), (2, 2), (0, 0)])
        self.assertEqual(self.audit(code=harness.EXIT_TEMPFAIL)["quarantined"], 27)
        first, second, third = (str(row["id"]) for row in rows)
        self.decide("drop", third)
        self.assertIn("holds 2 batches", self.decide("apply", second, code=EXIT_DATA).err)
        self.decide("apply", second, "--force")
        self.decide("apply", first)
        self.assertEqual(self.counters(), {"of.3": 9, "of.5": 9})
        self.assertEqual(self.query("select shard, writer, seq from counterd.writers order by 1, 2"),
                         [["3", "w", "2"], ["5", "v", "6"], ["5", "w", "7"]])
        audit = self.audit()
        self.assertEqual((audit["applied"], audit["accepted"], audit["quarantined"]), (18, 18, 0))

    def test_wrong_words(self):
        for words in ((), ("list", "1"), ("apply",), ("drop",), ("apply", "x"), ("apply", "0"), ("undo", "1"),
                      ("drop", "1", "--force")):
            self.decide(*words, code=harness.EXIT_USAGE)
        self.assertIn("nothing", self.decide("list").out)


class Audit(RollbackCase):
    def test_balances_while_flushes_run_and_die(self):
        counterd = self.ready(coalesce_ms=5)
        http = ":".join(map(str, counterd.address("http")))
        config = self.write_config("f.json", listen={**self.config["listen"], "http": http})
        stop = threading.Event()

        def traffic():
            while not stop.is_set():
                self.send(counterd, {f"key.{n}": n - 100 for n in range(300)})

        thread = threading.Thread(target=traffic)
        thread.start()
        try:
            with self.flushers_that_die(config, SEED):
                for _ in range(25):
                    audit = self.audit(config=config)
                    self.assertEqual(audit["verdict"], "balanced")
                    self.assertEqual(audit["accepted"], audit["applied"] + audit["open"] + audit["sealed"])
        finally:
            stop.set()
            thread.join()
        self.flush(config=config)
        audit = self.audit(config=config)
        self.assertEqual(audit["accepted"], sum(self.sent.values()))
        self.assertEqual(audit["counterd"]["received"], self.lines["counterd"])
        self.assertEqual(audit["counterd"]["accepted"], self.lines["counterd"])

    def test_says_what_the_daemon_knows_or_that_it_is_absent(self):
        counterd = self.ready()
        http = ":".join(map(str, counterd.address("http")))
        config = self.write_config("f.json", listen={**self.config["listen"], "http": http})
        counterd.send_udp(["a:1|c", "a:1|g", "a:x|c"])
        counterd.settle(3)
        daemon = self.audit(config=config)["counterd"]
        self.assertEqual((daemon["received"], daemon["accepted"], daemon["rejected"]), (3, 1, 2))
        self.assertEqual(daemon["rejected_by_reason"], {"type": 1, "value": 1})
        self.assertEqual(daemon["ready"], True)
        counterd.stop()
        self.assertIn("nobody listens", self.audit(config=config)["counterd"]["absent"])
        self.assertIn("kernel's choice", self.flusher("audit").out)

    def test_late_while_the_daemon_cannot_store(self):
        other = self.track(harness.Redis(self.dir, "other")).start()
        counterd = self.counterd(redis={"url": other.url})
        http = ":".join(map(str, counterd.address("http")))
        config = self.write_config("f.json", listen={**self.config["listen"], "http": http})
        other.kill()
        harness.wait_until(lambda: counterd.http("/readyz")[0] == 503, what="not ready")
        audit = self.audit(code=harness.EXIT_TEMPFAIL, config=config)
        self.assertEqual(audit["verdict"], "late")
        self.assertIn("counterd cannot store", audit["where"])

    def test_lost_when_the_history_was_too_small(self):
        """Redis forgets what no history holds: the log says which batches, and the audit that it is lost and not late."""
        counterd = self.ready(history_bytes=0)
        http = ":".join(map(str, counterd.address("http")))
        config = self.write_config("f.json", listen={**self.config["listen"], "http": http})
        keys = [f"key.{n}" for n in range(40)]
        for _ in range(2):
            self.send(counterd, {key: 1 for key in keys})
        self.redis.call("FLUSHALL")
        self.send(counterd, {key: 1 for key in keys})
        harness.wait_until(lambda: counterd.status()["redis"]["increments_lost"] == 80, what=counterd.status)
        told = counterd.events("increments_lost")
        self.assertEqual(sum(int(line["increments_at_most"]) for line in told), 80)
        self.assertEqual([(line["shard"], line["first_seq"], line["last_seq"]) for line in sorted(told, key=lambda line: line["shard"])],
                         [(str(shard), "1", "2") for shard in range(8)])
        self.flush(config=config)
        self.assertEqual(self.counters(), {key: 1 for key in keys})
        audit = self.audit(code=EXIT_DATA, config=config)
        self.assertEqual((audit["verdict"], audit["counterd"]["lost_at_most"], self.wrong(audit)), ("lost", 80, []))
        self.assertIn(f'"{audit["where"]}"', MANUAL.read_text())

    def test_a_change_by_hand_is_found_and_its_shard_named(self):
        counterd = self.counterd()
        self.send(counterd, {f"key.{n}": 3 for n in range(80)})
        self.flush()
        self.send(counterd, {f"key.{n}": 4 for n in range(80)})
        self.seal(6, "by-hand")
        self.send(counterd, {f"key.{n}": 5 for n in range(80)})
        shard_of = {key.decode(): shard for shard in range(8)
                    for key in self.redis.call("ZRANGE", f"{{counterd:{shard}}}:open", 0, -1)}
        key = next(iter(shard_of))
        redis, sql = self.redis.call, self.query
        ledger = "update counterd.ledger set total = total + %d where shard = 4 and total > 0"
        counter = f"update counterd.counters set value = value + %d where key = '{key}'"
        member = redis("ZRANGE", "{counterd:6}:sealed", 0, 0)[0]
        cases = [
            (2, "open set", lambda by: redis("ZINCRBY", "{counterd:2}:open", by, "key.smuggled")),
            (3, "open set", lambda by: redis("HINCRBY", "{counterd:3}:meta", "accepted", by)),
            (6, "sealed set", lambda by: redis("ZINCRBY", "{counterd:6}:sealed", by, member)),
            (4, "counterd.ledger", lambda by: sql(ledger % by)),
            (5, "counterd.", lambda by: sql(f"update counterd.shards set cumulative_total = cumulative_total + {by}"
                                            " where shard = 5")),
            (shard_of[key], "counterd.counters", lambda by: sql(counter % by)),
        ]
        for shard, where, change in cases:
            for by in (7, -7):
                self.assertEqual(self.audit()["verdict"], "balanced")
                change(by)
                audit = self.audit(code=EXIT_DATA)
                self.assertIn(audit["verdict"], ("lost", "doubled"))
                wrong = [(row["shard"], abs(row["difference"])) for row in audit["by_shard"]
                         if row["verdict"] != "balanced"]
                self.assertEqual(wrong, [(shard, 7)])
                self.assertIn(where, audit["by_shard"][shard]["where"])
                text = self.flusher("audit", code=EXIT_DATA).out
                self.assertRegex(text, rf"event=audit_shard shard={shard} verdict=(lost|doubled) .*where=.*{where}")
                change(-by)

    def wrong(self, audit):
        return [(row["shard"], row["verdict"], row["difference"]) for row in audit["by_shard"] if row["verdict"] != "balanced"]

    def test_a_row_of_the_ledger_that_was_deleted_is_found_and_what_it_held(self):
        """The newest, which is the one that Redis goes by, and one before."""
        counterd = self.counterd()
        for value in (3, 4):
            self.send(counterd, {f"key.{n}": value for n in range(80)})
            self.flush()
        self.send(counterd, {f"key.{n}": 5 for n in range(80)})
        newest = "gen in (select head_gen from counterd.shards)"
        for shard, which in ((2, newest), (5, f"not {newest}")):
            which = f"from counterd.ledger where shard = {shard} and {which}"
            [[total]] = self.query(f"select total {which}")
            self.query(f"create table kept as select * {which}; delete {which}")
            audit = self.audit(code=EXIT_DATA)
            self.assertEqual(self.wrong(audit), [(shard, "lost", int(total))])
            self.assertIn("counterd.ledger", audit["by_shard"][shard]["where"])
            self.assertEqual(audit["accepted"], audit["applied"] + audit["open"])
            self.assertIn("docs/operations.md", audit["hint"])
            self.query("insert into counterd.ledger select * from kept; drop table kept")
            self.assertIsNone(self.audit()["hint"])

    def test_a_vector_that_lacks_what_was_flushed_is_found(self):
        """By it a generation is known as new: without its rows the next one would go into quarantine."""
        counterd = self.counterd()
        for _ in range(2):
            self.send(counterd, {f"key.{n}": 3 for n in range(80)})
            self.flush()
        self.query("create table kept as select * from counterd.writers")
        for change in ("delete from counterd.writers where shard = 3",
                       "update counterd.writers set seq = seq - 1 where shard = 3"):
            self.query(change)
            audit = self.audit(code=EXIT_DATA)
            self.assertEqual(self.wrong(audit), [(3, "lost", 0)])
            self.assertIn("counterd.writers", audit["by_shard"][3]["where"])
            self.query("delete from counterd.writers; insert into counterd.writers select * from kept")
            self.audit()

    def test_what_the_manual_says_mends_it_for_good(self):
        counterd = self.counterd()
        keys = [f"key.{n}" for n in range(80)]

        def count_and_flush():
            self.send(counterd, {key: 3 for key in keys})
            self.flush()

        def difference_of(shard):
            [(found, _, difference)] = self.wrong(self.audit(code=EXIT_DATA))
            self.assertEqual(found, shard)
            return difference

        def raise_totals(shard, *names):
            difference = difference_of(shard)
            for name in names:
                self.redis.call("HINCRBY", f"{{counterd:{shard}}}:meta", name, -difference)

        count_and_flush()
        count_and_flush()
        self.send(counterd, {key: 3 for key in keys})
        self.redis.call("ZREM", "{counterd:1}:open", self.redis.call("ZRANGE", "{counterd:1}:open", 0, 0)[0])
        raise_totals(1, "accepted")
        self.redis.call("ZINCRBY", "{counterd:2}:open", 9, "smuggled")
        self.flush(code=harness.EXIT_OK)
        raise_totals(2, "accepted", "accepted_at_seal")
        self.query("delete from counterd.ledger where shard = 4 and gen not in (select head_gen from counterd.shards)")
        self.query(f"update counterd.shards set pruned_total = pruned_total + {difference_of(4)} where shard = 4")
        self.query("delete from counterd.writers where shard = 5")
        writer, seq = self.redis.call("HGETALL", "{counterd:5}:durable")
        self.assertEqual(difference_of(5), 0)
        self.query("insert into counterd.writers (namespace, shard, writer, seq)"
                   f" values ('counterd', 5, '{writer.decode()}', {seq.decode()})")
        self.audit()
        count_and_flush()
        self.audit()

    def test_a_lane_that_counts_elsewhere_is_not_blamed(self):
        self.query("create table high (id text primary key, value bigint not null)")
        targets = [{"match": "high.{id}", "table": "high", "value": "value", "merge": "max", "missing": "insert"},
                   {"match": "*", "table": "counterd.counters"}]
        counterd = self.counterd(targets=targets)
        config = self.write_config("f.json", targets=targets)
        self.send(counterd, {"key.1": 3, "high.1": 4})
        self.flush(config=config)
        self.query("update counterd.counters set value = value + 5")
        lanes = [json.loads(line) for line in
                 self.flusher("audit", "--json", code=EXIT_DATA, config=config).out.splitlines()]
        self.assertEqual([(lane["namespace"], lane["verdict"], lane["difference"]) for lane in lanes],
                         [("counterd", "doubled", -5), ("counterd@max", "balanced", 0)])
        self.assertEqual([difference for _, _, difference in self.wrong(lanes[0])], [-5])

    def test_a_difference_among_many_counters(self):
        """Which are read in pages."""
        self.flush()
        self.query("insert into counterd.counters select 'key.' || n, 1, now(), now() from generate_series(1, 20001) as n")
        audit = self.audit(code=EXIT_DATA)
        self.assertEqual((audit["verdict"], audit["difference"]), ("doubled", -20001))
        self.assertEqual(sum(row["difference"] for row in audit["by_shard"]), -20001)

    def test_what_was_smuggled_in_stays_visible_after_the_flush(self):
        counterd = self.counterd(shards=1)
        config = self.write_config("f.json", shards=1)
        self.send(counterd, {"a": 1})
        self.redis.call("ZINCRBY", "{counterd:0}:open", 5, "a")
        self.flush(config=config)
        audit = self.audit(code=EXIT_DATA, config=config)
        self.assertEqual((audit["verdict"], audit["difference"]), ("doubled", -5))
        self.send(counterd, {"a": 1})
        self.flush(config=config)
        self.audit(code=EXIT_DATA, config=config)

    def test_a_large_generation(self):
        """More members than Redis is asked to add up at once."""
        counterd = self.counterd(shards=1)
        config = self.write_config("f.json", shards=1)
        self.send(counterd, {f"key.{n}": n for n in range(9000)})
        self.assertEqual(self.audit(config=config)["open"], sum(range(9000)))
        self.seal(0, "by-hand")
        self.assertEqual(self.audit(config=config)["sealed"], sum(range(9000)))
        self.redis.call("ZINCRBY", "{counterd:0}:sealed", 1, "key.8999")
        self.assertEqual(self.audit(code=EXIT_DATA, config=config)["verdict"], "doubled")

    def test_a_database_that_nobody_flushed_to(self):
        self.assertEqual(self.audit()["verdict"], "balanced")


class Scripts(RollbackCase):
    """reset and release by hand: what they refuse, they refuse before the first write."""

    def setUp(self):
        super().setUp()
        counterd = self.counterd(shards=1)
        self.send(counterd, {"a": 1})
        self.seal(0, "mixed")
        self.send(counterd, {"b": 2})
        counterd.stop()
        self.before = self.dump()

    def script(self, name, *args):
        return self.redis.script(name, 0, *args)

    def dump(self):
        return {key: self.redis.call("DUMP", key) for key in harness.shard_keys(0)}

    def field(self, name):
        return self.redis.call("HGET", "{counterd:0}:meta", name)

    def test_reset_checks_every_argument_first(self):
        good = ["mixed", "aside", "head", "7", "3", "w1", "4"]
        bad = [good[:n] for n in range(len(good)) if n != 5]
        bad += [good[:at] + [value] + good[at + 1:] for at, value in
                ((0, ""), (1, ""), (3, ""), (3, "x"), (3, "1.5"), (4, "-1"), (5, ""), (6, "-4"), (6, "4x"), (6, ""))]
        for args in bad:
            with self.subTest(args=args), self.assertRaisesRegex(harness.RedisError, "BADARG"):
                self.script("reset", *args)
            self.assertEqual(self.dump(), self.before)
        for key in harness.shard_keys(0):
            self.redis.call("RENAME", key, "spare") if self.before[key] else None
            self.redis.call("SET", key, "of a wrong type")
            with self.subTest(key=key), self.assertRaisesRegex(harness.RedisError, "WRONGTYPE"):
                self.script("reset", *good)
            self.redis.call("DEL", key)
            self.redis.call("RENAME", "spare", key) if self.before[key] else None
            self.assertEqual(self.dump(), self.before)
        self.assertEqual(self.script("reset", *["another"] + good[1:]), [b"GONE"])
        self.assertEqual(self.dump(), self.before)

    def test_reset_once_however_often(self):
        args = ["mixed", "aside", "head", "-7", "3", "w1", "4", "w2", "9"]
        self.assertEqual(self.script("reset", *args), [b"RESET"])
        after = self.dump()
        self.assertEqual(self.script("reset", *args), [b"GONE"])
        self.assertEqual(self.dump(), after)
        self.assertEqual(self.redis.call("ZRANGE", "{counterd:0}:sealed", 0, -1), [b"b"])
        for name in ("writers", "durable"):
            pairs = self.redis.call("HGETALL", f"{{counterd:0}}:{name}")
            self.assertEqual(dict(zip(pairs[::2], pairs[1::2])), {b"w1": b"4", b"w2": b"9"})
        self.assertEqual([self.field(name) for name in ("accepted", "accepted_at_seal", "events", "prev_gen", "sealed_gen",
                                                        "set_aside")], [b"-7", b"-7", b"3", b"head", b"aside", b"1"])
        with self.assertRaisesRegex(harness.RedisError, "set aside"):
            self.script("reset", "aside", *args[1:])
        self.assertEqual(self.script("release", "aside", "5", "5"), [b"RELEASED"])
        self.assertEqual([self.field(name) for name in ("accepted", "prev_gen", "sealed_gen", "set_aside")],
                         [b"-7", b"head", None, None])
        self.assertEqual(self.redis.call("HLEN", "{counterd:0}:durable"), 2)

    def test_catch_up_only_where_nothing_is_pending(self):
        args = ["", "0", "head", "9", "9", "5", "5"]
        self.assertEqual(self.script("catch_up", *args), [b"GONE"])
        for name in ("sealed", "open"):
            self.assertEqual(self.script("release", "mixed"), [b"RELEASED" if name == "sealed" else b"GONE"])
            self.assertEqual(self.script("catch_up", "mixed", "3", *args[2:]), [b"GONE"])
        self.assertEqual(self.script("seal", "second")[0], b"SEALED")
        before = self.dump()
        self.assertEqual(self.script("catch_up", "mixed", "3", *args[2:]), [b"GONE"])
        self.assertEqual(self.dump(), before)
        self.assertEqual(self.script("release", "second"), [b"RELEASED"])
        before = self.dump()
        for seen in (["mixed", "3"], ["second", "2"], ["", "3"]):
            self.assertEqual(self.script("catch_up", *seen, *args[2:]), [b"GONE"])
        for bad in (["second", "3", "", *args[3:]], ["second", "3", "head", "x", *args[4:]], ["second", "3", *args[2:-1]]):
            with self.assertRaisesRegex(harness.RedisError, "BADARG"):
                self.script("catch_up", *bad)
        self.assertEqual(self.dump(), before)
        self.assertEqual(self.script("catch_up", "second", "3", *args[2:]), [b"CAUGHT_UP"])
        self.assertEqual([self.field(name) for name in ("prev_gen", "accepted", "accepted_at_seal", "events", "events_at_seal")],
                         [b"head", b"9", b"9", b"5", b"5"])

    def test_reset_to_a_ledger_that_has_nothing(self):
        self.redis.call("HSET", "{counterd:0}:meta", "prev_gen", "gone", "opened_ms", 1000)
        self.assertEqual(self.script("reset", "mixed", "aside", "", "0", "0"), [b"RESET"])
        self.assertEqual([self.field(name) for name in ("prev_gen", "opened_ms", "sealed_opened_ms")], [None, None, b"1000"])

    def test_seal_touches_nothing_that_does_not_belong_together(self):
        meta, seqs = "{counterd:0}:meta", "{counterd:0}:open_seqs"
        self.redis.call("HDEL", meta, "sealed_gen")
        self.before = self.dump()
        with self.assertRaisesRegex(harness.RedisError, "BROKEN"):
            self.script("seal", "new")
        self.assertEqual(self.dump(), self.before)
        self.redis.call("HSET", meta, "sealed_gen", "mixed", "opened_ms", 1000, "last_append_ms", 2000)
        self.script("release", "mixed", 0, 0)
        self.redis.call("RENAME", seqs, "spare")
        self.before = self.dump()
        with self.assertRaisesRegex(harness.RedisError, "BROKEN"):
            self.script("seal", "new")
        self.assertEqual(self.dump(), self.before)
        self.redis.call("RENAME", "spare", seqs)
        sealed = self.script("seal", "new")
        self.assertEqual((sealed[0], sealed[5], sealed[7]), (b"SEALED", b"1000", b"2000"))
        self.assertIsNone(self.field("opened_ms"))

    def test_release_checks_its_correction_first(self):
        for args in (("x", "0"), ("0", "1.5"), ("9210000000000000000", "0"), ("0", "-99999999999999999999")):
            with self.subTest(args=args), self.assertRaisesRegex(harness.RedisError, "BADARG|RANGE"):
                self.script("release", "mixed", *args)
            self.assertEqual(self.dump(), self.before)
        self.assertEqual(self.script("release", "mixed", "-1", "10"), [b"RELEASED"])
        self.assertEqual([self.field(name) for name in ("accepted", "accepted_at_seal", "events", "events_at_seal")],
                         [b"2", b"0", b"12", b"11"])


class TornFile(RollbackCase):
    """Redis dies while it writes a batch to its file, and nobody mends that file (as Redis.start() does): Redis 7.0 keeps
    the writes that are whole, and carries them out at the start after the next."""

    BATCH = [word for n in range(20) for word in (f"key.{n}", n)]

    def append(self, seq):
        return self.redis.script("append", 0, "w", seq, 0, 20, *self.BATCH)[0]

    @staticmethod
    def file(directory):
        return next(directory.glob("*.incr.aof"))

    def test_within_every_command_of_a_batch(self):
        for seq in (1, 2):
            self.assertEqual(self.append(seq), b"OK")
        backup = self.backup()
        written = self.file(backup).read_bytes()
        begin = written.rindex(b"MULTI")
        commands = [match.start() for match in re.finditer(rb"\*\d+\r\n\$", written) if match.start() > begin]
        self.assertGreater(len(commands), 4)
        for command in commands:
            with self.subTest(torn=written[command:][:40]):
                self.redis.restore(backup)
                os.truncate(self.file(self.redis.directory / "appendonlydir"), command + 6)
                self.redis.start(mend=False)
                self.assertEqual(self.append(2), b"OK")
                self.redis.kill()
                self.redis.start(mend=False)
                self.assertEqual(self.append(2), b"DUP")
                self.assertEqual(self.redis.pending(), {f"key.{n}": 2 * n for n in range(20)})
                self.assertEqual((self.redis.accepted(), self.redis.call("HGET", "{counterd:0}:meta", "events")),
                                 (2 * sum(range(20)), b"40"))


class Replicas(harness.Replicated, RollbackCase):
    """redis.wait_replicas: nothing goes to Postgres that a failover could forget."""

    def setUp(self):
        super().setUp()
        redis = {"url": self.primary.url, "wait_replicas": 1}
        self.patient = self.write_config("patient.json", shards=1, redis={**redis, "timeout_ms": 30000})
        self.impatient = self.write_config("impatient.json", shards=1, redis={**redis, "timeout_ms": 500})
        self.daemon = self.counterd(shards=1, redis={"url": self.primary.url})

    def flush_with_too_few(self):
        """A run that gives up, and on a slow machine not before it could ask."""
        def gave_up():
            done = self.flush(config=self.impatient, code=None)
            return done if done.code != harness.EXIT_UNAVAILABLE else None
        done = harness.wait_until(gave_up, what="a run that reaches Redis")
        self.assertEqual(done.code, harness.EXIT_TEMPFAIL, done)
        self.assertIn("0 of 1 replicas", done.err)
        self.assertIn("redis.wait_replicas", done.err)

    def test_too_few_replicas_and_enough(self):
        self.send(self.daemon, {"a": 1})
        self.flush_with_too_few()
        self.assertEqual(self.counters(), {})
        self.audit(config=self.patient)
        self.start_replica()
        self.flush(config=self.patient)
        self.assertEqual(self.counters(), {"a": 1})

    def test_what_an_earlier_run_sealed_is_waited_for_too(self):
        self.start_replica()
        self.replica.signal(signal.SIGSTOP)
        self.send(self.daemon, {"a": 1})
        for _ in range(2):
            self.flush_with_too_few()
        self.assertEqual(self.counters(), {})
        self.replica.signal(signal.SIGCONT)
        self.flush(config=self.patient)
        self.assertEqual(self.counters(), {"a": 1})

    def test_failover_to_the_replica(self):
        """What is in Postgres, the replica has: no rollback to be seen, though the last release may be missing."""
        self.start_replica()
        for _ in range(5):
            self.send(self.daemon, {"a": 1, "b": 2})
            self.flush(config=self.patient)
        self.daemon.stop()
        self.replica.call("REPLICAOF", "NO", "ONE")
        self.primary.kill()
        failed_over = self.write_config("failed_over.json", shards=1, redis={"url": self.replica.url})
        self.assertEqual(self.audit(config=failed_over)["accepted"], 15)

    def test_failover_within_a_run(self):
        """What the old primary sealed ahead before it died, and the new one did not, is sealed again."""
        config = {"namespace": "other", "shards": 32}
        port = harness.free_port()
        second = self.track(harness.Redis(self.dir, "second", tcp_port=port, settings=[
            "--replicaof", "127.0.0.1", self.primary.tcp_port])).start()
        third = self.track(harness.Redis(self.dir, "third", settings=["--replicaof", "127.0.0.1", port])).start()
        keys = [f"key.{n}" for n in range(200)]
        daemon = self.counterd("other", redis={"url": self.primary.url}, **config)
        self.send(daemon, {key: 1 for key in keys})
        daemon.stop()
        harness.wait_until(lambda: third.pending("other") == self.primary.pending("other"), what="all have it")
        proxy = harness.Proxy(self.dir / "failover.sock", self.primary.path)
        self.addCleanup(proxy.close)

        ahead = threading.Event()

        def is_wait(request):
            if request.count(b"ZRANGE") > 1:
                second.call("REPLICAOF", "NO", "ONE")
                ahead.set()
            return ahead.is_set() and b"WAIT" in request

        def fail_over():
            self.primary.kill()
            proxy.upstream = second.path

        proxy.hold(is_wait, fail_over, before=True)
        self.flush(config=self.write_config("f.json", redis={
            "url": f"unix://{proxy.path}", "wait_replicas": 1, "timeout_ms": 30000}, **config))
        self.assertEqual(proxy.times, 0, "no WAIT was seen")
        self.assertEqual(self.counters(), {key: 1 for key in keys})
        self.assertEqual(second.pending("other"), {})


if __name__ == "__main__":
    harness.main()
