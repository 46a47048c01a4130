#!/usr/bin/env python3
"""test_every_step - every step of the protocol, interfered with: its answer lost, its client killed before or after it, or
another client faster

A proxy between the program and its server catches the step and does it.
"""

import hashlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness


def script_sha(name):
    """What EVALSHA takes, as in the requests: the hash of the script's text as the build embeds it."""
    return hashlib.sha1((harness.ROOT / "lib" / "scripts" / f"{name}.lua").read_bytes()).hexdigest().encode()


def is_script(name):
    sha, head = script_sha(name), f"-- {name}:".encode()
    return lambda request: sha in request or head in request


def is_step(name):
    """Of the flusher, at Redis. Pages are not read by a script."""
    return is_script(name) if name != "read" else lambda request: b"ZRANGE" in request


def is_sql(text):
    return lambda request: text.encode() in request.lower()


class EveryStep(harness.Case):
    def setUp(self):
        super().setUp()
        self.proxy, self.through_proxy = self.proxied_redis()

    def send_rounds(self, counterd, rounds, **cut):
        for n in range(1, rounds + 1):
            if cut:
                self.proxy.cut(is_script("append"), **cut)
            counterd.send_udp([f"key.{key}:1|c" for key in range(30)])
            counterd.settle(30 * n)

    def test_append_resent_after_a_cut_connection(self):
        counterd = self.counterd(redis=self.through_proxy)
        self.send_rounds(counterd, 10, times=2)
        self.assertGreaterEqual(len(self.proxy.lost_replies), 10)
        self.assertTrue(any(b"OK" in reply for reply in self.proxy.lost_replies), "no append was done and unanswered")
        self.assertEqual(self.redis.pending(), {f"key.{key}": 10 for key in range(30)})
        self.assertEqual(self.redis.accepted(), 300)
        self.assertEqual(counterd.status()["appended"]["increments"], 300)

    def test_append_resent_after_silence(self):
        counterd = self.counterd(redis={**self.through_proxy, "timeout_ms": 300})
        self.send_rounds(counterd, 3, swallow=True)
        self.assertEqual(self.redis.pending(), {f"key.{key}": 3 for key in range(30)})
        self.assertEqual(self.redis.accepted(), 90)

    def test_resend_is_the_same_writer_and_seq(self):
        counterd = self.counterd(redis=self.through_proxy, shards=1)
        self.send_rounds(counterd, 5, times=1)
        writers = self.redis.call("HGETALL", "{counterd:0}:writers")
        self.assertEqual(len(writers), 2, "one worker, one writer, however often it had to reconnect")
        self.assertEqual(int(writers[1]), counterd.status()["appended"]["batches"])

    def test_flusher_steps_cut_one_after_the_other(self):
        """The answer to seal, to a page, to release gets lost: the run fails or carries on, the next one mends it."""
        self.migrate()
        counterd = self.counterd()
        config = self.write_config("f.json", redis=self.through_proxy)
        for n, script in enumerate(("seal", "read", "release") * 3, 1):
            counterd.send_udp([f"key.{key}:1|c" for key in range(30)])
            counterd.settle(30 * n)
            self.proxy.cut(is_step(script))
            done = self.flush(config=config, code=None)
            self.assertIn(done.code, (harness.EXIT_OK, harness.EXIT_UNAVAILABLE, harness.EXIT_TEMPFAIL), done)
            self.assertEqual(self.proxy.times, 0, f"no {script} was seen")
        self.flush(config=config)
        self.assertEqual(self.counters(), {f"key.{key}": 9 for key in range(30)})
        self.assertEqual(self.redis.pending(), {})

    def test_commit_whose_answer_never_came(self):
        self.migrate()
        proxy, through = self.proxied_postgres()
        config = self.write_config("through_proxy.json", postgres=through, shards=1)
        counterd = self.counterd(shards=1)
        for n in range(1, 6):
            counterd.send_udp([f"key.{key}:1|c" for key in range(30)])
            counterd.settle(30 * n)
            proxy.cut(is_sql("commit\0"))
            done = self.flush(config=config, code=None)
            self.assertIn(done.code, (harness.EXIT_OK, harness.EXIT_UNAVAILABLE, harness.EXIT_TEMPFAIL), done)
            self.assertEqual(proxy.times, 0, "no COMMIT was seen")
        self.flush(config=config)
        self.assertEqual(self.counters(), {f"key.{key}": 5 for key in range(30)})

    def test_flusher_killed_at_every_step(self):
        """kill -9 right before and right after each request; the next run finds a whole world, and the sum is exact."""
        self.migrate()
        counterd = self.counterd(shards=2)
        postgres, through = self.proxied_postgres()
        through_postgres = self.write_config("through_postgres.json", postgres=through, shards=2)
        redis = self.proxy, self.write_config("through_redis.json", shards=2, redis=self.through_proxy)
        steps = [(*redis, is_step(script)) for script in ("seal", "read", "release")]
        steps += [(postgres, through_postgres, is_sql(sql)) for sql in (
            "begin", "for update", "insert into counterd.ledger", "insert into counterd.writers",
            "insert into counterd.counters", "commit\0")]
        rounds = 0
        for proxy, config, when in steps:
            for before in (True, False):
                rounds += 1
                counterd.send_udp([f"key.{key}:1|c" for key in range(30)])
                counterd.settle(30 * rounds)
                self.flusher_killed(proxy, when, before, config, "run")
                self.flusher("run", config=self.write_config("direct.json", shards=2))
                self.assertEqual(self.counters(), {f"key.{key}": rounds for key in range(30)})
                self.assertEqual(self.redis.pending(), {})

    def test_flusher_overtaken_at_every_step(self):
        """Another run does all the work while this one waits right before or after a request to Redis, or to Postgres as long
        as it has locked nothing there."""
        self.migrate()
        counterd = self.counterd(shards=2)
        postgres, through = self.proxied_postgres()
        through_postgres = self.write_config("through_postgres.json", postgres=through, shards=2)
        through_redis = self.write_config("through_redis.json", shards=2, redis=self.through_proxy)
        direct = self.write_config("direct.json", shards=2)
        rounds = 0

        def overtake():
            self.program(harness.FLUSHER, "-c", direct, "run")
            # And new increments come in the meantime, which the slow one must not take for those it holds.
            nonlocal rounds
            rounds += 1
            counterd.send_udp([f"key.{key}:1|c" for key in range(30)])
            counterd.settle(30 * rounds)

        steps = [(self.proxy, through_redis, is_step(script), before)
                 for script in ("seal", "read", "release") for before in (True, False)]
        steps += [(postgres, through_postgres, is_sql(sql), before)
                  for sql, before in (("begin", True), ("begin", False), ("for update", True), ("commit\0", False))]
        for step, (proxy, config, when, before) in enumerate(steps):
            rounds += 1
            counterd.send_udp([f"key.{key}:1|c" for key in range(30)])
            counterd.settle(30 * rounds)
            proxy.hold(when, overtake, before)
            overtaken = self.flusher("run", config=config, code=None)
            self.assertIn(overtaken.code, (harness.EXIT_OK, harness.EXIT_TEMPFAIL), overtaken)
            self.assertEqual(proxy.times, 0, f"step {step} was not seen")
            self.flusher("run", config=direct)
            self.assertEqual(self.counters(), {f"key.{key}": rounds for key in range(30)})
            self.assertEqual(self.redis.pending(), {})

    def test_the_row_that_redis_goes_by_is_not_pruned(self):
        """A slow run ends, and clears old rows, when another has just committed and was killed before it could release."""
        self.migrate()
        counterd = self.counterd(shards=1)
        proxy, postgres = self.proxied_postgres()
        config = self.write_config("through_postgres.json", shards=1, postgres=postgres)
        direct = self.write_config("direct.json", shards=1)
        counterd.send_udp(["a:1|c"])
        counterd.settle(1)
        self.flush(config=direct)
        # As if that had been long ago.
        self.query("update counterd.ledger set gen = '00' || substr(gen, 3), applied_at = now() - interval '91 days';"
                   "update counterd.shards set head_gen = '00' || substr(head_gen, 3)")
        self.redis.call("HSET", "{counterd:0}:meta", "prev_gen", self.query("select gen from counterd.ledger")[0][0])
        self.flusher("run", config=direct)
        self.flusher("audit", config=direct)

        def commit_and_die():
            counterd.send_udp(["a:2|c"])
            counterd.settle(2)
            self.flusher_killed(proxy, is_sql("commit\0"), False, config, "run")

        proxy.hold(is_sql("as old order by shard"), commit_and_die, before=True)
        self.flusher("run", config=config)
        self.assertEqual(proxy.times, 0, "the step was not seen")
        self.flusher("audit", config=direct)
        self.assertEqual(self.counters(), {"a": 3})


if __name__ == "__main__":
    harness.main()
