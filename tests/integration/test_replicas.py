#!/usr/bin/env python3
"""test_replicas - redis.wait_replicas in counterd: acknowledged means that so many replicas have it"""

import http.client
import json
import signal
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness


class Replicas(harness.Replicated):
    def setUp(self):
        super().setUp()
        self.config["redis"] = {"url": self.primary.url, "wait_replicas": 1, "timeout_ms": 300}

    def patient(self):
        return self.ready(redis={**self.config["redis"], "timeout_ms": 30000})

    def post(self, counterd, lines, headers=None):
        connection = http.client.HTTPConnection(*counterd.address("http"), timeout=harness.DEADLINE_S)
        connection.request("POST", "/v1/increments", "\n".join(lines).encode(), headers or {})
        reply = connection.getresponse()
        answer = reply.status, json.loads(reply.read())
        connection.close()
        return answer

    def test_without_replicas_nothing_is_acknowledged(self):
        counterd = self.ready()
        counterd.send_udp(["a:1|c", "b:2|c"])
        line = counterd.wait_event("append_refused")
        self.assertIn("0 of 1 replicas", line["error"])
        harness.wait_until(lambda: counterd.status()["redis"]["unreplicated"] >= 2, what="sent again")
        status = counterd.status()
        self.assertEqual((status["pending"], status["appended"]["increments"]), (2, 0))
        self.assertEqual(self.primary.pending(), {"a": 1, "b": 2})
        self.assertEqual(self.post(counterd, ["c:1|c"])[0], 503)
        for _ in range(2):  # taken, then found there
            code, answer = self.post(counterd, ["d:1|c"], {"Idempotency-Key": "k"})
            self.assertEqual((code, "same key" in answer["error"]), (503, True))
        with socket.create_connection(counterd.address("tcp")) as stream:
            stream.sendall(b"e:1|c\nSYNC x\n")
            self.start_replica()
            self.assertEqual(stream.makefile("rb").readline(), b"SYNCED x\n")
        counterd.settle(4)
        harness.wait_until(lambda: self.post(counterd, ["d:1|c"], {"Idempotency-Key": "k"})[0] == 200, what="d is taken")
        self.assertTrue(self.post(counterd, ["d:1|c"], {"Idempotency-Key": "k"})[1]["duplicate"])
        wanted = {"a": 1, "b": 2, "c": 1, "d": 1, "e": 1}
        self.assertEqual((self.primary.pending(), self.replica.pending()), (wanted, wanted))

    def test_an_answer_waits_for_a_replica_that_is_slow(self):
        self.start_replica()
        counterd = self.patient()
        self.assertEqual(self.post(counterd, ["a:1|c"])[0], 200)
        self.replica.signal(signal.SIGSTOP)
        with socket.create_connection(counterd.address("tcp")) as stream:
            stream.sendall(b"a:1|c\nSYNC x\n")
            harness.wait_until(lambda: self.primary.pending() == {"a": 2}, what="the primary has it")
            self.assertEqual(counterd.status()["pending"], 1)
            self.replica.signal(signal.SIGCONT)
            self.assertEqual(stream.makefile("rb").readline(), b"SYNCED x\n")
        self.assertEqual(self.replica.pending(), {"a": 2})

    def test_what_is_acknowledged_survives_a_failover(self):
        """Both the daemon and the primary die at once, right after an answer."""
        self.start_replica()
        counterd = self.patient()
        for n in range(20):
            self.assertEqual(self.post(counterd, [f"key.{m}:1|c" for m in range(30)],
                                       {"Idempotency-Key": f"k{n}"} if n % 2 else {})[0], 200)
        counterd.kill()
        self.primary.kill()
        self.replica.call("REPLICAOF", "NO", "ONE")
        self.assertEqual(self.replica.pending(), {f"key.{m}": 20 for m in range(30)})

    def test_a_stop_does_not_wait_for_what_was_refused(self):
        counterd = self.ready()
        self.assertEqual(self.post(counterd, ["a:1|c"], {"Idempotency-Key": "k"})[0], 503)
        self.assertEqual(counterd.stop(), harness.EXIT_OK, counterd.tail())

    def test_a_stop_waits_too(self):
        self.start_replica()
        counterd = self.patient()
        self.replica.signal(signal.SIGSTOP)
        counterd.send_udp(["a:1|c"])
        harness.wait_until(lambda: self.primary.pending() == {"a": 1}, what="the primary has it")
        counterd.signal(signal.SIGTERM)
        counterd.wait_event("stopping")
        self.replica.signal(signal.SIGCONT)
        self.assertEqual(counterd.wait(), harness.EXIT_OK)
        self.assertEqual(self.replica.pending(), {"a": 1})

    def test_what_was_held_back_on_a_connection_ends_with_it(self):
        """On the next one Redis refuses the batch, which says nothing of what a WAIT is told there."""
        self.start_replica()
        counterd = self.patient()
        self.assertEqual(self.post(counterd, ["a:1|c"])[0], 200)
        self.replica.signal(signal.SIGSTOP)
        counterd.send_udp(["a:2|c"])
        harness.wait_until(lambda: self.primary.pending() == {"a": 3}, what="the primary has it")
        [writers] = self.primary.call("KEYS", "*:writers")
        self.primary.call("RENAME", writers, "spare")
        self.primary.call("SET", writers, "of a wrong type")
        self.primary.call("CLIENT", "KILL", "TYPE", "normal")
        counterd.wait_event("append_refused")
        self.primary.call("RENAME", "spare", writers)
        self.replica.signal(signal.SIGCONT)
        counterd.settle(2)
        self.assertEqual(self.replica.pending(), {"a": 3})


if __name__ == "__main__":
    harness.main()
