"""Theme, styles and scripts. Everything comes from this package: no font, style or script is fetched."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
from gradio.themes.utils.fonts import Font, LocalFont

ASSETS = Path(__file__).parent / "assets"


def theme() -> gr.themes.Base:
    """Neutral greys and one teal; IBM Plex comes with Gradio (its SemiBold file there lacks Latin letters)."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        secondary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.stone,
        radius_size=gr.themes.sizes.radius_md,
        text_size=gr.themes.sizes.text_md,
        font=(LocalFont("IBM Plex Sans", weights=(400, 700)), Font("system-ui"), Font("sans-serif")),
        font_mono=(LocalFont("IBM Plex Mono", weights=(400, 700)), Font("ui-monospace"), Font("monospace")),
    )


def asset(name: str) -> str:
    """The text of a file in `assets`."""
    return (ASSETS / name).read_text(encoding="utf-8")


def head() -> str:
    """What goes into the page's head: the page's own script and styles.

    Not through Gradio's `css`, which confines every rule to its container: dark mode and folded columns are classes
    of the body.
    """
    return (
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        f"<style>{asset('style.css')}</style>"
        f"<script>{asset('page.js')}</script>"
    )
