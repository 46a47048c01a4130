#!/usr/bin/env python3
"""test_reading - what dashboards read: the views and functions of migrations/0006_reading.sql, the role that may only
read, and what a listener hears of a flush"""

import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness


class Listener:
    """A psql that listens."""

    def __init__(self, case):
        self.psql = subprocess.Popen(["psql", "-XAtq", case.postgres.url(case.database)], stdin=subprocess.PIPE,
                                     stdout=subprocess.PIPE, text=True)
        case.addCleanup(self.close)
        self.heard = []
        self.psql.stdin.write("listen counterd_flushed;\n")
        self.ask()

    def ask(self):
        """psql tells of notifications after a statement's answer."""
        self.psql.stdin.write("select 'asked';\n")
        self.psql.stdin.flush()
        for line in iter(self.psql.stdout.readline, "asked\n"):
            if line.strip():
                self.heard.append(json.loads(line.split('payload "', 1)[1].rsplit('" received', 1)[0]))

    def wait(self, count):
        """All that was heard, once there are so many."""
        def enough():
            self.ask()
            return len(self.heard) >= count
        harness.wait_until(enough, what=lambda: f"{count} notifications; heard {self.heard}")
        return self.heard

    def close(self):
        self.psql.stdin.close()
        self.psql.wait()
        self.psql.stdout.close()


class Reading(harness.Case):
    def setUp(self):
        super().setUp()
        self.migrate()

    def column(self, sql):
        return [row[0] for row in self.query(sql)]

    def add_rollups(self, *rows):
        """(key, bucket, value); the partition of the bucket's day is made where it is missing."""
        for day in {bucket[:10] for _, bucket, _ in rows}:
            self.query(f"create table counterd.\"day_{day}\" partition of counterd.rollups"
                       f" for values from ('{day} 00:00+00') to ('{day} 24:00+00')")
        for key, bucket, value in rows:
            self.query(f"insert into counterd.rollups values ('{key}', '{bucket}+00', {value})")

    def add_run(self, ago, increments, events=0, namespace="counterd", error="null"):
        self.query("insert into counterd.runs (namespace, started_at, finished_at, shards, keys, increments, events,"
                   f" error) values ('{namespace}', now(), '2026-03-01 12:00+00'::timestamptz - interval '{ago}', 1, 1,"
                   f" {increments}, {events}, {error})")


class Top(Reading):
    def test_counters_largest_first(self):
        self.query("insert into counterd.counters select 'k' || n, n % 50, now(), now()"
                   " from generate_series(1, 1000) n")
        self.assertEqual(self.column("select key from counterd.top_counters limit 3"), ["k149", "k199", "k249"])

    def test_rates_of_the_last_full_minute_and_hour(self):
        self.query("insert into counterd.namespaces (namespace, shards) values ('one', 1), ('two', 1);"
                   "insert into counterd.shards (namespace, shard, fresh_until) values"
                   " ('one', 0, '2026-03-01 12:30:40+00'), ('two', 0, '2026-03-01 12:20+00')")
        self.add_rollups(("a", "2026-03-01 11:29", 1000), ("a", "2026-03-01 11:30", 1), ("a", "2026-03-01 12:28", 2),
                         ("a", "2026-03-01 12:29", 4), ("a", "2026-03-01 12:30", 2000), ("b", "2026-03-01 12:00", 8))
        self.assertEqual(self.query("select * from counterd.top_rates"), [["b", "0", "8"], ["a", "4", "7"]])

    def test_rates_scan_only_the_partitions_they_are_of(self):
        self.query("insert into counterd.namespaces (namespace, shards) values ('one', 1);"
                   "insert into counterd.shards (namespace, shard, fresh_until)"
                   " values ('one', 0, '2026-03-01 12:30+00')")
        self.add_rollups(("a", "2026-03-01 12:00", 1), ("a", "2026-02-01 12:00", 1))
        plan = "\n".join(self.column("explain (analyze, costs off, timing off) select * from counterd.top_rates"))
        self.assertRegex(plan, r'"day_2026-02-01" .*\(never executed\)')
        self.assertRegex(plan, r'"day_2026-03-01" .*\(actual rows=1 ')


