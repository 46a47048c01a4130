#!/usr/bin/env python3
"""test_top - `flusher top` on a terminal (a pty, and what it draws there) and in a pipe"""

import fcntl
import json
import os
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness

SEQUENCE = re.compile(rb"\x1b\[(\?)?([0-9;]*)([A-Za-z])")


class Terminal:
    """A program on a pty, and the screen that it draws; what it sends and a terminal need not know is a failure."""

    def __init__(self, argv, columns=80, rows=24):
        self.master, slave = os.openpty()
        self.resize(columns, rows)
        self.before = termios.tcgetattr(slave)
        self.lock = threading.Lock()
        self.alternate = self.hidden = False
        self.clears = self.unknown = 0
        self.sent = b""
        self.lines = {}
        self.shown = []  # what was on the screen, each time that it changed
        self.at = (1, 1)

        def in_child():
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        self.child = subprocess.Popen([str(arg) for arg in argv], stdin=slave, stdout=slave, stderr=slave,
                                      preexec_fn=in_child)
        self.slave = slave
        threading.Thread(target=self._read, daemon=True).start()

    def resize(self, columns, rows):
        self.columns, self.rows = columns, rows
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys):
        os.write(self.master, keys)

    def _read(self):
        rest = b""
        while True:
            try:
                data = os.read(self.master, 65536)
            except OSError:
                return
            with self.lock:
                self.sent += data
                rest = self._draw(rest + data)
                self.shown.append(self._text())

    def _draw(self, data):
        at = 0
        while at < len(data):
            if data[at:at + 1] == b"\x1b":
                found = SEQUENCE.match(data, at)
                if not found:
                    return data[at:]
                self._obey(bool(found[1]), found[2].decode(), found[3].decode())
                at = found.end()
                continue
            end = data.find(b"\x1b", at)
            end = len(data) if end < 0 else end
            self._write(data[at:end].decode("ascii"))
            at = end
        return b""

    def _obey(self, private, numbers, what):
        row, column = self.at
        if private and numbers == "1049":
            self.alternate = what == "h"
        elif private and numbers == "25":
            self.hidden = what == "l"
        elif what == "H":
            self.at = tuple(int(number) for number in numbers.split(";"))
        elif what == "J" and numbers == "2":
            self.clears += 1
            self.lines = {}
        elif what == "K" and numbers == "":
            self.lines[row] = self.lines.get(row, "")[:column - 1]
        elif what != "m":
            self.unknown += 1

    def _write(self, text):
        row, column = self.at
        if self.alternate:
            line = self.lines.get(row, "").ljust(column - 1)
            self.lines[row] = line[:column - 1] + text + line[column - 1 + len(text):]
        self.at = (row, column + len(text))

    def _text(self):
        return "\n".join(self.lines.get(row, "").rstrip() for row in range(1, max(self.lines, default=0) + 1))

    def text(self):
        with self.lock:
            return self._text()

    def wait(self, pattern, deadline_s=harness.DEADLINE_S):
        return harness.wait_until(lambda: re.search(pattern, self.text(), re.MULTILINE), deadline_s,
                                  lambda: f"/{pattern}/ on the screen:\n{self.text()}")

    def wait_shown(self, pattern):
        """Waits until it is there, or has been."""
        def shown():
            with self.lock:
                return any(re.search(pattern, text, re.MULTILINE) for text in self.shown)
        harness.wait_until(shown, what=lambda: f"/{pattern}/ at any time; last on the screen:\n{self.text()}")

    def end(self):
        """The exit code."""
        return self.child.wait(harness.DEADLINE_S)

    def settings(self):
        return termios.tcgetattr(self.slave)

    def close(self):
        if self.child.poll() is None:
            self.child.kill()
            self.child.wait()
        os.close(self.slave)
        os.close(self.master)


def number(text):
    return int(text.replace(",", ""))


def figures(text):
    """What a screen says, by name."""
    def find(pattern):
        found = re.search(pattern, text, re.MULTILINE)
        return tuple(number(group) for group in found.groups()) if found else None
    return {
        "received": find(r"^received +([\d,]+) lines"),
        "accepted": find(r"([\d,]+) accepted"),
        "rejected": find(r"^  rejected +([\d,]+) lines"),
        "memory": find(r"^memory +([\d,]+) increments"),
        "open": find(r"^Redis open +([\d,]+) keys? +sum (-?[\d,]+)"),
        "sealed": find(r"^  sealed +([\d,]+) keys? +sum (-?[\d,]+)"),
        "run": find(r"^last run .* ([\d,]+) keys? +sum (-?[\d,]+)"),
        "quarantined": find(r"quarantined (\d+)"),
    }


