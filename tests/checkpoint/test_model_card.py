"""The card beside a checkpoint's weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.checkpoint.builtin.recipe import ASSETS_DIR
from engine.checkpoint.model_card import CARD_NAME, LONGEST_CARD, read_model_card


@pytest.mark.parametrize(
    ("text", "card"),
    [
        ("# A model\n", "# A model"),
        ("---\nlicense: mit\n---\n# A model\n---\nmore", "# A model\n---\nmore"),
        ("---\nlicense: mit\n---\n", None),
        ("", None),
        ("x" * (LONGEST_CARD + 5), "x" * LONGEST_CARD),
    ],
)
def test_what_people_read_is_left(tmp_path: Path, text: str, card: str | None) -> None:
    (tmp_path / CARD_NAME).write_text(text, encoding="utf-8")
    assert read_model_card(tmp_path) == card


def test_no_card_or_one_that_is_no_text(tmp_path: Path) -> None:
    assert read_model_card(tmp_path) is None
    (tmp_path / CARD_NAME).write_bytes(b"\xff\xfe")
    assert read_model_card(tmp_path) is None


def test_the_built_in_model_says_what_it_is() -> None:
    card = read_model_card(ASSETS_DIR)
    assert card is not None
    for word in ("SmolLM2-135M-Instruct", "Apache-2.0", "perplexity"):
        assert word in card
