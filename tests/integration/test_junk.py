#!/usr/bin/env python3
"""test_junk - whatever comes, nothing crashes, and received = accepted + rejected"""

import contextlib
import random
import re
import signal
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness

SEED = 7


def lines_in(payloads):
    """What counts as received: lines that are not blank; one CR before the LF, or at the end, is no part of a line."""
    return sum(1 for payload in payloads for line in payload.split(b"\n")
               if line.removesuffix(b"\r"))


class Junk(harness.Case):
    def assert_conserved(self, counterd, lines):
        status = counterd.settle(lines)
        self.assertEqual(status["received"]["lines"], status["accepted"] + status["rejected"]["total"])
        self.assertEqual(status["rejected"]["total"], sum(counterd.rejected(status).values()))
        return status

    def test_every_reason_is_counted(self):
        counterd = self.counterd()
        by_reason = {
            "syntax": ["a", "a:1", "a:1|c|", "a:1|c|@1|@1", "a:1|c|T12x", "INCRBY a", "_sc|x|0"],
            "value": ["a:|c", "a:x|c", "a:0x10|c", "a:NaN|c", "a:.5|c", "a:1,5|c"],
            "rate": ["a:1|c|@0", "a:1|c|@2", "a:1|c|@x", "a:1|c|@-1"],
            "type": ["a:1|g", "a:1|ms", "a:1|", "a:1|c:2|c"],
            "key": [":1|c", "a b:1|c", "a:1|c|#k:v:w", "a\t:1|c"],
            "utf8": [b"\xff:1|c", b"a\xc0\x80:1|c", b"a:1|c|#k:\xfe"],
            "too_long": ["x" * 256 + ":1|c", "x" * 250 + ":1|c|#tag:value"],
            "range": ["a:9000000000001|c", "a:1|c|T999999999999999"],
        }
        lines = [line for reason in by_reason.values() for line in reason]
        counterd.send_udp(lines + ["fine:1|c"])
        status = self.assert_conserved(counterd, len(lines) + 1)
        self.assertEqual(counterd.rejected(status),
                         {reason: len(lines) for reason, lines in by_reason.items()})
        self.assertEqual(status["accepted"], 1)
        self.assertTrue(status["rejected_samples"])
        self.assertEqual(self.redis.pending(), {"fine": 1})

    def test_random_bytes_of_any_size(self):
        """Up to 65,507 bytes, the most that UDP over IPv4 carries."""
        counterd = self.counterd()
        dice = random.Random(SEED)
        sizes = [0, 1, 2, 1472, 1473, 8191, 8192, 65506, 65507] + [int(2 ** dice.uniform(0, 15.99)) for _ in range(300)]
        payloads = [dice.randbytes(size) for size in sizes]
        counterd.send_datagrams(counterd.address("udp"), payloads, in_flight=4)
        status = self.assert_conserved(counterd, lines_in(payloads))
        self.assertEqual(status["received"]["datagrams"], len(payloads))
        self.assertEqual(status["received"]["bytes"], sum(sizes))
        self.assertEqual((status["kernel_dropped"], status["received"]["truncated_datagrams"]), (0, 0))

    def test_lines_almost_right(self):
        """Good lines with some bytes changed: what a flaky sender or a careless printf makes."""
        counterd = self.counterd()
        dice = random.Random(SEED)
        good = [b"page.home:1|c", b"jobs:3:4|c|@0.1|#env:prod,zone:a", b"INCRBY bytes 1500", b"DECR stock.42",
                b"a:0.1|c|T1700000000|c:abc", "ключ:7|c".encode()]
        alphabet = b":|@#,.;= \r\t\0+-eEc0123456789\xff\xc3\x28INCRB"
        payloads = []
        for _ in range(400):
            payload = bytearray(b"\n".join(dice.choices(good, k=20)))
            for _ in range(dice.randrange(12)):
                at = dice.randrange(len(payload))
                payload[at:at + dice.randrange(2)] = bytes([dice.choice(alphabet)] * dice.randrange(3))
            payloads.append(bytes(payload))
        counterd.send_datagrams(counterd.address("udp"), payloads)
        status = self.assert_conserved(counterd, lines_in(payloads))
        self.assertGreater(status["accepted"], 1000)
        self.assertGreater(status["rejected"]["total"], 400)

    def test_junk_over_tcp(self):
        counterd = self.counterd()
        dice = random.Random(SEED)
        total = 0
        for _ in range(20):
            payload = dice.randbytes(dice.randrange(1, 200000))
            total += lines_in([payload])
            with socket.create_connection(counterd.address("tcp")) as connection:
                connection.sendall(payload)
        self.assert_conserved(counterd, total)

    def test_a_line_without_end_over_tcp_takes_no_memory(self):
        counterd = self.counterd()

        def resident_kb():
            return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{counterd.pid}/status").read_text())[1])

        before = resident_kb()
        with socket.create_connection(counterd.address("tcp")) as connection:
            for _ in range(320):
                connection.sendall(b"x" * 100_000)
            connection.sendall(b":1|c\nafter:1|c\n")
        status = self.assert_conserved(counterd, 2)
        self.assertEqual(status["rejected"]["too_long"], 1)
        self.assertEqual(self.redis.pending(), {"after": 1})
        self.assertLess(resident_kb() - before, 8000)

    def test_a_connection_reset_in_a_line_leaves_it_truncated(self):
        counterd = self.counterd()
        connection = socket.create_connection(counterd.address("tcp"))
        connection.sendall(b"whole:1|c\ncut:1|c")
        harness.wait_until(lambda: counterd.status()["received"]["lines"] >= 1, what="the first line")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()
        status = self.assert_conserved(counterd, 2)
        self.assertEqual(status["rejected"]["truncated"], 1)
        self.assertEqual(self.redis.pending(), {"whole": 1})

    def test_what_the_kernel_dropped_is_counted(self):
        """A small socket buffer and a counterd that does not read: sent = received + dropped, to the datagram."""
        counterd = self.counterd(listen={"udp": ["127.0.0.1:0"], "tcp": [], "http": "127.0.0.1:0",
                                         "buffer_bytes": 8192})
        counterd.signal(signal.SIGSTOP)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for n in range(500):
                sender.sendto(b"flood:1|c", counterd.address("udp"))
        counterd.signal(signal.SIGCONT)

        def all_accounted_for():
            status = counterd.status()
            return status if status["received"]["datagrams"] + status["kernel_dropped"] == 500 else None
        status = harness.wait_until(all_accounted_for, what=lambda: f"500 datagrams in {counterd.status()}")
        self.assertGreater(status["kernel_dropped"], 0)
        self.assertGreater(status["received"]["datagrams"], 0)
        counterd.settle(status["received"]["lines"])
        self.assertEqual(self.redis.pending(), {"flood": status["received"]["datagrams"]})
        counterd.wait_event("kernel_dropped")

    def test_http_junk(self):
        counterd = self.counterd()
        dice = random.Random(SEED)
        requests = [b"", b"\r\n\r\n", b"GET", b"GET / HTTP/9.9\r\n\r\n", b"GET " + b"/" * 100_000 + b" HTTP/1.1\r\n\r\n",
                    b"POST /v1/status HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", b"page.home:1|c\n",
                    b"GET /v1/status HTTP/1.1\r\n" + b"X: y\r\n" * 10_000 + b"\r\n", dice.randbytes(50_000)]
        for request in requests:
            with socket.create_connection(counterd.address("http")) as connection:
                with contextlib.suppress(ConnectionError):
                    connection.sendall(request)
        self.assertEqual(counterd.http("/nowhere")[0], 404)
        self.assertEqual(counterd.http("/healthz")[0], 200)
        self.assertEqual(counterd.status()["received"]["lines"], 0)

    def test_keys_max_overflows_into_one_key_and_totals_hold(self):
        self.migrate()
        counterd = self.counterd(keys_max=100, coalesce_ms=200)
        counterd.send_udp([f"key.{n}:2|c" for n in range(1000)])
        status = counterd.settle(1000)
        self.assertEqual(status["accepted"], 1000)
        self.flush()
        counters = self.counters()
        self.assertEqual(sum(counters.values()), 2000)
        self.assertGreater(counters["counterd.overflow"], 0)
        self.assertEqual(counters["counterd.overflow"], 2 * status["table"]["overflow"])


if __name__ == "__main__":
    harness.main()
