#!/usr/bin/env python3
"""test_metrics - /metrics, /v1/counters and /v1/top: what they say is what happened, in formats that others read"""

import http.client
import json
import re
import shutil
import signal
import subprocess
import sys
import urllib.parse
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import harness

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"

SAMPLE = re.compile(r'^([a-z_]+)(?:\{([a-z]+)="((?:[^"\\\n]|\\.)*)"\})? (\S+)$')


def get(counterd, path, method="GET", headers=None):
    """(code, text, headers)"""
    connection = http.client.HTTPConnection(*counterd.address("http"), timeout=harness.DEADLINE_S)
    try:
        connection.request(method, path, headers=headers or {})
        reply = connection.getresponse()
        return reply.status, reply.read().decode(), reply.headers
    finally:
        connection.close()


def parse(text):
    """name -> value, or name -> {label: value}"""
    metrics = {}
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        name, _, label, value = SAMPLE.match(line).groups()
        if label is None:
            metrics[name] = float(value)
        else:
            metrics.setdefault(name, {})[label] = float(value)
    return metrics


class Metrics(harness.Case):
    def metrics(self, counterd):
        return parse(get(counterd, "/metrics")[1])

    def looked(self, counterd, open_keys, *names):
        """The metrics, once counterd has looked into Redis, found so many keys, and has these to tell."""
        def check():
            metrics = self.metrics(counterd)
            found = metrics.get("counterd_redis_keys", {}).get("open") == open_keys
            return metrics if found and set(names) <= set(metrics) else None
        return harness.wait_until(check, what=lambda: f"metrics; now {self.metrics(counterd)}")

    def test_they_say_what_happened(self):
        self.migrate()
        counterd = self.ready(listen={**self.config["listen"], "unix": [str(self.dir / "in.sock")]})
        counterd.send_udp(["a:1|c"] * 70 + ["junk"] * 3)
        counterd.send_unix(["b:2|c"] * 5)
        counterd.send_tcp(["c:1|c"] * 4 + ["c:1|g"])
        connection = http.client.HTTPConnection(*counterd.address("http"), timeout=harness.DEADLINE_S)
        connection.request("POST", "/v1/increments", b"d:7|c\nd:x|c\n")
        self.assertEqual(connection.getresponse().status, 200)
        connection.close()
        counterd.settle(85)
        metrics = self.looked(counterd, 4)
        name = {kind: "{}://{}:{}".format(kind, *counterd.address(kind)) for kind in ("udp", "tcp", "http")}
        unix = f"unix://{self.dir / 'in.sock'}"
        self.assertEqual(metrics["counterd_received_lines_total"],
                         {name["udp"]: 73, name["tcp"]: 5, unix: 5, name["http"]: 2})
        self.assertEqual(set(metrics["counterd_received_datagrams_total"]), {name["udp"], unix})
        self.assertEqual(metrics["counterd_received_bytes_total"][unix], 29)
        self.assertEqual({reason: lines for reason, lines in metrics["counterd_rejected_lines_total"].items() if lines},
                         {"syntax": 3, "type": 1, "value": 1})
        self.assertEqual(metrics["counterd_accepted_increments_total"], 80)
        self.assertEqual(metrics["counterd_appended_increments_total"], 80)
        self.assertEqual(metrics["counterd_redis_increments"], {"open": 91, "sealed": 0})
        self.assertEqual(metrics["counterd_append_seconds_count"], metrics["counterd_appended_batches_total"])
        self.assertEqual(metrics["counterd_append_seconds_bucket"]["+Inf"], metrics["counterd_append_seconds_count"])
        self.assertGreaterEqual(metrics["counterd_store_seconds_count"], 1)
        self.assertLess(metrics["counterd_last_append_seconds"], harness.DEADLINE_S)
        self.assertEqual((metrics["counterd_ready"], metrics["counterd_redis_ready"]), (1, 1))
        self.assertGreater(metrics["process_resident_memory_bytes"], 1e6)
        self.assertNotIn("counterd_last_flush_seconds", metrics)
        self.flush()
        metrics = self.looked(counterd, 0, "counterd_last_flush_seconds")
        self.assertLess(metrics["counterd_last_flush_seconds"], harness.DEADLINE_S)

    def test_all_lines_have_a_listener_also_with_several_workers_and_at_the_end(self):
        counterd = self.counterd(workers=2)
        counterd.send_udp([f"k{n}:1|c" for n in range(500)])
        counterd.send_tcp(["t:1|c"] * 50 + ["cut"], last_lf=False)
        counterd.settle(551)
        metrics = self.metrics(counterd)
        self.assertEqual(sum(metrics["counterd_received_lines_total"].values()), 551)
        self.assertEqual(len(metrics["counterd_received_lines_total"]), 3)

    def test_a_counter_never_falls(self):
        counterd = self.counterd()
        last = {}
        for _ in range(20):
            counterd.send_udp(["a:1|c"] * 50 + ["junk"])
            metrics = self.metrics(counterd)
            for name, value in metrics.items():
                if name.endswith(("_total", "_count")):
                    for label, number in (value if isinstance(value, dict) else {"": value}).items():
                        self.assertGreaterEqual(number, last.get((name, label), 0), name)
                        last[name, label] = number

    def test_formats(self):
        counterd = self.ready()
        self.looked(counterd, 0)
        code, text, headers = get(counterd, "/metrics")
        self.assertEqual((code, headers["Content-Type"]), (200, "text/plain; version=0.0.4; charset=utf-8"))
        code, openmetrics, headers = get(counterd, "/metrics", headers={"Accept": OPENMETRICS})
        self.assertEqual((code, headers["Content-Type"]),
                         (200, "application/openmetrics-text; version=1.0.0; charset=utf-8"))
        self.assertTrue(openmetrics.endswith("\n# EOF\n"))
        self.assertEqual(set(parse(openmetrics)), set(parse(text)))

    def test_their_own_parsers_take_them(self):
        try:
            from prometheus_client import parser
            from prometheus_client.openmetrics import parser as openmetrics
        except ImportError:
            self.skipTest("no python3-prometheus-client here (tests/install-deps brings it)")
        counterd = self.ready()
        self.looked(counterd, 0)
        text = get(counterd, "/metrics")[1]
        families = list(parser.text_string_to_metric_families(text))
        self.assertFalse([family.name for family in families if family.type in ("unknown", "untyped")])
        self.assertFalse([family.name for family in families if not family.documentation])
        text = get(counterd, "/metrics", headers={"Accept": OPENMETRICS})[1]
        self.assertEqual({family.name for family in openmetrics.text_string_to_metric_families(text)},
                         {family.name for family in families})

    def test_promtool_finds_nothing_to_mend(self):
        if not shutil.which("promtool"):
            self.skipTest("no promtool here (Debian's package prometheus has it)")
        counterd = self.counterd()
        done = subprocess.run(["promtool", "check", "metrics"], input=get(counterd, "/metrics")[1], text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.assertEqual((done.returncode, done.stdout), (0, ""))
        for kind, path in (("config", "prometheus.yml"), ("rules", "alerts.yml")):
            done = subprocess.run(["promtool", "check", kind, harness.ROOT / "examples/prometheus" / path], text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            self.assertEqual(done.returncode, 0, done.stdout)

    def test_alerts_fire_when_they_should(self):
        if not shutil.which("promtool"):
            self.skipTest("no promtool here (Debian's package prometheus has it)")
        cases = {  # a series, minute by minute, and who fires after twenty minutes
            'counterd_ready{instance="i"}': ("1+0x10 0+0x10", "CounterdCantStore"),
            'counterd_warning{instance="i",code="kernel_dropping"}': ("0+0x15 1+0x5", "CounterdLosesCounts"),
            'counterd_warning{instance="i",code="spool_failed"}': ("0+0x15 1+0x5", "CounterdSpoolFull"),
            'counterd_warning{instance="i",code="keys_over_limit"}': ("0+0x15 1+0x5", "CounterdKeysOverLimit"),
            'counterd_warning{instance="i",code="flush_overdue"}': ("0+0x10 1+0x10", "CounterdFlushLate"),
            'counterd_warning{instance="i",code="junk"}': ("0+0x10 1+0x10", "CounterdWarns"),
            'counterd_spool_fullest_bytes{instance="i"}': ("0+10000000x20", "CounterdSpoolFills"),
            'counterd_flush_last_success_timestamp_seconds{namespace="n"}': ("0+0x20", "FlusherHasNoSuccess"),
            'counterd_flush_lag_seconds{namespace="n"}': ("10+0x10 301+0x10", "FlusherLate"),
            'counterd_flush_quarantined_generations{namespace="n"}': ("0+0x15 1+0x5", "FlusherQuarantine"),
        }
        max_bytes = {"series": 'counterd_spool_bytes_max{instance="i"}', "values": "500000000+0x20"}
        tests = [{"interval": "1m", "input_series": [{"series": series, "values": values}, max_bytes],
                  "promql_expr_test": [{"expr": 'count by (alertname) (ALERTS{alertstate="firing"})', "eval_time": "20m",
                                        "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1}]}]}
                 for series, (values, alert) in cases.items()]
        file = self.dir / "tests.json"  # which is YAML too
        file.write_text(json.dumps({"rule_files": [str(harness.ROOT / "examples/prometheus/alerts.yml")], "tests": tests}))
        done = subprocess.run(["promtool", "test", "rules", file], text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT)
        self.assertEqual(done.returncode, 0, done.stdout)

    def test_alerts_ask_for_metrics_that_exist(self):
        self.migrate()
        counterd = self.counterd()
        path = self.dir / "flusher.prom"
        self.flush("--metrics-file", str(path))
        text = get(counterd, "/metrics")[1] + path.read_text()
        codes = set(re.findall(r'counterd_warning\{code="([a-z_]+)"\}', text))
        alerts = (harness.ROOT / "examples/prometheus/alerts.yml").read_text()
        self.assertLessEqual(set(re.findall(r'code="([a-z_]+)"', alerts)), codes)
        for asked in re.findall(r"code=~\"([a-z_|]+)\"", alerts):
            self.assertLessEqual(set(asked.split("|")), codes)
        known = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)) | {"counterd_last_flush_seconds"}
        asked = set(re.findall(r"\b((?:counterd|process)_[a-z_]+)", re.sub(r"#.*", "", alerts)))
        self.assertLessEqual({re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}, known)


class Reading(harness.Case):
    def counter(self, counterd, key):
        code, text, _ = get(counterd, "/v1/counters/" + urllib.parse.quote(key, safe=""))
        return code, json.loads(text)

    def test_pending_of_a_key(self):
        self.migrate()
        counterd = self.ready()
        counterd.send_udp(["page/home:2|c"] * 10 + ["jobs:1|c|#env:prod", "käse:1|c"])
        counterd.settle(12)
        self.assertEqual(self.counter(counterd, "page/home"),
                         (200, {"key": "page/home", "pending": 20, "open": 20, "sealed": 0, "known": True, "whole": True}))
        self.assertEqual(json.loads(get(counterd, "/v1/counters/page/home")[1])["pending"], 20)
        self.assertEqual(self.counter(counterd, "jobs;env=prod")[1]["pending"], 1)
        self.assertEqual(self.counter(counterd, "käse")[1], {"key": "käse", "pending": 1, "open": 1, "sealed": 0,
                                                            "known": True, "whole": True})
        self.assertEqual(self.counter(counterd, "nobody")[1]["known"], False)
        self.flush()
        self.assertEqual(self.counter(counterd, "page/home")[1]["pending"], 0)

    def test_sealed_is_pending_too(self):
        """A flusher that can't get to Postgres has sealed, and leaves it so."""
        self.migrate()
        counterd = self.ready()
        counterd.send_udp(["a:5|c", "b:1|c"])
        counterd.settle(2)
        self.flusher("run", config=self.write_config("away.json", postgres={"url": f"host={self.dir}/nowhere"}),
                     code=None)
        for shard in range(self.config["shards"]):
            self.redis.seal(shard, f"{shard:026}")
        counterd.send_udp(["a:2|c"])
        counterd.settle(3)
        self.assertEqual(self.counter(counterd, "a")[1], {"key": "a", "pending": 7, "open": 2, "sealed": 5,
                                                         "known": True, "whole": True})
        top = json.loads(get(counterd, "/v1/top")[1])["keys"]
        self.assertEqual(top, [{"key": "a", "pending": 7}, {"key": "b", "pending": 1}])
        def looked():
            redis = counterd.status()["in_redis"]
            return redis if redis.get("open", {}).get("keys") == 1 else None
        redis = harness.wait_until(looked, what="a look")
        self.assertEqual((redis["open"]["increments"], redis["sealed"]["increments"], redis["sealed"]["keys"]), (2, 6, 2))

    def test_top(self):
        counterd = self.ready()
        counterd.send_udp([f"key.{n}:{n}|c" for n in range(1, 200)])
        counterd.settle(199)
        for n in (1, 10, 100):
            top = json.loads(get(counterd, f"/v1/top?n={n}")[1])["keys"]
            self.assertEqual(top, [{"key": f"key.{rank}", "pending": rank} for rank in range(199, 199 - n, -1)])
        for n in ("0", "101", "x", "", "-1", "1x"):
            self.assertEqual(get(counterd, f"/v1/top?n={n}")[0], 400, n)

    def test_keys_in_buckets_of_time(self):
        """A member of Redis for each bucket: added up."""
        counterd = self.ready(targets=[{"match": "*", "table": "counterd.counters", "rollup": {"bucket": "1m"}}])
        counterd.send_udp(["a:1|c|T1700000000", "a:2|c|T1700000060", "b:2|c|T1700000000"])
        counterd.settle(3)
        self.assertEqual(len(self.redis.pending()), 3)
        self.assertEqual(self.counter(counterd, "a"),
                         (200, {"key": "a", "pending": 3, "open": 3, "sealed": 0, "known": True, "whole": True}))
        self.assertEqual(json.loads(get(counterd, "/v1/top")[1])["keys"],
                         [{"key": "a", "pending": 3}, {"key": "b", "pending": 2}])

    def test_what_is_no_key_and_what_is_no_path(self):
        counterd = self.ready()
        for key in ("", "a%20b", "a:b", "a%7Cb", "%ff", "x" * 256, "a%00b", "a%0Ab"):
            self.assertEqual(get(counterd, "/v1/counters/" + key)[0], 400, key)
        self.assertEqual(get(counterd, "/v1/nothing")[0], 404)
        for path in ("/", "/healthz", "/readyz", "/metrics", "/v1/status", "/v1/top", "/v1/counters/a"):
            self.assertEqual(get(counterd, path, method="POST")[0], 405, path)
            code, text, _ = get(counterd, path, method="HEAD")
            self.assertEqual((code, text), (200, ""), path)

    def test_redis_away_is_told_and_does_not_hold_the_answer_up(self):
        counterd = self.ready(redis={"url": self.redis.url, "timeout_ms": 200})
        harness.wait_until(lambda: get(counterd, "/v1/top")[0] == 200, what="an answer")
        self.redis.signal(signal.SIGSTOP)
        counterd.send_udp(["a:1|c"])
        harness.wait_until(lambda: counterd.http("/readyz")[0] == 503, what="not ready")
        code, text, _ = get(counterd, "/v1/counters/a")
        self.assertEqual(code, 503)
        self.assertTrue(json.loads(text)["error"])
        harness.wait_until(lambda: counterd.status()["in_redis"]["error"], what="an error")
        metrics = parse(get(counterd, "/metrics")[1])
        self.assertEqual((metrics["counterd_redis_looked"], metrics["counterd_redis_ready"]), (0, 0))
        self.assertNotIn("counterd_redis_keys", metrics)
        self.redis.signal(signal.SIGCONT)
        harness.wait_until(lambda: get(counterd, "/v1/counters/a")[0] == 200, what="an answer")

    def test_clients_that_leave_and_a_stop_while_redis_does_not_answer(self):
        counterd = self.ready(redis={"url": self.redis.url, "timeout_ms": 200})
        self.redis.signal(signal.SIGSTOP)
        for _ in range(20):
            connection = http.client.HTTPConnection(*counterd.address("http"), timeout=harness.DEADLINE_S)
            connection.request("GET", "/v1/counters/a")
            connection.close()
        connection = http.client.HTTPConnection(*counterd.address("http"), timeout=harness.DEADLINE_S)
        connection.request("GET", "/v1/top")
        counterd.signal(signal.SIGTERM)
        self.assertEqual(counterd.wait(), 0)
        connection.close()
        self.redis.signal(signal.SIGCONT)

    def test_scripts_flushed_and_connections_killed(self):
        counterd = self.ready()
        counterd.send_udp(["a:1|c"])
        counterd.settle(1)
        self.assertEqual(self.counter(counterd, "a")[0], 200)
        self.redis.call("SCRIPT", "FLUSH")
        harness.wait_until(lambda: self.counter(counterd, "a")[0] == 200, what="an answer after SCRIPT FLUSH")
        self.redis.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        harness.wait_until(lambda: self.counter(counterd, "a")[0] == 200, what="an answer over a new connection")

    def connections(self):
        return self.redis.call("CLIENT", "LIST").count(b"\n")

    def test_unwatched_it_has_no_connection(self):
        """Nobody looks, nobody is connected but those who write."""
        counterd = self.ready()
        harness.wait_until(lambda: self.connections() == 4, what="a worker's, POST's, idempotent requests', and ours alone")
        counterd.status()
        harness.wait_until(lambda: self.connections() == 5, what="a connection of the reader")

    def test_reads_do_not_delay_appends(self):
        """Redis does not answer who reads; appends have a connection of their own."""
        proxy, through = self.proxied_redis()
        counterd = self.ready(redis={**through, "timeout_ms": 5000})
        proxy.cut(lambda request: b"SCRIPT" in request and b"LOAD" in request, swallow=True)
        connection = http.client.HTTPConnection(*counterd.address("http"), timeout=harness.DEADLINE_S)
        connection.request("GET", "/v1/top")
        counterd.send_udp(["a:1|c"])
        harness.wait_until(lambda: self.redis.pending() == {"a": 1}, what="the append")
        self.assertEqual(connection.getresponse().status, 503)
        connection.close()


if __name__ == "__main__":
    harness.main()
