#!/usr/bin/env python3
"""test_config - mistakes in the configuration and on the command line: each is named, and the exit code tells the kind"""

import os
import signal
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness

PROGRAMS = (harness.COUNTERD, harness.FLUSHER)


class CommandLine(harness.Case):
    def test_usage_errors_exit_64_and_say_what_is_wrong(self):
        config = self.write_config()
        for argv, named in (
                ([harness.COUNTERD, "--frobnicate"], "frobnicate"),
                ([harness.COUNTERD, "-c"], "-c"),
                ([harness.COUNTERD, "-c", config, "surplus"], "surplus"),
                ([harness.FLUSHER, "--frobnicate"], "frobnicate"),
                ([harness.FLUSHER, "-c", config, "frobnicate"], "frobnicate"),
                ([harness.FLUSHER, "-c", config, "get"], "KEY"),
                ([harness.FLUSHER, "-c", config, "run", "--every", "soon"], "soon"),
        ):
            with self.subTest(argv=argv):
                done = self.program(*argv)
                self.assertEqual(done.code, harness.EXIT_USAGE, done)
                self.assertIn(named, done.err)
                self.assertEqual(done.out, "")

    def test_help_and_version(self):
        for program in PROGRAMS:
            name = program.name
            with self.subTest(program=name):
                done = self.program(program, "--help")
                self.assertEqual((done.code, done.err), (0, ""))
                self.assertIn(f"{name} ", done.out)
                done = self.program(program, "--version")
                self.assertEqual((done.code, done.err), (0, ""))
                self.assertRegex(done.out, rf"^{name} \d+\.\d+\.\d+\n$")


class Mistakes(harness.Case):
    def assert_refused(self, text, *named):
        """Both programs, and counterd --check, name the mistakes on stderr and exit 78."""
        path = self.dir / "bad.json"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        for argv in ([harness.COUNTERD, "-c", path], [harness.COUNTERD, "--check", "-c", path],
                     [harness.FLUSHER, "-c", path, "run"]):
            done = self.program(*argv)
            self.assertEqual(done.code, harness.EXIT_CONFIG, done)
            for name in named:
                self.assertIn(name, done.err)

    def test_each_mistake_is_named(self):
        for text, *named in (
                ('{"sharts": 8}', "sharts", "shards"),
                ('{"listen": {"upd": []}}', "listen.upd", "udp tcp unix http"),
                ('{"shards": 0}', "shards", "from 1 to 1024"),
                ('{"shards": 1.5}', "shards", "1.5"),
                ('{"shards": "64"}', "shards", "a string"),
                ('{"coalesce_ms": -1}', "coalesce_ms", "-1"),
                ('{"listen": {"udp": "127.0.0.1:1"}}', "listen.udp", "a list"),
                ('{"listen": {"udp": ["nowhere"]}}', "listen.udp[0]", "nowhere"),
                ('{"listen": {"udp": ["127.0.0.1:65536"]}}', "listen.udp[0]", "65536"),
                ('{"listen": {"unix": ["relative.sock"]}}', "listen.unix[0]", "relative.sock"),
                ('{"listen": 8125}', "listen", "an object"),
                ('{"namespace": "a{b}"}', "namespace", "a{b}"),
                ('{"redis": {"url": "http://127.0.0.1"}}', "redis.url"),
                ('{"shards": 8, "shards": 9}', "shards", "twice"),
                ('{"targets": []}', "targets"),
                ('{"shards": 8,}', "line 1"),
                ('{\n  "shards": 8\n  "workers": 1\n}', "line 3"),
                ("[]", "a list"),
                ("", "line 1"),
                (b'{"namespace": "a\0b"}', "NUL"),
                ("/* never closed", "comment"),
                ('{"listen": {"udp": [], "tcp": [], "unix": []}}', "listen"),
                ('{"redis": {"password_file": "/nonexistent/password"}}', "redis.password_file", "/nonexistent/password"),
        ):
            with self.subTest(text=text):
                self.assert_refused(text, *named)

    def test_all_mistakes_of_a_file_at_once(self):
        self.assert_refused('{"sharts": 8, "workers": 65, "redis": {"timeout_ms": 1, "tls": true}}',
                            "sharts", "workers", "redis.timeout_ms", "redis.tls")

    def test_no_such_file(self):
        for argv in ([harness.COUNTERD, "-c", self.dir / "none.json"], [harness.FLUSHER, "-c", self.dir / "none.json"]):
            done = self.program(*argv)
            self.assertEqual(done.code, harness.EXIT_CONFIG, done)
            self.assertIn("none.json", done.err)

    def test_check_of_a_good_file_opens_nothing(self):
        self.redis.kill()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("127.0.0.1", 0))
            address = "127.0.0.1:%d" % taken.getsockname()[1]
            path = self.write_config(listen={"udp": [address], "http": ""})
            self.assertEqual(self.program(harness.COUNTERD, "--check", "-c", path).code, 0)

    def test_no_password_in_a_message(self):
        for url in ("redis://:s3cret@127.0.0.1:port", "redis://user:s3cret@", "s3cret://x"):
            path = self.write_config(redis={"url": url})
            done = self.program(harness.COUNTERD, "--check", "-c", path)
            self.assertEqual(done.code, harness.EXIT_CONFIG)
            if "@" in url:
                self.assertNotIn("s3cret", done.out + done.err)


