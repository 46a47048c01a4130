#!/usr/bin/env python3
"""test_sync - SYNC on TCP: SYNCED means that it is in Redis; and a slow Redis holds TCP back, not memory"""

import signal
import socket
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness


class Sync(harness.Case):
    def connect(self, counterd):
        stream = socket.create_connection(counterd.address("tcp"), timeout=harness.DEADLINE_S)
        self.addCleanup(stream.close)
        return stream, stream.makefile("rb")

    def test_synced_means_stored(self):
        """No waiting in between, and a coalesce_ms that would be noticed."""
        counterd = self.counterd(coalesce_ms=60000)
        stream, answers = self.connect(counterd)
        for n in range(1, 6):
            stream.sendall(b"a:1|c\nINCR b 2\nSYNC n%d\n" % n)
            self.assertEqual(answers.readline(), b"SYNCED n%d\n" % n)
            self.assertEqual(self.redis.pending(), {"a": n, "b": 2 * n})
        self.assertEqual(counterd.status()["received"]["lines"], 10)

    def test_each_is_answered_in_order_however_it_is_cut(self):
        counterd = self.counterd()
        stream, answers = self.connect(counterd)
        text = b"SYNC first\na:1|c\nSYNC second\r\nSYNC third\nSYNCa:1|c\nxSYNC :1|c\nb:1|c\nSYNC last\n"
        for at in range(len(text)):
            stream.sendall(text[at:at + 1])
        self.assertEqual([answers.readline() for _ in range(4)],
                         [b"SYNCED first\n", b"SYNCED second\n", b"SYNCED third\n", b"SYNCED last\n"])
        self.assertEqual(self.redis.pending(), {"a": 1, "SYNCa": 1, "b": 1})
        self.assertEqual(counterd.rejected(counterd.status()), {"key": 1})

    def test_answered_after_the_client_has_stopped_sending(self):
        """printf 'a:1|c\\nSYNC x' | nc -N host port"""
        counterd = self.counterd()
        stream, answers = self.connect(counterd)
        stream.sendall(b"a:1|c\nSYNC x")
        stream.shutdown(socket.SHUT_WR)
        self.assertEqual(answers.read(), b"SYNCED x\n")
        self.assertEqual(self.redis.pending(), {"a": 1})

    def test_a_malformed_one_is_a_rejected_line(self):
        counterd = self.counterd()
        stream, answers = self.connect(counterd)
        stream.sendall(b"SYNC \nSYNC two words\nSYNC " + b"x" * 256 + b"\nSYNC ok\n")
        self.assertEqual(answers.readline(), b"SYNCED ok\n")
        self.assertEqual(counterd.rejected(counterd.status()), {"syntax": 3})

    def test_not_answered_before_redis_answers(self):
        counterd = self.counterd()
        stream, answers = self.connect(counterd)
        stream.sendall(b"SYNC up\n")
        self.assertEqual(answers.readline(), b"SYNCED up\n")
        self.redis.signal(signal.SIGSTOP)
        stream.sendall(b"a:1|c\nSYNC x\n")
        harness.wait_until(lambda: counterd.status()["accepted"] == 1, what="the line is counted")
        stream.setblocking(False)
        self.assertRaises(BlockingIOError, stream.recv, 1)
        stream.settimeout(harness.DEADLINE_S)
        self.redis.signal(signal.SIGCONT)
        self.assertEqual(answers.readline(), b"SYNCED x\n")

    def test_a_stop_answers_who_waits(self):
        counterd = self.counterd()
        stream, answers = self.connect(counterd)
        self.redis.signal(signal.SIGSTOP)
        stream.sendall(b"a:1|c\nSYNC x\n")
        harness.wait_until(lambda: counterd.status()["accepted"] == 1, what="the line is counted")
        counterd.signal(signal.SIGTERM)
        counterd.wait_event("stopping")
        self.redis.signal(signal.SIGCONT)
        self.assertEqual(answers.readline(), b"SYNCED x\n")
        self.assertEqual(counterd.wait(), harness.EXIT_OK)
        self.assertEqual(self.redis.pending(), {"a": 1})

    def test_a_slow_redis_holds_tcp_back_and_no_key_is_given_up(self):
        """More distinct keys than fit into memory, sent while Redis does not answer: they wait in the sockets."""
        counterd = self.counterd(keys_max=100000, redis={"url": self.redis.url, "timeout_ms": 60000})
        stream, answers = self.connect(counterd)
        stream.sendall(b"SYNC up\n")
        self.assertEqual(answers.readline(), b"SYNCED up\n")
        self.redis.signal(signal.SIGSTOP)
        stream.sendall(b"first:1|c\n")
        harness.wait_until(lambda: counterd.status()["pending"] == 1, what="the first is on its way")
        lines = b"".join(b"key.%d:1|c\n" % number for number in range(400000))
        sender = threading.Thread(target=stream.sendall, args=(lines + b"SYNC end\n",))
        sender.start()
        harness.wait_until(lambda: counterd.status()["table"]["keys"] >= 75000, what="the table is nearly full")
        # Not whether the sender is done: the kernel's own buffers may hold all that is left.
        self.assertLess(counterd.status()["accepted"], 400001)
        self.redis.signal(signal.SIGCONT)
        self.assertEqual(answers.readline(), b"SYNCED end\n")
        sender.join()
        status = counterd.status()
        self.assertEqual((status["table"]["overflow"], status["accepted"], status["pending"]), (0, 400001, 0))

    def test_with_room_for_a_single_key_nobody_waits_for_what_does_not_come(self):
        """A line that does not count leaves nothing to be stored, so nothing would let the connection go on."""
        counterd = self.counterd(keys_max=1)
        stream, answers = self.connect(counterd)
        stream.sendall(b"junk\n")
        harness.wait_until(lambda: counterd.status()["received"]["lines"] == 1, what="the line is read")
        stream.sendall(b"a:1|c\nSYNC x\n")
        self.assertEqual(answers.readline(), b"SYNCED x\n")
        self.assertEqual(self.redis.pending(), {"a": 1})


if __name__ == "__main__":
    harness.main()
