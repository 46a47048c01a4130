#!/usr/bin/env python3
"""test_pipeline - lines in on every kind of socket, rows out, equal to what the test counted itself"""

import collections
import random
import socket
import sys
from fractions import Fraction
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness


class Pipeline(harness.Case):
    def setUp(self):
        super().setUp()
        self.migrate()

    def stored(self, counterd, lines):
        """The counters after `lines` lines have come and a flush has run."""
        counterd.settle(lines)
        self.flush()
        return self.counters()

    def test_a_line_becomes_a_row(self):
        counterd = self.counterd()
        counterd.send_udp(["page.home:1|c"])
        self.assertEqual(self.stored(counterd, 1), {"page.home": 1})
        [[first, last]] = self.query("select first_seen <= now(), last_seen >= first_seen from counterd.counters")
        self.assertEqual((first, last), ("t", "t"))

    def test_every_kind_of_socket(self):
        path = str(self.dir / "counterd.sock")
        second = "[::1]:0" if harness.has_ipv6() else "127.0.0.1:0"
        counterd = self.counterd(listen={"udp": ["127.0.0.1:0", second], "tcp": ["127.0.0.1:0"], "unix": [path],
                                         "http": "127.0.0.1:0"})
        counterd.send_udp(["udp4:1|c", "all:1|c"])
        counterd.send_udp(["udp6:2|c", "all:1|c"], index=1)
        counterd.send_unix(["unix:4|c", "all:1|c"])
        counterd.send_tcp(["tcp:3|c", "all:1|c"])
        self.assertEqual(self.stored(counterd, 8), {"udp4": 1, "udp6": 2, "tcp": 3, "unix": 4, "all": 4})

    def test_all_forms_of_a_line(self):
        counterd = self.counterd()
        lines = ["a:1|c", "a:2|c|@0.5", "a:3:4:5|c", "a:-2|c", "a:+1e2|c", "b:1|c|#env:prod,zone", "b:1|c|#zone,env:prod",
                 "b:1|c|#", "c:1|c|T1700000000|c:abc|e:x", "INCR d", "INCR d 5", "DECR d", "INCRBY d 10", "e:2|c\r",
                 "", "e:1|c", "ключ:7|c"]
        counterd.send_udp(lines)
        self.assertEqual(self.stored(counterd, len(lines) - 1),
                         {"a": 1 + 4 + 12 - 2 + 100, "b;env=prod;zone": 2, "b": 1, "c": 1, "d": 15, "e": 3, "ключ": 7})

    def test_a_key_that_was_seen_has_a_row_even_at_zero(self):
        counterd = self.counterd()
        counterd.send_udp(["zero:0|c", "back:5|c", "back:-5|c", "part:0.25|c"])
        self.assertEqual(self.stored(counterd, 4), {"zero": 0, "back": 0, "part": 0})

    def test_fractions_are_carried_over_batches_and_flushes(self):
        counterd = self.counterd(coalesce_ms=1)
        for n in range(1, 11):
            counterd.send_udp(["tenth:0.1|c", "third:1|c|@0.3", "back:-0.25|c"])
            counterd.settle(3 * n)
            if n % 4 == 0:
                self.flush()
        # 1/0.3 is rounded once to six places, per line; ten of them make 33.33333.
        self.assertEqual(self.stored(counterd, 30), {"tenth": 1, "third": 33, "back": -2})

    def test_big_values_are_exact(self):
        counterd = self.counterd(coalesce_ms=1)
        big = 9_000_000_000_000  # the most that one key may have pending in memory, so one line at a time
        for n in range(1, 31):
            counterd.send_udp([f"big:{big}|c", f"small:{-big}|c", "odd:8999999999999|c"])
            counterd.settle(3 * n)
            if n % 10 == 0:
                self.flush()
        counterd.send_udp(["big:1|c", "small:1|c"])
        self.assertEqual(self.stored(counterd, 92), {"big": 30 * big + 1, "small": -30 * big + 1,
                                                     "odd": 30 * (big - 1)})

    def test_a_score_never_leaves_what_a_double_holds_exactly(self):
        """Beyond 2^53 a batch waits for the next seal instead of being rounded."""
        counterd = self.counterd(coalesce_ms=1)
        big = 9_000_000_000_000
        fits = 2 ** 53 // big
        for n in range(1, fits + 1):
            counterd.send_tcp([f"big:{big}|c"])
            counterd.settle(n)
        counterd.send_tcp([f"big:{big}|c"])
        counterd.wait_event("append_refused")
        self.assertEqual(counterd.status()["pending"], 1)
        self.flush()
        self.assertEqual(self.stored(counterd, fits + 1), {"big": (fits + 1) * big})

    def test_tcp_last_line_without_lf_and_lines_cut_anywhere(self):
        counterd = self.counterd()
        stream = b"x:1|c\ny:2|c\r\n\nx:3|c"
        for cut in range(1, len(stream)):
            with socket.create_connection(counterd.address("tcp")) as connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.sendall(stream[:cut])
                connection.sendall(stream[cut:])
        times = len(stream) - 1
        self.assertEqual(self.stored(counterd, 3 * times), {"x": 4 * times, "y": 2 * times})

    def test_many_connections_at_once(self):
        counterd = self.counterd(workers=2)
        connections = [socket.create_connection(counterd.address("tcp")) for _ in range(50)]
        for round_ in range(20):
            for n, connection in enumerate(connections):
                connection.sendall(f"conn.{n}:1|c\nround.{round_}:1|c\n".encode())
        for connection in connections:
            connection.close()
        self.assertEqual(self.stored(counterd, 2000), {**{f"conn.{n}": 20 for n in range(50)},
                                                       **{f"round.{n}": 50 for n in range(20)}})

    def test_several_workers_and_several_sockets_share_the_work(self):
        path = str(self.dir / "counterd.sock")
        counterd = self.counterd(workers=3, listen={"udp": ["127.0.0.1:0", "127.0.0.1:0"], "tcp": ["127.0.0.1:0"],
                                                    "unix": [path], "http": "127.0.0.1:0"})
        dice = random.Random(1)
        count = collections.Counter()
        for n in range(12):  # a fresh source port each time, so that the kernel deals to all workers
            keys = [f"key.{int(dice.paretovariate(0.7)) % 500}" for _ in range(400)]
            count.update(keys)
            lines = [f"{key}:1|c" for key in keys]
            (counterd.send_udp if n % 3 else counterd.send_unix)(lines)
            counterd.send_tcp(lines[:100])
            count.update(keys[:100])
        self.assertEqual(self.stored(counterd, count.total()), dict(count))

    def test_redis_over_tcp_with_user_and_database_and_postgres_by_uri(self):
        port = harness.free_port()
        redis = self.track(harness.Redis(self.dir, "redis_tcp", tcp_port=port)).start()
        redis.call("ACL", "SETUSER", "counter", "on", ">p@ss:word", "~{shop*", "+@all")
        self.config["namespace"] = "shop"
        self.config["redis"] = {"url": f"redis://counter:p%40ss%3Aword@127.0.0.1:{port}/3"}
        self.config["postgres"] = {"url": f"postgresql://postgres@/{self.database}?host={self.postgres.directory}"}
        counterd = self.counterd()
        counterd.send_udp(["a:1|c"])
        self.assertEqual(self.stored(counterd, 1), {"a": 1})
        self.assertEqual(self.query("select namespace from counterd.ledger"), [["shop"]])
        redis.call("SELECT", "3")
        self.assertEqual({key.split(b":")[0] for key in redis.call("KEYS", "*")} - {b"{shop}"}, {b"{shop"})

    def test_two_namespaces_in_one_redis_and_one_database(self):
        first, second = self.counterd("first"), self.counterd("second", namespace="other")
        first.send_udp(["a:1|c"])
        second.send_udp(["a:10|c"])
        first.settle(1)
        second.settle(1)
        self.flush()
        self.assertEqual(self.counters(), {"a": 1})
        self.flush(config=self.write_config("other.json", namespace="other"))
        self.assertEqual(self.counters(), {"a": 11})

    def test_two_daemons_count_into_one_namespace(self):
        both = [self.counterd(name) for name in ("first", "second")]
        for counterd in both:
            counterd.send_udp([f"key.{n % 10}:1|c" for n in range(1000)])
        for counterd in both:
            counterd.settle(1000)
        self.flush()
        self.assertEqual(self.counters(), {f"key.{n}": 200 for n in range(10)})

    def test_a_random_mix_equals_an_independent_count(self):
        counterd = self.counterd(coalesce_ms=5)
        dice = random.Random(20)
        exact, lines = collections.defaultdict(Fraction), []
        for _ in range(20000):
            key = f"k{int(dice.expovariate(0.01))}"
            text = dice.choice(["1", "1", "1", "2", "-1", "0.5", "-0.125", "1e3", "12.345678", "0"])
            rate = dice.choice([None, None, "0.5", "0.1", "0.25"])
            exact[key] += Fraction(text) / Fraction(rate or 1)
            lines.append(f"{key}:{text}|c" + (f"|@{rate}" if rate else ""))
        for at in range(0, len(lines), 5000):
            counterd.send_udp(lines[at:at + 5000])
            self.flush()
        # Whole units are stored, what is left of them is carried: towards zero from where the count stands.
        got = self.stored(counterd, len(lines))
        for key, value in exact.items():
            self.assertLess(abs(value - got.get(key, 0)), 1, f"{key}: {value} against {got.get(key)}")
            if value.denominator == 1:
                self.assertEqual(got.get(key, 0), value, key)
        self.assertEqual(set(got) - set(exact), set())

    def test_a_port_alone_is_every_address(self):
        counterd = self.counterd(workers=2, listen={"udp": [":0"], "tcp": [":0"], "http": ":0"})
        udp, tcp = counterd.address("udp")[1], counterd.address("tcp")[1]
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            counterd.send_datagrams((host, udp), [b"udp:1|c"] * 50, family)
            with socket.create_connection((host, tcp), harness.DEADLINE_S) as connection:
                connection.sendall(b"tcp:1|c\n")
        self.assertEqual(self.stored(counterd, 102), {"udp": 100, "tcp": 2})
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for n in range(100):
                sender.sendto(b"last:1|c", ("127.0.0.1", udp))
        self.assertEqual(counterd.stop(), 0, counterd.tail())
        self.assertEqual(self.redis.pending(), {"last": 100})


