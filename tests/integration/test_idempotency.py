#!/usr/bin/env python3
"""test_idempotency - POST /v1/increments with an Idempotency-Key: applied once, however often it is sent"""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness
from test_rollback import RollbackCase

LINES = [f"key.{n}:{n}|c" for n in range(1, 41)]  # in all shards
SUMS = {f"key.{n}": n for n in range(1, 41)}


def post(counterd, key, lines=LINES):
    """(code, JSON); None when counterd ended before it answered."""
    connection = http.client.HTTPConnection(*counterd.address("http"), timeout=harness.DEADLINE_S)
    try:
        connection.request("POST", "/v1/increments", "\n".join(lines).encode(), {"Idempotency-Key": key})
        reply = connection.getresponse()
        return reply.status, json.loads(reply.read())
    except (ConnectionError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def told_to_stop():
    """For Popen's preexec_fn: the signal waits for whoever asks for it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    os.kill(os.getpid(), signal.SIGTERM)


def is_append(data):
    """Of a part of a request, not of a worker's batch."""
    return b"\r\nonce:" in data


class Idempotency(harness.Case):
    def proxied(self):
        self.proxy, self.through_proxy = self.proxied_redis()
        return self.ready(redis=self.through_proxy)

    def flushed(self):
        self.flush()
        self.assertIn("verdict=balanced", self.flusher("audit").out)
        return self.counters()

    def test_the_second_time_is_told_and_counts_nothing(self):
        self.migrate()
        counterd = self.ready()
        counts = {"accepted": 40, "rejected": 0, "rejects": []}
        self.assertEqual(post(counterd, "k"), (200, counts))
        for key in ("k", '"k"'):
            self.assertEqual(post(counterd, key), (200, counts | {"duplicate": True}))
        self.assertEqual(self.redis.pending(), SUMS)
        status = counterd.status()
        self.assertEqual((status["received"]["lines"], status["accepted"], status["appended"]["increments"],
                          status["idempotency"]), (40, 40, 40, {"duplicates": 2, "conflicts": 0}))
        self.assertEqual(self.flushed(), SUMS)
        self.assertEqual(post(counterd, "k"), (200, counts | {"duplicate": True}))
        self.assertEqual(post(counterd, "another"), (200, counts))
        self.assertEqual(self.flushed(), {key: 2 * value for key, value in SUMS.items()})

    def test_another_body_is_refused_whole(self):
        counterd = self.ready()
        self.assertEqual(post(counterd, "k")[0], 200)
        code, answer = post(counterd, "k", LINES + ["more:1|c"])
        self.assertEqual((code, "another body" in answer["error"]), (422, True))
        self.assertEqual(self.redis.pending(), SUMS)
        self.assertEqual(counterd.status()["idempotency"]["conflicts"], 1)

    def test_keys_that_are_none(self):
        counterd = self.ready()
        for key in ("", '""', "k" * 65, "two words", "\xe9", 'a"b', "a\tb"):
            self.assertEqual(post(counterd, key, ["a:1|c"])[0], 400, key)
        self.assertEqual(post(counterd, '"' + "k" * 64 + '"', ["a:1|c"])[0], 200)
        self.assertEqual(self.redis.pending(), {"a": 1})

    def test_what_does_not_fit(self):
        counterd = self.ready()
        code, answer = post(counterd, "k", ["a:1|c", "", "b:0.5|c"])
        self.assertEqual((code, answer["error"][:7]), (422, "line 3 "))
        code, answer = post(counterd, "k", [f"{n}:1|c" for n in range(10001)])
        self.assertEqual((code, "10000" in answer["error"]), (413, True))
        self.assertEqual(self.redis.pending(), {})
        code, answer = post(counterd, "k", [f"{n}:1|c" for n in range(10000)] + ["junk", "1:x|c"])
        self.assertEqual((code, answer["accepted"], answer["rejects"][0]["line"]), (200, 10000, 10001))
        status = counterd.status()
        self.assertEqual((status["received"]["lines"], status["accepted"], status["rejected"]["total"]),
                         (10002, 10000, 2))
        self.assertEqual(post(counterd, "empty", []), (200, {"accepted": 0, "rejected": 0, "rejects": []}))

    def test_a_key_alone_leaves_nothing_to_flush(self):
        """Neither an empty generation nor a set without its writers: only the marker."""
        self.migrate()
        counterd = self.ready(shards=1)
        config = self.write_config("one.json", shards=1)
        self.assertEqual(post(counterd, "k", ["junk"])[0], 200)
        self.assertEqual(post(counterd, "k", ["other junk"])[0], 422)
        self.assertEqual(sorted(self.redis.call("KEYS", "*")), [b"{counterd:0}:token:k", b"{counterd}:shards"])
        self.flush(config=config)
        self.assertEqual(self.query("select count(*) from counterd.ledger"), [["0"]])

    def test_many_at_once_with_the_same_key(self):
        self.migrate()
        first, second = self.ready("first"), self.ready("second")
        answers = []

        def client(counterd):
            for n in range(10):
                answers.append(post(counterd, f"k{n}"))

        clients = [threading.Thread(target=client, args=(counterd,)) for counterd in [first, second] * 8]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join()
        self.assertEqual({code for code, _ in answers}, {200})
        self.assertEqual(len(answers), 160)
        self.assertEqual(self.redis.pending(), {key: 10 * value for key, value in SUMS.items()})
        self.assertEqual(self.flushed(), {key: 10 * value for key, value in SUMS.items()})

    def test_lost_replies(self):
        """Of the home shard's part, and of all the others'. The client notices nothing."""
        counterd = self.proxied()
        for n in range(6):
            skip = iter(range(n % 2))
            self.proxy.cut(lambda data: is_append(data) and next(skip, None) is None)
            code, answer = post(counterd, f"k{n}")
            self.assertEqual((code, "duplicate" in answer), (200, False))
            self.assertEqual(self.redis.pending(), {key: (n + 1) * value for key, value in SUMS.items()})
        self.assertEqual(len(self.proxy.lost_replies), 6)
        status = counterd.status()
        self.assertEqual((status["accepted"], status["appended"]["increments"]), (240, 240))

    def test_redis_goes_back_between_shards(self):
        """It has not been answered yet, so all of it is in Redis when it is."""
        counterd = self.proxied()
        backup = self.redis.backup()
        skip, answers = iter(range(1)), []
        self.proxy.hold(lambda data: is_append(data) and next(skip, None) is None, lambda: self.redis.restore(backup),
                        before=True)
        client = threading.Thread(target=lambda: answers.append(post(counterd, "k")))
        client.start()
        self.proxy.wait_released()
        self.redis.start()
        client.join()
        self.assertEqual(answers, [(200, {"accepted": 40, "rejected": 0, "rejects": []})])
        self.assertEqual(self.redis.pending(), SUMS)
        status = counterd.status()
        self.assertEqual((status["received"]["lines"], status["appended"]["increments"]), (40, 40))

    def test_no_answer_in_time(self):
        counterd = self.ready(redis={"url": self.redis.url, "timeout_ms": 200})
        self.redis.signal(signal.SIGSTOP)
        code, answer = post(counterd, "k")
        self.assertEqual((code, "same key" in answer["error"]), (503, True))
        self.redis.signal(signal.SIGCONT)
        harness.wait_until(lambda: counterd.http("/readyz")[0] == 200, what="ready again")
        self.assertEqual(harness.wait_until(lambda: (post(counterd, "k") or [0])[0] == 200), True)
        self.assertEqual(self.redis.pending(), SUMS)

    def test_redis_away(self):
        counterd = self.ready()
        self.redis.stop()
        harness.wait_until(lambda: counterd.http("/readyz")[0] == 503, what="not ready")
        self.assertEqual(post(counterd, "k")[0], 503)
        self.redis.start()
        harness.wait_until(lambda: (post(counterd, "k") or [0])[0] == 200, what="taken")
        self.assertEqual(self.redis.pending(), SUMS)

    def test_not_ready_without_its_connection(self):
        """Requests with a key have a connection of their own; /readyz asks for it too."""
        counterd = self.ready()
        self.assertEqual(post(counterd, "k")[0], 200)
        clients = [dict(field.split("=", 1) for field in line.split())
                   for line in self.redis.call("CLIENT", "LIST").decode().splitlines()]
        own = [client["id"] for client in clients if client["cmd"].startswith("eval")]
        self.assertEqual((len(own), len(clients) > 2), (1, True), clients)
        [_, most] = self.redis.call("CONFIG", "GET", "maxclients")
        self.redis.call("CONFIG", "SET", "maxclients", 1)
        self.redis.call("CLIENT", "KILL", "ID", own[0])
        harness.wait_until(lambda: counterd.http("/readyz")[0] == 503, what="not ready")
        self.assertEqual(post(counterd, "l")[0], 503)
        self.redis.call("CONFIG", "SET", "maxclients", most)
        harness.wait_until(lambda: counterd.http("/readyz")[0] == 200, what="ready again")
        self.assertEqual(post(counterd, "l")[0], 200)

    def test_counterd_killed_between_shards(self):
        """After the home shard, and after any number of the others; what is missing the retry brings."""
        self.migrate()
        self.proxied().stop()
        for n in range(4):
            counterd = self.ready(f"dies{n}", redis=self.through_proxy)
            skip = iter(range(n // 2))
            self.proxy.hold(lambda data: is_append(data) and next(skip, None) is None, counterd.kill,
                            before=n % 2 == 1)
            self.assertIsNone(post(counterd, f"k{n}"))
            self.proxy.wait_released()
            counterd = self.ready(f"lives{n}")
            self.assertEqual(post(counterd, f"k{n}")[0], 200)
            self.assertEqual(self.redis.pending(), {key: (n + 1) * value for key, value in SUMS.items()})
        self.assertEqual(self.flushed(), {key: 4 * value for key, value in SUMS.items()})

    def test_redis_forgets_the_script(self):
        counterd = self.ready()
        for n in range(3):
            self.assertEqual(post(counterd, f"k{n}")[0], 200)
            self.redis.call("SCRIPT", "FLUSH")
        self.assertEqual(self.redis.pending(), {key: 3 * value for key, value in SUMS.items()})

    def test_a_score_at_its_limit(self):
        """Refused until there is room."""
        counterd = self.ready(shards=1)
        limit = 2**53 - 1
        self.assertEqual(post(counterd, "k", ["a:1|c"])[0], 200)
        self.redis.call("ZADD", "{counterd:0}:open", limit, "a")
        code, answer = post(counterd, "l", ["a:10|c"])
        self.assertEqual((code, "limit" in answer["error"], "same key" in answer["error"]), (503, True, True))
        self.assertEqual(self.redis.pending(), {"a": limit})
        self.redis.call("ZADD", "{counterd:0}:open", 1, "a")
        self.assertEqual(post(counterd, "l", ["a:10|c"]), (200, {"accepted": 1, "rejected": 0, "rejects": []}))
        self.assertEqual(self.redis.pending(), {"a": 11})

    def test_a_client_that_goes_away_stops_nothing(self):
        counterd = self.ready()
        self.redis.signal(signal.SIGSTOP)
        connection = http.client.HTTPConnection(*counterd.address("http"))
        connection.request("POST", "/v1/increments", "\n".join(LINES).encode(), {"Idempotency-Key": "k"})
        harness.wait_until(lambda: counterd.status()["received"]["bytes"] > 0, what="the request has come")
        connection.close()
        self.redis.signal(signal.SIGCONT)
        harness.wait_until(lambda: self.redis.pending() == SUMS, what="all of it is stored")
        self.assertIn("duplicate", post(counterd, "k")[1])

    def test_a_stop_finishes_what_is_under_way(self):
        counterd = self.proxied()
        stop = threading.Event()
        self.proxy.hold(is_append, lambda: (counterd.signal(signal.SIGTERM), counterd.wait_event("stopping"), stop.set()))
        self.assertEqual(post(counterd, "k")[0], 200)
        self.assertTrue(stop.is_set())
        self.assertEqual(counterd.wait(), harness.EXIT_OK)
        self.assertEqual(self.redis.pending(), SUMS)


class Vector(RollbackCase):
    """What Postgres keeps of a key, in one shard: what for, how long, at what size."""

    def setUp(self):
        super().setUp()
        self.config["shards"] = 1

    def rows(self):
        return int(self.query("select count(*) from counterd.writers where starts_with(writer, 'once:')")[0][0])

    def roll_back_under(self, counterd, backup):
        lost = len(counterd.events("redis_lost"))
        self.roll_back(backup)
        counterd.wait_event("redis_lost", lost + 1)
        harness.wait_until(lambda: counterd.http("/readyz")[0] == 200, what="ready again")

    def post(self, counterd, key, lines):
        """Redis may be away for a moment still."""
        return harness.wait_until(lambda: (lambda reply: reply[0] == 200 and reply)(post(counterd, key, lines)),
                                  what=f"{key} is taken")

    def forget_and_retry(self, after, **idempotency):
        """Redis goes back to before the request, or to before it was flushed, and its client sends it once more."""
        counterd = self.ready(idempotency=idempotency)
        self.post(counterd, "first", ["a:1|c"])
        before = self.backup()
        self.assertEqual(self.post(counterd, "k", ["a:10|c"])[1]["accepted"], 1)
        backup = self.backup() if after else before
        self.flush()
        self.roll_back_under(counterd, backup)
        self.assertEqual("duplicate" in self.post(counterd, "k", ["a:10|c"])[1], after)
        self.flush(code=None)
        return self.counters()

    def test_a_rollback_and_a_retry_double_nothing(self):
        self.assertEqual(self.forget_and_retry(after=False), {"a": 11})
        self.audit()

    def test_a_rollback_alone_doubles_nothing(self):
        self.assertEqual(self.forget_and_retry(after=True), {"a": 11})
        self.audit()

    def test_left_out(self):
        """Smaller, and good for everything but a rollback."""
        config = self.write_config("flusher.json", idempotency={"vector": False})
        counterd = self.ready()
        for n in range(3):
            self.post(counterd, f"k{n}", ["a:1|c"])
            self.flush(config=config)
            self.assertIn("duplicate", self.post(counterd, f"k{n}", ["a:1|c"])[1])
        self.assertEqual((self.rows(), self.counters()), (0, {"a": 3}))
        self.assertEqual(self.query("select identity from counterd.ledger"), [['{"once": [1, 1]}']] * 3)
        self.audit()

    def mix(self):
        """Old and new together, so that the shard is reset to what Postgres has."""
        counterd = self.ready(idempotency={"ttl_s": 2})
        before = self.backup()
        self.post(counterd, "k", ["a:1|c"])
        self.flush()
        self.roll_back_under(counterd, before)
        self.post(counterd, "k", ["a:1|c"])
        self.post(counterd, "new", ["a:100|c"])
        self.flush(code=harness.EXIT_TEMPFAIL)
        self.assertEqual(self.redis.call("HLEN", "{counterd:0}:writers"), 1)
        return counterd

    def test_after_a_reset_redis_knows_what_postgres_has(self):
        counterd = self.mix()
        for key in self.redis.call("KEYS", "{counterd:0}:token:*"):
            self.redis.call("DEL", key)
        self.assertIn("duplicate", self.post(counterd, "k", ["a:1|c"])[1])
        self.flush()
        self.assertEqual(self.counters(), {"a": 1})
        self.assertEqual(len(self.quarantine()), 1)

    def test_pruned_on_both_sides(self):
        self.mix()
        self.flush(config=self.write_config("long.json", idempotency={"ttl_s": 1, "rollback_s": 3600}))
        self.assertEqual(self.rows(), 1)
        short = self.write_config("short.json", idempotency={"ttl_s": 1, "rollback_s": 0})
        harness.wait_until(lambda: self.redis.call("EXISTS", "{counterd:0}:token:k") == 0, what="the marker goes")
        self.flush(config=short)
        self.assertEqual(self.rows(), 1)  # what waits in quarantine is judged by it
        self.drop_quarantine()
        self.flush(config=short)
        self.assertEqual(self.rows(), 0)
        self.assertEqual(self.redis.call("EXISTS", "{counterd:0}:writers", "{counterd:0}:durable"), 0)

    def test_pruned_in_every_shard_but_one_that_has_something_in_quarantine(self):
        self.config["shards"] = 8
        self.post(self.ready(), "k", LINES)
        self.flush()
        self.assertEqual(self.rows(), 8)
        [[writer]] = self.query("select distinct writer from counterd.writers")
        for shard in range(8):  # as a reset leaves it
            self.redis.call("HSET", f"{{counterd:{shard}}}:writers", writer, 1)
        self.query("insert into counterd.writers values ('counterd', 0, 'a worker', 5, now() - interval '1 day')")
        self.query("insert into counterd.quarantine (namespace, gen, shard, prev_gen, identity, vector, members, deltas,"
                   " accepted_at_seal, opened_at, sealed_at)"
                   " values ('counterd', 'by-hand', 3, '', '{}', '{}', '{}', '{}', 0, now(), now())")
        short = self.write_config("short.json", idempotency={"ttl_s": 1, "rollback_s": 0})
        harness.wait_until(lambda: self.flush(config=short, code=None) and self.rows() < 8, what="rows go")
        self.assertEqual(self.query("select shard, writer from counterd.writers order by 1"), [["0", "a worker"], ["3", writer]])
        self.assertEqual([self.redis.call("HLEN", f"{{counterd:{shard}}}:writers") for shard in range(8)],
                         [shard == 3 for shard in range(8)])

    def test_forgotten_in_time(self):
        """The marker goes by itself, the row later; then the key is a new one."""
        idempotency = {"ttl_s": 1, "rollback_s": 1}
        config = self.write_config("flusher.json", idempotency=idempotency)
        counterd = self.ready(idempotency=idempotency)
        self.post(counterd, "k", ["a:1|c"])
        self.flush(config=config)
        self.assertEqual(self.rows(), 1)
        harness.wait_until(lambda: self.redis.call("EXISTS", "{counterd:0}:token:k") == 0, what="the marker goes")
        harness.wait_until(lambda: self.flush(config=config) and self.rows() == 0, what="the row goes")
        self.assertNotIn("duplicate", self.post(counterd, "k", ["a:1|c"])[1])
        self.flush(config=config)
        self.assertEqual(self.counters(), {"a": 2})

    def test_a_run_that_is_told_to_stop_prunes_nothing(self):
        """Nor does it flush: then what Redis brought back is still to be judged by the rows."""
        counterd = self.ready()
        self.post(counterd, "k", ["a:1|c"])
        before = self.backup()
        self.flush()
        self.roll_back_under(counterd, before)
        self.query("update counterd.writers set added_at = now() - interval '1 year'")
        stopped = subprocess.run([harness.FLUSHER, "-c", self.write_config("f.json"), "run", "--every", "60"], timeout=
                                 harness.DEADLINE_S, stdout=subprocess.DEVNULL, preexec_fn=told_to_stop)
        self.assertEqual((stopped.returncode, self.redis.pending()), (harness.EXIT_OK, {"a": 1}))
        self.flush()
        self.assertEqual(self.counters(), {"a": 1})
        self.flush()
        self.assertEqual(self.rows(), 0)

    def drop_quarantine(self):
        for row in self.quarantine():
            self.flusher("quarantine", "drop", str(row["id"]))

    def append_many(self, count):
        """What counterd sends, without its HTTP."""
        script = (harness.ROOT / "lib" / "scripts" / "append.lua").read_text()
        client = harness.RespClient(self.redis.path)
        sha1 = client.call("SCRIPT", "LOAD", script)
        for start in range(0, count, 500):
            replies = client.calls([["EVALSHA", sha1, 8, *harness.shard_keys(0), f"{{counterd:0}}:token:{n}",
                                     f"once:{n:032x}", 1, 0, 1, "digest", 3600, f"key.{n % 100}", 1]
                                    for n in range(start, min(start + 500, count))])
            self.assertEqual({reply[0] for reply in replies}, {b"OK"})
        client.close()

    def test_ten_thousand_in_a_generation(self):
        counterd = self.ready()
        before = self.backup()
        self.append_many(10000)
        self.flush()
        self.assertEqual((self.rows(), self.counters()), (10000, {f"key.{n}": 100 for n in range(100)}))
        self.assertEqual(self.query("select identity from counterd.ledger"), [['{"once": [1, 10000]}']])
        self.audit()
        self.roll_back_under(counterd, before)
        self.append_many(10001)
        self.flush(code=harness.EXIT_TEMPFAIL)
        self.assertEqual(self.redis.call("HLEN", "{counterd:0}:writers"), 10000)
        self.assertEqual(len(self.quarantine()), 1)
        self.assertEqual(self.counters(), {f"key.{n}": 100 for n in range(100)})
        short = self.write_config("short.json", idempotency={"ttl_s": 1, "rollback_s": 0})
        self.drop_quarantine()
        harness.wait_until(lambda: self.flush(config=short) and self.rows() == 0, what="the rows go")
        self.assertEqual(self.redis.call("EXISTS", "{counterd:0}:writers", "{counterd:0}:durable"), 0)


if __name__ == "__main__":
    harness.main()
