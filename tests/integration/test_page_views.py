#!/usr/bin/env python3
"""test_page_views - examples/page-views as its README tells it: one line, three counters, and the top of the moment"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import examples
import harness


class PageViews(examples.Case):
    example = "page-views"

    def test_the_whole_of_it(self):
        self.migrate()
        harness.away_from_turn(60, 5)
        self.send_lines()
        self.flush()
        # What is read is of full minutes; so that nobody waits for one to end, this one has.
        self.query("update counterd.shards set fresh_until ="
                   " (select max(bucket) + interval '1 minute' from counterd.rollups)")
        self.assert_readme_shows(self.psql("queries.sql"))

    def test_each_day_is_read_by_its_times(self):
        """The flusher makes the partitions: that they have the BRIN of counterd.rollups is no matter of course."""
        self.migrate()
        self.send_lines()
        self.flush()
        days = "select inhrelid from pg_inherits where inhparent = 'counterd.rollups'::regclass"
        self.assertGreater(int(self.query(f"select count(*) from ({days}) as d")[0][0]), 0)
        self.assertEqual(self.query(
            f"select inhrelid::regclass from ({days}) as d where not exists (select from pg_index as i"
            " join pg_class as c on c.oid = i.indexrelid join pg_am as a on a.oid = c.relam"
            " where i.indrelid = inhrelid and a.amname = 'brin' and pg_get_indexdef(c.oid) like '%(bucket)%')"), [])


if __name__ == "__main__":
    harness.main()
