#!/usr/bin/env python3
"""test_sentry_style - examples/sentry-style as its README tells it: groups, projects, hours, a group that comes late"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import examples
import harness


class SentryStyle(examples.Case):
    example = "sentry-style"

    def audit(self):
        done = self.flusher("audit")
        self.assertIn("verdict=balanced", done.out + done.err)

    def test_the_whole_of_it(self):
        self.psql("schema.sql", "rows.sql")
        self.migrate()
        self.send_lines()
        self.flush()
        self.assert_readme_shows(self.psql("queries.sql"))
        self.assertEqual(self.query("select key, delta, reason from counterd.parked"), [["event.2.21", "5", "missing"]])
        self.audit()

        self.psql("late-row.sql")
        self.flusher("parked", "retry")
        self.assertEqual(self.query("select * from counterd.parked"), [])
        self.assertEqual(self.query("select times_seen from groups where id = 21"), [["5"]])
        self.assertEqual(self.query("select times_seen, bucket = '2026-03-01 11:00+00' from group_hours where id = 21"),
                         [["5", "t"]])
        self.audit()

        for table, key, hours, value in (("groups", "project_id, id", "group_hours", "times_seen"),
                                         ("projects", "id", "project_hours", "events")):
            self.assertEqual(self.query(f"select {key} from {table} where {value} <>"
                                        f" (select coalesce(sum(h.{value}), 0) from {hours} h"
                                        f" where ({', '.join(f'h.{part.strip()}' for part in key.split(','))}) ="
                                        f" ({', '.join(f'{table}.{part.strip()}' for part in key.split(','))}))"), [])
        self.assertEqual(self.query("select (select sum(times_seen) from groups) = (select sum(events) from projects),"
                                    " (select value from counterd.counters where key = 'events')"), [["t", "67"]])

    def test_last_seen_never_goes_back(self):
        self.psql("schema.sql", "rows.sql")
        self.migrate()
        self.query("update groups set last_seen = '2027-01-01 00:00+00'")
        self.send_lines()
        self.flush()
        self.assertEqual(self.query("select distinct last_seen = '2027-01-01 00:00+00' from groups"), [["t"]])


if __name__ == "__main__":
    harness.main()