class Upgrade(harness.Case):
    """While programs of two versions work on one namespace."""

    def append_before(self, shard, writer, seq, *members, token=None):
        """What a counterd of an earlier version sends."""
        script = Path(__file__).with_name("append_before.lua").read_text()
        keys = harness.shard_keys(shard) + ([f"{{counterd:{shard}}}:token:{token}"] if token else [])
        mark = ["digest", 3600] if token else []
        return self.redis.call("EVAL", script, len(keys), *keys, writer, seq, 0, len(members) // 2, *mark, *members)

    def test_scripts_of_two_versions_side_by_side(self):
        """Each program calls its own, by the digest of its text. What one has stored, the other knows."""
        self.config["shards"] = 1
        self.migrate()
        counterd = self.counterd()
        for n in range(1, 6):
            counterd.send_udp(["both:1|c", "new:1|c"] * 50)
            counterd.settle(100 * n)
            self.assertEqual(self.append_before(0, "before", n, "both", 7, "old", 1)[0], b"OK")
            self.assertEqual(self.redis.script("append", 0, "before", n, 0, 2, "both", 7, "old", 1)[0], b"DUP")
            self.assertEqual(self.redis.script("append", 0, "before", n + 2, 0, 1, "old", 1), [b"GAP", str(n).encode()])
            self.assertEqual(self.append_before(0, f"once:{n:032}", 1, "both", 100, token=n)[0], b"OK")
            self.assertEqual(self.append_before(0, f"once:{n:032}", 1, "both", 100, token=n)[0], b"DUP")
            if n % 2:
                self.flush()
        self.flush()
        self.assertEqual(self.counters(), {"both": 250 + 35 + 500, "new": 250, "old": 5})
        self.assertIn("verdict=balanced", self.flusher("audit").out)


if __name__ == "__main__":
    harness.main()
