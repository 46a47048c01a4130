"""examples - runs a directory of examples/ as its README tells, with servers of the test's own

An example has a counterd.json, `lines` to send, SQL files, and a README.md whose indented blocks show what psql prints.
"""

import json
import re

import harness

STRING_OR_COMMENT = re.compile(r'"(?:[^"\\]|\\.)*"|//[^\n]*', re.DOTALL)


class Case(harness.Case):
    example = None  # its directory's name

    def setUp(self):
        super().setUp()
        self.directory = harness.ROOT / "examples" / self.example
        text = STRING_OR_COMMENT.sub(lambda found: found[0] if found[0].startswith('"') else " ",
                                     (self.directory / "counterd.json").read_text())
        written = json.loads(text)
        servers = ("redis", "postgres", "listen")
        self.config.update({name: value for name, value in written.items() if name not in servers})

    def test_the_file_as_it_is_is_good(self):
        done = self.program(harness.COUNTERD, "--check", "-c", self.directory / "counterd.json")
        self.assertEqual(done.code, 0, done)

    def psql(self, *files):
        """What psql prints for files of the example."""
        names = [part for name in files for part in ("-f", self.directory / name)]
        done = self.program("psql", "-Xq", "-v", "ON_ERROR_STOP=1", *names, self.postgres.url(self.database),
                            env={"PGTZ": "UTC"})
        self.assertEqual(done.code, 0, done)
        return done.out

    def send_lines(self):
        lines = (self.directory / "lines").read_text().splitlines()
        running = self.counterd()
        running.send_udp(lines)
        status = running.settle(len(lines))
        self.assertEqual(status["rejected"]["total"], 0, status)
        return running

    def assert_readme_shows(self, output):
        """The README prints just this, indented by four."""
        def plain(text):
            return "\n".join(line.strip() for line in text.splitlines() if line.strip())
        blocks = re.findall(r"(?:^(?: {4}.*)?\n)+", (self.directory / "README.md").read_text(), re.MULTILINE)
        self.assertIn(plain(output), "\n".join(plain(block) for block in blocks))
