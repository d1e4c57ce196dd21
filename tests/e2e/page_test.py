"""The live page in a real browser: headless Chromium, driven over its debugging pipe.

With a folder as its argument this program puts pictures of the page there, instead of testing it.
"""

import base64
import json
import os
import pathlib
import select
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

import programs
from programs import PATIENCE_S

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
if BROWSER is None:
    raise unittest.SkipTest("no Chromium: package chromium")


class Browser:
    """A tab of a browser of its own."""

    def __init__(self, profile):
        to_browser, self._requests = os.pipe()
        self._replies, from_browser = os.pipe()

        # It reads from 3 and writes to 4.
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec 3<&{to_browser} 4>&{from_browser} && exec "$@"', "bash", BROWSER]
            + ["--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu"]
            + ["--disable-dev-shm-usage", "--no-first-run", f"--user-data-dir={profile}"]
            + ["--hide-scrollbars", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(to_browser, from_browser),
        )
        os.close(to_browser)
        os.close(from_browser)
        self._received = b""
        self._last_id = 0
        self._session = None
        self.complaints = []
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target for target in targets if target["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self):
        self._process.kill()
        self._process.wait()
        os.close(self._requests)
        os.close(self._replies)

    def _next_message(self, deadline):
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._replies], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                raise AssertionError("the browser does not answer")
            data = os.read(self._replies, 1 << 20)
            if not data:
                raise AssertionError("the browser has ended")
            self._received += data
        message, self._received = self._received.split(b"\0", 1)
        return json.loads(message)

    def call(self, method, **parameters):
        self._last_id += 1
        request = {"id": self._last_id, "method": method, "params": parameters}
        if self._session:
            request["sessionId"] = self._session
        os.write(self._requests, json.dumps(request).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE_S
        while True:
            message = self._next_message(deadline)
            if message.get("id") == self._last_id:
                if "error" in message:
                    raise AssertionError(f"{method}: {message['error']}")
                return message["result"]
            self._note(message)

    def _note(self, message):
        """Whatever a developer would see in red."""
        parameters = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(parameters["exceptionDetails"])
        if message.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.complaints.append(parameters["entry"])

    def evaluate(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in result:
            raise AssertionError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def await_true(self, expression):
        give_up = time.monotonic() + PATIENCE_S
        while not self.evaluate(expression):
            if time.monotonic() > give_up:
                raise AssertionError(f"it did not come true: {expression}")

    def open(self, url):
        self.call("Page.navigate", url=url)
        self.await_true("document.readyState === 'complete' && location.href !== 'about:blank'")

    def press(self, key, modifiers=0):
        codes = {"Enter": 13, "Escape": 27, "Tab": 9, "ArrowRight": 39}
        for kind in ("rawKeyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                **{"type": kind, "key": key, "code": key, "modifiers": modifiers},
                windowsVirtualKeyCode=codes[key],
            )

    def show_as(self, width, height, scheme):
        self.call(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.call("Emulation.setEmulatedMedia", features=[feature])

    def screenshot(self, path):
        picture = self.call("Page.captureScreenshot", format="png")["data"]
        pathlib.Path(path).write_bytes(base64.b64decode(picture))


class PageTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = programs.ServerProcess()
        cls.addClassCleanup(cls.server.stop)
        profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        cls.addClassCleanup(profile.cleanup)
        cls.browser = Browser(profile.name)
        cls.addClassCleanup(cls.browser.close)

    def setUp(self):
        self.browser.complaints.clear()
        self.browser.show_as(1280, 860, "light")
        self.browser.open(self.server.http_url)
        self.browser.await_true("document.querySelectorAll('input[name=mode]').length > 0")

    def tearDown(self):
        # Nothing that the page does offends its own security policy, or fails.
        self.assertEqual(self.browser.complaints, [])

    def text(self, selector):
        return self.browser.evaluate(f"document.querySelector({selector!r}).textContent")

    def set(self, element, value):
        self.browser.evaluate(f"document.getElementById({element!r}).value = {value!r}")

    def await_text(self, selector, part):
        self.browser.await_true(
            f"document.querySelector({selector!r}).textContent.includes({part!r})"
        )

    def test_a_completion_is_shown_as_it_is_written(self):
        self.set("max_tokens", "48")
        self.set("seed", "4")
        # The sizes that the text goes through.
        self.browser.evaluate(
            "sizes = new Set(); new MutationObserver(() => sizes.add("
            "document.getElementById('output').textContent.length))"
            ".observe(document.getElementById('output'), { childList: true })"
        )
        self.browser.evaluate("document.getElementById('generate').click()")
        self.await_text("#run", "ended by")
        self.assertGreater(self.browser.evaluate("sizes.size"), 3)
        self.assertTrue(self.text("#output").startswith(self.browser.evaluate(
            "document.getElementById('prompt').value")))
        self.assertIn("written", self.text("#run"))
        self.assertFalse(self.browser.evaluate("document.getElementById('generate').disabled"))

    def test_every_mode_writes(self):
        self.set("max_tokens", "16")
        for mode in ("exact", "hiergen", "recgen"):
            self.browser.evaluate(f"document.querySelector('input[value={mode}]').click()")
            self.browser.evaluate("document.getElementById('generate').click()")
            self.await_text("#run", "ended by")

    def test_it_is_used_by_keyboard_alone(self):
        self.set("max_tokens", "1800")
        self.set("seed", "4")
        self.browser.evaluate("document.getElementById('prompt').focus()")
        self.browser.press("Tab")
        self.assertEqual(self.browser.evaluate("document.activeElement.name"), "mode")
        before = self.browser.evaluate("document.querySelector('input[name=mode]:checked').value")
        self.browser.press("ArrowRight")
        after = self.browser.evaluate("document.querySelector('input[name=mode]:checked').value")
        self.assertNotEqual(before, after)
        self.browser.press("Enter", modifiers=2)  # with Ctrl
        self.await_text("#run", "writing")
        self.browser.press("Escape")
        self.await_text("#run", "stopped")
        # The server has noticed, too.
        self.browser.await_true("document.getElementById('running').textContent === '0'")

    def test_the_numbers_move(self):
        self.set("max_tokens", "1500")
        # Again if the model came to its end before the numbers were looked at.
        self.browser.await_true(
            "(() => { const button = document.getElementById('generate');"
            " if (!button.disabled) button.click();"
            " return document.getElementById('running').textContent === '1'; })()"
        )
        self.browser.await_true(
            "Number(document.getElementById('tokens-per-second').textContent) > 0"
        )
        self.browser.await_true("document.querySelector('#speed-chart .line') !== null")
        self.assertIn("in use", self.text("#pool-legend"))
        self.browser.press("Escape")
        self.await_text("#latency-count", "sequences of the last minute")
        self.assertEqual(len(self.browser.evaluate("[...document.querySelectorAll('#latency td')]"
                                                   ".map((cell) => cell.textContent)")), 9)
        self.assertEqual(self.text("#health"), "ready")

    def test_errors_are_shown_in_words(self):
        self.set("prompt", "word " * 4000)
        self.browser.evaluate("document.getElementById('generate').click()")
        self.await_text("#run", "prompt: has ")
        # The browser logs the refusal itself.
        self.browser.complaints = [c for c in self.browser.complaints if "400" not in str(c)]

    def test_it_fits_small_screens_and_both_schemes(self):
        colours = set()
        for width, scheme in ((1280, "light"), (1280, "dark"), (390, "dark")):
            self.browser.show_as(width, 860, scheme)
            self.browser.await_true(f"document.documentElement.dataset.theme === {scheme!r}")
            self.assertLessEqual(
                self.browser.evaluate("document.documentElement.scrollWidth"), width
            )
            colours.add(self.browser.evaluate("getComputedStyle(document.body).backgroundColor"))
        self.assertEqual(len(colours), 2)


def take_pictures(browser, folder):
    """Of a server that writes for several clients for more than a minute."""
    browser.show_as(1280, 900, "light")
    browser.await_true("document.querySelectorAll('input[name=mode]').length > 0")
    browser.evaluate(
        "for (let i = 0; i < 24; ++i) setTimeout(() => fetch('v1/completions', "
        "{ method: 'POST', headers: { 'content-type': 'application/json' }, body: "
        "JSON.stringify({ model: model.name, prompt: 'The story of ' + i, seed: i, "
        "max_tokens: 100 + 40 * (i % 5), ignore_eos: true, n: 1 + (i * i) % 6 }) }), 3000 * i)"
    )
    browser.await_true("seen.length > 70")
    browser.evaluate("document.getElementById('seed').value = 12")
    browser.evaluate("document.getElementById('generate').click()")
    browser.await_true("document.getElementById('output').textContent.length > 420")
    for scheme in ("light", "dark"):
        browser.show_as(1280, 900, scheme)
        browser.await_true(f"document.documentElement.dataset.theme === {scheme!r}")
        browser.screenshot(pathlib.Path(folder) / f"page-{scheme}.png")


if __name__ == "__main__":
    if len(sys.argv) == 2 and pathlib.Path(sys.argv[1]).is_dir():
        # A small pool, so that there is something to see in it.
        with programs.server("--kv-memory", "4MiB") as server, tempfile.TemporaryDirectory() as profile:
            browser = Browser(profile)
            browser.open(server.http_url)
            take_pictures(browser, sys.argv[1])
            browser.close()
    else:
        unittest.main()