class TopCase(harness.Case):
    def setUp(self):
        super().setUp()
        self.migrate()
        self.config["listen"]["http"] = f"127.0.0.1:{harness.free_port()}"
        self.sent = 0

    def send(self, counterd, lines):
        counterd.send_udp(lines)
        self.sent += len(lines)
        counterd.settle(self.sent)

    def top(self, *args, **size):
        terminal = Terminal([harness.FLUSHER, "-c", self.write_config("top.json"), "top", "--interval", "1", *args],
                            **size)
        self.addCleanup(terminal.close)
        return terminal

    def once(self, *args, code=harness.EXIT_OK, **env):
        return self.flusher("top", "--once", *args, code=code, env=env).out

    def status(self, code=harness.EXIT_OK):
        return json.loads(self.flusher("status", "--json", code=code).out)


class Figures(TopCase):
    def expected(self, counterd):
        """The figures, as `flusher status` and counterd say them."""
        status, daemon = self.status(), counterd.status()
        return {
            "received": (daemon["received"]["lines"],),
            "accepted": (daemon["accepted"],),
            "rejected": (daemon["rejected"]["total"],),
            "memory": (daemon["pending"],),
            "open": (status["open_keys"], status["open_increments"]),
            "sealed": (status["sealed_keys"], status["sealed_increments"]),
            "run": (status["last_run_keys"], status["last_run_increments"]) if status["last_run"] else None,
            "quarantined": (status["quarantined"],),
        }

    def wait_same(self, terminal, counterd):
        """Not all of a screen is of one moment; the next one has what this one lacks."""
        expected = self.expected(counterd)
        harness.wait_until(lambda: figures(terminal.text()) == expected, what=lambda: f"{expected}\n{terminal.text()}")

    def test_live_as_in_status(self):
        counterd = self.counterd()
        terminal = self.top()
        terminal.wait("All is well")
        terminal.wait("^last run +never")
        self.send(counterd, [f"key.{n}:{n}|c" for n in range(2000)] + ["what is this", "x:1|g"])
        terminal.wait("Redis open +2,000 keys +sum 1,999,000")
        terminal.wait("rejected +2 lines .*syntax 1 +type 1")
        self.wait_same(terminal, counterd)
        for shard in range(3):
            self.redis.seal(shard, f"hand-{shard}")
        self.send(counterd, ["key.1:5|c"] * 10)
        terminal.wait(r"^received +2,012")
        self.assertGreater(self.expected(counterd)["sealed"][0], 0)
        self.wait_same(terminal, counterd)
        self.flush()
        terminal.wait("Redis open +0 keys +sum 0")
        terminal.wait("^last run .*2,00[01] keys")
        self.wait_same(terminal, counterd)
        self.assertEqual(terminal.unknown, 0)

    def test_ages_and_rates_move(self):
        counterd = self.counterd()
        terminal = self.top()
        terminal.wait("All is well")
        self.send(counterd, ["a:1|c"] * 500)
        terminal.wait_shown(r"^received +500 lines +[1-9]\d*/s")
        terminal.wait_shown(r"^  oldest +[1-9]\d*(\.\d)? s")
        terminal.wait_shown(r"^received +500 lines +0/s")

    def test_largest_keys_whatever_bytes_they_have(self):
        counterd = self.counterd()
        evil = "\u202eevil\x7f\x9b\"\\" + "\u00e9" * 40
        self.send(counterd, [f"key.{n}:{n}|c" for n in range(1, 31)] + [f"{evil}:77|c"])
        self.redis.seal(0, "by-hand")
        self.send(counterd, [f"key.{n}:1|c" for n in range(1, 31)])
        out = self.once()
        keys = re.findall(r"^ +(\d+)  (\S+)$", out.partition("largest keys in Redis")[2], re.MULTILINE)
        self.assertEqual(keys[1:], [(str(n + 1), f"key.{n}") for n in range(30, 21, -1)])
        self.assertEqual(keys[0][0], "77")
        self.assertTrue(keys[0][1].startswith(r"\xe2\x80\xaeevil\x7f\xc2\x9b\"\\\xc3\xa9"), keys[0])
        terminal = self.top(columns=40)
        terminal.wait(r"^ +77  \\xe2\\x80\\xaeevil.*\.\.\.$")
        self.assertTrue(all(len(line) <= 40 for line in terminal.text().splitlines()), terminal.text())

    def test_once_has_no_escapes_and_a_pipe_gets_the_same(self):
        counterd = self.counterd()
        self.send(counterd, ["a:1|c", "b:2|c"])
        done = self.flusher("top")
        for out in (done.out, self.once()):
            self.assertNotRegex(out, r"[^\n -~]")
            self.assertEqual(figures(out), self.expected(counterd))
            self.assertLessEqual(max(map(len, out.splitlines())), 80)
        for columns in (40, 200):
            out = self.once(COLUMNS=str(columns))
            self.assertLessEqual(max(map(len, out.splitlines())), columns)
            self.assertEqual(figures(out), self.expected(counterd))

    def test_usage(self):
        for args in (["top", "--json"], ["top", "--interval", "0"], ["top", "--every", "1"], ["status", "--once"],
                     ["run", "--interval", "1"], ["top", "more"], ["status", "--metrics-file", "x"],
                     ["run", "--dry-run", "--metrics-file", "x"]):
            self.flusher(*args, code=harness.EXIT_USAGE)


