#!/usr/bin/env python3
"""test_targets - the application's own tables: what the catalogue has to say for a target to be taken, and that every
count is in the right row once, with rows that are there, that are not, and that somebody else holds
"""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness

CATCH_ALL = {"match": "*", "table": "counterd.counters"}
POSTS = {"match": "post.views.{id}", "table": "posts", "value": "view_count"}


class Targets(harness.Case):
    def setUp(self):
        super().setUp()
        self.migrate()
        self.lines = 0

    def use(self, *targets, sql="", **changes):
        """The targets to use from now on, and tables for them."""
        if sql:
            self.query(sql)
        self.config["targets"] = list(targets)
        self.config.update(changes)

    def count(self, *lines):
        """Has the lines in Redis."""
        if not hasattr(self, "daemon"):
            self.daemon = self.counterd()
        self.daemon.send_udp(lines)
        self.lines += len(lines)
        self.daemon.settle(self.lines)

    def flush_json(self, **options):
        return json.loads(self.flush("--json", **options).out)

    def audit(self):
        """Balanced, and what of it is where."""
        return json.loads(self.flusher("audit", "--json").out)

    def parked(self):
        """[key, delta, reason] of what is parked."""
        return [[key, int(delta), reason] for key, delta, reason in self.query(
            "select key, sum(delta), reason from counterd.parked group by 1, 3 order by 1, 3")]

    def get(self, key):
        return json.loads(self.flusher("get", key, "--json").out)


