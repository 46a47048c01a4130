#!/usr/bin/env python3
"""test_rollups - time buckets in Redis, decided when an event is received, and the partitions of counterd.rollups"""

import collections
import datetime
import signal
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness

MINUTE, HOUR, DAY = 60, 3600, 86400


def target(match, **rollup):
    return {"match": match, "table": "counterd.counters", **({"rollup": rollup} if rollup else {})}


class Buckets(harness.Case):
    def setUp(self):
        super().setUp()
        self.config["targets"] = [target("h.*", bucket="1h"), target("m.{x}", bucket="1m"), target("*")]

    def start_of(self, seconds, bucket):
        return seconds - seconds % bucket

    def test_the_bucket_stands_behind_the_key(self):
        counterd = self.counterd()
        before = time.time()
        counterd.send_udp(["m.a:1|c", "h.a:2|c", "plain:3|c", "m.a:4|c"])
        counterd.settle(4)
        pending = self.redis.pending()
        starts = {self.start_of(int(moment), MINUTE) for moment in (before, time.time())}
        self.assertEqual(sum(pending.pop(f"m.a {start}", 0) for start in starts), 5)
        starts = {self.start_of(int(moment), HOUR) for moment in (before, time.time())}
        self.assertEqual(sum(pending.pop(f"h.a {start}", 0) for start in starts), 2)
        self.assertEqual(pending, {"plain": 3})

    def test_the_time_of_the_line_decides(self):
        counterd = self.counterd()
        ahead = int(time.time()) + DAY
        counterd.send_udp(["h.a:1|c|T1656581400", "h.a:2|c|T1656581999|#x:1", "h.a:4|c|T1656583200", "plain:1|c|T99",
                           f"h.a:8|c|T{ahead - 60}", f"h.a:16|c|T{ahead + HOUR}"])
        status = counterd.settle(6)
        self.assertEqual(counterd.rejected(status), {"range": 1})
        self.assertEqual(self.redis.pending(),
                         {"h.a 1656579600": 1, "h.a;x=1 1656579600": 2, "h.a 1656583200": 4, "plain": 1,
                          f"h.a {self.start_of(ahead - 60, HOUR)}": 8})

    def test_a_member_is_in_the_shard_of_its_key(self):
        """or `flusher get KEY` would look for it in vain"""
        counterd = self.counterd()
        counterd.send_udp([f"h.{key}:1|c|T{1656581400 + hour * HOUR}" for key in range(20) for hour in range(20)])
        counterd.settle(400)
        shard_of = {}
        for open_key in self.redis.call("KEYS", "{counterd:*}:open"):
            for member in self.redis.call("ZRANGE", open_key, 0, -1):
                shard_of.setdefault(member.decode().split()[0], set()).add(open_key)
        self.assertEqual(len(shard_of), 20)
        self.assertEqual({len(shards) for shards in shard_of.values()}, {1})
        self.assertGreater(len(set.union(*shard_of.values())), 1)

    def test_an_outage_delays_but_does_not_move(self):
        """What was received while Redis was away counts in the minute in which it was received."""
        counterd = self.counterd()
        counterd.send_udp(["m.a:1|c"])
        counterd.settle(1)
        [member] = self.redis.pending()
        self.redis.signal(signal.SIGSTOP)
        before = int(time.time())
        counterd.send_udp(["m.a:2|c"])
        harness.wait_until(lambda: counterd.status()["accepted"] == 2)
        after = int(time.time())
        self.redis.signal(signal.SIGCONT)
        counterd.settle(2)
        pending = self.redis.pending()
        minutes = {f"m.a {self.start_of(moment, MINUTE)}" for moment in (before, after)} | {member}
        self.assertEqual(sum(pending.values()), 3)
        self.assertLessEqual(set(pending), minutes)

    def test_sighup_changes_the_buckets_and_keeps_what_was_gathered(self):
        counterd = self.counterd()
        counterd.send_udp(["m.a:1|c|T1656581460", "plain:1|c|T1656581460"])
        counterd.settle(2)
        self.write_config("counterd.json", targets=[target("*", bucket="1d")])
        counterd.signal(signal.SIGHUP)
        counterd.wait_event("reloaded", targets="1")
        counterd.send_udp(["m.a:2|c|T1656581460", "plain:2|c|T1656581460"])
        counterd.settle(4)
        self.assertEqual(self.redis.pending(),
                         {"m.a 1656581460": 1, "plain": 1, "m.a 1656547200": 2, "plain 1656547200": 2})

    def test_fractions_of_different_buckets_make_wholes(self):
        """and of each key no more than one waits in memory, however many buckets it has been counted in"""
        self.migrate()
        counterd = self.counterd()
        last = int(time.time()) - HOUR
        for n in range(21):
            counterd.send_udp([f"m.a:0.5|c|T{last - n * MINUTE}", f"h.a:-0.25|c|T{last - n * HOUR}"])
            counterd.settle(2 * n + 2)
        self.assertEqual(counterd.status()["table"]["keys"], 2)
        totals = collections.Counter()
        for member, value in self.redis.pending().items():
            totals[member.split()[0]] += value
        self.assertEqual(totals, {"m.a": 10, "h.a": -5})
        self.flush()
        self.assertEqual(self.counters(), {"m.a": 10, "h.a": -5})


def day(offset):
    return datetime.datetime.now(datetime.timezone.utc).date() + datetime.timedelta(days=offset)


def name_of(date):
    return f"rollups_{date:%Y%m%d}"


