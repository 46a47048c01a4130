#!/usr/bin/env python3
"""test_lost_replies - done, and the answer got lost: the sender can't know, asks again, and nothing is doubled

A proxy passes a request on and closes the connection, or stays silent, when the answer comes.
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


class LostReplies(harness.Case):
    def setUp(self):
        super().setUp()
        self.proxy = harness.Proxy(self.dir / "proxy.sock", self.redis.path)
        self.addCleanup(self.proxy.close)
        self.through_proxy = {"url": f"unix://{self.proxy.path}?db=0", "timeout_ms": 300}

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
        counterd = self.counterd(redis=self.through_proxy)
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
            self.proxy.cut((lambda request: b"ZRANGE" in request) if script == "read" else is_script(script))
            done = self.flush(config=config, code=None)
            self.assertIn(done.code, (harness.EXIT_OK, harness.EXIT_UNAVAILABLE, harness.EXIT_TEMPFAIL), done)
            self.assertEqual(self.proxy.cuts_left, 0, f"no {script} was seen")
        self.flush(config=config)
        self.assertEqual(self.counters(), {f"key.{key}": 9 for key in range(30)})
        self.assertEqual(self.redis.pending(), {})

    def test_commit_whose_answer_never_came(self):
        self.migrate()
        directory = self.dir / "pg"
        directory.mkdir()
        proxy = harness.Proxy(directory / ".s.PGSQL.5432", self.postgres.directory / ".s.PGSQL.5432")
        self.addCleanup(proxy.close)
        counterd = self.counterd(shards=1)
        config = self.write_config("f.json", shards=1, postgres={
            "url": self.postgres.url(self.database, directory=directory)})
        for n in range(1, 6):
            counterd.send_udp([f"key.{key}:1|c" for key in range(30)])
            counterd.settle(30 * n)
            proxy.cut(lambda request: b"commit" in request.lower())
            done = self.flush(config=config, code=None)
            self.assertIn(done.code, (harness.EXIT_OK, harness.EXIT_UNAVAILABLE, harness.EXIT_TEMPFAIL), done)
            self.assertEqual(proxy.cuts_left, 0, "no COMMIT was seen")
        self.flush(config=config)
        self.assertEqual(self.counters(), {f"key.{key}": 5 for key in range(30)})


if __name__ == "__main__":
    harness.main()