class Refusals(Targets):
    """Each with exit code 78, its reason, and what would mend it; and with that done, it runs."""

    def refused(self, target, *words, sql="", mend=""):
        self.use(target, CATCH_ALL, sql=sql)
        done = self.flush(code=harness.EXIT_CONFIG)
        for word in (f"target '{target['match']}'", *words):
            self.assertIn(word, done.err.replace('\\"', '"'))
        if mend:
            self.assertIn(mend, done.err.replace('\\"', '"'))
            self.query(mend)
            self.flush()

    def test_no_such_table(self):
        self.refused(POSTS, "there is no such table", "CREATE TABLE posts")

    def test_a_name_that_is_none(self):
        self.refused({**POSTS, "table": 'posts; DROP TABLE "x'}, "table 'posts; DROP TABLE")

    def test_missing_columns(self):
        self.refused(POSTS, "it has no column 'view_count'", sql="create table posts (id int primary key)",
                     mend='ALTER TABLE public.posts ADD COLUMN "view_count" bigint NOT NULL DEFAULT 0;')
        self.refused({**POSTS, "match": "post.views.{post}"}, "it has no column 'post'")
        self.refused({**POSTS, "touch": "seen"}, "it has no column 'seen'",
                     mend='ALTER TABLE public.posts ADD COLUMN "seen" timestamptz;')

    def test_no_unique_key(self):
        self.refused(POSTS, "unique index", sql="create table posts (id int, view_count int)",
                     mend="CREATE UNIQUE INDEX ON public.posts (id);")

    def test_a_unique_key_on_something_else(self):
        for n, index in enumerate(("create unique index on {} (id, kind)", "create unique index on {} (id) where kind > 0",
                                   "create unique index on {} ((id + 1))", "create index on {} (id)",
                                   "alter table {} add unique (id) deferrable")):
            with self.subTest(index):
                table = f"posts{n}"
                self.refused({**POSTS, "table": table}, "unique index",
                             sql=f"create table {table} (id int, kind int, view_count int);" + index.format(table),
                             mend=f"CREATE UNIQUE INDEX ON public.{table} (id);")

    def test_the_order_of_a_composite_key_and_included_columns_do_not_matter(self):
        self.use({"match": "team.{team_id}.user.{user_id}", "table": "scores", "value": "points"},
                 sql="create table scores (user_id int, team_id int, points int);"
                     "create unique index on scores (user_id, team_id) include (points)")
        self.flush()

    def test_types_of_columns(self):
        self.refused(POSTS, "counts are smallint", sql="create table posts (id int primary key, view_count text)",
                     mend="ALTER TABLE public.posts ALTER COLUMN view_count TYPE bigint USING view_count::bigint;")
        self.refused({**POSTS, "table": "p2"}, "which a placeholder can't be",
                     sql="create table p2 (id numeric(4,1) primary key, view_count int)",
                     mend="ALTER TABLE public.p2 ALTER COLUMN id TYPE text;")
        self.refused({**POSTS, "table": "p3", "touch": "seen"}, "a time is timestamptz",
                     sql="create table p3 (id int primary key, view_count int, seen date)",
                     mend="ALTER TABLE public.p3 ALTER COLUMN seen TYPE timestamptz;")

    def test_generated_columns(self):
        self.refused(POSTS, "is generated", sql="create table posts (id int primary key, n int, view_count int "
                                                "generated always as (n + 1) stored)",
                     mend="ALTER TABLE public.posts ALTER COLUMN view_count DROP EXPRESSION;")
        identity = {**POSTS, "table": "p2", "missing": "insert"}
        self.refused(identity, "GENERATED ALWAYS AS IDENTITY",
                     sql="create table p2 (id int generated always as identity primary key, view_count int)",
                     mend="ALTER TABLE public.p2 ALTER COLUMN id SET GENERATED BY DEFAULT;")

    def test_views_rules_and_children(self):
        self.refused({**POSTS, "table": "v"}, "it is a view",
                     sql="create table posts (id int primary key, view_count int); create view v as select * from posts;"
                         "create materialized view m as select * from posts; create sequence s")
        self.refused({**POSTS, "table": "m"}, "it is a view")
        self.refused({**POSTS, "table": "s"}, "it is no table")
        self.refused(POSTS, "rules", sql="create rule r as on update to posts do instead nothing")
        self.refused({**POSTS, "table": "p2"}, "inherit",
                     sql="create table p2 (id int primary key, view_count int); create table p3 () inherits (p2)")

    def test_a_new_row_needs_values_that_no_key_has(self):
        target = {**POSTS, "missing": "insert"}
        self.refused(target, "in the columns title, author", "SET DEFAULT",
                     sql="create table posts (id int primary key, title text not null, author int not null, "
                         "made_at timestamptz not null default now(), n int generated always as identity, view_count int)")
        self.use({**target, "missing": "park"})
        self.flush()

    def test_privileges(self):
        self.query("create role reader login; grant usage on schema counterd to reader; grant all on all tables in schema "
                   "counterd to reader; create table posts (id int primary key, view_count int);"
                   "grant select on posts to reader")
        self.config["postgres"] = {"url": self.postgres.url(self.database, "reader")}
        self.addCleanup(self.query, "drop owned by reader; drop role reader")
        self.refused(POSTS, "the role may not", "column view_count", "GRANT SELECT, UPDATE ON public.posts")
        self.query("grant update (view_count) on posts to reader")
        self.flush()
        self.refused({**POSTS, "missing": "insert"}, "GRANT SELECT, UPDATE, INSERT ON public.posts")

    def test_rollups_are_looked_at_too(self):
        target = {**POSTS, "rollup": {"table": "hourly", "bucket": "1h"}}
        self.refused(target, "table 'hourly'", "there is no such table",
                     sql="create table posts (id int primary key, view_count int)")
        self.refused(target, "it has no column 'bucket'", sql="create table hourly (id int, view_count int)",
                     mend="")
        self.query('ALTER TABLE public.hourly ADD COLUMN "bucket" timestamptz;')
        self.refused(target, "unique index", mend="CREATE UNIQUE INDEX ON public.hourly (id, bucket);")

    def test_our_own_table_under_another_name(self):
        self.refused({"match": "x.{key}", "table": '"counterd".counters', "value": "value", "missing": "insert"},
                     "only counterd.counters and counterd.rollups can be targets")
        self.refused({"match": "x.{gen}", "table": "counterd.ledger", "value": "total"}, "only counterd.counters")

    def test_nothing_is_sealed_when_a_target_is_refused(self):
        self.use(POSTS, CATCH_ALL)
        self.count("page.home:1|c")
        self.flush(code=harness.EXIT_CONFIG)
        self.assertEqual(self.redis.call("KEYS", "*:sealed"), [])

    def test_a_table_that_is_away_for_a_while_ends_no_flusher_that_stays(self):
        self.use(POSTS, CATCH_ALL, sql="create table posts (id int primary key, view_count int); insert into posts values (1, 0)")
        flusher = self.track(harness.Process("every", self.dir, [harness.FLUSHER, "-c", self.write_config("every.json"),
                                                                 "--every", "1"])).spawn()
        flusher.wait_event("flush")
        self.query("alter table posts rename to being_rebuilt")
        flusher.wait_event("flush_failed")
        self.query("alter table being_rebuilt rename to posts")
        self.count("post.views.1:1|c")
        harness.wait_until(lambda: self.query("select view_count from posts") == [["1"]], what="a row")
        self.assertEqual(flusher.stop(), 0)

    def test_a_type_that_cuts_is_none_for_a_key(self):
        """`name` keeps 63 bytes, without a word."""
        self.refused(POSTS, "which a placeholder can't be", sql="create table posts (id name primary key, view_count int)",
                     mend="ALTER TABLE public.posts ALTER COLUMN id TYPE text;")


