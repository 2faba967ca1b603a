"""What pip does, in a few readable lines."""

import re
import time
from collections.abc import Callable
from typing import TextIO

WORTH_A_LINE_BYTES = 10_000_000

_DOWNLOADING = re.compile(r"\s*Downloading (\S+)(?: \(([\d.]+) ?([kMG]?)B\))?")
_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")
_COLLECTING = re.compile(r"Collecting ([\w.-]+)")
_INSTALLING = re.compile(r"Installing collected packages: (.+)")
_UNITS = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}


def size_words(size_bytes: float) -> str:
    """A size as people write it: `640 kB`, `190 MB`, `2.4 GB`."""
    if size_bytes >= 1e9:
        return f"{size_bytes / 1e9:.1f} GB"
    return f"{size_bytes / 1e6:.0f} MB" if size_bytes >= 1e6 else f"{size_bytes / 1e3:.0f} kB"


class Display:
    """Lines for good, and on a terminal one last line that is rewritten."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.live = stream.isatty()
        self._width = 0

    def line(self, text: str) -> None:
        self.clear()
        print(text, file=self.stream, flush=True)

    def update(self, text: str) -> None:
        if self.live:
            text = text[:78]
            print("\r" + text.ljust(self._width), end="", file=self.stream, flush=True)
            self._width = len(text)

    def clear(self) -> None:
        if self._width:
            print("\r" + " " * self._width + "\r", end="", file=self.stream, flush=True)
            self._width = 0


class PipProgress:
    """Turns pip's output (`--progress-bar raw`) into progress on a `Display`."""

    def __init__(self, display: Display, clock: Callable[[], float] = time.monotonic) -> None:
        self.display = display
        self.packages = 0
        self.doing = ""
        self.received = ""
        self.unpacking = False
        self._clock = clock
        self._started = clock()

    def read(self, line: str) -> None:
        """Take in one line of pip's output."""
        if match := _PROGRESS.match(line):
            done, total = int(match[1]), int(match[2])
            self.received = f", {size_words(done)} of {size_words(total)}"
        elif match := _INSTALLING.match(line):
            self.unpacking = True
            count = len(match[1].split(","))
            self._begin(f"  unpacking {count} package{'s' if count > 1 else ''}", worth_a_line=True)
        elif match := _DOWNLOADING.match(line):
            self._begin_download(match)
        elif match := _COLLECTING.match(line):
            self.packages += 1
            self._begin(f"  package {self.packages}: {match[1]}", worth_a_line=False)
        self.tick()

    def tick(self) -> None:
        """Show that it is still going on."""
        self.display.update(f"{self.doing}{self.received}  ({self._clock() - self._started:.0f} s)")

    def _begin_download(self, match: re.Match[str]) -> None:
        file_name = match[1].rsplit("/", 1)[-1]
        if file_name.endswith(".metadata"):
            return
        size_bytes = float(match[2]) * _UNITS[match[3]] if match[2] else 0.0
        size = f", {size_words(size_bytes)}" if size_bytes else ""
        name = file_name.split("-")[0]
        self._begin(f"  downloading {name}", size_bytes >= WORTH_A_LINE_BYTES, size)

    def _begin(self, words: str, worth_a_line: bool, size: str = "") -> None:
        self.doing, self.received = words, size
        if worth_a_line and not self.display.live:
            self.display.line(words + size)
