#!/usr/bin/env python3
"""test_merge - targets with "merge": "max" and "min" beside those that add up: the greatest and the least of all that was
sent, whatever is retried, killed or forgotten in between, and books that balance
"""

import json
import random
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness
from test_every_step import is_sql, is_step, script_sha
from test_idempotency import post
from test_rollback import RollbackCase

SEED = 20
QUEUES = [f"q{n}" for n in range(12)]
TARGETS = [
    {"match": "peak.{queue}", "table": "peaks", "value": "size", "touch": "at", "merge": "max", "missing": "insert",
     "rollup": [{"table": "peak_hours", "bucket": "1h"}, {"table": "peak_days", "bucket": "1d"}]},
    {"match": "low.{queue}", "table": "lows", "value": "size", "merge": "min", "missing": "insert"},
    {"match": "best.{id}", "table": "boards", "value": "score", "merge": "max"},
    {"match": "*", "table": "counterd.counters"},
]
FOLD = {"peak": max, "low": min, "best": max}
LANES = {"counterd", "counterd@max", "counterd@min"}


class Merge(RollbackCase):
    def setUp(self):
        super().setUp()
        self.query("create table peaks (queue text primary key, size bigint not null, at timestamptz);"
                   "create table peak_hours (queue text, bucket timestamptz, size int, primary key (queue, bucket));"
                   "create table peak_days (queue text, bucket timestamptz, size numeric, primary key (queue, bucket));"
                   "create table lows (queue text primary key, size int);"
                   "create table boards (id int primary key, score smallint)")
        self.config["targets"] = TARGETS
        self.migrate()
        self.dice = random.Random(SEED)
        self.expected = {}
        self.came = {}

    def count(self, daemon, values):
        """(key, value) pairs, and each in Redis when this returns."""
        self.note(values)
        daemon.send_udp([f"{key}:{value}|c" for key, value in values])
        self.came[daemon.name] = self.came.get(daemon.name, 0) + len(values)
        daemon.settle(self.came[daemon.name])

    def note(self, values):
        for key, value in values:
            fold = FOLD.get(key.split(".")[0], int.__add__)
            self.expected[key] = fold(self.expected[key], value) if key in self.expected else value

    def some(self, least=-50, most=50):
        values = [(f"{kind}.{queue}", self.dice.randint(least, most))
                  for kind in ("peak", "low", "sum") for queue in QUEUES for _ in range(3)]
        self.dice.shuffle(values)
        return values

    def rows(self):
        rows = self.counters()
        for kind, table in (("peak", "peaks"), ("low", "lows")):
            rows.update((f"{kind}.{queue}", int(size)) for queue, size in self.query(f"select queue, size from {table}"))
        rows.update((f"best.{id}", int(score)) for id, score in self.query(
            "select id, score from boards where score is not null"))
        return rows

    def reports(self, *args, code=harness.EXIT_OK, **options):
        """namespace -> what the command says of that lane."""
        out = [json.loads(line) for line in self.flusher(*args, "--json", code=code, **options).out.splitlines()]
        return {report["namespace"]: report for report in out}

    def check(self):
        self.assertEqual(self.rows(), self.expected)
        audits = self.reports("audit")
        self.assertEqual({namespace: audit["verdict"] for namespace, audit in audits.items()},
                         dict.fromkeys(LANES, "balanced"))
        return audits