class OnATerminal(TopCase):
    def test_resize(self):
        counterd = self.counterd()
        self.send(counterd, [f"a.key.with.a.long.name.{n}:{n}|c" for n in range(40)])
        terminal = self.top()
        terminal.wait("^largest keys in Redis")
        for columns, rows in ((40, 60), (40, 12), (132, 50), (20, 10), (80, 24)):
            terminal.resize(columns, rows)

            def fits():
                lines = terminal.text().splitlines()
                return (0 < len(lines) <= rows and max(map(len, lines)) <= columns
                        and ("a.key.with.a.long.name.39" in terminal.text() or rows < 24)
                        and terminal.text().startswith("flusher top counterd") and lines)
            harness.wait_until(fits, what=lambda: f"{columns}x{rows}:\n{terminal.text()}")
        self.assertEqual((terminal.child.poll(), terminal.unknown), (None, 0))

    def test_redraws_only_what_changed(self):
        self.counterd()
        terminal = self.top()
        terminal.wait("All is well")
        with terminal.lock:
            before, sent = len(terminal.shown), len(terminal.sent)
        clock = terminal.wait(r"\d\d:\d\d:\d\d UTC")[0]
        harness.wait_until(lambda: terminal.wait(r"\d\d:\d\d:\d\d UTC")[0] != clock, what="the clock goes on")
        with terminal.lock:
            self.assertEqual(terminal.clears, 1)
            self.assertLess(len(terminal.sent) - sent, 80 * 24 / 2 * (len(terminal.shown) - before))

    def leave(self, how, expected=0):
        terminal = self.top()
        terminal.wait("All is well")
        self.assertTrue(terminal.alternate and terminal.hidden)
        self.assertNotEqual(terminal.settings(), terminal.before)
        how(terminal)
        self.assertEqual(terminal.end(), expected)
        harness.wait_until(lambda: not terminal.alternate and not terminal.hidden, what="the screen given back")
        self.assertEqual(terminal.settings(), terminal.before)

    def test_every_way_out_restores_the_terminal(self):
        self.counterd()
        for how in (lambda terminal: terminal.type(b"q"), lambda terminal: terminal.type(b"xQ"),
                    lambda terminal: terminal.type(b"\x03"), lambda terminal: terminal.child.terminate(),
                    lambda terminal: terminal.child.send_signal(signal.SIGHUP)):
            with self.subTest(how=how):
                self.leave(how)

    def test_stopped_and_continued(self):
        self.counterd()
        terminal = self.top()
        terminal.wait("All is well")
        terminal.child.send_signal(signal.SIGTSTP)
        harness.wait_until(lambda: os.waitid(os.P_PID, terminal.child.pid, os.WSTOPPED | os.WNOWAIT | os.WNOHANG),
                           what="it stops")
        harness.wait_until(lambda: not terminal.alternate, what="the screen given back")
        self.assertEqual(terminal.settings(), terminal.before)
        terminal.child.send_signal(signal.SIGCONT)
        harness.wait_until(lambda: terminal.alternate, what="the screen taken again")
        terminal.wait("All is well")
        terminal.type(b"q")
        self.assertEqual(terminal.end(), 0)


