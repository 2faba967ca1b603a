"""Where a Chromium is that the browser tests can drive."""

import os
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

VARIABLE = "EXPERTFLOW_CHROMIUM"
HOW_TO_GET_IT = (
    f"Install Chromium (Debian and Ubuntu: `sudo apt install chromium`) or Google Chrome, or point {VARIABLE} at one."
)

_ON_PATH = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
_ELSEWHERE = {
    "darwin": (
        "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
        "/Applications/Chromium.app/Contents/MacOS/Chromium",
    ),
    "win32": (
        r"C:\Program Files\Google\Chrome\Application\chrome.exe",
        r"C:\Program Files (x86)\Microsoft\Edge\Application\msedge.exe",
    ),
}


def find_chromium(
    environment: Mapping[str, str] = os.environ, find_program: Callable[[str], str | None] = shutil.which
) -> str | None:
    """Path of a Chromium-like browser, None if there is none.

    The variable EXPERTFLOW_CHROMIUM decides alone where it is set.
    """
    if named := environment.get(VARIABLE):
        return find_program(named)
    for name in _ON_PATH:
        if path := find_program(name):
            return path
    return next((path for path in _ELSEWHERE.get(sys.platform, ()) if Path(path).exists()), None)
