"""browser - a headless Chromium, driven over the DevTools protocol on a pipe: nothing but Python's library is needed

    with Browser(directory) as browser:
        browser.open("http://127.0.0.1:8126/", width=390, dark=True)
        browser.wait_until("document.body.dataset.polls >= 1")
        browser.evaluate("document.title")
        browser.screenshot(path)
"""

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import time

import harness
from harness import DEADLINE_S, wait_until


def program():
    """None where there is no Chromium."""
    return shutil.which("chromium") or shutil.which("google-chrome")


class Browser:
    def __init__(self, directory):
        to_child, self.to_browser = os.pipe()
        self.from_browser, from_child = os.pipe()

        def in_child():  # DevTools speaks on the descriptors 3 and 4
            harness.die_with_parent(signal.SIGKILL)()
            os.dup2(to_child, 13)
            os.dup2(from_child, 14)
            os.dup2(13, 3)
            os.dup2(14, 4)

        self.log = open(directory / "browser.log", "wb")
        self.child = subprocess.Popen(
            [program(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
             "--disable-extensions", "--disable-background-networking", "--no-proxy-server", "--hide-scrollbars",
             f"--user-data-dir={directory / 'browser'}", "--remote-debugging-pipe", "about:blank"],
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, preexec_fn=in_child, close_fds=False)
        os.close(to_child)
        os.close(from_child)
        self.buffer, self.number, self.session, self.events = b"", 0, None, []
        target = wait_until(self._page, what="a page of the browser")
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.kill()
        self.child.wait()
        os.close(self.to_browser)
        os.close(self.from_browser)
        self.log.close()

    def _page(self):
        return next((target["targetId"] for target in self.call("Target.getTargets")["targetInfos"]
                     if target["type"] == "page"), None)

    def _read(self):
        end = time.monotonic() + DEADLINE_S
        while b"\0" not in self.buffer:
            if not select.select([self.from_browser], [], [], max(0, end - time.monotonic()))[0]:
                raise AssertionError("the browser does not answer")
            data = os.read(self.from_browser, 1 << 20)
            if not data:
                raise AssertionError("the browser has ended; see browser.log")
            self.buffer += data
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def call(self, method, **parameters):
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to_browser, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def open(self, url, width=1280, height=900, dark=False):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 600)
        self.dark(dark)
        self.call("Page.navigate", url=url)

    def dark(self, dark):
        self.call("Emulation.setEmulatedMedia", media="screen",
                  features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def evaluate(self, script):
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise AssertionError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait_until(self, script, deadline_s=DEADLINE_S):
        return wait_until(lambda: self.evaluate(script), deadline_s,
                          lambda: f"{script}; the page says: {self.evaluate('document.body.innerText')}")

    def texts(self, selector):
        return self.evaluate(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.innerText)")

    def requests(self):
        """What the pages have asked for so far."""
        return [event["params"]["request"]["url"] for event in self.events
                if event["method"] == "Network.requestWillBeSent"]

    def complaints(self):
        """Errors in the console, broken policies included."""
        return [event["params"] for event in self.events if event["method"] == "Runtime.exceptionThrown"
                or event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error"]

    def screenshot(self, path, whole=True):
        """A PNG; `whole`: the page, not only what is in sight."""
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole, **(
            {"clip": {**{name: self.call("Page.getLayoutMetrics")["cssContentSize"][name]
                         for name in ("x", "y", "width", "height")}, "scale": 1}} if whole else {}))
        path.write_bytes(base64.b64decode(answer["data"]))
