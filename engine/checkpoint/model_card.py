"""What a checkpoint's makers say about it: the README.md beside its weights."""

from __future__ import annotations

import re
from pathlib import Path

CARD_NAME = "README.md"
LONGEST_CARD = 20_000  # characters; a person reads no more in a side panel
_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)


def read_model_card(folder: Path) -> str | None:
    """Markdown of the card without the header that machines read; None where there is none that can be read."""
    try:
        text = (folder / CARD_NAME).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    card = _FRONT_MATTER.sub("", text, count=1).strip()
    return card[:LONGEST_CARD] or None