class Partitions(harness.Case):
    def setUp(self):
        super().setUp()
        harness.away_from_turn(86400, harness.DEADLINE_S)
        self.config["targets"] = [target("*", bucket="1m", retention="30d")]
        self.migrate()

    def partitions(self):
        return [row[0] for row in self.query(
            "select inhrelid::regclass::text from pg_inherits where inhparent = 'counterd.rollups'::regclass order by 1")]

    def add(self, date, rows=1):
        self.query(f"create table counterd.{name_of(date)} partition of counterd.rollups"
                   f" for values from ('{date} 00:00:00+00') to ('{date + datetime.timedelta(days=1)} 00:00:00+00');"
                   f"insert into counterd.rollups select 'k' || n, '{date} 12:00:00+00', 1 from generate_series(1, {rows}) n")

    def expected(self, *offsets):
        return [f"counterd.{name_of(day(offset))}" for offset in offsets]

    def hold(self, sql):
        """A session of somebody else's that has done this and stays in its transaction."""
        session = self.track(harness.Process("psql", self.dir, [
            "psql", "-X", "-d", self.postgres.url(self.database), "-c", f"begin; {sql}; select pg_sleep(600)"]))
        session.spawn()
        harness.wait_until(lambda: self.query(
            "select count(*) from pg_stat_activity where wait_event = 'PgSleep' and datname = current_database()")
            == [["1"]], what="the session's lock")
        return session

    def test_made_ahead_and_dropped_after_the_retention(self):
        for offset in (-400, -31, -30, -1):
            self.add(day(offset))
        self.query("create table counterd.rollups_by_hand partition of counterd.rollups"
                   " for values from ('2001-01-01') to ('2001-02-01')")
        done = self.flush()
        self.assertRegex(done.err, "event=partitions made=3 dropped=2 postponed=0")
        self.assertEqual(self.partitions(), self.expected(-30, -1, 0, 1, 2) + ["counterd.rollups_by_hand"])
        self.assertNotIn("event=partitions", self.flush().err)

    def test_a_clock_that_is_ahead_makes_no_day_expire(self):
        """Nothing is dropped, nor left out, before the clock of Postgres says so too."""
        library = harness.BUILD / "tests" / "integration" / "libclock_ahead.so"
        if not library.exists():
            self.skipTest(f"{library} is not built")
        self.add(day(-29))
        counterd = self.counterd()
        counterd.send_udp(["a:7|c"])
        counterd.settle(1)
        self.flush(env={"LD_PRELOAD": str(library), "CLOCK_AHEAD_S": str(60 * DAY)})
        self.assertEqual(self.partitions(), self.expected(-29, 0, 1, 2))
        self.assertEqual(self.query("select value from counterd.rollups where key = 'a'"), [["7"]])

    def test_a_day_begins_at_midnight_utc(self):
        self.query(f"alter database {self.database} set timezone = 'Asia/Kolkata'")
        self.flush()
        self.query(f"insert into counterd.rollups values ('a', '{day(1)} 00:00:00+00', 1),"
                   f" ('b', '{day(1)} 23:59:00+00', 1)")
        self.assertEqual(self.query(f"select count(*) from counterd.{name_of(day(1))}"), [["2"]])

    def test_not_made_unless_somebody_rolls_up_there(self):
        self.config["targets"] = [target("*")]
        self.flush()
        self.assertEqual(self.partitions(), [])

    def test_without_retention_nothing_is_dropped(self):
        self.config["targets"] = [target("a.*", bucket="1m", retention="1d"),
                                  target("*", bucket="1m", retention="none")]
        self.add(day(-400))
        self.flush()
        self.assertEqual(self.partitions(), self.expected(-400, 0, 1, 2))

    def test_the_longest_retention_decides(self):
        self.config["targets"] = [target("a.*", bucket="1m", retention="3d"),
                                  target("*", bucket="1m", retention="1d")]
        for offset in (-4, -3):
            self.add(day(offset))
        self.flush()
        self.assertEqual(self.partitions(), self.expected(-3, 0, 1, 2))

    def test_readers_and_writers_do_not_wait_and_are_not_waited_for(self):
        self.add(day(-40))
        self.flush()
        self.query(f"drop table counterd.{name_of(day(2))}")
        self.add(day(-39))
        holder = self.hold("select count(*) from counterd.rollups; lock table counterd.rollups in row exclusive mode")
        done = self.flush()
        self.assertRegex(done.err, "event=partitions made=1 dropped=0 postponed=1")
        self.assertEqual(self.partitions(), self.expected(-39, 0, 1, 2))
        holder.kill()
        self.query("select pg_terminate_backend(pid) from pg_stat_activity where wait_event = 'PgSleep'"
                   " and datname = current_database()")
        harness.wait_until(lambda: "dropped=1" in self.flush().err or self.expected(-39)[0] not in self.partitions())
        self.assertEqual(self.partitions(), self.expected(0, 1, 2))

    def test_many_flushers_at_once(self):
        for offset in range(-45, -35):
            self.add(day(offset))
        self.write_config("flusher.json")
        results = []
        threads = [threading.Thread(target=lambda: results.append(
            self.program(harness.FLUSHER, "-c", self.dir / "flusher.json"))) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual([result.code for result in results], [0] * 6, results)
        self.assertNotIn("partitions_not_kept", "".join(result.err for result in results))
        harness.wait_until(lambda: "event=partitions" not in self.flush().err)
        self.assertEqual(self.partitions(), self.expected(0, 1, 2))


if __name__ == "__main__":
    harness.main()
