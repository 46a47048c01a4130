#!/usr/bin/env python3
"""test_lanes - targets in several databases: every count is in the right one once, and one that is away keeps nobody
else's counts waiting
"""

import json
import os
import signal
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness
from test_idempotency import post
from test_rollback import RollbackCase

CATCH_ALL = {"match": "*", "table": "counterd.counters"}
SHOP = {"match": "shop.*", "table": "counterd.counters"}
POSTS = {"match": "blog.post.{id}", "table": "posts", "value": "views", "missing": "insert",
         "rollup": {"table": "hours", "bucket": "1h"}}

# In every shard of every lane, and one event counts in two lanes.
LINES = [f"{kind}.{n}:{n + 1}|c" for kind in ("main", "blog.post", "shop.item") for n in range(40)]
FANOUT = [{"match": "blog.post.{id}", "also": ["shop.all", "main.all"]}]
ALL = sum(n + 1 for n in range(40))


class Lanes(harness.Case):
    """The blog in a database of its own on the same server, the shop in one of `self.shop_server`."""

    def setUp(self):
        super().setUp()
        self.shop_server = self.shop_postgres()
        self.blog, self.shop = self.postgres.new_database(), self.shop_server.new_database()
        self.postgres.query("create table posts (id int primary key, views bigint not null);"
                            "create table hours (id int, bucket timestamptz, views bigint not null,"
                            " primary key (id, bucket))", self.blog)
        self.config["targets"] = [
            {**POSTS, "database": self.postgres.url(self.blog)},
            {**SHOP, "database": self.shop_server.url(self.shop)},
            CATCH_ALL]
        self.config["fanout"] = FANOUT
        self.migrate()
        self.lines = 0
        self.rounds = 0

    def shop_postgres(self):
        return self.postgres

    def reports(self, *args, code=harness.EXIT_OK, **options):
        """namespace -> what the command says of that lane."""
        out = [json.loads(line) for line in self.flusher(*args, "--json", code=code, **options).out.splitlines()]
        return {report["namespace"]: report for report in out}

    def namespaces(self):
        """Of main, blog and shop."""
        by_target = {report["target"]: namespace for namespace, report in self.reports("status", code=None).items()}
        return [by_target[target["match"]] for target in (CATCH_ALL, POSTS, SHOP)]

    def count(self, daemon, lines=LINES):
        daemon.send_udp(lines)
        self.lines += len(lines)
        self.rounds += 1
        daemon.settle(self.lines)

    def shop_counters(self):
        rows = self.shop_server.query("select key, value from counterd.counters", self.shop)
        return {key: int(value) for key, value in rows}

    def posts(self):
        return {int(id): int(views) for id, views in self.postgres.query("select id, views from posts", self.blog)}

    def check_rows(self, rounds, shop_rounds=None):
        """Each count in its own database, and nowhere else."""
        shop_rounds = rounds if shop_rounds is None else shop_rounds
        self.assertEqual(self.counters(), {f"main.{n}": rounds * (n + 1) for n in range(40)} | {"main.all": rounds * ALL})
        self.assertEqual(self.posts(), {n: rounds * (n + 1) for n in range(40)})
        hours = self.postgres.query("select id, sum(views) from hours group by 1", self.blog)
        self.assertEqual({int(id): int(views) for id, views in hours}, self.posts())
        if shop_rounds:
            self.assertEqual(self.shop_counters(), {f"shop.item.{n}": shop_rounds * (n + 1) for n in range(40)}
                             | {"shop.all": shop_rounds * ALL})

    def check_balanced(self):
        audits = self.reports("audit")
        self.assertEqual({audit["verdict"] for audit in audits.values()}, {"balanced"})
        self.assertEqual(len(audits), 3)
        return audits


