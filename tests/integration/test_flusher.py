#!/usr/bin/env python3
"""test_flusher - the flusher as people and cron use it: one pass, often, twice at once, cut down at any moment"""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness

SEED = 11


class Commands(harness.Case):
    def setUp(self):
        super().setUp()
        self.migrate()

    def send(self, counterd, lines):
        self.sent = getattr(self, "sent", 0) + len(lines)
        counterd.send_udp(lines)
        counterd.settle(self.sent)

    def as_role(self, name, sql):
        """The flusher is somebody else from now on, for whom a superuser did this."""
        self.query(f"drop role if exists {name}; create role {name} login; {sql}")
        self.addCleanup(self.query, f"drop owned by {name} cascade; drop role {name}")
        self.config["postgres"] = {"url": self.postgres.url(self.database, user=name)}

    def test_nothing_to_flush(self):
        done = self.flush()
        self.assertEqual(self.counters(), {})
        self.assertRegex(done.out + done.err, r"event=flush .*keys=0\b")

    def test_one_summary_line(self):
        counterd = self.counterd()
        self.send(counterd, ["a:1|c", "b:2|c", "a:3|c"])
        done = self.flush()
        [line] = (done.out + done.err).splitlines()
        fields = harness.parse_log_line(line)
        self.assertEqual((fields["event"], fields["keys"], fields["increments"]), ("flush", "2", "6"))

    def test_run_is_the_default_command(self):
        counterd = self.counterd()
        self.send(counterd, ["a:1|c"])
        self.flusher()
        self.assertEqual(self.counters(), {"a": 1})

    def test_json(self):
        counterd = self.counterd()
        self.send(counterd, ["a:1|c", "b:2|c", "a:3|c"])
        run = json.loads(self.flush("--json").out)
        self.assertEqual((run["keys"], run["increments"]), (2, 6))
        status = json.loads(self.flusher("status", "--json").out)
        self.assertEqual(status["namespace"], "counterd")
        self.assertEqual(json.loads(self.flusher("get", "a", "--json").out)["value"], 4)

    def test_dry_run_changes_nothing(self):
        counterd = self.counterd()
        self.send(counterd, ["a:1|c", "b:2|c"])
        before = self.redis.pending(), self.redis.accepted()
        done = self.flush("--dry-run")
        self.assertEqual((self.redis.pending(), self.redis.accepted()), before)
        self.assertEqual(self.counters(), {})
        self.assertEqual(self.query("select count(*) from counterd.ledger"), [["0"]])
        self.assertRegex(done.out + done.err, r"\b2\b")
        self.flush()
        self.assertEqual(self.counters(), {"a": 1, "b": 2})

    def test_get_adds_up_redis_and_postgres(self):
        counterd = self.counterd()
        self.send(counterd, ["a:5|c"])
        self.assertEqual(json.loads(self.flusher("get", "a", "--json").out)["value"], 5)
        self.flush()
        self.send(counterd, ["a:7|c"])
        self.assertEqual(json.loads(self.flusher("get", "a", "--json").out)["value"], 12)
        self.assertRegex(self.flusher("get", "a").out, r"\b12\b")
        self.assertEqual(json.loads(self.flusher("get", "never.seen", "--json").out)["value"], 0)

    def test_every(self):
        flusher = self.track(harness.Process("every", self.dir, [
            harness.FLUSHER, "-c", self.write_config(), "run", "--every", "1"])).spawn()
        counterd = self.counterd()
        for n in range(1, 4):
            self.send(counterd, ["a:1|c"])
            harness.wait_until(lambda: self.counters().get("a") == n, what=f"a = {n}")
        self.assertEqual(flusher.stop(), 0, flusher.tail())

    def test_every_survives_outages(self):
        flusher = self.track(harness.Process("every", self.dir, [
            harness.FLUSHER, "-c", self.write_config(), "run", "--every", "1"])).spawn()
        counterd = self.counterd()
        self.send(counterd, ["a:1|c"])
        harness.wait_until(lambda: self.counters().get("a") == 1, what="a = 1")
        runs = len(flusher.events("flush"))
        self.redis.kill()
        self.postgres.stop()
        harness.wait_until(lambda: [line for line in flusher.events() if line.get("level") in ("warn", "error")],
                           what=lambda: f"a complaint\n{flusher.tail()}")
        self.redis.start()
        self.postgres.start()
        self.send(counterd, ["a:1|c"])
        harness.wait_until(lambda: self.counters().get("a") == 2, what=lambda: f"a = 2\n{flusher.tail()}")
        harness.wait_until(lambda: len(flusher.events("flush")) > runs, what="a run that is told")
        self.assertEqual(flusher.stop(), 0)

    def test_runs_and_ledger_tell_what_happened(self):
        counterd = self.counterd()
        self.send(counterd, [f"key.{n}:1|c" for n in range(50)])
        self.flush()
        self.send(counterd, [f"key.{n}:2|c" for n in range(50)])
        self.flush()
        self.assertEqual(self.query("select sum(total), sum(events) from counterd.ledger"), [["150", "100"]])
        self.assertEqual(self.query("select shards, keys, increments, events, error from counterd.runs order by id"),
                         [["8", "50", "50", "50", ""], ["8", "50", "100", "50", ""]])
        self.assertEqual(self.query("select namespace, fresh_until <= now() from counterd.freshness"),
                         [["counterd", "t"]])

    def test_old_rows_go_and_the_audit_still_balances(self):
        """The newest row of a shard stays, however old, and the two before it: Redis goes on from one of them."""
        counterd = self.counterd()
        for _ in range(4):
            self.send(counterd, [f"key.{n}:2|c" for n in range(40)])
            self.flush()
        self.query("update counterd.ledger set applied_at = applied_at - interval '91 days',"
                   " gen = case when gen in (select head_gen from counterd.shards) then gen else '00' || substr(gen, 3) end,"
                   " prev_gen = case when prev_gen = '' then '' else '00' || substr(prev_gen, 3) end")
        newest = "select count(*), sum(cumulative_total) from "
        kept = self.query(newest + "(select *, rank() over (partition by shard order by gen desc) from counterd.ledger) as l"
                                   " where rank <= 3")
        self.query("update counterd.runs set finished_at = finished_at - interval '91 days'")
        self.flush()
        self.assertEqual(self.query(newest + "counterd.ledger"), kept)
        self.assertEqual(self.query("select sum(pruned_total) > 0, count(*) from counterd.shards"), [["t", "8"]])
        self.assertEqual(self.query("select count(*) from counterd.runs"), [["1"]])
        self.flusher("audit")
        self.send(counterd, ["key.1:2|c"])
        self.flush()
        self.flusher("audit")

    def test_rows_that_redis_may_go_back_to_stay(self):
        """What a shard with little traffic had last, keep_days ago, is old; but Redis was there a moment ago."""
        counterd = self.counterd(shards=1)
        config = self.write_config("f.json", shards=1)
        for _ in range(3):
            self.send(counterd, ["a:1|c"])
            self.flush(config=config)
        self.query("update counterd.ledger set gen = '00' || substr(gen, 3), applied_at = applied_at - interval '91 days';"
                   "update counterd.shards set head_gen = '00' || substr(head_gen, 3)")
        self.redis.call("HSET", "{counterd:0}:meta", "prev_gen", self.query("select head_gen from counterd.shards")[0][0])
        backup = self.redis.backup()
        for _ in range(3):
            self.send(counterd, ["a:1|c"])
            self.flush(config=config)
        counterd.stop()
        self.redis.roll_back(backup)
        another = self.counterd("another", shards=1)
        another.send_udp(["a:1|c"])
        another.settle(1)
        self.flush(config=config)
        self.assertEqual(self.counters(), {"a": 7})
        self.flusher("audit", config=config)
        self.assertEqual(self.query("select pruned_total from counterd.shards"), [["1"]])

    def test_a_clock_that_was_ahead_is_not_believed_for_long(self):
        """Neither of a shard with traffic nor of an idle one."""
        counterd = self.counterd(shards=2)
        config = self.write_config("f.json", shards=2)
        self.flush(config=config)
        self.query("update counterd.shards set fresh_until = now() + interval '1 year'")
        self.send(counterd, ["a:1|c"])
        self.flush(config=config)
        self.assertEqual(self.query("select fresh_until <= now() from counterd.shards"), [["t"], ["t"]])

    def test_a_shard_without_its_row_is_left_alone(self):
        """Nobody could lock it."""
        counterd = self.counterd()
        self.send(counterd, ["a:1|c"])
        self.flush()
        self.query("delete from counterd.shards")
        self.send(counterd, ["a:2|c"])
        self.assertIn("counterd.shards has no row", self.flush(code=harness.EXIT_CONFIG).err)
        self.assertEqual((self.counters(), self.redis.pending()), ({"a": 1}, {"a": 2}))

    def test_status_tells_what_is_pending(self):
        counterd = self.counterd()
        self.send(counterd, [f"key.{n}:1|c" for n in range(50)])
        self.assertRegex(self.flusher("status").out, r"\b50\b")

    def test_a_big_generation(self):
        counterd = self.counterd(keys_max=200000)
        for part in range(4):
            self.send(counterd, [f"a.rather.long.key.with.number.{n}:{n}|c" for n in range(1 + part, 60001, 4)])
        self.flush()
        [[count, total]] = self.query("select count(*), sum(value) from counterd.counters")
        self.assertEqual((int(count), int(total)), (60000, sum(range(60001))))

    def test_a_clock_that_was_set_back_during_a_run(self):
        self.flush()
        self.query("update counterd.runs set finished_at = started_at - interval '1.5 s'")
        self.assertEqual(json.loads(self.flusher("status", "--json").out)["last_run_seconds"], -1.5)

    def test_no_primary_among_the_hosts_is_no_mistake_in_the_configuration(self):
        """As between the moment a primary is gone and the one a standby takes over."""
        self.as_role("waiting", "alter role waiting superuser; alter role waiting set default_transaction_read_only = on")
        host = self.postgres.directory
        for wanted in ("read-write", "primary"):
            url = f"host={host},{host} dbname={self.database} user=waiting target_session_attrs={wanted}"
            self.config["postgres"] = {"url": url}
            if wanted == "read-write":
                self.assertIn("read-only", self.flush(code=harness.EXIT_UNAVAILABLE).err)
                self.query("alter role waiting reset default_transaction_read_only")
            self.flush()

    def test_a_service_that_is_nowhere_is_named(self):
        self.config["postgres"] = {"url": "service=shop"}
        done = self.flush(code=harness.EXIT_CONFIG, env={"PGSERVICEFILE": str(self.dir / "none")})
        self.assertIn("none", done.err)
        (self.dir / "services").write_text("[other]\ndbname=x\n")
        done = self.flush(code=harness.EXIT_CONFIG, env={"PGSERVICEFILE": str(self.dir / "services")})
        self.assertIn('shop', done.err)

    def test_settings_of_the_role_that_others_like(self):
        """What a session finds set must not change what is written, nor stop it."""
        self.as_role("odd", "alter role odd superuser")
        for setting, value in {
                "search_path": "''", "timezone": "'America/St_Johns'", "datestyle": "'German, DMY'",
                "intervalstyle": "'sql_standard'", "default_transaction_isolation": "'serializable'",
                "default_transaction_deferrable": "on", "lock_timeout": "'1ms'", "statement_timeout": "'20s'",
                "idle_in_transaction_session_timeout": "'20ms'", "standard_conforming_strings": "off",
                "quote_all_identifiers": "on", "row_security": "off", "synchronous_commit": "off",
                "extra_float_digits": "-15", "bytea_output": "'escape'", "array_nulls": "off", "xmloption": "document",
                "transform_null_equals": "on"}.items():
            self.query(f"alter role odd set {setting} = {value}")
        self.query("create table public.posts (id int primary key, n numeric(12,2), seen timestamp)")
        self.config["targets"] = [
            {"match": "post.{id}", "table": "public.posts", "value": "n", "touch": "seen", "missing": "insert"},
            {"match": "*", "table": "counterd.counters", "rollup": {"bucket": "1h"}}]
        counterd = self.counterd()
        [[at]] = self.query("select extract(epoch from date_bin('1 hour', now() - interval '9 days', 'epoch'))::bigint")
        for _ in range(2):
            self.send(counterd, ["post.7:2|c", "post.x:1|c", "a:1|c", f"a'\\\"$1:2|c|T{at}"])
            self.flush()
        self.assertEqual(self.counters(), {"a": 2, "a'\\\"$1": 4})
        self.assertEqual(self.query("select id, n, abs(extract(epoch from now() at time zone 'utc' - seen)) < 600 from posts"),
                         [["7", "4.00", "t"]])
        self.assertEqual(self.query(f"select value from counterd.rollups where bucket = to_timestamp({at})"), [["4"]])
        self.assertEqual([json.loads(self.flusher("get", key, "--json").out)["value"] for key in ("post.7", "a")], [4, 2])
        self.assertEqual(json.loads(self.flusher("parked", "retry", "--json").out)["still_parked_rows"], 2)
        for command in ("audit", "status"):
            self.flusher(command)

    def test_a_key_that_is_no_text(self):
        done = self.program(harness.FLUSHER, "-c", self.write_config("f.json"), "get", b"\xff".decode(errors="surrogateescape"))
        self.assertEqual(done.code, harness.EXIT_USAGE, done)

    def test_nothing_there_yet(self):
        """Every command on tables without a row, and before there are any."""
        for args, text in (("get", "a"), "known=false"), (("status",), "last_run"), (("audit",), "balanced"), \
                (("parked", "list"), "rows=0"), (("parked", "retry"), "applied_rows=0"), \
                (("parked", "drop", "--match", "*"), "dropped_rows=0"), (("quarantine", "list"), "nothing waits"), \
                (("run", "--dry-run"), "keys=0"), (("top", "--once"), "Redis"):
            self.assertIn(text, self.flusher(*args).out, args)
        for args in ("apply", "1"), ("drop", "1"):
            self.assertIn("no row 1", self.flusher("quarantine", *args, code=65).err)
        self.query("drop schema counterd cascade")
        for args in ("get", "a"), ("audit",), ("parked", "list"), ("quarantine", "list"), ("run",), ("run", "--dry-run"):
            self.assertIn("migrate", self.flusher(*args, code=harness.EXIT_CONFIG).err, args)

    def test_migrate_takes_no_more_than_the_schema(self):
        self.as_role("keeper", "drop schema counterd cascade; create schema counterd authorization keeper")
        self.migrate()
        self.flush()
        self.assertIn("applied=0", self.migrate().out)

    def test_the_rights_of_a_role_that_owns_nothing(self):
        """examples/flusher-role.sql is enough for all that every command does."""
        self.as_role("counterd_flusher", (harness.ROOT / "examples" / "flusher-role.sql").read_text())
        self.query("create table posts (id int primary key, n int); insert into posts values (1, 0);"
                   "grant select, update on posts to counterd_flusher")
        self.config.update(shards=1, targets=[{"match": "post.{id}", "table": "posts", "value": "n"},
                                              {"match": "*", "table": "counterd.counters"}])
        counterd = self.counterd()
        for _ in range(2):
            self.send(counterd, ["a:1|c", "post.1:1|c", "post.2:1|c", "post.3:1|c"])
            self.flush()
        self.query("insert into posts values (2, 0)")
        for args in ("get", "a"), ("parked", "list"), ("parked", "retry"), ("parked", "drop", "--match", "*"):
            self.flusher(*args)
        self.assertEqual(self.query("select * from posts order by id"), [["1", "2"], ["2", "2"]])
        self.query("insert into counterd.quarantine (namespace, gen, shard, prev_gen, identity, vector, members, deltas,"
                   " accepted_at_seal, opened_at, sealed_at, total) select 'counterd', n, 0, '', '{}', '{}', '{a}', '{10}',"
                   " 0, now(), now(), 10 from generate_series(1, 2) as n")
        for args in ("list",), ("apply", "1"), ("drop", "2"):
            self.flusher("quarantine", *args)
        for args in ("status",), ("audit",):
            self.flusher(*args)
        self.query("insert into counterd.writers values ('counterd', 0, 'once:x', 1, now() - interval '100 days');"
                   "insert into counterd.ledger select namespace, repeat('0', n), shard, '', '{}', 0, 0, 0, 0, 0, 0,"
                   " now(), now(), now() - interval '100 days' from counterd.shards, generate_series(1, 3) as n;"
                   "update counterd.runs set finished_at = now() - interval '100 days'")
        self.flush()
        self.assertEqual(self.query("select (select count(*) from counterd.writers where writer = 'once:x'),"
                                    " (select count(*) from counterd.ledger where gen = '0'),"
                                    " (select count(*) from counterd.runs)"), [["0", "0", "1"]])
        self.assertEqual(self.counters(), {"a": 12})


