#!/usr/bin/env python3
"""test_systemd - sockets that outlive the process, and what a service manager is told

The manager here is the test: it binds the sockets, keeps them, and passes them by LISTEN_FDS, as systemd does.
"""

import contextlib
import fcntl
import os
import re
import shutil
import signal
import socket
import struct
import sys
import threading
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness

SO_RCVBUFFORCE = 33
SO_MEMINFO, MEMINFO_HELD, MEMINFO_ROOM, MEMINFO_DROPS, MEMINFO_VARS = 55, 0, 1, 8, 9
FD_BEYOND_ALL_PASSED = 100

# Puts the descriptors $FDS where LISTEN_FDS says they are, and becomes counterd.
ACTIVATE = """
n=3
for fd in $FDS; do eval "exec $n<&$fd $fd<&-"; n=$((n + 1)); done
[ "$n" = 3 ] || export LISTEN_FDS=$((n - 3)) LISTEN_PID=$$
[ -z "${WATCHDOG_USEC:-}" ] || export WATCHDOG_PID=$$
exec "$@"
"""


class Activated(harness.Counterd):
    def __init__(self, directory, config_path, name, sockets, env):
        super().__init__(directory, config_path, name)
        self.pass_fds = [fcntl.fcntl(sock, fcntl.F_DUPFD, FD_BEYOND_ALL_PASSED) for sock in sockets]
        self.argv = ["bash", "-c", ACTIVATE, "activate", *self.argv]
        self.env = {"FDS": " ".join(map(str, self.pass_fds)), **env}

    def spawn(self):
        super().spawn()
        for fd in self.pass_fds:
            os.close(fd)
        return self


class Manager(harness.Case):
    def setUp(self):
        super().setUp()
        self.generation = 0

    def bind(self, kind, address=("127.0.0.1", 0), family=socket.AF_INET):
        sock = socket.socket(family, kind)
        self.addCleanup(sock.close)
        sock.bind(address)
        if kind == socket.SOCK_STREAM:
            sock.listen(1024)
        else:
            with contextlib.suppress(PermissionError):
                sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        return sock

    @staticmethod
    def name(sock):
        return "%s:%d" % sock.getsockname()[:2]

    @staticmethod
    def meminfo(sock):
        """What its buffer holds and may hold, in bytes, and how many datagrams did not fit."""
        info = struct.unpack(f"{MEMINFO_VARS}I", sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 4 * MEMINFO_VARS))
        return info[MEMINFO_HELD], info[MEMINFO_ROOM], info[MEMINFO_DROPS]

    def listen(self, udp=(), tcp=(), http=None, unix=()):
        return {"udp": [self.name(sock) for sock in udp], "tcp": [self.name(sock) for sock in tcp],
                "unix": list(unix), "http": self.name(http) if http else ""}

    def activated(self, sockets, event="ready", env=None, **changes):
        self.generation += 1
        name = f"counterd{self.generation}"
        path = self.write_config(f"{name}.json", **changes)
        return self.track(Activated(self.dir, path, name, sockets, env or {})).start(event)


