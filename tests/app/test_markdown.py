"""Formulas become formulas, money and code stay what they are."""

import pytest

from app.ui.markdown import for_display


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("so $x^2$ holds", r"so \(x^2\) holds"),
        ("$a$ and $b$", r"\(a\) and \(b\)"),
        ("costs $5 and $10", "costs $5 and $10"),
        ("$5-$10 a month", "$5-$10 a month"),
        ("$$x$$", "$$x$$"),
        ("`$HOME` and `$PATH`", "`$HOME` and `$PATH`"),
        ("```sh\necho $A$B\n```\n$y$", "```sh\necho $A$B\n```\n\\(y\\)"),
        ("```sh\nunfinished $A$", "```sh\nunfinished $A$"),
        (r"\$x\$", r"\$x\$"),
    ],
)
def test_for_display(text, shown):
    assert for_display(text) == shown
