#!/usr/bin/env python3
"""test_databases - examples/databases as its README tells it: three databases, of which one is away for a while"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import examples
import harness


class Databases(examples.Case):
    example = "databases"

    def setUp(self):
        super().setUp()
        self.shop_server = self.track(harness.Postgres(harness.scratch_dir("counterd-pg-"), "shop")).start()
        self.databases = {"blog": (self.postgres, self.postgres.new_database()),
                          "shop": (self.shop_server, self.shop_server.new_database())}
        services = self.dir / "pg_service.conf"
        services.write_text("".join(
            f"[{name}]\n" + "\n".join(server.url(database).split()) + "\n\n"
            for name, (server, database) in self.databases.items()))
        self.env = {"PGSERVICEFILE": str(services)}

    def read(self, file, url):
        done = self.program("psql", "-Xq", "-v", "ON_ERROR_STOP=1", "-f", self.directory / file, url, env=self.env)
        self.assertEqual(done.code, 0, done)
        return done.out

    def test_the_whole_of_it(self):
        self.read("schema.sql", "service=blog")
        self.flusher("migrate", env=self.env)
        daemon = self.send_lines()
        self.flush(env=self.env)
        self.assert_readme_shows(self.read("blog.sql", "service=blog"))
        self.assert_readme_shows(self.read("counters.sql", "service=shop"))
        self.assert_readme_shows(self.read("counters.sql", self.postgres.url(self.database)))

        self.shop_server.stop()
        lines = (self.directory / "lines").read_text().splitlines()
        daemon.send_udp(lines)
        daemon.settle(2 * len(lines))
        away = self.flush(env=self.env, code=harness.EXIT_UNAVAILABLE)
        self.assertIn("namespace=projects@", away.err)
        self.assertEqual(self.counters(), {"all.events": 30, "signups": 2})
        server, database = self.databases["blog"]
        self.assertEqual(server.query("select views from posts order by id", database), [["10"], ["2"]])

        self.shop_server.start()
        self.flush(env=self.env)
        self.assertEqual(self.flusher("audit", env=self.env).out.count("verdict=balanced"), 3)
        server, database = self.databases["shop"]
        self.assertEqual(server.query("select sum(value) from counterd.rollups", database), [["18"]])


if __name__ == "__main__":
    harness.main()