class Away(TopCase):
    """Who is away is told, and the figures of the others go on."""

    def test_redis_stopped_and_back(self):
        counterd = self.counterd()
        terminal = self.top()
        terminal.wait("All is well")
        self.redis.kill()
        terminal.wait("^! Redis does not answer")
        terminal.wait("^Redis +away: ")
        counterd.send_udp(["a:1|c"] * 100)
        terminal.wait("^memory +100 increments")
        terminal.wait("^! counterd can't store; 100 increments wait")
        terminal.wait("^Postgres +not known yet")
        self.assertIn("Redis does not answer", self.once(code=harness.EXIT_UNAVAILABLE))
        self.redis.start()
        terminal.wait("^Redis open +1 key +sum 100")
        terminal.wait("All is well")

    def test_postgres_stopped_and_back(self):
        counterd = self.counterd()
        self.send(counterd, ["a:1|c"] * 3)
        self.flush()
        terminal = self.top()
        terminal.wait("All is well")
        self.postgres.stop()
        self.addCleanup(harness.postgres)
        terminal.wait("^! Postgres does not answer")
        terminal.wait("^Postgres +away: ")
        self.send(counterd, ["a:1|c"] * 100)
        terminal.wait("^Redis open +1 key +sum 100")
        terminal.wait("^last run .*1 key +sum 3")  # as last known
        self.redis.seal(self.shard_of_a(), "by-hand")
        terminal.wait("^  sealed +1 key +sum known when Postgres answers")
        self.assertIn("Postgres does not answer", self.once(code=harness.EXIT_UNAVAILABLE))
        harness.postgres()
        terminal.wait("^  sealed +1 key +sum 100")
        terminal.wait("All is well")

    def shard_of_a(self):
        return next(shard for shard in range(8) if self.redis.call("EXISTS", f"{{counterd:{shard}}}:open"))

    def test_counterd_stopped(self):
        counterd = self.counterd()
        self.send(counterd, ["a:1|c"] * 100)
        terminal = self.top()
        terminal.wait("^received +100 lines")
        counterd.stop()
        terminal.wait("^! counterd does not answer")
        terminal.wait("^counterd +away: ")
        terminal.wait(r"follows is (\d+\.\d s|\d+ s) old")
        self.flush()
        terminal.wait("^last run .*1 key +sum 100")
        self.assertIn("counterd does not answer", self.once())

    def test_who_hangs_holds_nobody_up(self):
        counterd = self.counterd()
        for server, name in ((self.postgres, "Postgres"), (self.redis, "Redis")):
            with self.subTest(server=name):
                terminal = self.top()
                terminal.wait("All is well")
                server.signal(signal.SIGSTOP)
                self.stop_children(server)
                try:
                    terminal.wait(f"^{name} +away: .*no answer")
                    received = counterd.status()["received"]["lines"]
                    counterd.send_udp(["a:1|c"] * 10)
                    terminal.wait(f"^received +{received + 10} lines")
                    if server is self.redis:
                        self.query("insert into counterd.runs (namespace, started_at, finished_at, shards, keys,"
                                   " increments, events) values ('counterd', now(), now(), 8, 4711, 0, 0)")
                        terminal.wait("^last run .*4,711 keys")
                    from_s = time.monotonic()
                    terminal.type(b"q")
                    self.assertEqual(terminal.end(), 0)
                    self.assertLess(time.monotonic() - from_s, 5)
                finally:
                    server.signal(signal.SIGCONT)
                    self.stop_children(server, signal.SIGCONT)

    @staticmethod
    def stop_children(server, how=signal.SIGSTOP):
        """Postgres answers by its children."""
        for pid in Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split():
            os.kill(int(pid), how)

    def test_tables_not_migrated(self):
        self.query("drop schema counterd cascade")
        out = self.once(code=harness.EXIT_CONFIG)
        self.assertIn("Postgres can't be used, see below", out)
        self.assertRegex(" ".join(out.split()), "Postgres away: .*migrate")


if __name__ == "__main__":
    harness.main()