class Restart(Manager):
    def flood(self, sock, stop, sent):
        """Goes on whoever reads it, and pauses only while the buffer is half full: a start may be slow."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.connect(sock.getsockname())
            while not stop.wait(0.001):
                held, room, _ = self.meminfo(sock)
                if held < room / 2:
                    for _ in range(20):
                        sender.send(b"a:1|c\nb:1|c")
                    sent[0] += 20

    def restarts(self, workers):
        udp = [self.bind(socket.SOCK_DGRAM)]
        listen = self.listen(udp=udp)
        stop, sent = threading.Event(), [0]
        thread = threading.Thread(target=self.flood, args=(udp[0], stop, sent))
        thread.start()
        try:
            for _ in range(5):
                counterd = self.activated(udp, listen=listen, workers=workers)
                before = sent[0]
                harness.wait_until(lambda: sent[0] > before + 2000 and self.redis.pending(), what="traffic")
                self.assertEqual(counterd.stop(), 0, counterd.tail())
        finally:
            stop.set()
            thread.join()
        counterd = self.activated(udp, listen=listen, workers=workers)
        harness.wait_until(lambda: self.redis.accepted() == 2 * sent[0],
                           what=lambda: f"{2 * sent[0]}; {self.redis.accepted()}, {self.meminfo(udp[0])}")
        self.assertEqual(counterd.stop(), 0)
        self.assertEqual(self.meminfo(udp[0])[2], 0)
        self.assertEqual(self.redis.pending(), {"a": sent[0], "b": sent[0]})

    def test_no_datagram_is_lost(self):
        self.restarts(workers=1)

    def test_no_datagram_is_lost_by_several_workers_on_one_socket(self):
        self.restarts(workers=2)

    def test_killed_in_between_its_sockets_stay(self):
        """What it had read is lost with it, but nothing that comes while nobody is there."""
        udp = self.bind(socket.SOCK_DGRAM)
        listen = self.listen(udp=[udp])
        self.activated([udp], listen=listen).kill()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for _ in range(100):
                sender.sendto(b"a:1|c", udp.getsockname())
        self.activated([udp], listen=listen)
        harness.wait_until(lambda: self.redis.pending() == {"a": 100}, what=lambda: self.redis.pending())

    def test_connections_that_wait_are_served_by_the_next_one(self):
        tcp, http = self.bind(socket.SOCK_STREAM), self.bind(socket.SOCK_STREAM)
        listen = self.listen(tcp=[tcp], http=http)
        first = self.activated([tcp, http], listen=listen)
        self.assertEqual(first.http("/healthz")[0], 200)
        self.assertEqual(first.stop(), 0)
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(socket.create_connection(tcp.getsockname(), timeout=harness.DEADLINE_S))
                       for _ in range(20)]
            for n, client in enumerate(clients):
                client.sendall(f"a:1|c\nSYNC {n}\n".encode())
            asked = stack.enter_context(socket.create_connection(http.getsockname(), timeout=harness.DEADLINE_S))
            asked.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            self.activated([tcp, http], listen=listen)
            for n, client in enumerate(clients):
                self.assertEqual(client.recv(100), f"SYNCED {n}\n".encode())
            self.assertIn(b"200", asked.recv(1000))
        self.assertEqual(self.redis.pending(), {"a": 20})

    def test_a_unix_socket_is_neither_shut_nor_removed(self):
        path = str(self.dir / "counterd.sock")
        unix = self.bind(socket.SOCK_DGRAM, path, socket.AF_UNIX)
        listen = {"udp": [], "tcp": [], "unix": [path], "http": ""}
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            for n in range(1, 4):
                counterd = self.activated([unix], listen=listen)
                sender.sendto(b"a:1|c", path)
                harness.wait_until(lambda: self.redis.pending() == {"a": n}, what=lambda: self.redis.pending())
                self.assertEqual(counterd.stop(), 0)


class Sockets(Manager):
    @unittest.skipUnless(harness.has_ipv6(), "no IPv6 here")
    def test_every_kind_is_matched_by_address_and_the_rest_opened(self):
        udp, udp6 = self.bind(socket.SOCK_DGRAM), self.bind(socket.SOCK_DGRAM, ("::1", 0), socket.AF_INET6)
        tcp, http = self.bind(socket.SOCK_STREAM), self.bind(socket.SOCK_STREAM)
        listen = self.listen(udp=[udp], tcp=[tcp], http=http)
        listen["udp"] += ["[::1]:%d" % udp6.getsockname()[1], "127.0.0.1:0"]
        counterd = self.activated([http, udp6, tcp, udp], listen=listen)
        for index in range(3):
            counterd.send_udp(["a:1|c"], index=index)
        counterd.send_tcp(["a:1|c"])
        counterd.settle(4)
        self.assertEqual(counterd.events("socket_unused"), [])

    def test_one_that_nobody_wants_is_told(self):
        udp, other = self.bind(socket.SOCK_DGRAM), self.bind(socket.SOCK_DGRAM)
        counterd = self.activated([udp, other], listen=self.listen(udp=[udp]))
        self.assertEqual([line["address"] for line in counterd.events("socket_unused")], [self.name(other)])

    @unittest.skipUnless(harness.has_ipv6(), "no IPv6 here")
    def test_every_address(self):
        udp = self.bind(socket.SOCK_DGRAM, ("::", 0), socket.AF_INET6)
        port = udp.getsockname()[1]
        counterd = self.activated([udp], listen={"udp": [f":{port}"], "tcp": [], "http": ""})
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"a:1|c", ("127.0.0.1", port))
        harness.wait_until(lambda: self.redis.pending() == {"a": 1}, what=counterd.tail)

    def test_one_socket_for_each_worker(self):
        """ReusePort=: two sockets, one address."""
        sockets = []
        for _ in range(2):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.addCleanup(sock.close)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(sockets[0].getsockname() if sockets else ("127.0.0.1", 0))
            sockets.append(sock)
        counterd = self.activated(sockets, listen=self.listen(udp=sockets[:1]), workers=2)
        self.assertEqual(counterd.events("socket_unused"), [])
        for _ in range(50):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.sendto(b"a:1|c", sockets[0].getsockname())
        harness.wait_until(lambda: self.redis.pending() == {"a": 50}, what=lambda: self.redis.pending())


class Notify(Manager):
    def setUp(self):
        super().setUp()
        self.notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.notified.close)
        self.notified.bind(str(self.dir / "notify.sock"))
        self.notified.settimeout(harness.DEADLINE_S)
        self.env = {"NOTIFY_SOCKET": str(self.dir / "notify.sock")}

    def heard(self, text):
        """Waits until the manager is told so."""
        while text not in self.notified.recv(4096).decode():
            pass

    def test_ready_reloading_stopping(self):
        counterd = self.activated([], env=self.env)
        self.heard("READY=1")
        counterd.signal(signal.SIGHUP)
        self.heard("RELOADING=1")
        self.heard("READY=1")
        self.assertEqual(counterd.stop(), 0)
        self.heard("STOPPING=1")

    def test_the_watchdog_is_fed_as_often_as_it_asks(self):
        self.activated([], env={**self.env, "WATCHDOG_USEC": "300000"}, workers=2)
        for _ in range(3):
            self.heard("WATCHDOG=1")


@unittest.skipUnless(shutil.which("systemd-analyze"), "no systemd-analyze here")
class Units(harness.Case):
    def test_the_examples_are_units(self):
        for unit in (harness.ROOT / "examples" / "systemd").iterdir():
            text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", unit.read_text(), flags=re.MULTILINE)
            text = re.sub(r"^User=.*\n", "", text, flags=re.MULTILINE)
            text = re.sub(r"^Documentation=.*\n", "", text, flags=re.MULTILINE)
            (self.dir / unit.name).write_text(text)
        for unit in sorted((harness.ROOT / "examples" / "systemd").iterdir()):
            with self.subTest(unit=unit.name):
                done = self.program("systemd-analyze", "verify", self.dir / unit.name)
                self.assertNotIn(unit.name, done.err)
                self.assertEqual(done.code, 0, done)


if __name__ == "__main__":
    harness.main()
