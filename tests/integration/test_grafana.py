#!/usr/bin/env python3
"""test_grafana - every query of examples/grafana/counterd.json, as Grafana would send it, by a role that may only read
"""

import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness

EXAMPLE = harness.ROOT / "examples/grafana"
KEY = "it's.a;key=$__interval"
FROM, TO, INTERVAL = "2026-03-01T11:00:00Z", "2026-03-01T13:00:00Z", "5m"


def quoted(text):
    return "'" + text.replace("'", "''") + "'"


def expand(sql, variables):
    """What Grafana makes of a query: macros first, then variables, so that a value is never taken for a macro."""
    sql = re.sub(r"\$__timeFilter\((.*?)\)", rf"\1 BETWEEN '{FROM}' AND '{TO}'", sql)
    sql = sql.replace("$__timeFrom()", f"'{FROM}'").replace("$__timeTo()", f"'{TO}'").replace("$__interval", INTERVAL)
    sql = re.sub(r"\$\{(\w+):sqlstring\}", lambda found: quoted(variables[found[1]]), sql)
    rest = sql.replace(quoted(variables["key"]), "")
    if "$" in rest:
        raise AssertionError(f"the test does not know how Grafana expands this: {sql}")
    return sql


class Grafana(harness.Case):
    def setUp(self):
        super().setUp()
        self.migrate()
        self.dashboard = json.loads((EXAMPLE / "counterd.json").read_text())
        self.panels = {panel["title"]: panel for panel in self.dashboard["panels"]}
        self.role = f"grafana_{self.database}"
        self.query(f"create role {self.role} login; select counterd.grant_reader('{self.role}')")
        self.query(f"""
            insert into counterd.namespaces (namespace, shards) values ('counterd', 1), ('other', 1);
            insert into counterd.shards (namespace, shard, cumulative_total, fresh_until) values
                ('counterd', 0, 610, now() - interval '42 s'), ('other', 0, 1, now());
            insert into counterd.counters values ({quoted(KEY)}, 600, now(), now()), ('b', 10, now(), now());
            create table counterd.a_day partition of counterd.rollups
                for values from ('2026-03-01 00:00+00') to ('2026-03-02 00:00+00');
            insert into counterd.rollups values ({quoted(KEY)}, '2026-03-01 12:01+00', 3),
                ({quoted(KEY)}, '2026-03-01 12:04+00', 4), ('b', '2026-03-01 12:04+00', 100);
            insert into counterd.runs (namespace, started_at, finished_at, shards, keys, increments, events) values
                ('counterd', '2026-03-01 12:00:59+00', '2026-03-01 12:01+00', 1, 2, 10, 10),
                ('counterd', '2026-03-01 12:01:58+00', '2026-03-01 12:02+00', 1, 2, 600, 600),
                ('other', '2026-03-01 12:01:58+00', '2026-03-01 12:02+00', 1, 2, 7, 7);
            insert into counterd.quarantine (namespace, gen, shard, prev_gen, identity, vector, members, deltas,
                accepted_at_seal, opened_at, sealed_at) values
                ('counterd', 'g', 0, '', '{{}}', '{{}}', '{{}}', '{{}}', 0, now(), now());
            insert into counterd.parked (namespace, gen, shard, key, delta, reason, target, seen_at) values
                ('counterd', 'g', 0, 'post.views.x', 3, 'type', 'posts', now())""")

    def read(self, sql):
        """As the role of the data source."""
        done = self.program("psql", "-XAtq", "-F", "\t", "-v", "ON_ERROR_STOP=1", "-c", sql,
                            self.postgres.url(self.database, user=self.role))
        self.assertEqual(done.code, 0, f"{done.err}\n{sql}")
        return [line.split("\t") for line in done.out.splitlines()]

    def rows(self, title):
        [target] = self.panels[title]["targets"]
        return self.read(expand(target["rawSql"], {"namespace": "counterd", "key": KEY}))

    def test_every_query_runs_and_has_something_to_show(self):
        for title in self.panels:
            with self.subTest(title):
                rows = self.rows(title)
                empty = "Top of the last hour"  # of now; the data is of a day in March
                self.assertTrue(rows or title == empty, title)
        for variable in self.dashboard["templating"]["list"]:
            self.assertTrue(self.read(variable["query"]), variable)

    def test_the_figures(self):
        behind_s = float(self.rows("Behind")[0][0])
        self.assertTrue(42 <= behind_s < 42 + 10 * harness.DEADLINE_S, behind_s)
        self.assertEqual(self.rows("Counted"), [["610"]])
        self.assertEqual(float(self.rows("Per second, now")[0][0]), 10)
        self.assertEqual(self.rows("In quarantine"), [["1"]])
        self.assertEqual(self.rows("Parked"), [["1"]])

    def test_the_series(self):
        rate = [row for row in self.rows("All increments per second") if float(row[1])]
        self.assertEqual([float(row[1]) for row in rate], [610 / 300])
        key = self.rows("$key")
        self.assertEqual(len(key), 24)
        self.assertEqual([row[1] for row in key if row[1] != "0"], ["7"])
        self.assertEqual([float(row[1]) for row in self.rows("Flush runs: seconds each")], [1, 2])
        self.assertEqual([row[2] for row in self.rows("Last flush runs")], ["600", "10"])

    def test_top(self):
        self.assertEqual([row[:2] for row in self.rows("Top counters")], [[KEY, "600"], ["b", "10"]])

    def test_the_file_holds_together(self):
        panels = self.dashboard["panels"]
        self.assertEqual(len({panel["id"] for panel in panels}), len(panels))
        cells = set()
        for panel in panels:
            at = panel["gridPos"]
            taken = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            self.assertFalse(cells & taken, f"{panel['title']} lies over another one")
            self.assertLessEqual(at["x"] + at["w"], 24)
            cells |= taken
        source = (EXAMPLE / "provisioning/datasources/counterd.yaml").read_text()
        uid, kind = (re.search(rf"^ +{name}: (\S+)", source, re.MULTILINE)[1] for name in ("uid", "type"))
        for part in [*panels, *(panel["targets"][0] for panel in panels), *self.dashboard["templating"]["list"]]:
            self.assertEqual(part["datasource"], {"type": kind, "uid": uid})


if __name__ == "__main__":
    harness.main()