class Rows(Targets):
    SCORES = {"match": "team.{team_id}.user.{user_id}.points", "table": "scores", "value": "points"}

    def test_rows_that_are_there(self):
        self.use({**POSTS, "touch": "last_viewed_at"}, CATCH_ALL,
                 sql="create table posts (id int primary key, title text not null, view_count int, "
                     "last_viewed_at timestamptz); insert into posts values (7, 'a', null, null), (8, 'b', 100, "
                     "'2100-01-01'), (9, 'c', 5, '2000-01-01')")
        self.count("post.views.7:3|c", "post.views.7:1|c", "post.views.8:2|c", "page.home:5|c")
        self.flush()
        self.assertEqual(self.query("select id, view_count, last_viewed_at > now() - interval '1 hour', "
                                    "last_viewed_at < now() + interval '1 hour' from posts order by id"),
                         [["7", "4", "t", "t"], ["8", "102", "t", "f"], ["9", "5", "f", "t"]])
        self.assertEqual(self.counters(), {"page.home": 5})
        self.assertEqual(self.parked(), [])
        self.count("post.views.7:-1|c")
        audit = self.audit()
        self.assertEqual([audit[name] for name in ("verdict", "accepted", "applied", "open")], ["balanced", 10, 11, -1])
        self.assertEqual([self.get("post.views.7")[name] for name in ("value", "stored", "pending")], [3, 4, -1])
        self.flush()
        self.assertEqual(self.query("select view_count from posts where id = 7"), [["3"]])

    def test_missing_park_drop_insert(self):
        sql = "create table {0} (id int primary key, view_count int not null default 10); insert into {0} values (1)"
        for missing, rows in (("park", [["1", "11"]]), ("drop", [["1", "11"]]), ("insert", [["1", "11"], ["2", "2"]])):
            self.use({**POSTS, "match": missing + ".{id}", "table": missing, "missing": missing}, CATCH_ALL,
                     sql=sql.format(missing))
            self.count(f"{missing}.1:1|c", f"{missing}.2:2|c")
            result = self.flush_json()
            self.assertEqual(self.query(f"select id, view_count from {missing} order by id"), rows)
            self.assertEqual([result["parked"], result["dropped"]], [missing == "park", missing == "drop"])
        self.assertEqual(self.parked(), [["park.2", 2, "missing"]])
        audit = self.audit()
        self.assertEqual([audit[name] for name in ("verdict", "accepted", "applied", "parked", "dropped")],
                         ["balanced", 9, 5, 2, 2])
        status = json.loads(self.flusher("status", "--json").out)
        self.assertEqual([status[name] for name in ("parked_rows", "parked_increments", "dropped_increments")], [1, 2, 2])
        self.assertEqual(self.query("select sum(parked), sum(dropped) from counterd.runs"), [["1", "1"]])

    def test_composite_keys_and_several_types(self):
        self.use({**self.SCORES, "missing": "insert"}, CATCH_ALL,
                 sql="create type color as enum ('red', 'green');"
                     "create domain small as int check (value < 100);"
                     "create table scores (team_id color, user_id small, points numeric, primary key (user_id, team_id));"
                     "insert into scores values ('red', 1, 0.5)")
        self.count("team.red.user.1.points:2|c", "team.green.user.1.points:3|c", "team.red.user.2.points:4|c",
                   "team.blue.user.1.points:1|c", "team.red.user.100.points:1|c", "team.red.user.1.losses:1|c")
        self.flush()
        self.assertEqual(self.query("select team_id, user_id, points from scores order by 1, 2"),
                         [["red", "1", "2.5"], ["red", "2", "4"], ["green", "1", "3"]])
        self.assertEqual(self.parked(), [["team.blue.user.1.points", 1, "type"], ["team.red.user.100.points", 1, "check"]])
        self.assertEqual(self.counters(), {"team.red.user.1.losses": 1})
        self.assertEqual(self.audit()["verdict"], "balanced")
        self.assertEqual(self.get("team.red.user.1.points")["value"], 2)
        got = self.get("team.blue.user.1.points")
        self.assertEqual([got[name] for name in ("known", "parked")], [False, 1])
        self.assertIn("flusher parked list", got["note"])

    def test_two_keys_that_mean_one_row(self):
        for missing in ("park", "insert"):
            table = "posts_" + missing
            self.use({**POSTS, "match": missing + ".{id}", "table": table, "missing": missing},
                     sql=f"create table {table} (id int primary key, view_count int); insert into {table} values (7, 0)",
                     shards=1)
            self.count(f"{missing}.7:1|c", f"{missing}.07:2|c", f"{missing}.007:4|c", f"{missing}.8:1|c", f"{missing}.08:1|c")
            self.flush()
            self.assertEqual(self.query(f"select view_count from {table} where id = 7"), [["7"]])
        self.assertEqual(self.parked(), [["park.08", 1, "missing"], ["park.8", 1, "missing"]])
        self.assertEqual(self.query("select view_count from posts_insert where id = 8"), [["2"]])
        self.assertEqual(self.audit()["verdict"], "balanced")

    def test_quoted_and_qualified_names(self):
        quoted = '"Sche ma"."My ""App"".Tab;le"'
        self.use({"match": "q.{Id}", "table": quoted, "value": 'the "Count"; --', "touch": "When", "missing": "insert"}, CATCH_ALL,
                 sql=f'create schema "Sche ma"; create table {quoted} ("Id" text primary key, "the ""Count""; --" int, '
                     '"When" timestamp)')
        self.count("q.a'b\"c\\:1|c", "q.a'b\"c\\:1|c")
        self.flush()
        self.assertEqual(self.query(f'select "Id", "the ""Count""; --", "When" at time zone \'UTC\' > now() - interval '
                                    f"'1 hour', \"When\" at time zone 'UTC' <= now() from {quoted}"),
                         [["a'b\"c\\", "2", "t", "t"]])

    def test_a_key_longer_than_its_column_is_not_cut(self):
        for missing in ("park", "insert"):
            table = "t_" + missing
            self.use({**POSTS, "match": missing + ".{id}", "table": table, "missing": missing},
                     sql=f"create table {table} (id varchar(3) primary key, view_count int); "
                         f"insert into {table} values ('abc', 0)")
            self.count(f"{missing}.abcd:1|c", f"{missing}.abc:1|c")
            self.flush()
            self.assertEqual(self.query(f"select id, view_count from {table}"), [["abc", "1"]])
        self.assertEqual(self.parked(), [["insert.abcd", 1, "type"], ["park.abcd", 1, "missing"]])

    def test_partitioned_tables(self):
        self.use({**self.SCORES, "missing": "insert"}, CATCH_ALL,
                 sql="create table scores (team_id int, user_id int, points int, primary key (team_id, user_id)) "
                     "partition by list (team_id); create table scores_1 partition of scores for values in (1)")
        self.count("team.1.user.1.points:2|c", "team.2.user.1.points:3|c")
        self.flush()
        self.count("team.1.user.1.points:2|c")
        self.flush()
        self.assertEqual(self.query("select team_id, user_id, points from scores"), [["1", "1", "4"]])
        self.assertEqual(self.parked(), [["team.2.user.1.points", 3, "check"]])

    def test_triggers_and_foreign_keys_of_the_application(self):
        """A statement's and a row's triggers fire; a deferred foreign key, a trigger that raises and one that skips the
        row: each parks just its key."""
        self.use({**POSTS, "missing": "insert"}, CATCH_ALL, sql="""
            create table authors (id int primary key); insert into authors values (1), (2), (3), (4), (5);
            create table posts (id int primary key references authors deferrable initially deferred, view_count int);
            create table log (id int, view_count int);
            create function before() returns trigger language plpgsql as $$ begin
                if new.id = 3 then raise exception 'not three'; elsif new.id = 4 then return null; end if;
                return new; end $$;
            create function after() returns trigger language plpgsql as $$ begin
                insert into log select id, view_count from changed; return null; end $$;
            create trigger b before insert or update on posts for each row execute function before();
            create trigger i after insert on posts referencing new table as changed
                for each statement execute function after();
            create trigger u after update on posts referencing new table as changed
                for each statement execute function after()""")
        self.count(*(f"post.views.{n}:1|c" for n in range(1, 8)))
        self.flush()
        self.assertEqual(self.query("select id, view_count from posts order by id"), [["1", "1"], ["2", "1"], ["5", "1"]])
        self.assertEqual(self.query("select id, view_count from log order by id"), [["1", "1"], ["2", "1"], ["5", "1"]])
        self.assertEqual(self.parked(), [["post.views.3", 1, "refused"], ["post.views.4", 1, "refused"],
                                         ["post.views.6", 1, "foreign_key"], ["post.views.7", 1, "foreign_key"]])
        self.assertIn("not three", self.query("select detail from counterd.parked where key = 'post.views.3'")[0][0])
        self.assertEqual(self.audit()["verdict"], "balanced")

    def test_a_key_without_a_target_is_parked(self):
        self.use(POSTS, sql="create table posts (id int primary key, view_count int)")
        self.count("page.home:5|c", "post.views.1:2|c", "post.views.2:3|c")
        dry = json.loads(self.flush("--dry-run", "--json").out)
        self.assertEqual(dry["targets"], [
            {"target": "post.views.{id}", "table": "posts", "keys": 2, "increments": 5},
            {"target": None, "table": None, "keys": 1, "increments": 5}])
        self.assertIn("event=dry_run_target target=post.views.{id} table=posts keys=2", self.flush("--dry-run").out)
        self.query("insert into posts values (1), (2)")
        self.flush()
        self.assertEqual(self.parked(), [["page.home", 5, "no_target"]])
        self.assertEqual(self.get("page.home")["parked"], 5)
        self.assertEqual(self.audit()["verdict"], "balanced")

    def test_errors_with_a_code_of_the_applications_own(self):
        """RAISE ... USING ERRCODE takes any five characters; it is one key's fault all the same."""
        codes = ("45000", "MY001", "ABCDE", "99999")
        cases = " ".join(f"when {n} then '{code}'" for n, code in enumerate(codes))
        self.use({**POSTS, "missing": "insert"}, CATCH_ALL,
                 sql="create table posts (id int primary key, view_count int);"
                     "create function refuse() returns trigger language plpgsql as $$ begin"
                     f" if new.id < {len(codes)} then raise 'not you' using errcode = (case new.id {cases} end); end if;"
                     " return new; end $$;"
                     "create trigger refuse before insert on posts for each row execute function refuse()", shards=1)
        self.count(*(f"post.views.{n}:1|c" for n in range(len(codes) + 1)))
        self.flush()
        self.assertEqual(self.query("select id, view_count from posts"), [[str(len(codes)), "1"]])
        self.assertEqual(self.parked(), [[f"post.views.{n}", 1, "refused"] for n in range(len(codes))])
        self.assertEqual(self.audit()["verdict"], "balanced")

    def test_a_policy_that_refuses_a_row(self):
        self.query("drop role if exists tenant; create role tenant login")
        self.addCleanup(self.query, "drop owned by tenant; drop role tenant")
        self.use({**POSTS, "missing": "insert"}, CATCH_ALL,
                 sql="create table posts (id int primary key, view_count int); alter table posts enable row level security;"
                     "create policy small on posts using (true) with check (view_count < 10)")
        self.query("grant all on all tables in schema public, counterd to tenant; grant usage on schema counterd to tenant")
        self.count("post.views.1:1|c", "post.views.2:20|c", "page.home:1|c")
        self.config["postgres"] = {"url": self.postgres.url(self.database, user="tenant")}
        self.flush()
        self.assertEqual(self.query("select * from posts"), [["1", "1"]])
        self.assertEqual(self.parked(), [["post.views.2", 20, "refused"]])

    def test_a_long_complaint_is_cut_between_characters(self):
        """Or the row that keeps it would be refused too, and with it all of its shard."""
        self.use({**POSTS, "missing": "insert"}, CATCH_ALL,
                 sql="create table posts (id int primary key, view_count int);"
                     "create function refuse() returns trigger language plpgsql as $$ begin"
                     " if new.id < 8 then raise '%', repeat('x', new.id) || repeat('\u0436\u20ac', 300); end if;"
                     " return new; end $$;"
                     "create trigger refuse before insert on posts for each row execute function refuse()", shards=1)
        self.count(*(f"post.views.{n}:1|c" for n in range(9)))
        self.flush()
        self.assertEqual(self.query("select id from posts"), [["8"]])
        self.assertEqual(self.parked(), [[f"post.views.{n}", 1, "refused"] for n in range(8)])
        self.assertEqual(self.query("select count(*) from counterd.parked where detail like '%\u0436\u20ac%'"), [["8"]])

    def test_a_type_whose_operators_are_not_on_the_search_path(self):
        """citext, as extensions are often kept, in a schema of its own: 'Ab' and 'aB' are one row."""
        for missing in ("park", "insert"):
            with self.subTest(missing):
                table = "posts_" + missing
                self.use({**POSTS, "match": missing + ".{id}", "table": table, "missing": missing},
                         sql="create schema if not exists ext; create extension if not exists citext schema ext;"
                             f"create table {table} (id ext.citext primary key, view_count int);"
                             f"insert into {table} values ('Ab', 0)", shards=1)
                self.count(f"{missing}.Ab:1|c", f"{missing}.aB:2|c")
                self.flush()
                self.assertEqual(self.query(f"select view_count from {table}"), [["3"]])
                self.assertEqual(self.parked(), [])
                self.assertEqual(self.get(f"{missing}.ab")["stored"], 3)

    def test_a_trigger_that_is_broken_stops_its_own_table_only(self):
        """What it misses, a table or a right, is no mistake in the configuration."""
        self.query("drop role if exists app; create role app login")
        self.addCleanup(self.query, "drop owned by app; drop role app")
        self.use({**POSTS, "missing": "insert"}, CATCH_ALL,
                 sql="create table posts (id int primary key, view_count int); create table secret (id int);"
                     "create function log() returns trigger language plpgsql as $$ begin"
                     " if new.id = 1 then insert into no_log values (new.id); end if;"
                     " if new.id = 2 then insert into secret values (new.id); end if; return new; end $$;"
                     "create trigger log before insert on posts for each row execute function log();"
                     "grant usage on schema counterd to app; grant all on all tables in schema counterd to app;"
                     "grant all on posts to app")
        self.config["postgres"] = {"url": self.postgres.url(self.database, user="app")}
        self.count("post.views.1:1|c", "post.views.2:1|c", "post.views.3:1|c", "page.home:1|c")
        self.flush()
        self.assertEqual(self.query("select id from posts"), [["3"]])
        self.assertEqual(self.counters(), {"page.home": 1})
        self.assertEqual(self.parked(), [["post.views.1", 1, "refused"], ["post.views.2", 1, "refused"]])
        self.assertEqual(self.query("select detail from counterd.parked where key = 'post.views.1'"),
                         [['Postgres: relation "no_log" does not exist']])

    def test_a_table_that_is_changed_between_the_look_and_the_write(self):
        """Nothing is written; and all of it, once, when the table is as it was."""
        self.use(POSTS, CATCH_ALL, sql="create table posts (id int primary key, view_count int); insert into posts values (1, 0)",
                 shards=1)
        directory = self.dir / "pg"
        directory.mkdir()
        proxy = harness.Proxy(directory / ".s.PGSQL.5432", self.postgres.directory / ".s.PGSQL.5432")
        self.addCleanup(proxy.close)
        through = self.write_config("through.json", postgres={"url": self.postgres.url(self.database, directory=directory)})
        for rounds, (change, undo) in enumerate((
                ("alter table posts rename view_count to n", "alter table posts rename n to view_count"),
                ("alter table posts rename to gone", "alter table gone rename to posts"),
                ("alter table posts alter id type text", "alter table posts alter id type int using id::int")), 1):
            self.count("post.views.1:1|c", "page.home:1|c")
            proxy.hold(lambda request: b"FOR UPDATE" in request, lambda change=change: self.query(change), True)
            done = self.flush(config=through, code=harness.EXIT_CONFIG)
            self.assertEqual(proxy.times, 0)
            self.assertIn("target 'post.views.{id}'", done.err)
            self.query(undo)
            self.flush(config=through)
            self.assertEqual(self.query("select view_count, value from posts, counterd.counters"), [[str(rounds)] * 2], change)
        self.assertEqual(self.parked(), [])
        self.assertEqual(self.audit()["verdict"], "balanced")


