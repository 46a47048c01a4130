#!/usr/bin/env python3
"""test_quickstart - examples/quickstart --keep as a new user has it: what it prints at the end is there, and works"""

import re
import subprocess
import sys
import unittest
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness

DEADLINE_S = 800  # it may have to build


class Quickstart(unittest.TestCase):
    def sh(self, command):
        done = subprocess.run(["bash", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              stdin=subprocess.DEVNULL, timeout=DEADLINE_S)
        self.assertEqual(done.returncode, 0, f"{command}\n{done.stdout}")
        return done.stdout

    def test_all_that_it_says_works(self):
        log = harness.scratch_dir() / "quickstart.log"
        done = subprocess.run(f"{harness.ROOT}/examples/quickstart --keep >{log} 2>&1", shell=True, timeout=DEADLINE_S)
        out = log.read_text()
        found = re.search(r"^  # stop all of it.*\n  (\S+/stop)$", out, re.MULTILINE)
        self.assertTrue(done.returncode == 0 and found, out)
        stop = found[1]
        self.addCleanup(lambda: Path(stop).exists() and self.sh(stop))
        self.assertRegex(out, r"All [\d,]+ words are equal, to the last of [\d,]+ increments\.")
        said = {what: command for what, command in re.findall(r"^  # (.*)\n  (.*)$", out, re.MULTILINE)}
        self.sh(said["send a line of your own (bash can)"])
        harness.wait_until(lambda: "open_keys            1\n" in self.sh(said["what counterd has seen, and what waits in Redis"]),
                           what="the line in Redis")
        self.assertIn("keys=1 ", self.sh(said["flush, as cron would"]))
        self.assertRegex(self.sh(said["look"]), r"hello\.world *\| *1 ")
        self.assertIn("All is well.", self.sh(said["all of it in a terminal, live"]))
        address = out.rstrip().splitlines()[-1].split()[-1]
        with urllib.request.urlopen(address) as page:
            self.assertIn("<title>counterd</title>", page.read().decode())
        self.sh(stop)
        self.assertFalse(Path(stop).parent.exists())


if __name__ == "__main__":
    harness.main()
