#!/usr/bin/env python3
"""test_clients - what people have: statsd client libraries and shell tools, as Debian and npm ship them

Each client sends a known number of increments, and the rows hold exactly that.
"""

import os
import shutil
import subprocess
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness

HOT_SHOTS = "hot-shots@17.1.1"  # what was current when this was written


def skip_or_fail(reason):
    """On CI every client must be there: a skip would hide that nothing was tested."""
    if os.environ.get("COUNTERD_STRICT") == "1":
        raise AssertionError(reason)
    raise unittest.SkipTest(reason)


def npm_install(package):
    """The package in a scratch directory; the directory."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        skip_or_fail("no node and npm here (tests/install-deps brings them)")
    directory = harness.scratch_dir("counterd-npm-")
    done = subprocess.run(["npm", "install", "--no-save", "--no-audit", "--no-fund", "--omit=optional", "--fetch-retries=5",
                           "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=20000", "--prefix", directory,
                           package], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          timeout=300, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        skip_or_fail(f"npm install {package}: {done.stdout}")
    return directory


class Clients(harness.Case):
    def setUp(self):
        super().setUp()
        self.migrate()
        self.unix_path = str(self.dir / "counterd.sock")
        self.running = self.counterd(listen={"udp": ["127.0.0.1:0"], "tcp": ["127.0.0.1:0"], "unix": [self.unix_path],
                                             "http": "127.0.0.1:0"})
        self.udp_port, self.tcp_port = self.running.address("udp")[1], self.running.address("tcp")[1]

    def run_client(self, *argv, **options):
        done = self.program(*argv, **options)
        self.assertEqual(done.code, 0, done)

    def assert_stored(self, lines, expected):
        status = self.running.settle(lines)
        self.assertEqual(status["rejected"]["total"], 0, status)
        self.flush()
        self.assertEqual(self.counters(), expected)

    def test_python_statsd(self):
        # Debian's python3-statsd belongs to Debian's Python, whichever Python runs this test.
        if self.program("/usr/bin/python3", "-c", "import statsd").code != 0:
            skip_or_fail("no python3-statsd here (tests/install-deps brings it)")
        self.run_client("/usr/bin/python3", "-c", f"""
import statsd
udp = statsd.StatsClient('127.0.0.1', {self.udp_port}, prefix='shop')
for _ in range(50):
    udp.incr('sold')
    udp.decr('stock', 2)
with udp.pipeline() as pipe:
    for _ in range(100):
        pipe.incr('piped', 3)
tcp = statsd.TCPStatsClient('127.0.0.1', {self.tcp_port})
tcp.incr('tcp', 7)
tcp.close()
bare = statsd.StatsClient('127.0.0.1', {self.udp_port})
bare.incr('always', rate=1)
""")
        self.assert_stored(202, {"shop.sold": 50, "shop.stock": -100, "shop.piped": 300, "tcp": 7, "always": 1})

    def test_perl_net_statsd(self):
        if self.program("perl", "-MNet::Statsd", "-e", "1").code != 0:
            skip_or_fail("no libnet-statsd-perl here (tests/install-deps brings it)")
        self.run_client("perl", "-MNet::Statsd", "-e", f"""
            $Net::Statsd::HOST = '127.0.0.1'; $Net::Statsd::PORT = {self.udp_port};
            Net::Statsd::increment('perl.one') for 1 .. 40;
            Net::Statsd::increment(['perl.a', 'perl.b']) for 1 .. 10;
            Net::Statsd::decrement('perl.down') for 1 .. 5;
            Net::Statsd::update_stats('perl.many', 12);
        """)
        self.assert_stored(40 + 20 + 5 + 1, {"perl.one": 40, "perl.a": 10, "perl.b": 10, "perl.down": -5,
                                             "perl.many": 12})

    def test_npm_hot_shots(self):
        directory = npm_install(HOT_SHOTS)
        script = directory / "client.js"
        script.write_text(f"""
const StatsD = require('hot-shots');
const done = [];
const close = (client) => new Promise((resolve, reject) => client.close((e) => e ? reject(e) : resolve()));
(async () => {{
  const udp = new StatsD({{host: '127.0.0.1', port: {self.udp_port}, prefix: 'node.', globalTags: {{env: 'test'}},
                           includeDataDogTags: false, maxBufferSize: 1000, errorHandler: (e) => {{ throw e; }}}});
  for (let i = 0; i < 60; i++) udp.increment('hit', 1, {{page: 'home'}});
  udp.decrement('left', 4);
  udp.increment(['x', 'y'], 2);
  await close(udp);
  const tcp = new StatsD({{protocol: 'tcp', host: '127.0.0.1', port: {self.tcp_port}, includeDataDogTags: false,
                           errorHandler: (e) => {{ throw e; }}}});
  for (let i = 0; i < 25; i++) tcp.increment('tcp');
  await close(tcp);
}})().catch((e) => {{ console.error(e); process.exit(1); }});
""")
        self.run_client("node", script)
        self.assert_stored(60 + 1 + 2 + 25, {"node.hit;env=test;page=home": 60, "node.left;env=test": -4,
                                             "node.x;env=test": 2, "node.y;env=test": 2, "tcp": 25})

    def test_netcat(self):
        if shutil.which("nc.openbsd") is None:
            skip_or_fail("no netcat-openbsd here (tests/install-deps brings it)")
        self.run_client("sh", "-c", f"printf 'nc.udp:1|c\\nnc.udp:2|c\\n' | nc.openbsd -u -w 1 -q 0 127.0.0.1 {self.udp_port}")
        self.run_client("sh", "-c", f"printf 'nc.tcp:4|c\\nINCR nc.typed\\n' | nc.openbsd -N 127.0.0.1 {self.tcp_port}")
        self.run_client("sh", "-c", f"printf 'nc.unix:8|c' | nc.openbsd -w 1 -q 0 -uU {self.unix_path}")
        self.assert_stored(5, {"nc.udp": 3, "nc.tcp": 4, "nc.typed": 1, "nc.unix": 8})

    def test_bash_dev_udp_and_tcp(self):
        self.run_client("bash", "-c", f"""
            for n in 1 2 3 4 5; do echo "bash.$n:$n|c" >/dev/udp/127.0.0.1/{self.udp_port}; done
            exec 3<>/dev/tcp/127.0.0.1/{self.tcp_port}; echo 'INCR bash.tcp 6' >&3
        """)
        self.assert_stored(6, {**{f"bash.{n}": n for n in range(1, 6)}, "bash.tcp": 6})


if __name__ == "__main__":
    harness.main()
