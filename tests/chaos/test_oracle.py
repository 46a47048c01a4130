#!/usr/bin/env python3
"""test_oracle - the oracle of the chaos runs can fail: each kind of wrong count is found, and its key named"""

import os
import subprocess
import sys
import unittest
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]
import harness
from oracle import Oracle

RUN = Path(__file__).with_name("run")


class Judges(unittest.TestCase):
    def setUp(self):
        self.oracle = Oracle()
        self.oracle.send("keyed.0", "b1", {"k": 3, "l": 1})
        self.oracle.acknowledge("keyed.0", "b1", {"k": 3, "l": 1})
        self.oracle.send("sync.0", "b2", {"k": 2})

    def test_between_acknowledged_and_sent(self):
        for row, word in ((2, "lost"), (3, None), (4, None), (5, None), (6, "too much")):
            wrong = self.oracle.wrong({"k": row, "l": 1})
            self.assertEqual(list(wrong), ["k"] if word else [], row)
            self.assertIn(word or "", wrong.get("k", ""))

    def test_a_row_that_is_not_there_and_one_that_nobody_sent(self):
        self.assertEqual(set(self.oracle.wrong({"k": 4, "m": 1})), {"l", "m"})

    def test_at_any_moment_no_more_than_sent(self):
        self.assertEqual(self.oracle.excess({"k": 5}), {})
        self.assertEqual(self.oracle.excess({"k": 6, "l": 1}), {"k": 6})

    def test_doubt_ends_with_the_round(self):
        self.oracle.rebase({"k": 4, "l": 1})
        self.assertEqual(self.oracle.wrong({"k": 4, "l": 1}), {})
        self.assertEqual(set(self.oracle.wrong({"k": 5, "l": 0})), {"k", "l"})

    def test_the_story_of_a_key(self):
        self.assertEqual([line.split(maxsplit=1)[1] for line in self.oracle.story("k")],
                         ["keyed.0 sends b1: 3", "keyed.0 has b1 acknowledged", "sync.0 sends b2: 2"])


class Runs(unittest.TestCase):
    def sabotaged(self, kind):
        done = subprocess.run([RUN, "--seconds", "8", "--seed", "1", "--sabotage", kind], stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, env={**os.environ, "COUNTERD_KEEP": "0"})
        self.assertEqual(done.returncode, 1, done.stdout)
        return done.stdout

    def test_a_row_changed_by_one(self):
        out = self.sabotaged("row")
        self.assertRegex(out, r"WRONG: keyed\.\d+: row \d+, sent \d+: 1 too much\n.*keyed\.\d sends")
        self.assertIn("verdict=doubled", out)

    def test_two_rows_changed_so_that_every_sum_stays(self):
        out = self.sabotaged("swap")
        self.assertRegex(out, r"WRONG: keyed\.\d+: .* 1 too much")
        self.assertRegex(out, r"WRONG: keyed\.\d+: .* 1 lost")
        self.assertNotIn("verdict=", out)


if __name__ == "__main__":
    harness.main()