class Series(Reading):
    def series(self, *args):
        return self.query("select to_char(bucket at time zone 'UTC', 'MM-DD HH24:MI'), value from counterd.series('{}',"
                          " '{}+00', '{}+00', '{}')".format(*args))

    def test_gaps_are_filled(self):
        self.add_rollups(("a", "2026-03-01 12:00", 3), ("a", "2026-03-01 12:02", 4), ("b", "2026-03-01 12:01", 9))
        self.assertEqual(self.series("a", "2026-03-01 11:59", "2026-03-01 12:04", "1 minute"),
                         [["03-01 11:59", "0"], ["03-01 12:00", "3"], ["03-01 12:01", "0"], ["03-01 12:02", "4"],
                          ["03-01 12:03", "0"]])

    def test_a_step_gathers_its_buckets_and_the_first_is_whole(self):
        self.add_rollups(("a", "2026-03-01 12:00", 1), ("a", "2026-03-01 12:59", 2), ("a", "2026-03-01 13:00", 4))
        self.assertEqual(self.series("a", "2026-03-01 12:30", "2026-03-01 13:30", "1 hour"),
                         [["03-01 12:00", "3"], ["03-01 13:00", "4"]])

    def test_a_key_that_nobody_counted_is_all_zero(self):
        self.assertEqual(self.series("it''s", "2026-03-01 12:00", "2026-03-01 12:02", "1 minute"),
                         [["03-01 12:00", "0"], ["03-01 12:01", "0"]])

    def test_days_are_of_utc_whatever_the_session_is_in(self):
        """In Berlin the night of 2026-03-29 lacks an hour, and that day begins at 23:00 UTC."""
        self.add_rollups(("a", "2026-03-28 23:30", 1), ("a", "2026-03-29 23:30", 2), ("a", "2026-03-30 00:30", 4))
        self.query(f"alter database {self.database} set timezone = 'Europe/Berlin'")
        self.assertEqual(self.series("a", "2026-03-28 00:00", "2026-03-31 00:00", "1 day"),
                         [["03-28 00:00", "1"], ["03-29 00:00", "2"], ["03-30 00:00", "4"]])

    def test_weeks_begin_on_monday(self):
        self.assertEqual(self.series("a", "2026-03-04 12:00", "2026-03-09 00:01", "7 days"),
                         [["03-02 00:00", "0"], ["03-09 00:00", "0"]])

    def test_uses_the_primary_key(self):
        self.query("create table counterd.day partition of counterd.rollups for values from ('2026-03-01 00:00+00') to"
                   " ('2026-03-02 00:00+00');"
                   "insert into counterd.rollups select 'k' || k, '2026-03-01 00:00+00'::timestamptz + m * interval '1"
                   " minute', 1 from generate_series(1, 200) k, generate_series(0, 99) m; analyze counterd.rollups")
        plan = "\n".join(self.column("explain (costs off) select * from counterd.series('k7', '2026-03-01 00:00+00',"
                                     " '2026-03-01 01:00+00', '1 minute')"))
        self.assertRegex(plan, "(?s)day_pkey.*key = 'k7'")


