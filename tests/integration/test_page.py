#!/usr/bin/env python3
"""test_page - the status page in a real browser: what is on it is what /v1/status says, and says what is wrong

Environment: COUNTERD_PICTURES=DIR keeps a picture of every scene, light and dark, wide and narrow; COUNTERD_IMAGES=DIR
makes the two that the README shows (docs/images), which takes a minute and a half.
"""

import json
import os
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import browser
import harness
import scenes

WIDTHS = (1280, 390)
IMAGE_BYTES_MAX = 100_000

browsers = []


def number(text):
    return int(text.replace(",", ""))


class Page(scenes.Scene):
    @classmethod
    def setUpClass(cls):
        if not browser.program():
            raise unittest.SkipTest("no Chromium here (tests/install-deps brings it)")
        cls.browser = browser.Browser(harness.scratch_dir())

    @classmethod
    def tearDownClass(cls):
        cls.browser.__exit__()

    def open(self, counterd, **options):
        host, port = counterd.address("http")
        self.url = f"http://{host}:{port}/"
        self.browser.events.clear()
        self.browser.open(self.url, **options)
        self.browser.wait_until("document.body && document.body.dataset.polls >= 1")

    def tearDown(self):
        """Whatever was shown: all of it came from counterd, and nothing was forbidden or failed."""
        if getattr(self, "url", None):
            self.assertEqual([url for url in self.browser.requests() if not url.startswith((self.url, "data:", "about:"))],
                             [])
            self.assertEqual(self.browser.complaints() if self.quiet else [], [])
            self.browser.call("Page.navigate", url="about:blank")
            self.browser.wait_until("location.href === 'about:blank'")
        super().tearDown()

    quiet = True

    def texts(self, selector):
        return self.browser.texts(selector)

    def stage(self, name):
        """What a box of the pipeline says: (number, unit, age)."""
        return tuple(self.texts(f"#stage-{name} .{part}")[0] for part in ("big", "unit", "age"))

    def look_at(self, counterd, first, name):
        """At every width, light and dark: the first thing on the page is `first`, in sight, and nothing is cut off."""
        for width in WIDTHS:
            for dark in (False, True):
                self.open(counterd, width=width, height=900, dark=dark)
                self.browser.wait_until(f"document.querySelector('#verdict li').innerText.includes({json.dumps(first)})")
                box = self.browser.evaluate("document.querySelector('#verdict li').getBoundingClientRect().toJSON()")
                self.assertLess(box["top"], 120)
                self.assertLess(box["bottom"], 500)
                self.assertLessEqual(self.browser.evaluate("document.documentElement.scrollWidth"), width)
                if os.environ.get("COUNTERD_PICTURES"):
                    path = Path(os.environ["COUNTERD_PICTURES"])
                    path.mkdir(parents=True, exist_ok=True)
                    self.browser.screenshot(path / f"{name}-{width}-{'dark' if dark else 'light'}.png")

    def test_figures_are_those_of_the_status(self):
        self.migrate()
        counterd = self.ready()
        counterd.send_udp([f"page.{n % 37}:2|c" for n in range(5000)] + ["junk"] * 20)
        counterd.send_tcp(["t:1|c"] * 10 + ["a:1|g"])
        counterd.settle(5031)
        self.flush()
        counterd.send_udp([f"page.{n}:{n}|c" for n in range(1, 21)])
        counterd.settle(5051)
        self.open(counterd)
        self.browser.wait_until("document.querySelector('#stage-open .unit').innerText.includes('20 keys')")
        self.browser.wait_until("document.querySelector('#top').innerText.includes('page.20')")
        status = counterd.status()
        self.assertEqual(number(self.stage("received")[0]), status["received"]["lines"])
        self.assertEqual(self.stage("received")[2], "21 of them rejected")
        self.assertEqual(number(self.stage("memory")[0]), status["pending"])
        self.assertEqual(number(self.stage("open")[0]), status["in_redis"]["open"]["increments"])
        self.assertEqual(number(self.stage("open")[0]), 210)
        self.assertEqual(self.stage("sealed")[0], "0")
        self.assertRegex(self.stage("postgres")[0], r"^\d+\ss$")
        rows = [row.split("\t") for row in self.texts("#listeners tr")][1:]
        for row, listener in zip(rows, status["listeners"]):
            self.assertEqual(row[0], f"{listener['kind']}:{listener['address']}")
            self.assertEqual(number(row[1]), listener["lines"])
        self.assertEqual([row.split("\t")[::2][:2] for row in self.texts("#rejects tr")], [["syntax", "20"], ["type", "1"]])
        self.assertEqual([row.split("\t")[::2] for row in self.texts("#top tr")][:3],
                         [["page.20", "20"], ["page.19", "19"], ["page.18", "18"]])
        totals = dict(row.split("\t") for row in self.texts("#totals tr"))
        self.assertEqual(number(totals["accepted"]), status["accepted"])
        self.assertEqual(number(totals["batches"]), status["appended"]["batches"])
        self.assertTrue(self.texts("#verdict li")[0].startswith("All is well."))

    def test_the_recent_past_is_there_at_once(self):
        """Also what came before anybody looked, second by second; and all of it adds up."""
        counterd = self.counterd()
        counterd.send_udp(["a:1|c"] * 3000 + ["junk"] * 100)
        counterd.settle(3100)
        def recent():
            sums = {name: sum(values) for name, values in json.loads(counterd.http("/v1/status?recent")[1])["recent"].items()}
            return sums if sums["lines"] == 3100 else None
        self.assertEqual(harness.wait_until(recent, what="the recent past"),
                         {"lines": 3100, "rejected": 100, "kernel_dropped": 0})
        self.open(counterd)
        painted = self.browser.evaluate("""(() => { const canvas = document.getElementById('plot');
            const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
            let blue = 0;
            for (let i = 0; i < data.length; i += 4)
                if (data[i + 3] > 0 && data[i + 2] > data[i] + 60)
                    blue++;
            return blue; })()""")
        self.assertGreater(painted, 100)

    def test_hostile_samples_and_keys_are_text(self):
        counterd = self.running()
        counterd.send_udp([*scenes.HOSTILE, "<b>bold</b>&amp;:5|c", b"\xff\x00\x1b[31m<i>:1|c"])
        counterd.settle(len(scenes.HOSTILE) + 2)
        self.open(counterd)
        self.browser.wait_until("document.querySelector('#top').innerText.includes('<b>bold</b>&amp;')")
        self.assertIn("<script>document.title='owned'</script>:1|g", "\n".join(self.texts("#samples td")))
        self.assertEqual(self.browser.evaluate("document.querySelectorAll('#samples script, #samples img, #top b').length"), 0)
        self.assertTrue(self.browser.evaluate("document.title").startswith("counterd"))

    def test_nothing_but_its_own_script_runs(self):
        """Were there a hole in the escaping: the policy lets nothing of it run."""
        self.quiet = False
        counterd = self.running()
        self.open(counterd)
        self.browser.evaluate("""document.body.insertAdjacentHTML('beforeend',
            '<img src=x onerror="window.owned = 1">'); const made = document.createElement('script');
            made.textContent = 'window.owned = 2'; document.body.append(made);""")
        self.browser.wait_until("document.querySelector('img').complete")
        self.assertEqual(self.browser.evaluate("String(window.owned)"), "undefined")
        self.assertTrue(self.browser.complaints())

    def test_counterd_away_is_said(self):
        self.quiet = False
        counterd = self.running()
        self.open(counterd)
        counterd.stop()
        self.browser.wait_until("document.querySelector('#verdict li').innerText.startsWith('counterd does not answer')")

    def test_healthy(self):
        self.look_at(self.healthy(), "All is well.", "healthy")

    def test_redis_stopped(self):
        self.look_at(self.redis_stopped(), "Redis is away", "redis-stopped")
        self.assertRegex(self.stage("memory")[2], "^oldest ")
        self.assertIn("broken", self.browser.evaluate("document.getElementById('stage-open').className"))

    def test_spooling(self):
        self.look_at(self.spooling(), "Redis is away", "spooling")
        self.assertRegex(self.stage("disk")[1], "^increments, ")
        self.assertFalse(self.browser.evaluate("document.getElementById('stage-disk').hidden"))

    def test_spool_filling(self):
        self.look_at(self.spool_filling(), "Redis is away", "spool-filling")

    def test_disk_full(self):
        self.look_at(self.disk_full(), "Redis is away", "disk-full")

    def test_redis_full(self):
        self.look_at(self.redis_full(), "Redis is full", "redis-full")

    def test_redis_misfit(self):
        self.look_at(self.redis_misfit(), "Redis can't be used as configured", "redis-misfit")

    def test_redis_went_back(self):
        self.look_at(self.redis_went_back(), "Redis went back in time", "redis-went-back")

    def test_increments_lost(self):
        self.look_at(self.increments_lost(), "Up to 3 increments are lost", "increments-lost")

    def test_history_full(self):
        self.look_at(self.history_full(), "The history is full", "history-full")

    def test_junk_flooding(self):
        self.look_at(self.junk_flooding(), "Junk comes in", "junk")

    def test_kernel_dropping(self):
        self.look_at(self.kernel_dropping(), "The kernel dropped", "kernel-dropping")

    def test_keys_over_limit(self):
        self.look_at(self.keys_over_limit(), "More keys than keys_max", "keys-over-limit")

    def test_flush_overdue(self):
        self.look_at(self.no_cron(), "No flush for too long", "flush-overdue")
        self.assertEqual(self.stage("postgres")[2], "overdue")

    def test_flush_stuck(self):
        self.look_at(self.flusher_stuck(), "A flush does not end", "flush-stuck")

    def test_images_for_the_readme(self):
        if not os.environ.get("COUNTERD_IMAGES"):
            self.skipTest("pictures for the README only when asked for")
        directory = Path(os.environ["COUNTERD_IMAGES"])
        directory.mkdir(parents=True, exist_ok=True)
        counterd = self.healthy()
        for _ in range(3):
            self.pause(25)
            self.flush()
        self.pause(5)
        self.image(counterd, directory / "status.png", "All is well.", dark=False)
        self.redis.stop()
        self.pause(15)
        self.image(counterd, directory / "status-redis-away.png", "Redis is away", dark=True)

    def image(self, counterd, path, first, dark):
        self.open(counterd, width=1080, height=640, dark=dark)
        self.browser.wait_until(f"document.querySelector('#verdict li').innerText.includes({json.dumps(first)})")
        self.browser.screenshot(path, whole=False)
        self.assertLess(path.stat().st_size, IMAGE_BYTES_MAX)


if __name__ == "__main__":
    harness.main()