class OneServer(Lanes):
    def test_every_count_is_in_its_own_database(self):
        daemon = self.counterd()
        for rounds in (1, 2, 3):
            self.count(daemon)
            flushed = self.reports("run")
            self.assertEqual(len(flushed), 3)
            self.check_rows(rounds)
        audits = self.check_balanced()
        sums = [audits[namespace]["applied"] for namespace in self.namespaces()]
        self.assertEqual(sums, [3 * 2 * ALL, 3 * ALL, 3 * 2 * ALL])

    def test_each_has_a_ledger_and_shards_of_its_own(self):
        daemon = self.counterd()
        self.count(daemon)
        main, blog, shop = self.namespaces()
        for namespace in (main, blog, shop):
            self.assertEqual(self.redis.call("GET", f"{{{namespace}}}:shards"), b"8")
            self.assertEqual(len(self.redis.call("KEYS", f"{{{namespace}:*}}:open")), 8)
        self.assertEqual({member.split(".")[0] for member in self.redis.pending(shop)}, {"shop"})
        self.flush()
        for database, namespace in ((self.database, main), (self.blog, blog), (self.shop, shop)):
            self.assertEqual(self.postgres.query("select distinct namespace from counterd.ledger", database),
                             [[namespace]])
            self.assertEqual(self.postgres.query("select namespace, error is null from counterd.runs", database),
                             [[namespace, "t"]])

    def test_get_asks_the_lane_of_the_key(self):
        daemon = self.counterd()
        self.count(daemon)
        self.flush()
        self.count(daemon)
        for key, value in (("main.7", 8), ("blog.post.7", 8), ("shop.item.7", 8), ("shop.all", ALL)):
            got = json.loads(self.flusher("get", key, "--json").out)
            self.assertEqual((got["value"], got["stored"], got["pending"]), (2 * value, value, value), key)
            self.assertEqual(json.loads(daemon.http(f"/v1/counters/{key}")[1])["pending"], value)
        self.assertEqual({top["key"] for top in json.loads(daemon.http("/v1/top?n=2")[1])["keys"]},
                         {"shop.all", "main.all"})

    def test_one_namespace_alone(self):
        daemon = self.counterd()
        self.count(daemon)
        main, blog, shop = self.namespaces()
        self.assertEqual(list(self.reports("run", "--namespace", shop)), [shop])
        self.assertEqual((self.counters(), len(self.posts()), len(self.shop_counters())), ({}, 0, 41))
        refused = self.flusher("status", "--namespace", "other", code=harness.EXIT_USAGE)
        for namespace in (main, blog, shop):
            self.assertIn(f"--namespace {namespace}", refused.err)
        self.assertIn("--namespace", self.flusher("quarantine", "drop", "1", code=harness.EXIT_USAGE).err)
        self.assertEqual(self.reports("run", "--dry-run")[blog]["keys"], 40)

    def test_parked_and_metrics_of_each(self):
        daemon = self.counterd()
        self.count(daemon, [*LINES, "blog.post.none:1|c"])
        path = self.dir / "flush.prom"
        self.flush("--metrics-file", str(path))
        main, blog, shop = self.namespaces()
        for namespace in (main, blog, shop):
            text = (self.dir / f"flush{namespace.removeprefix('counterd')}.prom").read_text()
            self.assertIn(f'counterd_flush_last_run_failed{{namespace="{namespace}"}} 0', text)
        parked = [json.loads(line) for line in self.flusher("parked", "list", "--json").out.splitlines()]
        self.assertEqual([(report["namespace"], report["rows"]) for report in parked if report["rows"]], [(blog, 1)])
        self.check_balanced()

    def test_a_key_that_is_in_a_lane_by_rules_of_before_is_parked(self):
        """Its row is in another database now; only somebody who knows can say what is to become of it."""
        daemon = self.counterd()
        self.count(daemon)
        targets = self.config["targets"]
        moved = [{"match": "shop.item.1", "table": "counterd.counters"}, *targets]
        daemon.path = self.write_config("counterd.json", targets=moved)
        daemon.signal(signal.SIGHUP)
        daemon.wait_event("reloaded")
        self.count(daemon)
        self.config["targets"] = moved
        self.flush()
        self.assertEqual(self.counters("shop%"), {"shop.item.1": 2})
        self.assertEqual(self.postgres.query("select key, delta, reason from counterd.parked", self.shop),
                         [["shop.item.1", "2", "no_target"]])
        self.check_balanced()

    def test_another_set_of_databases_needs_a_restart(self):
        daemon = self.counterd()
        self.write_config("counterd.json", coalesce_ms=21, targets=[CATCH_ALL], fanout=[])
        daemon.signal(signal.SIGHUP)
        daemon.wait_event("reloaded", targets="3", fanouts="1", coalesce_ms="21")
        self.assertIn("targets", daemon.wait_event("reload_partial")["keys"])
        self.count(daemon)
        self.flush()
        self.check_rows(1)

    def test_fractions_stay_in_their_lane(self):
        daemon = self.counterd()
        self.count(daemon, [f"{key}:0.5|c" for key in ("shop.half", "main.half") for _ in range(5)])
        self.count(daemon, ["shop.half:0.5|c", "main.half:0.5|c"])
        self.flush()
        self.assertEqual((self.shop_counters(), self.counters()), ({"shop.half": 3}, {"main.half": 3}))

    def test_keys_beyond_keys_max_count_in_the_first_lane(self):
        daemon = self.counterd(keys_max=10, coalesce_ms=60000)
        daemon.send_udp([f"shop.item.{n}:1|c" for n in range(100)])
        harness.wait_until(lambda: daemon.status()["accepted"] == 100, what="all lines")
        self.assertEqual(daemon.stop(), 0)
        self.flush()
        self.assertEqual(sum(self.counters().values()) + sum(self.shop_counters().values()), 100)
        self.assertEqual(list(self.counters()), ["counterd.overflow"])
        self.check_balanced()

    def test_a_request_with_a_token_in_three_lanes(self):
        daemon = self.ready()
        for n in range(3):
            code, answer = post(daemon, "token", LINES)
            self.assertEqual((code, answer["accepted"], "duplicate" in answer), (200, 120, n > 0))
            self.flush()
        self.check_rows(1)
        # One without a key of the first lane, and more tokens than there are shards.
        for n in range(30):
            self.assertEqual(post(daemon, f"shop {n}".replace(" ", "-"), ["shop.token:1|c"])[0], 200)
            self.assertTrue(post(daemon, f"shop-{n}", ["shop.token:1|c"])[1]["duplicate"])
        self.flush()
        self.assertEqual(self.shop_counters()["shop.token"], 30)
        self.check_balanced()

    def test_kill_9_in_between(self):
        """Of counterd what is acknowledged is there; of the flushers, all processes at once."""
        daemon = self.counterd()
        path = self.write_config("flusher.json")
        for rounds in range(1, 6):
            self.count(daemon)
            flusher = self.track(harness.Process(f"flusher{rounds}", self.dir, [harness.FLUSHER, "-c", path])).spawn()
            harness.wait_until(lambda: not flusher.alive or
                               self.redis.call("KEYS", "{counterd*:sealed"), what="something sealed")
            flusher.kill()
        daemon.kill()
        daemon = self.counterd("after")
        self.lines = 0
        self.count(daemon)
        harness.wait_until(lambda: self.flush(code=None).code == 0, what="a flush")
        self.check_rows(6)
        self.check_balanced()

    def test_every_ends_all(self):
        flusher = self.track(harness.Process("every", self.dir, [harness.FLUSHER, "-c", self.write_config("e.json"),
                                                                 "--every", "1"])).spawn()
        daemon = self.counterd()
        self.count(daemon)
        harness.wait_until(lambda: not any(self.redis.pending(name) for name in self.namespaces()), what="all flushed")
        self.assertEqual(flusher.stop(), 0)
        self.check_rows(1)

    def test_who_kills_the_first_kills_all(self):
        flusher = self.track(harness.Process("every", self.dir, [harness.FLUSHER, "-c", self.write_config("e.json"),
                                                                 "--every", "600"])).spawn()
        flusher.wait_event("flush", 3)
        children = Path(f"/proc/{flusher.pid}/task/{flusher.pid}/children").read_text().split()
        self.assertEqual(len(children), 3)
        flusher.kill()

        def ended(pid):
            try:
                return " Z " in Path(f"/proc/{pid}/stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                return True
        harness.wait_until(lambda: all(map(ended, children)), what=f"the end of {children}")

    def test_when_one_process_dies_all_end_to_be_started_again(self):
        flusher = self.track(harness.Process("every", self.dir, [harness.FLUSHER, "-c", self.write_config("e.json"),
                                                                 "--every", "600"])).spawn()
        flusher.wait_event("flush", 3)
        children = Path(f"/proc/{flusher.pid}/task/{flusher.pid}/children").read_text().split()
        os.kill(int(children[1]), signal.SIGKILL)
        self.assertEqual(flusher.wait(), harness.EXIT_TEMPFAIL)
        self.assertEqual(flusher.events("lane_killed")[0]["signal"], "9")

    def test_flushes_while_it_is_counted(self):
        daemon = self.counterd(workers=2)
        rounds = 20
        sender = threading.Thread(target=lambda: [self.count(daemon) for _ in range(rounds)])
        sender.start()
        while sender.is_alive():
            self.flush(code=None)
        sender.join()
        self.assertEqual(self.rounds, rounds)
        self.flush()
        self.check_rows(rounds)
        self.check_balanced()


class Restarts(Lanes, RollbackCase):
    def test_what_redis_forgets_comes_back_into_its_lane(self):
        daemon = self.counterd()
        self.count(daemon)
        self.flush()
        self.count(daemon)
        backup = self.backup()
        self.count(daemon)
        self.flush()
        self.roll_back(backup)

        def exact():
            self.count(daemon)
            self.flush(code=None)
            return len(self.posts()) == 40 and self.posts()[0] == self.rounds
        harness.wait_until(exact, what=lambda: f"{self.rounds} rounds, not {self.posts()}\n{daemon.tail()}")
        self.check_rows(self.rounds)

    def test_a_spool_is_stored_in_its_lanes(self):
        spool = self.dir / "spool"
        spool.mkdir()
        self.config["redis"]["timeout_ms"] = 2000  # a stop waits so long for a Redis that is away
        daemon = self.counterd(spool_dir=str(spool))
        self.count(daemon)
        self.redis.stop()
        daemon.send_udp([*LINES, "shop.half:0.5|c"])
        harness.wait_until(lambda: daemon.status()["spool"]["increments"] == len(LINES) + 1, what="all on disk")
        daemon.stop()
        self.redis.start()
        refused = self.track(harness.Counterd(
            self.dir, self.write_config("other.json", spool_dir=str(spool), targets=[CATCH_ALL]), "other")).spawn()
        self.assertEqual(refused.wait(), harness.EXIT_CONFIG)
        self.assertIn("other databases", refused.log())
        daemon = self.counterd("after", spool_dir=str(spool))
        daemon.wait_event("replayed")
        self.lines = 0
        self.count(daemon, ["shop.half:0.5|c"])
        self.flush()
        self.assertEqual(self.shop_counters().pop("shop.half"), 1)
        self.check_balanced()
        self.shop_server.query("delete from counterd.counters where key = 'shop.half'", self.shop)
        self.check_rows(2)


class TwoServers(Lanes):
    """The shop's server is another one, which is stopped meanwhile."""

    def shop_postgres(self):
        return self.track(harness.Postgres(harness.scratch_dir("counterd-pg-"), "shop")).start()

    def test_one_that_is_down_holds_up_its_own_only(self):
        daemon = self.counterd()
        self.count(daemon)
        self.flush()
        main, blog, shop = self.namespaces()
        self.shop_server.stop()
        for rounds in (2, 3):
            self.count(daemon)
            done = self.flush(code=harness.EXIT_UNAVAILABLE)
            self.assertIn(f"namespace={shop}", done.err)
            self.assertNotIn(f"namespace={blog}", done.err)
            self.check_rows(rounds, shop_rounds=0)
        self.assertEqual(sum(self.redis.pending(shop).values()), 2 * 2 * ALL)
        self.assertEqual(set(self.reports("status", code=harness.EXIT_UNAVAILABLE)), {main, blog, shop})
        self.shop_server.start()
        self.flush()
        self.check_rows(3)
        self.check_balanced()

    def test_one_that_hangs_holds_up_its_own_only(self):
        daemon = self.counterd()
        self.count(daemon)
        lock = self.shop_server.url(self.shop)
        holder = self.track(harness.Process("holder", self.dir, [
            "psql", "-Xq", "-c", "begin; lock counterd.ledger; select 'held'; select pg_sleep(600)", lock])).spawn()
        harness.wait_until(lambda: self.shop_server.query(
            "select 1 from pg_locks where relation = 'counterd.ledger'::regclass and granted", self.shop), what="the lock")
        flusher = self.track(harness.Process("flusher", self.dir,
                                             [harness.FLUSHER, "-c", self.write_config("f.json")])).spawn()
        harness.wait_until(lambda: not self.redis.pending("counterd") and len(self.posts()) == 40, what="the others")
        self.assertTrue(flusher.alive)
        self.assertEqual(self.shop_counters(), {})
        holder.kill()
        self.shop_server.query("select pg_terminate_backend(pid) from pg_stat_activity where query like '%pg_sleep%'"
                               " and pid <> pg_backend_pid()", "template1")
        self.assertEqual(flusher.wait(), 0)
        self.check_rows(1)


if __name__ == "__main__":
    harness.main()