class Rollups(Targets):
    HOURLY = {"match": "api.{customer}.calls", "table": "usage", "value": "calls", "missing": "insert",
              "rollup": [{"table": "hourly", "bucket": "1h"}, {"table": "daily", "bucket": "1d"}]}
    TABLES = ("create table usage (customer text primary key, calls int);"
              "create table hourly (customer text, bucket timestamptz, calls int, primary key (customer, bucket));"
              "create table daily (customer text, bucket timestamptz, calls int, primary key (bucket, customer))")

    def test_late_events_count_in_their_own_bucket(self):
        self.use(self.HOURLY, CATCH_ALL, sql=self.TABLES)
        ten = 1700000000 // 86400 * 86400 + 36000  # 10:00
        self.count(f"api.a.calls:1|c|T{ten}", f"api.a.calls:2|c|T{ten + 3599}", f"api.a.calls:4|c|T{ten + 3600}",
                   f"api.b.calls:8|c|T{ten}", f"api.a.calls:16|c|T{ten + 86400}")
        got = self.get("api.a.calls")
        self.assertEqual([got[name] for name in ("value", "stored", "pending", "note")], [23, 0, 23, None])
        self.flush()
        self.count(f"api.a.calls:32|c|T{ten + 60}", f"api.*.calls:1000|c|T{ten + 60}")
        self.assertEqual(self.get("api.a.calls")["value"], 55)
        self.assertEqual(self.get("api.*.calls")["value"], 1000)
        self.flush()
        self.query("delete from usage where customer = '*'; delete from hourly where customer = '*'; delete from daily "
                   "where customer = '*'")
        self.assertEqual(self.query("select * from usage order by 1"), [["a", "55"], ["b", "8"]])
        self.assertEqual(self.query(f"select customer, (extract(epoch from bucket) - {ten})::int, calls from hourly "
                                    "order by 1, 2"),
                         [["a", "0", "35"], ["a", "3600", "4"], ["a", "86400", "16"], ["b", "0", "8"]])
        self.assertEqual(self.query(f"select customer, (extract(epoch from bucket) - {ten})::int, calls from daily "
                                    "order by 1, 2"),
                         [["a", "-36000", "39"], ["a", "50400", "16"], ["b", "-36000", "8"]])
        self.assertEqual(self.audit()["verdict"], "balanced")

    def test_a_row_and_its_rollups_are_all_or_nothing(self):
        self.use(self.HOURLY, CATCH_ALL, sql=self.TABLES + "; alter table daily add check (calls < 10)")
        self.count("api.a.calls:3|c", "api.b.calls:12|c")
        self.flush()
        for table in ("usage", "hourly", "daily"):
            self.assertEqual(self.query(f"select customer, calls from {table}"), [["a", "3"]], table)
        self.assertEqual(self.parked(), [["api.b.calls", 12, "check"]])
        self.query("alter table daily drop constraint daily_calls_check")
        self.flusher("parked", "retry")
        for table in ("usage", "hourly", "daily"):
            self.assertEqual(self.query(f"select customer, calls from {table} order by 1"), [["a", "3"], ["b", "12"]], table)
        self.assertEqual(self.audit()["verdict"], "balanced")

    def test_what_has_no_row_has_no_rollup(self):
        self.use({**self.HOURLY, "missing": "park"}, CATCH_ALL, sql=self.TABLES + "; insert into usage values ('a', 0)")
        self.count("api.a.calls:3|c", "api.b.calls:12|c")
        self.flush()
        self.assertEqual(self.query("select customer, calls from hourly"), [["a", "3"]])
        self.assertEqual(self.parked(), [["api.b.calls", 12, "missing"]])

    def test_the_default_rollup_of_an_own_table(self):
        """There the key is the counter's, whatever the table's columns are called."""
        self.use({**POSTS, "missing": "park", "rollup": {"table": "counterd.rollups", "bucket": "1d"}}, CATCH_ALL,
                 sql="create table posts (id int primary key, view_count int); insert into posts values (1, 0)")
        self.count("post.views.1:3|c", "post.views.2:4|c")
        self.flush()
        self.assertEqual(self.query("select view_count from posts"), [["3"]])
        self.assertEqual(self.query("select key, value from counterd.rollups"), [["post.views.1", "3"]])
        self.assertEqual(self.audit()["verdict"], "balanced")

    def test_the_default_rollup_and_its_days(self):
        """A day that has no partition gets one; a bucket beyond the retention is not written, but counts in its key."""
        self.use({**CATCH_ALL, "rollup": {"bucket": "1h", "retention": "30d"}})
        now = int(self.query("select extract(epoch from date_bin('1 hour', now(), 'epoch'))::bigint")[0][0])
        day = 86400
        self.count(f"a:1|c|T{now}", f"a:2|c|T{now - 5 * day}", f"a:4|c|T{now - 40 * day}", f"b:8|c|T{now - 60 * day}",
                   "c:16|c")
        self.flush()
        self.assertEqual(self.counters(), {"a": 7, "b": 8, "c": 16})
        self.assertEqual(self.query(f"select key, ({now} - extract(epoch from bucket))::int / {day}, value "
                                    "from counterd.rollups order by 1, 2"), [["a", "0", "1"], ["a", "5", "2"], ["c", "0", "16"]])
        self.assertEqual(self.parked(), [])
        self.use(POSTS, sql="create table posts (id int primary key, view_count int)")
        self.count(f"a:32|c|T{now - 9 * day}")
        self.flush()
        self.use({**CATCH_ALL, "rollup": {"bucket": "1h"}})
        self.flusher("parked", "retry")
        self.assertEqual(self.counters()["a"], 39)
        self.assertEqual(self.query(f"select value from counterd.rollups where bucket = to_timestamp({now - 9 * day})"),
                         [["32"]])
        self.assertEqual(self.audit()["verdict"], "balanced")

    def test_a_longer_bucket_begins_on_a_day_of_its_own(self):
        """The partition that a row needs is its bucket's, not that of the finer bucket it is made of."""
        self.use({**POSTS, "missing": "insert", "rollup": [{"table": "hourly", "bucket": "1h"},
                                                           {"table": "counterd.rollups", "bucket": "30d"}]},
                 sql="create table posts (id int primary key, view_count int);"
                     "create table hourly (id int, bucket timestamptz, view_count int, primary key (id, bucket))")
        month = 30 * 86400
        now = int(self.query("select extract(epoch from now())::bigint")[0][0])
        moment = now // month * month - month + 20 * 86400
        self.count(f"post.views.1:1|c|T{moment}", "post.views.2:2|c")
        self.flush()
        self.assertEqual(self.parked(), [])
        self.assertEqual(self.query("select key, extract(epoch from bucket)::bigint % 2592000, value from counterd.rollups "
                                    "order by 1"), [["post.views.1", "0", "1"], ["post.views.2", "0", "2"]])
        self.count(f"post.views.x:4|c|T{moment - month}")
        self.flush()
        self.query("update counterd.parked set key = 'post.views.3'")
        self.flusher("parked", "retry")
        self.assertEqual(self.parked(), [])
        self.assertEqual(self.query("select value from counterd.rollups where key = 'post.views.3'"), [["4"]])