class Sockets(harness.Case):
    def test_port_in_use_is_named(self):
        for kind, socket_type in (("udp", socket.SOCK_DGRAM), ("tcp", socket.SOCK_STREAM), ("http", socket.SOCK_STREAM)):
            with self.subTest(kind=kind), socket.socket(socket.AF_INET, socket_type) as taken:
                taken.bind(("127.0.0.1", 0))
                if socket_type == socket.SOCK_STREAM:
                    taken.listen()
                address = "127.0.0.1:%d" % taken.getsockname()[1]
                listen = {"udp": ["127.0.0.1:0"], "tcp": [], "http": "127.0.0.1:0"}
                listen[kind] = address if kind == "http" else [address]
                done = self.program(harness.COUNTERD, "-c", self.write_config(listen=listen))
                self.assertNotEqual(done.code, 0)
                self.assertIn(address, done.err)
                self.assertIn("in use", done.err)

    def test_started_without_standard_descriptors(self):
        """What is logged goes nowhere then: not into the socket or the file that would become descriptor 2."""
        counterd = self.track(harness.Process("counterd", self.dir, [
            "bash", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', harness.COUNTERD, self.write_config(
                listen={"udp": ["127.0.0.1:0"], "tcp": [], "http": ""})])).spawn()
        def ready():
            return self.redis.call("GET", "{counterd}:shards") is not None
        harness.wait_until(ready, what="Redis knows counterd")
        self.assertEqual([os.readlink(f"/proc/{counterd.pid}/fd/{fd}") for fd in range(3)], ["/dev/null"] * 3)
        self.assertEqual(counterd.stop(), 0)

    def test_two_daemons_do_not_share_a_port_unnoticed(self):
        first = self.counterd()
        host, port = first.address("udp")
        listen = {"udp": [f"{host}:{port}"], "tcp": [], "http": "127.0.0.1:0"}
        done = self.program(harness.COUNTERD, "-c", self.write_config(listen=listen))
        self.assertNotEqual(done.code, 0)
        self.assertIn(f"{host}:{port}", done.err)

    def test_a_dead_daemons_unix_socket_is_taken_over_a_living_ones_is_not(self):
        path = str(self.dir / "counterd.sock")
        listen = {"udp": [], "tcp": [], "unix": [path], "http": "127.0.0.1:0"}
        first = self.counterd("first", listen=listen)
        done = self.program(harness.COUNTERD, "-c", self.write_config(listen=listen))
        self.assertNotEqual(done.code, 0)
        self.assertIn(path, done.err)
        first.kill()
        self.assertTrue(os.path.exists(path))
        second = self.counterd("second", listen=listen)
        second.send_unix(["taken.over:1|c"])
        second.settle(1)

    def test_a_file_in_the_sockets_place_is_not_removed(self):
        path = self.dir / "precious"
        path.write_text("data")
        listen = {"udp": [], "tcp": [], "unix": [str(path)], "http": ""}
        done = self.program(harness.COUNTERD, "-c", self.write_config(listen=listen))
        self.assertNotEqual(done.code, 0)
        self.assertEqual(path.read_text(), "data")

    def test_a_living_socket_of_another_kind_is_not_removed(self):
        """Redis's own, say, given by mistake."""
        path = str(self.redis.path)
        done = self.program(harness.COUNTERD, "-c", self.write_config(listen={"udp": [], "tcp": [], "unix": [path],
                                                                              "http": ""}))
        self.assertEqual(done.code, harness.EXIT_UNAVAILABLE, done)
        self.assertIn(path, done.err)
        self.redis.forget_client()
        self.assertEqual(self.redis.call("PING"), b"PONG")


class Reload(harness.Case):
    def test_a_good_file_takes_over_without_closing_a_socket(self):
        counterd = self.counterd(keys_max=2)
        port = counterd.address("udp")
        counterd.send_udp(["a:1|c", "b:1|c", "c:1|c"])
        counterd.settle(3)
        self.write_config("counterd.json", keys_max=1000)
        counterd.signal(signal.SIGHUP)
        counterd.wait_event("reloaded")
        self.assertEqual(counterd.address("udp"), port)
        counterd.send_udp(["d:1|c", "e:1|c", "f:1|c", "g:1|c"])
        counterd.settle(7)
        pending = self.redis.pending()
        self.assertEqual({key: pending.get(key) for key in "defg"}, {key: 1 for key in "defg"})

    def test_a_bad_file_keeps_the_old_one_and_says_so(self):
        counterd = self.counterd()
        (self.dir / "counterd.json").write_text('{"coalesce_ms": "soon"}')
        counterd.signal(signal.SIGHUP)
        counterd.wait_event("reload_refused")
        self.assertIn("'coalesce_ms' is a string", counterd.log())
        counterd.send_udp(["still.here:1|c"])
        counterd.settle(1)

    def test_what_needs_a_restart_is_named(self):
        counterd = self.counterd()
        self.write_config("counterd.json", shards=16, coalesce_ms=30)
        counterd.signal(signal.SIGHUP)
        counterd.wait_event("reloaded")
        self.assertIn("shards", counterd.log())
        counterd.send_udp(["still.here:1|c"])
        counterd.settle(1)
        self.assertEqual(counterd.status()["shards"], 8)


if __name__ == "__main__":
    harness.main()
