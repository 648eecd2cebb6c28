"""A headless Chromium, driven over its debugging pipe: nothing but the browser itself is needed."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import time

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE = 20
"""Seconds for anything that is waited for."""
KEYS = {"Enter": ("Enter", 13, "\r"), "Tab": ("Tab", 9, ""), "Escape": ("Escape", 27, ""), " ": ("Space", 32, " ")}


class Browser:
    """One page. `errors` are what its console told: exceptions, violations of its policy, failed requests."""

    def __init__(self, folder):
        ours, theirs = os.pipe(), os.pipe()
        self._write, self._read = ours[1], theirs[0]
        flags = f"--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --user-data-dir={folder}"
        command = f'exec "{PROGRAM}" {flags} --remote-debugging-pipe about:blank 3<&{ours[0]} 4>&{theirs[1]}'
        self._process = subprocess.Popen(
            ["bash", "-c", command], pass_fds=(ours[0], theirs[1]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(ours[0])
        os.close(theirs[1])
        self._number, self._text, self._session, self.errors, self._loaded = 0, b"", None, [], 0
        (page,) = [one for one in self._call("Target.getTargets")["targetInfos"] if one["type"] == "page"]
        self._session = self._call("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self._call(f"{domain}.enable")

    def close(self):
        with contextlib.suppress(OSError):
            self._call("Browser.close")
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._write)
        os.close(self._read)

    def _send(self, method, **keys):
        self._number += 1
        message = {"id": self._number, "method": method, "params": keys}
        message |= {"sessionId": self._session} if self._session and not method.startswith(("Target.", "Browser.")) else {}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        return self._number

    def _call(self, method, **keys):
        number = self._send(method, **keys)
        while (found := self._message()).get("id") != number:
            pass
        assert "error" not in found, found
        return found["result"]

    def _message(self):
        while b"\0" not in self._text:
            assert select.select([self._read], [], [], 3 * PATIENCE)[0], "the browser does not answer"
            data = os.read(self._read, 1 << 16)
            if not data:
                raise OSError("the browser is gone")
            self._text += data
        one, _, self._text = self._text.partition(b"\0")
        message = json.loads(one)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, event, told):
        if event == "Page.loadEventFired":
            self._loaded += 1
        elif event == "Runtime.exceptionThrown":
            self.errors.append(told["exceptionDetails"].get("exception", {}).get("description", "exception"))
        elif event == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.errors.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
        elif event == "Runtime.consoleAPICalled" and told["type"] in ("error", "assert"):
            self.errors.append(str(told["args"]))
        elif event == "Page.javascriptDialogOpening":
            self._send("Page.handleJavaScriptDialog", accept=True)

    def goto(self, address):
        """Open an address and wait until it is loaded."""
        before = self._loaded
        self._call("Page.navigate", url=address)
        while self._loaded == before:
            self._message()

    def js(self, expression):
        """The value of an expression; promises are waited for."""
        found = self._call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def text(self, selector):
        """What the first such element shows; None if there is none."""
        return self.js(f"document.querySelector({json.dumps(selector)})?.innerText ?? null")

    def wait(self, expression):
        """Until an expression holds."""
        end = time.monotonic() + PATIENCE
        while not self.js(f"!!({expression})"):
            assert time.monotonic() < end, f"never: {expression}\n{self.js('document.body.innerText')}\n{self.errors}"
            time.sleep(0.05)

    def press(self, key, shift=False):
        """One key, where the focus is."""
        code, number, text = KEYS[key]
        keys = {"key": key, "code": code, "windowsVirtualKeyCode": number, "modifiers": 8 if shift else 0}
        self._call("Input.dispatchKeyEvent", type="keyDown", text=text, **keys)
        self._call("Input.dispatchKeyEvent", type="keyUp", **keys)

    def type(self, text):
        """Text, where the focus is."""
        self._call("Input.insertText", text=text)

    def choose(self, selector, path):
        """A file for an input."""
        root = self._call("DOM.getDocument")["root"]["nodeId"]
        node = self._call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self._call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def look(self, width=1200, height=900, dark=False):
        """The window's size and colours."""
        mobile = width < 600
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self):
        """The page as a PNG."""
        return base64.b64decode(self._call("Page.captureScreenshot", captureBeyondViewport=True)["data"])