class Locks(Targets):
    def test_an_application_that_updates_the_same_rows_the_other_way_round(self):
        """Never is the application the one that is turned away, and every count of both is there. Its deadlock_timeout is
        long, so that a slow machine does not make it look for a deadlock while the flusher still waits."""
        keys = 400
        self.use(POSTS, sql=f"create table posts (id int primary key, view_count int not null default 0, "
                            f"likes int not null default 0); insert into posts select generate_series(1, {keys})",
                 shards=2, flush={"jobs": 2, "keys_per_transaction": 1000})
        stop, failures, rounds = threading.Event(), [], [0]
        down = "\n".join(f"update posts set likes = likes + 1 where id = {n};" for n in range(keys, 0, -1))

        def application():
            while not stop.is_set():
                done = subprocess.run(["psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-1", "-f", "-",
                                       self.postgres.url(self.database)],
                                      input=down, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                      env={**os.environ, "PGOPTIONS": "-c deadlock_timeout=10s"})
                rounds[0] += done.returncode == 0
                if done.returncode != 0:
                    failures.append(done.stderr)

        thread = threading.Thread(target=application)
        thread.start()
        try:
            for _ in range(6):
                self.count(*(f"post.views.{n}:1|c" for n in range(1, keys + 1)))
                done = self.flush(code=None)
                self.assertIn(done.code, (harness.EXIT_OK, harness.EXIT_TEMPFAIL), done)
        finally:
            stop.set()
            thread.join()
        self.flush()
        self.assertEqual(failures, [])
        self.assertGreater(rounds[0], 0)
        self.assertEqual(self.query("select distinct view_count, likes from posts"), [["6", str(rounds[0])]])
        self.assertEqual(self.audit()["verdict"], "balanced")

    def test_a_deadlock_is_survived(self):
        """The application holds the last row and wants the first, for as long as the flusher wants the last."""
        self.use(POSTS, sql="create table posts (id int primary key, view_count int not null default 0);"
                            "insert into posts values (1), (2)", shards=1)
        self.count("post.views.1:1|c", "post.views.2:1|c")
        application = subprocess.Popen(["psql", "-Xqt", "-v", "ON_ERROR_STOP=1", self.postgres.url(self.database)],
                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                       env={**os.environ, "PGOPTIONS": "-c deadlock_timeout=10s"})
        self.addCleanup(application.kill)
        application.stdin.write("begin; update posts set view_count = view_count + 10 where id = 2;\n"
                                "select 'held';\n")
        application.stdin.flush()
        while "held" not in application.stdout.readline():
            pass
        flusher = self.track(harness.Process("flusher", self.dir, [harness.FLUSHER, "-c", self.write_config("f.json"),
                                                                   "run"])).spawn()
        waits = "select count(*) from pg_stat_activity where application_name = 'flusher' and wait_event_type = 'Lock'"
        harness.wait_until(lambda: self.query(waits) == [["1"]] or not flusher.alive, what="the flusher waits for row 2")
        out, _ = application.communicate("update posts set view_count = view_count + 10 where id = 1; commit;\n",
                                         timeout=harness.DEADLINE_S)
        self.assertNotIn("ERROR", out)
        # On a slow machine it may have given up before the application committed.
        self.assertIn(flusher.wait(), (harness.EXIT_OK, harness.EXIT_TEMPFAIL), flusher.tail())
        self.flush()
        self.assertEqual(self.query("select * from posts order by id"), [["1", "11"], ["2", "11"]])

    def test_a_row_that_is_held_for_long_leaves_the_others_alone(self):
        self.use(POSTS, sql="create table posts (id int primary key, view_count int not null default 0);"
                            "insert into posts select generate_series(1, 40)", shards=4)
        self.count(*(f"post.views.{n}:1|c" for n in range(1, 41)))
        application = subprocess.Popen(["psql", "-Xqt", self.postgres.url(self.database)],
                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.addCleanup(application.kill)
        application.stdin.write("begin; update posts set view_count = 100 where id = 1; select 'held';\n")
        application.stdin.flush()
        while "held" not in application.stdout.readline():
            pass
        done = self.flush(code=harness.EXIT_TEMPFAIL)
        self.assertIn("shards=3 shards_failed=1", done.out)
        application.communicate("commit;\n", timeout=harness.DEADLINE_S)
        self.flush()
        self.assertEqual(self.query("select count(*) from posts where view_count = 1 or (id = 1 and view_count = 101)"),
                         [["40"]])

    def test_two_counts_in_one_row(self):
        """A post's views and likes are two keys, of two shards: jobs, lanes and flushers that overlap take turns, and
        none waits for another's rows in vain."""
        rows, keys = 3000, ("post.views.{}", "post.likes.{}", "peak.{}", "team.{}.a", "team.{}.b")
        posts = {"table": "posts", "missing": "insert"}
        self.use({**posts, "match": "post.views.{id}", "value": "views", "rollup": {"table": "days", "bucket": "1d"}},
                 {**posts, "match": "post.likes.{id}", "value": "likes"},
                 {**posts, "match": "peak.{id}", "value": "best", "merge": "max"},
                 {"match": "team.{id}.*", "table": "teams", "value": "points", "missing": "insert"}, CATCH_ALL,
                 sql="create table posts (id int primary key, views int default 0, likes int default 0, best int);"
                     "create table days (id int, bucket timestamptz, views int, primary key (id, bucket));"
                     "create table teams (id int primary key, points int)",
                 shards=32, flush={"jobs": 4, "keys_per_transaction": 4000})
        self.flush()
        waits = self.postgres.log().count("lock timeout")
        for _ in range(2):
            self.count(*(f"{key.format(n)}:1|c" for key in keys for n in range(rows)))
            flushers = [self.track(harness.Process(f"flusher{n}", self.dir, [
                harness.FLUSHER, "-c", self.write_config("f.json"), "run"])).spawn() for n in range(2)]
            self.assertEqual([flusher.wait(2 * harness.DEADLINE_S) for flusher in flushers], [0, 0],
                             "".join(flusher.tail() for flusher in flushers))
        self.assertEqual(self.postgres.log().count("lock timeout"), waits)
        self.assertEqual(self.query("select count(*), sum(views), sum(likes), sum(best) from posts"),
                         [[str(rows), str(2 * rows), str(2 * rows), str(rows)]])
        self.assertEqual(self.query("select count(*), sum(points) from teams"), [[str(rows), str(4 * rows)]])


if __name__ == "__main__":
    harness.main()