class Runs(Reading):
    def test_totals_and_rates_are_per_namespace(self):
        for number, namespace in enumerate(("one", "two"), 1):
            config = self.write_config(f"{namespace}.json", namespace=namespace)
            counterd = self.counterd(namespace, namespace=namespace)
            for lines in (3, 6):
                counterd.send_udp([f"shared:{number}|c", f"shared:{number}|c", f"{namespace}:5|c"])
                counterd.settle(lines)
                self.flush(config=config)
        self.assertEqual(self.query("select namespace, total, events from counterd.totals order by 1"),
                         [["one", "14", "6"], ["two", "18", "6"]])
        self.assertEqual(self.counters(), {"shared": 4 + 8, "one": 10, "two": 10})
        self.assertEqual(self.query("select namespace, round(increments_per_s * extract(epoch from over)),"
                                    " round(events_per_s * extract(epoch from over)) from counterd.rates order by 1"),
                         [["one", "7", "3"], ["two", "9", "3"]])

    def test_rates_are_of_the_last_minute_or_of_the_last_run(self):
        self.query("insert into counterd.namespaces (namespace, shards) values ('often', 1), ('slow', 1), ('once', 1)")
        for seconds in range(0, 120, 10):
            self.add_run(f"{seconds} seconds", 10 + seconds // 61 * 1000, 5, "often")
        self.add_run("0", 600, 300, "slow")
        self.add_run("5 minutes", 999, 99, "slow")
        self.add_run("0", 7, 7, "once")
        self.assertEqual(self.query("select namespace, over, round(increments_per_s, 2), round(events_per_s, 2)"
                                    " from counterd.rates order by 1"),
                         [["often", "00:01:00", "1.00", "0.50"], ["slow", "00:05:00", "2.00", "1.00"]])

    def test_run_series(self):
        self.add_run("1 minute", 5, 2)
        self.add_run("1 minute", 6, 3, error="'Redis went away'")
        self.add_run("0", 4, 4)
        self.add_run("1 minute", 100, 100, "other")
        self.assertEqual(self.query("select increments, events, runs, failed from counterd.run_series('counterd',"
                                    " '2026-03-01 11:58+00', '2026-03-01 12:01+00', '1 minute')"),
                         [["0", "0", "0", "0"], ["11", "5", "2", "1"], ["4", "4", "1", "0"]])


class Notify(Reading):
    def test_a_listener_hears_of_each_run_once_and_of_no_dry_run(self):
        listener = Listener(self)
        counterd = self.counterd()
        counterd.send_udp(["a:1|c", "b:2|c", "a:3|c"])
        counterd.settle(3)
        self.flush("--dry-run")
        self.flush()
        [heard] = listener.wait(1)
        self.assertEqual((heard["namespace"], heard["keys"], heard["increments"]), ("counterd", 2, 6))
        self.assertEqual(self.query("select id from counterd.runs"), [[str(heard["run"])]])
        self.assertEqual(self.query(f"select fresh_until = '{heard['fresh_until']}' from counterd.freshness"), [["t"]])
        self.flush()
        heard = listener.wait(2)
        self.assertEqual([(one["keys"], one["increments"]) for one in heard], [(2, 6), (0, 0)])


class Roles(Reading):
    def as_role(self, role, sql):
        return self.program("psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql,
                            self.postgres.url(self.database, user=role))

    def test_a_reader_reads_everything_and_changes_nothing(self):
        role = f"reader_{self.database}"
        self.query(f"create role {role} login; select counterd.grant_reader('{role}')")
        self.query("create table counterd.later (n integer)")
        for name in self.column("select oid::regclass from pg_class where relnamespace = 'counterd'::regnamespace"
                                " and relkind in ('r', 'p', 'v')"):
            done = self.as_role(role, f"select count(*) from {name}")
            self.assertEqual(done.code, 0, done)
        self.assertEqual(self.as_role(role, "select count(*) from counterd.series('k', now(), now() + interval '1 h',"
                                            " '1 h')").code, 0)
        self.assertEqual(self.as_role(role, "listen counterd_flushed").code, 0)
        for sql in ("update counterd.counters set value = 0", "delete from counterd.runs",
                    f"select counterd.grant_reader('{role}')", "create table counterd.mine (n integer)"):
            self.assertIn("permission denied", self.as_role(role, sql).err)
        self.query(f"drop owned by {role}; drop role {role}")

    def test_an_ordinary_owner_can_migrate_and_grant(self):
        owner, reader, database = (f"{what}_{self.database}" for what in ("owner", "ordinary_reader", "owned"))
        self.query(f"create role {owner} login")
        self.query(f"create role {reader} login")
        self.query(f"create database {database} owner {owner}")
        config = self.write_config(postgres={"url": self.postgres.url(database, user=owner)})
        self.flusher("migrate", config=config)
        self.postgres.query("set role " + owner + f"; select counterd.grant_reader('{reader}')", database)
        self.flush(config=config)
        done = self.program("psql", "-XAtqc", "select count(*) from counterd.top_counters",
                            self.postgres.url(database, user=reader))
        self.assertEqual((done.code, done.out), (0, "0\n"), done)


class Comments(Reading):
    def test_every_object_has_one(self):
        self.assertEqual(self.column("""
            select oid::regclass::text from pg_class where relnamespace = 'counterd'::regnamespace and relkind = 'v'
                and obj_description(oid, 'pg_class') is null
            union all select oid::regprocedure::text from pg_proc where pronamespace = 'counterd'::regnamespace
                and obj_description(oid, 'pg_proc') is null"""), [])


if __name__ == "__main__":
    harness.main()
