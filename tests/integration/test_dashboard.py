#!/usr/bin/env python3
"""test_dashboard - examples/dashboard in a real browser: what it shows is what the tables have, live, whatever the keys
are called

Environment: COUNTERD_IMAGES=DIR makes the picture that the README shows (docs/images).
"""

import json
import math
import os
import random
import shutil
import sys
import time
import unittest
import urllib.error
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import browser
import harness

HOSTILE = ["<img/src=x/onerror=document.title='owned'>", "'\");drop/table/counterd.counters;--", "%_\\", "k" * 255,
           "日本語.ключ", "</script><script>document.title='owned'</script>"]


def skip_or_fail(reason):
    if os.environ.get("COUNTERD_STRICT") == "1":
        raise AssertionError(reason)
    raise unittest.SkipTest(reason)


def install():
    """The example as people have it, in a directory of its own, with what `npm ci` brings."""
    for name in ("node", "npm"):
        if shutil.which(name) is None:
            skip_or_fail(f"no {name} here (tests/install-deps brings it)")
    directory = harness.scratch_dir("counterd-dashboard-") / "dashboard"
    shutil.copytree(harness.ROOT / "examples/dashboard", directory, ignore=shutil.ignore_patterns("node_modules"))
    return directory


class Page(browser.Browser):
    def text(self, selector):
        return self.evaluate(f"document.querySelector({json.dumps(selector)})?.textContent")

    def wait_text(self, selector, text):
        harness.wait_until(lambda: self.text(selector) == text,
                           what=lambda: f"{text!r} in {selector}: {self.text(selector)!r}; {self.complaints()}")

    def click(self, selector):
        self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")

    def type(self, selector, text):
        self.evaluate(f"document.querySelector({json.dumps(selector)}).focus()")
        self.call("Input.insertText", text=text)


