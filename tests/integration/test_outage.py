#!/usr/bin/env python3
"""test_outage - bad days: a server missing, killed, restarted, locked, rolled back, or of another pipeline"""

import json
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness

BLAST = harness.BUILD / "tests" / "bench" / "blast"


class Redis(harness.Case):
    def test_missing_at_start_counterd_counts_says_so_and_stores_later(self):
        self.redis.stop()
        counterd = self.counterd(event="listening")
        harness.wait_until(lambda: counterd.events("listening", kind="http"), what="http")
        self.assertEqual(counterd.http("/healthz")[0], 200)
        code, reason = counterd.http("/readyz")
        self.assertEqual(code, 503)
        self.assertIn("edis", reason)
        counterd.send_udp(["early:1|c"] * 500)
        harness.wait_until(lambda: counterd.status()["pending"] == 500, what="500 pending")
        self.assertTrue([line for line in counterd.events() if line.get("level") in ("warn", "error")])
        self.redis.start()
        counterd.settle(500)
        self.assertEqual(self.redis.pending(), {"early": 500})
        harness.wait_until(lambda: counterd.http("/readyz")[0] == 200, what="ready")

    def test_killed_and_restarted_under_traffic(self):
        """Nothing lost, nothing doubled, whatever the kill cut short: Redis keeps what it acknowledged."""
        counterd = self.counterd(coalesce_ms=1)
        sent = 0
        for round_ in range(6):
            for part in range(10):
                counterd.send_udp([f"key.{n}:1|c" for n in range(40)])
                sent += 40
                if part == 3:
                    self.redis.kill()
                elif part == 6:
                    self.redis.start()
        counterd.settle(sent)
        self.assertEqual(self.redis.pending(), {f"key.{n}": sent // 40 for n in range(40)})
        self.assertEqual(self.redis.accepted(), sent)

    def test_stopped_process_is_a_timeout_not_a_loss(self):
        """SIGSTOP: connected, and no answer. The batch is sent again when the answer is late."""
        counterd = self.counterd(redis={"url": self.redis.url, "timeout_ms": 100})
        counterd.send_udp(["slow:1|c"])
        counterd.settle(1)
        self.redis.signal(signal.SIGSTOP)
        counterd.send_udp(["slow:1|c"] * 100)
        harness.wait_until(lambda: counterd.http("/readyz")[0] == 503, what="not ready")
        self.redis.signal(signal.SIGCONT)
        counterd.settle(101)
        self.assertEqual(self.redis.pending(), {"slow": 101})

    def test_clients_that_never_leave_do_not_keep_redis_out(self):
        """They come until there is no file descriptor left for more, and Redis has to be connected to again."""
        counterd = self.ready()
        _, most = resource.prlimit(counterd.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(counterd.pid, resource.RLIMIT_NOFILE, (60, most))
        streams = [socket.create_connection(counterd.address("tcp")) for _ in range(80)]
        for stream in streams:
            self.addCleanup(stream.close)
        harness.wait_until(lambda: counterd.status()["received"]["connections_refused"] > 0, what="too many clients")
        streams[0].sendall(b"a:1|c\n")
        counterd.settle(1)
        self.redis.kill()
        counterd.wait_event("redis_lost")
        streams[0].sendall(b"a:1|c\n")
        self.redis.start()
        counterd.settle(2)
        self.assertEqual(self.redis.pending(), {"a": 2})

    def test_rolled_back_and_the_daemon_replays(self):
        """Redis comes back with an older state (a backup, a replica that lagged): with the next batch of a shard
        counterd learns of it, and what Redis forgot comes out of the history."""
        counterd = self.counterd()
        counterd.send_udp([f"key.{n}:1|c" for n in range(100)])
        counterd.settle(100)
        backup = self.redis.backup()
        counterd.send_udp([f"key.{n}:1|c" for n in range(150)])
        counterd.settle(250)
        self.redis.roll_back(backup)
        counterd.send_udp([f"key.{n}:1|c" for n in range(150)])
        expected = {f"key.{n}": 3 if n < 100 else 2 for n in range(150)}
        harness.wait_until(lambda: self.redis.pending() == expected, what=lambda: f"replay\n{counterd.tail()}")
        self.assertEqual(self.redis.accepted(), 400)
        self.assertEqual(counterd.status()["redis"]["increments_lost"], 0)

    def test_rolled_back_and_nothing_comes_any_more(self):
        """No traffic that would show it: counterd asks when it is connected again."""
        counterd = self.counterd()
        counterd.send_udp([f"key.{n}:1|c" for n in range(100)])
        counterd.settle(100)
        backup = self.redis.backup()
        counterd.send_udp([f"key.{n}:1|c" for n in range(150)])
        counterd.settle(250)
        self.redis.roll_back(backup)
        expected = {f"key.{n}": 2 if n < 100 else 1 for n in range(150)}
        harness.wait_until(lambda: self.redis.pending() == expected, what=lambda: f"replay\n{counterd.tail()}")
        self.assertEqual(self.redis.accepted(), 250)

    def test_rolled_back_to_what_postgres_has(self):
        """The old state holds only what has been flushed since: the vector in Postgres tells, and nothing is doubled."""
        self.migrate()
        counterd = self.counterd()
        counterd.send_udp([f"key.{n}:1|c" for n in range(100)])
        counterd.settle(100)
        backup = self.redis.backup()
        self.flush()
        self.redis.roll_back(backup)
        self.flush()
        self.assertEqual(self.counters(), {f"key.{n}": 1 for n in range(100)})
        counterd.send_udp([f"key.{n}:1|c" for n in range(100)])
        counterd.settle(200)
        self.flush()
        self.assertEqual(self.counters(), {f"key.{n}": 2 for n in range(100)})

    def test_rolled_back_and_mixed_with_new_is_not_applied_blindly(self):
        """Old batches that Postgres has, in one generation with new ones that it lacks: into quarantine, told, and what
        was new comes out of the history of the daemon."""
        self.migrate()
        counterd = self.counterd(shards=1)
        config = self.write_config("f.json", shards=1)
        counterd.send_udp(["a:1|c"])
        counterd.settle(1)
        backup = self.redis.backup()
        self.flush(config=config)
        self.redis.roll_back(backup)
        counterd.send_udp(["a:10|c"])
        counterd.settle(2)
        done = self.flush(config=config, code=harness.EXIT_TEMPFAIL)
        self.assertIn("went back in time", done.err)
        self.assertEqual(self.counters(), {"a": 1})
        self.assertEqual(self.query("select members, deltas, part from counterd.quarantine"), [["{a}", "{11}", "sealed"]])
        counterd.send_udp(["a:100|c"])
        harness.wait_until(lambda: self.redis.pending() == {"a": 110}, what=lambda: f"replay\n{counterd.tail()}")
        self.flush(config=config)
        self.assertEqual(self.counters(), {"a": 111})
        self.assertEqual(self.redis.accepted(), 111)

    def test_emptied_under_the_daemon(self):
        """FLUSHALL on the wrong machine. Nothing had been flushed, so the history still has it all."""
        counterd = self.counterd()
        counterd.send_udp([f"key.{n}:1|c" for n in range(100)])
        counterd.settle(100)
        self.redis.call("FLUSHALL")
        counterd.send_udp([f"key.{n}:1|c" for n in range(100)])
        counterd.settle(200)
        expected = {f"key.{n}": 2 for n in range(100)}
        harness.wait_until(lambda: self.redis.pending() == expected, what=lambda: f"replay\n{counterd.tail()}")

    def test_wrong_password(self):
        """Redis will never take what is counted, so counterd does not start; it says which setting is wrong."""
        locked = self.track(harness.Redis(self.dir, "locked", password="right")).start()
        password = self.dir / "password"
        password.write_text("wr0ng\n")
        self.migrate()
        for redis in ({"url": locked.url}, {"url": locked.url, "password_file": str(password)},
                      {"url": f"unix://:wr0ng@{locked.path}?db=0"}):
            with self.subTest(redis=redis):
                config = self.write_config("locked.json", redis=redis)
                for done in (self.refused_start(config), self.flush(config=config, code=None)):
                    self.assertEqual(done.code, harness.EXIT_CONFIG, done)
                    self.assertRegex(done.err, "NOAUTH|WRONGPASS")
                    self.assertIn("redis.password_file", done.err)
                    self.assertNotIn("wr0ng", done.err)
        password.write_text("right\n")
        for n, redis in enumerate(({"url": locked.url, "password_file": str(password)},
                                   {"url": f"unix://:right@{locked.path}?db=0"}), 1):
            counterd = self.counterd(f"counterd{n}", redis=redis)
            counterd.send_udp(["let.in:1|c"])
            counterd.settle(1)
            self.flush(config=self.write_config("f.json", redis=redis))
            self.assertEqual(self.counters(), {"let.in": n})

    def test_password_changed_under_a_running_counterd(self):
        """Not a reason to stop counting: it says so, keeps all in memory, and stores when it is let in again."""
        counterd = self.counterd()
        counterd.send_udp(["a:1|c"])
        counterd.settle(1)
        self.redis.call("CONFIG", "SET", "requirepass", "new")
        self.redis.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        counterd.wait_event("redis_misfit")
        harness.wait_until(lambda: counterd.http("/readyz")[0] == 503, what="not ready")
        counterd.send_udp(["a:1|c"] * 10)
        self.redis.call("CONFIG", "SET", "requirepass", "")
        counterd.settle(11)
        self.assertEqual(self.redis.pending(), {"a": 11})

    def test_another_number_of_shards_refuses_to_start(self):
        self.migrate()
        self.counterd("first").stop()
        second = self.refused_start(self.write_config(shards=16))
        self.assertEqual(second.code, harness.EXIT_CONFIG, second)
        self.assertRegex(second.err, r"\b8\b")
        self.assertRegex(second.err, r"\b16\b")
        flush = self.flush(config=self.write_config("f.json", shards=16), code=harness.EXIT_CONFIG)
        self.assertRegex(flush.err, r"\b8\b.*\b16\b|\b16\b.*\b8\b")

    def test_postgres_remembers_the_shards_when_redis_forgot(self):
        self.migrate()
        counterd = self.counterd()
        counterd.send_udp(["a:1|c"])
        counterd.settle(1)
        self.flush()
        counterd.stop()
        self.redis.call("FLUSHALL")
        done = self.flush(config=self.write_config("f.json", shards=16), code=harness.EXIT_CONFIG)
        self.assertRegex(done.err, r"\b8\b.*\b16\b|\b16\b.*\b8\b")

    def test_flusher_without_redis(self):
        self.migrate()
        self.redis.stop()
        done = self.flush(code=harness.EXIT_UNAVAILABLE)
        self.assertIn("edis", done.err)


class Shutdown(harness.Case):
    def test_sigterm_stores_all_that_was_sent(self):
        """Also what still waits in the socket buffer: the datagrams are sent while counterd is stopped in its tracks."""
        counterd = self.counterd(coalesce_ms=60000)
        counterd.send_udp(["in.memory:1|c"] * 1000)
        counterd.signal(signal.SIGSTOP)
        host, port = counterd.address("udp")
        subprocess.run(["bash", "-c", f"for n in {{1..50}}; do echo 'in.buffer:1|c' >/dev/udp/{host}/{port}; done"],
                       check=True)
        counterd.signal(signal.SIGTERM)
        counterd.signal(signal.SIGCONT)
        self.assertEqual(counterd.wait(), 0, counterd.tail())
        self.assertEqual(self.redis.pending(), {"in.memory": 1000, "in.buffer": 50})

    def test_sigterm_under_full_udp_load(self):
        """Every datagram is stored, or dropped by the kernel and counted, or refused, which its sender is told."""
        for workers in (1, 2):
            with self.subTest(workers=workers):
                self.redis.call("FLUSHALL")
                counterd = self.counterd(f"workers{workers}", workers=workers)
                _, port = counterd.address("udp")
                with subprocess.Popen([BLAST, str(port), "-s", str(harness.DEADLINE_S), "-k", "1000"],
                                      stdout=subprocess.PIPE, text=True) as blast:
                    harness.wait_until(lambda: counterd.status()["received"]["datagrams"] > 50000, what="full load")
                    self.assertEqual(counterd.stop(), 0, counterd.tail())
                    blast.terminate()  # which ends it after one more batch
                    said = json.loads(blast.stdout.read())
                [stopped] = counterd.events("stopped")
                stored = sum(int(self.redis.call("HGET", key, "events")) for key in self.redis.call("KEYS", "*:meta"))
                self.assertEqual(stored, int(stopped["accepted"]))
                self.assertGreater(said["refused"], 0)
                self.assertEqual(said["datagrams"], stored + int(stopped["kernel_dropped"]) + said["refused"],
                                 (said, stopped))

    def test_sigterm_under_tcp_traffic_stores_what_was_read(self):
        counterd = self.counterd(coalesce_ms=60000)
        counterd.send_tcp(["a:1|c"] * 2000)
        harness.wait_until(lambda: counterd.status()["received"]["lines"] == 2000, what="2000 lines")
        self.assertEqual(counterd.stop(), 0)
        self.assertEqual(self.redis.pending(), {"a": 2000})

    def test_sigterm_while_clients_never_stop_sending(self):
        """Whoever sends as fast as it is read does not keep it here, and what was read is stored."""
        counterd = self.counterd(redis={"url": self.redis.url, "timeout_ms": 3000})
        host, port = counterd.address("tcp")
        # Long lines: what is read of each at the end is so many bytes.
        flood = (f"import socket\ns = socket.create_connection(('{host}', {port}))\n"
                 "while True: s.sendall((b'a' * 250 + b':1|c\\n') * 1000)")
        floods = [self.track(harness.Process(f"flood{n}", self.dir, [sys.executable, "-c", flood])).spawn()
                  for n in range(6)]
        harness.wait_until(lambda: counterd.status()["received"]["lines"] > 10**5, what="a flood")
        self.assertEqual(counterd.stop(), 0, counterd.tail())
        for process in floods:
            process.wait()
        [stopped] = counterd.events("stopped")
        self.assertEqual(stopped["appended"], stopped["accepted"])

    def test_sigterm_without_redis_exits_75_and_says_how_much(self):
        counterd = self.counterd(redis={"url": self.redis.url, "timeout_ms": 200})
        self.redis.kill()
        counterd.send_udp(["gone:1|c"] * 321)
        harness.wait_until(lambda: counterd.status()["received"]["lines"] == 321, what="321 lines")
        self.assertEqual(counterd.stop(), harness.EXIT_TEMPFAIL, counterd.tail())
        self.assertIn("321", counterd.log().splitlines()[-1] + counterd.log().splitlines()[-2])

    def test_fractions_that_make_no_whole_are_told_at_the_end(self):
        counterd = self.counterd()
        counterd.send_udp(["a:1.25|c", "b:0.5|c"])
        counterd.settle(2)
        self.assertEqual(counterd.stop(), harness.EXIT_TEMPFAIL)
        self.assertEqual([(line["keys"], line["sum"]) for line in counterd.events("fractions_dropped")],
                         [("2", "0.750000")])
        self.assertEqual(self.redis.pending(), {"a": 1, "b": 0})

    def test_kill_9_again_and_again_never_doubles(self):
        """What was acknowledged is there once; what was not may be lost with the process, and never comes twice."""
        acknowledged = sent = 0
        for n in range(8):
            counterd = self.counterd(f"counterd{n}", coalesce_ms=1 + n)
            counterd.send_udp([f"key.{key}:1|c" for key in range(200)] * (n + 1))
            acknowledged += counterd.status()["appended"]["increments"]
            sent += 200 * (n + 1)
            counterd.kill()
            self.assertGreaterEqual(self.redis.accepted(), acknowledged)
            self.assertLessEqual(self.redis.accepted(), sent)
            self.assertEqual(sum(self.redis.pending().values()), self.redis.accepted())

    def test_sigint_is_the_same(self):
        counterd = self.counterd(coalesce_ms=60000)
        counterd.send_udp(["a:1|c"])
        counterd.signal(signal.SIGINT)
        self.assertEqual(counterd.wait(), 0)
        self.assertEqual(self.redis.pending(), {"a": 1})

    def test_kill_9_loses_no_more_than_was_unacknowledged(self):
        counterd = self.counterd()
        counterd.send_udp(["a:1|c"] * 100)
        counterd.settle(100)
        counterd.kill()
        again = self.counterd("again")
        again.send_udp(["a:1|c"] * 10)
        again.settle(10)
        self.assertEqual(self.redis.pending(), {"a": 110})


class Postgres(harness.Case):
    def test_schema_not_migrated(self):
        counterd = self.counterd()
        counterd.send_udp(["a:1|c"])
        counterd.settle(1)
        done = self.flush(code=harness.EXIT_CONFIG)
        self.assertIn("migrate", done.err)
        self.migrate()
        self.flush()
        self.assertEqual(self.counters(), {"a": 1})

    def test_migrate_twice_and_by_two_at_once(self):
        with subprocess.Popen([harness.FLUSHER, "-c", self.write_config(), "migrate"], stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL) as other:
            self.migrate()
        self.assertEqual(other.returncode, 0)
        self.migrate()

    def test_missing(self):
        self.migrate()
        counterd = self.counterd()
        counterd.send_udp(["a:1|c"])
        counterd.settle(1)
        self.postgres.stop()
        try:
            done = self.flush(code=harness.EXIT_UNAVAILABLE)
            self.assertIn("ostgres", done.err)
            counterd.send_udp(["a:1|c"])
            counterd.settle(2)
        finally:
            self.postgres.start()
        self.flush()
        self.assertEqual(self.counters(), {"a": 2})

    def test_gone_while_we_connect(self):
        """Back a moment later, so no matter of configuration."""
        self.migrate()
        proxy, through = self.proxied_postgres()
        proxy.cut(lambda request: True)
        config = self.write_config("f.json", postgres=through)
        self.assertIn("away", self.flush(config=config, code=harness.EXIT_UNAVAILABLE).err)
        self.flush(config=config)

    def test_no_such_database(self):
        config = self.write_config("f.json", postgres={"url": self.postgres.url("nonexistent")})
        done = self.flush(config=config, code=harness.EXIT_CONFIG)
        self.assertIn("nonexistent", done.err)

    def test_wrong_password(self):
        self.migrate()
        if not self.query("select 1 from pg_roles where rolname = 'locked'"):
            self.query(f"create role locked superuser login password '{self.postgres.LOCKED_PASSWORD}'")
        counterd = self.counterd()
        counterd.send_udp(["a:1|c"])
        counterd.settle(1)
        password = self.dir / "password"
        url = self.postgres.url(self.database, user="locked")
        config = self.write_config("f.json", postgres={"url": url, "password_file": str(password)})
        password.write_text("wr0ng\n")
        done = self.flush(config=config, code=harness.EXIT_CONFIG)
        self.assertIn("password authentication failed", done.err)
        self.assertNotIn("wr0ng", done.err)
        password.write_text(self.postgres.LOCKED_PASSWORD + "\n")
        self.flush(config=config)
        self.assertEqual(self.counters(), {"a": 1})

    def test_password_from_pgpassfile(self):
        self.migrate()
        if not self.query("select 1 from pg_roles where rolname = 'locked'"):
            self.query(f"create role locked superuser login password '{self.postgres.LOCKED_PASSWORD}'")
        passfile = self.dir / "pgpass"
        passfile.write_text(f"*:*:*:locked:{self.postgres.LOCKED_PASSWORD}\n")
        passfile.chmod(0o600)
        config = self.write_config("f.json", postgres={"url": self.postgres.url(self.database, user="locked")})
        self.flush(config=config, env={"PGPASSFILE": str(passfile)})


if __name__ == "__main__":
    harness.main()