class Living(Merge):
    def test_rounds_and_flushes(self):
        daemon = self.counterd(workers=2)
        for rounds in range(6):
            self.count(daemon, self.some(-50 - rounds, 20 * rounds - 50))
            if rounds % 2:
                self.flush()
                self.check()
        self.flush()
        audits = self.check()
        self.assertTrue(all(audit["accepted"] == audit["applied"] for audit in audits.values()), audits)
        self.assertEqual(set(self.redis.pending("counterd@max")), set())

    def test_zero_and_negative_values_make_rows(self):
        daemon = self.counterd()
        self.count(daemon, [("peak.zero", 0), ("peak.neg", -7), ("low.zero", 0), ("low.pos", 7)])
        self.assertEqual(self.redis.pending("counterd@max"), {"peak.zero " + self.hour(): 0, "peak.neg " + self.hour(): -7})
        self.flush()
        self.check()
        self.count(daemon, [("peak.neg", -9), ("peak.neg", -3), ("low.pos", 9), ("low.pos", 3)])
        self.flush()
        self.check()
        self.assertEqual((self.expected["peak.neg"], self.expected["low.pos"]), (-3, 3))

    def hour(self):
        return self.redis.call("ZRANGE", self.redis.call("KEYS", "{counterd@max:*}:open")[0], 0, 0)[0].decode().split()[1]

    def test_forms_of_lines(self):
        daemon = self.counterd()
        good = ["peak.a:1:5:3|c", "low.a:4:2:3|c", "INCR peak.b", "DECR low.b", "INCRBY peak.c 17", "peak.d:3|c|@1",
                "peak.e:4.0|c", "peak.a:2|c|#x:1", "peak.f:1:6|c|T1700000000\r", "peak.f:2|c|@1\r"]
        bad = ["peak.a:9|c|@0.5", "peak.a:9.5|c", "peak.a:0.5:0.5|c", "INCRBY peak.a 9.5", "low.a:0|c|@0.1\r"]
        fine = ["sum.a:0.5:0.5|c", "sum.a:1|c|@0.5"]
        daemon.send_tcp(good + bad + fine)
        status = daemon.settle(len(good + bad + fine))
        self.assertEqual(daemon.rejected(status), {"rate": 2, "value": 3})
        self.flush()
        rows = self.rows()
        # With tags it is another key, which the pattern does not take: it has no placeholder for them.
        self.assertEqual(rows, {"peak.a": 5, "low.a": 2, "peak.b": 1, "low.b": -1, "peak.c": 17, "peak.d": 3,
                                "peak.e": 4, "peak.f": 6, "peak.a;x=1": 2, "sum.a": 3})

    def test_rollups(self):
        daemon = self.counterd()
        base = 1700006400  # midnight
        values = [(hour, self.dice.randint(-100, 100)) for hour in range(30) for _ in range(4)]
        for values in (values[::2], values[1::2]):
            daemon.send_udp([f"peak.r:{value}|c|T{base + hour * 3600 + 7}" for hour, value in values])
            self.came[daemon.name] = self.came.get(daemon.name, 0) + len(values)
            daemon.settle(self.came[daemon.name])
            self.note([("peak.r", value) for _, value in values])
            self.note([(f"peak.hour{hour}", value) for hour, value in values])
            self.flush()
        hours = self.query("select extract(epoch from bucket)::bigint, size from peak_hours")
        self.assertEqual({(int(at) - base) // 3600: int(size) for at, size in hours},
                         {hour: self.expected.pop(f"peak.hour{hour}") for hour in range(30)})
        days = self.query("select max(h.size) = d.size from peak_days d join peak_hours h"
                          " on date_trunc('day', h.bucket at time zone 'utc') = d.bucket at time zone 'utc'"
                          " group by d.bucket, d.size")
        self.assertEqual(days, [["t"], ["t"]])
        self.check()

    def test_rollups_of_both_kinds_in_one_table(self):
        harness.away_from_turn(86400, harness.DEADLINE_S)
        rollup = {"rollup": {"bucket": "1d"}}
        self.config["targets"] = [{**TARGETS[0], **rollup}, TARGETS[1], {**TARGETS[3], **rollup}]
        daemon = self.counterd()
        for _ in range(3):
            self.count(daemon, self.some())
            self.flush()
        self.check()
        rollups = self.query("select key, bucket, value from counterd.rollups")
        self.assertEqual(len({bucket for _, bucket, _ in rollups}), 1)
        self.assertEqual({key: int(value) for key, _, value in rollups},
                         {key: value for key, value in self.expected.items() if not key.startswith("low")})

    def test_rows_that_mean_the_same_and_parked(self):
        daemon = self.counterd()
        self.query("insert into boards values (7, null)")
        self.count(daemon, [("best.07", 5), ("best.7", 3), ("best.8", 4), ("best.9", 40000), ("best.x", 1)])
        self.flush()
        self.count(daemon, [("best.8", 2), ("best.9", 40001)])
        self.flush()
        self.expected = {"best.7": 5}
        audits = self.check()
        self.assertEqual(audits["counterd@max"]["parked"], 4 + 2 + 40000 + 40001 + 1)
        self.query("insert into boards values (8, 3), (9, 1)")
        retried = self.reports("parked", "retry", code=None)["counterd@max"]
        self.assertEqual((retried["applied_rows"], retried["still_parked_rows"]), (2, 3))
        self.expected = {"best.7": 5, "best.8": 4, "best.9": 1}
        self.check()
        self.query("alter table boards alter score type int")
        self.flusher("parked", "retry", code=None)
        self.expected["best.9"] = 40001
        self.check()
        self.flusher("parked", "drop", "--match", "*")
        self.assertEqual(self.check()["counterd@max"]["parked"], 0)

    def test_get(self):
        daemon = self.counterd()
        self.count(daemon, [("peak.a", 5), ("low.a", -5), ("sum.a", 5)])
        self.flush()
        for value in (3, 9):
            self.count(daemon, [("peak.a", value), ("low.a", -value), ("sum.a", value)])
            for key in ("peak.a", "low.a", "sum.a"):
                got = json.loads(self.flusher("get", key, "--json").out)
                pending = json.loads(daemon.http(f"/v1/counters/{key}")[1])["pending"]
                self.assertEqual((got["value"], got["pending"]), (self.expected[key], pending), key)
        self.assertEqual([top["key"] for top in json.loads(daemon.http("/v1/top?n=9")[1])["keys"]], ["sum.a"])

    def test_beyond_keys_max_is_rejected(self):
        daemon = self.counterd(keys_max=2, coalesce_ms=60000)
        daemon.send_udp([f"peak.{n}:{n}|c" for n in range(10)] + ["sum.a:1|c"])
        harness.wait_until(lambda: daemon.status()["received"]["lines"] == 11, what="all lines")
        self.assertEqual(daemon.rejected(daemon.status()), {"overflow": 8})
        self.assertEqual(daemon.stop(), 0)
        self.flush()
        self.expected = {"peak.0": 0, "peak.1": 1, "counterd.overflow": 1}
        self.check()

    def test_fanout_to_the_same_merge(self):
        daemon = self.counterd(fanout=[{"match": "peak.{queue}", "also": ["best.1"]}])
        self.query("insert into boards values (1, -100)")
        values = [value for value in self.some() if value[0].startswith("peak")]
        self.count(daemon, values)
        self.flush()
        self.note([("best.1", value) for _, value in values])
        self.check()

    def test_two_counterds(self):
        daemons = [self.counterd(name) for name in ("one", "two")]
        for _ in range(4):
            for daemon in daemons:
                self.count(daemon, self.some())
            self.flush()
            self.check()

    def test_requests_with_a_token(self):
        daemon = self.ready()
        for n in range(10):
            values = self.some()
            self.note(values)
            for again in range(3):
                code, answer = post(daemon, f"token-{n}", [f"{key}:{value}|c" for key, value in values])
                self.assertEqual((code, "duplicate" in answer), (200, again > 0))
                if n % 3 == again:
                    self.flush()
        self.flush()
        self.check()
        # At home in the first lane, whatever their keys are.
        self.assertEqual({key.split(b":")[0] for key in self.redis.call("KEYS", "*:token:*")}, {b"{counterd"})

    def test_kill_9_of_both(self):
        for rounds in range(4):
            daemon = self.counterd(f"daemon{rounds}")
            self.count(daemon, self.some())
            flusher = self.track(harness.Process(f"flusher{rounds}", self.dir, [
                harness.FLUSHER, "-c", self.write_config("killed.json")])).spawn()
            harness.wait_until(lambda: not flusher.alive or self.redis.call("KEYS", "{counterd*:sealed"),
                               what="something sealed")
            flusher.kill()
            daemon.kill()
        harness.wait_until(lambda: self.flush(code=None).code == 0, what="a flush")
        self.check()

    def test_the_longest_retention_of_all_that_share_the_rollups_decides(self):
        """Lanes of one database have one counterd.rollups."""
        rollup = {"bucket": "1h", "retention": "1d"}
        self.config["targets"] = [{**TARGETS[0], "rollup": rollup}, {**TARGETS[3], "rollup": {**rollup, "retention": "30d"}}]
        self.query("create table counterd.rollups_20010101 partition of counterd.rollups for values from"
                   " ('2001-01-01 00:00:00+00') to ('2001-01-02 00:00:00+00')")
        daemon = self.counterd()
        [[at]] = self.query("select extract(epoch from date_bin('1 hour', now() - interval '9 days', 'epoch'))::bigint")
        daemon.send_udp([f"sum.a:5|c|T{at}", f"peak.a:7|c|T{at}"])
        daemon.settle(2)
        self.flush()
        self.flush()
        self.assertEqual(self.query("select key, extract(epoch from bucket)::bigint, value from counterd.rollups order by 1"),
                         [["peak.a", at, "7"], ["sum.a", at, "5"]])
        self.assertEqual(self.query("select to_regclass('counterd.rollups_20010101') is null"), [["t"]])


class Script(harness.Case):
    """What append.lua does of which counterd makes no use, or seldom."""

    def append(self, seq, *members, merge="max"):
        return self.redis.script("append", 0, "w", seq, 0, len(members), *members, merge)

    def test_scores_and_what_was_accepted(self):
        for seq, members, pending in (
                (1, ("a", -3, "b", 0, "a", -5), {"a": -3, "b": 0}),
                (2, ("a", -4, "b", 7), {"a": -3, "b": 7}),
                (3, ("a", 2, "c", 1, "a", 1), {"a": 2, "b": 7, "c": 1})):
            self.assertEqual(self.append(seq, *members)[0], b"OK")
            self.assertEqual(self.append(seq, *members)[0], b"DUP")
            self.assertEqual((self.redis.pending(), self.redis.accepted()), (pending, sum(pending.values())))
        self.assertEqual(self.append(4, "a", -8, "d", 5, merge="min")[0], b"OK")
        self.assertEqual((self.redis.pending(), self.redis.accepted()), ({"a": -8, "b": 7, "c": 1, "d": 5}, 5))

    def test_beyond_what_a_double_adds_up(self):
        most = 2**53 - 1
        self.assertEqual(self.append(1, "a", -most)[0], b"OK")
        self.assertEqual(self.append(2, "a", 2, "b", most - 2)[0], b"OK")
        self.assertEqual((self.redis.pending(), self.redis.accepted()), ({"a": 2, "b": most - 2}, most))
        for members, merge in ((("a",), "max"), (("a", 1), "avg"), (("a", most, "b", 2), "max")):
            with self.assertRaisesRegex(Exception, "BADARG"):
                self.append(3, *members, merge=merge)


    def call(self, *args, marker=()):
        """As counterd would: with a marker there are eight keys."""
        text = (harness.ROOT / "lib" / "scripts" / "append.lua").read_text()
        return self.redis.call("EVAL", text, 7 + len(marker), *harness.shard_keys(0), *marker, *args)

    def refused(self, error, *args, **options):
        with self.subTest(args=args), self.assertRaisesRegex(harness.RedisError, error):
            self.call(*args, **options)

    def test_what_is_refused_is_refused_before_the_first_write(self):
        for args in (("", 1, 0, 1), ("w", 0, 0, 1), ("w", "1.5", 0, 1), ("w", "x", 0, 1), ("w", 1, -1, 1), ("w", 1, 0, -1),
                     ("w", 1, 0)):
            self.refused("BADARG", *args, *("a", 1) if len(args) == 4 else ())
        for delta in ("", "x", "1.5", "1e3", "0x10", " 1"):
            self.refused("BADARG", "w", 1, 0, 2, "a", 1, "b", delta)
        self.refused("BADARG", "w", 1, 0, 1, "", 1)
        for seq, mark, ttl in ((2, "digest", 60), (1, "", 60), (1, "digest", 0), (1, "digest", "1.5"), (1, "digest", "x")):
            self.refused("BADARG", "once:w", seq, 0, 1, mark, ttl, "a", 1, marker=["{counterd:0}:token:k"])
        self.assertEqual(self.redis.call("KEYS", "*"), [])

    def test_one_beyond_what_a_double_can_tell(self):
        """2^53 + 1, which a double takes for 2^53."""
        meta, most = "{counterd:0}:meta", 2**53 - 1
        self.refused("BADARG", "w", 1, 0, 2, "a", most, "b", -2)
        self.assertEqual(self.call("w", 1, 0, 1, "a", most)[0], b"OK")
        self.assertEqual(self.call("w", 2, 0, 1, "a", 2)[0], b"FULL")
        self.assertEqual(self.redis.pending(), {"a": most})
        self.redis.call("HSET", meta, "accepted", most, "events", most - 3)
        self.assertEqual(self.call("w", 2, 0, 5, "b", 1, "b", 1)[0], b"OK")
        self.assertEqual(self.redis.call("HMGET", meta, "accepted", "events"), [b"%d" % (most + 2)] * 2)
        self.assertEqual(self.redis.script("audit", 0, 10)[7], b"")
        self.assertEqual(self.redis.pending(), {"a": most, "b": 2})

    def test_more_members_than_a_command_can_have(self):
        members = [word for n in range(9000) for word in (f"key.{n}", n)]
        for seq in (1, 2):
            self.assertEqual(self.call("w", seq, 0, 9000, *members)[0], b"OK")
        self.assertEqual(self.redis.pending(), {f"key.{n}": 2 * n for n in range(9000)})

    def test_no_running_total_leaves_its_range(self):
        for full in ("accepted", "events"):
            self.redis.call("HSET", "{counterd:0}:meta", "accepted", 0, "events", 0, full, 92 * 10**17)
            self.refused("RANGE", "w", 1, 0, 2000, "a", 2000)
        self.assertEqual(self.redis.pending(), {})


class Steps(Merge):
    def setUp(self):
        super().setUp()
        self.proxy, self.through_redis = self.proxied_redis()

    def test_append_resent(self):
        daemon = self.counterd(redis=self.through_redis)
        append = script_sha("append")
        for _ in range(6):
            self.proxy.cut(lambda request: append in request and b"counterd@m" in request, times=2)
            self.count(daemon, self.some())
        self.assertGreaterEqual(len(self.proxy.lost_replies), 6)
        self.flush()
        self.check()

    def test_flusher_killed_at_every_step(self):
        daemon = self.counterd()
        postgres, through_postgres = self.proxied_postgres()
        steps = [(self.proxy, {"redis": self.through_redis}, is_step(name)) for name in ("seal", "read", "release")]
        steps += [(postgres, {"postgres": through_postgres}, is_sql(sql)) for sql in (
            "insert into counterd.ledger", "greatest(t.size", "commit\0")]
        for proxy, changes, when in steps:
            for before in (True, False):
                self.count(daemon, self.some())
                self.flusher_killed(proxy, when, before, self.write_config("held.json", **changes), "run", "--namespace",
                                    "counterd@max")
                self.flush()
                self.check()


class Rollback(Merge):
    def test_what_redis_forgets_comes_back(self):
        daemon = self.counterd()
        for _ in range(5):
            self.count(daemon, self.some())
            self.flush()
            self.count(daemon, self.some())
            backup = self.backup()
            self.count(daemon, self.some(-99, 99))
            if self.dice.random() < 0.6:
                self.flush()
            self.count(daemon, self.some())
            self.roll_back(backup)

            def exact():
                self.count(daemon, self.some(-9, 9))
                self.flush(code=None)
                return self.rows() == self.expected
            harness.wait_until(exact, what=lambda: f"{self.expected}, not {self.rows()}\n{daemon.tail()}")
        self.check()
        held = self.reports("quarantine", "list")["counterd@max"]["quarantine"]
        self.assertGreater(len(held), 0, "nothing was ever mixed: the test proved nothing")
        # What is applied twice is the same.
        for row in held:
            self.flusher("quarantine", "apply", str(row["id"]), "--force", "--namespace", "counterd@max")
        self.check()


    def test_a_spool_is_stored_in_its_lanes(self):
        spool = self.dir / "spool"
        spool.mkdir()
        daemon = self.counterd(spool_dir=str(spool))
        self.count(daemon, self.some())
        self.redis.stop()
        values = [*self.some(-99, 99), ("best.1", 0)]
        self.note(values)
        daemon.send_udp([f"{key}:{value}|c" for key, value in values])
        harness.wait_until(lambda: daemon.status()["spool"]["increments"] == len(values), what="all on disk")
        daemon.kill()
        self.redis.start()
        self.query("insert into boards values (1, -5)")
        daemon = self.counterd("after", spool_dir=str(spool))
        daemon.wait_event("replayed")
        self.flush()
        self.check()


class Refused(Merge):
    def refuse(self, complaint, **changes):
        self.assertIn(complaint, self.flusher("status", config=self.write_config("bad.json", **changes),
                                              code=harness.EXIT_CONFIG).err)

    def test_what_makes_no_sense(self):
        self.refuse("add, max or min", targets=[{**TARGETS[0], "merge": "avg"}])
        self.refuse("counterd.counters holds sums", targets=[{**TARGETS[3], "merge": "max"}])
        self.refuse("different 'merge'", fanout=[{"match": "sum.{x}", "also": ["peak.{x}"]}])
        self.refuse("different 'merge'", fanout=[{"match": "peak.{x}", "also": ["sum.{x}"]}])
        self.refuse("different 'merge'", fanout=[{"match": "{kind}.q1", "also": ["all"]}])

    def test_another_merge_needs_a_restart(self):
        daemon = self.counterd()
        self.write_config("counterd.json", targets=[{**TARGETS[0], "merge": "min"}, *TARGETS[1:3], TARGETS[3]][::3])
        daemon.signal(signal.SIGHUP)
        self.assertIn("targets", daemon.wait_event("reload_partial")["keys"])
        self.count(daemon, self.some())
        self.flush()
        self.check()


if __name__ == "__main__":
    harness.main()
