#!/usr/bin/env python3
"""test_parked - what Postgres refuses: found among many, kept, tried again once, or given up; and the books balance
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness
from test_every_step import is_sql
from test_targets import CATCH_ALL, POSTS, Targets


class Parked(Targets):
    INSERT = {**POSTS, "missing": "insert"}

    def parked_command(self, *args, **options):
        return json.loads(self.flusher("parked", *args, "--json", **options).out)

    def balance(self, **expected):
        audit = self.audit()
        self.assertEqual({name: audit[name] for name in ("verdict", *expected)}, {"verdict": "balanced", **expected})

    def test_five_bad_ones_among_ten_thousand(self):
        self.use(self.INSERT, CATCH_ALL, sql="create table posts (id int primary key check (id <> 4711), view_count int);"
                                             "insert into posts values (17, 2147483647), (9999, 2147483640)")
        bad = ["post.views.abc", "post.views.4711", "post.views.99999999999", "post.views.-", "post.views.9999"]
        good = [f"post.views.{n}" for n in range(10000) if n not in (17, 4711, 9999)]
        self.count(*(f"{key}:8|c" for key in good), *(f"{key}:8|c" for key in bad), "post.views.17:-1|c")
        result = self.flush_json()
        self.assertEqual([result["keys"], result["parked"]], [len(good) + 6, 5])
        self.assertEqual(self.parked(), sorted([
            ["post.views.abc", 8, "type"], ["post.views.-", 8, "type"], ["post.views.99999999999", 8, "range"],
            ["post.views.9999", 8, "range"], ["post.views.4711", 8, "check"]]))
        self.assertEqual(self.query("select count(*), sum(view_count) from posts where id not in (17, 9999)"),
                         [[str(len(good)), str(8 * len(good))]])
        self.assertEqual(self.query("select view_count from posts where id in (17, 9999) order by id"),
                         [["2147483646"], ["2147483640"]])
        self.balance(parked=40, applied=8 * len(good) - 1)
        self.assertIn("out of range", self.query("select detail from counterd.parked where key = 'post.views.9999'")[0][0])

    def test_a_counter_of_ours_that_is_full(self):
        self.use(CATCH_ALL)
        self.query("insert into counterd.counters values ('full', 9223372036854775807, now(), now())")
        self.count("full:1|c", "page.home:2|c")
        self.flush()
        self.assertEqual(self.parked(), [["full", 1, "range"]])
        self.assertEqual(self.counters("page%"), {"page.home": 2})

    def test_all_reasons(self):
        self.use(self.INSERT, sql="create table other (id int primary key); insert into other select generate_series(1, 5);"
                                  "create table posts (id int primary key references other, view_count int check "
                                  "(view_count < 10), twin int not null unique default 1, more int default 0 not null)")
        self.count("post.views.1:1|c")
        self.flush()
        self.query("create function f() returns trigger language plpgsql as $$ begin if new.id = 4 then new.more = null; "
                   "end if; if new.id <> 2 then new.twin = new.id; end if; return new; end $$;"
                   "create trigger f before insert on posts for each row execute function f()")
        self.count("post.views.x:1|c", "post.views.2:1|c", "post.views.3:10|c", "post.views.4:1|c", "post.views.6:1|c",
                   "home:1|c", "post.views.3000000000:1|c")
        self.flush()
        self.assertEqual(self.parked(), [
            ["home", 1, "no_target"], ["post.views.2", 1, "unique"], ["post.views.3", 10, "check"],
            ["post.views.3000000000", 1, "range"], ["post.views.4", 1, "not_null"], ["post.views.6", 1, "foreign_key"],
            ["post.views.x", 1, "type"]])
        self.balance(parked=16, applied=1)
        self.assertEqual(self.query("select count(*) from posts"), [["1"]])

    def test_list_and_filters(self):
        self.use(POSTS, sql="create table posts (id int primary key, view_count int)")
        self.count("post.views.1:1|c", "post.views.2:2|c", "page.home:4|c")
        self.flush()
        self.query("update counterd.parked set parked_at = now() - interval '2 days' where key = 'post.views.2'")
        for args, keys in (((), ["page.home", "post.views.1", "post.views.2"]), (("--target", "posts"), ["post.views.1",
                           "post.views.2"]), (("--reason", "no_target"), ["page.home"]), (("--older-than", "1d"),
                           ["post.views.2"]), (("--match", "post.views.{id}"), ["post.views.1", "post.views.2"]),
                           (("--match", "*", "--reason", "missing", "--older-than", "90s"), ["post.views.2"]),
                           (("--target", "nothing"), [])):
            found = self.parked_command("list", *args)
            self.assertEqual(sorted(row["key"] for row in found["parked"]), keys, args)
            self.assertEqual(found["rows"], len(keys))
        text = self.flusher("parked", "list", "--reason", "missing").out
        self.assertIn("key=post.views.1 increments=1 target=posts reason=missing", text)
        self.assertIn("event=parked rows=2 increments=3 shown=2", text)

    def test_usage(self):
        for args in (("parked",), ("parked", "eat"), ("parked", "list", "more"), ("parked", "drop"), ("parked", "list",
                     "--reason", "why"), ("parked", "list", "--older-than", "1w"), ("parked", "list", "--older-than", "d"),
                     ("parked", "list", "--match", "{"), ("status", "--target", "posts"), ("parked", "retry", "--force")):
            self.flusher(*args, code=harness.EXIT_USAGE)

    def test_retry_once_the_rows_are_there(self):
        self.use({**POSTS, "touch": "seen"}, CATCH_ALL,
                 sql="create table posts (id int primary key, view_count int, seen timestamptz)")
        for n in range(3):
            self.count("post.views.1:1|c", "post.views.2:1|c", "post.views.x:1|c")
            self.flush()
        self.query("insert into posts values (1, 100)")
        result = self.parked_command("retry")
        self.assertEqual([result["applied_increments"], result["still_parked_increments"]], [3, 6])
        self.assertEqual(self.query("select id, view_count, seen <= now() and seen > now() - interval '1 hour' from posts"),
                         [["1", "103", "t"]])
        self.balance(parked=6, applied=3)
        self.assertEqual(self.parked_command("retry")["applied_increments"], 0)
        self.balance(parked=6, applied=3)

    def test_retry_overtaken_while_it_waits_for_a_row(self):
        """Another has applied the rows when the first tries again: it tells of none."""
        self.use(POSTS, sql="create table posts (id int primary key, view_count int)")
        self.count("post.views.1:3|c")
        self.flush()
        self.query("insert into posts values (1, 100)")
        proxy, postgres = self.proxied_postgres()
        holder = self.track(harness.Process("psql", self.dir, [
            "psql", "-X", "-d", self.postgres.url(self.database), "-c",
            "begin; select from posts for update; select pg_sleep(600)"])).spawn()
        harness.wait_until(lambda: self.query("select count(*) from pg_stat_activity where wait_event = 'PgSleep' and"
                                              " datname = current_database()") == [["1"]], what="the row is held")

        def overtake():
            self.query("select pg_terminate_backend(pid) from pg_stat_activity where wait_event = 'PgSleep' and"
                       " datname = current_database()")
            holder.wait()
            self.overtaker = self.parked_command("retry")

        proxy.hold(is_sql("rollback\0"), overtake)
        result = self.parked_command("retry", config=self.write_config("through.json", postgres=postgres))
        self.assertEqual((self.overtaker["applied_increments"], result["applied_increments"]), (3, 0))
        self.assertEqual(self.query("select view_count from posts"), [["103"]])

    def test_retry_goes_where_the_configuration_says_today(self):
        self.use(POSTS, sql="create table posts (id int primary key, view_count int)")
        self.count("post.views.1:1|c", "page.home:2|c")
        self.flush()
        self.use({**POSTS, "missing": "drop"}, CATCH_ALL)
        result = self.parked_command("retry")
        self.assertEqual([result["applied_increments"], result["dropped_increments"]], [2, 1])
        self.assertEqual(self.counters(), {"page.home": 2})
        self.balance(parked=0, applied=2, dropped=1)
        self.use({**POSTS, "match": "y.{id}", "table": "other"}, sql="create table other (id int primary key, view_count int)")
        self.count("post.views.1:4|c")
        self.flush()
        self.use(POSTS)
        self.parked_command("retry", "--reason", "no_target")
        self.assertEqual(self.query("select target, reason from counterd.parked"), [["posts", "missing"]])

    def test_drop(self):
        self.use(POSTS, sql="create table posts (id int primary key, view_count int)")
        self.count("post.views.1:1|c", "post.views.2:2|c", "page.home:4|c")
        self.flush()
        result = self.parked_command("drop", "--match", "post.views.2")
        self.assertEqual([result["dropped_rows"], result["dropped_increments"]], [1, 2])
        self.balance(parked=5, dropped=2, applied=0)
        self.parked_command("drop", "--match", "*")
        self.balance(parked=0, dropped=7)

    def test_many_pages(self):
        """More rows than one transaction takes, in one shard."""
        self.use(POSTS, sql="create table posts (id int primary key, view_count int)", shards=1)
        self.count(*(f"post.views.{n}:1|c" for n in range(12000)), "page.home:1|c")
        self.flush()
        self.query("insert into posts select generate_series(0, 11999)")
        result = self.parked_command("retry")
        self.assertEqual([result["applied_rows"], result["still_parked_rows"]], [12000, 1])
        self.assertEqual(self.query("select count(*), sum(view_count) from posts"), [["12000", "12000"]])
        self.balance(parked=1, applied=12000)

    def test_retry_killed_at_every_step(self):
        """kill -9 right before and right after each statement, and an answer to COMMIT that never comes: once in the end."""
        self.use(POSTS, CATCH_ALL, sql="create table posts (id int primary key, view_count int)", shards=1)
        proxy, postgres = self.proxied_postgres()
        through = self.write_config("through.json", postgres=postgres)
        rounds = 0
        for step in ("begin", "for update", "limit 10000 for update", "savepoint part", "update public.posts",
                     "delete from counterd.parked", "update counterd.shards", "commit\0"):
            for before in (True, False):
                rounds += 1
                self.query("delete from posts")
                self.count("post.views.1:1|c")
                self.flush()
                self.query(f"insert into posts values (1, {rounds - 1})")
                self.flusher_killed(proxy, is_sql(step), before, through, "parked", "retry")
                self.balance()
                self.flusher("parked", "retry")
                self.assertEqual(self.query("select view_count from posts"), [[str(rounds)]], step)
                self.balance(parked=0, applied=rounds)
        proxy.cut(is_sql("commit\0"))
        self.query("delete from posts")
        self.count("post.views.1:1|c")
        self.flush()
        self.query(f"insert into posts values (1, {rounds})")
        done = self.flusher("parked", "retry", config=through, code=harness.EXIT_UNAVAILABLE)
        self.assertIn("the same command again", done.err)
        self.flusher("parked", "retry")
        self.assertEqual(self.query("select view_count from posts"), [[str(rounds + 1)]])
        self.balance(parked=0, applied=rounds + 1)

    def test_flush_killed_while_it_parks(self):
        self.use(POSTS, CATCH_ALL, sql="create table posts (id int primary key, view_count int); insert into posts values "
                                       "(1, 0)", shards=1)
        proxy, postgres = self.proxied_postgres()
        through = self.write_config("through.json", postgres=postgres)
        rounds = 0
        for step in ("savepoint part", "update public.posts", "insert into counterd.parked", "set parked_total"):
            for before in (True, False):
                rounds += 1
                self.count("post.views.1:1|c", "post.views.2:1|c")
                self.flusher_killed(proxy, is_sql(step), before, through, "run")
                self.flush()
                self.assertEqual(self.query("select view_count from posts"), [[str(rounds)]], step)
                self.balance(parked=rounds, applied=rounds)

    def test_the_audit_sees_what_was_taken_by_hand(self):
        self.use(POSTS, sql="create table posts (id int primary key, view_count int)")
        self.count("post.views.1:5|c")
        self.flush()
        self.query("delete from counterd.parked")
        audit = json.loads(self.flusher("audit", "--json", code=65).out)
        self.assertEqual([audit["verdict"], audit["difference"]], ["lost", 5])

    def test_a_quarantined_generation_goes_to_the_targets_too(self):
        self.use(POSTS, CATCH_ALL, sql="create table posts (id int primary key, view_count int); insert into posts values "
                                       "(1, 0)", shards=1)
        self.count("page.home:1|c")
        self.flush()
        self.query("insert into counterd.quarantine (namespace, gen, shard, prev_gen, identity, vector, members, deltas,"
                   " accepted_at_seal, opened_at, sealed_at, total) values ('counterd', 'lost', 0, '', '{\"w\": [1, 2]}', "
                   "'{}', '{post.views.1,post.views.2,page.home}', '{10,20,40}', 0, now(), now(), 70)")
        self.flusher("quarantine", "apply", self.query("select id from counterd.quarantine")[0][0])
        self.assertEqual(self.query("select view_count from posts"), [["10"]])
        self.assertEqual(self.counters(), {"page.home": 41})
        self.assertEqual(self.parked(), [["post.views.2", 20, "missing"]])
        self.balance(parked=20, applied=51)

    def test_a_quarantined_generation_gets_the_days_that_its_rollups_need(self):
        self.use({**CATCH_ALL, "rollup": {"bucket": "1h"}}, shards=1)
        self.flush()
        at = int(self.query("select extract(epoch from date_bin('1 hour', now() - interval '9 days', 'epoch'))::bigint")[0][0])
        self.query("insert into counterd.quarantine (namespace, gen, shard, prev_gen, identity, vector, members, deltas,"
                   " accepted_at_seal, opened_at, sealed_at, total) values ('counterd', 'lost', 0, '', '{\"w\": [1, 2]}', "
                   f"'{{}}', '{{page.home {at}}}', '{{10}}', 0, now(), now(), 10)")
        self.flusher("quarantine", "apply", self.query("select id from counterd.quarantine")[0][0])
        self.assertEqual(self.parked(), [])
        self.assertEqual(self.query("select key, extract(epoch from bucket)::bigint, value from counterd.rollups"),
                         [["page.home", str(at), "10"]])
        self.balance(applied=10)


if __name__ == "__main__":
    harness.main()
