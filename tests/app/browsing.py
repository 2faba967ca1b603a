"""A page in a headless Chromium that notes whatever it should not do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from urllib.parse import urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Page, Request, expect

from app.program import Program
from app.server import listen, make_server

TIMEOUT_MILLISECONDS = 240_000  # a busy machine is no failure
# What Gradio's client writes when a page is left while a request is under way.
STALE_SOCKET = "ERR_SOCKET_NOT_CONNECTED"  # a kept connection to a server that was killed; the browser tries again
LEAVING = (
    "AbortError",
    "ERR_INCOMPLETE_CHUNKED_ENCODING",
    "Connection errored out",
    "Failed to fetch",
    "ERR_CONNECTION_REFUSED",
    "network error",
)


class ServedProgram:
    """`program` served on a free port of this machine until closed."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._listener = listen("127.0.0.1", 0)
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._server = make_server(program)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._listener]}, name="server", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(30)
        self._listener.close()


class Visit:
    """One open page with the verbs of a person."""

    def __init__(self, browser: Browser, address: str, width: int = 1280, height: int = 800) -> None:
        self.faults: list[str] = []
        self.forgive_leaving = False
        self._context = browser.new_context(
            viewport={"width": width, "height": height}, permissions=["clipboard-read", "clipboard-write"]
        )
        self._context.set_default_timeout(TIMEOUT_MILLISECONDS)
        self.page: Page = self._context.new_page()
        self.page.on("console", self._note_console)
        self.page.on("pageerror", lambda error: self.faults.append(f"script error: {error}"))
        self.page.on("request", self._note_request)
        self.page.goto(address)
        self.see("#message textarea")

    def close(self) -> None:
        """Ends the visit; fails on console errors and on any request that left the machine."""
        faults = list(self.faults)
        self._context.close()
        assert not faults, "\n".join(faults)

    def see(self, selector: str, text: str | None = None) -> None:
        """Waits until it is visible, and holds `text` if given."""
        expect(self.page.locator(selector).first).to_be_visible(timeout=TIMEOUT_MILLISECONDS)
        if text is not None:
            expect(self.page.locator(selector).first).to_contain_text(text, timeout=TIMEOUT_MILLISECONDS)

    def see_more_than(self, selector: str, characters: int) -> str:
        """Waits until it holds more text than that; returns the text."""
        longer = "([selector, count]) => document.querySelector(selector)?.innerText.length > count"
        self.page.wait_for_function(longer, arg=[selector, characters])
        return self.text(selector).strip()

    def not_see(self, selector: str) -> None:
        expect(self.page.locator(selector).first).to_be_hidden(timeout=TIMEOUT_MILLISECONDS)

    def wait_until(self, holds: Callable[[], bool]) -> None:
        """Waits for something that the page brings about behind it."""
        deadline = time.monotonic() + TIMEOUT_MILLISECONDS / 1000
        while not holds():
            assert time.monotonic() < deadline, "it did not come about in time"
            self.page.wait_for_timeout(50)

    def text(self, selector: str) -> str:
        return self.page.locator(selector).first.inner_text()

    def say(self, words: str, accepted: bool = True) -> None:
        """Writes a message and sends it with Enter; an accepted message leaves the field."""
        self.page.fill("#message textarea", words)
        self.page.press("#message textarea", "Enter")
        if accepted:
            expect(self.page.locator("#message textarea")).to_have_value("", timeout=TIMEOUT_MILLISECONDS)

    def wait_for_answer(self) -> None:
        """Until nothing is being written any more."""
        self.see("#send")
        self.not_see("#stop")

    def answers(self) -> list[str]:
        return self.page.locator("#chatbot [data-testid=bot]").all_inner_texts()

    def pull_slider_to(self, share: float) -> None:
        """Drags the budget slider to a share of its track and lets go."""
        box = self.page.locator("#slider input[type=range]").bounding_box()
        assert box is not None
        middle = box["y"] + box["height"] / 2
        thumb = float(self.page.locator("#slider input[type=range]").input_value()) / 100
        self.page.mouse.move(box["x"] + 8 + thumb * (box["width"] - 16), middle)
        self.page.mouse.down()
        self.page.mouse.move(box["x"] + 8 + share * (box["width"] - 16), middle, steps=6)
        self.page.mouse.up()

    def reload(self) -> None:
        self.forgive_leaving = True
        self.page.reload()
        self.see("#message textarea")
        self.page.wait_for_timeout(500)  # a page that polls need never be idle
        self.forgive_leaving = False

    def _note_console(self, message: ConsoleMessage) -> None:
        if message.type != "error":
            return
        leaving = self.forgive_leaving and any(words in message.text for words in LEAVING)
        if not leaving and STALE_SOCKET not in message.text:
            self.faults.append(f"console: {message.text}")

    def _note_request(self, request: Request) -> None:
        address = urlsplit(request.url)
        if address.scheme not in ("data", "blob") and address.hostname != "127.0.0.1":
            self.faults.append(f"left the machine: {request.url}")