class Dashboard(harness.Case):
    @classmethod
    def setUpClass(cls):
        if browser.program() is None:
            skip_or_fail("no chromium here (tests/install-deps brings it)")
        cls.directory = install()
        cls.page = Page(harness.scratch_dir("counterd-chromium-"))
        cls.addClassCleanup(cls.page.__exit__)

    def setUp(self):
        super().setUp()
        self.migrate()

    def dashboard(self, *argv, name="dashboard"):
        process = harness.Process(name, self.dir, [self.directory / "run", "--listen", "127.0.0.1:0", *argv])
        self.track(process).spawn()
        try:
            self.url = process.wait_event("listening", deadline_s=300)["url"]
        except AssertionError:
            if "npm could not fetch" in process.log():
                skip_or_fail(process.log())
            raise
        return process

    def open(self, fragment="", **options):
        """A new page, also when only the fragment differs, with nothing to complain about yet."""
        self.page.open("about:blank")
        self.page.events.clear()
        self.page.open(self.url + fragment, **options)
        self.page.wait_until("document.readyState === 'complete'")
        self.addCleanup(self.page.open, "about:blank")
        return self.page

    def started(self, fragment=""):
        self.dashboard(self.postgres.url(self.database))
        return self.open(fragment)

    def count(self, lines):
        """Sends the lines to a counterd of this test, and flushes."""
        if not hasattr(self, "running"):
            self.running, self.sent = self.counterd(), 0
        self.running.send_udp(lines)
        self.sent += len(lines)
        self.running.settle(self.sent)
        self.flush()

    def get(self, path, **headers):
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, headers=headers)) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def listed(self):
        return dict(zip(self.page.texts("#top .key"), (int(text.replace(",", "")) for text in
                                                       self.page.texts("#top .value"))))

    def wait_listed(self, expected):
        harness.wait_until(lambda: self.listed() == expected, what=lambda: f"{expected}; {self.listed()}")

    def test_the_page_follows_each_flush(self):
        page = self.started()
        page.wait_text("#total", "0")
        self.assertIn("Nothing was flushed yet", page.text("#trouble"))
        self.count(["page.home:1200|c", "page.away:34|c"])
        page.wait_text("#total", "1,234")
        self.wait_listed({"page.home": 1200, "page.away": 34})
        page.wait_text("#flush", "2 keys")
        page.wait_until(r"/^All events before \d\d:\d\d:\d\d are in$/.test(document.querySelector('#fresh-text').textContent)")
        self.count(["page.home:1|c"])
        page.wait_text("#total", "1,235")
        self.wait_listed(self.counters())
        page.wait_until("document.getElementById('trouble').hidden")
        self.assertEqual(page.complaints(), [])

    def test_numbers_beyond_what_a_double_holds(self):
        self.query("insert into counterd.counters values ('huge', 9223372036854775807, now(), now()),"
                   " ('low', -9223372036854775808, now(), now())")
        self.started()
        self.wait_listed({"huge": 9223372036854775807, "low": -9223372036854775808})

    def test_hostile_keys_are_only_text(self):
        page = self.started()
        self.count([f"{key}:{n}|c" for n, key in enumerate(HOSTILE, 1)])
        expected = {key: n for n, key in enumerate(HOSTILE, 1)}
        self.assertEqual(self.counters(), expected)
        self.wait_listed(expected)
        for key in HOSTILE:
            page.evaluate("[...document.querySelectorAll('#top button')]"
                          f".find(b => b.querySelector('.key').textContent === {json.dumps(key)}).click()")
            page.wait_text("#chart-title", key)
            page.wait_text("#chart-total", str(expected[key]))
        page.type("#match", HOSTILE[1])
        self.wait_listed({HOSTILE[1]: 2})
        self.assertEqual((page.evaluate("document.title"), page.complaints()), ("counterd", []))
        self.assertEqual(self.counters(), expected)

    def test_ten_thousand_keys_and_what_is_searched(self):
        self.query("insert into counterd.counters select 'k' || n, n, now(), now() from generate_series(1, 10000) n")
        page = self.started()
        self.wait_listed({f"k{n}": n for n in range(10000, 9950, -1)})
        page.type("#match", "777")
        self.wait_listed({f"k{n}": n for n in (9777, 8777, 7779, 7778, 7777, 7776, 7775, 7774, 7773, 7772, 7771, 7770,
                                               6777, 5777, 4777, 3777, 2777, 1777, 777)})

    def test_the_series_of_a_key(self):
        self.query("create table counterd.recent partition of counterd.rollups for values"
                   " from (date_trunc('day', now(), 'UTC') - interval '1 day')"
                   " to (date_trunc('day', now(), 'UTC') + interval '2 days');"
                   "insert into counterd.counters values ('a', 12, now(), now()), ('bare', 1, now(), now());"
                   "insert into counterd.rollups select 'a', date_trunc('minute', now()) - n * interval '1 minute', n"
                   " from generate_series(2, 4) n")
        page = self.started("#key=a")
        page.wait_text("#chart-title", "a")
        page.wait_text("#chart-note", "Per minute")
        page.wait_text("#chart-total", "12")
        code, body = self.get("api/series?key=a&range=1h")
        self.assertEqual((code, sorted(int(row["value"]) for row in json.loads(body))[-4:]), (200, [0, 2, 3, 4]))
        page.click("#ranges [value='24h']")
        page.wait_text("#chart-note", "Per 15 minutes")
        self.assertIn("range=24h", page.evaluate("location.hash"))
        page.evaluate("location.hash = 'key=bare'")
        page.wait_text("#chart-note", "No history of this key: its target has no rollup into counterd.rollups.")
        page.click("#chart-close")
        page.wait_text("#chart-title", "All events")
        self.assertEqual(page.complaints(), [])

    def test_what_waits_for_a_decision_is_told(self):
        self.count(["a:1|c"])
        self.query("update counterd.shards set parked_total = 1200, cumulative_total = cumulative_total + 1200"
                   " where shard = 0;"
                   "insert into counterd.quarantine (namespace, gen, shard, prev_gen, identity, vector, members, deltas,"
                   " accepted_at_seal, opened_at, sealed_at)"
                   " values ('counterd', 'g', 0, '', '{}', '{}', '{}', '{}', 0, now(), now())")
        page = self.started()
        page.wait_text("#trouble", "Generations in quarantine: 1 (flusher quarantine list). Parked: 1,200"
                                   " (flusher parked list).")
        page.wait_text("#total", "1")

    def test_namespaces(self):
        for number, namespace in enumerate(("one", "two"), 1):
            running = self.counterd(namespace, namespace=namespace)
            running.send_udp([f"shared:{number}|c"])
            running.settle(1)
            self.flush(config=self.write_config(f"{namespace}.json", namespace=namespace))
        page = self.started()
        page.wait_text("#total", "1")
        self.assertEqual(page.texts("#namespace option"), ["one", "two"])
        page.evaluate("(select => { select.value = 'two'; select.dispatchEvent(new Event('change')); })"
                      "(document.getElementById('namespace'))")
        page.wait_text("#total", "2")
        self.wait_listed({"shared": 3})

    def test_it_fits_a_phone_and_a_wall_in_light_and_dark(self):
        self.query("insert into counterd.counters select repeat('long.', 40) || n, n, now(), now()"
                   " from generate_series(1, 60) n")
        self.dashboard(self.postgres.url(self.database))
        seen = set()
        for width, height, dark in ((360, 740, False), (768, 1024, True), (1440, 900, False), (3840, 2160, True)):
            page = self.open(width=width, height=height, dark=dark)
            page.wait_until("document.querySelectorAll('#top li').length == 50")
            self.assertEqual(page.evaluate("document.documentElement.scrollWidth"), width)
            seen.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        self.assertEqual(len(seen), 2)
        before = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.click("#theme")
        self.assertNotEqual(page.evaluate("getComputedStyle(document.body).backgroundColor"), before)
        page.evaluate("localStorage.clear()")

    def test_postgres_goes_away_and_comes_back(self):
        page = self.started()
        self.count(["a:1|c"])
        page.wait_text("#total", "1")
        self.postgres.stop()
        harness.wait_until(lambda: page.evaluate("document.getElementById('fresh').dataset.state") == "lost")
        self.assertEqual(page.text("#total"), "1")
        self.postgres.start()
        self.count(["a:2|c"])
        page.wait_text("#total", "3")
        harness.wait_until(lambda: page.evaluate("document.getElementById('fresh').dataset.state") == "fresh")

    def test_a_slow_question_is_not_asked_after_every_flush(self):
        self.query("create or replace view counterd.top_counters as select key, value, first_seen, last_seen"
                   " from counterd.counters, (select pg_sleep(0.4)) as slow order by value desc, key")
        self.count(["a:1|c"])
        self.dashboard(self.postgres.url(self.database))

        def ask():
            with urllib.request.urlopen(f"{self.url}api/top?by=total") as reply:
                return json.load(reply)[0]["value"], int(reply.headers.get("X-Again-Ms", 0))

        def told_to_ask_later():
            """A flush soon after the question; on a slow machine it may come too late."""
            before, _ = ask()
            self.count(["a:1|c"])
            value, again_ms = ask()
            return value == before and again_ms

        harness.wait_until(told_to_ask_later, what="told to ask later")
        harness.wait_until(lambda: ask()[0] == str(self.sent), what="the newest answer")

    def test_the_server_is_careful(self):
        self.dashboard(self.postgres.url(self.database))
        self.assertEqual(self.get("api/top?by=total;drop")[0], 400)
        self.assertEqual(self.get("api/__proto__")[0], 404)
        self.assertEqual(self.get("../server.js")[0], 404)
        self.assertEqual(self.get("node_modules/pg/package.json")[0], 404)
        self.assertEqual(self.get("", Host="evil.example")[0], 403)
        self.assertEqual(self.get("", Host=f"localhost:{self.url.rsplit(':', 1)[1].strip('/')}")[0], 200)

    def test_a_role_that_may_only_read_is_enough(self):
        role = f"dashboard_{self.database}"
        self.query(f"create role {role} login; select counterd.grant_reader('{role}')")
        self.count(["a:5|c"])
        self.dashboard(f"postgresql://{role}@/{self.database}?host={self.postgres.directory}")
        page = self.open()
        page.wait_text("#total", "5")
        self.wait_listed({"a": 5})
        self.assertEqual(page.complaints(), [])

    def test_a_database_without_our_tables_says_what_to_do(self):
        empty = self.postgres.new_database()
        self.dashboard(self.postgres.url(empty))
        page = self.open()
        harness.wait_until(lambda: "flusher -c FILE migrate" in page.text("#trouble"),
                           what=lambda: page.text("#trouble"))

    def test_image_for_the_readme(self):
        """An hour of a small site, as lines with their times."""
        if not os.environ.get("COUNTERD_IMAGES"):
            self.skipTest("a picture for the README only when asked for")
        self.config["targets"] = [{"match": "*", "table": "counterd.counters", "rollup": {"bucket": "1m"}}]
        dice, now_s = random.Random(1), int(time.time())
        keys = ["page.home", "page.pricing", "page.docs.install", "page.blog.hello-world", "likes.post.42",
                "downloads.counterd-0.1.0.tar.gz", "api.acme.calls", "api.globex.calls", "search;lang=en", "search;lang=de",
                "signup", "issue.events.1138"]
        self.count([f"{key}:{int(900 / (place + 1) * (1.5 + math.sin(minute / 9 + place)) * dice.uniform(0.8, 1.2))}|c"
                    f"|T{now_s - 60 * minute}" for minute in range(60) for place, key in enumerate(keys)])
        self.dashboard(self.postgres.url(self.database))
        page = self.open("#key=page.home&range=1h", width=1080, height=640, dark=True)
        page.wait_text("#chart-title", "page.home")
        page.wait_until("document.querySelectorAll('#top li').length >= 12")
        path = Path(os.environ["COUNTERD_IMAGES"]) / "dashboard.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path, whole=False)
        self.assertLess(path.stat().st_size, 100_000)

    def test_wrong_usage(self):
        done = self.program(self.directory / "run", "no such thing", deadline_s=300)
        if "npm could not fetch" in done.err:
            skip_or_fail(done.err)
        self.assertEqual(done.code, harness.EXIT_USAGE, done)
        self.assertIn("neither a postgresql:// URI nor a conninfo string", done.err)


if __name__ == "__main__":
    harness.main()
