"""Prepares a model's markdown for display."""

from __future__ import annotations

import re

# Code keeps its dollars; a formula is `$x$` with no space inside the dollars and no digit behind the closing one,
# so that "costs $5 and $10" stays a sentence.
_CODE = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]*`)", re.DOTALL)
_FORMULA = re.compile(r"(?<![\\$])\$(?![\s$])([^$\n]*?[^\s\\$])\$(?![\d$])")

LATEX_DELIMITERS: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]


def for_display(text: str) -> str:
    """Turns single-dollar formulas into the delimiters that the page renders."""
    parts = _CODE.split(text)
    parts[::2] = [_FORMULA.sub(r"\\(\1\\)", part) for part in parts[::2]]
    return "".join(parts)
