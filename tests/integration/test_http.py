#!/usr/bin/env python3
"""test_http - POST /v1/increments: an answer of 200 means that it is in Redis"""

import http.client
import json
import os
import resource
import signal
import socket
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness


def post(counterd, lines, method="POST", headers=None):
    """(code, JSON or text, headers)"""
    connection = http.client.HTTPConnection(*counterd.address("http"), timeout=harness.DEADLINE_S)
    try:
        connection.request(method, "/v1/increments", "\n".join(lines).encode(), headers or {})
        reply = connection.getresponse()
        text = reply.read().decode()
        is_json = reply.getheader("Content-Type") == "application/json"
        return reply.status, json.loads(text) if is_json else text, reply.headers
    finally:
        connection.close()


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Increments(harness.Case):
    def test_answered_means_stored(self):
        """No waiting in between, and a coalesce_ms that would be noticed."""
        counterd = self.ready(coalesce_ms=60000)
        for n in range(1, 6):
            code, answer, _ = post(counterd, ["a:1|c", "", "b:2|c|#x:1\r", "INCR a"])
            self.assertEqual((code, answer), (200, {"accepted": 3, "rejected": 0, "rejects": []}))
            self.assertEqual(self.redis.pending(), {"a": 2 * n, "b;x=1": 2 * n})

    def test_rejected_lines_are_named(self):
        counterd = self.ready()
        code, answer, _ = post(counterd, ["a:1|c", "junk", "", "b:x|c"] + ["c:1|g"] * 20)
        self.assertEqual(code, 200)
        self.assertEqual((answer["accepted"], answer["rejected"]), (1, 22))
        self.assertEqual(answer["rejects"][:3], [{"line": 2, "reason": "syntax"}, {"line": 4, "reason": "value"},
                                                 {"line": 5, "reason": "type"}])
        self.assertEqual(len(answer["rejects"]), 10)
        status = counterd.status()
        self.assertEqual((status["accepted"], status["rejected"]["total"]), (1, 22))

    def test_nothing_to_count_is_answered_too(self):
        counterd = self.ready(coalesce_ms=60000)
        self.assertEqual(post(counterd, [])[:2], (200, {"accepted": 0, "rejected": 0, "rejects": []}))

    def test_what_can_not_be_taken_is_refused(self):
        counterd = self.ready()
        for method in ("GET", "PUT", "DELETE", "OPTIONS", "PATCH"):
            code, _, headers = post(counterd, ["a:1|c"], method=method)
            self.assertEqual((code, headers["Allow"]), (405, "POST"))
        for key in ({}, {"Idempotency-Key": "k"}):
            code, answer, _ = post(counterd, ["a:1|c"], headers={"Content-Encoding": "gzip", **key})
            self.assertEqual(code, 415)
            self.assertIn("Content-Encoding", answer["error"])
        self.assertEqual(post(counterd, [], headers={"Content-Encoding": "identity"})[0], 200)
        self.redis.stop()
        harness.wait_until(lambda: counterd.http("/readyz")[0] == 503, what="not ready")
        code, _, headers = post(counterd, ["a:1|c"])
        self.assertEqual((code, headers["Retry-After"]), (503, "1"))
        self.assertEqual(counterd.status()["accepted"], 0)

    def test_a_body_that_is_too_large_is_refused_when_its_client_has_sent_it(self):
        """Before that it does not look for an answer, and takes a connection that is reset for a bad network."""
        counterd = self.ready()
        for length in (1048577, 20 * 1048576):
            for headers in ({}, {"Idempotency-Key": "k"}, {"Expect": "100-continue"}):
                self.assertEqual(post(counterd, ["a" * length], headers=headers)[0], 413)
        self.assertEqual(counterd.status()["received"]["lines"], 0)

    def test_who_sends_and_never_reads_is_not_read_for_ever(self):
        counterd = self.ready()
        requests = b"POST /v1/increments HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\na:1|c" * 1000
        with socket.create_connection(counterd.address("http")) as stream:
            stream.settimeout(2)
            with self.assertRaises(TimeoutError):
                for _ in range(2000):
                    stream.sendall(requests)
            self.assertEqual(post(counterd, ["b:1|c"])[0], 200)

    def test_requests_that_wait_do_not_keep_their_bodies(self):
        counterd = self.ready(env={"ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS", "") + ":quarantine_size_mb=1"},
                              redis={"url": self.redis.url, "timeout_ms": 3 * harness.REDIS_TIMEOUT_MS})
        key = "k" * 250
        body = f"{key}:1|c\n".encode() * 4000
        self.redis.signal(signal.SIGSTOP)
        before = resident_bytes(counterd.pid)
        for n in range(1, 41):
            stream = socket.create_connection(counterd.address("http"))
            self.addCleanup(stream.close)
            header = b"Idempotency-Key: %d\r\n" % n if n % 2 else b""
            stream.sendall(b"POST /v1/increments HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%b\r\n%b" %
                           (len(body), header, body))
            harness.wait_until(lambda: counterd.status()["received"]["bytes"] == n * len(body), what="it has come")
        self.assertLess(resident_bytes(counterd.pid) - before, 10 * len(body))
        self.redis.signal(signal.SIGCONT)
        harness.wait_until(lambda: self.redis.pending() == {key: 40 * 4000}, what=lambda: self.redis.pending())

    def test_what_redis_would_refuse_is_turned_away_and_not_counted(self):
        """Of those that wait nobody knows, but who is told to come again must not be counted each time."""
        counterd = self.ready(redis={"url": self.redis.url, "timeout_ms": 2000})
        self.redis.call("CONFIG", "SET", "maxmemory", "1")
        code, answer, _ = post(counterd, ["a:1|c"])
        self.assertEqual((code, answer["accepted"]), (503, 1))
        for _ in range(3):
            code, answer, headers = post(counterd, ["a:1|c"])
            self.assertEqual((code, headers["Retry-After"]), (503, "1"))
            self.assertIn("nothing was counted", answer["error"])
        self.redis.call("CONFIG", "SET", "maxmemory", "0")
        harness.wait_until(lambda: post(counterd, ["b:1|c"])[0] == 200, what="it is taken again")
        self.assertEqual(self.redis.pending(), {"a": 1, "b": 1})

    def test_out_of_file_descriptors_is_waited_for(self):
        """And not said for each of a million attempts to accept the same connection."""
        counterd = self.ready()
        _, most = resource.prlimit(counterd.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(counterd.pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{counterd.pid}/fd")) + 4, most))
        streams = [socket.create_connection(counterd.address("http")) for _ in range(8)]
        before = cpu_seconds(counterd.pid)
        with self.assertRaises(TimeoutError):
            streams[-1].settimeout(1.2)
            streams[-1].sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            streams[-1].recv(1)
        self.assertLess(cpu_seconds(counterd.pid) - before, 0.4)
        for stream in streams[:-1]:
            stream.close()
        streams[-1].settimeout(harness.DEADLINE_S)
        self.assertIn(b" 200 ", streams[-1].makefile("rb").readline())
        streams[-1].close()
        self.assertNotIn("accept", counterd.log())

    def test_many_clients_share_appends(self):
        counterd = self.ready()
        codes = []

        def client(number):
            for _ in range(20):
                codes.append(post(counterd, [f"shared:1|c", f"own.{number}:1|c"])[0])

        clients = [threading.Thread(target=client, args=(number,)) for number in range(16)]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join()
        self.assertEqual(codes, [200] * 320)
        self.assertEqual(self.redis.pending(), {"shared": 320} | {f"own.{n}": 20 for n in range(16)})

    def test_no_answer_from_redis_is_told_and_stored_later(self):
        counterd = self.ready(redis={"url": self.redis.url, "timeout_ms": 200})
        self.redis.signal(signal.SIGSTOP)
        code, answer, _ = post(counterd, ["late:1|c"])
        self.assertEqual((code, answer["accepted"]), (503, 1))
        self.assertIn("twice", answer["error"])
        self.redis.signal(signal.SIGCONT)
        harness.wait_until(lambda: self.redis.pending() == {"late": 1}, what="late is stored")

    def test_a_stop_answers_who_waits(self):
        counterd = self.ready()
        self.redis.signal(signal.SIGSTOP)
        answers = []
        waiting = threading.Thread(target=lambda: answers.append(post(counterd, ["last:1|c"])))
        waiting.start()
        harness.wait_until(lambda: counterd.status()["accepted"] == 1, what="the request is counted")
        counterd.signal(signal.SIGTERM)
        counterd.wait_event("stopping")
        self.redis.signal(signal.SIGCONT)
        waiting.join()
        self.assertEqual(answers[0][:2], (200, {"accepted": 1, "rejected": 0, "rejects": []}))
        self.assertEqual(counterd.wait(), harness.EXIT_OK)
        self.assertEqual(self.redis.pending(), {"last": 1})

    def test_a_client_that_goes_away_takes_nothing_along(self):
        counterd = self.ready()
        self.redis.signal(signal.SIGSTOP)
        connection = http.client.HTTPConnection(*counterd.address("http"))
        connection.request("POST", "/v1/increments", b"gone:1|c")
        harness.wait_until(lambda: counterd.status()["accepted"] == 1, what="the request is counted")
        connection.close()
        self.redis.signal(signal.SIGCONT)
        counterd.settle(1)
        self.assertEqual(self.redis.pending(), {"gone": 1})

    def test_head_is_get_without_its_body(self):
        """of which something left over would be taken for the beginning of the next answer"""
        counterd = self.ready()
        connection = http.client.HTTPConnection(*counterd.address("http"), timeout=harness.DEADLINE_S)
        self.addCleanup(connection.close)
        for path in ("/", "/healthz", "/readyz", "/metrics", "/v1/status", "/v1/top", "/v1/counters/a", "/v1/increments",
                     "/none"):
            replies = []
            for method in ("HEAD", "GET"):
                connection.request(method, path)
                reply = connection.getresponse()
                replies.append((reply.status, reply.getheader("Content-Type"), reply.getheader("Content-Length"),
                                reply.read()))
            head, got = replies
            self.assertEqual((head[:2], head[3]), (got[:2], b""), path)
            self.assertTrue(int(head[2]) > 0 and int(got[2]) == len(got[3]), (path, head))


if __name__ == "__main__":
    harness.main()