class Crashes(harness.Case):
    """One sender, and flushers that are killed, run side by side, or are stopped half way."""

    def setUp(self):
        super().setUp()
        self.migrate()
        self.dice = random.Random(SEED)
        self.lines = 0

    def send_some(self, counterd):
        lines = [f"key.{self.dice.randrange(300)}:1|c" for _ in range(500)] + ["steady:2|c"]
        counterd.send_udp(lines)
        self.lines += len(lines)

    def assert_exact(self, counterd):
        """All that was sent is in Postgres, once."""
        counterd.settle(self.lines)
        self.flush()
        [[total]] = self.query("select sum(value) from counterd.counters")
        keys = self.lines // 501
        self.assertEqual(int(total), keys * 500 + keys * 2)
        self.assertEqual(self.counters("steady"), {"steady": 2 * keys})
        self.assertEqual(self.query("select sum(total) from counterd.ledger"), [[total]])
        self.assertEqual(self.redis.pending(), {})
        self.assertEqual(self.redis.accepted(), int(total))

    def test_killed_at_random_moments(self):
        counterd = self.counterd(coalesce_ms=5)
        config = self.write_config("flusher.json")
        finished = 0
        for _ in range(60):
            self.send_some(counterd)
            with subprocess.Popen([harness.FLUSHER, "-c", config, "run"], stdout=subprocess.DEVNULL,
                                  stderr=subprocess.DEVNULL) as flusher:
                try:
                    flusher.wait(self.dice.uniform(0, 0.08))
                    finished += 1
                except subprocess.TimeoutExpired:
                    flusher.kill()
        self.assertLess(finished, 60, "no flusher was killed: the test proved nothing")
        self.assert_exact(counterd)

    def test_overlapping_runs(self):
        """As when a cron run outlasts its minute: all of them exit 0 or say 'try again', and the sum is exact."""
        counterd = self.counterd(coalesce_ms=5)
        config = self.write_config("flusher.json")
        for _ in range(8):
            self.send_some(counterd)
            flushers = [subprocess.Popen([harness.FLUSHER, "-c", config, "run"], stdout=subprocess.DEVNULL,
                                         stderr=subprocess.PIPE, text=True) for _ in range(3)]
            self.send_some(counterd)
            for flusher in flushers:
                err = flusher.communicate(timeout=harness.DEADLINE_S)[1]
                self.assertIn(flusher.returncode, (harness.EXIT_OK, harness.EXIT_TEMPFAIL), err)
        self.assert_exact(counterd)

    def test_a_flusher_that_slept_through_others(self):
        """SIGSTOP in the middle, other runs finish the work, SIGCONT: it must not write what it holds."""
        counterd = self.counterd(coalesce_ms=5)
        config = self.write_config("flusher.json")
        for _ in range(12):
            self.send_some(counterd)
            with subprocess.Popen([harness.FLUSHER, "-c", config, "run"], stdout=subprocess.DEVNULL,
                                  stderr=subprocess.DEVNULL) as sleeper:
                try:
                    sleeper.wait(self.dice.uniform(0.005, 0.06))
                except subprocess.TimeoutExpired:
                    sleeper.send_signal(signal.SIGSTOP)
                # What the sleeper has locked in Postgres, nobody else can have; those runs give up or wait.
                other = subprocess.Popen([harness.FLUSHER, "-c", config, "run"], stdout=subprocess.DEVNULL,
                                         stderr=subprocess.DEVNULL)
                self.send_some(counterd)
                try:
                    other.wait(0.3)
                except subprocess.TimeoutExpired:
                    pass
                sleeper.send_signal(signal.SIGCONT)
                sleeper.wait(harness.DEADLINE_S)
                other.wait(harness.DEADLINE_S)
        self.assert_exact(counterd)

    def test_get_never_wavers_while_flushes_run_and_die(self):
        """The count of a key, read all the while, never falls, never exceeds what was sent, and never lacks what had
        been stored."""
        counterd = self.counterd(coalesce_ms=5)
        config = self.write_config("flusher.json")
        last = 0
        with self.flushers_that_die(config, SEED):
            for _ in range(25):
                self.send_some(counterd)
                stored = 2 * (counterd.settle(self.lines)["received"]["lines"] // 501)
                value = json.loads(self.flusher("get", "steady", "--json", config=config).out)["value"]
                self.assertEqual(value, stored)
                self.assertGreaterEqual(value, last)
                last = value
        self.assert_exact(counterd)

    def test_postgres_restarted_under_flushes(self):
        counterd = self.counterd(coalesce_ms=5)
        config = self.write_config("flusher.json")
        for _ in range(3):
            self.send_some(counterd)
            flusher = subprocess.Popen([harness.FLUSHER, "-c", config, "run"], stdout=subprocess.DEVNULL,
                                       stderr=subprocess.DEVNULL)
            time.sleep(self.dice.uniform(0, 0.03))  # a random moment, not a synchronisation
            self.postgres.stop()
            self.assertIn(flusher.wait(harness.DEADLINE_S), (harness.EXIT_OK, harness.EXIT_UNAVAILABLE,
                                                             harness.EXIT_TEMPFAIL))
            self.postgres.start()
        self.assert_exact(counterd)


if __name__ == "__main__":
    harness.main()
